"""F2 and F2f as they are recorded: every verdict of both rules, sentences, and the abstract."""

import pytest
from helpers.f2_cases import EQUAL, FULL, MARGIN, ONE_SEED, TOUCHING, UNCLEAR, UNREACHED, params
from helpers.f2_resampling_cases import HARMFUL, HARMLESS, ratios_of

from saelib.study import f2_resampling_findings
from saelib.study.estimate import constant
from saelib.study.f2_resampling import NO_AUXILIARY, NO_RESAMPLING


@pytest.fixture
def p():
    return params("04_resampling", seeds=[0, 1])


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [
        ([(HARMFUL, HARMFUL), (HARMFUL, HARMFUL), (HARMLESS, HARMFUL)], "supported"),
        ([(HARMLESS, HARMFUL), (HARMFUL, EQUAL)], "contradicted"),
        ([(HARMLESS, UNREACHED), (HARMLESS, UNREACHED)], "contradicted"),
        ([(TOUCHING, HARMFUL), (HARMFUL, TOUCHING)], "undecided"),
        ([(UNCLEAR, HARMFUL), (UNREACHED, HARMFUL)], "undecided"),
        ([(HARMFUL, HARMFUL), (HARMLESS, HARMFUL)], "undecided"),
    ],
)
def test_f2_holds_where_deficit_and_missing_resampling_are_both_harmful(pairs, verdict):
    assert f2_resampling_findings.decide(pairs, MARGIN, 3, 22) == verdict


@pytest.mark.parametrize(
    ("cases", "verdict"),
    [
        ([HARMFUL, HARMFUL, EQUAL], "supported"),
        ([HARMLESS, EQUAL, HARMFUL], "contradicted"),
        ([TOUCHING, HARMFUL], "undecided"),
        ([UNREACHED, UNREACHED, HARMFUL], "undecided"),
        ([], "undecided"),
    ],
)
def test_resampling_helps_where_lacking_it_is_harmful_in_most(cases, verdict):
    assert f2_resampling_findings.decide_helps(cases, MARGIN, 3, 22) == verdict


@pytest.mark.parametrize(("n_seeds", "n_pages"), [(2, 22), (3, 14)])
def test_two_seeds_or_fourteen_pages_decide_nothing(n_seeds, n_pages):
    pairs = [(HARMFUL, HARMFUL)]
    assert f2_resampling_findings.decide(pairs, MARGIN, n_seeds, n_pages) == "undecided"
    assert f2_resampling_findings.decide_helps([HARMFUL], MARGIN, n_seeds, n_pages) == "undecided"


def test_the_finding_names_effect_setting_and_site(p):
    ratios = ratios_of(HARMLESS, HARMFUL, EQUAL)
    result = f2_resampling_findings.finding(ratios, p, FULL)
    assert result.verdict == "contradicted"
    assert (
        next(iter(result.estimates))
        == "deficit (FVU of two-term over plain), normal recipe, site 15"
    )
    assert "normal recipe, site 15 0.92 [0.91, 0.93]; large steps, site 15" in result.sentence
    assert f2_resampling_findings.finding(ratios, p, ONE_SEED).verdict == "undecided"


def test_only_combinations_in_which_latents_were_revived_count(p):
    ratios = ratios_of(HARMLESS, HARMFUL, HARMFUL, full=UNREACHED)
    revived = {("normal recipe", "two_term", 15): 0.0, ("normal recipe", "full", 15): 7.0}
    revived |= {("large steps", "two_term", 15): 100.0, ("large steps", "full", 15): 100.0}
    result = f2_resampling_findings.finding_helps(ratios, revived, p, FULL)
    assert list(result.estimates) == [
        f"FVU not resampled over resampled, {arm}, large steps, site 15"
        for arm in ("two-term", "full")
    ]
    assert "full, large steps, site 15 unreachable" in result.sentence
    none = f2_resampling_findings.finding_helps(ratios, dict.fromkeys(revived, 0.0), p, FULL)
    assert none.verdict == "undecided"
    assert "had 1 % of its latents revived: none counts" in none.sentence


def test_the_abstract_is_silent_where_an_l0_is_not_reached():
    assert (
        f2_resampling_findings.abstract(ratios_of(HARMLESS, UNREACHED, EQUAL), "undecided") is None
    )
    text = f2_resampling_findings.abstract(ratios_of(HARMLESS, HARMFUL, EQUAL), "contradicted")
    assert "1.06 times" in text
    assert text.endswith("(F2: contradicted).")


def test_the_abstract_gives_each_suspect_in_both_settings_and_is_kept(home):
    ratios = {}
    for setting, auxiliary, resampling in (("normal recipe", 1.5, 0.9), ("large steps", 2.5, 1.2)):
        for site, factor in ((2, 2.0), (15, 0.5)):  # 1 on average, in logarithms
            ratios[setting, site, NO_AUXILIARY] = constant(auxiliary * factor)
            ratios[setting, site, NO_RESAMPLING["two_term"]] = constant(resampling * factor)
            ratios[setting, site, NO_RESAMPLING["full"]] = constant(7.0)
    f2_resampling_findings.record_abstract("smoke", ratios, "undecided")
    kept = home / "data" / "smoke" / "verdicts" / "04_resampling.txt"
    assert kept.read_text() == (
        "Of the two suspects: without the auxiliary term its FVU is 1.50 times that with it in the "
        "normal recipe and 2.50 times with large, unclipped steps; without resampling 0.90 and "
        "1.20 times (F2: undecided).\n"
    )
    ratios["large steps", 15, NO_RESAMPLING["two_term"]] = UNREACHED
    f2_resampling_findings.record_abstract("other", ratios, "undecided")
    assert not (home / "data" / "other").exists()
