"""Whatever is damaged in a profile's folder is refused by its reader and told by `check`."""

import json
import os
import re
import shutil

import pytest
import torch
from helpers.folders import all_bytes
from helpers.permissions import without_override
from helpers.sealing import as_before_seals, flip, resealed
from helpers.workspaces import RECIPE, open_workspace, write_inputs
from safetensors.torch import load_file, save_file

from saelib import files
from saelib.__main__ import main
from saelib.config import EvalConfig, stable_hash
from saelib.files import write_json
from saelib.measure.features import build_index
from saelib.run import run_folder
from saelib.run.check import check_profile
from saelib.run.edited import absent_rows
from saelib.run.recorded import RecordedRuns
from saelib.run.workspace import Workspace
from saelib.sae import ARCHITECTURES, load_sae
from saelib.sae.trainer import Trainer
from saelib.seal import SealError, sha256_of

MORE = {"snapshots": 2, "resample_at": (0.25,)} | RECIPE | {"dead_window": 256}
RUN = {  # file -> reading it by the workspace
    "train.json": lambda ws, spec: ws.train([spec], "02_train_sae"),
    "metrics.json": lambda ws, spec: ws.train([spec], "02_train_sae"),
    "config.json": lambda ws, spec: ws.load(spec),
    "weights.safetensors": lambda ws, spec: ws.load(spec),
    "history.csv": lambda ws, spec: ws.history(spec),
    "events.json": lambda ws, spec: ws.events(spec),
    "snapshots.safetensors": lambda ws, spec: ws.snapshots(spec),
    "seal.json": lambda ws, spec: ws.load(spec),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workbook folder with a profile of two trained SAEs."""
    home = tmp_path_factory.mktemp("home")
    write_inputs(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAELIB_HOME", str(home))
        ws = open_workspace(home)
        ws.train(_specs(ws), "02_train_sae")
    return home


@pytest.fixture
def home(trained, tmp_path, monkeypatch):
    """A copy of it to damage."""
    shutil.copytree(trained, tmp_path / "home")
    monkeypatch.setenv("SAELIB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def ws(home):
    """Its workspace, as another process opens it."""
    return Workspace("tiny", "cpu", EvalConfig(ce_tokens=256))


def _specs(ws):
    return [ws.spec("full", 2, lam=lam, **MORE) for lam in (0.5, 0.8)]


def _only_line(path):
    """The one thing that `check` tells of the profile, which must name the file."""
    (line,) = check_profile("tiny").damaged
    assert str(path) in line
    assert "delete" in line or "remove" in line or "make workbook" in line
    return line


def test_a_whole_profile_has_nothing_damaged(ws, caplog):
    seen = check_profile("tiny")
    assert (seen.damaged, seen.notices) == ([], [])
    assert seen.n_files > 30
    assert main(["check", "--profile", "tiny"]) == main(["check"]) == 0


@pytest.mark.parametrize("name", RUN)
def test_a_flipped_bit_of_a_run_s_file_is_refused_and_told(ws, name):
    spec = _specs(ws)[0]
    path = ws.run_folder(spec) / name
    flip(path, byte=path.stat().st_size // 2)
    with pytest.raises(ValueError, match=rf"{path}: damaged, .*; delete"):
        RUN[name](ws, spec)
    assert "damaged" in _only_line(path)
    assert main(["check", "--profile", "tiny"]) == 1


@pytest.mark.parametrize("name", sorted(set(RUN) - {"metrics.json", "seal.json", "config.json"}))
def test_a_missing_file_of_a_run_is_told(ws, name):
    spec = _specs(ws)[0]
    path = ws.run_folder(spec) / name
    path.unlink()
    with pytest.raises(ValueError, match=rf"{path}: missing, seal.json lists it"):
        RUN[name](ws, spec)
    _only_line(path)


def test_a_digit_of_train_json_does_not_take_a_run_out_of_the_table(ws):
    path = ws.run_folder(_specs(ws)[0]) / "train.json"
    store = json.loads(path.read_text())["store"]
    path.write_text(path.read_text().replace(store, store[:-1] + "x"))
    with pytest.raises(ValueError, match=rf"{path}: damaged, sha256"):
        ws.write_results()


@pytest.mark.parametrize("has_seal", [True, False])
def test_metrics_of_another_run_are_refused(ws, has_seal):
    mine, other = (ws.run_folder(spec) for spec in _specs(ws))
    shutil.copy(other / "metrics.json", mine / "metrics.json")
    if not has_seal:
        as_before_seals(mine)
    message = "damaged" if has_seal else rf"of run {other.name}, not of {mine.name}; delete it"
    with pytest.raises(ValueError, match=rf"{mine}/metrics\.json: {message}"):
        ws.write_results()
    _only_line(mine / "metrics.json")


def test_another_run_s_folder_under_a_run_s_name_is_refused(ws):
    mine, other = (ws.run_folder(spec) for spec in _specs(ws))
    shutil.rmtree(mine)
    shutil.copytree(other, mine)
    for read in (RUN["train.json"], RUN["weights.safetensors"], RUN["history.csv"]):
        with pytest.raises(ValueError, match=rf"{mine}: sealed as run {other.name}"):
            read(ws, _specs(ws)[0])
    _only_line(mine)


def test_a_deleted_measurement_is_measured_again(ws):
    spec = _specs(ws)[0]
    table = (ws.folder / "results.csv").read_bytes()
    (ws.run_folder(spec) / "metrics.json").unlink()
    ws.train([spec], "02_train_sae")
    assert (ws.folder / "results.csv").read_bytes() == table
    assert check_profile("tiny").damaged == []


def test_weights_of_nan_are_told(ws):
    folder = ws.run_folder(_specs(ws)[0])
    path = folder / "weights.safetensors"
    save_file(load_file(path) | {"scale": torch.tensor(torch.nan)}, path)
    resealed(folder)
    with pytest.raises(ValueError, match=r"damaged \(scale holds values that are not finite\)"):
        ws.load(_specs(ws)[0])
    _only_line(path)


def test_a_flipped_bit_of_a_checkpoint_after_a_kill_is_refused_and_told(ws, monkeypatch):
    spec = ws.spec("full", 2, lam=0.6, **MORE)
    ws.checkpoint_every = 8
    whole = Trainer.step_

    def step_(trainer, x):
        if trainer.step == 20:
            raise KeyboardInterrupt
        whole(trainer, x)

    monkeypatch.setattr(Trainer, "step_", step_)
    with pytest.raises(KeyboardInterrupt):
        ws.train([spec], "02_train_sae")
    monkeypatch.setattr(Trainer, "step_", whole)
    path = ws.run_folder(spec) / "checkpoint.safetensors"
    assert check_profile("tiny").damaged == []
    before = flip(path, byte=path.stat().st_size // 2)
    with pytest.raises(ValueError, match=rf"{path}: damaged .* the run starts anew"):
        ws.train([spec], "02_train_sae")
    _only_line(path)
    path.write_bytes(before)
    ws.train([spec], "02_train_sae")
    assert check_profile("tiny").damaged == []


def test_a_run_begun_and_killed_before_its_seal_lists_the_sae_is_trained_again(ws):
    spec = _specs(ws)[0]
    folder = ws.run_folder(spec)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    seal = json.loads(whole["seal.json"])
    assert set(seal["files"]) == set(whole) - {"seal.json"}
    (folder / "seal.json").unlink()
    (folder / "config.json").unlink()  # as in a folder of an earlier version, killed in training
    (folder / "metrics.json").unlink()
    ws.train([spec], "02_train_sae")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_a_kill_at_any_file_leaves_nothing_damaged_and_a_rerun_the_same_bytes(ws, monkeypatch):
    spec = ws.spec("full", 2, lam=0.7, snapshots=2, **(RECIPE | {"tokens": 1024}))
    ws.checkpoint_every = 8
    folder = ws.run_folder(spec)
    replaced = []
    whole = os.replace

    def replace(source, target):
        if len(replaced) == last:
            raise KeyboardInterrupt
        replaced.append(target)
        whole(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    last = -1
    older = {name: (ws.folder / name).read_bytes() for name in ("results.csv", "seal.json")}
    ws.train([spec], "02_train_sae")
    n_files = len(replaced)
    finished = all_bytes(folder)
    table = (ws.folder / "results.csv").read_bytes()
    assert n_files > 12
    for last in range(n_files):
        shutil.rmtree(folder)
        for name, content in older.items():  # or it is left alone, as it says the same
            (ws.folder / name).write_bytes(content)
        replaced.clear()
        with pytest.raises(KeyboardInterrupt):
            ws.train([spec], "02_train_sae")
        last = -1
        assert check_profile("tiny").damaged == []
        assert len(ws.results()) in (2, 3)
        ws.train([spec], "02_train_sae")
        assert all_bytes(folder) == finished
        assert (ws.folder / "results.csv").read_bytes() == table


@pytest.mark.parametrize("name", ["ce_id", "ce_zero", "ce_mean", "n"])
def test_a_digit_of_the_reference_losses_is_refused_and_told(ws, name):
    path = ws.folder / "eval" / "site_02.json"
    content = json.loads(path.read_text())
    content["pages"][0][name] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{path} is not a site reference \(damaged"):
        ws.reference(2, ws.evaluation)
    _only_line(path)


@pytest.mark.parametrize("name", ["manifest.json", "site_02/shard_00000.safetensors"])
def test_a_flipped_bit_of_the_store_is_told(ws, name):
    path = ws.folder / "store" / name
    flip(path, byte=path.stat().st_size // 2)
    _only_line(path)


def test_a_digit_of_the_results_table_is_told_with_its_run(ws):
    path = ws.folder / "results.csv"
    head, row, *rest = path.read_text().splitlines()
    edited = row.replace(",0.0", ",0.1", 1)
    assert edited != row
    path.write_text("\n".join([head, edited, *rest, ""]))
    assert row.partition(",")[0] in _only_line(path)


@pytest.mark.parametrize("place", ["head", "row", "end"])
def test_an_edited_results_table_is_refused_by_its_reader_until_it_is_built_anew(ws, place):
    path = ws.folder / "results.csv"
    whole = path.read_bytes()
    edits = {"head": b"run_id,", "row": b",0.0", "end": b"\n"}
    start, found, end = (
        whole.rpartition(edits[place]) if place == "end" else whole.partition(edits[place])
    )
    path.write_bytes(start + found.swapcase().replace(b"0", b"1").replace(b"\n", b"\r") + end)
    assert path.read_bytes() != whole
    for reader in (ws.results, lambda: RecordedRuns.read(path)):
        with pytest.raises(SealError, match=rf"{path}: damaged, .*; delete it and run notebook 02"):
            reader()
    assert "results.csv" in _only_line(path)
    ws.train(_specs(ws), "02_train_sae")
    assert path.read_bytes() == whole
    assert len(ws.results()) == 2
    assert check_profile("tiny").damaged == []


def _a_row_edited(lines):
    return [lines[0], lines[1].replace(",0.0", ",0.1", 1), *lines[2:]]


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (_a_row_edited, "is not what the run's metrics.json says"),
        (lambda lines: [lines[0].replace("fvu_all", "fvu_alm"), *lines[1:]], "called 'fvu_alm'"),
        (lambda lines: [*lines, lines[1]], "stands there 2 times"),
    ],
)
def test_a_table_without_a_seal_is_held_to_the_folders_of_its_runs(ws, edit, sentence):
    (ws.folder / "seal.json").unlink()
    path = ws.folder / "results.csv"
    path.write_text("\n".join([*edit(path.read_text().splitlines()), ""]))
    assert sentence in _only_line(path)
    with pytest.raises(ValueError, match=rf"{path}: .*; delete it and run notebook 02"):
        ws.results()


def test_a_damaged_seal_of_the_results_table_is_deleted_and_written_anew(ws):
    path = ws.folder / "seal.json"
    whole = path.read_bytes()
    flip(path, byte=len(whole) // 2)
    for reader in (ws.results, ws.write_results):
        with pytest.raises(SealError, match=rf"{path}: damaged, .*; delete it and run notebook 02"):
            reader()
    assert str(path) in " ".join(check_profile("tiny").damaged)
    path.unlink()
    assert len(ws.results()) == 2  # as of an earlier version, without a word
    ws.write_results()
    assert path.read_bytes() == whole


def test_a_flipped_bit_of_an_index_of_features_is_told(ws):
    spec = ws.spec("plain", 2, lam=0.3, **RECIPE)
    ws.train([spec], "02_train_sae")
    folder = ws.run_folder(spec) / "features"
    build_index(ws.load(spec), ws.store, None, folder)
    assert check_profile("tiny").damaged == []
    flip(folder / "latents.csv")
    assert str(folder / "latents.csv") in _only_line(folder)


def test_what_a_notebook_left_and_was_edited_is_told(ws):
    (ws.folder / "diagnostics").mkdir()
    table = ws.folder / "diagnostics" / "02_table.csv"
    table.write_text("fvu\n0.25\n")
    record = {"key": "k", "seals": {"diagnostics/02_table.csv": sha256_of(table)}}
    write_json(ws.folder / "notebooks" / "02_x.json", record)
    assert check_profile("tiny").damaged == []
    table.write_text("fvu\n0.26\n")
    (line,) = check_profile("tiny").damaged
    assert (
        line == f"{table} was edited after 02_x had finished; run 02_x with --force to make it anew"
    )


def test_a_table_or_a_record_that_cannot_be_read_is_told(ws):
    (ws.folder / "verdicts").mkdir()
    path = ws.folder / "verdicts" / "02_train_sae.json"
    path.write_text("[{")
    assert "not JSON" in _only_line(path)


def test_a_sentence_of_the_abstract_that_is_no_text_is_told(ws):
    (ws.folder / "verdicts").mkdir()
    path = ws.folder / "verdicts" / "02_train_sae.txt"
    path.write_bytes(b"\xff")
    _only_line(path)


def test_folders_of_an_earlier_version_are_a_notice_and_no_damage(ws):
    as_before_seals(ws.run_folder(_specs(ws)[0]))
    seen = check_profile("tiny")
    assert seen.damaged == []
    (notice,) = seen.notices
    assert "1 of 2 run folders have no seal" in notice


def test_a_profile_that_is_not_there_is_named(home, capsys):
    assert main(["check", "--profile", "tyny"]) == 2
    with pytest.raises(FileNotFoundError, match=r"tyny/workspace\.json is missing; .*: tiny"):
        check_profile("tyny")


@pytest.mark.parametrize("keeps", ["train.json", "metrics.json"])
def test_a_lost_seal_is_told_and_the_run_refused(ws, keeps):
    spec = _specs(ws)[0]
    folder = ws.run_folder(spec)
    sealed = (folder / keeps).read_bytes()
    as_before_seals(folder)
    (folder / keeps).write_bytes(sealed)
    message = rf"{folder}/seal\.json: missing, {keeps} beside it was sealed; delete the folder"
    readers = (ws.load, ws.history, lambda spec: ws.train([spec], "02_train_sae"))
    for read in (*readers, lambda spec: load_sae(ws.run_folder(spec))):
        with pytest.raises(SealError, match=message):
            read(spec)
    assert str(folder / "seal.json") in _only_line(folder)
    assert check_profile("tiny").notices == []


def test_weights_without_a_seal_are_those_that_were_measured(ws):
    folder = ws.run_folder(_specs(ws)[0])
    as_before_seals(folder)
    assert ws.load(_specs(ws)[0]).config.site == 2
    flip(folder / "weights.safetensors")
    with pytest.raises(ValueError, match=r"weights\.safetensors: SHA-256 .* not the weights that"):
        ws.load(_specs(ws)[0])
    _only_line(folder / "weights.safetensors")


def test_a_kill_while_an_older_run_is_measured_leaves_nothing_refused(ws, monkeypatch):
    spec = _specs(ws)[0]
    folder = ws.run_folder(spec)
    table = (ws.folder / "results.csv").read_bytes()
    as_before_seals(folder)
    (folder / "metrics.json").unlink()
    write_json_whole = run_folder.write_json

    def killed(path, content):
        write_json_whole(path, content)
        if path.name == "metrics.json":
            raise KeyboardInterrupt

    monkeypatch.setattr(run_folder, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        ws.train([spec], "02_train_sae")
    monkeypatch.setattr(run_folder, "write_json", write_json_whole)
    assert check_profile("tiny").damaged == []
    ws.train([spec], "02_train_sae")
    assert (ws.folder / "results.csv").read_bytes() == table


@pytest.mark.parametrize("content", [b"", b"run_id,sta"])
def test_a_first_row_of_times_that_the_disk_refused_is_no_damage(ws, content):
    (ws.folder / "timings.csv").write_bytes(content)
    assert check_profile("tiny").damaged == []


@pytest.mark.parametrize(
    "name",
    [
        *("saes/{run}/weights.safetensors", "saes/{run}", "saes", "eval", "store"),
        *("store/manifest.json", "workspace.json", "eval/site_02.json", "notebooks/02_x.json"),
    ],
)
def test_what_cannot_be_read_is_told_and_the_rest_is_read(ws, name):
    write_json(ws.folder / "notebooks" / "02_x.json", {"key": "k", "seals": {}})
    path = ws.folder / name.format(run=ws.run_folder(_specs(ws)[0]).name)
    other = ws.folder / "timings.csv"
    other.write_bytes(b'"\n')
    with without_override(path):
        seen = check_profile("tiny")
    assert any(str(other) in line for line in seen.damaged), "read to the end"
    lines = [line for line in seen.damaged if str(other) not in line]
    assert any(line.startswith(f"{path}: cannot be read (Permission denied)") for line in lines)
    for line in lines:
        assert str(path) in line
        assert "cannot be read" in line
        assert "delete" not in line


def test_a_table_that_cannot_be_read_is_told(ws):
    path = ws.folder / "results.csv"
    with without_override(path):
        (line,) = check_profile("tiny").damaged
    assert line.startswith(f"{path}: cannot be read (Permission denied)")


def test_a_sealed_run_of_another_version_is_left_as_it_is(ws):
    folder = ws.run_folder(_specs(ws)[0])
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"arch": "newer"})
    resealed(folder)
    seen = check_profile("tiny")
    assert seen.damaged == []
    (notice,) = seen.notices
    assert f"{folder}/config.json" in notice
    assert notice.endswith(
        f"'newer': expected one of {', '.join(map(repr, ARCHITECTURES))}: whole, but of another "
        "version; left as it is"
    )


def test_files_beside_the_run_folders_are_passed_over(ws):
    (ws.folder / "saes" / ".DS_Store").write_bytes(b"\0")
    (ws.folder / "saes" / "loop").symlink_to("loop")
    ws.write_results()
    assert len(ws.results()) == 2
    assert main(["check", "--profile", "tiny"]) == 0
    (ws.folder / "results.csv").unlink()
    assert "lacks 2 runs" in absent_rows(ws.folder / "results.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("snapshots.safetensors", "{", "snapshots.safetensors: damaged "),
        ("metrics.json", '{"row": [1]}', r"metrics.json: row = \[1\]: expected a mapping"),
        ("metrics.json", '{"evaluation": 5}', "metrics.json: evaluation = 5: expected a mapping"),
        ("metrics.json", '{"origin": 5}', "metrics.json: origin = 5: expected a mapping"),
        ("train.json", '{"sae": 5}', "train.json: sae = 5: expected a mapping"),
    ],
)
def test_a_file_of_another_form_in_a_folder_without_a_seal_is_told(ws, name, content, message):
    folder = ws.run_folder(_specs(ws)[0])
    as_before_seals(folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["row"]["options"]  # so it is taken from train.json
    write_json(folder / "metrics.json", metrics)
    (folder / name).write_text(content)
    (line,) = check_profile("tiny").damaged
    assert re.search(message, line)


@pytest.mark.parametrize("before", [5, {}, {"bytes": "x", "sha256": "y"}])
def test_a_seal_whose_former_content_is_none_is_told(ws, before):
    path = ws.run_folder(_specs(ws)[0]) / "seal.json"
    seal = json.loads(path.read_text())
    del seal["hash"]
    seal["files"]["config.json"]["before"] = before
    write_json(path, seal | {"hash": stable_hash(seal)})
    assert "seal.json: files = " in _only_line(path)


def test_a_name_of_rows_that_is_no_mapping_is_told(ws):
    path = ws.folder / "workspace.json"
    content = json.loads(path.read_text())
    del content["hash"], content["store_id"]
    content["rows_of"] = 5
    write_json(path, content | {"hash": stable_hash(content)})
    assert "rows_of = 5: damaged; delete it" in _only_line(path)


@pytest.mark.parametrize(
    ("name", "seal"),
    [
        *[("timings.csv", {}), ("timings.csv", 5), ("timings.csv", {"bytes": 5})],
        *[("/etc/hostname", "x"), ("../other/timings.csv", "x"), ("notebooks/02_x.ipynb", 5)],
    ],
)
def test_a_record_whose_seals_are_none_is_told(ws, name, seal):
    path = ws.folder / "notebooks" / "02_x.json"
    write_json(path, {"key": "k", "seals": {name: seal}})
    for line in check_profile("tiny").damaged:
        assert f"{path}: damaged, seals: {name!r}" in line
    assert check_profile("tiny").damaged
