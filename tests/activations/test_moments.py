"""Moments of stored rows, by hand and far from zero."""

import numpy as np
import pytest
import torch
from helpers.random_stores import SITES, D, make_store, make_x
from torch.testing import assert_close

from saelib.activations.moments import row_moments


def test_no_rows_to_average_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="site 1: no rows to take"):
        row_moments(make_store(tmp_path / "s"), 1, np.array([], dtype=np.int64))


def test_moments_by_hand(tmp_path):
    x = {site: torch.zeros(36, D) for site in SITES}
    x[1][0, 0], x[1][1, 0] = 1.0, 3.0
    store = make_store(tmp_path / "s", x)
    mean, mean_sq_dev, mean_sq = row_moments(store, 1, np.array([0, 1]))
    assert mean.tolist() == [2.0, 0, 0, 0, 0, 0]
    assert (mean_sq_dev, mean_sq) == (1.0, 5.0)  # ((1-2)^2 + (3-2)^2) / 2, (1 + 9) / 2


def test_moments_survive_a_mean_far_from_zero(tmp_path):
    x = {site: rows * 1e-2 + 1e4 for site, rows in make_x().items()}
    store, index = make_store(tmp_path / "s", x), np.arange(1, 36)
    exact = x[3][index].double()
    mean, mean_sq_dev, mean_sq = row_moments(store, 3, index, batch=4)
    assert_close(mean, exact.mean(0), rtol=1e-14, atol=0)
    assert mean_sq_dev == pytest.approx(
        float((exact - exact.mean(0)).square().sum(1).mean()), rel=1e-9
    )
    assert mean_sq == pytest.approx(float(exact.square().sum(1).mean()), rel=1e-13)


@pytest.mark.parametrize(
    ("value", "mode", "kind"),
    [
        (0.0, "center_scale", "zero"),
        (0.0, "scale", "zero"),
        (0.1, "center_scale", "equal up to rounding"),
    ],
)
def test_activations_that_are_all_equal_cannot_be_scaled_and_the_error_names_them(
    value, mode, kind, tmp_path
):
    store = make_store(tmp_path / "s", {site: torch.full((36, D), value) for site in SITES})
    moments = row_moments(store, 3, np.arange(36), batch=7)
    with pytest.raises(ValueError, match=rf"site 3: all activations are {kind}, so normalize = "):
        moments.normalizer(mode, "site 3")
    mean, scale = moments.normalizer("center")
    assert_close(mean, torch.full((D,), value))
    assert scale == 1.0


def test_rows_that_differ_by_a_thousandth_are_not_equal(tmp_path):
    x = {site: 1 + rows / 1000 for site, rows in make_x().items()}
    index = np.arange(36)
    mean, scale = row_moments(make_store(tmp_path / "s", x), 1, index).normalizer("center_scale")
    assert (scale * (x[1] - mean)).square().sum(1).mean() == pytest.approx(D, rel=1e-3)
