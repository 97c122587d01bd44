"""A number that no machine word holds stands in a table: an error that names the file."""

import pandas as pd
import pytest

from saelib.measure.columns import COLUMNS, NUMBERS
from saelib.measure.features import columns as latent_columns
from saelib.run import report
from saelib.run.results import RESULTS, TIMES, read_results, read_times

HUGE = "9" * 30  # above every int64
HUGER = "9" * 400  # above every float64


def table_with(path, columns, **values):
    """A table of one row, 1 in each column but those given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = dict.fromkeys(columns, "1") | values
    path.write_text("\n".join([",".join(row), ",".join(row.values()), ""]))
    return path


@pytest.mark.parametrize("name", [name for name, kind in NUMBERS.items() if kind == "int64"])
def test_in_results(tmp_path, name):
    path = table_with(tmp_path / RESULTS, COLUMNS)
    assert len(read_results(path)) == 1
    table_with(path, COLUMNS, **{name: HUGE})
    with pytest.raises(ValueError, match=r"results\.csv: damaged \(Overflow\)"):
        read_results(path)


def test_in_results_as_the_report_reads_them(home):
    path = home / "data" / "smoke" / RESULTS
    table_with(path, COLUMNS)
    assert dict(report.facts("smoke"))["sites"] == "1"
    table_with(path, COLUMNS, site=HUGE)
    with pytest.raises(ValueError, match=r"results\.csv: damaged \(.*too large"):
        report.facts("smoke")


def test_in_times(tmp_path):
    row = f",collect,{HUGER},883.6,false\n"
    (tmp_path / TIMES).write_text("run_id,stage,seconds,tokens_per_second,resumed\n" + row)
    with pytest.raises(ValueError, match=r"timings\.csv: damaged \(.*too large"):
        read_times(tmp_path)


def test_in_an_index_of_latents(tmp_path):
    types = {column.name: column.dtype for column in latent_columns.TABLE}
    whole = [name for name, kind in types.items() if kind.startswith("int")]
    assert whole
    for name in whole:
        path = table_with(tmp_path / "latents.csv", ["latent", *types], **{name: HUGE})
        with pytest.raises(ValueError, match=r"latents\.csv: damaged \(Overflow\)"):
            latent_columns.read_latents(path)
    table_with(path, ["latent", *types])
    assert isinstance(latent_columns.read_latents(path), pd.DataFrame)
