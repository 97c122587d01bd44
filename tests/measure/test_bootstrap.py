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
    analytic = (
        (num - ratio * den).std(ddof=1) / math.sqrt(40) / den.mean()
    )  # standard error of a ratio
    assert low < ratio < high
    assert (high - low) / (2 * 1.96) == pytest.approx(analytic, rel=0.15)


def test_page_bootstrap_needs_two_pages_and_pairs_by_seed():
    assert all(math.isnan(v) for v in bootstrap.bootstrap_pages([1.0], [2.0]))
    assert bootstrap.bootstrap_pages([1.0, 2.0], [2.0, 4.0]) == (0.5, 0.5)
    assert set(bootstrap.page_replicates([1, 0], [1, 9])) == {0, 0.1, 1}  # sums before the ratio
    a, b = (
        bootstrap.page_replicates(np.array([1.0, 2, 3]) + k, np.ones(3), 50, seed=3) for k in (0, 1)
    )
    assert b - a == pytest.approx(np.ones(50))
    with pytest.raises(ValueError, match="one value per page"):
        bootstrap.page_replicates([1.0], [1.0, 2.0])


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
