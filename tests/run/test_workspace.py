"""A profile's folder: trained once, continued to the same bytes, measured, one table."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers.folders import all_bytes
from helpers.models import llama
from helpers.sealing import resealed
from helpers.workspaces import RECIPE, WORDS, corpus_of, open_workspace, write_inputs

from saelib.activations.rows import ShuffledRows
from saelib.config import CollectConfig, ConfigError, CorpusConfig, EvalConfig
from saelib.files import temporary_name
from saelib.measure.columns import COLUMNS
from saelib.run import collected as collected_module
from saelib.run import costs, identity, training
from saelib.run.workspace import (
    Workspace,
)
from saelib.sae import spec as spec_module
from saelib.sae.history import TrainingDiverged
from saelib.sae.origin import digest, origin
from saelib.sae.spec import make_spec
from saelib.seal import seal_files
from saelib.study.curve import Curve, curves_over_seeds, reach_l0


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A workbook folder with a tiny model, text and its store."""
    home = tmp_path_factory.mktemp("home")
    write_inputs(home)
    return home


@pytest.fixture
def ws(collected):
    before = os.environ.get("SAELIB_HOME")
    yield open_workspace(collected)
    os.environ.pop("SAELIB_HOME") if before is None else os.environ.update(SAELIB_HOME=before)


def _specs(ws):
    arms = [("plain", 0.5), ("two_term", 0.5), ("full", 0.5)]
    return [ws.spec(arm, ws.site("middle"), lam=lam, **RECIPE) for arm, lam in arms]


def test_site_names_resolve_without_a_forward(ws):
    assert [ws.site(s) for s in (1, "middle", -2, -1)] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"site 9: expected 0 to 4"):
        ws.site(9)


def test_rows_come_back_in_the_order_asked_with_every_column(ws):
    rows = ws.train(_specs(ws), "02_train_sae")
    assert list(rows.columns) == [*COLUMNS, "arm"]
    assert rows["arm"].tolist() == ["plain", "two_term", "full"]
    assert (rows["notebook"] == "02_train_sae").all()
    assert (rows["tokens_trained"] == 4096).all()
    assert rows["fvu"].between(0.01, 1.2).all()
    assert rows.loc[0, "fvu"] < 0.9
    assert rows["gate_dead"].isna().tolist() == [True, False, False]


def test_a_run_is_trained_once_whoever_asks(ws):
    first = ws.train(_specs(ws), "02_train_sae")
    weights = ws.run_folder(_specs(ws)[0]) / "weights.safetensors"
    stamp = weights.stat().st_mtime_ns
    again = ws.train(_specs(ws)[:1], "03_train_gated")
    assert weights.stat().st_mtime_ns == stamp
    assert again.loc[0, "notebook"] == "02_train_sae"
    assert again.loc[0, "fvu"] == first.loc[0, "fvu"]


