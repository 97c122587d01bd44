"""No sentence is left with a hole where a template's words are unknown."""

import pytest
from helpers.growth import grows_in_proportion

from saelib.text.gaps import without_gaps
from saelib.text.wikitext import clean_markup

KEPT = {
    "One is here. It is {{odd}} wide. Three follow.": "One is here. Three follow.",
    "At {{odd}} it ends": "",
    "Where <math>x</math> is small, all is well. So it goes.": "So it goes.",
    "Given by\n: <math>x = 1</math>\nfor all.": "Given by\n\nfor all.",
    "Abel ({{odd|x}}; {{odd}}; born 1970) painted.": "Abel (born 1970) painted.",
    "Abel ({{odd|x}}, {{odd}}) painted.": "Abel painted.",
    "The S. was {{odd}} deep. Dr. Abel knew.": "Dr. Abel knew.",
    "{{odd}} Abel came first.": "Abel came first.",
    "{{odd}} is prime. Two.": "Two.",
    "It had 5 ({{odd}} years old (about)) of them. Two.": "Two.",
    "Nothing is odd here .": "Nothing is odd here .",
    "An end that {{odd}}": "An end that",
    "他来了。他有{{odd}} 个。他走了。": "他来了。他有 个。他走了。",
    "他来了。他有 {{odd}} 个。他走了。": "他来了。他走了。",
}


@pytest.mark.parametrize("wikitext", KEPT)
def test_what_lacks_a_word_goes_and_the_rest_stays(wikitext):
    assert clean_markup(wikitext) == KEPT[wikitext]


def test_a_page_cannot_bring_a_gap_of_its_own():
    assert clean_markup("a \x01 b") == "a  b".replace("  ", " ")


@pytest.mark.parametrize(
    "piece",
    ["\x01", " \x01", "\x01 ", "(\x01", "(", "(a, \x01;", "abc. \x01", "abc. ", "\x01)", ". '"],
)
def test_gaps_take_time_in_proportion_to_their_number(piece):
    assert grows_in_proportion(
        without_gaps, lambda n: f"a{piece * n}a \x01 a", 30_000 // len(piece)
    )
