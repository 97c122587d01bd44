"""Errors under other codes than the encoder's and other atoms than the decoder's."""

import numpy as np
import pytest
import torch
from helpers.streams import MemoryStream

from saelib.config import SAEConfig
from saelib.measure import dictionary
from saelib.measure.pursuit import nn_omp
from saelib.sae import build_sae


@pytest.fixture(scope="module")
def case():
    """An SAE with a clumsy encoder on rows that four latents of its decoder rebuild exactly."""
    g = torch.Generator().manual_seed(7)
    sae = build_sae(SAEConfig("sae", 16, 32), g).requires_grad_(False)
    sae.set_normalizer_(torch.randn(16, generator=g), 0.5)
    sae.b_dec.copy_(torch.randn(16, generator=g))
    sae.b_enc.fill_(-0.25)  # about five latents a row
    f = torch.zeros(1200, 32)
    for row in f:
        row[torch.randperm(32, generator=g)[:4]] = 1 + torch.rand(4, generator=g)
    x = sae.decode_raw(f)
    return sae, x[:200], x[200:], dictionary.code_errors(sae, x[:200], x[200:])


def test_code_errors_are_in_model_units_and_ordered(case):
    sae, x, _, errors = case
    np.testing.assert_allclose(
        errors["encoder"], (x - sae.reconstruct(x)).square().sum(-1), rtol=1e-3, atol=1e-4
    )
    total = {name: e.sum() for name, e in errors.items()}
    assert (errors["refitted"] <= errors["encoder"] + 1e-5).all()
    assert (
        total["pursuit"] < 0.7 * total["refitted"]
    )  # these rows were made from the decoder's items
    assert total["lasso"] < total["encoder"]
    assert total["pursuit"] < 0.7 * total["random items"]


def test_random_items_are_unit_vectors_of_every_direction():
    atoms = dictionary.random_atoms(4000, 5, seed=3)
    torch.testing.assert_close(atoms.norm(dim=-1), torch.ones(4000))
    assert atoms.mean(0).abs().max() < 0.03
    assert torch.equal(atoms, dictionary.random_atoms(4000, 5, seed=3))
    assert not torch.equal(atoms, dictionary.random_atoms(4000, 5, seed=4))


def test_pursuit_uses_as_many_latents_as_the_encoder(case):
    sae, x, _, errors = case
    used = (sae.encode_raw(x) > 0).sum(-1)
    assert 2 < used.float().mean() < 7
    f = nn_omp(sae.normalize(x) - sae.b_dec, sae.W_dec, used)
    assert (f.count_nonzero(-1) <= used).all()
    rebuilt = (x - sae.decode_raw(f)).square().sum(-1)
    np.testing.assert_allclose(errors["pursuit"], rebuilt, rtol=1e-3, atol=1e-3)


def test_items_are_learned_with_as_many_a_row_as_the_encoder_uses(case, monkeypatch):
    sae, x, train, _ = case
    asked = []

    def learn_atoms(batches, start, k):
        asked.append((torch.cat(list(batches)), k))
        return start

    monkeypatch.setattr(dictionary, "learn_atoms", learn_atoms)
    dictionary.code_errors(sae, x[:8], train[:9])
    [(rows, k)] = asked
    assert k == round(float((sae.encode_raw(x[:8]) > 0).sum(-1).float().mean())) > 1
    torch.testing.assert_close(rows, sae.normalize(train[:9]) - sae.b_dec)
    dictionary._learned_atoms(sae, train[:9], torch.zeros(8, 32))
    assert asked[-1][1] == 1  # one at least


def test_code_errors_need_a_unit_norm_decoder():
    sae = build_sae(SAEConfig("sae", 4, 8, l1_mode="norm_weighted"))
    with pytest.raises(ValueError, match="l1_mode = 'norm_weighted'"):
        dictionary.code_errors(sae, torch.randn(3, 4), torch.randn(3, 4))


def test_other_items_are_searched_with_the_first_saes_number_of_latents(case):
    sae, x, train, errors = case
    other = build_sae(SAEConfig("sae", 16, 48), torch.Generator().manual_seed(8)).requires_grad_(
        False
    )
    other.set_normalizer_(sae.mean, float(sae.scale))
    found = dictionary.code_errors(sae, x, train, {"itself": sae, "48 items": other})
    np.testing.assert_allclose(found["itself"], errors["pursuit"])
    used = (sae.encode_raw(x) > 0).sum(-1)
    target = other.normalize(x) - other.b_dec
    left = (target - nn_omp(target, other.W_dec, used) @ other.W_dec) / other.scale
    np.testing.assert_allclose(found["48 items"], left.square().sum(-1), rtol=1e-4)


def test_shuffled_dimensions_keep_their_values_and_lose_what_they_share():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 1, generator=g) * torch.tensor([1.0, 2.0, -1.0])  # one direction
    shuffled = dictionary.shuffled_dims(x, 3)
    assert torch.equal(shuffled.sort(0).values, x.sort(0).values)
    assert torch.equal(shuffled, dictionary.shuffled_dims(x, 3))
    off_diagonal = torch.corrcoef(shuffled.T) - torch.eye(3)
    assert off_diagonal.abs().max() < 0.05


def test_a_shuffled_stream_is_the_same_however_it_was_reached():
    table = torch.randn(100, 4, generator=torch.Generator().manual_seed(1))
    first, second = (dictionary.ShuffledDims(MemoryStream(table, 10), seed=5) for _ in range(2))
    batches = [next(first)[0] for _ in range(4)]
    second.seek(20)
    assert torch.equal(next(second)[0], batches[2])
    plain = MemoryStream(table, 10)
    for i, batch in enumerate(batches):
        as_stored = next(plain)[0]
        # the recorded runs hold by this order
        assert torch.equal(batch, dictionary.shuffled_dims(as_stored, 5 + 10 * i))
        assert not torch.equal(batch, as_stored)
        assert torch.equal(batch.sort(0).values, as_stored.sort(0).values)
    drawn, as_stored = (s.sample(10, torch.Generator().manual_seed(2), 0) for s in (first, plain))
    assert not torch.equal(drawn, as_stored)
    assert torch.equal(drawn.sort(0).values, as_stored.sort(0).values)