def test_results_csv_holds_one_row_a_run_sorted_and_nothing_of_time_or_place(ws, collected):
    ws.train(_specs(ws), "02_train_sae")
    text = (ws.folder / "results.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert list(rows[0]) == list(COLUMNS)
    assert [r["run_id"] for r in rows] == sorted(p.name for p in (ws.folder / "saes").iterdir())
    assert str(collected) not in text
    table = ws.results().set_index("run_id")
    for row in rows:  # floats in repr: nothing is lost on the way through the file
        stored = json.loads((ws.folder / "saes" / row["run_id"] / "metrics.json").read_text())[
            "row"
        ]
        assert table.loc[row["run_id"], "fvu"] == stored["fvu"]
        folder = ws.folder / "saes" / row["run_id"]  # which says by itself where it comes from
        said = (row["model_id"], row["corpus_id"], int(row["site"]), digest(folder))
        assert origin(folder) == said


@pytest.mark.parametrize(
    "text", ["", "run_id,notebook\n77e5,02\n"], ids=["empty", "columns missing"]
)
def test_a_damaged_results_table_is_named(ws, text):
    ws.folder.mkdir(parents=True, exist_ok=True)
    (ws.folder / "results.csv").write_text(text)
    (ws.folder / "seal.json").unlink(missing_ok=True)  # or that says it first
    with pytest.raises(ValueError, match=r"results\.csv: damaged \(.*run notebook 02"):
        ws.results()


def test_evaluation_is_on_test_pages_and_the_pages_add_up(ws):
    rows = ws.train(_specs(ws), "02_train_sae")
    pages = ws.pages(_specs(ws)[0])
    splits = ws.store.tokens["split"]
    test_pages = set(ws.store.tokens["page"][splits == 2])
    assert set(pages["page_id"]) == {ws.store.page_ids[p] for p in test_pages}
    assert pages["sse"].sum() / pages["sst"].sum() == pytest.approx(rows.loc[0, "fvu"], rel=1e-6)
    assert (
        pages["n"].sum() == rows.loc[0, "n_test_tokens"] == ws.store.mask("ordinary", "test").sum()
    )


def test_normaliser_gives_ordinary_training_rows_zero_mean_and_d_squared_norm(ws):
    mean, scale = ws.normalizer(2, "center_scale", "ordinary")
    x = ws.store.rows(2, np.flatnonzero(ws.store.mask("ordinary", "train")))
    x_n = scale * (x - mean)
    assert x_n.mean(0).abs().max() < 1e-4
    assert x_n.pow(2).sum(1).mean().item() == pytest.approx(32, rel=1e-4)
    zero, scale = ws.normalizer(2, "scale", "ordinary")
    assert not zero.any()
    assert (scale * x).pow(2).sum(1).mean().item() == pytest.approx(32, rel=1e-4)
    centre, one = ws.normalizer(2, "center", "ordinary")
    assert torch.equal(centre, mean)
    assert one == 1.0
    assert ws.normalizer(2, "none", "all") == (pytest.approx(torch.zeros(32)), 1.0)


@pytest.mark.parametrize(("embedding", "kind"), [(0.0, "zero"), (0.5, "equal")])
def test_a_model_whose_activations_are_all_equal_is_refused_by_site(
    embedding, kind, tmp_path, monkeypatch
):
    write_inputs(tmp_path)
    model = llama(vocabulary=WORDS + 1)
    torch.nn.init.constant_(model.model.embed_tokens.weight, embedding)
    model.save_pretrained(tmp_path / "model")
    monkeypatch.setenv("SAELIB_HOME", str(tmp_path))
    workspace = open_workspace(tmp_path)
    site = rf"site 1 \(ordinary training tokens\): all activations are {kind}"
    with pytest.raises(ValueError, match=site):
        workspace.train([workspace.spec("plain", 1, lam=0.5, **RECIPE)], "02_train_sae")


@pytest.mark.parametrize("tokens", ["ordinary", "all"])
def test_training_sees_the_chosen_tokens_of_training_pages_alone(ws, tokens):
    index = ws.stream(ws.spec("plain", 2, tokens_mask=tokens, **RECIPE)).index
    assert (ws.store.tokens["split"][index] == 0).all()
    assert set(index) == set(np.flatnonzero(ws.store.mask(tokens, "train")))
    assert (ws.store.token_class(2)[index] == 2).all() == (tokens == "ordinary")


def test_the_order_of_the_rows_is_the_seeds_unless_it_has_its_own(ws):
    seeds = ({"seed": 0}, {"seed": 1}, {"seed": 1, "data_seed": 0})
    first, second, own = (
        ws.stream(ws.spec("plain", 2, **seed, **RECIPE)).next_rows() for seed in seeds
    )
    assert np.array_equal(first, own)
    assert not np.array_equal(first, second)


def test_training_consumes_that_stream(ws, monkeypatch):
    spec, seen = ws.spec("plain", 2, lam=0.9, **RECIPE), []
    stream, of = ws.stream(spec), ShuffledRows.next_rows
    monkeypatch.setattr(ShuffledRows, "next_rows", lambda s: seen.append(of(s)) or seen[-1])
    ws.train([spec], "02_train_sae")
    monkeypatch.undo()
    assert np.array_equal(np.concatenate(seen), np.concatenate([stream.next_rows() for _ in seen]))


CHILD = """
import sys
from pathlib import Path
from helpers.workspaces import RECIPE, halt_training, open_workspace
halt_training(at=20)
ws = open_workspace(Path(sys.argv[1]))
ws.checkpoint_every = 8
recipe = {"lam": 0.7, "resample_at": (0.3,), "dead_window": 512, **RECIPE}
ws.train([ws.spec("full", 2, **recipe)], "03_train_gated")
"""


def test_kill_9_in_mid_training_then_rerun_gives_the_same_bytes(ws, collected, tmp_path):
    spec = ws.spec("full", 2, lam=0.7, resample_at=(0.3,), dead_window=512, **RECIPE)
    folder = ws.run_folder(spec)
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(collected)])
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert (folder / "checkpoint.safetensors").exists()
    assert not (folder / "config.json").exists()
    name = temporary_name(folder / "checkpoint.safetensors").name
    half = folder / name.replace(str(os.getpid()), str(child.pid))
    half.touch()  # where the kill came while it wrote
    ws.train([spec], "03_train_gated")
    assert not half.exists()
    killed, table = all_bytes(folder), (ws.folder / "results.csv").read_bytes()
    timings = list(csv.DictReader((ws.folder / "timings.csv").open()))
    assert [
        r["resumed"] for r in timings if r["run_id"] == folder.name and r["stage"] == "train"
    ] == ["true"]
    for path in folder.iterdir():
        path.unlink()
    ws.train([spec], "03_train_gated")
    assert all_bytes(folder) == killed
    assert (ws.folder / "results.csv").read_bytes() == table


