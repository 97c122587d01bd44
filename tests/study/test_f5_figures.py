"""Titles of F5's figures on architectures that rank otherwise, and what its gap is drawn from."""

import numpy as np
import pytest
from helpers.f2_cases import BETTER, EQUAL, FULL, MARGIN, UNCLEAR, UNREACHED, WORSE, estimate
from helpers.f5_cases import gaps_of, items_of, matched_of, ratios_of

from saelib.study import f5_figures
from saelib.study.estimate import constant
from saelib.study.f5_architectures import ARMS, gaps

OTHERS = ARMS[1:]


# -- FVU over the plain SAE's


@pytest.mark.parametrize(
    ("ratios", "title"),
    [
        ({"full": BETTER, "topk": BETTER}, "2 of 7 architectures leave less than the plain SAE at"),
        ({"full": WORSE}, "none clearly leaves less than the plain SAE at"),
        ({"full": UNCLEAR, "topk": EQUAL}, "none clearly leaves less than the plain SAE at"),
        ({"full": estimate(0.95, 0.92, 0.98)}, "none clearly leaves less than the plain SAE at"),
        (dict.fromkeys(OTHERS[1:], UNREACHED), "none clearly leaves less than the plain SAE at"),
    ],
)
def test_the_title_counts_architectures_that_leave_less_by_the_margin(ratios, title):
    said = f5_figures.ratio_title(ratios_of(ratios), matched_of({}), MARGIN)
    assert said == f"At L0 = 32 {title} every site"


def test_an_architecture_that_leaves_less_at_two_sites_of_three_does_not_count():
    ratios = ratios_of({"full": BETTER, "topk": BETTER})
    ratios["topk", 15, 32.0] = EQUAL
    title = f5_figures.ratio_title(ratios, matched_of({}), MARGIN)
    assert title == "At L0 = 32 1 of 7 architectures leave less than the plain SAE at every site"


def test_one_site_is_named_and_stands_for_every_site():
    said = f5_figures.ratio_title(ratios_of({"full": BETTER}, [2]), matched_of({}, [2]), MARGIN)
    assert said == "At L0 = 32 1 of 7 architectures leave less than the plain SAE at site 2"
    none = f5_figures.ratio_title(ratios_of({}, [2]), matched_of({}, [2]), MARGIN)
    assert none == "At L0 = 32 none clearly leaves less than the plain SAE at site 2"


def test_an_l0_that_no_architecture_has_compares_nothing():
    nowhere = ratios_of(dict.fromkeys(OTHERS, UNREACHED))
    title = f5_figures.ratio_title(nowhere, matched_of({}), MARGIN)
    assert title == "L0 = 32 is not reached by enough to compare"


# -- the gap between sites


@pytest.mark.parametrize(
    ("given", "title"),
    [
        (dict.fromkeys(ARMS, WORSE), "Every architecture rebuilds site 29 worse than site 15"),
        (
            dict.fromkeys(OTHERS, WORSE) | {"plain": UNREACHED},
            "7 of 7 architectures rebuild site 29 worse than site 15",
        ),
        (
            {"plain": WORSE, "topk": estimate(1.01, 1.001, 1.02), "full": BETTER},
            "2 of 8 architectures rebuild site 29 worse than site 15",
        ),
        ({"full": UNCLEAR}, "0 of 8 architectures rebuild site 29 worse than site 15"),
        (dict.fromkeys(ARMS, UNREACHED), "L0 = 32 is not reached at sites 15 and 29"),
    ],
)
def test_the_title_of_depth_counts_architectures_that_lose_at_the_deepest_site(given, title):
    assert f5_figures.depth_title(gaps_of(given)) == title


def test_one_site_says_nothing_of_depth():
    alone = matched_of({}, [2])
    assert f5_figures.depth_title(alone) == "One site: nothing is said of depth"
    assert f5_figures.gap_title(alone, MARGIN) == "One site has no gap to another"


WIDE = estimate(1.5, 1.4, 1.6)
NARROW = estimate(1.2, 1.15, 1.25)
WIDER = dict.fromkeys(OTHERS, estimate(1.7, 1.6, 1.8)) | {"plain": WIDE}


@pytest.mark.parametrize(
    ("given", "title"),
    [
        ({"plain": UNREACHED}, "L0 = 32 is not reached by enough to compare gaps"),
        (
            dict.fromkeys(OTHERS, UNREACHED) | {"plain": WORSE},
            "L0 = 32 is not reached by enough to compare gaps",
        ),
        ({"plain": EQUAL}, "The plain SAE has no clear gap between these sites"),
        (
            {"plain": estimate(1.03, 1.02, 1.05), "full": WORSE},
            "The plain SAE has no clear gap between these sites",
        ),
        (
            dict.fromkeys(ARMS, WIDE) | {"topk": EQUAL, "full": BETTER, "jumprelu": UNREACHED},
            "2 of 6 architectures close the gap between sites",
        ),
        (
            dict.fromkeys(OTHERS, UNREACHED) | {"plain": WIDE, "topk": EQUAL},
            "1 of 1 architectures close the gap between sites",
        ),
        (
            WIDER | {"topk": NARROW, "full": estimate(1.0, 0.9, 1.05)},
            "2 of 7 architectures narrow the gap between sites, none closes it",
        ),
        (
            WIDER | {"topk": estimate(1.45, 1.3, 1.65)},  # less or more
            "No architecture narrows the gap between sites clearly",
        ),
    ],
)
def test_the_title_says_whether_an_architecture_closes_the_gap_or_narrows_it(given, title):
    assert f5_figures.gap_title(gaps_of(given), MARGIN) == title


