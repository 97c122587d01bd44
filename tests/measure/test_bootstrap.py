"""Intervals over pages and over seeds, against hand arithmetic."""

import math

import numpy as np
import pytest
import torch

from saelib.measure import bootstrap


def test_page_bootstrap_is_seeded_ratio_of_sums_over_pages():
    rng = np.random.default_rng(1)
    den = rng.uniform(50, 150, size=40)
    num = den * rng.normal(0.3, 0.05, size=40)
    low, high = bootstrap.bootstrap_pages(num, den, 2000, seed=0)
    assert (low, high) == bootstrap.bootstrap_pages(num, den, 2000, seed=0)
    assert (low, high) != bootstrap.bootstrap_pages(num, den, 2000, seed=1)
    ratio = num.sum() / den.sum()
    # standard error of a ratio, by Student's quantile of 39 degrees of freedom
    analytic = (num - ratio * den).std(ddof=1) / math.sqrt(40) / den.mean()
    assert low < ratio < high
    assert (high - low) / (2 * 2.0227) == pytest.approx(analytic, rel=0.1)


@pytest.mark.parametrize("n_pages", [1, 4])
def test_fewer_than_five_pages_have_no_interval(n_pages):
    num, den = np.arange(1.0, 1 + n_pages), np.full(n_pages, 9.0)
    assert np.isnan(bootstrap.bootstrap_pages(num, den)).all()
    more = np.arange(1.0, 6.0), np.full(5, 9.0)
    assert np.isfinite(bootstrap.bootstrap_pages(*more)).all()


def test_no_pages_have_no_replicates():
    assert np.isnan(bootstrap.page_replicates([], [], 7)).all()
    assert np.isnan(bootstrap.page_replicates(np.ones(6), np.zeros(6), 7)).all()
    with pytest.raises(ValueError, match="one value per page"):
        bootstrap.page_replicates([1.0], [1.0, 2.0])


def test_replicates_of_nonnegative_pages_spread_in_the_logarithm_by_the_widening():
    num, den = np.array([1.0, 0, 2, 1, 1]), np.array([1.0, 9, 4, 4, 2])
    times = bootstrap.page_draws(5, 50)
    drawn = (times @ num) / (times @ den)  # sums before the ratio
    ratio = 5 / 20
    n = 20**2 / (1 + 81 + 16 + 16 + 4)
    factor = math.sqrt(n / (n - 1)) * bootstrap.student_975(n - 1) / 1.959964
    expected = ratio * np.exp(factor * np.log(drawn / ratio))
    assert bootstrap.page_replicates(num, den, 50) == pytest.approx(expected)
    assert bootstrap.page_replicates(np.zeros(5), den, 50) == pytest.approx(np.zeros(50))


def test_replicates_of_pages_of_either_sign_spread_as_they_stand():
    num, den = np.array([1.0, -0.5, 2, 1, 1]), np.ones(5)
    factor = math.sqrt(5 / 4) * 2.7764 / 1.959964
    drawn = bootstrap.page_draws(5, 50) @ num / 5
    expected = 0.9 + factor * (drawn - 0.9)
    assert bootstrap.page_replicates(num, den, 50, signed=True) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"a page has -0\.5: expected 0 or more"):
        bootstrap.page_replicates(num, den, 50)


def test_replicates_are_paired_by_seed():
    pages = np.array([1.0, 2, 3, 4, -1])
    a, b = (
        bootstrap.page_replicates(pages + k, np.ones(5), 50, seed=3, signed=True) for k in (0, 1)
    )
    assert b - a == pytest.approx(np.ones(50))
    pages = np.array([1.0, 2, 3, 4, 9])
    a, b = (bootstrap.page_replicates(k * pages, np.ones(5), 50) for k in (1, 2))
    assert b / a == pytest.approx(np.full(50, 2.0))


def test_draws_are_made_once_and_nobody_changes_them():
    times = bootstrap.page_draws(5, 50)
    assert bootstrap.page_draws(5, 50) is times
    assert (times.sum(1) == 5).all()
    with pytest.raises(ValueError, match="read-only"):
        times[0, 0] = 1


def test_widening_by_hand():
    assert bootstrap.widening(np.ones(4)) != bootstrap.widening(np.ones(4))  # nan
    assert bootstrap.widening(np.full(6, 3.0)) == pytest.approx((6 / 5) ** 0.5 * 2.5706 / 1.959964)
    one_long = np.array([1e9, 1, 1, 1, 1])  # as two equal ones, no fewer
    assert bootstrap.widening(one_long) == pytest.approx(2**0.5 * 12.7062 / 1.959964)
    assert bootstrap.widening(np.ones(10_000)) == pytest.approx(1, abs=1e-3)


def test_unequal_pages_weigh_as_fewer_equal_ones():
    assert bootstrap.effective_pages([1.0, 1.0]) == 2
    assert bootstrap.effective_pages([1.0, 3.0]) == pytest.approx(1.6)
    assert math.isnan(bootstrap.effective_pages([0.0, 0.0]))


def test_the_heaviest_page_s_share():
    assert bootstrap.heaviest_share([1.0, 3.0, 0.0]) == 0.75
    assert bootstrap.heaviest_share([-3.0, 1.0]) == 0.75
    assert bootstrap.heaviest_share([0.0]) == bootstrap.heaviest_share([]) == 0


@pytest.mark.parametrize(
    ("df", "quantile"), [(4.5, 2.6589), (7.5, 2.3330), (40, 2.0211), (100, 1.9840)]
)
def test_t_quantiles_between_those_of_the_table(df, quantile):
    assert bootstrap.student_975(df) == pytest.approx(quantile, abs=4e-3)


def test_seed_interval_by_hand():
    low, high = bootstrap.seed_interval([1.0, 2.0, 3.0])  # mean 2, s 1, t(2) = 4.3027
    assert (low, high) == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)))
    assert all(math.isnan(v) for v in bootstrap.seed_interval([1.0]))


@pytest.mark.parametrize("df", [1, 2, 5, 12, 30])
def test_t_quantiles_hold_97_5_percent(df):
    t = torch.linspace(0, bootstrap.T_975[df - 1], 200_001, dtype=torch.float64)
    c = math.gamma((df + 1) / 2) / math.sqrt(df * math.pi) / math.gamma(df / 2)
    assert 0.5 + torch.trapezoid(c * (1 + t**2 / df) ** (-(df + 1) / 2), t).item() == pytest.approx(
        0.975, abs=1e-5
    )