def test_measuring_that_was_interrupted_is_done_on_the_next_call(ws):
    spec = _specs(ws)[0]
    before = ws.train([spec], "02_train_sae")
    (ws.run_folder(spec) / "metrics.json").unlink()
    after = ws.train([spec], "02_train_sae")
    assert after.loc[0, "fvu"] == before.loc[0, "fvu"]


def test_l0_is_reached_by_further_lambda_and_interpolated_never_extrapolated(ws):
    def make(lam):
        return ws.spec("plain", 2, lam=lam, **RECIPE)

    lams = [0.4, 0.8]
    l0 = ws.train([make(lam) for lam in lams], "02_train_sae")["l0_val"]
    inside, above = float(np.sqrt(l0[0] * l0[1])), float(l0.max() * 1.15)
    curve = reach_l0(ws, "02_train_sae", make, {(): lams}, above)[()]
    rows = curve.rows
    assert len(rows) > 2
    assert rows["l0_val"].max() >= above
    start = Curve(rows.iloc[:2], ws.pages)
    assert start.at_l0(above) is None
    assert min(rows["fvu"][:2]) < start.at_l0(inside) < max(rows["fvu"][:2])


def test_a_bracket_wider_than_a_factor_two_is_refined_as_often_as_asked_and_no_more(ws):
    def make(lam):
        return ws.spec("plain", 2, lam=lam, **RECIPE)

    wide = reach_l0(ws, "02_train_sae", make, {(): [0.05, 3.6]}, 12.0)[()].rows
    assert len(wide) == 2
    assert wide["l0_val"].max() > 2 * wide["l0_val"].min()
    once = reach_l0(ws, "02_train_sae", make, {(): [0.05, 3.6]}, 12.0, refine=1)[()].rows
    assert once["lambda"].tolist() == [0.05, 3.6, pytest.approx(0.18**0.5, rel=1e-3)]
    curve = reach_l0(ws, "02_train_sae", make, {(): [0.05, 3.6]}, 12.0, refine=9)[()]
    close = curve.rows
    nearest = [
        op(close["l0_val"][mask])
        for op, mask in ((min, close["l0_val"] >= 12), (max, close["l0_val"] <= 12))
    ]
    assert nearest[0] <= 2 * nearest[1]
    assert len(close) < 8
    matched = curve.samples_at_l0(12.0)
    assert matched.value == pytest.approx(curve.at_l0(12.0))
    assert len(matched.draws) == 1001


