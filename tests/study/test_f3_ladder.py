"""One gap by six yardsticks."""

from typing import get_args

import numpy as np
import pandas as pd
import pytest
from helpers.f3_cases import COMPARED, SCOPE, between
from helpers.f3_results import step

from saelib.study import f3_ladder
from saelib.study.estimate import Comparison, constant, undefined
from saelib.study.f3_ladder import ORIGINAL_ALL, Ladder, Yardstick
from saelib.study.scope import Scope


def ladder(*values):
    """Yardsticks whose readings at the deepest site are `values`; the last is PCA."""
    steps = [step(f"original: {i}", value) for i, value in enumerate(values)]
    steps = [Yardstick(ORIGINAL_ALL, steps[0].by_seed), *steps[1:], step("PCA", constant(1.2))]
    return Ladder({s.name: s for s in steps}, COMPARED)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((between(2, 3), between(1.5, 2)), "worse than site 15"),
        ((between(0.2, 0.3), between(0.5, 0.6)), "better than site 15"),
        ((between(0.2, 0.3), between(1.5, 1.6)), "depends on the yardstick"),
        ((between(2, 3), undefined()), "worse than site 15"),
    ],
)
def test_the_title_says_whether_the_yardsticks_agree(values, words):
    title = f3_ladder.ladder_title(ladder(*values))
    assert words in title
    assert len(title.split()) <= 12


def test_a_yardstick_averages_seeds_in_logarithms_or_as_they_are():
    by_seed = {(2, 0): constant(1.0), (2, 1): constant(4.0)}
    assert Yardstick("log", by_seed).at_site(2).value == pytest.approx(2.0)
    assert Yardstick("sum", by_seed, over_logs=False).at_site(2).value == pytest.approx(2.5)


def test_the_text_table_has_a_row_a_yardstick_and_a_column_a_shallower_site():
    table = ladder(between(2, 3), between(0.5, 0.6, 0.52)).text_table()
    assert table.index.name == "site 29"
    rows = [ORIGINAL_ALL, "original: 1", "PCA"]
    words = ["2.5 [2, 3]", "0.52 [0.5, 0.6]", "1.2 [1.2, 1.2]"]
    column = dict(zip(rows, words, strict=True))
    assert table.to_dict() == {"/ site 2": column, "/ site 15": column}


def test_single_seeds_are_drawn_without_pca():
    seeds = ladder(between(2, 3), between(1, 2)).seeds()
    assert len(seeds) == 2 * 2 * 3
    assert "PCA" not in set(seeds["group"])


def test_a_collapsed_original_recipe_leaves_its_own_yardsticks_undecided():
    rungs = ladder(between(2, 3), between(2, 3))
    fair = step("normalised: FVU at L0 = 32", between(2, 3))
    rungs = Ladder(dict(list(rungs.steps.items())[:2]) | {fair.name: fair, "PCA": fair}, COMPARED)
    verdicts = f3_ladder.verdicts_by_yardstick(rungs, 0.03, SCOPE, collapsed=[2])
    assert list(verdicts.values()) == ["undecided", "undecided", "supported"]


def test_the_middle_lambda_is_of_the_sorted_ones():
    assert f3_ladder.middle_lambda([8.0, 0.8, 2.5]) == 2.5


def test_the_figure_of_an_unreached_l0_says_so():
    original = pd.DataFrame({"l0": [18.0, 49.0, 491.0]}, index=[2, 15, 29])
    figure = f3_ladder.ladder_figure(ladder(between(2, 3), undefined()), original, SCOPE, 30)
    assert "worse" in figure.get_suptitle()
    assert np.isfinite(figure.get_figheight())


def test_each_yardstick_says_where_the_deepest_site_stands_and_why_there_is_no_verdict_once():
    rungs = ladder(between(2, 3), undefined())
    lines = f3_ladder.yardstick_lines(rungs, 0.03, SCOPE)
    assert lines[0] == f"{ORIGINAL_ALL}: worse than site 2, worse than site 15: supported"
    assert lines[1] == "original: 1: site 2: L0 not reached, site 15: L0 not reached: undecided"
    small = f3_ladder.yardstick_lines(rungs, 0.03, Scope("a model", 1, 20))
    assert small[0] == f"{ORIGINAL_ALL}: worse than site 2, worse than site 15"
    assert small[-1] == "undecided by each: 1 seed and 20 test pages; a verdict takes 3 and 15"
    assert sum("undecided" in line for line in small) == 1
    collapsed = f3_ladder.yardstick_lines(rungs, 0.03, SCOPE, collapsed=[2])
    assert collapsed[-1] == "undecided by the original recipe, whose SAEs have collapsed"


def test_the_place_of_the_deepest_site_has_a_word_for_every_comparison():
    assert set(f3_ladder.PLACES) == set(get_args(Comparison))


def test_a_yardstick_that_is_not_known_is_not_counted_in_the_title():
    title = f3_ladder.ladder_title(ladder(between(2, 3), undefined()))
    assert title.startswith("By each known yardstick")
