"""The sparse step's operations on CUDA in Triton, each the twin of its namesake in `sparse_plain`.

One program a row, or a latent, which walks its entries in order: sums do not depend on how programs are scheduled. A
program holds a whole row of width d_in in registers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saelib.kernels import Entries, encoder_product, entries_of

try:
    import triton
    import triton.language as tl
except ImportError:  # not shipped with torch for the CPU
    triton = None


def available() -> bool:
    """Whether Triton can be imported."""
    return triton is not None


if triton is not None:

    @triton.jit
    def _decode(x, W_dec, b_dec, crow, col, f, error, squared, g_code, scale, d, BLOCK: tl.constexpr):
        b = tl.program_id(0).to(tl.int64)
        k = tl.arange(0, BLOCK)
        start, stop = tl.load(crow + b), tl.load(crow + b + 1)
        e = tl.load(b_dec + k, mask=k < d, other=0.0) - tl.load(x + b * d + k, mask=k < d, other=0.0)
        for j in range(start, stop):
            row = W_dec + tl.load(col + j).to(tl.int64) * d
            e += tl.load(f + j) * tl.load(row + k, mask=k < d, other=0.0)
        tl.store(squared + b, tl.sum(e * e))
        e *= scale
        tl.store(error + b * d + k, e, mask=k < d)
        for j in range(start, stop):
            row = W_dec + tl.load(col + j).to(tl.int64) * d
            tl.store(g_code + j, tl.sum(e * tl.load(row + k, mask=k < d, other=0.0)))

    @triton.jit
    def _weights(rows_of, ccol, row, order, v, out, d, BLOCK: tl.constexpr):
        i = tl.program_id(0).to(tl.int64)
        k = tl.arange(0, BLOCK)
        total = tl.zeros([BLOCK], dtype=tl.float32)
        for j in range(tl.load(ccol + i), tl.load(ccol + i + 1)):
            source = rows_of + tl.load(row + j).to(tl.int64) * d
            total += tl.load(v + tl.load(order + j)) * tl.load(source + k, mask=k < d, other=0.0)
        tl.store(out + i * d + k, total, mask=k < d)


def open_entries(x_c: Tensor, W_enc: Tensor, bias: Tensor, encoder: str = "exact") -> Entries:
    """As `sparse_plain.open_entries`: the product is cuBLAS's, finding the entries PyTorch's."""
    return entries_of(encoder_product(x_c, W_enc, encoder), bias)


def decode(
    x: Tensor, W_dec: Tensor, b_dec: Tensor, at: Entries, f: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `sparse_plain.decode`."""
    (rows, d), error, g_code = x.shape, torch.empty_like(x), torch.empty_like(f)
    squared = torch.empty(rows, device=x.device)
    block = triton.next_power_of_2(d)
    _decode[(rows,)](x, W_dec, b_dec, at.crow, at.col, f, error, squared, g_code, scale, d, block, num_warps=_warps(d))
    return error, squared.double().sum(), g_code


def weights(rows_of: Tensor, at: Entries, v: Tensor, n: int) -> Tensor:
    """As `sparse_plain.weights`."""
    d = rows_of.shape[1]
    out = torch.empty(n, d, device=v.device)
    _weights[(n,)](rows_of, at.ccol, at.row, at.order, v, out, d, triton.next_power_of_2(d), num_warps=_warps(d))
    return out


def _warps(d: int) -> int:
    """Eight values of a row a thread, within what a program may have."""
    return min(16, max(1, triton.next_power_of_2(d) // 256))
