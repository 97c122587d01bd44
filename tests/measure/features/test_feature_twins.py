"""Twins of latents in other SAEs, against dense cosines and codes."""

import numpy as np
import pytest
import torch
from helpers.features import DEAD, N_LATENTS, Naive, make_sae

from saelib.measure.features import IndexOptions, build_index, matches, twins

SMALL = IndexOptions(contexts=2, batch=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("twins")


@pytest.fixture(scope="module")
def base(store, folder):
    return build_index(make_sae(store), store, None, folder / "base", options=SMALL)


@pytest.fixture(scope="module")
def shuffled(store, folder):
    """The same latents in another order, the last ten of them turned elsewhere."""
    sae = make_sae(store)
    order = torch.randperm(N_LATENTS, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(10, sae.W_dec.shape[1], generator=torch.Generator().manual_seed(2))
    for name in ("W_dec", "b_enc"):
        getattr(sae, name).copy_(getattr(sae, name)[order])
    sae.W_enc.copy_(sae.W_enc[:, order])
    sae.W_dec[-10:] = noise / noise.norm(dim=1, keepdim=True)
    return build_index(sae, store, None, folder / "shuffled", options=SMALL), order.numpy()


def test_twins_of_another_seed_are_the_largest_of_dense_cosines_and_jaccards(store, base, folder):
    other_sae = make_sae(store, "gated", seed=3, n_latents=60)
    other = build_index(other_sae, store, None, folder / "other", options=SMALL)
    a, b = Naive(base.sae, store), Naive(other_sae, store)
    cosine = torch.nn.functional.cosine_similarity(
        base.sae.W_dec[:, None], other_sae.W_dec[None], dim=2
    ).numpy()
    fires_a, fires_b = (naive.g > 0 for naive in (a, b))
    both = fires_a.T.astype(int) @ fires_b.astype(int)
    either = fires_a.sum(0)[:, None] + fires_b.sum(0) - both
    jaccard = both / np.maximum(either, 1)
    table = twins(base, other)
    assert table["twin"].tolist() == cosine.argmax(1).tolist()
    np.testing.assert_allclose(table["cosine"], cosine.max(1), rtol=1e-5)
    mutual = cosine.argmax(0)[cosine.argmax(1)] == np.arange(N_LATENTS)
    assert table["mutual"].tolist() == mutual.tolist()
    np.testing.assert_allclose(table["jaccard"], jaccard.max(1), rtol=1e-6)
    found = table["firing_twin"].to_numpy()
    fires = jaccard.max(1) > 0
    assert (found >= 0).tolist() == fires.tolist()
    np.testing.assert_allclose(
        jaccard[np.flatnonzero(fires), found[fires]], jaccard.max(1)[fires], rtol=1e-6
    )
    assert table.attrs["n_rows"] == a.ordinary.sum()


def test_the_same_latents_in_another_order_are_each_other_s_twins(base, shuffled):
    other, order = shuffled
    table = twins(base, other)
    kept = order[:-10]
    assert table.loc[kept, "twin"].tolist() == list(range(N_LATENTS - 10))
    assert table.loc[kept, "mutual"].all()
    fires = base.table["n_fired"] > 0
    assert (table.loc[fires, "jaccard"] > 0.99).all()
    assert table.loc[DEAD, "firing_twin"] == -1
    assert not table.loc[DEAD, "firing_mutual"]


def test_another_site_has_twins_by_firing_alone(store, base, folder):
    deeper = build_index(make_sae(store, site=4), store, None, folder / "deeper", options=SMALL)
    table = twins(base, deeper)
    assert (table["twin"] == -1).all()
    assert not table["mutual"].any()
    assert table["cosine"].isna().all()
    assert (table["jaccard"] > 0).any()


def test_a_match_at_one_site_is_the_nearest_direction_with_that_pair_s_jaccard(store, base, folder):
    other_sae = make_sae(store, seed=4)
    other = build_index(other_sae, store, None, folder / "matched", options=SMALL)
    fires_a, fires_b = (Naive(sae, store).g > 0 for sae in (base.sae, other_sae))
    table = matches(base, other)
    twin = table["twin"].to_numpy()
    assert twin.tolist() == twins(base, other)["twin"].tolist()
    both = (fires_a & fires_b[:, twin]).sum(0)
    either = (fires_a | fires_b[:, twin]).sum(0)
    assert (both > 0).any()
    np.testing.assert_allclose(table["jaccard"], both / np.maximum(either, 1), rtol=1e-6)


def test_a_match_at_another_site_is_the_nearest_by_firing(store, base, folder):
    sae = make_sae(store, site=4, seed=5)
    deeper = build_index(sae, store, None, folder / "below", options=SMALL)
    table = matches(base, deeper)
    every = twins(base, deeper)
    assert table["twin"].tolist() == every["firing_twin"].tolist()
    assert table["mutual"].tolist() == every["firing_mutual"].tolist()
    assert table["jaccard"].tolist() == every["jaccard"].tolist()
    assert table["cosine"].isna().all()


def test_another_text_is_refused(store, base, folder):
    options = IndexOptions(split="val", contexts=2)
    other = build_index(make_sae(store), store, None, folder / "val", options=options)
    with pytest.raises(ValueError, match="source is 'test' in the one and 'val' in the other"):
        twins(base, other)
