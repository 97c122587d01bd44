"""Damaged and hostile text: every reader ends in pages or in an error that names the file."""

from helpers.fuzzed_text import forms, trials


def test_a_thousand_damaged_texts_end_in_pages_or_in_the_project_s_error(tmp_path):
    outcomes = trials(tmp_path, 1000, seed=0, markup_every=200)
    assert {name for name, _ in outcomes} == {*forms(), "markup"}
    for name in forms():
        assert outcomes[name, "CorpusError"] > 0, f"{name}: the damage does nothing"
        assert outcomes[name, "pages"] > 0, f"{name}: no page survives"
