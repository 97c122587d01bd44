"""F4: every verdict of its rule on hand-made curves, and sentences that stay true on odd models."""

import numpy as np
import pandas as pd
import pytest

from saelib.study import f4_lambda as f4
from saelib.study.estimate import Estimate, undefined
from saelib.study.f4_lambda import SiteCurve
from saelib.study.sweep import Sweep


def estimate(low, high):
    middle = (low + high) / 2
    return Estimate(np.r_[middle, np.full(100, low), middle, np.full(100, high)])


def curve(fvu=(0.2, 0.3, 0.4), l0=(90, 30, 10), first=(0.19, 0.21), last=(0.39, 0.41)):
    return SiteCurve(fvu, tuple(map(float, l0)), estimate(*first), estimate(*last))


def decide(*curves, n_seeds=3, n_pages=15):
    return f4.decide(dict(enumerate(curves)), n_seeds, n_pages)


def test_reconstruction_follows_where_each_site_is_monotone_and_its_ends_apart():
    assert decide(curve(), curve()) == "supported"


def test_one_site_whose_fvu_is_not_higher_at_the_largest_lambda_contradicts():
    assert decide(curve(), curve(fvu=(0.4, 0.5, 0.4))) == "contradicted"
    assert decide(curve(), curve(fvu=(0.4, 0.3, 0.2))) == "contradicted"


def test_an_exception_on_the_way_leaves_it_undecided():
    assert decide(curve(), curve(fvu=(0.2, 0.45, 0.4))) == "undecided"
    assert decide(curve(), curve(l0=(90, 10, 30))) == "undecided"
    assert decide(curve(), curve(l0=(90, 30, 30))) == "undecided"


def test_intervals_that_touch_are_not_disjoint():
    assert decide(curve(first=(0.19, 0.39))) == "undecided"
    assert decide(curve(first=(0.19, 0.389))) == "supported"


@pytest.mark.parametrize("small", [{"n_seeds": 2}, {"n_pages": 14}])
def test_two_seeds_or_fourteen_pages_decide_nothing(small):
    assert decide(curve(), **small) == "undecided"
    assert decide(curve(fvu=(0.4, 0.3, 0.2)), **small) == "undecided"


def test_two_lambda_or_no_site_decide_nothing():
    assert decide(curve(fvu=(0.2, 0.4), l0=(90, 10))) == "undecided"
    assert decide() == "undecided"


def test_an_undefined_fvu_decides_nothing():
    gone = SiteCurve((0.2, 0.3, np.nan), (90.0, 30.0, 0.0), estimate(0.19, 0.21), undefined(202))
    assert decide(curve(), gone) == "undecided"


def test_the_power_of_lambda_is_the_slope_between_the_ends():
    flat = SiteCurve(
        (1.0, 2.0, 4.0), (90.0, 30.0, 10.0), Estimate(np.ones(5)), Estimate(np.full(5, 4.0))
    )
    (power,) = f4.powers({2: flat}, [0.5, 2.0, 8.0]).values()
    assert power.draws == pytest.approx(np.full(5, 0.5))
    assert not f4.powers({2: flat}, [2.0])[2].defined


def test_a_sweep_from_lambda_zero_has_no_power_but_still_says_that_fvu_rises():
    lambdas = [0.0, 1.0, 2.0]
    assert not f4.powers({2: curve()}, lambdas)[2].defined
    words = f4.sentence({2: curve()}, lambdas)
    assert words.startswith("FVU is higher at the largest λ than at the smallest at every site. ")
    assert "power" not in words


def test_the_title_and_the_sentence_say_what_is_there():
    good = {2: curve(), 9: curve()}
    mixed = {2: curve(), 9: curve(fvu=(0.4, 0.3, 0.2))}
    falling = {2: curve(fvu=(0.4, 0.3, 0.2))}
    lambdas = [0.5, 2.0, 8.0]
    assert f4.title(good) == "FVU rises and L0 falls with λ at every site"
    assert f4.title(mixed) == "FVU rises and L0 falls with λ at 1 of 2 sites"
    assert f4.title(falling) == "FVU does not rise throughout with λ at any site"
    assert "at every site: on average as λ to the power 0.25" in f4.sentence(good, lambdas)
    assert "than at the smallest at site 2:" in f4.sentence(mixed, lambdas)
    assert f4.sentence(falling, lambdas) == "FVU does not rise with λ at site 2."
    assert all(len(f4.title(case).split()) <= 12 for case in (good, mixed, falling))


def test_effects_are_named_by_site_and_lambda():
    names = list(f4.estimates({2: curve()}, [0.5, 2.0, 8.0]))
    assert names == ["site 2, power of λ", "site 2, λ = 0.5", "site 2, λ = 8"]


def test_the_abstract_follows_the_verdict():
    assert f4.abstract("supported") == "Reconstruction follows the L1 coefficient (F4)."
    assert "does not follow" in f4.abstract("contradicted")
    assert "may follow" in f4.abstract("undecided")


def original(l0, fvu_all, fvu, recovered=0.9):
    columns = {"site": range(len(l0)), "lambda": 5.0, "l0": l0, "fvu_all": fvu_all, "fvu": fvu}
    return pd.DataFrame(columns | {"loss_recovered": recovered})


ROWS = pd.DataFrame({"site": [0, 1], "lambda": [1.0, 1.0], "l0": [20.0, 30.0]})
SWEPT = Sweep(ROWS, {}, lambda run: pd.DataFrame())


def test_the_original_recipe_is_summed_up_as_it_is():
    text = f4.original_summary(original([10, 100], [0.01, 0.3], [0.5, 0.3]), SWEPT)
    assert "more than any normalised one: True" in text
    assert "at 1 of 2 sites" in text
    assert "collapsed" not in text


def test_collapsed_saes_of_the_original_recipe_are_named():
    collapsed = original([0.1, 0.0], [1.0, 1.0], [1.0, 1.0], np.nan)
    assert "collapsed (fewer than one active latent per token): sites 0, 1" in f4.original_summary(
        collapsed, SWEPT
    )
    assert f4.original_table(collapsed)["loss_recovered"].tolist() == ["undefined", "undefined"]
