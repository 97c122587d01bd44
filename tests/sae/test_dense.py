"""The written-out gradients, dense and sparse, equal autograd on the formulas, by parameter."""

import pytest
import torch

from saelib.config import SAEConfig
from saelib.sae import build_sae
from saelib.sae.base import How
from saelib.sae.sparse import c as sparse_c

ARMS = [("sae", "plain"), ("gated", "two_term"), ("gated", "full")]
MODES = ["unit_norm", "norm_weighted"]


def _problem(arch, mode, bias=0.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    sae = build_sae(SAEConfig(arch=arch, d_in=12, n_latents=40, l1_mode=mode), generator).to(dtype)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.2 * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            ).to(dtype)
        getattr(sae, sae.bias_names()[0]).add_(bias)
    x = torch.randn(24, 12, generator=generator, dtype=torch.float64).to(dtype)
    return sae, x


def _step(sae, x, lam, loss, **how):
    return sae.step(x, lam, How(loss, **how))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("arch", "loss"), ARMS)
@pytest.mark.parametrize(
    "bias", [-100.0, -0.5, 0.0, 5.0], ids=["none fire", "few fire", "half", "nearly all"]
)
def test_gradients_equal_autograd(arch, loss, mode, bias):
    sae, x = _problem(arch, mode, bias)
    x = torch.cat([x, x[:3]])  # repeated rows count twice
    terms = sae.loss_terms(x, 0.3, How(loss))
    terms.total.mean().backward()
    stats, grads = _step(sae, x, 0.3, loss)
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(
            grads[name], parameter.grad, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )
    for name in ("mse", "l1", "aux"):
        torch.testing.assert_close(getattr(stats, name), getattr(terms, name).sum().detach())


needs_compiler = pytest.mark.skipif(not sparse_c.available(), reason="no C compiler")


STEPS = [
    {"sparse": False},
    {"sparse": True},
    pytest.param({"sparse": True, "encoder": "screen"}, marks=needs_compiler),
]
NAMES = ["dense", "sparse", "screened"]


@pytest.mark.parametrize("how", STEPS, ids=NAMES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("arch", "loss"), ARMS)
@pytest.mark.parametrize("bias", [-100.0, -0.5, 5.0], ids=["none fire", "few fire", "nearly all"])
def test_float32_gradients_stay_within_1e_5(arch, loss, mode, how, bias):
    sae, x = _problem(arch, mode, bias, torch.float32)
    x = torch.cat([x, x[:3]])
    terms = sae.loss_terms(x, 0.3, How(loss))
    terms.total.mean().backward()
    stats, grads = _step(sae, x, 0.3, loss, **how)
    for name, parameter in sae.named_parameters():
        assert (grads[name] - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name
    for name in ("mse", "l1", "aux"):
        torch.testing.assert_close(
            getattr(stats, name).float(), getattr(terms, name).sum().detach()
        )


@pytest.mark.parametrize("how", STEPS, ids=NAMES)
@pytest.mark.parametrize(("arch", "loss"), ARMS)
def test_step_counts_what_fired_and_what_was_open(arch, loss, how):
    sae, x = _problem(arch, "unit_norm", bias=-1.0, dtype=torch.float32)
    stats, _ = _step(sae, x, 0.3, loss, **how)
    f = sae.encode(x)
    assert torch.equal(stats.fired, (f > 0).any(0))
    assert torch.equal(stats.opened, sae.gate_open(x).any(0))
    assert stats.l0 == (f > 0).sum()
    assert stats.n_open == sae.gate_open(x).sum()
    assert 0 < stats.fired.sum() < sae.config.n_latents


@pytest.mark.parametrize("how", STEPS, ids=NAMES)
@pytest.mark.parametrize("loss", ["two_term", "full"])
def test_an_open_gate_whose_code_is_zero_is_counted_as_a_gate_alone(loss, how):
    sae, x = _problem("gated", "unit_norm", dtype=torch.float32)
    with torch.no_grad():
        sae.b_mag[:10] = -100.0  # gates that open in vain
    stats, _ = _step(sae, x, 0.3, loss, **how)
    f = sae.encode(x)
    assert stats.l0 == (f > 0).sum() < stats.n_open == sae.gate_open(x).sum()
    assert not stats.fired[:10].any()
    assert stats.opened[:10].any()


@pytest.mark.parametrize("how", STEPS, ids=NAMES)
def test_encoder_gradient_has_the_encoders_strides(how):
    sae, x = _problem("sae", "unit_norm", dtype=torch.float32)
    assert _step(sae, x, 0.3, "plain", **how)[1]["W_enc"].stride() == sae.W_enc.stride()


@needs_compiler
def test_sparse_step_does_not_depend_on_the_number_of_threads():
    sae, x = _problem("gated", "unit_norm", bias=-0.5, dtype=torch.float32)
    first = _step(sae, x, 0.3, "full", sparse=True)[1]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if before == 1 else 1)
        again = _step(sae, x, 0.3, "full", sparse=True)[1]
    finally:
        torch.set_num_threads(before)
    for name in ("W_dec", "b_gate", "b_mag", "r_mag"):
        assert torch.equal(first[name], again[name]), name
