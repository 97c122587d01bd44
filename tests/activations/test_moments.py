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
