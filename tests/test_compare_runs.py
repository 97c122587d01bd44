"""tools/compare.py says in what two runs of a profile differ, and nothing where they do not."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import compare

ROW = {"run_id": "a1", "code_version": "1", "notebook": "02", "lambda": "0.5", "fvu": "0.25"}
FINDING = {
    "name": "F4",
    "verdict": "supported",
    "sentence": "FVU is higher at the end: on average as λ to the power 0.25.",
    "estimates": {"site 2": {"value": 0.25, "lo": 0.2, "hi": 0.3}},
}


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_findings(folder, entries):
    path = folder / "verdicts" / "02_x.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries), encoding="utf-8")


@pytest.fixture
def runs(tmp_path):
    """Two folders of the same run."""
    before = tmp_path / "before"
    write_table(before / "results.csv", [ROW])
    write_table(before / "diagnostics" / "02_t.csv", [{"run_id": "a1", "value": "3"}])
    write_findings(before, [FINDING])
    return before, Path(shutil.copytree(before, tmp_path / "after"))


def test_equal_runs_do_not_differ(runs, capsys):
    assert compare.main(list(map(str, runs))) == 0
    assert capsys.readouterr().out == "no difference\n"


def test_a_rebuilding_may_name_runs_otherwise(runs):
    _, after = runs
    write_table(after / "results.csv", [ROW | {"run_id": "b2", "code_version": "2"}])
    write_table(after / "diagnostics" / "02_t.csv", [{"run_id": "b2", "value": "3"}])
    assert list(compare.differences(*runs)) == []


def test_another_number_in_a_table_is_a_difference(runs, capsys):
    _, after = runs
    write_table(after / "diagnostics" / "02_t.csv", [{"run_id": "a1", "value": "4"}])
    assert compare.main(list(map(str, runs))) == 1
    assert capsys.readouterr().out == "diagnostics/02_t.csv: 1 of 1 rows differ\n"


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"verdict": "undecided"}, "F4 was supported, is undecided"),
        ({"estimates": {}}, "F4: the estimate 'site 2' differs"),
        (
            {"estimates": {"site 2": {"value": 0.25, "lo": 0.2, "hi": 0.31}}},
            "F4: the estimate 'site 2' differs",
        ),
    ],
)
def test_another_verdict_or_estimate_is_a_difference(runs, changed, line):
    _, after = runs
    write_findings(after, [FINDING | changed])
    assert f"verdicts/02_x.json: {line}" in list(compare.differences(*runs))


def test_a_number_that_a_sentence_states_no_more_is_a_difference(runs):
    before, after = runs
    write_findings(before, [FINDING | {"sentence": "To the power 0.77."}])
    write_findings(after, [FINDING])
    lines = list(compare.differences(before, after))
    assert lines == ["verdicts/02_x.json: F4 stated 0.77, nothing does now"]


def test_a_folder_without_a_run_is_refused(runs, tmp_path, capsys):
    assert compare.main([str(runs[0]), str(tmp_path)]) == 2
    assert "no results.csv; expected a folder data/<profile> of a run" in capsys.readouterr().out
