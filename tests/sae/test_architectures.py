"""What holds for every architecture of the table, and for one that gives only what it must."""

import pytest
import torch
from helpers.scratch_sae import HardTanhSAE

from saelib.config import ConfigError, SAEConfig, TrainConfig
from saelib.sae import ARCHITECTURES, build_sae, sparse
from saelib.sae.base import How
from saelib.sae.spec import run_id
from saelib.sae.trainer import Trainer

D_IN, N_LATENTS = 12, 40


def perturbed(sae, seed=1):
    """The SAE with all parameters and the normaliser away from where they start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    sae.set_normalizer_(torch.randn(D_IN, generator=generator), 0.5)
    return sae.requires_grad_(False)


def fresh(arch):
    return build_sae(SAEConfig(arch, D_IN, N_LATENTS), torch.Generator().manual_seed(0))


def rows(n=30):
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(2))


def scattered(codes, values, n_rows):
    """Sparse codes as a matrix."""
    matrix = torch.zeros(n_rows, N_LATENTS)
    matrix[torch.repeat_interleave(codes.crow.diff()), codes.col.long()] = values
    return matrix


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_sparse_codes_are_those_of_the_dense_encoder(arch):
    sae = perturbed(fresh(arch))
    x = rows()
    codes, values = sae.encode_sparse(x)
    torch.testing.assert_close(scattered(codes, values, len(x)), sae.encode(x))
    opened = scattered(codes, torch.ones_like(values), len(x)) > 0
    assert torch.equal(opened, sae.gate_open(x))
    assert sae.has_gate or (values > 0).all()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_folded_sae_works_in_model_units(arch):
    sae = perturbed(fresh(arch))
    folded = sae.folded()
    x = 3 * rows()
    torch.testing.assert_close(folded.encode(x), sae.encode_raw(x) / sae.scale)
    torch.testing.assert_close(folded.decode(folded.encode(x)), sae.reconstruct(x))
    torch.testing.assert_close(folded.reconstruct(x), sae.reconstruct(x))
    assert folded.config.normalize == "none"
    assert torch.equal(folded.W_enc, sae.W_enc)


@pytest.fixture
def scratch(monkeypatch):
    """The table with one more line."""
    monkeypatch.setitem(ARCHITECTURES, "hardtanh", HardTanhSAE)
    return SAEConfig("hardtanh", D_IN, N_LATENTS)


def test_an_architecture_needs_no_more_than_its_encoder_and_its_loss(scratch):
    sae = build_sae(scratch, torch.Generator().manual_seed(0))
    x = 5 * rows(64)
    before = float(sae.loss_terms(x, 0.01, How("hardtanh")).total.mean().detach())
    cfg = TrainConfig(
        loss="hardtanh", lam=0.01, tokens=64 * 100, batch_size=64, lr=1e-2, resample_at=(0.5,)
    )
    trainer = Trainer(sae, cfg)
    for _ in range(100):
        trainer.step_(x)
    trainer.resample_(x)
    assert trainer.history.table[-1]["loss"] < 0.9 * before
    assert trainer.takes_sparse_step() in (True, False)
    trainer.finish()


def test_the_default_step_is_autograd_s(scratch):
    sae = build_sae(scratch, torch.Generator().manual_seed(0))
    how = How("hardtanh", sparse=True)
    x = rows()
    terms = sae.loss_terms(x, 0.3, how)
    terms.total.mean().backward()
    stats, grads = sae.step(x, 0.3, how)
    for name, parameter in sae.named_parameters():
        assert torch.equal(grads[name], parameter.grad), name
        assert grads[name].stride() == parameter.stride()
    assert float(stats.mse) == pytest.approx(float(terms.mse.detach().sum()))
    assert torch.equal(stats.fired, (sae.encode(x) > 0).any(0))


def test_a_sparse_default_encoder_finds_the_codes_of_the_scratch_class(scratch):
    sae = perturbed(build_sae(scratch))
    codes, values = sae.encode_sparse(rows(), "screen")
    torch.testing.assert_close(scattered(codes, values, 30), sae.encode(rows()))
    error, _, _ = sparse.decode(rows(), sae.W_dec, sae.b_dec, codes, values, 1.0)
    torch.testing.assert_close(rows() + error, sae.decode(sae.encode(rows())))


def test_ranks_cannot_share_the_latents_of_an_architecture_that_does_not_say_so(scratch):
    with pytest.raises(ConfigError, match="arch = 'hardtanh': ranks cannot share its latents"):
        build_sae(scratch, shard=slice(0, N_LATENTS // 2))


class MeasuredAlone(HardTanhSAE):
    """An architecture without an objective."""

    LOSSES = ()


def test_an_architecture_without_an_objective_is_measured_alone(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "alone", MeasuredAlone)
    config = SAEConfig("alone", D_IN, N_LATENTS)
    with pytest.raises(ConfigError, match="arch 'alone' cannot be trained; it can be opened"):
        run_id(config, TrainConfig(), "store")
    with pytest.raises(ConfigError, match="a MeasuredAlone cannot be trained; it can be"):
        Trainer(build_sae(config), TrainConfig())


def test_biases_start_and_start_again_where_an_option_says():
    sae = build_sae(SAEConfig("jumprelu", D_IN, N_LATENTS, options={"initial_threshold": 0.25}))
    assert [sae.bias_start(name) for name in ("b_enc", "threshold")] == [0.0, 0.25]
    assert (sae.threshold == 0.25).all()
    assert (sae.b_enc == 0).all()
