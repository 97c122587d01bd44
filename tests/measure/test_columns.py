"""One list of columns: the table, its types, labels and the panel follow from it."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from saelib.measure import columns
from saelib.measure.columns import COLUMNS, DESCRIPTION, FACTS, LABELS, MEASURED, NUMBERS, TEXT
from saelib.measure.gates import gini
from saelib.measure.reconstruction import CodeSums, Reconstruction, RowSums


def write_table(path, dropped=()):
    """A table of two runs in which text is "a" and numbers count up."""
    values = {c.name: ["a", "b"] if c.dtype == "str" else [1, 2] for c in DESCRIPTION + MEASURED}
    table = pd.DataFrame(values).drop(columns=list(dropped))
    table.to_csv(path, index=False)


def sums_of_three_rows():
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    rows = RowSums(x[0])
    rows.update(x)
    sums = Reconstruction(rows, 3)
    codes = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [1.0, 1.0, 0]])
    sums.update(x, x, CodeSums.of(codes))
    return sums


def test_no_column_is_named_twice():
    assert len(set(COLUMNS)) == len(COLUMNS)
    assert {*TEXT, *NUMBERS} == set(COLUMNS)
    assert not {*TEXT} & {*NUMBERS}


def test_names_that_other_lists_use_are_columns():
    assert {*FACTS, *columns.LOSS_COLUMNS} <= set(COLUMNS)
    assert LABELS["fvu"] == "FVU (fraction of variance unexplained)"
    assert columns.TITLES["fvu"] == "FVU"
    assert LABELS["corpus_id"] == "corpus_id"  # a column without a label has its name


def test_what_a_run_is_comes_before_what_is_measured_of_it():
    assert COLUMNS[: len(DESCRIPTION)] == [column.name for column in DESCRIPTION]
    assert COLUMNS[0] == "run_id"


def test_a_table_is_read_back_with_its_types(tmp_path):
    write_table(tmp_path / "results.csv")
    table = columns.read_table(tmp_path / "results.csv")
    assert list(table.columns) == COLUMNS
    assert {name: str(table[name].dtype) for name in NUMBERS} == NUMBERS
    assert table["run_id"].tolist() == ["a", "b"]


def test_an_older_table_is_read_with_the_new_column_empty(tmp_path):
    write_table(tmp_path / "results.csv", dropped=["kl", "note"])
    table = columns.read_table(tmp_path / "results.csv")
    assert list(table.columns) == COLUMNS
    assert table["kl"].isna().all()
    assert table["note"].isna().all()
    assert table["fvu"].tolist() == [1, 2]


def test_a_table_of_before_options_has_none(tmp_path):
    write_table(tmp_path / "results.csv", dropped=["options"])
    assert columns.read_table(tmp_path / "results.csv")["options"].tolist() == ["", ""]


@pytest.mark.parametrize("dropped", ["run_id", "site"])
def test_a_table_that_does_not_say_what_a_run_is_is_refused(dropped, tmp_path):
    write_table(tmp_path / "results.csv", dropped=[dropped])
    with pytest.raises(ValueError, match=f"columns missing: {dropped}"):
        columns.read_table(tmp_path / "results.csv")


def test_a_metric_is_a_function_and_a_line(monkeypatch):
    def density_gini(sums):
        return gini(sums.density)

    line = replace(MEASURED[0], name="density_gini", compute=density_gini)
    monkeypatch.setattr(columns, "MEASURED", (*MEASURED, line))
    metrics = columns.reconstruction_metrics(sums_of_three_rows())
    assert metrics["density_gini"] == pytest.approx(gini([1, 1 / 3, 0]))
    assert metrics["fvu"] == 0


def test_without_rows_there_is_no_metric():
    with pytest.raises(ValueError, match="no rows were seen"):
        columns.reconstruction_metrics(Reconstruction(RowSums(torch.zeros(2)), 3))


def test_a_metric_without_a_value_is_nan_and_not_a_number():
    assert math.isnan(columns.reconstruction_metrics(sums_of_three_rows())["gate_dead"])
