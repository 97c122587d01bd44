"""What notebook 05 records: verdicts, numbers and sentences on models of several kinds."""

from dataclasses import replace

import pandas as pd
import pytest
from helpers.f3_cases import COMPARED, SCOPE, between, params
from helpers.f3_results import EFFECTS, LESS, class_table, division, errors, matched, step

from saelib.env import root
from saelib.files import read_json
from saelib.study import f3_causes, f3_dictionary, f3_findings, f3_layers, finding
from saelib.study.curve import Curve
from saelib.study.estimate import undefined
from saelib.study.f3_causes import Trained
from saelib.study.f3_ladder import ORIGINAL_ALL, Ladder
from saelib.study.f3_sites import Sweep
from saelib.study.scope import Scope

RECORDED = root() / "data" / "recorded" / "full" / "estimates.json"


def ladder(deep):
    """The original recipe by all and by ordinary tokens, and PCA."""
    steps = [step(ORIGINAL_ALL, deep), step(f3_findings.ORIGINAL_ORDINARY, deep)]
    return Ladder({s.name: s for s in [*steps, step("PCA", deep)]}, COMPARED)


def original(l0):
    return pd.DataFrame({"l0": [l0, 49.0, 491.0]}, index=[2, 15, 29])


def test_as_reported_is_judged_by_the_all_token_fvu():
    found = f3_findings.as_reported(
        ladder(between(2, 3)), original(18.0), class_table(0.99, 0.01, 0.5), params(), SCOPE
    )
    assert found.verdict == "supported"
    assert next(iter(found.estimates)) == "original: FVU, all tokens, deepest site over site 15"
    assert "hold 99.0% of the squared norm" in found.sentence


def test_a_collapsed_original_recipe_is_undecided_with_the_reason():
    found = f3_findings.as_reported(
        ladder(between(2, 3)), original(0.1), class_table(0.01, 0.9, 0.9), params(), SCOPE
    )
    assert found.verdict == "undecided"
    assert found.sentence.startswith("Not judged: at 2 the original recipe's SAEs have collapsed")
    assert "at most 1.0%" in found.sentence


@pytest.mark.parametrize(
    ("deep", "verdict"),
    [
        (between(0.4, 0.5), "supported"),
        (between(0.1, 0.2), "contradicted"),
        (undefined(), "undecided"),
    ],
)
def test_the_fair_comparison_reads_the_plain_sae_at_matched_l0(deep, verdict):
    found = f3_findings.at_matched_l0(matched(deep), params(), SCOPE)
    assert found.verdict == verdict
    assert "nan" not in found.sentence
    assert "2 and 15" in found.claim


def test_one_seed_is_undecided_and_has_its_effect():
    found = f3_findings.at_matched_l0(
        matched(between(0.4, 0.5)), params(), Scope("a model", n_pages=20, n_seeds=1)
    )
    assert found.verdict == "undecided"
    assert found.estimates["normalised: FVU at L0 = 32, deepest site over site 15"].lo > 1


def pages(run):
    names = ["ce_n", "ce_zero", "ce_mean", "ce_sae", "ce_id"]
    rows = [[4, 8.0, 6.0, 3.0, 2.0]] * 20
    frame = pd.DataFrame(rows, columns=names).assign(page_id=range(20), sse=0.4, sst=1.0)
    if run == "measured on 14":
        return frame.assign(ce_n=[4] * 14 + [0] * 6)
    return frame if run == "measured" else frame.assign(ce_mean=2.0, ce_zero=2.0)


def sweep(run):
    rows = {"run_id": [run, run], "l0_val": [64.0, 16.0], "lambda": [1.0, 2.0]}
    curve = Curve(pd.DataFrame(rows), pages)
    curves = {("plain", site, seed): curve for site in COMPARED.sites for seed in (0, 1, 2)}
    return Sweep(pd.DataFrame(rows), curves)


def test_a_trained_sae_contradicts_that_the_site_does_not_train():
    found = f3_findings.does_not_train(
        matched(between(0.3, 0.4)), sweep("measured"), params(), SCOPE
    )
    assert found.verdict == "contradicted"
    assert found.estimates[f3_findings.RECOVERED].value == pytest.approx(0.75)


def test_undefined_loss_recovered_is_said_in_words():
    found = f3_findings.does_not_train(
        matched(between(0.3, 0.4)), sweep("no loss to recover"), params(), SCOPE
    )
    assert found.verdict == "undecided"
    assert "undefined (mean ablation costs too little loss)" in found.sentence


def test_loss_recovered_above_one_is_not_called_more_than_all():
    words = f3_findings.loss_words(between(0.3, 0.4), between(1.1, 1.2), 20)
    assert "predicts these texts better with the SAE in place" in words
    assert "above 1" not in f3_findings.loss_words(between(0.3, 0.4), between(0.9, 1.2), 20)


def test_an_l0_not_reached_is_said_instead_of_a_loss():
    assert "L0 not reached" in f3_findings.loss_words(undefined(), undefined(), 20)


def trained(l0):
    return Trained({}, {}, pd.DataFrame({"site": [15, 29], "l0": [l0, 40.0]}))


def test_causes_are_recorded_with_their_steps():
    found = f3_findings.causes(division(EFFECTS, first=-0.5), trained(9.0), params(), SCOPE)
    assert found.verdict == "contradicted"
    assert next(iter(found.estimates)) == "fall of the gap in log FVU, all four removed"
    change = found.estimates["change of the gap in log FVU, sinks masked"]
    assert change.value == pytest.approx(0.3)


def test_causes_of_a_collapsed_recipe_are_undecided_with_the_reason():
    found = f3_findings.causes(division(EFFECTS, first=-0.5), trained(0.1), params(), SCOPE)
    assert found.verdict == "undecided"
    assert "have collapsed" in found.sentence


