"""F2a to F2c: what is trained, how arms compare at one L0, and every verdict of the rule."""

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

from saelib.study import f2_gated, finding
from saelib.study.estimate import constant
from saelib.study.f2_gated import PAIRS


@pytest.fixture
def p():
    return params("03_train_gated", seeds=[0, 1])


@pytest.fixture
def runs(p):
    return f2_gated.train(PowerLaws(), p)


def test_the_fewest_test_pages_count(runs):
    assert runs.n_pages == 22
    next(iter(runs.curves.values())).rows["n_test_pages"] = 14
    assert runs.n_pages == 14


def test_every_arm_begins_at_its_own_lambdas_with_three_digits():
    p = params("03_train_gated", lambdas=[1.23456], lambdas_two_term=[0.0123456], lam_full=1.6)
    expected = {"plain": [1.23], "two_term": [0.0123], "full": [1.98]}
    assert f2_gated.arm_lambdas(p) == expected


def test_the_grid_is_trained_at_every_site_arm_seed_and_lambda(p):
    specs = f2_gated.grid_specs(PowerLaws(), p)
    assert len(specs) == 3 * 3 * 2 * 3
    assert {spec.sae.site for spec in specs} == {2, 15, 29}
    assert {spec.arm for spec in specs} == set(f2_gated.ARMS)


def test_training_asks_for_the_grid_and_for_more_where_an_l0_is_not_bracketed(p):
    ws = PowerLaws(levels={"two_term": 0.8})
    runs = f2_gated.train(ws, p)
    assert {ws.run_id(spec) for spec in f2_gated.grid_specs(ws, p)} <= set(ws.trained)
    assert len(runs.curves["two_term", 2, 0].rows) > 3
    assert len(runs.curves["plain", 2, 0].rows) == 3


def test_the_middle_site_is_the_models_where_it_is_compared_else_the_middle_one(p):
    assert f2_gated.middle_site(PowerLaws(), p) == 15
    others = params("03_train_gated", sites=[2, 5, 29])
    assert f2_gated.middle_site(PowerLaws(), others) == 5


def test_arms_are_read_at_the_l0_of_the_comparison(runs):
    matched = f2_gated.match(runs, 32.0)
    at_l0 = 0.3 * (80 / 32) ** 0.2
    mean = at_l0 * np.exp(np.log([1.0, 1.01]).mean())
    assert matched.means["fvu"]["plain", 2] == pytest.approx(mean)
    assert matched.means["lambda"]["plain", 2] == pytest.approx(80 / 32)
    assert matched.reached
    assert matched.unreachable == []


def test_an_arm_without_that_l0_is_unreachable_and_its_ratios_undefined(runs):
    matched = f2_gated.match(runs, 1e4)
    assert not matched.reached
    assert "plain at site 2" in matched.unreachable
    ratios = f2_gated.ratios(matched, runs.sites)
    assert not any(ratio.defined for ratio in ratios.values())
    assert set(f2_gated.ratio_table(ratios, MARGIN)["compared"]) == {"unreachable"}
    assert f2_gated.abstract(ratios) is None


def test_ratios_compare_arms_trained_with_the_same_seeds(runs):
    matched = f2_gated.match(runs, 32.0)
    ratios = f2_gated.ratios(matched, runs.sites)
    full = (0.25 * (100 / 32) ** 0.2) / (0.3 * (80 / 32) ** 0.2)
    assert ratios["full", "plain", 2].value == pytest.approx(full)
    assert f2_gated.mean_ratio(ratios, ("full", "plain")) == pytest.approx(full)
    single = f2_gated.seed_ratios(matched, runs.sites)
    assert len(single) == 3 * 3 * 2
    assert single["value"][2] == pytest.approx(ratios["two_term", "plain", 15].value)


def test_the_interval_of_a_lambda_that_only_some_seeds_have_is_undefined(p):
    ws = PowerLaws()
    runs = f2_gated.train(ws, p)
    curve = runs.curves["plain", 2, 0]
    shorter = type(curve)(curve.rows.iloc[1:].reset_index(drop=True), curve.pages)
    runs.curves["plain", 2, 0] = shorter
    points = f2_gated.curve_points(ws, runs).set_index(["arm", "site", "lambda"])
    assert np.isnan(points["lo"]["plain", 2, 0.8])
    assert np.isfinite(points["lo"]["plain", 2, 2.5]).all()


