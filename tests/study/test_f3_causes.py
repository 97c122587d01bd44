"""The rule of F3f on hand-made gaps, and the division of a gap by cause."""

import numpy as np
import pandas as pd
import pytest
from helpers.f3_cases import COMPARED, SCOPE, between, params
from helpers.f3_results import EFFECTS, division
from helpers.f3_sweeps import Quick, line, pages

from saelib.sae.spec import make_spec
from saelib.study import f3_causes
from saelib.study.estimate import Estimate, constant, undefined
from saelib.study.f3_causes import ALL, NONE, Division, Trained, decide
from saelib.study.shapley import coalitions, recipe_of

MARGIN = 0.03


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (between(0.5, 0.6), constant(0.2), "supported"),
        (between(-0.6, -0.5), constant(0.3), "contradicted"),
        (between(0.2, 0.5), constant(0.2), "undecided"),
        (between(0.03, 0.06), constant(0.0), "undecided"),  # touches the margin
        (between(-0.1, 0.03), constant(0.0), "undecided"),
        (between(0.5, 0.6), undefined(), "undecided"),
    ],
)
def test_the_causes_are_judged_by_how_much_of_the_gap_they_remove(before, after, verdict):
    assert decide(before, after, MARGIN, n_seeds=3, n_pages=15) == verdict


@pytest.mark.parametrize(
    ("n_seeds", "n_pages", "collapsed"), [(2, 20, ()), (3, 14, ()), (3, 20, (15,))]
)
def test_few_seeds_few_pages_and_collapsed_saes_decide_nothing(n_seeds, n_pages, collapsed):
    gap = between(0.5, 0.6)
    assert decide(gap, constant(0.0), MARGIN, n_seeds, n_pages, collapsed) == "undecided"


def test_each_cause_gets_its_own_effect_where_effects_add_up():
    result = division(EFFECTS, first=-0.5)
    shares = {cause: share.value for cause, share in result.shares().items()}
    assert shares == pytest.approx(EFFECTS)
    assert result.after.value == pytest.approx(0.25)
    assert list(result.steps()) == [
        f3_causes.FIRST,
        "sinks masked",
        "mean taken off",
        "scaled, site by site",
        "L0 matched",
        f3_causes.LAST,
    ]
    assert f3_causes.checks(result)[:2] == [
        "the gap is known for all 16 sets of causes",
        "the four changes add up: True",
    ]


@pytest.mark.parametrize(
    ("first", "effects", "words"),
    [
        (-0.5, EFFECTS, "from better to worse, mostly by matching L0"),
        (0.5, {name: -x for name, x in EFFECTS.items()}, "from worse to better"),
        (0.5, EFFECTS, "stays worse than site 15; matching L0 moves most"),
        (-5.0, EFFECTS, "Of four causes matching L0"),
    ],
)
def test_the_title_says_what_the_causes_do_to_the_gap(first, effects, words):
    title = f3_causes.title(division(effects, first))
    assert words in title
    assert len(title.split()) <= 12


def without(result, coalition):
    """The division with one coalition's L0 unreached."""
    keys = [key for key in result.log_fvu if key[0] == coalition]
    return Division(
        result.log_fvu | dict.fromkeys(keys, undefined()), result.seeds, result.compared
    )


def test_an_unreached_coalition_is_said_in_title_table_and_check():
    result = without(division(EFFECTS), ALL)
    assert "L0 is not reached" in f3_causes.title(result)
    assert f3_causes.checks(result)[0].startswith("the gap is known for 15 of 16 sets of causes")
    assert f3_causes.checks(result)[1].endswith("cannot be checked")
    assert (f3_causes.text_table(result).iloc[1:] == "L0 not reached").all(axis=None)
    assert "undivided, as 1 of 16 sets of causes miss the L0" in f3_causes.sentence(result)
    figure = f3_causes.figure(result, params(), SCOPE)
    assert "not reached" in figure.get_suptitle()


def words_under(figure):
    return figure.get_supxlabel().replace("\n", " ")