def test_later_seeds_begin_where_the_first_one_has_the_target(ws):
    def make(site, seed, lam):
        return ws.spec("plain", site, lam=lam, seed=seed, **RECIPE)

    first = reach_l0(ws, "02_train_sae", make, {(2, 0): [0.05, 0.6, 3.6]}, 12.0)[2, 0]
    near = first.bracket(12.0)
    l0 = first.rows.set_index("lambda")["l0_val"]
    assert l0[near[1]] <= 12 <= l0[near[0]]
    curves = curves_over_seeds(ws, "02_train_sae", make, {(2,): [0.05, 0.6, 3.6]}, [0, 1], 12.0)
    assert set(curves) == {(2, 0), (2, 1)}
    assert curves[2, 1].rows["lambda"].tolist()[:2] == near
    assert set(curves[2, 1].rows["seed"]) == {1}
    assert curves[2, 0].rows["run_id"].tolist() == first.rows["run_id"].tolist()
    finer = curves_over_seeds(ws, "02_train_sae", make, {(2,): [0.05, 3.6]}, [0, 1], 12.0, refine=9)
    for seed in (0, 1):
        near = finer[2, seed].bracket(12.0)
        sides = finer[2, seed].rows.set_index("lambda").loc[near, "l0_val"]
        assert sides.max() <= 2 * sides.min()
    assert finer[2, 1].rows["lambda"].tolist()[:2] == finer[2, 0].bracket(12.0)


def test_a_workspace_measuring_less_shares_model_and_store_and_asks_for_no_loss(ws):
    quick = ws.measuring(EvalConfig(ce_tokens=0))
    assert quick.lm is ws.lm
    assert quick.store is ws.store
    assert (quick.evaluation.ce_tokens, ws.evaluation.ce_tokens > 0) == (0, True)
    row = quick.train([ws.spec("plain", 2, lam=0.7, **RECIPE)], "02_train_sae").iloc[0]
    assert np.isnan(row["loss_recovered"])
    assert row["fvu"] > 0


def test_a_collapsed_curve_brackets_nothing_until_its_l0_is_above_zero(ws):
    def make(lam):
        return ws.spec("plain", 2, lam=lam, **RECIPE)

    specs = [make(lam) for lam in (0.45, 90.0)]
    l0 = ws.train(specs, "02_train_sae")["l0_val"]
    path = ws.run_folder(specs[1]) / "metrics.json"
    stored = json.loads(path.read_text())
    path.write_text(
        json.dumps(stored | {"row": stored["row"] | {"l0_val": 0.0}})
    )  # as of one whose latents all died
    resealed(path.parent)
    curve = reach_l0(ws, "02_train_sae", make, {(): [0.45, 90.0]}, 0.7 * float(l0[0]))[()]
    assert len(curve.rows) > 2
    path.unlink()


def test_columns_without_a_value_are_numbers_and_whole_numbers_stay_whole(ws):
    rows = ws.train(_specs(ws)[:1], "02_train_sae")  # plain: no gate, so no row has gate_dead
    assert rows["gate_dead"].dtype == "float64"
    assert rows["n_latents"].dtype == ws.results()["n_latents"].dtype == "int64"
    assert rows["fvu"].dtype == "float64"


def test_what_was_measured_otherwise_is_measured_again(ws):
    before = ws.train(_specs(ws)[:1], "02_train_sae")
    weights = ws.run_folder(_specs(ws)[0]) / "weights.safetensors"
    stamp = weights.stat().st_mtime_ns
    ws.evaluation = EvalConfig(ce_tokens=128)
    after = ws.train(_specs(ws)[:1], "02_train_sae")
    assert ws.pages(_specs(ws)[0])["ce_n"].sum() == 128 - 128 // 16
    assert after.loc[0, "ce_id"] != before.loc[0, "ce_id"]
    assert after.loc[0, "fvu"] == before.loc[0, "fvu"]
    assert weights.stat().st_mtime_ns == stamp
    ws.evaluation = EvalConfig(ce_tokens=256)
    assert ws.train(_specs(ws)[:1], "02_train_sae").equals(before)
    ws.evaluation = EvalConfig(ce_tokens=0)
    assert ws.train(_specs(ws)[:1], "02_train_sae").equals(
        before
    )  # a measured loss is not thrown away
    spec = ws.spec("plain", 2, lam=0.77, **RECIPE)
    assert ws.train([spec], "02_train_sae")[["ce_id", "kl"]].isna().all(axis=None)
    ws.evaluation = EvalConfig(ce_tokens=256)
    assert ws.train([spec], "02_train_sae")[["ce_id", "kl"]].notna().all(axis=None)