@pytest.mark.parametrize(
    ("cases", "verdict"),
    [
        ([WORSE, WORSE, EQUAL], "supported"),
        ([BETTER, EQUAL, WORSE], "contradicted"),
        ([BETTER, BETTER, UNREACHED], "contradicted"),
        ([TOUCHING, TOUCHING, WORSE], "undecided"),
        ([UNCLEAR, UNCLEAR, WORSE], "undecided"),
        ([WORSE, BETTER], "undecided"),
        ([UNREACHED, UNREACHED, WORSE], "undecided"),
    ],
)
def test_a_claim_is_decided_by_most_sites(cases, verdict):
    assert f2_gated.decide(cases, MARGIN, 3, 22) == verdict


@pytest.mark.parametrize(("n_seeds", "n_pages"), [(2, 22), (3, 14), (1, 22)])
def test_too_few_seeds_or_pages_leave_a_claim_undecided(n_seeds, n_pages):
    assert f2_gated.decide([WORSE, WORSE, WORSE], MARGIN, n_seeds, n_pages) == "undecided"


def test_an_interval_that_touches_the_margin_is_not_worse_than_it():
    assert f2_gated.compare(TOUCHING, MARGIN) == "not better"
    assert f2_gated.compare(estimate(1.0, 0.97, 1.03), MARGIN) == "equal"


def test_findings_name_their_estimates_by_site_and_say_them(p):
    ratios = {
        (arm, against, site): BETTER for arm, against in f2_gated.PAIRS for site in (2, 15, 29)
    }
    first, second, third = f2_gated.findings(ratios, p, FULL)
    assert [first.name, second.name, third.name] == ["F2a", "F2b", "F2c"]
    assert first.verdict == "contradicted"
    names = [f"site {site}, two-term over plain" for site in (2, 15, 29)]
    assert list(first.estimates) == names
    assert (
        "the two-term Gated SAE over that of the plain SAE is 0.92 [0.91, 0.93]" in first.sentence
    )
    assert "sites 2, 15, 29; 95 % bootstrap over 22 test pages and seeds, 3 seeds" in first.sentence
    assert f2_gated.findings(ratios, p, ONE_SEED)[0].verdict == "undecided"


def test_a_sentence_says_which_l0_was_not_reached():
    text = f2_gated.sentence(("full", "plain"), {5: UNREACHED}, 32.0, ONE_SEED)
    assert "is L0 not reached (site 5;" in text
    assert "nan" not in text


def test_expectations_ask_nothing_of_an_l0_that_was_not_reached(runs):
    reached = f2_gated.matched_checks(f2_gated.match(runs, 32.0), 32.0)
    assert [holds for holds, _ in reached] == [True, True, True]
    missing = f2_gated.matched_checks(f2_gated.match(runs, 1e4), 1e4)
    assert [holds for holds, _ in missing] == [None, None, None]
    assert finding.checks(missing).startswith("cannot be checked (an L0 is not reached): ")


@pytest.mark.parametrize(
    ("fvu", "holds"),
    [
        ({"plain": 0.9, "two_term": 0.84, "full": 0.84}, [True, True, True]),
        ({"plain": 0.95, "two_term": 0.84, "full": 0.84}, [False, True, True]),
        ({"plain": 0.9, "two_term": 0.85, "full": 0.84}, [False, True, True]),
        ({"plain": 0.9, "two_term": 0.84, "full": 0.85}, [False, True, True]),
        ({"plain": 0.8, "two_term": 0.8, "full": 0.95 * 0.8}, [True, False, True]),
        ({"plain": 0.7, "two_term": 1.1 * 0.7, "full": 0.6}, [True, True, False]),
    ],
)
def test_expectations_at_one_l0_fail_from_their_bounds_on(runs, monkeypatch, fvu, holds):
    matched = f2_gated.match(runs, 32.0)
    good = {"plain": 0.5, "two_term": 0.45, "full": 0.4}
    table = pd.DataFrame([good, fvu, good], index=[2, 15, 29])  # one site is enough
    monkeypatch.setattr(type(matched), "column", lambda self, name: table)
    assert [outcome for outcome, _ in f2_gated.matched_checks(matched, 32.0)] == holds


