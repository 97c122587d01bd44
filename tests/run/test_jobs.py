"""The batch driver on real little notebooks, executed by papermill: what it refuses, runs, skips and reports."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from saelib.__main__ import main, parse_setting
from saelib.config import ConfigError
from saelib.files import write_text
from saelib.run import jobs as batch
from saelib.text.assets import AssetError

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import refresh

PARAMETERS = """profile: str = "smoke"  # set by the driver
lr: float = 1e-3  # learning rate
steps: int = 3  # steps
clip: bool = False  # clip gradients
model: str = "tiny"  # which model
sites = [2, "middle", -2]  # which sites
lambdas: list[float] = [0.5, 1.0]  # L1 coefficients
"""


def write_notebook(
    home: Path, name: str, parameters: str = PARAMETERS, code: str = "print(lr)"
) -> Path:
    """A source notebook: claim, parameters, one cell."""
    cells = [
        new_markdown_cell(f"# {name}"),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
    ]
    path = home / "notebooks" / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=[*cells, new_code_cell(code)]), path)
    return path


def write_profile(home: Path, text: str, name: str = "smoke") -> None:
    (home / "notebooks" / "profiles" / f"{name}.yaml").write_text(text)


def stdout_of(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.text for c in cells for o in c.get("outputs", []) if o.output_type == "stream")


# --- parameters ------------------------------------------------------------------------------------------------------


def test_parameters_are_the_literals_of_the_tagged_cell(home):
    found = batch.parameters(
        write_notebook(home, "01_a", "a: int = 3  # three\nb = [-1, 'x']  # two\n")
    )
    assert found == {"a": 3, "b": [-1, "x"]}


@pytest.mark.parametrize(
    "line", ["b = 2 * a", "import os", "print(1)", "a.b = 1", "c: int", "a = b = 1", "a += 1"]
)
def test_anything_but_a_literal_in_the_parameters_cell_is_refused(home, line):
    with pytest.raises(ConfigError, match="expected name = literal"):
        batch.parameters(write_notebook(home, "01_a", f"a = 1\n{line}\n"))


def test_a_notebook_needs_exactly_one_parameters_cell(home):
    path = home / "notebooks" / "01_a.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("a = 1")]), path)
    with pytest.raises(ConfigError, match="0 cells tagged 'parameters'"):
        batch.parameters(path)


@pytest.mark.parametrize(
    ("values", "fitted"),
    [
        ({"lr": 1}, {"lr": 1.0}),
        ({"lambdas": [1, 2.5]}, {"lambdas": [1.0, 2.5]}),
        ({"sites": ["middle", 3]}, {"sites": ["middle", 3]}),
        ({"clip": True, "steps": 0}, {"clip": True, "steps": 0}),
        ({"lambdas": []}, {"lambdas": []}),
    ],
)
def test_values_of_the_right_type_are_accepted_and_whole_numbers_become_floats(
    home, values, fitted
):
    result = batch.check_parameters(write_notebook(home, "01_a"), values)
    assert repr(result) == repr(fitted)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("lr", "3e-4", "a number"),
        ("lr", None, "a number"),
        ("lr", True, "a number"),
        ("steps", 3.0, "a whole number"),
        ("steps", True, "a whole number"),
        ("clip", 1, "true or false"),
        ("model", 7, "a string"),
        ("lambdas", ["1.0"], "a list of a number"),
        ("lambdas", [None], "a list of a number"),
        ("lambdas", 0.5, "a list"),
        ("sites", [0.5], "a list of a string or a whole number"),
    ],
)
def test_a_wrong_type_is_refused_naming_key_value_and_type(home, key, value, expected):
    with pytest.raises(ConfigError) as error:
        batch.check_parameters(write_notebook(home, "01_a"), {key: value})
    assert f"01_a: {key} = {value!r}" in str(error.value)
    assert expected in str(error.value)


def test_an_unknown_parameter_is_refused_naming_key_notebook_and_accepted(home):
    with pytest.raises(
        ConfigError, match=r"01_a: unknown parameter 'learning_rate'; accepted: profile, lr, steps"
    ):
        batch.check_parameters(write_notebook(home, "01_a"), {"learning_rate": 1.0})


def test_a_list_of_sites_holds_numbers_or_names_whatever_its_literal_has(home):
    path = write_notebook(home, "01_a", 'some_sites = ["middle"]  # depths')
    assert batch.check_parameters(path, {"some_sites": [2, "middle", -2]}) == {
        "some_sites": [2, "middle", -2]
    }
    with pytest.raises(
        ConfigError, match=r"some_sites = .*expected a list of a string or a whole number"
    ):
        batch.check_parameters(path, {"some_sites": [2.5]})


RANGED = """profile: str = "smoke"  # set by the driver
lr: float = 1e-3  # learning rate
tokens: int = 4096  # training tokens
batch_size: int = 256  # rows a step
source: str = "embedded"  # of the text
path: str = ""  # of the text
store_dtype: str = "auto"  # of the rows
ce_tokens: int = 512  # test tokens
sites = [2, "middle"]  # which sites
lambdas: list[float] = [0.5, 1.0]  # L1 coefficients
gate_lam: float = 4.0  # another
schedule_lrs: list[float] = [1e-3]  # learning rates
seeds: list[int] = [0]  # seeds
cause_tokens: int = 4096  # training tokens of some
depth_step: int = 4  # every so many sites
lengths: list[float] = [0.5, 1.0]  # shares of the tokens
margin: float = 0.03  # differences below it are none
snapshots: int = 4  # states kept
stream_tokens: int = 0  # of the shuffle buffer
stream_contexts: int = 64  # stored all the same
"""


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("lr", -1.0, "a learning rate > 0"),
        ("lr", float("nan"), "a finite number"),
        ("tokens", 255, "at least one batch of 256"),
        ("source", "wikipedia", "one of 'embedded'"),
        ("store_dtype", "int4", "one of 'auto'"),
        ("ce_tokens", -1, "0 "),
        ("lambdas", [0.5, -1.0], "λ ≥ 0"),
        ("gate_lam", -4.0, "λ ≥ 0"),
        ("schedule_lrs", [1e-3, 0.0], "a learning rate > 0"),
        ("seeds", [0, -1], "0 or more"),
        ("lambdas", [], "at least one element"),
        ("sites", [], "at least one element"),
        ("seeds", [], "at least one element"),
        ("schedule_lrs", [], "at least one element"),
        ("cause_tokens", 0, "above 0"),
        ("depth_step", -1, "above 0"),
        ("lengths", [1.0, 0.0], "above 0"),
        ("snapshots", 0, "above 0"),
        ("margin", -0.5, "0 or more"),
        ("stream_tokens", -1, "0 or more"),
        ("stream_contexts", 0, "above 0"),
        ("seeds", [0, 1, 0], "each element once"),  # three times one seed is no spread
        ("lambdas", [1.0, 1.0], "each element once"),
        ("sites", [2, 2], "each element once"),
    ],
)
def test_a_value_out_of_range_is_refused_in_the_user_s_words_before_anything_runs(
    home, key, value, expected
):
    write_notebook(home, "01_a", "n = 1\n")
    write_notebook(home, "02_b", RANGED)
    write_profile(home, "")
    with pytest.raises(ConfigError) as error:
        batch.plan("smoke", overrides={key: value})
    assert str(error.value).startswith(f"02_b: {key} = {value!r}: expected {expected}")


def test_a_rule_that_joins_parameters_is_checked_once_all_are_there(home):
    write_notebook(home, "02_b", RANGED)
    write_profile(home, "common: {source: jsonl}")  # not yet whole
    assert batch.plan("smoke", overrides={"path": "pages.jsonl"})[0].parameters["source"] == "jsonl"
    with pytest.raises(ConfigError, match="02_b: path = '': expected a path or hub id for 'jsonl'"):
        batch.plan("smoke")


def test_a_refused_field_that_is_no_parameter_is_named_as_it_is(home):
    path = write_notebook(home, "02_b", "batch_size = 256\n")
    with pytest.raises(
        ConfigError, match=r"02_b: TrainConfig\.tokens = 204800 .*one batch of 300000"
    ):
        batch.check_ranges(path, {"batch_size": 300_000})


@pytest.mark.parametrize("profile", ["smoke", "default", "full", "enwik8", "llama2-7b"])
def test_the_shipped_profiles_are_in_range(profile):
    assert batch.plan(profile)


# --- profiles, grids, settings ---------------------------------------------------------------------------------------


def test_a_profile_gives_each_notebook_the_common_keys_it_has_and_then_its_own(home):
    write_notebook(home, "01_a", "profile = ''\nn = 1\nmodel = 'x'\n")
    write_notebook(home, "02_b", "n = 1\nlr = 0.1\n")
    write_profile(home, "common: {n: 5, model: m}\nnotebooks:\n  02_b: {n: 6, lr: 2}\n", "big")
    one, two = batch.plan("big")
    assert (one.name, dict(one.parameters)) == ("01_a", {"n": 5, "model": "m", "profile": "big"})
    assert (two.name, dict(two.parameters)) == ("02_b", {"n": 6, "lr": 2.0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("common: {nn: 1}", "common: no notebook has the parameter 'nn'; accepted: clip, lambdas"),
        ("common: {lr: 3e-4}", "lr = '3e-4'"),
        ("notebooks: {01_a: {zz: 1}}", "01_a: unknown parameter 'zz'"),
        ("notebooks: {09_z: {lr: 1}}", "unknown notebook '09_z'"),
        ("notebook: {}", "unknown section 'notebook'; accepted: common, notebooks"),
        ("common: [1]", "expected a mapping"),
        ("common: {profile: x}", "'profile' is the name of the file"),
        ("common: {a", "not YAML"),
    ],
)
def test_a_wrong_profile_is_refused_even_when_the_wrong_part_is_another_notebook_s(
    home, text, message
):
    write_notebook(home, "01_a")
    write_notebook(home, "02_b", "profile = ''\n")
    write_profile(home, text)
    with pytest.raises(ConfigError) as error:
        batch.plan("smoke", ["02_b"])
    assert message in str(error.value)


def test_an_unknown_profile_or_notebook_is_refused_with_what_there_is(home):
    write_notebook(home, "01_a")
    write_profile(home, "")
    with pytest.raises(ConfigError, match="profile 'smok': accepted: smoke"):
        batch.plan("smok")
    with pytest.raises(ConfigError, match="notebook '07': accepted: 01_a"):
        batch.plan("smoke", ["07"])


@pytest.mark.parametrize("name", ["", "recorded", "assets", "kernels", "../smoke", "a.b", "."])
def test_a_name_that_is_no_folder_of_a_profile_s_own_is_refused(home, name):
    write_notebook(home, "01_a")
    for each in ("smoke", "recorded", "assets", "kernels", "a.b"):
        write_profile(home, "", each)
    with pytest.raises(ConfigError, match=re.escape(f"profile {name!r}: accepted: smoke (")):
        batch.load_profile(name)


@pytest.mark.parametrize("name", ["", "recorded", "assets", "kernels", "..", "a/b", "smoke/."])
def test_clean_data_removes_a_profile_s_folder_and_no_other(tmp_path, name):
    for folder in ("recorded", "assets", "kernels", "smoke", "a/b"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    make = [
        "make",
        "-s",
        "-C",
        tmp_path,
        "-f",
        Path(__file__).resolve().parents[2] / "Makefile",
        "clean-data",
    ]
    refused = subprocess.run([*make, f"PROFILE={name}"], capture_output=True, text=True)
    assert refused.returncode != 0
    assert f"error: PROFILE='{name}'" in refused.stdout
    assert len(list((tmp_path / "data").iterdir())) == 5
    assert (
        subprocess.run(make, capture_output=True).returncode != 0
    )  # the default is not meant by saying nothing
    subprocess.run([*make, "PROFILE=smoke"], check=True, capture_output=True)
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [
        "a",
        "assets",
        "kernels",
        "recorded",
    ]


@pytest.mark.parametrize("name", ["02", "02_b", "02_b.ipynb", "notebooks/02_b.ipynb"])
def test_a_notebook_is_chosen_by_number_name_or_path(home, name):
    for stem in ("01_a", "02_b"):
        write_notebook(home, stem)
    assert [p.stem for p in batch.sources([name])] == ["02_b"]


def test_settings_override_the_profile_and_must_fit_a_chosen_notebook(home):
    write_notebook(home, "01_a")
    write_notebook(home, "02_b", "n = 1\n")
    write_profile(home, "common: {lr: 0.5}")
    assert batch.plan("smoke", overrides={"lr": 2})[0].parameters["lr"] == 2.0
    for overrides in ({"lr": 1.0, "nn": 2}, {"lr": 1.0}, {"profile": "x"}):
        with pytest.raises(ConfigError):
            batch.plan("smoke", ["02_b"], overrides)


def test_a_setting_reads_python_literals_and_words():
    texts = ["lr=3e-4", "sites=[2, 'middle']", "clip=true", "model=embedded", "note=a=b"]
    values = [3e-4, [2, "middle"], True, "embedded", "a=b"]
    assert [parse_setting(t)[1] for t in texts] == values


@pytest.mark.parametrize("text", ["lr=[", "lr={a: b", "lr"])
def test_a_setting_that_cannot_be_read_is_a_usage_error_that_quotes_it(text, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", "--profile", "smoke", "--set", text])
    assert stop.value.code == 2
    assert f"argument --set: {text!r}" in capsys.readouterr().err


def test_a_grid_is_the_product_of_its_lists_for_the_notebooks_that_have_its_names(home):
    write_notebook(home, "01_a", "n = 1\n")
    write_notebook(home, "02_b", "lr = 0.1\nseed = 0\n")
    write_profile(home, "")
    (home / "grid.yaml").write_text("lr: [1, 2.0]\nseed: [0, 1]\n")
    jobs = batch.plan("smoke", grid=home / "grid.yaml")
    assert [(j.name, *j.parameters.values()) for j in jobs] == [
        ("02_b", lr, seed) for lr in (1.0, 2.0) for seed in (0, 1)
    ]
    assert len({j.output for j in jobs}) == 4
    assert all(
        j.output.parent == home / "data" / "smoke" / "grid" / j.grid / "notebooks" for j in jobs
    )


@pytest.mark.parametrize("text", ["lr: 1", "lr: []", "zz: [1]", "profile: [a]", "lr: ['x']"])
def test_a_wrong_grid_is_refused(home, text):
    write_notebook(home, "01_a")
    write_profile(home, "")
    (home / "grid.yaml").write_text(text)
    with pytest.raises(ConfigError):
        batch.plan("smoke", grid=home / "grid.yaml")


# --- running ---------------------------------------------------------------------------------------------------------

CODE = """import os
assert steps != 4, "four steps"
print(lr, profile, os.environ["SAELIB_HEADLESS"], os.path.basename(os.getcwd()))"""


@pytest.fixture
def workbook(home, monkeypatch):
    write_notebook(home, "01_a", code=CODE)
    write_notebook(home, "02_b", code=CODE)
    write_profile(home, "common: {lr: 0.25}\n")
    return home


def statuses(results) -> list[str]:
    return [r.status for r in results]


def test_a_run_executes_skips_what_is_finished_and_reruns_what_changed(workbook, monkeypatch):
    assert statuses(batch.run("smoke")) == ["done", "done"]
    output = workbook / "data" / "smoke" / "notebooks" / "01_a.ipynb"
    assert stdout_of(output) == "0.25 smoke 1 notebooks\n"
    assert (
        str(workbook) not in output.read_text()
    )  # no path of this machine in an executed notebook
    assert statuses(batch.run("smoke")) == ["skipped", "skipped"]

    assert statuses(batch.run("smoke", ["02"], {"lr": 0.5})) == ["done"]  # other parameters
    assert statuses(batch.run("smoke", ["02"], {"lr": 0.5})) == ["skipped"]
    write_notebook(workbook, "01_a", code=CODE + "\nprint('more')")
    assert statuses(batch.run("smoke", overrides={"lr": 0.5})) == [
        "done",
        "done",
    ]  # 02_b: its input changed
    assert statuses(batch.run("smoke", ["01"], {"lr": 0.5}, force=True)) == ["done"]
    output.unlink()
    assert statuses(batch.run("smoke", overrides={"lr": 0.5})) == ["done", "skipped"]
    monkeypatch.setattr(batch, "versions", lambda: [2])
    assert statuses(batch.run("smoke", ["02"], {"lr": 0.5})) == ["done"]


def test_a_comment_or_another_layout_in_a_notebook_executes_nothing_again(workbook):
    assert statuses(batch.run("smoke")) == ["done", "done"]
    write_notebook(workbook, "01_a", code="# a remark\n" + CODE.replace(", ", ",  "))
    assert statuses(batch.run("smoke")) == ["skipped", "skipped"]


def test_a_failure_is_kept_reported_and_does_not_stop_the_next(workbook, capsys):
    write_profile(workbook, "notebooks: {01_a: {steps: 4}}\n")
    folder = workbook / "data" / "smoke" / "notebooks"
    said = [
        folder.parent / name
        for name in ("verdicts/01_a.json", "verdicts/01_a.txt", "diagnostics/01_table.csv")
    ]
    others = [folder.parent / name for name in ("verdicts/02_b.txt", "diagnostics/02_table.csv")]
    for path in said + others:
        write_text(path, "of an earlier run")
    assert main(["run", "--profile", "smoke", "01"]) == 1
    assert not any(path.exists() for path in said)  # what failed claims nothing
    assert all(path.exists() for path in others)
    assert main(["run", "--profile", "smoke"]) == 1
    assert sorted(p.name for p in folder.iterdir()) == [
        "01_a.failed.ipynb",
        "02_b.ipynb",
        "02_b.json",
    ]
    assert (workbook / "data" / "smoke" / "report" / "01_a.html").is_file()
    assert "01_a failed" in (workbook / "data" / "smoke" / "report" / "index.html").read_text()

    write_profile(workbook, "")
    assert main(["run", "--profile", "smoke", "01"]) == 0
    assert sorted(p.name for p in folder.glob("01*")) == ["01_a.ipynb", "01_a.json"]
    with (workbook / "data" / "smoke" / "timings.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["run_id", "stage", "seconds", "tokens_per_second", "resumed"]
    assert [(r["stage"], r["resumed"]) for r in rows] == [
        ("notebook:02_b", "false"),
        ("notebook:01_a", "true"),
    ]
    assert all(float(r["seconds"]) > 0 for r in rows)


def test_failures_are_told_before_the_report_and_whatever_becomes_of_it(workbook, caplog):
    caplog.set_level("INFO", "saelib")
    write_profile(workbook, "notebooks: {01_a: {steps: 4}}\n")
    verdicts = workbook / "data" / "smoke" / "verdicts"
    verdicts.mkdir(parents=True)
    (verdicts / "08_x.json").write_text('[{"finding": "F1", "figure": ""}]')
    assert main(["run", "--profile", "smoke", "01"]) == 1
    failed, no_report = (
        caplog.text.index("failed: 01_a cell 3"),
        caplog.text.index(f"error: no report: {verdicts}"),
    )
    assert failed < no_report < caplog.text.index("work in all")
    write_profile(workbook, "")
    assert main(["run", "--profile", "smoke", "01"]) == 1  # no notebook failed, but the report did


@pytest.mark.parametrize(
    "error", [AssetError("no wheel\n  in sight"), ValueError("no wheel in sight")]
)
def test_an_asset_that_cannot_be_had_is_one_line_and_exit_2(workbook, caplog, monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setattr("saelib.__main__.fetch_assets", fail)
    write_profile(workbook, "common: {model: embedded}\n")
    assert main(["run", "--profile", "smoke"]) == 2
    assert [r.getMessage() for r in caplog.records] == ["error: no wheel in sight"]


def test_a_notebook_that_runs_again_loses_its_verdicts_first(workbook):
    folders = [workbook / "data" / "smoke" / "verdicts"]
    write_profile(workbook, "notebooks: {01_a: {steps: 4}}\n")
    (workbook / "grid.yaml").write_text("steps: [4]\n")
    grid = batch.plan("smoke", ["01"], grid=workbook / "grid.yaml")[0].grid
    folders.append(workbook / "data" / "smoke" / "grid" / grid / "verdicts")
    for folder in folders:
        folder.mkdir(parents=True)
        for name in ("01_a", "02_b"):
            (folder / f"{name}.json").write_text("[]")
    batch.run("smoke", ["01"], grid=workbook / "grid.yaml")
    assert [sorted(p.stem for p in f.iterdir()) for f in folders] == [["01_a", "02_b"], ["02_b"]]
    batch.run("smoke", ["01"])  # fails as well, and claims nothing any more
    assert [p.stem for p in folders[0].iterdir()] == ["02_b"]


def test_a_grid_point_that_was_not_collected_goes_no_further(workbook):
    (workbook / "notebooks" / "01_a.ipynb").rename(workbook / "notebooks" / "01_collect.ipynb")
    write_notebook(workbook, "02_b", code="pass")
    (workbook / "grid.yaml").write_text("steps: [4, 5]\n")
    results = batch.run("smoke", grid=workbook / "grid.yaml")
    assert [(r.job.name, r.status) for r in results] == [
        ("01_collect", "failed"),
        ("02_b", "failed"),
        ("01_collect", "done"),
        ("02_b", "done"),
    ]
    assert results[1].error == "not run: 01_collect failed"
    assert not results[1].job.failed.exists()


def test_a_refused_request_exits_2_before_anything_runs(workbook, caplog):
    write_profile(workbook, "notebooks: {02_b: {stepz: 4}}\n")
    assert main(["run", "--profile", "smoke", "01_a"]) == 2
    assert "unknown parameter 'stepz'" in caplog.text
    assert not (workbook / "data").exists()


def test_prose_changed_after_the_run_shows_without_running_again(workbook):
    batch.run("smoke", ["01"])
    path = workbook / "notebooks" / "01_a.ipynb"
    nb = nbformat.read(path, as_version=4)
    nb.cells[0].source = "# A better title"
    nb.cells.append(new_markdown_cell("What would falsify this."))
    nbformat.write(nb, path)
    assert statuses(batch.run("smoke", ["01"])) == ["skipped"]
    done = nbformat.read(workbook / "data" / "smoke" / "notebooks" / "01_a.ipynb", as_version=4)
    assert [c.source for c in done.cells if c.cell_type == "markdown"] == [
        nb.cells[0].source,
        nb.cells[-1].source,
    ]
    assert [batch.tags(c) for c in done.cells][1:3] == [["parameters"], ["injected-parameters"]]
    assert done.cells[3].outputs[0].text == "0.25 smoke 1 notebooks\n"


def test_a_grid_run_leaves_one_notebook_a_point_and_goes_on_after_a_failure(workbook):
    (workbook / "grid.yaml").write_text("steps: [4, 5]\n")
    results = batch.run("smoke", ["01"], grid=workbook / "grid.yaml")
    assert statuses(results) == ["failed", "done"]
    assert results[0].error == "cell 3: AssertionError: four steps"
    assert results[1].job.output.is_file()
    assert json.loads(results[1].job.record.read_text())["parameters"]["steps"] == 5
    assert not (workbook / "data" / "smoke" / "notebooks").exists()


def test_refresh_replaces_in_place_without_clocks_paths_or_injected_cells(workbook):
    path = workbook / "notebooks" / "01_a.ipynb"
    refresh.refresh(["01"])
    first = path.read_bytes()
    nb = nbformat.reads(first.decode(), as_version=4)
    assert [c.execution_count for c in nb.cells if c.cell_type == "code"] == [1, 2]
    assert stdout_of(path) == "0.001 smoke 1 notebooks\n"
    assert "papermill" not in first.decode()
    refresh.refresh(["01"])
    assert path.read_bytes() == first  # byte for byte


def test_refresh_leaves_the_source_alone_when_it_fails(home):
    path = write_notebook(home, "01_a", code="raise SystemError('no')")
    before = path.read_bytes()
    with pytest.raises(Exception, match="SystemError"):
        refresh.refresh()
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.glob("*.ipynb")] == ["01_a.ipynb"]
