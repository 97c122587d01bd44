"""F5: curves over λ and k, architectures at one L0, items against selection, every verdict."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from helpers.f2_cases import (
    BETTER,
    EQUAL,
    FULL,
    MARGIN,
    ONE_SEED,
    TOUCHING,
    UNCLEAR,
    UNREACHED,
    WORSE,
    PowerLaws,
    estimate,
    params,
)

from saelib.study import f5_architectures as f5
from saelib.study import f5_figures, f5_findings, f5_items
from saelib.study.curve import curves_over_seeds, reach_l0
from saelib.study.estimate import constant
from saelib.study.f5_findings import decide_depth, decide_items
from saelib.study.matched import propose_k

LEVELS = {"p_anneal": 70.0, "jumprelu": 90.0, "jumprelu_tanh": 60.0}
SHARES = LEVELS | {"p_anneal": 0.28, "jumprelu": 0.2, "jumprelu_tanh": 0.26}
SHARES |= {"topk": 0.27, "batchtopk": 0.25, "matryoshka": 0.26}


class Architectures(PowerLaws):
    """Penalised arms have L0 = level / λ; of the others L0 is a little less than k."""

    def __init__(self, **options):
        super().__init__(levels=LEVELS, shares=SHARES | options)

    def _row(self, spec):
        row = super()._row(spec) if spec.arm in f5.PENALISED else self._selecting(spec)
        return row | {"fvu_val": row["fvu"], "delta_ce": 0.1, "kl": 0.1}

    def _selecting(self, spec):
        k = spec.sae.options["k"]
        like = spec._replace(sae=f5_like(spec.sae.site), train=like_plain(spec).train)
        row = super()._row(like)
        return row | {
            "run_id": self.run_id(spec),
            "arm": spec.arm,
            "lambda": 0.0,
            "l0": k * 0.99,
            "l0_val": k * 0.99,
            "fvu": self.fvu(spec),
        }

    def fvu(self, spec):
        if spec.arm in f5.PENALISED:
            return super().fvu(spec)
        depth = 1 + spec.sae.site / 30
        return self.shares[spec.arm] * depth * (32 / spec.sae.options["k"]) ** 0.3

    def pages(self, run):
        losses = {"ce_n": 100, "ce_id": 3.0, "ce_sae": 3.2, "ce_zero": 8.0, "ce_mean": 7.0}
        return super().pages(run).assign(**losses)


def f5_like(site):
    return PowerLaws().spec("plain", site, lam=1.0).sae


def like_plain(spec):
    seed = spec.train.seed
    return PowerLaws().spec("plain", spec.sae.site, lam=1.0, seed=seed)


@pytest.fixture(scope="module")
def p():
    return params(
        "07_architectures", seeds=[0, 1], sites=[2, "middle", -2], l0_targets=[16.0, 32.0, 64.0]
    )


@pytest.fixture(scope="module")
def runs(p):
    return f5.train(Architectures(), p)


@pytest.fixture(scope="module")
def matched(runs, p):
    return f5.match(runs, p.l0_targets)


# -- the search for k --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "target", "k"),
    [
        ([(32, 31.0)], 32, 34),  # 32 · 32 / 31 · 1.02, rounded up
        ([(32, 33.0)], 32, 30),
        ([(32, 31.0), (34, 33.0)], 32, None),
        ([(32, 32.0)], 32, None),
        ([(4, 3.9)], 5, 6),
        ([(1, 1.5)], 1, None),  # there is no smaller k
        ([(16, 0.0), (32, 40.0)], 32, 25),  # a point at 0 is no side
        ([(1, 0.0), (2, 5.0)], 3, None),  # 1 was tried
        ([(99, 30.0)], 50, 100),  # no k is above the number of latents
        ([(100, 30.0)], 50, None),
    ],
)
def test_k_goes_outwards_until_an_l0_lies_between_two(pairs, target, k):
    assert propose_k(pairs, target, 100) == k


@pytest.mark.parametrize(
    ("pairs", "target", "k"),
    [
        ([(16, 16.0), (64, 64.0)], 32, 32),  # the middle in logarithms
        ([(16, 12.0), (64, 48.0), (99, 80.0)], 32, 43),  # 16 · 4 ** (log(32 / 12) / log 4)
        ([(16, 16.0), (30, 28.0), (64, 64.0)], 32, 34),  # of the two nearest
        ([(16, 16.0), (30, 30.0), (64, 64.0)], 32, None),  # one is within a tenth
        ([(64, 64.0), (36, 34.0), (16, 16.0)], 32, None),
        ([(2, 2.0), (3, 3.0)], 2.5, None),  # no k lies between
        ([(2, 2.0), (4, 4.0)], 2.5, 3),
        ([(10, 60.0), (40, 10.0)], 32, 16),  # also where L0 falls as k grows
        ([(16, 16.0), (25, 70.0), (40, 64.0)], 32, None),  # 25 lies between, and it was tried
    ],
)
def test_between_two_far_l0_k_is_interpolated_until_one_is_near(pairs, target, k):
    assert propose_k(pairs, target, 100) == k


def test_no_k_is_proposed_without_a_point():
    with pytest.raises(ValueError, match="at least one pair"):
        propose_k([], 32, 100)


def test_each_of_several_l0_is_bracketed_with_a_budget_of_its_own():
    ws = Architectures()

    def make(lam):
        return ws.spec("plain", 2, lam=lam)

    (curve,) = reach_l0(ws, "07", make, {(): [2.0]}, [4.0, 40.0, 400.0], max_extra=2).values()
    assert all(len(curve.bracket(l0)) for l0 in (4.0, 40.0))
    only = reach_l0(ws, "07", make, {(): [2.0]}, 40.0, max_extra=2)
    assert len(curve.rows) > len(only[()].rows)


def test_one_l0_is_the_same_as_a_list_of_it():
    def make(seed, lam):
        return ws.spec("plain", 2, lam=lam, seed=seed)

    settings = []
    for target in (40.0, [40.0]):
        ws = Architectures()
        curves = curves_over_seeds(ws, "07", make, {(): [2.0]}, [0, 1], target)
        settings.append({key: list(curve.knob) for key, curve in curves.items()})
    assert settings[0] == settings[1]


def test_selecting_arms_are_searched_over_k_and_the_others_over_lambda(runs, p):
    top = runs.curves["topk", 2, 0]
    assert {16.0, 32.0, 64.0} < set(top.knob)
    assert max(top.rows["l0_val"]) >= 64  # 64 latents fall short of L0 64, so a larger k follows
    assert set(top.rows["lambda"]) == {0.0}
    plain = runs.curves["plain", 2, 0]
    assert list(plain.knob) == list(plain.rows["lambda"])


def test_a_second_seed_is_trained_at_the_settings_around_each_l0_alone(runs):
    first, second = (runs.curves["topk", 2, seed] for seed in (0, 1))
    assert set(second.knob) <= set(first.knob)
    assert all(len(second.bracket(l0)) for l0 in (16.0, 32.0, 64.0))


# -- at equal L0 -------------------------------------------------------------------------------


def test_architectures_are_compared_at_one_l0(matched):
    assert matched.unreachable == []
    law = (0.3 * (80 / 32) ** 0.2, 0.25 * (100 / 32) ** 0.2)
    assert matched.ratio("full", "plain", 2, 32.0).value == pytest.approx(law[1] / law[0])
    cell = matched.ratio("batchtopk", "topk", 29, 32.0)
    assert cell.value == pytest.approx(0.25 / 0.27)
    assert matched.middle_l0 == 32.0


def test_the_gap_is_the_deepest_site_over_the_one_before(matched):
    gap = f5.gaps(matched)["topk", 32.0]
    assert gap.value == pytest.approx((1 + 29 / 30) / (1 + 15 / 30))
    assert f5.gaps(matched)["plain", 32.0].value == pytest.approx(1.0)
    middle = f5.middle_gaps(matched)
    assert list(middle) == list(f5.ARMS)
    assert middle["topk"].value == gap.value


def test_an_l0_that_is_not_reached_is_named(runs):
    far = f5.match(runs, [1e5])
    assert "plain at site 2, L0 100000" in far.unreachable
    assert "0 of 24 cells reached" in f5.reached_words(far)
    assert f5.best_arm(runs, 1e5) is None
    assert f5_findings.abstract(far) is None
    assert f5_figures.least_title(far) == "No architecture has L0 = 100000 at every site"


def test_the_best_architecture_is_chosen_on_validation_pages(p):
    runs = f5.train(Architectures(), p)
    assert f5.best_arm(runs, 32.0) == "jumprelu"
    for (arm, _, _), curve in runs.curves.items():
        if arm == "topk":
            curve.rows["fvu_val"] = 0.01  # what test pages say does not count
    assert f5.best_arm(runs, 32.0) == "topk"


def test_abstract_and_title_say_who_leaves_least_on_test_pages(p):
    runs = f5.train(Architectures(), p)
    for (arm, _, _), curve in runs.curves.items():
        if arm == "topk":
            curve.rows["fvu_val"] = 0.01  # what validation pages say does not count here
    matched = f5.match(runs, p.l0_targets)
    assert f5.best_arm(runs, 32.0) == "topk"
    assert f5.leaders(matched) == ["jumprelu"]
    assert f5_figures.least_title(matched) == "At L0 = 32 JumpReLU leaves the least unexplained"
    assert f5_findings.abstract(matched) == (
        "Of 8 kinds of SAE at L0 32, JumpReLU leaves least on test pages: 0.68, 0.68, 0.68 times "
        "the plain SAE's FVU (sites 2, 15, 29)."
    )


def test_two_that_are_not_apart_are_named_by_both(p):
    alone = params("07_architectures", sites=[2], l0_targets=[32.0], seeds=[0, 1])
    runs = f5.train(Architectures(topk=0.2, batchtopk=0.2), alone)
    matched = f5.match(runs, alone.l0_targets)
    for seed in (0, 1):
        matched.per_seed["topk", 2, 32.0][seed] = matched.per_seed["batchtopk", 2, 32.0][seed]
    matched.log_fvu["topk", 2, 32.0] = matched.log_fvu["batchtopk", 2, 32.0]
    assert f5.leaders(matched) == ["topk", "batchtopk"]
    title = f5_figures.least_title(matched)
    assert title == "At L0 = 32 TopK and BatchTopK leave the least unexplained"
    assert "TopK and BatchTopK leave least on test pages: 0." in f5_findings.abstract(matched)
    matched.log_fvu["topk", 2, 32.0] = matched.log_fvu["plain", 2, 32.0]
    matched.log_fvu["plain", 2, 32.0] = matched.log_fvu["batchtopk", 2, 32.0]
    assert f5_findings.abstract(matched) is None  # the plain SAE is one of the two


def test_the_interval_of_a_mean_over_seeds_is_students():
    values = np.array([1.0, 2.0, 3.0])
    assert f5.half_interval(values) == pytest.approx(4.302653 / 3**0.5, rel=1e-4)
    assert np.isnan(f5.half_interval(np.array([1.0])))


# -- verdicts ----------------------------------------------------------------------------------

DECIDE = {
    "better": f5_findings.decide_better,
    "level": f5_findings.decide_level,
    "cost": f5_findings.decide_cost,
    "half": f5_findings.decide_half,
}


@pytest.mark.parametrize(
    ("rule", "cases", "verdict"),
    [
        ("better", [BETTER, BETTER, EQUAL], "supported"),
        ("better", [EQUAL, WORSE, BETTER], "contradicted"),
        ("better", [UNCLEAR, UNCLEAR, BETTER], "undecided"),
        ("better", [UNREACHED, UNREACHED, BETTER], "undecided"),
        ("better", [BETTER, WORSE], "undecided"),
        ("better", [], "undecided"),
        ("level", [EQUAL, EQUAL, BETTER], "supported"),
        ("level", [BETTER, WORSE, EQUAL], "contradicted"),
        ("level", [UNCLEAR, EQUAL, TOUCHING], "undecided"),
        ("cost", [WORSE, WORSE, BETTER], "supported"),
        ("cost", [EQUAL, BETTER, WORSE], "contradicted"),
        ("cost", [TOUCHING, TOUCHING, WORSE], "undecided"),  # it begins at 1 + margin
        ("half", [EQUAL, BETTER, WORSE], "supported"),
        ("half", [WORSE, WORSE, EQUAL], "contradicted"),
        ("half", [UNCLEAR, WORSE, EQUAL], "undecided"),
    ],
)
def test_a_verdict_follows_most_cells(rule, cases, verdict):
    assert DECIDE[rule](cases, MARGIN, 3, 22) == verdict
    assert DECIDE[rule](cases, MARGIN, 2, 22) == "undecided"
    assert DECIDE[rule](cases, MARGIN, 3, 14) == "undecided"


@pytest.mark.parametrize(
    ("gap", "verdict"),
    [
        ({"plain": WORSE, "topk": EQUAL}, "supported"),
        ({"plain": WORSE, "topk": WORSE}, "contradicted"),
        ({"plain": WORSE, "topk": UNREACHED}, "undecided"),
        ({"plain": EQUAL, "topk": EQUAL}, "undecided"),  # there is no gap to close
        ({"plain": UNREACHED, "topk": EQUAL}, "undecided"),
        ({"plain": WORSE, "topk": UNCLEAR}, "undecided"),
        ({}, "undecided"),
    ],
)
def test_one_architecture_that_closes_the_gap_is_enough(gap, verdict):
    assert decide_depth(gap, MARGIN, 3, 22) == verdict
    assert decide_depth(gap, MARGIN, 1, 22) == "undecided"


def test_where_the_plain_sae_is_best_nothing_is_said_of_items():
    assert decide_items([BETTER], "plain", MARGIN, 3, 22) == "undecided"
    assert decide_items([BETTER], "topk", MARGIN, 3, 22) == "supported"
    assert decide_items([EQUAL], "topk", MARGIN, 3, 22) == "contradicted"


# -- findings, sentences, figures --------------------------------------------------------------


@pytest.fixture
def items():
    values = {"plain": (0.3, 0.2), "topk": (0.27, 0.2), "jumprelu": (0.24, 0.15)}
    by_seed = {}
    for arm, (encoder, pursuit) in values.items():
        for site in (2, 29):
            by_seed[arm, site, "encoder"] = [estimate(encoder, encoder - 0.01, encoder + 0.01)]
            by_seed[arm, site, "pursuit"] = [estimate(pursuit, pursuit - 0.01, pursuit + 0.01)]
    return f5_items.Items(by_seed, 22)


def test_six_findings_say_their_numbers(runs, matched, items, p):
    found = f5_findings.findings(runs, matched, items, p, FULL)
    assert [one.name for one in found] == ["F5a", "F5b", "F5c", "F5d", "F5e", "F5f"]
    by_name = {one.name: one for one in found}
    assert "0.93" in by_name["F5b"].sentence
    assert by_name["F5b"].verdict == "supported"
    assert by_name["F5d"].verdict == "supported"  # 0.26 / 0.25 = 1.04, and no spread
    assert "JumpReLU" in by_name["F5f"].sentence
    assert "0.75 [" in by_name["F5f"].sentence  # 0.15 / 0.2 under pursuit
    few = f5_findings.findings(runs, matched, items, p, ONE_SEED)
    assert {one.verdict for one in few} == {"undecided"}


def test_without_a_half_of_an_l0_or_a_second_site_a_claim_does_not_apply(p):
    alone = params("07_architectures", sites=[2], l0_targets=[32.0], seeds=[0, 1, 2])
    runs = f5.train(Architectures(), alone)
    matched = f5.match(runs, alone.l0_targets)
    found = f5_findings.findings(runs, matched, f5_items.Items({}, 0), alone, FULL)
    by_name = {one.name: one for one in found}
    assert "cannot be judged here" in by_name["F5a"].sentence
    assert by_name["F5a"].verdict == "undecided"
    assert "One site" in by_name["F5e"].sentence
    assert by_name["F5e"].verdict == "undecided"
    assert f5_figures.gap_title(matched, MARGIN) == "One site has no gap to another"


def test_pursuit_over_the_same_dictionary_splits_an_error(items):
    assert items.encoder_loss("plain", 2).value == pytest.approx(1.5)
    assert items.ratio("jumprelu", "plain", 2, "pursuit").value == pytest.approx(0.75)
    table = f5_items.table(items)
    assert table.loc[(2, "plain"), "encoder ÷ pursuit"].startswith("1.50")


def test_titles_follow_the_numbers(matched, items):
    assert f5_figures.least_title(matched) == "At L0 = 32 JumpReLU leaves the least unexplained"
    assert "of 7 architectures" in f5_figures.ratio_title(f5.ratios(matched), matched, MARGIN)
    assert (
        f5_figures.items_title(items)
        == "Architectures differ in their dictionaries more than in FVU"
    )
    assert f5_figures.items_title(f5_items.Items({}, 0)).startswith("Too few architectures")
    same = {key: [constant(0.2)] for key in items.by_seed if key[2] == "pursuit"}
    apart = f5_items.Items({**items.by_seed, **same}, 22)
    assert "in their encoders more" in f5_figures.items_title(apart)


def test_every_figure_is_drawn(runs, matched, items):
    ratios = f5.ratios(matched)
    points = runs.rows
    points = points.assign(**{"lambda": points["knob"]})
    draw = [
        partial(f5_figures.trade_off, points, matched, FULL),
        partial(f5_figures.ratio, ratios, matched, MARGIN, FULL),
        partial(f5_figures.by_site, matched, FULL),
        partial(f5_figures.gap, matched, MARGIN, FULL),
        partial(f5_figures.items, items, 32.0, FULL),
    ]
    for one in draw:
        fig = one()
        assert fig.get_suptitle()


def test_a_reader_sees_every_architecture_at_each_site(matched):
    table = f5.matched_table(matched, 32.0)
    assert len(table) == 3 * len(f5.ARMS)
    assert "±" in table.loc[(2, "TopK"), "ΔCE (nats)"]
    rows = f5.matched_rows(matched)
    assert isinstance(rows, pd.DataFrame)
    assert len(rows) == 3 * 3 * len(f5.ARMS)
