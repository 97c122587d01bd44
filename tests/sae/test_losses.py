"""The objectives by hand arithmetic, and the Gated SAE's gradients (arXiv 2404.16014, sec. 3)."""

import pytest
import torch

from saelib.sae import losses
from saelib.sae.gated import gated_codes, gated_loss
from saelib.sae.relu import relu_loss

X = torch.tensor([[3.0, 0.0]])


def _sae_params():
    return {
        "W_enc": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        "W_dec": torch.tensor([[1.0, 0.0], [0.0, 2.0]]),
        "b_enc": torch.tensor([-1.0, 0.5]),
        "b_dec": torch.tensor([0.0, 0.0]),
    }


def test_sae_terms_by_hand():
    # pre = (3-1, 0+.5) = (2, .5); f = pre; x_hat = (2, 1); error = (1, -1): 2; l1 = .1 * 2.5
    terms = relu_loss(X, _sae_params(), 0.1, "unit_norm")
    torch.testing.assert_close(terms.mse, torch.tensor([2.0]))
    torch.testing.assert_close(terms.l1, torch.tensor([0.25]))
    torch.testing.assert_close(terms.total, torch.tensor([2.25]))


def test_norm_weighted_l1_by_hand():
    # f = (2, .5) with decoder norms (1, 2): 2 + 1
    terms = relu_loss(X, _sae_params(), 0.1, "norm_weighted")
    torch.testing.assert_close(terms.l1, torch.tensor([0.3]))


def _gated_params():
    return {
        "W_enc": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        "W_dec": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        "b_gate": torch.tensor([-1.0, -1.0]),
        "r_mag": torch.tensor([0.0, 0.0]),
        "b_mag": torch.tensor([1.0, 5.0]),
        "b_dec": torch.tensor([1.0, 0.0]),
    }


def test_gated_terms_by_hand():
    # x - b_dec = (2, 0); pi = (1, -1): gate open for 0 only; f = (2+1, closed) = (3, 0)
    # x_hat = (3+1, 0): error 1. l1 = .5 * 1. aux: ReLU(pi) = (1, 0) -> (2, 0): error 1.
    terms = gated_loss(X, _gated_params(), 0.5, "unit_norm", "full")
    torch.testing.assert_close(terms.mse, torch.tensor([1.0]))
    torch.testing.assert_close(terms.l1, torch.tensor([0.5]))
    torch.testing.assert_close(terms.aux, torch.tensor([1.0]))
    assert gated_loss(X, _gated_params(), 0.5, "unit_norm", "two_term").aux.item() == 0


def test_gate_bias_lies_outside_the_product():
    # pi = (x - b_dec) W + b_gate: with W = 2 and b_gate = -1, pi = 2x - 1, not 2(x - 1)
    one = torch.ones(1)
    f, pi = gated_codes(
        torch.tensor([[3.0]]), 2 * torch.ones(1, 1), -one, 0 * one, 0 * one, 0 * one
    )
    assert pi.item() == 5
    assert f.item() == 6


@pytest.fixture
def gated():
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (6, 10), "W_dec": (10, 6), "b_dec": (6,)} | dict.fromkeys(
        ("b_gate", "r_mag", "b_mag"), (10,)
    )
    params = {
        k: 0.5 * torch.randn(*s, generator=generator, dtype=torch.float64)
        for k, s in shapes.items()
    }
    x = torch.randn(32, 6, generator=generator, dtype=torch.float64)
    return x, {k: v.requires_grad_() for k, v in params.items()}


def _grads(loss, params):
    return dict(
        zip(params, torch.autograd.grad(loss, params.values(), allow_unused=True), strict=True)
    )


def test_auxiliary_term_gives_the_decoder_no_gradient(gated):
    x, params = gated
    grads = _grads(gated_loss(x, params, 0.3, "unit_norm", "full").aux.mean(), params)
    assert grads["W_dec"] is None
    assert grads["W_enc"].abs().sum() > 0


def test_auxiliary_term_reaches_b_dec_through_the_encoder_alone(gated):
    x, params = gated
    full = _grads(gated_loss(x, params, 0.3, "unit_norm", "full").aux.mean(), params)["b_dec"]
    frozen = {k: v.detach() for k, v in params.items()}
    centre = params["b_dec"]
    codes = torch.relu((x - centre) @ frozen["W_enc"] + frozen["b_gate"])
    by_hand = losses.squared_error(x, codes @ frozen["W_dec"] + frozen["b_dec"]).mean()
    torch.testing.assert_close(full, torch.autograd.grad(by_hand, centre)[0])


def test_reconstruction_gives_the_gate_bias_no_gradient(gated):
    x, params = gated
    grads = _grads(gated_loss(x, params, 0.3, "unit_norm", "full").mse.mean(), params)
    assert grads["b_gate"] is None
    assert grads["b_mag"].abs().sum() > 0


def test_with_two_terms_the_gate_bias_is_only_ever_pushed_shut(gated):
    x, params = gated
    grads = _grads(gated_loss(x, params, 0.3, "unit_norm", "two_term").total.mean(), params)
    assert (grads["b_gate"] >= 0).all()
    assert (grads["b_gate"] > 0).any()


def test_the_auxiliary_term_can_open_gates(gated):
    x, params = gated
    grads = _grads(gated_loss(x, params, 0.01, "unit_norm", "full").total.mean(), params)
    assert (grads["b_gate"] < 0).any()


def test_mismatched_shapes_are_refused_instead_of_broadcast():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(1, 3\)"):
        losses.squared_error(torch.zeros(2, 3), torch.zeros(1, 3))


def test_an_unknown_loss_is_refused_by_name(gated):
    x, params = gated
    with pytest.raises(ValueError, match="loss = 'ful': expected 'full' or 'two_term'"):
        gated_loss(x, params, 0.3, "unit_norm", "ful")