def test_a_gap_is_closed_where_its_whole_interval_lies_below_the_margin():
    for high, word in ((1.02, "close"), (1.04, "narrow")):
        matched = gaps_of(WIDER | {"topk": estimate(1.0, 0.98, high)})
        assert f"1 of 7 architectures {word} the gap" in f5_figures.gap_title(matched, MARGIN)


def dots(fig, label):
    """What one L0's dots are drawn at, a line per architecture."""
    (line,) = [line for line in fig.axes[0].lines if line.get_label() == label]
    return dict(zip(ARMS, line.get_xdata(), strict=True))


def test_the_gap_is_drawn_of_every_architecture_and_l0_under_its_title():
    matched = gaps_of({"plain": WIDE, "topk": NARROW, "full": UNREACHED})
    fig = f5_figures.gap(matched, MARGIN, FULL)
    drawn = dots(fig, "L0 32")
    expected = dict.fromkeys(ARMS, 1.0) | {"plain": 1.5, "topk": 1.2, "full": np.nan}
    assert drawn == pytest.approx(expected, nan_ok=True)
    assert dots(fig, "L0 16") == pytest.approx(dict.fromkeys(ARMS, 1.0))
    assert [text.get_text() for text in fig.axes[0].texts] == ["not reached"]
    assert fig.axes[0].get_xlabel() == "FVU of site 29 ÷ FVU of site 15"
    title = fig.get_suptitle().replace("\n", " ")
    assert title == f5_figures.gap_title(matched, MARGIN)
    (reference,) = [line for line in fig.axes[0].lines if line.get_label() == "no gap"]
    assert reference.get_xdata() == [1, 1]
    assert gaps(matched)["topk", 32.0].value == pytest.approx(1.2)


def test_with_one_site_the_gap_of_every_architecture_does_not_apply():
    fig = f5_figures.gap(matched_of({}, [2]), MARGIN, FULL)
    words = [text.get_text() for text in fig.axes[0].texts]
    assert words == ["does not apply: one site"] * len(ARMS)
    assert fig.axes[0].get_xlabel() == "FVU of one site over another's"


# -- items against selection


def two(encoder, pursuit):
    """Two architectures at one site: the plain SAE leaves 0.2 × e ** spread, the other 0.2."""
    return items_of(
        {
            ("plain", 2): (constant(0.2 * np.exp(encoder)), constant(0.2 * np.exp(pursuit))),
            ("topk", 2): (constant(0.2), constant(0.2)),
        }
    )


@pytest.mark.parametrize(
    ("encoder", "pursuit", "title"),
    [
        (0.4, 0.1, "Architectures differ in their encoders more than in their dictionaries"),
        (0.4, 0.19, "Architectures differ in their encoders more than in their dictionaries"),
        (0.4, 0.21, "Architectures differ in dictionaries and in encoders"),
        (0.4, 0.39, "Architectures differ in dictionaries and in encoders"),
        (0.4, 0.41, "Architectures differ in their dictionaries more than in FVU"),
        (-0.4, 0.41, "Architectures differ in their dictionaries more than in FVU"),
    ],
)
def test_the_title_of_items_weighs_dictionaries_against_encoders(encoder, pursuit, title):
    assert f5_figures.items_title(two(encoder, pursuit)) == title


def test_one_architecture_does_not_tell_items_from_selection():
    alone = items_of({("topk", 2): (constant(0.3), constant(0.2))})
    assert f5_figures.items_title(alone).startswith("Too few architectures")
    unsearched = items_of({(arm, 2): (constant(0.1 * len(arm)), UNREACHED) for arm in ARMS})
    assert f5_figures.items_title(unsearched).startswith("Too few architectures")


def test_a_spread_is_the_mean_over_the_sites_that_two_architectures_share():
    found = items_of(
        {
            ("plain", 2): (constant(0.4), constant(0.3)),
            ("topk", 2): (constant(0.2), constant(0.3)),
            ("full", 2): (constant(0.3), constant(0.3)),
            ("plain", 15): (constant(0.5), constant(0.3)),
            ("topk", 15): (constant(0.2), constant(0.3)),
            ("topk", 29): (constant(0.9), constant(0.1)),  # alone
        }
    )
    expected = (np.log(2) + np.log(2.5)) / 2
    assert f5_figures.spread(found, "encoder") == pytest.approx(expected)
    assert f5_figures.spread(found, "pursuit") == 0
