"""The baseline without structure between dimensions: the λ tried, and values at one L0."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.f3_cases import COMPARED, params

from saelib.study import f3_shuffled


@pytest.fixture
def tried(monkeypatch):
    """λ tried by site, of SAEs whose L0 is 100 / λ."""
    lams = []

    def point(ws, p, site, lam):
        lams.append((site, lam))
        return 100 / lam, 0.5 + lam / 100

    monkeypatch.setattr(f3_shuffled, "measured_point", point)
    return lams


def test_a_curve_goes_on_until_the_l0_lies_between_two_lambdas(tried):
    points = f3_shuffled.train(None, params(shuffled_lambdas=[20.0]), COMPARED)
    for by_lambda in points.values():
        l0 = [l0 for l0, _ in by_lambda.values()]
        assert min(l0) <= 32 <= max(l0)
        assert len(by_lambda) <= 1 + f3_shuffled.FURTHER
    fvu = f3_shuffled.matched_fvu(points, 32.0)
    assert all(value == pytest.approx(0.53, abs=0.02) for value in fvu.values())


def test_an_l0_out_of_reach_is_none(tried):
    points = f3_shuffled.train(None, params(shuffled_lambdas=[5000.0]), COMPARED)
    assert set(f3_shuffled.matched_fvu(points, 32.0).values()) == {None}


def test_ordinary_rows_are_drawn_the_same_each_time_with_their_pages():
    rows = torch.arange(20.0)[:, None]
    store = SimpleNamespace(
        mask=lambda tokens, split: np.arange(20) % 2 == 0,
        rows=lambda site, index: rows[index],
        tokens={"page": np.arange(20)},
    )
    x, page = f3_shuffled.ordinary_rows(store, 2, "test", 4)
    again, _ = f3_shuffled.ordinary_rows(store, 2, "test", 4)
    assert torch.equal(x, again)
    assert x[:, 0].tolist() == page.tolist()
    assert len(f3_shuffled.ordinary_rows(store, 2, "test", 99)[0]) == 10
