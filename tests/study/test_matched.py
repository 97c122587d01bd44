"""Interpolation at one L0 and the next λ, on curves worked out by hand."""

import math

import pytest

from saelib.study.matched import (
    interpolate_matched_l0,
    interpolation_error,
    propose_lambda,
    three_digits,
    times,
)


def test_matched_l0_is_linear_in_the_logarithms_and_never_extrapolates():
    l0, fvu = [100, 10], [0.1, 0.4]
    assert interpolate_matched_l0(l0, fvu, math.sqrt(1000)) == pytest.approx(0.2)  # √(0.1 · 0.4)
    assert interpolate_matched_l0(l0, fvu, 10) == pytest.approx(0.4)
    assert interpolate_matched_l0(l0, fvu, 9.99) is None
    assert interpolate_matched_l0(l0, fvu, 100.01) is None
    assert interpolate_matched_l0([10, 20, 80], [0.4, 0.2, 0.1], 40) == pytest.approx(
        math.sqrt(0.02)
    )
    assert interpolate_matched_l0(l0, [1.0, -1.0], math.sqrt(1000), log_y=False) == pytest.approx(0)


def test_matched_l0_leaves_out_collapsed_points_and_averages_equal_ones():
    assert interpolate_matched_l0([0, 20], [1.0, 0.3], 10) is None
    assert interpolate_matched_l0([10, 20], [math.nan, 0.3], 15) is None
    assert interpolate_matched_l0([10, 10], [0.1, 0.4], 10) == pytest.approx(0.2)
    assert interpolate_matched_l0([], [], 10) is None


def test_interpolation_may_be_off_by_what_a_bend_of_the_curve_does():
    # the parabola y = b (x - x0)(x1 - x) / 2 has second derivative -b and is 0 at both points
    low, target, high = math.log(10), math.log(16), math.log(40)
    off = (target - low) * (high - target) / 2
    assert interpolation_error([40, 10], 16) == pytest.approx(0.2 * off)
    assert interpolation_error([2, 10, 40, 90], 16) == pytest.approx(0.2 * off)
    assert interpolation_error([40, 10], 16, "loss_recovered_mean") == pytest.approx(0.1 * off)
    assert interpolation_error([10, 16, 40], 16) == 0
    for outside in (9.9, 40.1):
        assert math.isnan(interpolation_error([40, 10], outside))
    assert math.isnan(interpolation_error([], 16))
    with pytest.raises(KeyError):
        interpolation_error([10, 40], 16, "l0")


def test_next_lambda_bisects_in_the_logarithm_and_stops_when_close():
    assert propose_lambda([(1, 100), (4, 10)], 30) == pytest.approx(2)
    assert propose_lambda([(1, 100), (4, 10), (2, 45)], 30) == pytest.approx(math.sqrt(8))
    assert propose_lambda([(1, 40), (2, 25)], 30) is None  # within a factor of 2
    assert propose_lambda([(1, 30)], 30) is None  # on it
    assert propose_lambda([(1, 100), (1.005, 0)], 30) is None  # a cliff
    assert propose_lambda([(1, 100), (4, 10)], 30, max_ratio=math.inf) is None
    cliff = [(1, 100), (4, 0), (16, 0)]  # a collapsed point brackets nothing to interpolate between
    assert propose_lambda(cliff, 30, max_ratio=math.inf) == pytest.approx(2)


def test_next_lambda_goes_outwards_until_the_bound():
    assert propose_lambda([(1, 10)], 30) == pytest.approx(1 / 4)  # one point has no slope
    assert propose_lambda([(2, 50)], 30) == pytest.approx(8)
    assert propose_lambda([(1, 10), (4, 0)], 30) == pytest.approx(1 / 4)  # nor a collapsed one
    assert propose_lambda([(4000, 50)], 30) == pytest.approx(1e4)
    assert propose_lambda([(1e4, 50)], 30) is None
    assert propose_lambda([(3e-4, 5)], 30) == pytest.approx(1e-4)
    assert propose_lambda([(1e-4, 5)], 30) is None
    with pytest.raises(ValueError, match="at least one"):
        propose_lambda([(0, 5)], 30)


def test_next_lambda_follows_the_slope_of_the_curves_end_and_a_fifth_further():
    assert propose_lambda([(1, 10), (2, 5)], 30) == pytest.approx(1 / 3 / 1.2)  # L0 = 10 / λ
    assert propose_lambda([(2, 50), (1, 100)], 30) == pytest.approx(2 * 50 / 30 * 1.2)
    ends = (
        4 * 2 ** (math.log(90 / 80) / math.log(100 / 90)) * 1.2
    )  # the last two points count, not the first
    assert propose_lambda([(1, 400), (2, 100), (4, 90)], 80) == pytest.approx(ends)
    assert propose_lambda([(1, 51), (2, 50)], 5) == pytest.approx(
        8
    )  # hardly any slope: no more than a step
    assert propose_lambda([(1, 50.0001), (2, 50)], 5) == pytest.approx(
        8
    )  # nearly none: no overflow
    assert propose_lambda([(1, 50), (2, 51)], 30) == pytest.approx(8)  # none at all
    assert propose_lambda([(1, 0), (2, 0)], 30) == pytest.approx(1 / 4)


def test_next_lambda_reaches_the_target_on_a_smooth_curve():
    pairs = [(1.0, 1000.0)]  # L0 = 1000 / λ
    while (lam := propose_lambda(pairs, 30)) is not None:
        pairs.append((lam, 1000 / lam))
    assert len(pairs) < 8
    l0 = [p[1] for p in pairs]
    assert interpolate_matched_l0(l0, [1 / v for v in l0], 30) == pytest.approx(1 / 30)


def test_a_lambda_has_three_significant_digits():
    assert three_digits(0.30864) == 0.309
    assert three_digits(12345) == 12300
    assert times([1.23456, 2], 0.25) == [0.309, 0.5]
