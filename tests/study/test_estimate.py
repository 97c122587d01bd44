"""Estimates with their replicates: by hand on few pages, paired where SAEs share pages."""

import numpy as np
import pandas as pd
import pytest

from saelib.measure import bootstrap
from saelib.study.estimate import (
    Estimate,
    constant,
    geometric_mean,
    mean,
    notice,
    of_pages,
    over_seeds,
    ratio_of_pages,
    recorded_text,
    undefined,
)


def page_sums(sse):
    """Seven pages; the last one has no measured loss."""
    columns = {"sse": sse, "sst": [10.0, 20.0, 30.0, 10.0, 10.0, 20.0, 10.0]}
    columns |= {"ce_n": [9, 9, 9, 9, 9, 9, 0], "ce_sae": [3.0, 5.0, 3.0, 3.0, 3.0, 3.0, 0.0]}
    losses = {"ce_id": [2.0, 4.0, 2.0, 2.0, 2.0, 2.0, 0.0], "ce_zero": [6.0] * 6 + [0.0]}
    return pd.DataFrame(columns | losses | {"ce_mean": [4.0, 6.0, 4.0, 4.0, 4.0, 4.0, 0.0]})


SSE = np.array([1.0, 2.0, 3.0, 1.0, 1.0, 2.0, 1.0])  # a tenth of each page's sst


def spread(low, high, value=None):
    """An estimate whose 95 % interval is [low, high]."""
    middle = (low + high) / 2
    half = (high - low) / 2 / 0.95
    ends = np.linspace(middle - half, middle + half, 1001)
    return Estimate(np.r_[middle if value is None else value, ends])


def test_the_estimate_stands_before_its_replicates():
    pages = [1.0, 3.0, 1.0, 1.0, 4.0], [2.0, 2.0, 2.0, 2.0, 2.0]
    x = ratio_of_pages(*pages, n=200)
    assert x.value == 1.0
    assert np.array_equal(x.draws[1:], bootstrap.page_replicates(*pages, 200))
    assert x.lo < 1 < x.hi


def test_estimates_of_proportional_pages_are_constant_and_paired():
    assert of_pages(page_sums(SSE), n=50).draws == pytest.approx(np.full(51, 0.1))
    once, twice = (of_pages(page_sums(k * SSE[::-1]), n=50) for k in (1, 2))
    assert once.draws.std() > 0.01
    assert (twice / once).draws == pytest.approx(np.full(51, 2.0))


def test_loss_recovered_leaves_out_pages_without_a_measured_loss():
    recovered = of_pages(page_sums(SSE), "loss_recovered", n=200)
    assert recovered.value == pytest.approx(16 / 22)  # 3 + 1 + 3 · 4 of 4 + 2 + 4 · 4
    six = np.array([3.0, 1, 3, 3, 3, 3]), np.array([4.0, 2, 4, 4, 4, 4])
    draws = bootstrap.page_replicates(*six, 200, signed=True)
    assert np.array_equal(recovered.draws[1:], draws)
    by_mean = of_pages(page_sums(SSE), "loss_recovered_mean")
    assert by_mean.value == pytest.approx(6 / 12)
    with pytest.raises(ValueError, match="column = 'l0'"):
        of_pages(page_sums(SSE), "l0")


def test_seeds_widen_the_interval_and_pairs_of_cells_draw_the_same_seeds():
    pages = np.zeros(2001)  # no spread over pages
    x = over_seeds([Estimate(pages + v) for v in (1.0, 2.0, 6.0)])
    y = over_seeds([Estimate(pages + v) for v in (2.0, 3.0, 7.0)])
    student = bootstrap.seed_interval([1, 2, 6])
    assert x.value == 3.0
    assert x.hi - x.lo == pytest.approx(student[1] - student[0], rel=0.1)
    assert (y - x).draws == pytest.approx(np.ones(2001))
    paged = np.r_[0.0, np.random.default_rng(0).normal(size=2000)]
    both = over_seeds([Estimate(paged + v) for v in (1.0, 2.0, 6.0)])
    assert both.draws[1:].var() == pytest.approx(1 + x.draws[1:].var(), rel=0.1)  # they add


def test_one_seed_leaves_the_interval_of_the_pages():
    alone = Estimate(np.arange(2001.0))
    assert np.array_equal(over_seeds([alone]).draws, alone.draws)


