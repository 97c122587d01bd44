"""One notebook's run is added to a record whole or not at all; what others recorded stays."""

import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from helpers.recording import OTHER, README, names, one_finding
from nbformat.v4 import new_code_cell, new_notebook

from saelib.measure.columns import TABLE
from saelib.run import jobs
from saelib.run.results import read_results, write_results
from saelib.study import finding
from saelib.versions import STUDY_VERSION

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import findings
import published
import record

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("notebooks/published", "figures", "data/recorded")
TIMES = "run_id,stage,seconds,tokens_per_second,resumed\n"


def row(run, notebook, **values):
    """A row of results.csv; site 1 is scaled by a half."""
    plain = {column.name: "" if column.dtype == "str" else 1 for column in TABLE}
    plain |= {"model_id": "m", "corpus_id": "c", "normalize": "center_scale"}
    plain |= {"tokens_mask": "ordinary"}
    plain |= {"run_id": run, "notebook": notebook, "loss": "plain", "mse": 1.0, "mse_raw": 4.0}
    return plain | {"code_version": "0.0.1+training.1", "n_test_pages": 21} | values


def executed(home, name, found, figure):
    """What the driver leaves of one notebook: its copy, its record, a figure, findings."""
    run = home / "data" / "smoke"
    (run / "figures").mkdir(parents=True, exist_ok=True)
    (run / "figures" / f"{figure}.png").write_bytes(figure.encode())
    (run / "notebooks").mkdir(exist_ok=True)
    (job,) = jobs.jobs_of("smoke", [name])
    source = nbformat.read(job.source, as_version=4)
    lines = [f"{key} = {value!r}" for key, value in job.parameters.items()]
    given = new_code_cell("\n".join(lines), metadata={"tags": ["injected-parameters"]})
    nbformat.write(new_notebook(cells=[*source.cells, given]), job.output)
    job.record.write_text(json.dumps({"key": jobs.job_key(job)}))
    if found:
        picture = finding.figure_path("smoke", figure)
        finding.record("smoke", name, [one_finding(one, figure=picture) for one in found])


def write_run(home, rows, times):
    write_results(home / "data" / "smoke" / "results.csv", rows)
    (home / "data" / "smoke" / "timings.csv").write_text(TIMES + times)


def write_notebook(home, name, code="lr = 0.1"):
    cell = new_code_cell(code, metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cell]), home / "notebooks" / f"{name}.ipynb")


@pytest.fixture
def added(home):
    """A record of 01 and 02, and a run of 07 alone, as another machine left it."""
    shutil.copy(ROOT / "notebooks" / "01_collect.ipynb", home / "notebooks")
    write_notebook(home, "02_x")
    profile = home / "notebooks" / "profiles" / "smoke.yaml"
    profile.write_text("common: {lr: 0.2, contexts_per_page: 3}\n")
    (home / "README.md").write_text(README)
    executed(home, "01_collect", [], "01_a")
    executed(home, "02_x", ["F4"], "02_a")
    finding.record_table("smoke", "02_curves", pd.DataFrame({"run_id": ["bb"]}))
    write_run(
        home,
        [row("bb", "02_x", fvu=0.25), row("dd", "02_x")],
        ",collect,9.0,,false\n,notebook:02_x,8.0,,false\nbb,train,7.0,,false\n",
    )
    record.record("smoke")
    shutil.rmtree(home / "data" / "smoke")
    write_notebook(home, "07_y")
    executed(home, "07_y", ["F5b", "F5e"], "07_b")
    finding.record_table("smoke", "07_curves", pd.DataFrame({"run_id": ["aa", "cc"]}))
    finding.record_abstract("smoke", "07_y", "They differ.")
    store = home / "data" / "smoke" / "store"
    store.mkdir()
    (store / "manifest.json").write_text(json.dumps({"compute_dtype": "bfloat16"}))
    write_run(
        home,
        [row("aa", "07_y", mse_raw=4.001), row("cc", "07_y"), row("ee", "03_z")],
        ",collect,90.0,,false\n,notebook:07_y,6.0,,false\naa,train,5.0,,false\nee,train,4.0,,false\n",
    )
    return home


def contents(home):
    """Every file of the record by its path."""
    folders = [home / place / "smoke" for place in PLACES]
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(home)): path.read_bytes() for path in paths}


