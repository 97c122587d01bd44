"""The operations of the exact sparse step: the encoder's product is dense, the rest active codes.

Codes are 98 to 99 % zero, and every gradient of a zero code is zero: decoder, code gradients and
weight gradients need only the active entries. The results equal the dense step's up to the order of
summation. The operations that touch entries exist in plain PyTorch (`plain`, the definition),
in C (`c`) and in Triton (`triton`); `operations` says which a device has.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from saelib.hardware import native_bfloat16
from saelib.sae.dense import Gradients, SparseCodes
from saelib.sae.losses import AllReduce
from saelib.sae.sparse import c as sparse_c
from saelib.sae.sparse import plain as sparse_plain
from saelib.sae.sparse import triton as sparse_triton


def operations(device: torch.device) -> ModuleType:
    """The module that has the operations for that device.

    They are `open_entries`, `top_entries`, `batch_top_entries`, `decode`, `entry_products`,
    `weight_gradient` and `sum_by_latent`.
    """
    if device.type == "cpu" and sparse_c.available():
        return sparse_c
    return sparse_triton if device.type == "cuda" and sparse_triton.available() else sparse_plain


def screens(device: torch.device) -> bool:
    """Whether encoder "screen" works and pays: C or Triton, and native products in bfloat16."""
    return operations(device) is not sparse_plain and native_bfloat16(device)


def decoder_gradient(
    error: Tensor, codes: SparseCodes, f: Tensor, room: Gradients | None = None
) -> Tensor:
    """fᵀ error, from the codes f [entries]. error: [rows, d_in] -> [n_latents, d_in].

    `room` are a step's gradients whose memory may be written over: to touch fresh memory takes
    longer than to fill it.
    """
    out = room["W_dec"] if room else None
    return operations(error.device).weight_gradient(error, codes, f, len(codes.ccol) - 1, out)


def encoder_gradient(
    x_c: Tensor, codes: SparseCodes, g_pre: Tensor, room: Gradients | None = None
) -> Tensor:
    """x_cᵀ g_pre, from g_pre [entries], with the strides of W_enc. -> [d_in, n_latents]."""
    out = room["W_enc"].T if room else None
    return operations(x_c.device).weight_gradient(x_c, codes, g_pre, len(codes.ccol) - 1, out).T


def sum_by_latent(codes: SparseCodes, values: Tensor) -> Tensor:
    """Σ of values [entries] over the entries of each latent, in float64. -> float32 [n_latents]."""
    return operations(values.device).sum_by_latent(codes, values)


def latents_with_entries(codes: SparseCodes) -> Tensor:
    """Latents that have an entry. -> bool [n_latents]."""
    return codes.ccol.diff() > 0


def latents_with(codes: SparseCodes, flags: Tensor, n_latents: int) -> Tensor:
    """Latents that have an entry with a flag. flags: bool [entries] -> bool [n_latents]."""
    none = torch.zeros(n_latents, dtype=torch.bool, device=flags.device)
    return none.index_fill_(0, codes.col[flags].long(), True)


def decode(
    x: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    codes: SparseCodes,
    f: Tensor,
    scale: float,
    all_reduce: AllReduce = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`plain.decode`; where ranks hold shards of the latents, in two passes with a sum between.

    The first pass adds up this rank's partial x̂. The second has no codes and takes the error for
    its x: it gives the code gradient.
    """
    device_operations = operations(x.device)
    if all_reduce is None:
        return device_operations.decode(x, W_dec, b_dec, codes, f, scale)
    no_bias = torch.zeros_like(b_dec)
    partial, _, _ = device_operations.decode(torch.zeros_like(x), W_dec, no_bias, codes, f, 1.0)
    missed = x - all_reduce(partial).add_(b_dec)
    return device_operations.decode(missed, W_dec, no_bias, codes, torch.zeros_like(f), scale)


def decode_each(
    x: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    codes: SparseCodes,
    fs: Sequence[Tensor],
    scale: float,
    all_reduce: AllReduce = None,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """`decode` for several sets of codes at the same places, fs [entries] each."""
    if operations(x.device) is sparse_c and all_reduce is None:
        return sparse_c.decode_each(x, W_dec, b_dec, codes, fs, scale)
    return [decode(x, W_dec, b_dec, codes, f, scale, all_reduce) for f in fs]
