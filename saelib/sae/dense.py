"""The training step's gradients written out, term by term: what autograd gives for `losses`, with less work.

Two products are saved against autograd: the gradient of b_dec through the encoder needs only a sum over the batch
(Σ_b ∂pre_b) W_encᵀ, never the [batch, d_in] product, and elementwise passes are fused by hand. The tests hold every
function here equal to autograd on `losses`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

SUM_ERROR = (
    2.0**-22
)  # of adding up a product in float32, relative to ‖x‖ ‖w‖, for each of its d_in terms: four units


class StepStats(NamedTuple):
    """What one batch tells: sums over its rows (float tensors, scalars), and which latents fired or opened."""

    mse: Tensor
    l1: Tensor  # carries λ
    aux: Tensor
    l0: Tensor
    n_open: Tensor  # open gates (of `SAE`: active codes)
    fired: Tensor  # bool [n_latents]: f > 0 on some row
    opened: Tensor  # bool [n_latents]: the gate (of `SAE`: the code) was open on some row


Gradients = dict[str, Tensor]
Reduce = (
    Callable[[Tensor], Tensor] | None
)  # sums over ranks in place, where each has a share of the latents


class Entries(NamedTuple):
    """Open entries of a batch, row by row, and their places latent by latent."""

    crow: Tensor  # int64 [rows + 1]
    col: Tensor  # int32 [entries]
    value: Tensor  # float32 [entries], a = (x − b_dec) W_enc without the bias
    ccol: Tensor  # int64 [n_latents + 1]
    row: Tensor  # int32 [entries]
    order: Tensor  # int32 [entries]


def entries_of(a: Tensor, bias: Tensor) -> Entries:
    """Entries of a [rows, n_latents] with a + bias > 0."""
    row, col = (a + bias > 0).nonzero(as_tuple=True)
    return entries_at(row, col, a[row, col], a.shape)


def entries_at(row: Tensor, col: Tensor, value: Tensor, shape: Sequence[int]) -> Entries:
    """Entries at int64 places in a matrix of that shape, given row by row."""
    order = col.argsort(stable=True)
    starts = [
        pad(at.bincount(minlength=n).cumsum(0), (1, 0))
        for at, n in zip((row, col), shape, strict=True)
    ]
    return Entries(starts[0], col.int(), value, starts[1], row[order].int(), order.int())


def decoder_norm_gradient(code_sums: Tensor, W_dec: Tensor, factor: float) -> Tensor:
    """∂/∂W_dec of factor · Σ_i code_sums_i ‖W_dec,i‖; code_sums [n_latents] over rows. -> [n_latents, d_in]."""
    return (factor * code_sums / W_dec.norm(dim=1).clamp_min(1e-12))[:, None] * W_dec


def penalty_of(W_dec: Tensor, l1_mode: str, factor: float) -> Tensor | float:
    """∂(factor · L1)/∂f: one number, or [n_latents] where the penalty is norm-weighted."""
    return factor * W_dec.norm(dim=1) if l1_mode == "norm_weighted" else factor


def encoder_product(x_c: Tensor, W_enc: Tensor, encoder: str = "exact") -> Tensor:
    """x_c W_enc [batch, n_latents]; with encoder "bfloat16" multiplied in bfloat16, which is not exact."""
    return (
        (x_c.bfloat16() @ W_enc.bfloat16()).to(x_c.dtype) if encoder == "bfloat16" else x_c @ W_enc
    )


def over_ranks(part: Tensor, reduce: Reduce) -> Tensor:
    """The sum of all ranks' parts; without `reduce` the part is the whole."""
    return part if reduce is None else reduce(part)


def decoding_error(x: Tensor, f: Tensor, p: Gradients, reduce: Reduce) -> Tensor:
    """x̂ − x [batch, d_in]."""
    if reduce is None:
        return torch.addmm(p["b_dec"], f, p["W_dec"]).sub_(x)
    return reduce(f @ p["W_dec"]).add_(p["b_dec"]).sub_(x)