def test_runs_of_another_store_stay_out_of_the_table(ws):
    ws.train(_specs(ws)[:1], "02_train_sae")
    before = (ws.folder / "results.csv").read_bytes()
    other = ws.folder / "saes" / "0123456789ab"
    shutil.copytree(ws.run_folder(_specs(ws)[0]), other)
    made = json.loads((other / "train.json").read_text()) | {"store": "another"}
    (other / "train.json").write_text(json.dumps(made))
    measured = json.loads((other / "metrics.json").read_text())
    measured["row"]["run_id"] = other.name
    (other / "metrics.json").write_text(json.dumps(measured))
    seal_files(other, ["train.json", "metrics.json"], other.name)
    try:
        ws.write_results()
        assert (ws.folder / "results.csv").read_bytes() == before
    finally:
        shutil.rmtree(other)


def test_a_checkpoint_left_by_a_kill_after_the_last_file_goes_when_the_run_is_measured(ws):
    spec = _specs(ws)[0]
    ws.train([spec], "02_train_sae")
    (ws.run_folder(spec) / "metrics.json").unlink()
    (ws.run_folder(spec) / "checkpoint.safetensors").write_bytes(b"whole, but no longer needed")
    ws.train([spec], "02_train_sae")
    assert not (ws.run_folder(spec) / "checkpoint.safetensors").exists()


def test_a_damaged_metrics_file_is_named(ws):
    spec = _specs(ws)[0]
    ws.train([spec], "02_train_sae")
    path = ws.run_folder(spec) / "metrics.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    try:
        with pytest.raises(ValueError, match=rf"{path}: damaged"):
            ws.train([spec], "02_train_sae")
    finally:
        path.write_bytes(whole)


def test_a_model_text_or_site_that_is_not_there_does_not_claim_the_profile(collected, monkeypatch):
    monkeypatch.setenv("SAELIB_HOME", str(collected))
    corpus = corpus_of(collected)
    absent = CorpusConfig(source="jsonl", path=str(collected / "page.jsonl"), ctx_len=16)
    ws, model, cfg = (
        Workspace("typos", "cpu"),
        str(collected / "model"),
        CollectConfig(shard_tokens=1024),
    )
    with pytest.raises(OSError, match="modle"):
        ws.collect(str(collected / "modle"), corpus, [1], cfg, dtype="float32")
    with pytest.raises(ValueError, match=r"page\.jsonl"):
        ws.collect(model, absent, [1], cfg, dtype="float32")
    with pytest.raises(ValueError, match="site 9"):
        ws.collect(model, corpus, [9], cfg, dtype="float32")
    assert ws.collect(model, corpus, [1], cfg, dtype="float32").sites == (1,)
    assert Workspace("typos").identity["corpus"]["path"] == str(collected / "pages.jsonl")


def test_the_store_of_another_model_or_text_is_not_mixed_in(ws, collected):
    corpus = CorpusConfig(source="jsonl", path=str(collected / "pages.jsonl"), ctx_len=12)
    with pytest.raises(ConfigError, match=r"workspace\.json: corpus is .*now asked for"):
        Workspace("tiny", "cpu").collect(
            str(collected / "model"), corpus, [1], CollectConfig(), dtype="float32"
        )


