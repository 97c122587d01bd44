"""What written-out steps share: statistics, sparse codes, common gradients.

A written-out step gives what autograd gives for the objective, with less work: the gradient of
b_dec through the encoder needs only a sum over the batch, (Σ_b ∂pre_b) W_encᵀ, never the
[batch, d_in] product, and elementwise passes are fused by hand. Tests hold each step equal to
autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from saelib.hardware import return_freed_memory
from saelib.sae.losses import AllReduce

# Bound on the float32 rounding error of a dot product: this × d_in × ‖x‖ ‖w‖ (4 ulp per term).
SUM_ERROR = 2.0**-22


class StepStats(NamedTuple):
    """Statistics of one batch: sums over its rows (scalars), and which latents fired or opened."""

    mse: Tensor
    l1: Tensor  # carries λ
    aux: Tensor
    l0: Tensor
    n_open: Tensor  # entries that a sparse step takes: open gates; active codes without gates
    fired: Tensor  # bool [n_latents]: f > 0 on some row
    opened: Tensor  # bool [n_latents]: the gate was open on some row; else as `fired`


SUMS = ("mse", "l1", "aux", "l0", "n_open")
Gradients = dict[str, Tensor]

# Elements of a [rows, n_latents] matrix that a dense step holds at once: 5 MB on a CPU, where a
# matrix product of so few rows is as fast; on a GPU 512 MB, since there it is not.
CODES_AT_ONCE = {"cpu": 5 * 2**18}
CODES_AT_ONCE_ELSEWHERE = 2**27


def rows_at_once(n_latents: int, device: torch.device) -> int:
    """Rows that a dense step takes at once, where they can be separated."""
    return max(1, CODES_AT_ONCE.get(device.type, CODES_AT_ONCE_ELSEWHERE) // n_latents)


def in_chunks(
    step: Callable[[Tensor], tuple[StepStats, Gradients]], x: Tensor, size: int
) -> tuple[StepStats, Gradients]:
    """What `step` gives for all rows of x [batch, d_in], from at most `size` of them at a time.

    Statistics are sums over rows and add up; gradients are means over rows.
    """
    n_chunks = -(-len(x) // size)
    if n_chunks == 1:
        return step(x)
    first, *others = x.tensor_split(n_chunks)
    stats, gradients = step(first)
    return_freed_memory(x.device)  # the next chunk's arrays may not fit between those that stay
    for gradient in gradients.values():
        gradient *= len(first) / len(x)
    for rows in others:
        more, added = step(rows)
        stats = _stats_of_both(stats, more)
        for name, gradient in gradients.items():
            gradient.add_(added[name], alpha=len(rows) / len(x))
        del added  # before the next are made
        return_freed_memory(x.device)
    return stats, gradients


def _stats_of_both(a: StepStats, b: StepStats) -> StepStats:
    sums = {name: getattr(a, name) + getattr(b, name) for name in SUMS}
    return StepStats(**sums, fired=a.fired | b.fired, opened=a.opened | b.opened)


class SparseCodes(NamedTuple):
    """Where a batch has open latents: row by row (CSR), and the same places latent by latent."""

    crow: Tensor  # int64 [rows + 1]
    col: Tensor  # int32 [entries]
    value: Tensor  # float32 [entries], a = (x − b_dec) W_enc without the bias
    ccol: Tensor  # int64 [n_latents + 1]
    row: Tensor  # int32 [entries]
    order: Tensor  # int32 [entries]


def open_codes(a: Tensor, bias: Tensor) -> SparseCodes:
    """The places of a [rows, n_latents] with a + bias > 0."""
    row, col = (a + bias > 0).nonzero(as_tuple=True)
    return codes_at_places(row, col, a[row, col], a.shape)


def codes_at_places(row: Tensor, col: Tensor, value: Tensor, shape: Sequence[int]) -> SparseCodes:
    """Sparse codes at int64 places, given row by row, of a matrix of that shape."""
    order = col.argsort(stable=True)
    starts = [
        pad(index.bincount(minlength=size).cumsum(0), (1, 0))
        for index, size in zip((row, col), shape, strict=True)
    ]
    return SparseCodes(starts[0], col.int(), value, starts[1], row[order].int(), order.int())


def decoder_norm_gradient(code_sums: Tensor, W_dec: Tensor, factor: float) -> Tensor:
    """∂/∂W_dec of factor · Σ_i code_sums_i ‖W_dec,i‖. code_sums: [n_latents], sums over rows.

    -> [n_latents, d_in].
    """
    return (factor * code_sums / W_dec.norm(dim=1).clamp_min(1e-12))[:, None] * W_dec


def penalty_of(W_dec: Tensor, l1_mode: str, factor: float) -> Tensor | float:
    """∂(factor · L1)/∂f: one number, or [n_latents] where the penalty is norm-weighted."""
    return factor * W_dec.norm(dim=1) if l1_mode == "norm_weighted" else factor


def encoder_product(x_c: Tensor, W_enc: Tensor, encoder: str = "exact") -> Tensor:
    """x_c W_enc [batch, n_latents]; encoder "bfloat16" multiplies in bfloat16, which is inexact."""
    if encoder == "bfloat16":
        return (x_c.bfloat16() @ W_enc.bfloat16()).to(x_c.dtype)
    return x_c @ W_enc


def decoding_error(
    x: Tensor, f: Tensor, W_dec: Tensor, b_dec: Tensor, all_reduce: AllReduce
) -> Tensor:
    """x̂ − x [batch, d_in]."""
    if all_reduce is None:
        return torch.addmm(b_dec, f, W_dec).sub_(x)
    return all_reduce(f @ W_dec).add_(b_dec).sub_(x)


def encoder_gradient(x_c: Tensor, g_pre: Tensor) -> Tensor:
    """x_cᵀ g_pre with the strides of W_enc (latent by latent). -> [d_in, n_latents]."""
    return (g_pre.T @ x_c).T
