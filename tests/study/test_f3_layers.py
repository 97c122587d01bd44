"""The rules of F3a to F3c on hand-made estimates, and what titles and checks say."""

import numpy as np
import pandas as pd
import pytest
from helpers.f3_cases import COMPARED, SCOPE, between
from helpers.f3_results import matched

from saelib.study import f3_layers
from saelib.study.estimate import undefined
from saelib.study.f3_layers import decide_untrained, decide_worse
from saelib.study.f3_sites import Sweep

MARGIN = 0.03


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([between(1.2, 1.4), between(1.05, 1.1)], "supported"),
        ([between(1.2, 1.4), between(0.9, 1.0)], "contradicted"),
        ([between(1.2, 1.4), between(1.0, 1.1)], "undecided"),
        ([between(1.03, 1.1)], "undecided"),  # touches the margin from above
        ([between(0.9, 1.03)], "undecided"),  # and from below
        ([between(1.2, 1.4), undefined()], "undecided"),
    ],
)
def test_worse_than_each_shallower_site_is_judged_by_the_interval_that_is_lowest(ratios, verdict):
    assert decide_worse(ratios, MARGIN, n_seeds=3, n_pages=15) == verdict


@pytest.mark.parametrize(("n_seeds", "n_pages"), [(2, 20), (3, 14), (1, 3)])
def test_two_seeds_or_fourteen_pages_decide_nothing(n_seeds, n_pages):
    clear = between(2, 3)
    assert decide_worse([clear], MARGIN, n_seeds, n_pages) == "undecided"
    assert decide_untrained(between(0.9, 0.95), clear, n_seeds, n_pages) == "undecided"


def test_a_collapsed_recipe_is_not_judged():
    assert decide_worse([between(2, 3)], MARGIN, 3, 20, collapsed=[29]) == "undecided"


@pytest.mark.parametrize(
    ("left", "recovered", "verdict"),
    [
        (between(0.3, 0.4), between(0.7, 0.8), "contradicted"),
        (between(0.85, 0.9), between(0.7, 0.8), "supported"),
        (between(0.3, 0.4), between(0.3, 0.4), "supported"),
        (between(0.7, 0.9), between(0.7, 0.8), "undecided"),
        (between(0.7, 0.8), between(0.5, 0.8), "undecided"),  # both touch their limits
        (between(0.3, 0.4), undefined(), "undecided"),
        (between(0.85, 0.9), undefined(), "supported"),
        (undefined(), undefined(), "undecided"),
    ],
)
def test_does_not_train_is_judged_by_variance_and_by_loss(left, recovered, verdict):
    assert decide_untrained(left, recovered, n_seeds=3, n_pages=15) == verdict


@pytest.mark.parametrize(
    ("deep", "words"),
    [
        (between(0.4, 0.5), "worse than site 15"),
        (between(0.1, 0.2), "better than site 15"),
        (between(0.2, 0.4), "cannot be told apart"),
        (undefined(), "L0 = 32 is not reached"),
    ],
)
def test_the_title_at_matched_l0_says_which_way_the_sites_differ(deep, words):
    title = f3_layers.matched_title(matched(deep))
    assert words in title
    assert len(title.split()) <= 12


def test_comparisons_that_reach_no_l0_are_counted_and_not_judged():
    lines = f3_layers.matched_checks(matched(undefined()))
    assert "0 of 18 comparisons reached" in lines[0]
    assert lines[1].endswith("0 of 0")
    assert lines[2].endswith("0 of 0 architectures that reach it")
    lines = f3_layers.matched_checks(matched(between(0.4, 0.5)))
    assert lines[1].endswith("18 of 18")
    assert lines[2].endswith("3 of 3 architectures that reach it")


def test_the_table_of_ratios_has_a_row_for_each_architecture_and_shallower_site():
    table = matched(undefined()).ratio_table()
    assert table.shape == (6, 3)
    assert (table == "L0 not reached").all(axis=None)


@pytest.mark.parametrize(
    ("plain", "words"),
    [
        ((0.9, 0.8, 0.7), "at each site"),
        ((0.9, 1.2, 0.7), "at sites 2 and 29 only"),
        ((1.1, 1.2, np.nan), "at no site"),
    ],
)
def test_the_title_beside_pca_names_the_sites_that_lie_below(plain, words):
    rows = {"plain": plain, "two_term": (0.9, 0.9, 0.9), "full": (0.9, 0.9, 0.9)}
    least = pd.DataFrame(rows, index=list(COMPARED.sites)).T
    assert words in f3_layers.trade_off_title(least)


def test_collapsed_codes_are_neither_below_nor_above_pca():
    rows = [("plain", site, lam, 0, l0, 0.2) for site in (2, 15, 29) for lam, l0 in [(1.0, 0.5)]]
    names = ["arm", "site", "lambda", "seed", "l0", "fvu"]
    pca = pd.DataFrame({"site": [2, 15, 29], "rank": 1, "fvu": 0.5})
    least = f3_layers.least_over_pca(pd.DataFrame(rows, columns=names), pca, COMPARED)
    assert least.isna().all(axis=None)
    assert "at no site" in f3_layers.trade_off_title(least)


def test_the_least_fvu_over_that_of_pca_is_a_mean_over_seeds_on_the_ratio_s_scale():
    """PCA's FVU between ranks lies on the line: at L0 2 and 4 it is 0.5 and 0.4."""
    names = ["arm", "site", "lambda", "seed", "l0", "fvu"]
    rows = [
        *[("plain", 2, 1.0, 0, 4.0, 0.2), ("plain", 2, 1.0, 1, 4.0, 0.8)],  # ratios 0.5 and 2
        *[("plain", 2, 2.0, 0, 2.0, 0.3), ("plain", 2, 2.0, 1, 2.0, 0.3)],  # 0.6 and 0.6
        ("plain", 2, 3.0, 0, 2.0, 0.01),  # a λ that one seed has
    ]
    pca = pd.DataFrame({"site": 2, "rank": [0, 4], "fvu": [0.6, 0.4]})
    least = f3_layers.least_over_pca(pd.DataFrame(rows, columns=names), pca, COMPARED)
    assert least.loc["plain", 2] == pytest.approx(0.6)
    assert least.loc["plain", [15, 29]].isna().all()


def test_pca_of_more_ranks_than_dimensions_is_the_last():
    pca = pd.DataFrame({"site": 2, "rank": [0, 1, 2], "fvu": [1.0, 0.4, 0.0]})
    assert f3_layers.pca_fvu(pca, 2, 1.2) == 0.4
    assert f3_layers.pca_fvu(pca, 2, 32.0) == 0.0


def test_the_figure_at_matched_l0_stands_where_no_l0_is_reached():
    figure = f3_layers.matched_figure(matched(undefined(), undefined()), SCOPE)
    assert "not reached" in figure.get_suptitle()


def test_a_loss_that_is_undefined_is_no_site_that_does_not_train():
    rows = [
        ("plain", site, 0, lam, fvu, loss)
        for site, loss in {2: 0.8, 15: 0.2, 29: np.nan}.items()
        for lam, fvu in {1.0: 0.3, 2.0: 0.6}.items()
    ]
    columns = ["arm", "site", "seed", "lambda", "fvu", "loss_recovered_mean"]
    sweep = Sweep(pd.DataFrame(rows, columns=columns), {})
    least = pd.DataFrame(0.9, index=["plain"], columns=list(COMPARED.sites))
    lines = f3_layers.trade_off_checks(sweep, COMPARED, least)
    assert lines[1].endswith("1 of 2 sites (loss recovered undefined at 1)")
