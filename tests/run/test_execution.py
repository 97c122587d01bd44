"""Real little notebooks, executed by papermill: what is run, skipped, refused and reported."""

import csv
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from helpers.toy_workbook import stdout_of, write_notebook, write_profile
from nbformat.v4 import new_markdown_cell

from saelib.__main__ import main
from saelib.config import CorpusConfig
from saelib.files import write_json, write_text
from saelib.run import jobs
from saelib.run.execution import run
from saelib.run.jobs import jobs_of
from saelib.run.seals import edited
from saelib.run.source_notebooks import tags
from saelib.text.assets import AssetError

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import refresh

CODE = """import os
assert steps != 4, "four steps"
print(lr, profile, os.environ["SAELIB_HEADLESS"], os.path.basename(os.getcwd()))"""


@pytest.fixture
def workbook(home, monkeypatch):
    """Two little notebooks, none of which has a model of its parameters."""
    monkeypatch.setattr("saelib.study.notebooks.PARAMETERS", {})
    write_notebook(home, "01_a", code=CODE)
    write_notebook(home, "02_b", code=CODE)
    write_profile(home, "common: {lr: 0.25}\n")
    return home


def statuses(results) -> list[str]:
    return [r.status for r in results]


def test_two_equal_runs_leave_equal_bytes(workbook):
    folder = workbook / "data" / "smoke" / "notebooks"
    assert statuses(run("smoke", ["01"])) == ["done"]
    once = (folder / "01_a.ipynb").read_bytes()
    assert statuses(run("smoke", ["01"], force=True)) == ["done"]
    assert (folder / "01_a.ipynb").read_bytes() == once


