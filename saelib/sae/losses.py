"""The training objectives as plain differentiable formulas: the reference every faster step must equal.

Each function returns its terms per row [batch]; the training loss is their sum, averaged over rows.
Errors are sums over d_in. Nothing here depends on a model class or a configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Reduce = (
    Callable[[Tensor], Tensor] | None
)  # sums over ranks in place, where each has a share of the latents


class Terms(NamedTuple):
    """Per-row terms of an objective, each [batch]; `l1` already carries λ. `total` is what is minimised."""

    mse: Tensor
    l1: Tensor
    aux: Tensor

    @property
    def total(self) -> Tensor:
        return self.mse + self.l1 + self.aux


def squared_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """‖x − x̂‖² per row. x, x_hat: [batch, d_in] -> [batch]."""
    if x.shape != x_hat.shape:
        raise ValueError(f"x {tuple(x.shape)} and x_hat {tuple(x_hat.shape)} must have one shape")
    return (x - x_hat).pow(2).sum(-1)


def l1_weights(W_dec: Tensor, l1_mode: str) -> Tensor:
    """What each latent's L1 is multiplied by: 1 with a unit-norm decoder, ‖W_dec,i‖ otherwise. -> [n_latents].

    The norm-weighted form is Anthropic's April 2024 update: without it a free decoder norm games the penalty.
    """
    return W_dec.norm(dim=1) if l1_mode == "norm_weighted" else torch.ones_like(W_dec[:, 0])


def sae_codes(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
    """f = ReLU((x − b_dec) W_enc + b_enc). x: [batch, d_in] -> [batch, n_latents]."""
    return torch.relu((x - b_dec) @ W_enc + b_enc)


def gated_codes(
    x: Tensor, W_enc: Tensor, b_gate: Tensor, r_mag: Tensor, b_mag: Tensor, b_dec: Tensor
) -> tuple[Tensor, Tensor]:
    """Codes and gate pre-activations (f, π) of the Gated SAE, each [batch, n_latents].

    π = (x − b_dec) W_enc + b_gate;  f = 1[π > 0] ⊙ ReLU(((x − b_dec) W_enc) ⊙ exp(r_mag) + b_mag)
    (Rajamanoharan et al. 2024, arXiv 2404.16014, equations 5 to 7). The gate is a step: no gradient passes it.
    """
    a = (x - b_dec) @ W_enc
    pi = a + b_gate
    f = (pi > 0).to(x.dtype) * torch.relu(a * r_mag.exp() + b_mag)
    return f, pi


def over_ranks(part: Tensor, reduce: Reduce) -> Tensor:
    """The sum of all ranks' parts; without `reduce` the part is the whole."""
    return part if reduce is None else reduce(part)


def decode(f: Tensor, W_dec: Tensor, b_dec: Tensor, reduce: Reduce = None) -> Tensor:
    """x̂ = f W_dec + b_dec. f: [batch, n_latents] -> [batch, d_in]."""
    return over_ranks(f @ W_dec, reduce) + b_dec


def sae_loss(
    x: Tensor, params: dict[str, Tensor], lam: float, l1_mode: str, reduce: Reduce = None
) -> Terms:
    """‖x − x̂‖² + λ‖f‖₁ (Bricken et al. 2023), or its decoder-norm-weighted form. x: [batch, d_in].

    With `reduce` params hold a rank's share of the latents; a value without a gradient.
    """
    W_dec, b_dec = params["W_dec"], params["b_dec"]
    f = sae_codes(x, params["W_enc"], params["b_enc"], b_dec)
    l1 = over_ranks(lam * (f * l1_weights(W_dec, l1_mode)).sum(-1), reduce)
    mse = squared_error(x, decode(f, W_dec, b_dec, reduce))
    return Terms(mse, l1, torch.zeros_like(mse))


def gated_loss(
    x: Tensor, params: dict[str, Tensor], lam: float, l1_mode: str, loss: str, reduce: Reduce = None
) -> Terms:
    """Gated objective (arXiv 2404.16014, equation 8). x: [batch, d_in]; loss: "full" or "two_term".

    ‖x − x̂(f)‖² + λ‖ReLU(π)‖₁ + ‖x − x̂_frozen(ReLU(π))‖². In the last term W_dec and b_dec are constants of the
    decoding; the encoder's own x − b_dec keeps its gradient. "two_term" leaves that term out, which the paper
    calls incorrect: then only the sparsity term reaches b_gate, and it can only close gates.
    """
    W_dec, b_dec = params["W_dec"], params["b_dec"]
    f, pi = gated_codes(
        x, params["W_enc"], params["b_gate"], params["r_mag"], params["b_mag"], b_dec
    )
    opened = torch.relu(pi)
    l1 = over_ranks(lam * (opened * l1_weights(W_dec, l1_mode)).sum(-1), reduce)
    mse = squared_error(x, decode(f, W_dec, b_dec, reduce))
    if loss == "two_term":
        return Terms(mse, l1, torch.zeros_like(mse))
    if loss != "full":
        raise ValueError(f"loss = {loss!r}: expected 'full' or 'two_term'")
    return Terms(mse, l1, squared_error(x, decode(opened, W_dec.detach(), b_dec.detach(), reduce)))
