"""F5f, the abstract and the expectations of F5, on architectures that rank otherwise."""

import pytest
from helpers.f2_cases import BETTER, EQUAL, FULL, UNREACHED, WORSE, estimate, params
from helpers.f5_cases import gaps_of, items_of, matched_of, ratios_of, runs_of

from saelib.study import f5_findings
from saelib.study.estimate import constant
from saelib.study.f5_architectures import ARMS

PLAIN = (constant(0.4), constant(0.2))  # under the encoder, under pursuit
TOPK = (estimate(0.36, 0.352, 0.368), estimate(0.18, 0.176, 0.19))


@pytest.fixture
def items():
    """TopK and the plain SAE at site 2; one of them at each other site."""
    return items_of({("plain", 2): PLAIN, ("topk", 2): TOPK, ("plain", 15): PLAIN}, n_pages=17)


# -- cases and sentence of F5f


def test_dictionaries_are_compared_under_pursuit_where_both_have_the_l0(items):
    cases = f5_findings.item_cases(items, "topk", [2, 15, 29])
    assert list(cases) == [2, 15, 29]
    assert cases[2].text(".2f") == "0.90 [0.88, 0.95]"
    assert not cases[15].defined  # TopK lacks
    assert not cases[29].defined
    assert f5_findings.item_cases(items, None, [2, 15]) == {}


def test_a_site_where_the_plain_sae_lacks_is_no_case():
    items = items_of({("topk", 2): TOPK})
    assert not f5_findings.item_cases(items, "topk", [2])[2].defined


def test_the_sentence_says_what_is_owed_to_the_encoder_and_what_to_the_dictionary():
    items = items_of({("plain", 2): PLAIN, ("topk", 2): TOPK, ("plain", 29): TOPK}, n_pages=17)
    assert f5_findings.items_sentence(items, "topk", matched_of({}), FULL) == (
        "Near L0 = 32 the FVU of TopK, which leaves least on validation pages, over that of the "
        "plain SAE: site 2 0.90 [0.88, 0.92] with the encoders, 0.90 [0.88, 0.95] under pursuit "
        "(95 % bootstrap over 17 test pages and seeds, 3 seeds)."
    )


@pytest.mark.parametrize(
    ("best", "sentence"),
    [
        (None, "The plain SAE does not have L0 = 32 at every site, so nothing is compared with"),
        ("plain", "No architecture leaves less than the plain SAE at L0 = 32 on validation pages."),
        ("full", "Gated and the plain SAE do not both reach L0 = 32 at any site."),
    ],
)
def test_the_sentence_says_why_dictionaries_are_not_compared(items, best, sentence):
    assert f5_findings.items_sentence(items, best, matched_of({}), FULL).startswith(sentence)


# -- all six


@pytest.fixture
def runs():
    """On validation pages TopK leaves least at L0 32, and JumpReLU at the others."""
    curves = {}
    for arm in ARMS:
        at = {"topk": [0.5, 0.1, 0.5], "jumprelu": [0.05, 0.3, 0.05]}.get(arm, [0.4, 0.4, 0.4])
        columns = {"l0_val": [16.0, 32.0, 64.0], "lambda": [4.0, 2.0, 1.0], "fvu_val": at}
        curves |= {(arm, site, 0): columns for site in (2, 15)}
    return runs_of(curves, seeds=[0])


def by_name(runs, matched, items, scope=FULL):
    found = f5_findings.findings(runs, matched, items, params("07_architectures"), scope)
    return {one.name: one for one in found}


@pytest.mark.parametrize(("n_pages", "verdict"), [(15, "supported"), (14, "undecided")])
def test_f5f_rests_on_the_pages_whose_codes_were_searched(runs, n_pages, verdict):
    better = (constant(0.4), constant(0.15))
    items = items_of({("plain", 2): PLAIN, ("topk", 2): better}, n_pages)
    found = by_name(runs, matched_of({}, [2]), items)["F5f"]
    assert found.verdict == verdict
    assert list(found.estimates) == ["site 2, TopK over plain, pursuit"]
    assert found.estimates["site 2, TopK over plain, pursuit"].value == pytest.approx(0.75)
    assert found.figure.endswith("/07_items.png")


def test_the_gap_is_judged_by_architecture_and_said_with_both_sites(runs, items):
    wide = dict.fromkeys(ARMS, estimate(1.5, 1.4, 1.6))
    found = by_name(runs, gaps_of(wide | {"topk": EQUAL, "full": UNREACHED}), items)["F5e"]
    assert found.verdict == "supported"
    assert found.estimates["deepest over the site before, TopK"].value == pytest.approx(1.0)
    assert "FVU of site 29 over that of site 15 at L0 = 32: plain 1.50 [1.40, 1.60]" in (
        found.sentence
    )
    assert "Gated not reached" in found.sentence
    assert found.figure.endswith("/07_gap.png")
    assert by_name(runs, gaps_of(wide), items)["F5e"].verdict == "contradicted"