def test_the_figure_leads_from_the_first_gap_to_the_last_where_all_changes_are_known():
    whole = division(EFFECTS)
    drawn = f3_causes.figure(whole, params(), SCOPE)
    assert "Each change starts where the bar above ends" in words_under(drawn)
    assert "Dark lines across a bar's end: 95 % bootstrap" in words_under(drawn)
    bars = drawn.axes[0].patches
    assert len(bars) == 6  # two gaps, four changes between them
    assert bars[1].get_x() == pytest.approx(whole.before.value)
    broken = f3_causes.figure(without(whole, ALL), params(), SCOPE)
    assert not broken.axes[0].patches
    assert "bar above" not in words_under(broken)
    missing = [text for text in broken.axes[0].texts if text.get_text() == "L0 not reached"]
    assert len(missing) == 5
    assert all(text.get_bbox_patch().get_facecolor()[:3] == (1, 1, 1) for text in missing)


def test_a_collapsed_original_recipe_is_named_in_the_sentence():
    rows = pd.DataFrame({"site": [15, 29], "l0": [0.1, 40.0]})
    collapsed = f3_causes.collapsed(Trained({}, {}, rows))
    assert collapsed == [15]
    assert "at 15 have collapsed" in f3_causes.sentence(division(EFFECTS), collapsed)
    assert "collapsed" not in f3_causes.sentence(division(EFFECTS))


def test_no_gap_to_divide_is_said():
    wide = {key: between(-1.0, 1.0) for key in division(EFFECTS).log_fvu}
    wide |= {key: constant(0.0) for key in wide if key[1] == COMPARED.near}
    assert "no gap to divide" in f3_causes.checks(Division(wide, (0,), COMPARED))[2]


def test_a_seed_has_its_own_division():
    result = division(EFFECTS, first=-0.5, seeds=(0, 1))
    table = f3_causes.seed_table(result)
    assert len(table) == 2 * 6
    assert table["value"].iloc[0] == pytest.approx(-0.5)


class Recorder:
    """A workspace that trains nothing and keeps what it is asked for."""

    n_layers = 30

    def __init__(self):
        self.asked = []

    def spec(self, arm, site, **settings):
        return make_spec(arm, site, 8, **settings)

    def normalizer(self, site, mode, tokens):
        return None, 2.0 if "scale" in mode else 1.0

    def measuring(self, evaluation):
        assert evaluation.ce_tokens == 0
        return self

    def train(self, specs, notebook):
        self.asked += specs
        lams = [spec.train.lam for spec in specs]
        l0 = [100 / lam for lam in lams]
        rows = {"site": [spec.sae.site for spec in specs], "lambda": lams, "l0_val": l0, "l0": l0}
        return pd.DataFrame(rows)

    def pages(self, run):
        raise AssertionError("nothing is measured while training is counted")


def test_training_asks_for_eight_coalitions_once_at_the_recipe_and_along_lambda():
    ws = Recorder()
    trained = f3_causes.train(ws, params(cause_lambdas=[2.0, 6.0]), COMPARED)
    assert len(trained.at_recipe) == 8 * 2
    assert len(trained.curves) == 8 * 2
    assert set(trained.original["site"]) == {15, 29}
    plain = [spec for spec in ws.asked if spec.sae.normalize == "none"]
    # a λ in raw units is half as large where normalised rows are scaled by 2
    assert {spec.train.lam for spec in plain} >= {5.0, 1.0, 3.0}
    assert all(spec.train.tokens == 320 for spec in ws.asked)


def test_the_recipe_keeps_its_raw_lambda_until_rows_are_scaled():
    p = params()
    assert f3_causes.recipe_lambda(p, NONE) == 5.0
    assert f3_causes.recipe_lambda(p, frozenset({"scale"})) == 2.5


def test_a_gap_without_an_interval_is_not_said_to_be_none():
    bare = Estimate(np.r_[0.4, np.full(1000, np.nan)])
    few = {key: constant(0.0) for key in division(EFFECTS).log_fvu}
    few |= {key: bare for key in few if key[1] == COMPARED.deep}
    assert "a gap without an interval" in f3_causes.checks(Division(few, (0,), COMPARED))[2]
    clear = {key: constant(0.4 * (key[1] == COMPARED.deep)) for key in few}
    assert f3_causes.checks(Division(clear, (0,), COMPARED))[2].endswith("is a gap to divide")


# -- what the gap is made of, from page sums and curves


TWO_SEEDS = (3, 4)
RAW = [coalition for coalition in coalitions() if "match" not in coalition]


