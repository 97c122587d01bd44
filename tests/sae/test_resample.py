"""Resampling: each step of the published procedure, the optimiser's moments, and the edges."""

import pytest
import torch

from saelib.config import SAEConfig
from saelib.sae import build_sae
from saelib.sae.base import ENCODER_INIT_NORM, How
from saelib.sae.resample import draw_rows, resample_, row_losses

ARMS = [("sae", "plain"), ("gated", "two_term"), ("gated", "full")]
DEAD = torch.tensor([False, True, False, False, True, True, False, False])


def _trained(arch, loss):
    """An SAE with every parameter and moment non-zero, its optimiser, and rows far from 0."""
    generator = torch.Generator().manual_seed(0)
    sae = build_sae(SAEConfig(arch=arch, d_in=5, n_latents=8), generator)
    optimizer = torch.optim.Adam(sae.parameters(), 1e-2, fused=True)
    x = 4 + torch.randn(64, 5, generator=generator)
    for _ in range(3):
        optimizer.zero_grad()
        sae.loss_terms(x, 0.1, How(loss)).total.mean().backward()
        optimizer.step()
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.3
            optimizer.state[parameter]["exp_avg"].fill_(0.5)
            optimizer.state[parameter]["exp_avg_sq"].fill_(0.25)
    return sae, optimizer, x


def _latent_first(sae, name, tensor):
    return tensor.T if name == "W_enc" else tensor


def _resampled(arch, loss, dead=DEAD):
    sae, optimizer, x = _trained(arch, loss)
    before = {k: v.clone() for k, v in sae.state_dict().items()}
    losses = row_losses(sae, x, 0.1, How(loss), len(x))
    revived = resample_(sae, optimizer, dead, x, losses, torch.Generator().manual_seed(3))
    return sae, optimizer, x, before, revived


@pytest.mark.parametrize(("arch", "loss"), ARMS)
def test_alive_latents_and_shared_biases_stay_bit_identical(arch, loss):
    sae, _, _, before, revived = _resampled(arch, loss)
    assert revived.tolist() == [1, 4, 5]
    for name in ("W_enc", "W_dec", *sae.bias_names()):
        now, then = (
            _latent_first(sae, name, t) for t in (getattr(sae, name).detach(), before[name])
        )
        assert torch.equal(now[~DEAD], then[~DEAD]), name
        assert not torch.equal(now[DEAD], then[DEAD]), name
    assert torch.equal(sae.b_dec, before["b_dec"])


@pytest.mark.parametrize(("arch", "loss"), ARMS)
def test_new_decoder_rows_are_unit_vectors_of_distinct_inputs_minus_b_dec(arch, loss):
    sae, _, x, _, revived = _resampled(arch, loss)
    centred = x - sae.b_dec
    directions = centred / centred.norm(dim=1, keepdim=True)
    match = (sae.W_dec[revived] @ directions.T).max(dim=1)
    torch.testing.assert_close(match.values, torch.ones(3))
    assert len(set(match.indices.tolist())) == 3


@pytest.mark.parametrize(("arch", "loss"), ARMS)
def test_new_encoder_columns_have_a_fifth_of_the_alive_mean_norm(arch, loss):
    sae, _, _, before, revived = _resampled(arch, loss)
    expected = 0.2 * before["W_enc"][:, ~DEAD].norm(dim=0).mean()
    torch.testing.assert_close(sae.W_enc[:, revived].norm(dim=0), expected.expand(3))
    torch.testing.assert_close(
        sae.W_enc[:, revived].T / expected,
        sae.W_dec[revived],
        msg="encoder and decoder share one direction",
    )
    for name in sae.bias_names():
        assert (getattr(sae, name)[revived] == 0).all(), name


@pytest.mark.parametrize(("arch", "loss"), ARMS)
def test_moments_of_revived_latents_are_zero_all_others_and_the_step_counter_are_kept(arch, loss):
    sae, optimizer, *_ = _resampled(arch, loss)
    for name in ("W_enc", "W_dec", *sae.bias_names()):
        state = optimizer.state[getattr(sae, name)]
        assert state["step"] == 3
        for moment, kept in (("exp_avg", 0.5), ("exp_avg_sq", 0.25)):
            values = _latent_first(sae, name, state[moment])
            assert (values[DEAD] == 0).all(), (name, moment)
            assert (values[~DEAD] == kept).all(), (name, moment)
    assert (optimizer.state[sae.b_dec]["exp_avg"] == 0.5).all()


def test_rows_are_drawn_in_proportion_to_squared_loss():
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(3)
    for _ in range(4000):
        counts[draw_rows(torch.tensor([1.0, 2.0, 3.0]), 1, generator)] += 1
    torch.testing.assert_close(counts / 4000, torch.tensor([1.0, 4.0, 9.0]) / 14, atol=0.03, rtol=0)


def test_rows_are_drawn_without_replacement():
    rows = draw_rows(torch.ones(10), 10, torch.Generator().manual_seed(0))
    assert sorted(rows.tolist()) == list(range(10))


def test_no_more_latents_are_revived_than_rows_have_positive_loss():
    sae, optimizer, x = _trained("sae", "plain")
    losses = torch.zeros(64)
    losses[[7, 9]] = 1.0
    revived = resample_(sae, optimizer, DEAD, x, losses, torch.Generator().manual_seed(0))
    assert revived.tolist() == [1, 4]


def test_with_no_latent_alive_the_initial_encoder_norm_is_the_reference():
    sae, _, _, _, revived = _resampled("sae", "plain", torch.ones(8, dtype=torch.bool))
    torch.testing.assert_close(
        sae.W_enc[:, revived].norm(dim=0), torch.full((8,), 0.2 * ENCODER_INIT_NORM)
    )


def test_with_none_dead_nothing_changes():
    sae, _, _, before, revived = _resampled("gated", "full", torch.zeros(8, dtype=torch.bool))
    assert len(revived) == 0
    assert all(torch.equal(v, before[k]) for k, v in sae.state_dict().items())