def test_of_no_seeds_or_no_estimates_nothing_is_estimated():
    assert over_seeds([]).text() == mean([]).text() == "L0 not reached"


def test_the_interval_is_of_percentiles_and_nothing_without_an_estimate():
    x = Estimate(np.r_[5.0, np.arange(1001.0)])
    assert x.row() == {"value": 5.0, "lo": 25.0, "hi": 975.0}
    assert x.defined
    assert np.isnan(list(undefined().row().values())).all()
    assert not undefined().defined


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.5, 0.8, "lower"),
        (1.2, 1.5, "higher"),
        (0.95, 1.05, "equal"),
        (0.5, 1.05, "not higher"),
        (0.95, 1.5, "not lower"),
        (0.5, 1.5, "unclear"),
    ],
)
def test_an_interval_lies_about_a_band(low, high, word):
    assert spread(low, high).compare(1.0, 0.1) == word


def test_an_interval_that_touches_the_band_s_end_lies_inside_it():
    exact = Estimate(np.r_[1.0, np.full(100, 1.25)])
    assert exact.compare(1.0, 0.25) == "equal"
    assert Estimate(np.r_[1.0, np.full(100, 0.75)]).compare(1.0, 0.25) == "equal"
    assert exact.compare(1.0, 0.2) == "higher"


@pytest.mark.parametrize("n_pages", [1, 2, 4])
def test_fewer_than_five_pages_give_an_estimate_without_an_interval(n_pages):
    few = page_sums(SSE).head(n_pages)
    x = of_pages(few)
    assert (x.value, np.isnan(x.lo), np.isnan(x.hi)) == (pytest.approx(0.1), True, True)
    assert x.compare(0.5) == "unclear"
    assert x.text() == "0.1 (no interval)"
    assert np.isfinite(of_pages(page_sums(SSE).head(5)).lo)
    nothing = of_pages(few.assign(ce_n=0), "loss_recovered")
    assert np.isnan(nothing.draws).all()
    assert nothing.compare(0.5) == "unreachable"


def test_a_draw_of_pages_without_variance_is_left_out_of_the_interval():
    # 0 / 0 where the first page is not drawn
    x = ratio_of_pages([1.0, 0, 0, 0, 0], [2.0, 0, 0, 0, 0], n=500)
    assert np.isnan(x.draws).any()
    assert x.row() == {"value": 0.5, "lo": 0.5, "hi": 0.5}


def test_arithmetic_goes_draw_by_draw_with_estimates_and_numbers():
    x = Estimate(np.array([2.0, 4.0]))
    y = Estimate(np.array([1.0, 8.0]))
    assert (x + y).draws.tolist() == [3.0, 12.0]
    assert (x - y).draws.tolist() == [1.0, -4.0]
    assert (x * y).draws.tolist() == [2.0, 32.0]
    assert (x / y).draws.tolist() == [2.0, 0.5]
    assert (1 - x).draws.tolist() == [-1.0, -3.0]
    assert (8 / x + 1).draws.tolist() == [5.0, 3.0]
    assert (-x).draws.tolist() == [-2.0, -4.0]
    assert (2 * x - 1).draws.tolist() == [3.0, 7.0]
    assert x.log().exp().draws == pytest.approx(x.draws)
    assert np.isnan((x - 2).log().value)


def stretched(value, stretch, heaviest=0.0):
    return Estimate(np.r_[value, value, value], stretch, heaviest)


def test_the_stretch_is_added_to_both_ends():
    x = Estimate(spread(0.9, 1.1).draws, 0.05)
    assert x.row() == pytest.approx({"value": 1.0, "lo": 0.85, "hi": 1.15})
    assert spread(0.9, 1.1).compare(1.0, 0.12) == "equal"
    assert x.compare(1.0, 0.12) == "unclear"


