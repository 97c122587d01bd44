"""Treebank tokens become text."""

import re

import pytest
from helpers.growth import grows_in_proportion
from hypothesis import given, settings
from hypothesis import strategies as st

from saelib.text.treebank import SPACES, SPACING, detokenize, fever_title


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (
            "He -LRB- born 1 May 1980 -RRB- , a poet , died . ",
            "He (born 1 May 1980), a poet, died.",
        ),
        (
            "`` Heroes '' -LRB- David Bowie song -RRB- is old .",
            '"Heroes" (David Bowie song) is old.',
        ),
        ("-LRB- `` A '' ; see -LSB- 1 -RSB- -RRB- !", '("A"; see [1])!'),
        ("the set -LCB- 1 , 2 -RCB- holds two -COLON- yes ?", "the set {1, 2} holds two: yes?"),
        (
            "It did n't and they 've said John 's dog ca n't .",
            "It didn't and they've said John's dog can't.",
        ),
        (
            "the boys ' toys of the ' 90s cost $ 5 , or 3 % ...",
            "the boys' toys of the ' 90s cost $5, or 3%...",
        ),
        ("it rose by .5 from 10:30 -- see a.b , c/d", "it rose by .5 from 10:30 -- see a.b, c/d"),
        ("a ` word ' in single quotes", "a 'word' in single quotes"),
        (
            'Ordinary text (as it is): "quoted", it\'s 5.5% [1].',
            'Ordinary text (as it is): "quoted", it\'s 5.5% [1].',
        ),
    ],
)
def test_treebank_tokens_become_text(tokens, text):
    assert detokenize(tokens) == text


def test_fever_ids_become_titles():
    assert fever_title("Alien-COLON-_Isolation_-LRB-2014-RRB-") == "Alien: Isolation (2014)"
    assert fever_title("Schindler's_List") == "Schindler's List"


@pytest.mark.parametrize("piece", [" ", "\n", " \t", "( ", " '", " `", "`` ", " n", " .x", "$ "])
def test_a_long_run_takes_time_in_proportion_to_its_length(piece):
    assert grows_in_proportion(detokenize, lambda n: "a" + piece * n + "b", 15_000)


PLAIN_SPACES = [
    (re.compile(pattern.pattern.replace(SPACES, r"\s+"), pattern.flags), replacement)
    for pattern, replacement in SPACING
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*" \n\t.,;:?!%)]}([{'`$£5aA", "n't", "'s", "''"]), max_size=40))
def test_whole_runs_of_spaces_are_what_the_plain_patterns_remove(pieces):
    text = "".join(pieces)
    for (whole, replacement), (plain, _) in zip(SPACING, PLAIN_SPACES, strict=True):
        assert whole.sub(replacement, text) == plain.sub(replacement, text)
