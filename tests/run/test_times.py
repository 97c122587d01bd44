"""`timings.csv`: rows are appended by many, so each must be one that was written."""

import pytest

from saelib.run.results import TIMES, read_times

HEAD = "run_id,stage,seconds,tokens_per_second,resumed\n"
ROWS = ",collect,9.012,883.6,false\nd63d7d97e1d9,train,5.389,23751.5,false\n"


@pytest.mark.parametrize("size", [30, 36, 42, 52, 60])
def test_an_end_that_was_appended_once_more_is_refused(tmp_path, size):
    """Its first row begins within one of the file's."""
    text = HEAD + ROWS
    (tmp_path / TIMES).write_text(text)
    assert read_times(tmp_path)["seconds"].tolist() == [9.012, 5.389]
    (tmp_path / TIMES).write_text(text + text[-size:])
    with pytest.raises(ValueError, match=r"timings\.csv: damaged \(the row .*delete it"):
        read_times(tmp_path)


def test_a_row_that_is_being_written_is_left_out(tmp_path):
    (tmp_path / TIMES).write_text(HEAD + ROWS + "d63d7d97e1d9,tra")
    assert len(read_times(tmp_path)) == 2


def test_a_row_that_is_repeated_counts_once(tmp_path):
    (tmp_path / TIMES).write_text(HEAD + ROWS)
    once = read_times(tmp_path)
    (tmp_path / TIMES).write_text(HEAD + ROWS + ROWS.splitlines(keepends=True)[1])
    assert read_times(tmp_path).equals(once)
