"""Nearest latents against dense products, in parts of every size."""

import numpy as np
import pytest
import torch

from saelib.measure.features import neighbours
from saelib.measure.features.codes import sorted_codes
from saelib.measure.features.neighbours import nearest_by_cosine, nearest_by_firing


def random_codes(n_rows, n_latents, share, seed):
    """Sparse codes and where they are above 0, [n_rows, n_latents]."""
    rng = np.random.default_rng(seed)
    fires = rng.random((n_rows, n_latents)) < share * rng.random(n_latents)
    fires[:, -1] = False
    rows, latents = fires.nonzero()
    values = rng.random(len(rows)).astype(np.float32) + 0.1
    return sorted_codes(rows, latents, values, n_latents), fires


def jaccards(a, b):
    both = a.T.astype(int) @ b.astype(int)
    return both / np.maximum(a.sum(0)[:, None] + b.sum(0) - both, 1)


@pytest.mark.parametrize("table", [1, 60, 1 << 20])
@pytest.mark.parametrize("chunk", [1, 50, 1 << 20])
def test_co_firing_equals_dense_counts(table, chunk, monkeypatch):
    monkeypatch.setattr(neighbours, "TABLE", table)
    monkeypatch.setattr(neighbours, "CHUNK", chunk)
    codes, fires = random_codes(90, 20, 0.4, seed=0)
    rows = np.arange(3, 80)
    dense = jaccards(fires[rows], fires[rows])
    np.fill_diagonal(dense, 0)
    found, n_rows = nearest_by_firing(codes, codes, rows, 4, same=True)
    assert n_rows == len(rows)
    np.testing.assert_allclose(found.value, -np.sort(-dense, 1)[:, :4], rtol=1e-6)
    for i in range(20):
        for j, value in zip(found.latent[i], found.value[i], strict=True):
            assert j != i
            assert (j == -1) == (value == 0)
            assert value == pytest.approx(dense[i, j] if j >= 0 else 0)
    assert (found.latent[-1] == -1).all()


def test_of_too_many_pairs_every_m_th_row_is_counted(monkeypatch):
    codes, fires = random_codes(300, 20, 0.4, seed=1)
    other, fires_other = random_codes(300, 12, 0.4, seed=2)
    rows = np.arange(300)
    pairs = (fires.sum(1) * fires_other.sum(1)).sum()
    monkeypatch.setattr(neighbours, "PAIRS", int(pairs) // 3 + 1)
    found, n_rows = nearest_by_firing(codes, other, rows, 2, same=False)
    assert n_rows == 100
    dense = jaccards(fires[::3], fires_other[::3])
    np.testing.assert_allclose(found.value, -np.sort(-dense, 1)[:, :2], rtol=1e-6)


@pytest.mark.parametrize("directions", [1, 7, 512])
def test_cosine_equals_dense_products(directions, monkeypatch):
    monkeypatch.setattr(neighbours, "DIRECTIONS", directions)
    W = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    dense = torch.nn.functional.cosine_similarity(W[:, None], W[None], dim=2)
    found = nearest_by_cosine(W, W, 3, same=True)
    expected = (dense - 9 * torch.eye(20)).topk(3)
    assert found.latent.tolist() == expected.indices.tolist()
    np.testing.assert_allclose(found.value, expected.values, rtol=1e-5)


def test_a_single_latent_has_no_neighbour():
    W = torch.ones(1, 4)
    assert nearest_by_cosine(W, W, 3, same=True).latent.shape == (1, 0)
    codes, _ = random_codes(5, 1, 0.9, seed=0)
    assert nearest_by_firing(codes, codes, np.arange(5), 3, same=True).nearest.latent.shape == (
        1,
        0,
    )
