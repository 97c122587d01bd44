"""F4: every verdict of its rule on hand-made curves, and sentences that stay true on odd models."""

import numpy as np
import pandas as pd
import pytest
from helpers.sweeps import BY_SEED, LAMBDAS, MadeRuns, made_sweep, params

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


# Of a whole sweep

OVER_SEEDS = 1 + BY_SEED  # the mean over seeds 0, 1, 2 over that of seed 0
SCALES = {1: 4.0, 3: 0.5}


class InUnits(MadeRuns):
    """Made runs whose sites have normalisers."""

    def normalizer(self, site, mode, tokens):
        assert (mode, tokens) == ("center_scale", "ordinary")
        return None, SCALES[site]


@pytest.fixture(scope="module")
def swept():
    return made_sweep(InUnits())


def test_the_original_recipe_has_one_raw_lambda_all_tokens_and_no_normaliser():
    p = params(sites=["middle", 1], seeds=[3, 4])
    specs = f4.original_specs(MadeRuns(), p)
    assert [(spec.sae.site, spec.train.seed) for spec in specs] == [(1, 3), (1, 4), (3, 3), (3, 4)]
    assert {spec.train.lam for spec in specs} == {5.0}
    assert {(spec.sae.normalize, spec.train.tokens_mask) for spec in specs} == {("none", "all")}
    assert {(spec.arm, spec.sae.n_latents, spec.train.lr) for spec in specs} == {
        ("plain", 32, 8e-3)
    }


def test_the_sweep_and_the_original_recipe_are_both_trained_for_the_notebook_that_asks():
    ws = MadeRuns()
    trained = f4.train(ws, params(), "09_other")
    assert trained.sweep.lambdas == LAMBDAS
    assert len(trained.sweep.rows) == 2 * 3 * 3
    assert trained.original["lambda"].tolist() == [5.0] * 6
    assert trained.original["site"].tolist() == [1] * 3 + [3] * 3
    assert ws.notebooks == ["09_other"] * 2


def test_curves_rise_with_lambda_whatever_the_order_it_was_given_in(swept):
    by_site = f4.curves(swept)
    assert list(by_site) == [1, 3]
    assert by_site[1].fvu == pytest.approx(np.array([0.1, 0.2, 0.4]) * OVER_SEEDS)
    assert by_site[3].fvu == pytest.approx(np.array([0.02, 0.08, 0.32]) * OVER_SEEDS)
    assert by_site[1].l0 == [32.0, 8.0, 2.0]
    assert by_site[3].l0 == [64.0, 16.0, 4.0]
    ends = [(curve.first.value, curve.last.value) for curve in by_site.values()]
    assert ends == [pytest.approx((0.11, 0.44)), pytest.approx((0.022, 0.352))]


def test_the_finding_is_of_all_sites_and_names_its_effects_and_its_figure(swept):
    found = f4.finding(swept, "small")
    assert (found.name, found.verdict) == ("F4", "supported")
    assert found.figure == "data/small/figures/02_by_lambda.png"
    assert found.section == f4.SECTION
    assert (found.claim, found.rule) == (f4.CLAIM, f4.RULE)
    values = {name: estimate.value for name, estimate in found.estimates.items()}
    assert values == pytest.approx(
        {
            "site 1, power of λ": 0.5,
            "site 3, power of λ": 1.0,
            "site 1, λ = 1": 0.11,
            "site 1, λ = 16": 0.44,
            "site 3, λ = 1": 0.022,
            "site 3, λ = 16": 0.352,
        }
    )
    assert "λ to the power 0.50 [0.50, 0.50], 1.00 [1.00, 1.00] (sites 1, 3)" in found.sentence


@pytest.mark.parametrize(
    ("n_pages", "seeds", "verdict"),
    [(15, [0, 1, 2], "supported"), (14, [0, 1, 2], "undecided"), (20, [0, 1], "undecided")],
)
def test_the_finding_takes_three_seeds_and_fifteen_pages(n_pages, seeds, verdict):
    assert f4.finding(made_sweep(MadeRuns(n_pages), seeds=seeds), "small").verdict == verdict


def test_the_same_saes_stand_at_lambda_and_at_lambda_over_the_site_s_scale(swept):
    table = f4.in_both_units(InUnits(), swept)
    assert len(table) == 2 * 2 * 3
    normalised = table[table["panel"] == "λ in normalised units"].set_index(["site", "lambda"])
    raw = table[table["panel"] == "λ in the stream's own units"].set_index(["site", "lambda"])
    for site, lam in normalised.index:
        same = raw.loc[(site, lam / SCALES[site])]
        assert same.drop("panel").equals(normalised.loc[(site, lam)].drop("panel"))
    one = raw.loc[(1, 4.0)]
    assert one["fvu"] == pytest.approx(0.44)
    interval = swept.estimates["fvu"][1, 16.0]
    assert (one["lo"], one["hi"]) == (interval.lo, interval.hi)
    assert one["lo"] < one["fvu"] < one["hi"]


def test_the_figure_s_note_has_the_power_of_each_site_and_its_lines_their_own_lambda(swept):
    fig = f4.figure(InUnits(), swept)
    note = " ".join(fig.get_supxlabel().split())
    assert "FVU grows on average as λ to the power 0.50 (site 1), 1.00 (site 3). 3 seeds," in note
    assert "95 % bootstrap over 16 test pages and seeds." in note
    assert " ".join(fig.get_suptitle().split()) == "FVU rises and L0 falls with λ at every site"
    drawn = [
        {
            line.get_label(): line.get_xdata().tolist()
            for line in ax.lines
            if len(line.get_xdata()) == 3
        }
        for ax in fig.axes
    ]
    in_normalised = {"site 1": [1, 4, 16], "site 3": [1, 4, 16]}
    in_raw = {"site 1": [0.25, 1, 4], "site 3": [2, 8, 32]}
    assert drawn == [in_normalised, in_raw] * 2
    assert [ax.get_title(loc="left") for ax in fig.axes[:2]] == [
        "λ in normalised units",
        "λ in the stream's own units",
    ]


def test_with_one_lambda_the_power_is_undefined_under_the_figure():
    of_one = made_sweep(InUnits(), lambdas=[4.0], sites=[1])
    assert "power undefined (site 1)" in f4.figure(InUnits(), of_one).get_supxlabel()


@pytest.mark.parametrize(("l0", "count"), [(10.0, 2), (2.0, 1), (1.0, 0), (50.0, 1), (64.0, 1)])
def test_an_l0_is_reached_at_the_sites_whose_curves_hold_it(swept, l0, count):
    words = f4.reached(swept, l0)
    assert words == f"an L0 of {l0:g} lies within the sweep at {count} of 2 sites"


def test_an_l0_is_reached_where_the_curves_of_all_seeds_hold_it(swept):
    lower = (swept.rows["seed"] == 1) & (swept.rows["site"] == 3)
    rows = swept.rows.assign(l0_val=swept.rows["l0_val"] / (1 + lower))  # at most 32
    assert "at 0 of 2 sites" in f4.reached(Sweep(rows, swept.specs, swept.pages), 50.0)
