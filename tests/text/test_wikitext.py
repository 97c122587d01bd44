"""Wikitext becomes plain text."""

import re

import pytest
from helpers.growth import grows_in_proportion
from helpers.wikitext import ARTICLE, PLAIN
from hypothesis import given, settings
from hypothesis import strategies as st

from saelib.text.wikitext import clean_markup, without_leftovers


def test_markup_is_removed_and_paragraphs_are_kept():
    assert clean_markup(ARTICLE) == PLAIN


def test_unbalanced_markup_leaves_no_table_or_reference_behind():
    text = clean_markup(
        "Before {{open.\n\n{| class=x\n| {{cell | [[W\n|}\n\n"
        "After<ref>note</ref> ''all\n\nEnd__NOTOC__"
    )
    assert "class" not in text
    assert "note" not in text
    assert "''" not in text
    assert text.endswith("End")


def test_an_open_bracket_before_a_heading_does_not_take_its_line():
    assert (
        clean_markup("A sad face is :-(\n\n==Use==\nSeen ( , often).")
        == "A sad face is :-(\n\nUse\nSeen (often)."
    )


# ---- what unbalanced markup leaves

# As one pattern: what goes is the same, but time is quadratic in what is left open.
LEFTOVERS = re.compile(
    r"(?ms)^\s*\{\|.*?^\s*\|\}|<ref\b[^<>]*>.*?</ref>"
    r"|</?(?:ref|blockquote|div|span|small|su[bp]|[bip])\b[^<>\n]*>"
    r"|\[\[(?:File|Image):[^\[\]]*\]\]|'{2,}|__[A-Z]+__"
)
PIECES = [
    *("{|", "|}", "\n", "\n\n", " ", "\n ", "\r", "a", "<ref>", "<ref", "</ref>", "<ref name=x/>"),
    *("<ref \n>", "<b", ">", "<", "[[File:", "]]", "''", "'", "__", "TOC", "|", "}", "{", "\x0b"),
]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30))
def test_leftovers_go_as_one_pattern_would_remove_them(pieces):
    text = "".join(pieces)
    assert without_leftovers(text) == LEFTOVERS.sub("", text)


@pytest.mark.parametrize(
    "piece",
    ["{|\n", "<ref>", "<ref \n>", "\n ", "\n", "{|\n|a\n", "<b ", "(", " (", "''a", "[[File:"],
)
def test_leftovers_take_time_in_proportion_to_their_length(piece):
    assert grows_in_proportion(without_leftovers, lambda n: "a" + piece * n, 30_000 // len(piece))


def test_one_pattern_would_take_time_in_proportion_to_the_square_of_the_length():
    assert not grows_in_proportion(lambda text: LEFTOVERS.sub("", text), "{|\n".__mul__, 1_000)


def test_a_character_that_marks_headings_is_no_heading_where_a_page_holds_it():
    assert clean_markup("\x00x\n\x00\nend") == "x\n\nend"