def test_an_executed_copy_that_cannot_be_written_is_named(workbook, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("saelib.run.execution.papermill.execute_notebook", fail)
    (result,) = run("smoke", ["01"])
    assert result.error.endswith(
        "Input/output error: "
        + repr(str(workbook / "data" / "smoke" / "notebooks" / "01_a.partial.ipynb"))
    )


def test_a_run_executes_skips_what_is_finished_and_reruns_what_changed(workbook, monkeypatch):
    assert statuses(run("smoke")) == ["done", "done"]
    output = workbook / "data" / "smoke" / "notebooks" / "01_a.ipynb"
    assert stdout_of(output) == "0.25 smoke 1 notebooks\n"
    assert (
        str(workbook) not in output.read_text()
    )  # no path of this machine in an executed notebook
    assert statuses(run("smoke")) == ["skipped", "skipped"]

    assert statuses(run("smoke", ["02"], {"lr": 0.5})) == ["done"]  # other parameters
    assert statuses(run("smoke", ["02"], {"lr": 0.5})) == ["skipped"]
    write_notebook(workbook, "01_a", code=CODE + "\nprint('more')")
    assert statuses(run("smoke", overrides={"lr": 0.5})) == [
        "done",
        "done",
    ]  # 02_b: its input changed
    assert statuses(run("smoke", ["01"], {"lr": 0.5}, force=True)) == ["done"]
    output.unlink()
    assert statuses(run("smoke", overrides={"lr": 0.5})) == ["done", "skipped"]
    monkeypatch.setattr(jobs, "versions", lambda: [2])
    assert statuses(run("smoke", ["02"], {"lr": 0.5})) == ["done"]


def test_a_comment_or_another_layout_in_a_notebook_executes_nothing_again(workbook):
    assert statuses(run("smoke")) == ["done", "done"]
    write_notebook(workbook, "01_a", code="# a remark\n" + CODE.replace(", ", ",  "))
    assert statuses(run("smoke")) == ["skipped", "skipped"]


def test_a_failure_is_kept_reported_and_does_not_stop_the_next(workbook, capsys):
    write_profile(workbook, "notebooks: {01_a: {steps: 4}}\n")
    folder = workbook / "data" / "smoke" / "notebooks"
    said = [
        folder.parent / name
        for name in (
            "verdicts/01_a.json",
            "verdicts/01_a.txt",
            "diagnostics/01_table.csv",
            "figures/01_a.png",
        )
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
    def fail(models, text):
        raise error

    monkeypatch.setattr("saelib.__main__.fetch_assets", fail)
    write_profile(workbook, "common: {model: embedded}\n")
    assert main(["run", "--profile", "smoke"]) == 2
    assert [r.getMessage() for r in caplog.records] == ["error: no wheel in sight"]


def test_a_notebook_that_runs_again_loses_its_verdicts_first(workbook):
    folders = [workbook / "data" / "smoke" / "verdicts"]
    write_profile(workbook, "notebooks: {01_a: {steps: 4}}\n")
    (workbook / "grid.yaml").write_text("steps: [4]\n")
    grid = jobs_of("smoke", ["01"], grid=workbook / "grid.yaml")[0].grid
    folders.append(workbook / "data" / "smoke" / "grid" / grid / "verdicts")
    for folder in folders:
        folder.mkdir(parents=True)
        for name in ("01_a", "02_b"):
            (folder / f"{name}.json").write_text("[]")
    run("smoke", ["01"], grid=workbook / "grid.yaml")
    assert [sorted(p.stem for p in f.iterdir()) for f in folders] == [["01_a", "02_b"], ["02_b"]]
    run("smoke", ["01"])  # fails as well, and claims nothing any more
    assert [p.stem for p in folders[0].iterdir()] == ["02_b"]


def test_a_grid_point_that_was_not_collected_goes_no_further(workbook):
    (workbook / "notebooks" / "01_a.ipynb").rename(workbook / "notebooks" / "01_collect.ipynb")
    write_notebook(workbook, "02_b", code="pass")
    (workbook / "grid.yaml").write_text("steps: [4, 5]\n")
    results = run("smoke", grid=workbook / "grid.yaml")
    assert [(r.job.name, r.status) for r in results] == [
        ("01_collect", "failed"),
        ("02_b", "failed"),
        ("01_collect", "done"),
        ("02_b", "done"),
    ]
    assert results[1].error == "not run: 01_collect failed"
    assert not results[1].job.failed.exists()


def test_where_01_does_not_collect_the_later_notebooks_are_not_run(workbook):
    (workbook / "notebooks" / "01_a.ipynb").rename(workbook / "notebooks" / "01_collect.ipynb")
    write_profile(workbook, "notebooks: {01_collect: {steps: 4}}\n")
    first, second = run("smoke")
    assert first.error == "cell 3: AssertionError: four steps"
    assert (second.status, second.error) == ("failed", "not run: 01_collect failed")
    assert not second.job.failed.exists()


def test_where_01_fails_with_its_store_finished_the_later_notebooks_run(workbook):
    own = "model = 'm'\ndtype = 'auto'\ncorpus_seed = 0\nprofile = ''\n"
    write_notebook(workbook, "01_collect", own, "raise SystemError('a figure')")
    (workbook / "notebooks" / "01_a.ipynb").unlink()
    store = workbook / "data" / "smoke" / "store"
    write_text(store / "manifest.json", "{}")
    identity = {"model": "m", "dtype": "auto", "corpus": CorpusConfig().to_dict()}
    for model, expected in (("m", "done"), ("another", "failed")):
        write_json(store.parent / "workspace.json", identity | {"model": model})
        assert statuses(run("smoke", force=True)) == ["failed", expected]


def test_a_record_holds_what_was_set_on_the_command_line(workbook):
    (job,) = [result.job for result in run("smoke", ["02"], {"lr": 0.5})]
    assert json.loads(job.record.read_text())["settings"] == {"lr": 0.5}
    write_profile(workbook, "common: {lr: 0.5}\n")
    assert statuses(run("smoke", ["02"])) == ["skipped"]
    assert json.loads(job.record.read_text())["settings"] == {}


def test_a_refused_request_exits_2_before_anything_runs(workbook, caplog):
    write_profile(workbook, "notebooks: {02_b: {stepz: 4}}\n")
    assert main(["run", "--profile", "smoke", "01_a"]) == 2
    assert "unknown parameter 'stepz'" in caplog.text
    assert not (workbook / "data").exists()


def test_prose_changed_after_the_run_shows_without_running_again(workbook):
    run("smoke", ["01"])
    path = workbook / "notebooks" / "01_a.ipynb"
    nb = nbformat.read(path, as_version=4)
    nb.cells[0].source = "# A better title"
    nb.cells.append(new_markdown_cell("What would falsify this."))
    nbformat.write(nb, path)
    assert statuses(run("smoke", ["01"])) == ["skipped"]
    done = nbformat.read(workbook / "data" / "smoke" / "notebooks" / "01_a.ipynb", as_version=4)
    assert [c.source for c in done.cells if c.cell_type == "markdown"] == [
        nb.cells[0].source,
        nb.cells[-1].source,
    ]
    assert [tags(c) for c in done.cells][1:3] == [["parameters"], ["injected-parameters"]]
    assert done.cells[3].outputs[0].text == "0.25 smoke 1 notebooks\n"
    assert edited("smoke") == [], "brought up to the source's, and sealed so"


def test_prose_that_was_edited_is_told_until_a_run_puts_it_back(workbook):
    run("smoke", ["01"])
    path = workbook / "data" / "smoke" / "notebooks" / "01_a.ipynb"
    whole = path.read_text()
    done = nbformat.read(path, as_version=4)
    done.cells[0].source += " 7"
    nbformat.write(done, path)
    (line,) = edited("smoke")
    assert "notebooks/01_a.ipynb was edited after 01_a had finished" in line
    assert statuses(run("smoke", ["01"])) == ["skipped"]
    assert (path.read_text(), edited("smoke")) == (whole, [])


def test_a_grid_run_leaves_one_notebook_a_point_and_goes_on_after_a_failure(workbook):
    (workbook / "grid.yaml").write_text("steps: [4, 5]\n")
    results = run("smoke", ["01"], grid=workbook / "grid.yaml")
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


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its place on the disk and the time of its last change."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".locks" not in path.parts]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_a_rerun_that_skips_everything_rewrites_nothing(workbook):
    assert main(["run", "--profile", "smoke"]) == 0
    before = snapshot(workbook)
    assert main(["run", "--profile", "smoke"]) == 0
    assert snapshot(workbook) == before


DAMAGES = [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"cells": [1]}', b'{"key": 3}']


@pytest.mark.parametrize("content", DAMAGES)
def test_a_damaged_notebook_or_record_is_named_in_one_line_and_run_again(
    workbook, caplog, content, monkeypatch
):
    caplog.set_level("INFO", "saelib")
    executed = []
    monkeypatch.setattr("saelib.run.execution.execute", pretend(executed))
    folder = workbook / "data" / "smoke" / "notebooks"
    run("smoke")
    for name in ("01_a.ipynb", "02_b.json"):
        executed.clear()
        caplog.clear()
        (folder / name).write_bytes(content)
        assert main(["run", "--profile", "smoke"]) == 0
        assert executed == [name[:4]]
        lines = [r.getMessage() for r in caplog.records if str(folder / name) in r.getMessage()]
        assert [line.endswith(f"{name[:4]} is run again") for line in lines] == [True]
        assert "\n" not in lines[0]
    assert statuses(run("smoke")) == ["skipped", "skipped"]


def pretend(executed: list[str]):
    """An `execute` that copies the notebook."""

    def execute(source, output, values, grid=""):
        executed.append(source.stem)
        write_text(output, source.read_text())

    return execute


def test_a_damaged_notebook_has_no_page_and_the_report_says_so(workbook, monkeypatch, caplog):
    monkeypatch.setattr("saelib.run.execution.execute", pretend([]))
    run("smoke")
    path = workbook / "data" / "smoke" / "notebooks" / "02_b.ipynb"
    path.write_text("")
    assert main(["report", "--profile", "smoke"]) == 0
    index = workbook / "data" / "smoke" / "report" / "index.html"
    assert "notebooks/02_b.ipynb: damaged, not JSON" in index.read_text()
    assert str(workbook) not in index.read_text()
    assert not index.with_name("02_b.html").exists()
    assert index.with_name("01_a.html").exists()


TITLE = "\x1b]0;mine\x07\x1b[2J\x1b[31mRed\x1b[0m\x9b1m"
FAILING = f"""import os, sys, warnings
print({TITLE!r})
print({TITLE!r}, file=sys.stderr)
warnings.warn("look")
open(os.path.abspath("none") + {TITLE!r})"""


def test_neither_paths_nor_control_sequences_leave_a_failed_notebook(workbook):
    write_notebook(workbook, "01_a", code=FAILING)
    command = [sys.executable, "-m", "saelib", "run", "--profile", "smoke", "01"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "Red" in told.stdout
    folder = workbook / "data" / "smoke"
    failed = (folder / "notebooks" / "01_a.failed.ipynb").read_text()
    pages = [path.read_text() for path in (folder / "report").glob("*.html")]
    machine = [str(workbook), sys.prefix, sys.base_prefix, f"{Path.home()}/", "ipykernel_"]
    for text in (failed, *pages):
        assert [place for place in machine if place in text] == []
        assert [mark for mark in ("\x1b]", "\x1b[2J", "\x07", "\x9b") if mark in text] == []
        assert [
            mark for mark in (r"\u001b]", r"\u001b[2J", r"\u0007", r"\u009b") if mark in text
        ] == []
    assert "\x1b" not in "".join(pages) + told.stdout + told.stderr
    assert "notebooks/none" in failed


def test_two_drivers_on_one_profile_both_end_and_execute_once(workbook):
    write_notebook(workbook, "01_a", code="import time\ntime.sleep(1)\nprint(lr)")
    command = [sys.executable, "-m", "saelib", "run", "--profile", "smoke", "01"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert sorted("01_a skipped" in text for text in told) == [False, True]
    assert sum("is at work on 01_a: waiting for it" in text for text in told) == 1