def test_without_a_store_the_notebook_to_run_is_named(home):
    for name in ("identity", "store"):
        with pytest.raises(
            FileNotFoundError, match="run notebook 01_collect with profile 'empty' first"
        ):
            getattr(Workspace("empty"), name)
    with pytest.raises(FileNotFoundError, match="run notebooks 02 to 04"):
        Workspace("empty").results()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arm": "tok"}, "arm = 'tok': expected one of plain, two_term, full, topk"),
        ({"lamda": 3.0}, "unknown field 'lamda'; accepted: arch"),
        ({"lam": -1.0}, r"lam = -1.0"),
    ],
)
def test_a_bad_spec_is_refused_by_name(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_spec(**({"arm": "plain", "site": 2, "d_in": 32} | settings))


def test_a_site_that_was_not_collected_is_refused(ws):
    with pytest.raises(ConfigError, match=r"site = 0: the store of profile 'tiny' has"):
        ws.train([ws.spec("plain", 0, **RECIPE)], "02_train_sae")


@pytest.mark.parametrize(
    ("share", "window", "message"),
    [
        (0.9, 1000, "dead_window = 1000: longer than the 384 tokens"),
        (0.1, 1000, "before dead_window = 1000 tokens"),
    ],
)
def test_a_dead_window_that_does_not_fit_around_the_resamplings_is_refused(
    ws, share, window, message
):
    spec = ws.spec("plain", 2, resample_at=(share,), **(RECIPE | {"dead_window": window}))
    with pytest.raises(ConfigError, match=message):
        ws.train([spec], "04_resampling")


def test_one_diverged_run_is_named_and_the_others_are_kept(ws):
    good, bad = (
        ws.spec("plain", 2, lam=0.6, **RECIPE),
        ws.spec("plain", 2, **(RECIPE | {"lr": 1e30, "warmup": 0.0})),
    )
    with pytest.raises(TrainingDiverged, match=ws.run_id(bad)):
        ws.train([bad, good], "02_train_sae")
    assert ws.run_id(good) in set(ws.results()["run_id"])
    assert ws.run_id(bad) not in set(ws.results()["run_id"])


def test_snapshots_and_events_are_kept_with_the_run(ws):
    spec = ws.spec(
        "full", 2, lam=0.5, snapshots=3, resample_at=(0.25, 0.5), **(RECIPE | {"dead_window": 256})
    )
    ws.train([spec], "04_resampling")
    snapshots = ws.snapshots(spec)
    assert [s.step for s in snapshots] == [21, 43, 64]
    assert snapshots[0].open.shape == (min(1024, ws.store.mask("ordinary", "val").sum()), 64)
    assert [e["step"] for e in ws.events(spec)] == [16, 32]
    assert list(ws.history(spec)["step"]) == list(range(4, 65, 4))


def test_the_training_version_is_part_of_a_run_and_older_runs_leave_the_table(ws, monkeypatch):
    spec = _specs(ws)[0]
    ws.train([spec], "02_train_sae")
    before = ws.run_id(spec)
    monkeypatch.setattr(spec_module, "TRAINING_VERSION", 2)
    monkeypatch.setattr(identity, "TRAINING_VERSION", 2)
    assert ws.run_id(spec) != before
    ws.write_results()
    assert before not in set(ws.results()["run_id"])


def test_another_measuring_version_measures_again_and_trains_nothing(ws, monkeypatch):
    spec = _specs(ws)[0]
    ws.train([spec], "02_train_sae")
    folder = ws.run_folder(spec)
    weights = (folder / "weights.safetensors").stat().st_mtime_ns
    (folder / "metrics.json").write_text(
        (folder / "metrics.json").read_text().replace('"version": 1', '"version": 0')
    )
    resealed(folder)
    ws.train([spec], "02_train_sae")
    assert '"version": 1' in (folder / "metrics.json").read_text()
    assert (folder / "weights.safetensors").stat().st_mtime_ns == weights


def test_on_a_gpu_no_more_saes_train_at_once_than_its_free_memory_holds(home, monkeypatch):
    monkeypatch.setattr(collected_module, "choose_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    ws = Workspace("p")
    ws.identity = {}
    specs = {str(i): make_spec("plain", 1, 576, n_latents=9216, lam=1.0 + i) for i in range(12)}
    one = costs.TRAINED * costs.sae_weights(576, 9216, gated=True)
    dense_step = 12 * 9216 * specs["0"].train.batch_size
    for many, expected in ((0.5, 1), (3.5, 3), (50, 12)):
        free = (many * one + dense_step) / 0.9
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, free))
        assert max(len(wave.runs) for wave in training.schedule(ws, specs)) == expected


def test_topk_is_trained_measured_and_loaded_like_any_other_arm(ws):
    spec = ws.spec("topk", 2, k=6, **RECIPE)
    (row,) = ws.train([spec], "02_train_sae").to_dict("records")
    assert (row["arm"], row["arch"], row["lambda"]) == ("topk", "topk", 0.0)
    assert row["options"] == "aux_k=256 k=6"
    assert "aux_k=256 k=6" in ws.results()["options"].tolist()
    path = ws.run_folder(spec) / "metrics.json"  # as written before the table had options
    measured = json.loads(path.read_text())
    del measured["row"]["options"]
    path.write_text(json.dumps(measured))
    resealed(path.parent)
    assert ws.train([spec], "02_train_sae")["options"].tolist() == ["aux_k=256 k=6"]
    ws.write_results()
    assert "aux_k=256 k=6" in ws.results()["options"].tolist()
    assert 0 < row["l0"] <= 6
    assert 0 < row["fvu"] < 1
    assert ws.load(spec).options.k == 6
