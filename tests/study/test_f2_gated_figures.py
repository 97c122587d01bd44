"""Titles and captions of the comparison of arms: messages that stay true whatever was measured."""

import numpy as np
import pandas as pd
import pytest
from helpers.f2_cases import BETTER, EQUAL, FULL, UNREACHED, WORSE, PowerLaws, params

from saelib.study import f2_gated, f2_gated_figures


def ratios_of(*values):
    """The same ratio at site 2 for each pair of arms."""
    return {(*pair, 2): value for pair, value in zip(f2_gated.PAIRS, values, strict=True)}


@pytest.mark.parametrize(
    ("values", "title"),
    [
        ((BETTER, BETTER, WORSE), "Both Gated SAEs beat the plain one at every site"),
        ((WORSE, WORSE, WORSE), "Both Gated SAEs lose to the plain one at every site"),
        ((BETTER, WORSE, WORSE), "Gated against plain: better in 1, worse in 1 of 2 comparisons"),
        ((UNREACHED,) * 3, "No site has all arms at the L0 of the comparison"),
    ],
)
def test_the_title_of_the_ratios_says_who_wins(values, title):
    table = f2_gated.ratio_table(ratios_of(*values), 0.03)
    assert f2_gated_figures.ratio_title(table) == title


@pytest.mark.parametrize(
    ("n_below", "reached", "title"),
    [
        (3, True, "At L0 = 32 both Gated SAEs beat plain at every site"),
        (0, True, "At L0 = 32 both Gated SAEs beat plain at no site"),
        (1, True, "At L0 = 32 both Gated SAEs beat plain at 1/3 sites"),
        (0, False, "Not every arm has L0 = 32; where curves overlap they compare"),
    ],
)
def test_the_title_of_the_trade_off_counts_sites(n_below, reached, title):
    assert f2_gated_figures.trade_off_title(n_below, 3, reached, 32.0) == title


@pytest.mark.parametrize(
    ("ahead", "values", "reached", "title"),
    [
        ([True, True], [0.9], True, "At L0 = 32 both Gated SAEs recover more at every site"),
        ([True, False], [0.9], True, "At L0 = 32 both Gated SAEs recover more at 1/2 sites"),
        (
            [True, True],
            [0.9, 1.1],
            True,
            "Some SAEs improve the model's loss: recovery ranks nothing here",
        ),
        (
            [False, False],
            [np.nan],
            True,
            "Loss recovered is undefined: ablating these tokens costs too little",
        ),
        ([False, False], [0.9], False, "Not every arm has L0 = 32; loss recovered along λ"),
    ],
)
def test_loss_recovered_ranks_nothing_where_it_is_undefined_or_passes_one(
    ahead, values, reached, title
):
    result = f2_gated_figures.loss_recovered_title(
        pd.Series(ahead), pd.Series(values), reached, 32.0
    )
    assert result == title


def test_a_caption_says_what_a_value_above_one_means():
    note = f2_gated_figures.loss_recovered_note(pd.Series([True]), True, 32.0, 512, FULL)
    assert "says nothing of reconstruction" in note


def test_mean_ratios_that_are_not_reached_are_said_in_words():
    text = f2_gated_figures.mean_ratio_words(ratios_of(BETTER, UNREACHED, UNREACHED))
    assert "0.92 (Gated, two-term loss), unreached (Gated, full loss)" in text


def test_shrinkage_names_the_arm_nearest_to_one_or_says_that_an_arm_is_missing():
    values = pd.DataFrame({"plain": [0.9], "two_term": [1.2], "full": [1.02]}, index=[2])
    title = f2_gated_figures.shrinkage_title(values, 32.0)
    assert title == "L0 = 32: the full Gated SAE comes nearest to no shrinkage"
    missing = values.assign(full=np.nan)
    assert "not every arm" in f2_gated_figures.shrinkage_title(missing, 32.0)
    assert "unreached (Gated, full loss)" in f2_gated_figures.shrinkage_words(missing)


def test_a_title_names_the_l0_at_which_it_holds():
    runs = f2_gated.train(PowerLaws(), params("03_train_gated"))
    title = f2_gated_figures.matched_title(f2_gated.match(runs, 32.0), 32.0)
    assert title.startswith("At L0 = 32 the ")


def test_crosses_and_equal_are_explained_only_where_they_are_drawn():
    p = params("03_train_gated")
    runs = f2_gated.train(PowerLaws(), p)
    matched = f2_gated.match(runs, 32.0)
    ratios = f2_gated.ratios(matched, runs.sites)
    assert "Crosses" not in f2_gated_figures.matched_l0(matched, ratios, 32.0, FULL).get_supxlabel()
    matched.means.loc[("full", 2), "fvu"] = np.nan
    fig = f2_gated_figures.matched_l0(matched, ratios, 32.0, FULL)
    assert "Crosses: no λ reaches this L0." in fig.get_supxlabel()
    apart = f2_gated_figures.ratio(ratios_of(BETTER, BETTER, WORSE), matched, p, FULL)
    assert "Equal:" not in apart.get_supxlabel()
    same = f2_gated_figures.ratio(ratios_of(BETTER, EQUAL, WORSE), matched, p, FULL)
    assert "Equal: interval within" in same.get_supxlabel()


def test_the_ratios_have_a_line_where_the_rule_calls_an_arm_worse():
    p = params("03_train_gated", margin=0.04)
    matched = f2_gated.match(f2_gated.train(PowerLaws(), p), 32.0)
    fig = f2_gated_figures.ratio(ratios_of(BETTER, BETTER, WORSE), matched, p, FULL)
    for ax in fig.axes:
        lines = {line.get_label(): set(line.get_xdata()) for line in ax.lines}
        assert lines["1 + margin = 1.04"] == {1.04}


@pytest.mark.parametrize("l0", [32.0, 1e4])
def test_every_figure_is_drawn_with_a_title_of_at_most_twelve_words(l0):
    p = params("03_train_gated", l0_target=l0)
    ws = PowerLaws()
    runs = f2_gated.train(ws, p)
    matched = f2_gated.match(runs, l0)
    ratios = f2_gated.ratios(matched, runs.sites)
    points = f2_gated.curve_points(ws, runs)
    figures = [
        f2_gated_figures.trade_off(points, matched, l0, FULL),
        f2_gated_figures.loss_recovered(points, matched, l0, 512, FULL),
        f2_gated_figures.matched_l0(matched, ratios, l0, FULL),
        f2_gated_figures.ratio(ratios, matched, p, FULL),
        f2_gated_figures.shrinkage(points, matched, l0, FULL),
    ]
    for figure in figures:
        assert 3 <= len(figure.get_suptitle().split()) <= 12


def test_tables_for_reading_have_at_most_twelve_rows():
    p = params("03_train_gated", lambdas=[0.4, 0.8, 1.6, 2.5, 4.0, 8.0])
    runs = f2_gated.train(PowerLaws(), p)
    table = f2_gated_figures.curve_table(runs, 15, 32.0)
    assert len(table) <= 12
    assert list(dict.fromkeys(table.index.get_level_values("arm"))) == list(f2_gated.ARMS)
    assert len(f2_gated_figures.matched_table(f2_gated.match(runs, 32.0))) == 9
