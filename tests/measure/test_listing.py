"""Tables of a lens print the texts they hold in full, in a script and in a notebook."""

import pandas as pd

from saelib.measure.listing import Listing

TEXT = "the war ended in «May» 1945, and " * 8
ROWS = [(1.5, "World War II", 3, TEXT), (0.5, "Peace", 9, "short")]
COLUMNS = ["activation", "title", "position", "text"]


def test_a_long_text_is_printed_whole_on_one_line():
    printed = str(Listing(ROWS, columns=COLUMNS))
    lines = printed.splitlines()
    assert len(lines) == 1 + len(ROWS)
    assert lines[0].split() == COLUMNS
    assert TEXT.strip() in lines[1]
    assert "..." not in printed


def test_so_is_what_is_taken_of_it():
    table = Listing(ROWS, columns=COLUMNS)
    for part in (table.head(1), table[table["position"] == 3], table[["text"]]):
        assert TEXT.strip() in repr(part)


def test_in_a_notebook_too():
    assert TEXT.strip() in Listing(ROWS, columns=COLUMNS)._repr_html_()


def test_pandas_options_are_left_as_they_were():
    before = pd.get_option("display.max_colwidth")
    str(Listing(ROWS, columns=COLUMNS))
    assert pd.get_option("display.max_colwidth") == before


def test_in_all_else_it_is_a_table():
    pd.testing.assert_frame_equal(
        Listing(ROWS, columns=COLUMNS), pd.DataFrame(ROWS, columns=COLUMNS)
    )
