"""The exact sparse training step: the encoder's product is dense, all else touches active codes alone.

Codes are 98 to 99 % zero, and every gradient of a zero code is zero: decoder, code gradients and weight gradients need
only the active entries. Values are the dense step's up to the order of summation (`kernels` is the reference, tests
hold them equal). The three operations that touch entries exist in plain PyTorch (`sparse_plain`), in C (`sparse_c`) and
in Triton (`sparse_triton`); `operations` says which a device has.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from saelib.hardware import native_bfloat16
from saelib.sae.dense import (
    Entries,
    Gradients,
    Reduce,
    StepStats,
    decoder_norm_gradient,
    over_ranks,
    penalty_of,
)
from saelib.sae.sparse import c as sparse_c
from saelib.sae.sparse import plain as sparse_plain
from saelib.sae.sparse import triton as sparse_triton


def operations(device: torch.device) -> ModuleType:
    """Where `open_entries`, `decode` and `weights` come from on that device."""
    if device.type == "cpu" and sparse_c.available():
        return sparse_c
    return sparse_triton if device.type == "cuda" and sparse_triton.available() else sparse_plain


def screens(device: torch.device) -> bool:
    """Whether `encoder="screen"` works and pays there: in C or Triton, where products in bfloat16 are native."""
    return operations(device) is not sparse_plain and native_bfloat16(device)


def _sums(at: Entries, v: Tensor, n: int) -> Tensor:
    """Σ of v over each latent's entries. -> [n]."""
    return (
        torch.zeros(n, dtype=torch.float64, device=v.device)
        .index_add_(0, at.col.long(), v.double())
        .float()
    )


def _any(at: Entries, flags: Tensor, n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.bool, device=flags.device).index_fill_(
        0, at.col[flags].long(), True
    )


@torch.no_grad()
def encode(x_c: Tensor, p: Gradients, encoder: str = "exact") -> tuple[Entries, Tensor, Tensor]:
    """(entries, codes f, opened codes) of both architectures: ReLU(π) is what opened a gate, and f itself of `SAE`.

    x_c: float32 [batch, d_in], normalised and less b_dec. An entry is an open gate; its f may still be 0.
    """
    ops, bias = operations(x_c.device), p["b_enc"] if "b_enc" in p else p["b_gate"]
    at = ops.open_entries(x_c, p["W_enc"], bias, encoder)
    col = at.col.long()
    opened = at.value + bias[col]
    if "b_enc" in p:
        return at, opened, opened
    return at, (at.value * p["r_mag"].exp()[col] + p["b_mag"][col]).relu_(), opened


def decode(
    x: Tensor, p: Gradients, at: Entries, f: Tensor, scale: float, reduce: Reduce
) -> tuple[Tensor, Tensor, Tensor]:
    """`sparse_plain.decode`; where each rank has a share of the latents in two passes, the sum over ranks between them.

    The first adds up this rank's part of x̂. The second has no codes and the error as its x: what it gives is the code
    gradient.
    """
    ops = operations(x.device)
    if reduce is None:
        return ops.decode(x, p["W_dec"], p["b_dec"], at, f, scale)
    nothing = torch.zeros_like(p["b_dec"])
    part, _, _ = ops.decode(torch.zeros_like(x), p["W_dec"], nothing, at, f, 1.0)
    missed = x - reduce(part).add_(p["b_dec"])
    return ops.decode(missed, p["W_dec"], nothing, at, torch.zeros_like(f), scale)


@torch.no_grad()
def sae_step(
    x: Tensor, p: Gradients, lam: float, l1_mode: str, encoder: str = "exact", reduce: Reduce = None
) -> tuple[StepStats, Gradients]:
    """`kernels.sae_step` on active codes; `encoder`: see `sparse_c`. x: float32 [batch, d_in] normalised."""
    W_enc, n, size = p["W_enc"], p["W_enc"].shape[1], len(x)
    x_c = x - p["b_dec"]
    ops = operations(x.device)
    at, f, _ = encode(x_c, p, encoder)
    error, squared, g_pre = decode(x, p, at, f, 2 / size, reduce)
    penalty = penalty_of(p["W_dec"], l1_mode, lam / size)
    weight = penalty[at.col.long()] if isinstance(penalty, Tensor) else penalty
    g_pre += weight
    fired = _any(at, torch.ones_like(f, dtype=torch.bool), n)
    stats = StepStats(
        squared,
        (f * weight).sum() * size,
        x.new_zeros(()),
        torch.tensor(len(f)),
        torch.tensor(len(f)),
        fired,
        fired,
    )
    grads = {
        "W_dec": ops.weights(error, at, f, n),
        "W_enc": ops.weights(x_c, at, g_pre, n).T,
        "b_enc": _sums(at, g_pre, n),
    }
    grads["b_dec"] = error.sum(0) - over_ranks(W_enc @ grads["b_enc"], reduce)
    if l1_mode == "norm_weighted":
        grads["W_dec"] += decoder_norm_gradient(_sums(at, f, n), p["W_dec"], lam / size)
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
    """`kernels.gated_step` on open gates; `encoder`: see `sparse_c`. x: float32 [batch, d_in] normalised."""
    W_enc, n, size = p["W_enc"], p["W_enc"].shape[1], len(x)
    gain = p["r_mag"].exp()
    x_c = x - p["b_dec"]
    ops = operations(x.device)
    at, f, opened_codes = encode(x_c, p, encoder)
    col = at.col.long()
    active = f > 0
    error, mse, g_f = decode(x, p, at, f, 2 / size, reduce)
    g_mag = g_f * active
    penalty = penalty_of(p["W_dec"], l1_mode, lam / size)
    weight = penalty[col] if isinstance(penalty, Tensor) else torch.full_like(f, penalty)
    g_pi, aux = weight, x.new_zeros(())
    if loss == "full":
        _, aux, g_aux = decode(x, p, at, opened_codes, 2 / size, reduce)
        g_pi = weight + g_aux
    g_a = g_pi + g_mag * gain[col]
    grads = {"W_dec": ops.weights(error, at, f, n), "W_enc": ops.weights(x_c, at, g_a, n).T}
    grads |= {"b_gate": _sums(at, g_pi, n), "b_mag": _sums(at, g_mag, n)}
    grads["r_mag"] = _sums(at, g_mag * at.value, n) * gain
    grads["b_dec"] = error.sum(0) - over_ranks(W_enc @ _sums(at, g_a, n), reduce)
    if l1_mode == "norm_weighted":
        grads["W_dec"] += decoder_norm_gradient(_sums(at, opened_codes, n), p["W_dec"], lam / size)
    fired, opened = _any(at, active, n), _any(at, torch.ones_like(active), n)
    stats = StepStats(
        mse,
        (opened_codes * weight).sum() * size,
        aux,
        active.sum(),
        torch.tensor(len(f)),
        fired,
        opened,
    )
    return stats, grads
