"""The rules of F3a to F3c on hand-made estimates, and what titles and checks say."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from helpers.f3_cases import COMPARED, SCOPE, between
from helpers.f3_results import matched
from helpers.f3_sweeps import missing_at_32, sweep_of
from helpers.random_stores import D, make_store

from saelib.study import f3_layers
from saelib.study.estimate import undefined
from saelib.study.f3_layers import decide_untrained, decide_worse
from saelib.study.f3_sites import Compared, Sweep

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


# -- what is drawn and compared


def steady(arm, site, seed):
    """FVU at L0 32: each architecture, site and seed has its own."""
    return {"plain": 0.3, "two_term": 0.4, "full": 0.2}[arm] * (1 + site / 100) * 1.1**seed


def test_intervals_are_of_the_mean_over_seeds_at_one_lambda():
    rows = f3_layers.with_intervals(sweep_of(steady), 3).set_index(["arm", "site", "lambda"])
    assert len(rows) == 3 * 3 * 2 * 3
    for place, group in rows.groupby(level=[0, 1, 2]):
        assert len(group) == 3
        # pages agree, so that the interval is Student's: of three seeds 4.30 standard errors
        half = 4.303 * group["fvu"].std() / 3**0.5
        ends = (group["fvu"].mean() - half, group["fvu"].mean() + half)
        assert tuple(group[["lo", "hi"]].iloc[0]) == pytest.approx(ends, rel=0.1), place
        assert group["lo"].nunique() == group["hi"].nunique() == 1


def test_a_lambda_that_a_seed_lacks_has_no_interval():
    sweep = sweep_of(steady)
    table = sweep.table[sweep.table["run_id"] != sweep.curves["full", 15, 2].rows["run_id"].iloc[0]]
    rows = f3_layers.with_intervals(sweep._replace(table=table), 3)
    bare = rows[rows["lo"].isna()]
    assert set(zip(bare["arm"], bare["site"], bare["lambda"], strict=True)) == {("full", 15, 1.0)}
    assert sorted(bare["seed"]) == [0, 1]
    assert bare["hi"].isna().all()
    assert f3_layers.with_intervals(sweep, 2)["lo"].isna().all()


def test_pca_has_every_rank_of_each_compared_site(tmp_path):
    store = make_store(tmp_path / "store")
    table = f3_layers.pca_table(store, Compared((1, 3)))
    assert table["site"].tolist() == [1] * (D + 1) + [3] * (D + 1)
    assert table["rank"].tolist() == [*range(D + 1)] * 2
    assert table.index.is_unique
    for site, rows in table.groupby("site"):
        known, x = (
            store.rows(site, np.flatnonzero(store.mask("ordinary", s))).double()
            for s in ("train", "test")
        )
        about = (x - x.mean(0)).square().sum()
        assert rows["fvu"].iloc[0] == pytest.approx(
            float((x - known.mean(0)).square().sum() / about)
        )
        assert rows["fvu"].iloc[-1] == pytest.approx(0, abs=1e-6)
    assert set(f3_layers.pca_table(store, Compared((3,)))["site"]) == {3}


def test_the_trade_off_counts_sites_at_which_a_gated_sae_lies_below_pca():
    table = f3_layers.with_intervals(sweep_of(steady), 3)
    pca = pd.DataFrame(
        [(s, k, 1 - k / 80) for s in COMPARED.sites for k in range(80)],
        columns=["site", "rank", "fvu"],
    )
    rows = {"plain": [0.9, 1.0, 0.7], "two_term": [1.2, 0.9, np.nan], "full": [0.8, 1.1, 1.0]}
    least = pd.DataFrame(rows, index=list(COMPARED.sites)).T
    figure = f3_layers.trade_off_figure(table, pca, least, SCOPE)
    assert figure.get_suptitle().replace("\n", " ") == (
        "The plain SAE reaches below PCA of equal rank at sites 2 and 29 only"
    )
    note = figure.get_supxlabel().replace("\n", " ")
    assert "A Gated SAE lies below PCA of rank L0 at 2 of 3 sites" in note
    assert "Ordinary tokens, 3 seeds, a small model." in note
    assert SCOPE.interval in note
    assert len(figure.axes) == 3


def test_sites_are_matched_at_half_the_l0_the_l0_and_twice_the_l0():
    pca = pd.DataFrame(
        [(s, k, (s + 1) / (s + 1 + k)) for s in COMPARED.sites for k in range(50)],
        columns=["site", "rank", "fvu"],
    )
    result = f3_layers.match_sites(sweep_of(steady), pca, COMPARED, 32.0)
    assert (result.compared, result.l0_target) == (COMPARED, 32.0)
    keys = list(product(("plain", "two_term", "full"), COMPARED.sites, (16.0, 32.0, 64.0)))
    assert set(result.fvu) == set(keys)
    for arm, site, l0 in keys:
        middle = steady(arm, site, 1)  # the geometric mean of three seeds
        assert result.fvu[arm, site, l0].value == pytest.approx(middle * 32 / l0)
        rank = min(l0, 49)  # the last there is
        assert result.pca[site, l0] == pytest.approx((site + 1) / (site + 1 + rank))
    table = result.table().set_index(["arm", "site", "l0_target"])
    assert table.loc[("full", 15, 16.0), "fvu"] == pytest.approx(2 * steady("full", 15, 1))
    assert table.loc[("full", 15, 16.0), "pca_fvu"] == pytest.approx(16 / 32)
    assert result.plain(29).value == pytest.approx(steady("plain", 29, 1))
    ratio = result.ratio("two_term", 2, 64.0).value
    assert ratio == pytest.approx(1.29 / 1.02)
    assert result.ratio_table().loc[("full", 15), 32.0].startswith("1.12 [")


def test_a_seed_that_misses_the_l0_leaves_the_site_unmatched():
    sweep = missing_at_32(sweep_of(steady), ("plain", 15, 1))
    pca = pd.DataFrame({"site": COMPARED.sites, "rank": 0, "fvu": 1.0})
    result = f3_layers.match_sites(sweep, pca, COMPARED, 32.0)
    missing = {key for key, fvu in result.fvu.items() if not fvu.defined}
    assert missing == {("plain", 15, 16.0), ("plain", 15, 32.0)}
    assert f3_layers.matched_title(result) == "L0 = 32 is not reached at each site"
    assert f3_layers.matched_checks(result)[0].endswith("16 of 18 comparisons reached")