def test_the_stretch_follows_the_arithmetic():
    x, y = stretched(2.0, 0.1), stretched(4.0, 0.4)
    assert (x + y).stretch == pytest.approx(0.5)
    assert (x - y).stretch == pytest.approx(0.4)  # curves bend alike: the larger one
    assert (x * y).stretch == pytest.approx(0.1 * 4 + 0.4 * 2)
    assert (x / y).stretch == pytest.approx(2 / 4 * 0.4 / 4)  # of 5 % and 10 %
    assert (y / x).stretch == pytest.approx(4 / 2 * 0.4 / 4)
    assert (8 / x).stretch == pytest.approx(8 / 2 * 0.1 / 2)
    assert (3 - 2 * x).stretch == (2 * -x + 1).stretch == pytest.approx(0.2)
    assert (x / 4).stretch == pytest.approx(0.025)
    assert x.log().stretch == pytest.approx(0.05)
    assert x.log().exp().stretch == pytest.approx(0.1)
    assert mean([x, y]).stretch == over_seeds([x, y]).stretch == pytest.approx(0.25)
    assert geometric_mean([x, y]).stretch == pytest.approx(8**0.5 * 0.075)


def test_a_curve_against_itself_has_no_interpolation_error():
    x = stretched(2.0, 0.1)
    assert (x - x).stretch == (x / x).stretch == 0


def test_the_heaviest_page_goes_along():
    pages = ratio_of_pages([1.0, 1, 1, 1, 4], [2.0, 2, 2, 2, 2])
    assert pages.heaviest == 0.5
    assert ratio_of_pages([2.0, 2, 2, 2, 2], [1.0, 1, 1, 1, 4]).heaviest == 0.5
    light = ratio_of_pages([1.0] * 20, [1.0] * 20)
    assert light.heaviest == 0.05
    for made in (pages - light, light / pages, 1 - pages, pages.log(), over_seeds([light, pages])):
        assert made.heaviest == 0.5


def test_a_notice_where_one_page_has_over_a_tenth_or_interpolation_stretches():
    assert notice([]) == notice([stretched(1.0, 0.0, 0.1), undefined()]) == ""
    heavy = notice([stretched(1.0, 0.0, 0.05), stretched(1.0, 0.0, 0.37)])
    assert "One test page has 37 % of an error" in heavy
    far = notice([stretched(1.0, 0.012), stretched(1.0, 0.0)])
    assert far.startswith("Intervals reach up to 0.012 further")
    unreached = Estimate(np.full(3, np.nan), np.nan, 0.9)
    assert notice([unreached]) == ""


def test_means_go_draw_by_draw():
    pair = [Estimate(np.array([1.0, 4.0])), Estimate(np.array([4.0, 9.0]))]
    assert mean(pair).draws.tolist() == [2.5, 6.5]
    assert geometric_mean(pair).draws == pytest.approx([2.0, 6.0])
    assert not geometric_mean([*pair, undefined(1)]).defined


def test_an_estimate_in_words():
    assert spread(1.29, 1.38, 1.33).text() == "1.33 [1.29, 1.38]"
    assert spread(1.29, 1.38, 1.33).text(".1f") == "1.3 [1.3, 1.4]"
    assert undefined().text() == "L0 not reached"
    assert undefined().text(missing="nothing measured") == "nothing measured"
    assert Estimate(np.array([0.5, np.nan])).text() == "0.5 (no interval)"
    assert recorded_text({"value": 0.5, "lo": None, "hi": None}) == "0.5 (no interval)"


def test_two_runs_agree_where_their_intervals_overlap():
    x = spread(0.9, 1.1)
    assert x.agrees({"value": 1.15, "lo": 1.05, "hi": 1.25}) is True
    assert x.agrees({"value": 1.3, "lo": 1.2, "hi": 1.4}) is False
    assert x.agrees({"value": 1.0, "lo": None, "hi": None}) is None
    assert x.agrees({"value": None, "lo": None, "hi": None}) is None
    assert undefined().agrees({"value": 1.0, "lo": 0.9, "hi": 1.1}) is None
    assert constant(1.0).agrees({"value": 1.0, "lo": 1.0, "hi": 1.0}) is True
    alone = Estimate(np.array([1.0, np.nan]))  # a bare value neither agrees nor differs
    assert alone.agrees({"value": 1.0, "lo": 0.9, "hi": 1.1}) is None
    assert alone.agrees({"value": 2.0, "lo": 1.9, "hi": 2.1}) is None


def test_a_number_before_an_estimate_is_added_to_it():
    one = Estimate(np.array([2.0, 1.0, 3.0]))
    assert (10 + one).draws.tolist() == (one + 10).draws.tolist() == [12.0, 11.0, 13.0]
