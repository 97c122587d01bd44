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
    of_pages,
    over_seeds,
    ratio_of_pages,
    recorded_text,
    undefined,
)


def page_sums(sse, ce_sae=(3.0, 5.0, 0.0)):
    columns = {"sse": sse, "sst": [10.0, 20.0, 30.0], "ce_n": [9, 9, 0], "ce_sae": ce_sae}
    losses = {"ce_id": [2.0, 4.0, 0.0], "ce_zero": [6.0, 6.0, 0.0], "ce_mean": [4.0, 6.0, 0.0]}
    return pd.DataFrame(columns | losses)


def spread(low, high, value=None):
    """An estimate whose 95 % interval is [low, high]."""
    middle = (low + high) / 2
    half = (high - low) / 2 / 0.95
    ends = np.linspace(middle - half, middle + half, 1001)
    return Estimate(np.r_[middle if value is None else value, ends])


def test_the_estimate_stands_before_its_replicates():
    x = ratio_of_pages([1.0, 3.0], [2.0, 2.0], n=200)
    assert x.value == 1.0
    assert set(x.draws[1:]) == {0.5, 1.0, 1.5}  # page 1 twice, one of each, page 2 twice
    assert len(x.draws) == 201


def test_estimates_of_proportional_pages_are_constant_and_paired():
    assert of_pages(page_sums([1.0, 2.0, 3.0]), n=50).draws == pytest.approx(np.full(51, 0.1))
    once, twice = (of_pages(page_sums(k * np.array([1.0, 9.0, 2.0])), n=50) for k in (1, 2))
    assert once.draws.std() > 0.01
    assert (twice / once).draws == pytest.approx(np.full(51, 2.0))


def test_loss_recovered_leaves_out_pages_without_a_measured_loss():
    recovered = of_pages(page_sums([1.0, 2.0, 3.0]), "loss_recovered", n=200)
    assert recovered.value == pytest.approx(4 / 6)
    # page 1 twice, page 2 twice, one of each
    assert set(recovered.draws.round(9)) == {0.75, 0.5, round(4 / 6, 9)}
    by_mean = of_pages(page_sums([1.0, 2.0, 3.0]), "loss_recovered_mean")
    assert by_mean.value == pytest.approx(2 / 4)
    with pytest.raises(ValueError, match="column = 'l0'"):
        of_pages(page_sums([1.0, 2.0, 3.0]), "l0")


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


def test_fewer_than_two_pages_give_an_estimate_without_an_interval():
    one = page_sums([1.0, 2.0, 3.0]).head(1)
    x = of_pages(one)
    assert (x.value, np.isnan(x.lo), np.isnan(x.hi)) == (0.1, True, True)
    assert x.compare(0.5) == "unclear"
    nothing = of_pages(one.assign(ce_n=0), "loss_recovered")
    assert np.isnan(nothing.draws).all()
    assert nothing.compare(0.5) == "unreachable"


def test_a_draw_of_pages_without_variance_is_left_out_of_the_interval():
    x = ratio_of_pages([1.0, 0.0], [2.0, 0.0], n=500)  # the second page twice: 0 / 0
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