def test_the_gated_sae_at_half_the_l0_is_held_against_the_plain_one(runs, items):
    matched = matched_of({("full", 2): constant(0.4), ("plain", 2): constant(0.5)}, [2])
    found = by_name(runs, matched, items)["F5a"]
    ratios = {name: x.value for name, x in found.estimates.items()}
    assert ratios == {
        "site 2, L0 32, Gated at half the L0 over plain": pytest.approx(0.9 / 0.5),  # 16 over 32
        "site 2, L0 64, Gated at half the L0 over plain": pytest.approx(0.4 / 0.1),  # 32 over 64
    }
    assert found.verdict == "contradicted"
    assert "site 2: L0 32 1.80 [1.80, 1.80], L0 64 4.00" in found.sentence


@pytest.mark.parametrize(
    ("name", "first", "second", "words"),
    [
        ("F5b", "batchtopk", "topk", "BatchTopK over TopK"),
        ("F5c", "jumprelu", "full", "JumpReLU over Gated"),
        ("F5d", "matryoshka", "batchtopk", "Matryoshka over BatchTopK"),
    ],
)
def test_a_pair_is_the_first_over_the_second(runs, items, name, first, second, words):
    matched = matched_of({(first, 15): constant(0.2), (second, 15): constant(0.4)}, [2, 15])
    found = by_name(runs, matched, items)[name]
    assert found.estimates[f"site 15, L0 32, {words}"].value == pytest.approx(0.5)
    assert found.estimates[f"site 2, L0 32, {words}"].value == pytest.approx(1.0)
    assert f"FVU of {words.replace(' over ', ' over that of ')} at equal L0" in found.sentence


# -- the abstract


def test_the_abstract_is_kept_where_there_is_one_and_else_nothing(home):
    matched = matched_of({("topk", site): constant(0.4) for site in (2, 15, 29)})
    f5_findings.record_abstract("smoke", matched)
    kept = home / "data" / "smoke" / "verdicts" / "07_architectures.txt"
    assert kept.read_text() == (
        "Of 8 kinds of SAE at L0 32, TopK leaves least on test pages: 0.80, 0.80, 0.80 times the "
        "plain SAE's FVU (sites 2, 15, 29).\n"
    )
    f5_findings.record_abstract("other", matched_of({("plain", 2): constant(0.1)}))
    assert not (home / "data" / "other").exists()


def test_the_abstract_counts_the_kinds_that_have_the_l0_at_every_site():
    fvu = {("topk", site): constant(0.4) for site in (2, 15, 29)}
    matched = matched_of(fvu | {("full", 15): UNREACHED})
    assert f5_findings.abstract(matched).startswith("Of 7 kinds of SAE at L0 32, TopK leaves")


# -- expectations


def outcomes(ratios, sites=(2, 15, 29)):
    return [outcome for outcome, _ in f5_findings.checks(matched_of({}, sites), ratios)]


def test_an_expectation_holds_where_most_sites_leave_less():
    ratios = ratios_of({"full": BETTER, "p_anneal": WORSE, "batchtopk": BETTER})
    assert outcomes(ratios) == [True, False, True]
    ratios["full", 2, 32.0] = WORSE
    ratios["batchtopk", 2, 32.0] = ratios["batchtopk", 29, 32.0] = constant(1.0)  # not below 1
    assert outcomes(ratios) == [True, False, False]


def test_expectations_are_said_of_the_middle_l0_and_of_their_architecture():
    ratios = ratios_of({"full": WORSE, "p_anneal": BETTER, "batchtopk": WORSE})
    checks = f5_findings.checks(matched_of({}), ratios)
    assert checks == [
        (False, "at L0 32 the Gated SAE leaves less than the plain one at most sites"),
        (True, "at L0 32 the p-annealed SAE leaves less than the plain one at most sites"),
        (False, "at L0 32 BatchTopK leaves less than the plain SAE at most sites"),
    ]


def test_one_site_of_two_is_not_most():
    ratios = ratios_of({"full": BETTER, "p_anneal": BETTER, "batchtopk": WORSE}, [2, 15])
    ratios["full", 2, 32.0] = WORSE
    assert outcomes(ratios, [2, 15]) == [False, True, False]


def test_sites_that_miss_the_l0_are_a_reason_where_they_could_turn_the_answer():
    ratios = ratios_of({"full": UNREACHED, "p_anneal": UNREACHED, "batchtopk": BETTER})
    ratios["full", 2, 32.0] = BETTER
    ratios["batchtopk", 2, 32.0] = UNREACHED
    assert outcomes(ratios) == [
        "L0 not reached in 2 of 3 sites",
        "L0 not reached in 3 of 3 sites",
        True,
    ]