def test_dictionary_and_encoder_are_two_findings():
    no_dictionary, encoder = f3_findings.dictionary(errors(LESS), params(), SCOPE)
    assert (no_dictionary.name, no_dictionary.verdict) == ("F3d", "contradicted")
    assert (encoder.name, encoder.verdict) == ("F3e", "contradicted")
    assert "items" not in no_dictionary.sentence + encoder.sentence


def test_the_abstract_is_empty_where_a_number_is_missing():
    full = f3_findings.abstract(
        division(EFFECTS, first=-0.5), matched(between(0.4, 0.5)), errors(LESS)
    )
    assert "45% at site 2, 45% at site 15, 25% at site 29" in full
    assert not f3_findings.abstract(division(EFFECTS), matched(undefined()), errors(LESS))


def test_an_effect_is_told_before_the_run_is_called_undecided(home):
    clear = f3_findings.at_matched_l0(matched(between(0.4, 0.5)), params(), SCOPE)
    one_seed = f3_findings.at_matched_l0(
        matched(between(0.4, 0.5)), params(), Scope("a model", n_pages=20, n_seeds=1)
    )
    lines = finding.account([clear, one_seed]).splitlines()
    assert lines[1].startswith(
        "supported. normalised: FVU at L0 = 32, deepest site over site 15: 1.5"
    )
    assert lines[5].endswith("recorded full: no record; undecided here.")


def test_each_finding_shares_an_effect_with_the_recorded_run():
    recorded = read_json(RECORDED)
    found = [
        f3_findings.as_reported(
            ladder(between(2, 3)), original(18.0), class_table(0.99, 0.01, 0.5), params(), SCOPE
        ),
        f3_findings.at_matched_l0(matched(between(0.4, 0.5)), params(), SCOPE),
        f3_findings.does_not_train(matched(between(0.3, 0.4)), sweep("measured"), params(), SCOPE),
        f3_findings.causes(division(EFFECTS), trained(9.0), params(), SCOPE),
        *f3_findings.dictionary(errors(LESS), params(), SCOPE),
    ]
    assert all(set(one.estimates) & set(recorded[one.name]) for one in found)


def test_each_rule_can_be_read_alone():
    rules = [f3_layers.RULE_A, f3_layers.RULE_WORSE, f3_layers.RULE_C, f3_causes.RULE]
    rules += [f3_dictionary.RULE_D, f3_dictionary.RULE_E]
    for rule in rules:
        assert "as above" not in rule
        assert "L0 is not reached" in rule
        assert "15 test pages" in rule
        assert "three seeds" in rule


def test_the_three_yardsticks_are_recorded_in_order_each_by_its_own_measure():
    """Ladder, matched FVU, and loss each say something else of the deepest site."""
    found = f3_findings.yardsticks(
        ladder(between(2, 3)),
        matched(between(0.1, 0.2)),
        sweep("measured"),
        original(18.4),
        class_table(0.99, 0.01, 0.5),
        params(),
        SCOPE,
    )
    assert [(one.name, one.verdict) for one in found] == [
        ("F3a", "supported"),
        ("F3b", "contradicted"),
        ("F3c", "contradicted"),
    ]
    reported, fair, trains = found
    assert reported.sentence.startswith("All-token FVU of site 29: 2.5 [2, 3] times site 2's")
    assert "L0 by site: 18.4, 49, 491. First and sink tokens hold 99.0%" in reported.sentence
    assert "0.5 [0.333, 0.667] times site 2's; 0.5 [0.333, 0.667] times site 15's" in fair.sentence
    assert "PCA of that rank: 1 times site 15's" in fair.sentence
    assert trains.sentence.startswith(
        "At L0 = 32: FVU 0.15 [0.10, 0.20]; loss recovered against mean ablation 0.75"
    )
    assert "(of 20 pages)" in trains.sentence
    assert trains.estimates[f3_findings.LEFT].value == pytest.approx(0.15)
    assert [one.claim for one in found] == [
        f3_layers.CLAIM_A.format(worse="site 29 is rebuilt worse than 2 and 15"),
        f3_layers.CLAIM_B.format(worse="site 29 is rebuilt worse than 2 and 15"),
        "The plain SAE does not train at site 29.",
    ]


def test_a_loss_of_fourteen_pages_decides_nothing_and_they_are_counted():
    found = f3_findings.does_not_train(
        matched(between(0.3, 0.4)), sweep("measured on 14"), params(), SCOPE
    )
    assert found.verdict == "undecided"
    assert "loss recovered against mean ablation 0.75" in found.sentence
    assert "(of 14 pages)" in found.sentence


def test_the_fair_comparison_is_of_the_plain_sae_alone():
    made = matched(between(0.4, 0.5))
    gated = {key: between(0.1, 0.2) for key in made.fvu if key[0] != "plain" and key[1] == 29}
    found = f3_findings.at_matched_l0(replace(made, fvu=made.fvu | gated), params(), SCOPE)
    assert found.verdict == "supported"
    assert list(found.estimates) == [
        "normalised: FVU at L0 = 32, deepest site over site 15",
        "normalised: FVU at L0 = 32, deepest site over site 2",
    ]


def test_pca_of_the_deepest_site_is_told_over_that_of_the_site_before():
    made = matched(between(0.4, 0.5))
    spectrum = {
        (site, l0): share
        for site, share in {2: 0.9, 15: 0.4, 29: 0.6}.items()
        for l0 in (16.0, 32.0, 64.0)
    }
    spectrum |= {(29, 64.0): 0.1}
    found = f3_findings.at_matched_l0(replace(made, pca=spectrum), params(), SCOPE)
    assert "PCA of that rank: 1.5 times site 15's" in found.sentence