def test_shrinkage_is_expected_to_be_undone_by_gating(runs):
    matched = f2_gated.match(runs, 32.0)
    assert [holds for holds, _ in f2_gated.shrinkage_checks(matched)] == [False, True]


def test_controls_fail_where_a_shuffled_decoder_does_as_well():
    controls = pd.DataFrame({"fvu": [0.3, 0.7], "shuffled": [1.5, 0.9]})
    rows = pd.DataFrame({"loss_recovered_mean": [np.nan, np.nan]})
    holds = [outcome for outcome, _ in f2_gated.control_checks(controls, rows)]
    assert holds == [False, False, "loss recovered is undefined in 2 of 2 SAEs"]


@pytest.mark.parametrize(
    ("fvu", "shuffled", "worse"),
    [(0.3, 0.9, False), (0.55, 1.05, False), (0.55, 1.2, True), (0.3, 1.05, True)],
)
def test_a_shuffled_decoder_is_worse_than_the_mean_and_than_twice_the_fvu(fvu, shuffled, worse):
    controls = pd.DataFrame({"fvu": [fvu], "shuffled": [shuffled]})
    rows = pd.DataFrame({"loss_recovered_mean": [0.6]})
    outcomes = [outcome for outcome, _ in f2_gated.control_checks(controls, rows)]
    assert outcomes[:2] == [True, worse]


def test_the_description_names_a_model_without_its_path(p):
    text = f2_gated.describe(PowerLaws(), p)
    assert text.startswith("tiny-llama: sites 2, 15, 29; plain, two_term, full; 2 seeds")
    assert "/somewhere" not in text


def test_the_abstract_says_the_geometric_mean_of_each_loss_over_sites(home):
    def over(*values):
        return [constant(value) for value in values]

    values = {PAIRS[0]: over(2.0, 8.0), PAIRS[1]: over(0.5, 0.72), PAIRS[2]: over(3.0, 3.0)}
    ratios = {
        (*pair, site): ratio
        for pair, of_pair in values.items()
        for site, ratio in zip((2, 15), of_pair, strict=True)
    }
    text = (
        "At one L0 the Gated SAE leaves 4.00 (two-term loss) and 0.60 (full loss) times the plain "
        "SAE's FVU."
    )
    assert f2_gated.abstract(ratios) == text
    f2_gated.record_abstract("smoke", ratios)
    kept = home / "data" / "smoke" / "verdicts" / "03_train_gated.txt"
    assert kept.read_text() == text + "\n"


@pytest.mark.parametrize("pair", PAIRS)
def test_one_pair_that_misses_the_l0_at_one_site_leaves_no_abstract(home, pair):
    ratios = {(*each, site): constant(2.0) for each in PAIRS for site in (2, 15)}
    ratios[*pair, 15] = UNREACHED
    assert f2_gated.abstract(ratios) is None
    f2_gated.record_abstract("smoke", ratios)
    assert not (home / "data").exists()


def test_controls_are_of_the_densest_sae_of_the_first_seed(p, runs, monkeypatch):
    asked = []

    def shuffled(ws, specs):
        asked.extend(specs)
        return pd.DataFrame({"fvu": np.arange(9) / 10, "shuffled": 2.0})

    monkeypatch.setattr(f2_gated, "shuffled_decoders", shuffled)
    runs.curves["full", 29, 0].rows["l0_val"] = [10.0, 30.0, 20.0]  # the second of its λ
    controls = f2_gated.densest_controls(PowerLaws(), p, runs)
    cells = [(arm, site) for arm in f2_gated.ARMS for site in (2, 15, 29)]
    assert list(zip(controls["arm"], controls["site"], strict=True)) == cells
    assert controls["fvu"].tolist() == [i / 10 for i in range(9)]
    assert [(s.arm, s.sae.site) for s in asked] == cells
    assert {s.train.seed for s in asked} == {p.seeds[0]}
    least = {"plain": 0.8, "two_term": 0.05, "full": 1.44}  # λ
    densest = [least[arm] for arm, _ in cells[:-1]] + [4.5]
    assert [s.train.lam for s in asked] == densest
