"""The benchmark scripts run and write what they promise; nothing here looks at a time."""

import argparse
import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.models import llama
from helpers.random_stores import make_store, make_x
from helpers.workspaces import RECIPE, trained_profile

from saelib.config import CorpusConfig
from saelib.run.check import check_profile
from saelib.sae.spec import ARMS
from saelib.text.pages import read_pages

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ROW = {
    "name",
    "arch",
    "loss",
    "step",
    "l0",
    "n_latents",
    "batch",
    "seconds_median",
    "ratio_to_matmuls",
}


def _run(script, *options):
    """What a script printed that ran in a process of its own."""
    command = [sys.executable, str(BENCHMARKS / script), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def run_here(monkeypatch, capsys):
    """A call that runs a script as a command does, but in this process, which has torch loaded."""

    def run(script, *options):
        monkeypatch.setattr(sys, "argv", [script, *map(str, options)])
        monkeypatch.setattr(sys, "path", list(sys.path))  # scripts add their folder
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def refusal(run_here, capsys):
    """A call that runs a script, which must end early: its exit status and what it said."""

    def refused(script, *options):
        with pytest.raises(SystemExit) as ended:
            run_here(script, *options)
        code = ended.value.code
        said = capsys.readouterr().err
        return (
            (1, said + code) if isinstance(code, str) else (code, said)
        )  # as the interpreter does

    return refused


def test_step_writes_a_row_for_each_loss_and_step_at_the_asked_l0(run_here, tmp_path):
    out = tmp_path / "step.json"
    shape = ("--d", 32, "--latents", 256, "--batch", 128, "--l0", 16, "--rounds", 1)
    assert "ratio_to_matmuls" in run_here("step.py", *shape, "--json", out)
    rows = json.loads(out.read_text())
    assert all(row.keys() >= ROW for row in rows)
    ours = {
        (row["arch"], row["loss"], row["step"]): row["l0"]
        for row in rows
        if row["name"].startswith("saelib")
    }
    assert set(ours) == {
        (arch, loss, step) for arch, loss in ARMS.values() for step in ("dense", "sparse")
    }
    assert all(l0 == pytest.approx(16, rel=0.3) for l0 in ours.values())
    assert [row["ratio_to_matmuls"] for row in rows if row["name"] == "bare matmuls"] == [1]


def test_step_names_the_fastest_peer_of_each_architecture(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import step

    times = [
        ("saelib plain", "sae", "plain", "dense", 4.0),
        ("saelib plain", "sae", "plain", "sparse", 2.0),
        ("SAELens standard", "sae", "plain", "dense", 5.0),
        ("dictionary_learning standard", "sae", "plain", "dense", 3.0),
        ("saelib topk", "topk", "topk", "sparse", 1.0),  # without a peer
    ]
    keys = ("name", "arch", "loss", "step", "seconds_median")
    rows = [dict(zip(keys, row, strict=True)) for row in times]
    shape = {"n_latents": 256, "target_l0": 16, "ratio_to_matmuls": 0.5}
    assert step.summary([row | shape for row in rows]) == [
        {"arch": "sae", "loss": "plain", "step": "sparse", "n_latents": 256}
        | {"ratio_to_matmuls": 0.5, "l0": 16, "peer_over_ours": 1.5}
        | {"fastest_peer": "dictionary_learning standard"}
    ]


def test_step_measures_memory_of_each_row(tmp_path):
    out = tmp_path / "memory.json"
    _run("step.py", "--d", 64, "--latents", 4096, "--batch", 512, "--memory", "--json", out)
    peak = {(row["name"], row["step"]): row["peak_mb"] for row in json.loads(out.read_text())}
    codes = 512 * 4096 * 4 / 1e6
    weights = 2 * 64 * 4096 * 4 / 1e6
    assert peak["bare matmuls", "dense"] > 2 * codes  # codes and their gradient
    ours = [value for (name, _), value in peak.items() if name != "bare matmuls"]
    assert min(ours) > 4 * weights  # with their gradients and two moments
    assert {step for _, step in peak} == {"dense", "sparse", "auto"}


def test_workbook_shares_out_what_a_notebook_took(run_here, refusal, tmp_path, monkeypatch):
    monkeypatch.setenv("SAELIB_HOME", str(tmp_path))
    folder = tmp_path / "data" / "p"
    folder.mkdir(parents=True)
    rows = [
        ("", "collect", 60),
        ("", "notebook:01_collect", 70),
        ("a", "train", 10),
        ("b", "train", 20),
    ]
    rows += [("a", "evaluate", 5), ("", "notebook:02_train_sae", 50)]
    pd.DataFrame(rows, columns=["run_id", "stage", "seconds"]).to_csv(
        folder / "timings.csv", index=False
    )
    made = pd.DataFrame({"run_id": ["a", "b"], "notebook": "02_train_sae"})
    made.to_csv(folder / "results.csv", index=False)
    out = tmp_path / "w.json"
    run_here("workbook.py", "--profile", "p", "--json", out)
    found = {row["name"]: (row["seconds"], row["times"]) for row in json.loads(out.read_text())}
    assert found == {
        "01_collect: collect": (60, 1),
        "01_collect: rest": (10, 1),
        "02_train_sae: evaluate": (5, 1),
        "02_train_sae: train": (30, 2),
        "02_train_sae: rest": (15, 1),
        "all notebooks": (120, 2),
    }
    status, said = refusal("workbook.py", "--profile", "q")
    assert "make workbook PROFILE=q" in said
    assert status == 1


def _trained(fvu, l0):
    """A row of `quality.py`: one SAE on five pages of equal weight."""
    pages = {
        "sse": [9 * fvu, 10 * fvu, 11 * fvu, 9 * fvu, 11 * fvu],
        "sst": [10.0] * 5,
        "ce_n": [5] * 5,
        "ce_id": [2.0] * 5,
    }
    pages |= {"ce_sae": [2 + fvu] * 5, "ce_zero": [6.0] * 5}
    row = {
        "fvu": fvu,
        "l0": l0,
        "fvu_val": fvu,
        "l0_val": l0,
        "loss_recovered": 1 - fvu / 4,
        "dead_fraction": 0.1,
    }
    return row | {"pages": pages}


@pytest.fixture
def compared(monkeypatch):
    """Curves of three systems at one site and three seeds, and the arguments they belong to.

    At L0 8 and 32 all of them, at 128 not dictionary_learning's.
    """
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    of = {"saelib plain": 0.2, "SAELens standard": 0.4, "dictionary_learning standard": 0.5}
    args = argparse.Namespace(systems=list(of), seeds=[0, 1, 2], targets=[16.0, 64.0])
    curves = {}
    for name, fvu in of.items():
        l0s = (8, 32) if name.startswith("dictionary") else (8, 32, 128)
        for seed in args.seeds:
            curves[name, 15, seed] = [_trained(fvu, l0) for l0 in l0s]
    return curves, args


def _table(curves, args):
    """Rows of the table by system and L0."""
    import quality_table

    rows = quality_table.summarised(curves, dict.fromkeys(args.systems, 1e-3), args)
    return {(row["system"], row["l0"]): row for row in rows}


def test_quality_compares_with_the_best_peer_of_those_that_are_there(compared):
    rows = _table(*compared)
    ours = rows["saelib plain", 16.0]
    assert ours["fvu"] == pytest.approx(0.2)
    assert ours["fvu_best_peer"] == ours["loss_recovered_best_peer"] == "SAELens standard"
    assert ours["peers_reached"] == "2 of 2"
    bend = 0.5 * 0.2 * math.log(2) ** 2 / 2  # of 0.5, halfway between 8 and 32
    assert [ours[f"fvu_{k}"] for k in ("over_best", "lo", "hi")] == pytest.approx(
        [-0.5, -0.5 - bend, -0.5 + bend]
    )  # paired: pages cancel
    assert ours["loss_recovered_over_best"] == pytest.approx(0.95 / 0.9 - 1)
    assert rows["saelib plain", 64.0]["peers_reached"] == "1 of 2"
    assert rows["saelib plain", 64.0]["fvu_over_best"] == pytest.approx(-0.5)
    assert rows["dictionary_learning standard", 64.0]["fvu"] is None
    assert "fvu_over_best" not in rows["SAELens standard", 16.0]


def test_quality_waits_for_peers_that_are_not_finished(compared):
    curves, args = compared
    del curves["dictionary_learning standard", 15, 2]
    rows = _table(curves, args)
    assert ("dictionary_learning standard", 16.0) not in rows
    assert "fvu_over_best" not in rows["saelib plain", 16.0]
    args.systems = ["saelib plain"]  # without peers asked for there is none to wait for
    assert set(_table(curves, args)) == {("saelib plain", 16.0), ("saelib plain", 64.0)}


def test_quality_counts_the_cells_in_which_ours_is_not_worse(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import quality_table

    bounds = {"saelib plain": (-0.1, 0.0, 0.01, 0.02, 0.3), "saelib topk": (), "SAELens topk": ()}
    rows = [{"system": name, "fvu_hi": hi} for name, his in bounds.items() for hi in his]
    rows += [{"system": name} for name in bounds]  # a cell that has no comparison
    assert quality_table.cells(rows) == [
        {"system": "saelib plain", "cells": 5, "of": 6, "at_most_0": 2, "at_most_2_percent": 4}
    ]


def test_later_seeds_begin_at_the_settings_of_the_first_ones_curve(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from quality_table import settings_at

    curve = [{"knob": lam, "l0_val": 64 / lam} for lam in (0.5, 2.0, 8.0)]  # L0 128, 32, 8
    plain = "saelib plain"
    # L0 14.4, 32 and 71.7
    assert settings_at(curve, [32.0, 16.0, 64.0], plain) == [4.44, 2.0, 0.893]
    # the curve ends at 128
    assert settings_at(curve, [16.0, 32.0, 256.0], plain) == [4.44, 2.0, 0.5]
    assert settings_at(curve, [32.0], plain) == [2.22, 1.79]
    by_k = [{"knob": k, "l0_val": 0.9 * k} for k in (16.0, 18.0, 32.0, 36.0, 80.0)]
    assert settings_at(by_k, [16.0, 32.0], "SAELens topk") == [16.0, 18.0, 32.0, 36.0]
    assert settings_at(by_k, [100.0], "SAELens topk") == [80.0]


def test_quality_searches_by_the_l0_that_is_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from quality import proposed

    def rows(*pairs):
        return [{"knob": float(k), "l0_val": l0} for k, l0 in pairs]

    assert proposed("saelib batchtopk", rows((32, 30.0)), 32.0, 768) == 35  # k · 32 / 30 and 2 %
    assert proposed("saelib batchtopk", rows((32, 30.0), (35, 33.0)), 32.0, 768) is None
    far = rows((16, 4.0), (64, 100.0))
    assert proposed("dictionary_learning jumprelu", far, 32.0, 768) == 32  # between, as of k
    assert proposed("saelib plain", rows((1, 100.0), (4, 10.0)), 32.0, 768) == 2
    assert proposed("saelib plain", [], 32.0, 768) is None  # all diverged


def test_quality_prefers_a_rate_that_reaches_the_l0(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from quality import how_bad

    near, far = [_trained(0.1, 40)], [_trained(0.1, 90), _trained(0.2, 80)]
    reaching = [_trained(0.5, 20), _trained(0.4, 40)]
    assert sorted([far, near, reaching, []], key=lambda c: how_bad(c, 32.0)) == [
        reaching,
        near,
        far,
        [],
    ]


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """A `quality.Bench` that has no store: an SAE's L0 is 64 over its λ, or its k."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import quality

    made = object.__new__(quality.Bench)
    made.args = argparse.Namespace(
        systems=["saelib plain", "saelib topk"], sites=["2"], seeds=[0, 1], targets=[32.0]
    )
    made.path, made.rows, made.deadline = tmp_path / "q.json", [], math.inf
    made.shape = quality.Shape(8, 768, 16, 4)
    made.ws = argparse.Namespace(site=lambda s: 15 if s == "middle" else s)
    made.recipes, made.made_with = {"saelib": "r", "sparsify": "s"}, {"tokens": 64}
    made.where = {"store_id": "here", "device": "this"}

    def fit(system, knob, **_):
        return 64 / knob if system == "saelib plain" else 0.99 * knob

    made.fit = fit
    made._measured = lambda l0, site: {**_trained(0.3, l0), "loss_recovered": 0.9}
    return made


def test_quality_goes_on_where_it_stopped(bench):
    import quality

    bench.deadline = -math.inf
    lrs, curves, missing = quality.measured(bench, bench.args)
    assert (lrs, curves) == ({}, {})
    assert missing == ["learning rate and curves of saelib plain, saelib topk"]
    bench.deadline = math.inf
    bench.row(system="saelib plain", site=2, seed=1, lr=0.01, knob=9.0)
    whole = quality.measured(bench, bench.args)
    assert whole[2] == []
    assert {job[:2] for job in whole[1]} == {("saelib plain", 2), ("saelib topk", 2)}
    kept = json.loads(bench.path.read_text())
    assert kept == bench.rows
    bench.deadline = -math.inf  # all is there: nothing is trained
    assert quality.measured(bench, bench.args) == whole
    bench.rows = [r for r in bench.rows if r["system"] != "saelib topk" or r["seed"] == 0]
    missing = quality.measured(bench, bench.args)[2]
    assert missing == ["1 of 2 curves of saelib topk"]


def test_rows_of_ours_by_other_code_are_trained_again_and_all_else_is_refused(bench, capsys):
    def row(system, **changed):
        return {"system": system, "made": bench._made(system) | changed}

    same = [row("saelib topk"), row("sparsify topk")]
    bench.path.write_text(json.dumps([*same, row("saelib plain", recipe="older")]))
    assert bench._kept_rows() == same
    assert capsys.readouterr().out == (
        "saelib plain: SAEs by other code of saelib, trained again: 1\n"
    )
    for system, changed in (("sparsify topk", {"recipe": "x"}), ("saelib topk", {"tokens": 9})):
        bench.path.write_text(json.dumps([row(system, **changed)]))
        with pytest.raises(SystemExit, match=f"{system} was made with .*choose another --json"):
            bench._kept_rows()


def test_a_diverged_sae_is_a_row_and_no_point(bench):
    import quality

    bench._measured = lambda l0, site: {"diverged": True} if l0 > 40 else _trained(0.3, l0)
    curve = bench.curve("saelib plain", 2, 0, 0.01, [16.0])
    assert [row["knob"] for row in bench.rows][:2] == [0.8, 3.0]
    assert bench.rows[0]["diverged"]
    assert all(row["l0_val"] <= 40 for row in curve)
    assert quality.at(curve, 16.0, "fvu") == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--json", "no/such/folder/q.json"], "there is no folder no/such/folder"),
        ([], "--json PATH is needed"),
        (["--json", "q.json", "--targets", "0"], "--targets 0.0: an L0 above 0"),
        (["--json", "q.json", "--targets", "32", "nan"], "--targets nan: an L0 above 0"),
        (["--json", "q.json", "--minutes", "nan"], "--minutes nan: expected 0"),
        (["--json", "q.json", "--systems", "sparsify"], "invalid choice: 'sparsify'"),
        (["--json", "q.json", "--minutes", "-1"], "--minutes -1.0: expected 0"),
    ],
)
def test_quality_refuses_in_one_line(refusal, options, said):
    status, found = refusal("quality.py", *options)
    assert status == 2
    assert said in found
    assert "Traceback" not in found


def test_the_work_of_linear_layers_is_twice_their_weights(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import collect

    whole = llama(blocks=3, width=16, inner=24, vocabulary=64, num_key_value_heads=2)
    layers = whole.model.layers[:2]
    weights = sum(p.numel() for p in layers.parameters() if p.ndim == 2)
    assert collect.linear_work(whole.config, 2) == 2 * weights


def test_fever_pages_are_cut_from_real_ones_with_the_oddities_of_the_real_format(
    tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sys.modules.pop("corpus", None)
    import corpus

    text = "The (old) town, \u201cas it was\u201d, isn't far. " * 40
    (tmp_path / "a.txt").write_text(text)
    rows = list(corpus.fever_rows(CorpusConfig("text", str(tmp_path)), 60))
    assert len(rows) == 60
    assert rows[0] == {"id": "", "text": "", "lines": ""}
    assert rows[7]["text"] == rows[7]["lines"] == ""
    assert len({row["id"] for row in rows}) == 60
    assert all(row["text"].endswith(" ") for row in rows if row["text"])
    assert "-LRB- old -RRB-" in rows[1]["text"]
    assert "東京" in rows[3]["text"]
    sentence = rows[1]["lines"].split("\n")
    assert [line.split("\t")[0] for line in sentence] == [str(i) for i in range(len(sentence))]
    assert sentence[-1].endswith("\t")
    corpus.write_forms(tmp_path / "forms", iter(rows), len(rows))
    paths = [tmp_path / "forms" / name for name in ("folder", "zip.zip", "parquet")]
    forms = [list(read_pages(CorpusConfig("fever", str(path)))) for path in paths]
    assert forms[0] == forms[1] == forms[2]
    assert len(forms[0]) == sum(bool(row["text"]) for row in rows)


@pytest.mark.slow
def test_corpus_measures_each_form_of_each_size(tmp_path):
    out = tmp_path / "corpus.json"
    _run("corpus.py", "--text", "embedded", "--sizes", 60, 240, "--json", out)
    rows = json.loads(out.read_text())
    assert [(row["form"], row["pages_written"], row["n_docs"]) for row in rows] == [
        (form, size, n)
        for size, n in ((60, 0), (240, 0), (240, 60))
        for form in ("folder", "zip", "parquet")
    ]
    assert all(row["agree"] and row["tokens"] > 0 and row["peak_mb"] > 50 for row in rows)
    assert rows[-1]["pages"] == 60
    assert rows[-1]["pages_blank"] == 1 + 5


def test_experiment_adds_its_parts_up_to_the_whole(run_here, tmp_path):
    out = tmp_path / "experiment.json"
    shape = (
        "--shape",
        "tiny",
        "--tokens",
        8000,
        "--buffer",
        2048,
        "--latents",
        64,
        "--batch",
        64,
        "--steps",
        2,
    )
    run_here("experiment.py", *shape, "--together", 4, "--device", "cpu", "--json", out)
    of = {row["name"]: row for row in json.loads(out.read_text())}
    assert of["train"]["tokens"] == of["train"]["saes"] * 2 * 64
    assert of["stream"]["tokens"] == pytest.approx(of["stream, forwards alone"]["tokens"], abs=64)
    collected, trained = (of[name]["tokens_per_second"] for name in ("collect", "train"))
    assert of["whole, from a store"]["hours"] == pytest.approx(
        (10e6 / collected + 30 * 20e6 / trained) / 3600
    )
    passes = math.ceil(30 / of["stream"]["saes"])
    assert of["whole, streamed"]["hours"] == pytest.approx(
        passes * 20e6 / of["stream"]["tokens_per_second"] / 3600
    )


def test_a_variant_of_the_recipe_scales_some_values_and_replaces_others(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import recipe

    base = {"lr": 0.01, "batch_size": 512, "grad_clip": 1.0, "schedule": "linear"}
    assert recipe.varied(base, {"lr": 0.5, "batch_size": 0.5, "grad_clip": 0.0}) == {
        "lr": 0.005, "batch_size": 256, "grad_clip": 0.0, "schedule": "linear",
    }  # fmt: skip
    assert recipe.varied(base, {}) == base


def test_storage_counts_what_is_lost_beside_the_greatest_dimension(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import storage

    x, y = make_x(), make_x()
    x[1][0], y[1][0] = torch.tensor([[10.0, 3, -4, 0, 0, 0], [9, 3, -1, 0, 0, 0]])
    whole, other = make_store(tmp_path / "a", x), make_store(tmp_path / "b", y)
    assert storage.errors(other, whole, 1, np.arange(8)[:1]) == (10.0, 9 / 25)  # 1 + 9; 9 of 9 + 16
    assert storage.errors(whole, whole, 1, np.arange(8)) == (0, 0)


def test_storage_compares_seed_by_seed(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import storage

    values = {("whole", 0): 0.3, ("whole", 1): 0.4, ("small", 0): 0.31, ("small", 1): 0.43}
    found = {
        (store, "plain", seed): {"fvu": v, "loss_recovered": 1 - v}
        for (store, seed), v in values.items()
    }
    row = storage.sae_row("plain", 15, found, [0, 1])
    assert [row[f"fvu{part}"] for part in ("", "_change", "_spread")] == pytest.approx(
        [0.35, 0.02, 0.1]
    )
    assert row["loss_recovered_change"] == pytest.approx(-0.02)


def test_opening_compares_round_by_round(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import opening

    before = [{"a lens": 100.0, "store": 4.0}, {"a lens": 200.0, "store": 4.0}]
    now = [{"a lens": 110.0, "store": 5.0}, {"a lens": 210.0, "store": 5.0}]
    assert opening.compared(before, now) == [
        {"stage": "a lens", "before_ms": 150, "now_ms": 160, "ratio": pytest.approx(1.075)},
        {"stage": "store", "before_ms": 4, "now_ms": 5, "ratio": 1.25},
    ]


def test_opening_works_on_a_sealed_copy(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import opening

    trained_profile(tmp_path, lambda ws: [ws.spec("plain", 2, **RECIPE)])
    monkeypatch.setenv("SAELIB_HOME", str(tmp_path))
    (run,) = (tmp_path / "data" / "tiny" / "saes").iterdir()
    (run / "seal.json").unlink()
    home = opening.sealed_copy("tiny", tmp_path / "copy")
    monkeypatch.setenv("SAELIB_HOME", str(home))
    seen = check_profile("tiny")
    assert (seen.damaged, seen.notices) == ([], [])
    assert not (run / "seal.json").exists()


def test_readme_shows_the_recorded_results(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import summary

    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert summary.filled(text) == text
    assert "| bare matmuls | dense |  |" in text


def test_features_are_indexed_at_a_tiny_size(run_here, tmp_path):
    path = tmp_path / "rows.json"
    sizes = ("--rows", 2000, "--latents", 64, 128, "--vocabulary", 300)
    run_here("features.py", *sizes, "--json", path)
    rows = json.loads(path.read_text())
    assert [(row["name"], row["n_latents"]) for row in rows] == [
        (name, n) for n in (64, 128) for name in ("encoder product", "build")
    ]
    assert all(5 < row["l0"] < 60 and row["ratio_to_encoder"] > 0 for row in rows)


def test_pursuit_is_timed_in_both_forms_at_a_tiny_size(run_here, tmp_path):
    path = tmp_path / "rows.json"
    run_here("pursuit.py", "--rows", 4, "--latents", 40, "--rounds", 1, "--json", path)
    rows = json.loads(path.read_text())
    names = ("pursuit", "refit", "lasso", "learned atoms")
    assert [(row["name"], row["form"]) for row in rows] == [
        (name, form) for name in names for form in ("plain", "C")
    ]
    assert [row["n_rows"] for row in rows[::2]] == [4, 4, 4, 16]
    assert all(row["ratio_to_plain"] == 1 for row in rows[::2])


def test_memory_of_an_index_is_measured_at_a_tiny_size(tmp_path):
    path = tmp_path / "rows.json"
    sizes = ("--rows", 2000, 3000, "--latents", 64, "--vocabulary", 300)
    _run("features_memory.py", *sizes, "--json", path)
    rows = json.loads(path.read_text())
    assert [row["n_latents"] for row in rows] == [64, 64]
    assert rows[0]["n_rows"] < rows[1]["n_rows"]
    assert all(row["seconds_told"] > 0 and row["mib_peak"] > row["mib_before"] for row in rows)


SOURCE = '''
"""Two of 3."""

SIZE = 3


def least(a: int, b: float = 0.5) -> float:
    """At least 1."""
    if not a > 0 and b:
        raise ValueError(f"a = {a + 1}: expected above 0")
    out = [a - b]
    out[0] += min(a, 2)
    return pow(out[0], b) * 2.0


def sentence(n: int) -> str:
    return f"{n} rows" if n > 1 else "a row"
'''
BREAKS = {
    "and, or": ["not a > 0 and b -> (not a > 0 or b)"],
    "not": ["not a > 0 -> (a > 0)"],
    "comparison": ["a > 0 -> (a <= 0)", "a > 0 -> (a >= 0)"],
    "constant": [*["0 -> 1"] * 3, "0.5 -> 1.0", "2 -> 3", "2.0 -> 4.0", "3 -> 4"],
    "+, -": ["a - b -> (a + b)", "out[0] += min(a, 2) -> out[0] -= min(a, 2)"],
    "*, /": ["pow(out[0], b) * 2.0 -> (pow(out[0], b) / 2.0)"],
    "min, max": ["min -> max"],
    "arguments": ["out[0], b"],
    "statement": ["out[0] += min(a, 2) -> pass"],
}  # fmt: skip


@pytest.fixture
def mutants(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import mutants

    return mutants


def test_breaks_are_of_code_and_not_of_words(mutants, tmp_path, monkeypatch):
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    (tmp_path / "m.py").write_text(SOURCE)
    made = mutants.breaks_of(tmp_path / "m.py", seed=0)
    found = {}
    for one in made:
        assert str(one).startswith(f"m.py:{one.line}: ")
        found.setdefault(one.kind, []).append(str(one).partition(": ")[2])
    found["arguments"] = ["out[0], b" for text in found["arguments"] if "pow(b, out[0])" in text]
    assert {kind: sorted(texts) for kind, texts in found.items()} == BREAKS
    for one in made:
        broken = one.applied(SOURCE.encode()).decode()
        assert broken != SOURCE
        compile(broken, "m.py", "exec")


def test_more_breaks_go_on_where_fewer_ended_and_kinds_take_turns(mutants):
    args = argparse.Namespace(only=["measure/pursuit.py"], seed=0, start=0, n=30)
    more = mutants.chosen_breaks(args)
    args.n = 12
    assert mutants.chosen_breaks(args) == more[:12]
    assert len({one.kind for one in more[:8]}) == 8
    args.seed = 1
    assert mutants.chosen_breaks(args) != more[:12]
    args.only = ["no_such"]
    with pytest.raises(SystemExit, match="--only no_such: no module of sae, measure, study"):
        mutants.chosen_breaks(args)


def test_a_module_s_tests_are_those_of_its_room_that_import_it(mutants):
    choice = mutants.Choice()
    pursuit = choice.tests("saelib/measure/pursuit.py")
    assert pursuit[0] == "tests/measure/test_pursuit.py"
    assert all(test.startswith("tests/measure/") for test in pursuit)
    assert "tests/sae/test_dense.py" in choice.tests("saelib/sae/sparse/plain.py")


TINY = {
    "pyproject.toml": "[tool.pytest.ini_options]\n"
    'addopts = "--jaxtyping-packages=saelib.sae,beartype.beartype"\n',
    "saelib/__init__.py": "",
    "saelib/sae/__init__.py": "",
    "saelib/sae/twice.py": "UNUSED = 7\n\n\n"
    "def twice(n: int) -> int:\n    return min(n, 100) * 2\n",
    "tests/sae/test_twice.py": "from saelib.sae.twice import twice\n\n\n"
    "def test_twice():\n    assert twice(3) == 6\n",
    # `test_wrong` fails on unbroken code too: no kill
    "tests/sae/test_wrong.py": "import saelib.sae.twice\n\n\n"
    "def test_wrong():\n    assert saelib.sae.twice.twice is None\n\n\n"
    "def test_far():\n    assert saelib.sae.twice.twice(200) < 202\n",
}


HEADS = b"""\
def first(a,
          b=2):
    total = (
        a + b
    )
    if total > 3 and (
        a
    ):
        return max(
            a, b)
    return 0
"""


def test_the_lines_about_a_break_are_those_of_its_statement(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from reach import lines_about

    about = {line: lines_about(HEADS, line) for line in (2, 4, 7, 10, 11)}
    spans = {line: (found.start, found.stop - 1) for line, found in about.items()}
    assert spans == {2: (1, 2), 4: (3, 5), 7: (6, 8), 10: (9, 10), 11: (11, 11)}


@pytest.mark.slow
def test_breaks_are_killed_or_survive(tmp_path):
    for name, text in TINY.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for room in ("measure", "study"):
        (tmp_path / "saelib" / room).mkdir()
    (tmp_path / "benchmarks").mkdir()
    script = tmp_path / "benchmarks" / "mutants.py"
    for name in ("mutants.py", "reach.py"):
        (tmp_path / "benchmarks" / name).write_bytes((BENCHMARKS / name).read_bytes())
    out = tmp_path / "rows.json"
    command = [sys.executable, str(script), "--json", str(out)]
    environment = os.environ | {"PYTHONPATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    rows = {row["after"]: (row["result"], row["test"]) for row in json.loads(out.read_text())}
    killed = ("killed", "tests/sae/test_twice.py::test_twice")
    assert rows == {
        "(min(n, 100) / 2)": killed,
        "max": killed,
        "3": killed,
        "101": ("killed", "tests/sae/test_wrong.py::test_far"),
        "8": ("survived", ""),
    }
    assert done.stdout.splitlines()[-1] == "all  all  5  4  0  1  0.8"
    assert (tmp_path / "saelib" / "sae" / "twice.py").read_text() == TINY["saelib/sae/twice.py"]


def test_fuzzing_says_what_became_of_every_trial(tmp_path):
    out = tmp_path / "fuzz.json"
    options = ("--trials", 60, "--seed", 5, "--parsed-every", 30, "--json", out)
    assert "markup_errors" in _run("fuzz_text.py", *options)
    *forms, total = json.loads(out.read_text())
    assert total["trials"] == sum(row["trials"] for row in forms) == 60
    assert total["peak_mb"] > 0
