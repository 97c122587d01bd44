"""Wikitext becomes plain text."""

from helpers.wikitext import ARTICLE, PLAIN

from saelib.text.wikitext import clean_markup


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