@torch.no_grad()
def sae_step(
    x: Tensor, p: Gradients, lam: float, l1_mode: str, encoder: str = "exact", reduce: Reduce = None
) -> tuple[StepStats, Gradients]:
    """Loss terms and gradients of `losses.sae_loss`, averaged over rows. x: [batch, d_in] normalised.

    With `reduce` p holds a rank's share of the latents: x̂ and b_dec's gradient are summed over ranks, all else is of
    the share's latents alone.
    """
    W_enc, W_dec, n = p["W_enc"], p["W_dec"], len(x)
    x_c = x - p["b_dec"]
    f = encoder_product(x_c, W_enc, encoder).add_(p["b_enc"]).relu_()  # [batch, n_latents]
    error = decoding_error(x, f, p, reduce)
    penalty = penalty_of(W_dec, l1_mode, lam / n)
    active = f > 0
    l1 = (f * penalty).sum() * n
    stats = StepStats(
        error.pow(2).sum(),
        l1,
        x.new_zeros(()),
        active.sum(),
        active.sum(),
        active.any(0),
        active.any(0),
    )

    error *= 2 / n
    g_pre = (error @ W_dec.T).add_(penalty).mul_(active)
    grads = {"W_dec": f.T @ error, "W_enc": _encoder_gradient(x_c, g_pre), "b_enc": g_pre.sum(0)}
    grads["b_dec"] = error.sum(0) - over_ranks(W_enc @ grads["b_enc"], reduce)
    if l1_mode == "norm_weighted":
        grads["W_dec"] += decoder_norm_gradient(f.sum(0), W_dec, lam / n)
    return stats, grads


@torch.no_grad()
def gated_step(
    x: Tensor,
    p: Gradients,
    lam: float,
    l1_mode: str,
    loss: str,
    encoder: str = "exact",
    reduce: Reduce = None,
) -> tuple[StepStats, Gradients]:
    """Loss terms and gradients of `losses.gated_loss`, averaged over rows. x: [batch, d_in] normalised.

    `reduce`: see `sae_step`; here the frozen x̂ is summed too.
    """
    W_enc, W_dec, b_dec, n = p["W_enc"], p["W_dec"], p["b_dec"], len(x)
    gain = p["r_mag"].exp()
    x_c = x - b_dec
    a = encoder_product(x_c, W_enc, encoder)  # [batch, n_latents]
    opened_codes = (a + p["b_gate"]).relu_()  # ReLU(π)
    is_open = opened_codes > 0
    f = (a * gain).add_(p["b_mag"]).relu_().mul_(is_open)
    active = f > 0
    error = decoding_error(x, f, p, reduce)
    mse = error.pow(2).sum()
    error *= 2 / n

    g_mag = (error @ W_dec.T).mul_(active)  # [batch, n_latents], through the magnitude path alone
    penalty = penalty_of(W_dec, l1_mode, lam / n)
    g_pi = torch.zeros_like(a).add_(penalty)
    aux = x.new_zeros(())
    if loss == "full":
        aux_error = decoding_error(x, opened_codes, p, reduce)
        aux = aux_error.pow(2).sum()
        g_pi.addmm_(aux_error.mul_(2 / n), W_dec.T)
    g_pi *= is_open
    grads = {"W_dec": f.T @ error, "b_gate": g_pi.sum(0), "b_mag": g_mag.sum(0)}
    if l1_mode == "norm_weighted":
        grads["W_dec"] += decoder_norm_gradient(opened_codes.sum(0), W_dec, lam / n)
    grads["r_mag"] = (g_mag * a).sum(0) * gain
    g_a = g_pi.addcmul_(g_mag, gain)
    grads["W_enc"] = _encoder_gradient(x_c, g_a)
    grads["b_dec"] = error.sum(0) - over_ranks(W_enc @ g_a.sum(0), reduce)
    stats = StepStats(
        mse,
        (opened_codes * penalty).sum() * n,
        aux,
        active.sum(),
        is_open.sum(),
        active.any(0),
        is_open.any(0),
    )
    return stats, grads


def _encoder_gradient(x_c: Tensor, g_pre: Tensor) -> Tensor:
    """x_cᵀ g_pre with the strides of W_enc (latent by latent). -> [d_in, n_latents]."""
    return (g_pre.T @ x_c).T