def log_fvu(coalition, site, seed):
    """log FVU at the recipe's λ: the deep site begins 0.2 worse, causes add `EFFECTS` there."""
    start = -1.0 + (0.01 if seed == 4 else 0.0)
    if site == COMPARED.near:
        return start - 0.05 * len(coalition)
    return start + 0.2 + sum(EFFECTS[cause] for cause in coalition) - 0.05 * len(coalition)


def measured_causes(unreached=()):
    """SAEs at the recipe's λ; at L0 32 curves have e^0.5 times their FVU at the deep site."""
    keys = [(c, site, seed) for c in RAW for site in COMPARED.pair for seed in TWO_SEEDS]
    at_recipe, curves = {}, {}
    for key in keys:
        rise = EFFECTS["match"] if key[1] == COMPARED.deep else 0.0
        at_l0 = float(np.exp(log_fvu(*key) + rise))
        lines = [line("plain", key[1], key[2], 1.0, 64.0, at_l0 / 2)]
        lines += [line("plain", key[1], key[2], 2.0, 16.0, at_l0 * 2)]
        rows = pd.DataFrame(lines)
        if key in unreached:
            rows = rows.assign(l0_val=[64.0, 40.0])
        curves[key] = Quick(rows, pages)
        lam = 3.0 if "scale" in key[0] else 5.0
        at_recipe[key] = make_spec("plain", key[1], 8, seed=key[2], lam=lam, **recipe_of(key[0]))
    return Trained(at_recipe, curves, pd.DataFrame())


class Measured:
    """A workspace that holds page sums without a loss; a spec's FVU is `log_fvu` of its key."""

    def __init__(self, trained):
        self.keys = {spec: key for key, spec in trained.at_recipe.items()}
        self.loss_tokens = []

    def measuring(self, evaluation):
        self.loss_tokens.append(evaluation.ce_tokens)
        return self

    def pages(self, spec):
        return pages(f"at the recipe {float(np.exp(log_fvu(*self.keys[spec])))!r}")


def test_a_gap_is_divided_between_saes_at_the_recipe_s_lambda_and_curves_at_the_l0():
    trained = measured_causes()
    ws = Measured(trained)
    p = params(cause_seeds=list(TWO_SEEDS), l0_target=32.0)
    result = f3_causes.divide_gap(ws, p, trained, COMPARED)
    assert (result.seeds, result.compared) == (TWO_SEEDS, COMPARED)
    assert ws.loss_tokens == [0]
    assert set(result.log_fvu) == {
        (c, site, seed) for c in coalitions() for site in COMPARED.pair for seed in TWO_SEEDS
    }
    for (coalition, site, seed), found in result.log_fvu.items():
        rise = EFFECTS["match"] if "match" in coalition and site == COMPARED.deep else 0.0
        expected = log_fvu(coalition - {"match"}, site, seed) + rise
        assert found.value == pytest.approx(expected), (coalition, site, seed)
    assert result.before.value == pytest.approx(0.2)
    assert result.after.value == pytest.approx(0.2 + sum(EFFECTS.values()))


def test_the_same_division_is_made_at_each_site():
    result = division(EFFECTS, first=0.2)
    shares = {
        site: {cause: share.value for cause, share in result.site_shares(site).items()}
        for site in COMPARED.pair
    }
    assert shares[29] == pytest.approx(EFFECTS)
    assert shares[15] == pytest.approx(dict.fromkeys(EFFECTS, 0.0))
    texts = f3_causes.text_table(result)
    assert texts["at site 29"].tolist() == ["-0.80", "+0.30", "-0.10", "+0.05", "+0.50", "-0.05"]
    assert texts["at site 15"].tolist() == ["-1.00", *["+0.00"] * 4, "-1.00"]


def test_curves_that_reach_the_l0_are_counted():
    missed = [(NONE, 15, 3), (frozenset({"scale"}), 29, 4)]
    p = params(cause_seeds=list(TWO_SEEDS), l0_target=32.0)
    assert f3_causes.reach_line(p, measured_causes(missed)) == (
        "8 recipes × 2 sites × 2 seeds: 30 of 32 curves of λ reach L0 = 32"
    )
    one = f3_causes.reach_line(params(cause_seeds=[3], l0_target=64.0), measured_causes())
    assert one == "8 recipes × 2 sites × 1 seed: 32 of 32 curves of λ reach L0 = 64"