def test_all_of_the_notebook_is_added_and_all_of_the_others_stays_byte_for_byte(added):
    before = contents(added)
    assert record.main(["--add", "07", "smoke"]) == 0
    after = contents(added)
    recorded = "data/recorded/smoke"
    of_both = {"results.csv", "timings.csv", "estimates.json", "sources.json", "seal.json"}
    shared = {f"{recorded}/{name}" for name in of_both}
    assert {name: after[name] for name in before.keys() - shared} == {
        name: before[name] for name in before.keys() - shared
    }
    assert after.keys() - before.keys() == {
        "notebooks/published/smoke/07_y.ipynb",
        "figures/smoke/07_b.png",
        f"{recorded}/added.json",
        f"{recorded}/diagnostics/07_curves.csv",
        f"{recorded}/verdicts/07_y.json",
        f"{recorded}/verdicts/07_y.txt",
    }
    copy = added / "data" / "smoke" / "notebooks" / "07_y.ipynb"
    assert after["notebooks/published/smoke/07_y.ipynb"] == copy.read_bytes()


def test_its_rows_and_times_stand_beside_the_recorded_lines(added):
    folder = added / "data" / "recorded" / "smoke"
    before = (folder / "results.csv").read_text().splitlines()
    record.add("smoke", "07")
    lines = (folder / "results.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["run_id", "aa", "bb", "cc", "dd"]
    assert [lines[0], lines[2], lines[4]] == before
    assert len(read_results(folder / "results.csv")) == 4  # sealed anew
    times = (folder / "timings.csv").read_text().splitlines()
    assert times[1:4] == [",collect,9.0,,false", ",notebook:02_x,8.0,,false", "bb,train,7.0,,false"]
    assert times[4:] == [",notebook:07_y,6.0,,false", "aa,train,5.0,,false"]


def test_findings_estimates_and_readme_are_of_both(added):
    record.add("smoke", "07")
    assert list(finding.recorded_estimates("smoke")) == ["F4", "F5b", "F5e"]
    assert list(published.recorded_hashes("smoke")) == ["01_collect", "02_x", "07_y"]
    assert published.older("smoke") == []
    page = (added / "docs" / "findings.md").read_text()
    assert "### F4" in page
    assert "### F5b" in page
    assert "trained SAEs: 4" in page
    assert "**Added by themselves:** 07_y (code version 0.1.0+training.1, compute dtype bf" in page
    assert f"study {STUDY_VERSION})" in page
    readme = (added / "README.md").read_text()
    assert readme.startswith(f"# Title\n\n{OTHER}")
    assert "(notebooks/published/smoke/07_y.ipynb)" in readme


def test_adding_it_twice_changes_nothing_and_a_later_run_of_it_takes_its_place(added):
    record.add("smoke", "07")
    once = contents(added)
    record.add("smoke", "07")
    assert contents(added) == once
    (added / "data" / "smoke" / "figures" / "07_b.png").rename(
        added / "data" / "smoke" / "figures" / "07_c.png"
    )
    picture = finding.figure_path("smoke", "07_c")
    finding.record("smoke", "07_y", [one_finding("F5b", figure=picture)])
    finding.record_table("smoke", "07_curves", pd.DataFrame({"run_id": ["aa"]}))
    write_run(added, [row("aa", "07_y", fvu=0.5)], ",notebook:07_y,3.0,,false\n")
    record.add("smoke", "07")
    folder = added / "data" / "recorded" / "smoke"
    table = read_results(folder / "results.csv").set_index("run_id")
    assert list(table.index) == ["aa", "bb", "dd"]
    assert table.loc["aa", "fvu"] == 0.5
    assert (folder / "timings.csv").read_text().endswith("7.0,,false\n,notebook:07_y,3.0,,false\n")
    assert list(finding.recorded_estimates("smoke")) == ["F4", "F5b"]
    assert names(added / "figures" / "smoke") == ["01_a.png", "02_a.png", "07_c.png"]


def test_a_run_that_both_have_stays_as_it_is_recorded(added):
    same = row("bb", "07_y", fvu=0.252, code_version="0.2.0+training.1")  # another machine's sums
    write_run(added, [same, row("aa", "07_y"), row("cc", "07_y")], "bb,train,1.0,,false\n")
    record.add("smoke", "07")
    folder = added / "data" / "recorded" / "smoke"
    table = read_results(folder / "results.csv").set_index("run_id")
    assert table.loc["bb", "notebook"] == "02_x"
    assert table.loc["bb", "fvu"] == 0.25
    page = (added / "docs" / "findings.md").read_text()
    assert "SAEs trained again 1, whose FVU and L0 differ by at most 0.80%" in page
    assert "bb,train,1.0" not in (folder / "timings.csv").read_text()


def test_a_run_that_both_have_alike_was_not_trained_again(added):
    same = row("bb", "07_y", fvu=0.25)
    write_run(added, [same, row("aa", "07_y"), row("cc", "07_y")], "")
    record.add("smoke", "07")
    assert "trained again" not in (added / "docs" / "findings.md").read_text()


def rows_with(**values):
    return lambda home: write_run(home, [row("aa", "07_y", **values), row("cc", "07_y")], "")


def of_profile(text):
    return lambda home: (home / "notebooks" / "profiles" / "smoke.yaml").write_text(text)


def run_folder(home):
    return home / "data" / "smoke"


REFUSED = [
    (
        lambda home: write_run(home, [row(r, "07_y", fvu=0.3) for r in ("aa", "bb", "cc")], ""),
        "results.csv: run bb is on record with fvu = '0.25', and in this run with '0.3': expected",
    ),
    (
        lambda home: write_run(
            home, [row(r, "07_y", fvu=0.25, l0=9) for r in ("aa", "bb", "cc")], ""
        ),
        "run bb is on record with l0 = '1', and in this run with '9': expected numbers no further",
    ),
    (
        lambda home: write_run(
            home, [row(r, "07_y", fvu=0.25, l0="") for r in ("aa", "bb", "cc")], ""
        ),
        "run bb is on record with l0 = '1', and in this run with '': expected numbers no further",
    ),
    (
        lambda home: write_run(home, [row("aa", "07_y")], ""),
        "results.csv lacks run cc, which a table of 07_y names",
    ),
    (rows_with(corpus_id="z"), "07_y .*: corpus_id is z in this run and c on record, .* one store"),
    (rows_with(model_id="z"), "model_id is z in this run and m on record"),
    (rows_with(n_test_pages=20), "n_test_pages is 20 in this run and 21 on record"),
    (
        lambda home: write_run(home, [row(r, "07_y", mse_raw=4.1) for r in ("aa", "cc")], ""),
        r"scale of site 1 \(center_scale, ordinary tokens\) is 0.493865 in this run and 0.5 on",
    ),
    (
        of_profile("common: {lr: 0.2, contexts_per_page: 4}\n"),
        "01_collect's contexts_per_page is 4 in this run and 3 on record",
    ),
    (
        of_profile("common: {lr: 0.2, contexts_per_page: 3, dtype: float32}\n"),
        "01_collect's dtype is float32 in this run and auto on record",
    ),
    (
        lambda home: (home / "notebooks/published/smoke/01_collect.ipynb").unlink(),
        "01_collect.ipynb is missing, so what the recorded store was made with is not known",
    ),
    (
        lambda home: (run_folder(home) / "notebooks" / "07_y.ipynb").unlink(),
        "07_y of profile 'smoke' is not a finished run: not executed as code, profile and",
    ),
    (
        lambda home: (run_folder(home) / "notebooks" / "07_y.failed.ipynb").write_text(""),
        "is not a finished run: 07_y.failed.ipynb",
    ),
    (
        of_profile("common: {lr: 0.3, contexts_per_page: 3}\n"),
        "is not a finished run: not executed",
    ),
    (lambda home: (run_folder(home) / "timings.csv").unlink(), "finished run: timings.csv"),
    (
        lambda home: finding.record(
            "smoke", "07_y", [one_finding("F4", figure=finding.figure_path("smoke", "07_b"))]
        ),
        "F4 is on record of 02_x",
    ),
    (
        lambda home: (run_folder(home) / "verdicts" / "07_y.json").write_text("[{"),
        "07_y.json: damaged, not JSON",
    ),
    (
        lambda home: (run_folder(home) / "results.csv").write_text("run_id\n"),
        "results.csv: damaged",
    ),
    (
        lambda home: (run_folder(home) / "timings.csv").write_text("run_id,stage\n"),
        "timings.csv: its columns are not those on record: run_id,stage for run_id,stage,seconds",
    ),
    (
        lambda home: shutil.rmtree(home / "data" / "recorded"),
        "nothing is recorded of profile 'smoke' to add to",
    ),
]


@pytest.mark.parametrize(("spoil", "sentence"), REFUSED)
def test_a_run_that_does_not_fit_is_refused_in_a_sentence_and_nothing_is_replaced(
    added, spoil, sentence, capsys
):
    spoil(added)
    before = contents(added)
    assert record.main(["--add", "07", "smoke"]) == 2
    said = capsys.readouterr().out
    assert re.search(f"^error: .*{sentence}", said)
    assert said.count("\n") == 1
    assert contents(added) == before
    assert (added / "README.md").read_text() != ""
    assert "07_y" not in (added / "README.md").read_text()


def test_a_write_that_fails_leaves_the_record_as_it_was(added, monkeypatch):
    before = contents(added)

    def full(folder, names):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("added.seal_files", full)
    with pytest.raises(OSError, match="free some space"):
        record.add("smoke", "07")
    assert contents(added) == before
    places = [added / place for place in PLACES]
    assert [names(place) for place in places] == [["smoke"]] * 3  # no half-written neighbour


def test_a_record_without_additions_says_nothing_of_them():
    assert findings.added("full") == {}
    assert "Added by themselves" not in findings.page("full")
