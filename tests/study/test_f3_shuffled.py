"""The baseline without structure between dimensions: the λ tried, and values at one L0."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.f3_cases import COMPARED, params
from helpers.workspaces import workspace_alone

from saelib.measure.dictionary import shuffled_dims
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


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    yield from workspace_alone(tmp_path_factory.mktemp("home"))


def test_a_point_is_of_an_sae_of_shuffled_rows_on_shuffled_rows(workspace):
    p = params(n_latents=64, tokens=4096, lr=3e-3, seeds=[1], split_tokens=200)
    l0, fvu = f3_shuffled.measured_point(workspace, p, 3, 0.5)
    spec = workspace.spec("plain", 3, lam=0.5, seed=1, **p.spec_fields())
    sae = f3_shuffled.without_structure(workspace, spec)
    assert (sae.config.site, sae.config.arch, sae.config.n_latents) == (3, "sae", 64)
    x = {
        split: shuffled_dims(f3_shuffled.ordinary_rows(workspace.store, 3, split, 200)[0], 0)
        for split in ("val", "test")
    }
    assert l0 == pytest.approx(float((sae.encode_raw(x["val"]) > 0).sum(1).float().mean()))
    left = (x["test"] - sae.reconstruct(x["test"])).square().sum()
    about = (x["test"] - x["test"].mean(0)).square().sum()
    assert fvu == pytest.approx(float(left / about), rel=1e-4)
    assert 0 < l0 < 64
