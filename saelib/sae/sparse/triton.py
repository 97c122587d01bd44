"""The sparse operations on CUDA in Triton (definition: `plain`), and the bfloat16 screen.

The largest entries are found by PyTorch's own selection.

One program per row, or per latent, walks its entries in order: sums do not depend on how programs
are scheduled. A program holds a whole row of width d_in in registers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saelib.sae.dense import SUM_ERROR, SparseCodes, codes_at_places, encoder_product, open_codes
from saelib.sae.sparse import selection
from saelib.sae.sparse.plain import sum_by_latent

__all__ = [
    "available",
    "batch_top_entries",
    "decode",
    "entry_products",
    "open_entries",
    "sum_by_latent",
    "top_entries",
    "weight_gradient",
]

try:
    import triton
    import triton.language as tl
except ImportError:  # not shipped with torch for the CPU
    triton = None

top_entries = selection.top_entries
batch_top_entries = selection.batch_top_entries


def available() -> bool:
    """Whether Triton can be imported."""
    return triton is not None


if triton is not None:

    @triton.jit
    def _screen(
        a,
        bias,
        x_norm,
        x_residual,
        w_norm,
        w_residual,
        sums,
        n,
        crow,
        counts,
        col,
        WRITE: tl.constexpr,
    ):
        b = tl.program_id(0).to(tl.int64)
        norm, residual = tl.load(x_norm + b), tl.load(x_residual + b)
        by_norm, by_residual = residual + sums * norm, norm + residual
        count = tl.load(crow + b) if WRITE else b * 0
        for first in range(0, n, 1024):
            i = first + tl.arange(0, 1024)
            inside = i < n
            upper = tl.load(a + b * n + i, mask=inside, other=0.0) + tl.load(
                bias + i, mask=inside, other=0.0
            )
            upper += by_norm * tl.load(w_norm + i, mask=inside, other=0.0)
            upper += by_residual * tl.load(w_residual + i, mask=inside, other=0.0)
            hit = (inside & ((upper <= 0) == 0)).to(
                tl.int64
            )  # what overflowed to NaN is looked at again too
            if WRITE:
                tl.store(col + count + tl.cumsum(hit) - 1, i, mask=hit > 0)
            count += tl.sum(hit)
        if not WRITE:
            tl.store(counts + b, count)

    @triton.jit
    def _round(x, x16, norm, residual, d, BLOCK: tl.constexpr):
        b = tl.program_id(0).to(tl.int64)
        k = tl.arange(0, BLOCK)
        v = tl.load(x + b * d + k, mask=k < d, other=0.0)
        rounded = v.to(tl.bfloat16)
        tl.store(x16 + b * d + k, rounded, mask=k < d)
        lost = (v - rounded.to(tl.float32)).to(tl.float64)  # squares of small rows are 0 in float32
        tl.store(norm + b, tl.sqrt(tl.sum(v.to(tl.float64) * v.to(tl.float64))).to(tl.float32))
        tl.store(residual + b, tl.sqrt(tl.sum(lost * lost)).to(tl.float32))

    @triton.jit
    def _products(x_c, W, crow, col, value, d, BLOCK: tl.constexpr):
        b = tl.program_id(0).to(tl.int64)
        k = tl.arange(0, BLOCK)
        x = tl.load(x_c + b * d + k, mask=k < d, other=0.0)
        for j in range(tl.load(crow + b), tl.load(crow + b + 1)):
            row = W + tl.load(col + j).to(tl.int64) * d
            tl.store(value + j, tl.sum(x * tl.load(row + k, mask=k < d, other=0.0)))

    @triton.jit
    def _decode(
        x, W_dec, b_dec, crow, col, f, error, squared, g_code, scale, d, BLOCK: tl.constexpr
    ):
        b = tl.program_id(0).to(tl.int64)
        k = tl.arange(0, BLOCK)
        start, stop = tl.load(crow + b), tl.load(crow + b + 1)
        e = tl.load(b_dec + k, mask=k < d, other=0.0) - tl.load(
            x + b * d + k, mask=k < d, other=0.0
        )
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


def open_entries(x_c: Tensor, W_enc: Tensor, bias: Tensor, encoder: str = "exact") -> SparseCodes:
    """As `c.open_entries`; the product is cuBLAS's, and without a screen PyTorch finds entries."""
    if encoder != "screen":
        return open_codes(encoder_product(x_c, W_enc, encoder), bias)
    crow, col, value = _candidates(x_c, W_enc.T, bias)
    row = torch.repeat_interleave(crow.diff(), output_size=len(col))
    keep = (value + bias[col] > 0).nonzero().flatten()
    return codes_at_places(row[keep], col[keep], value[keep], (len(x_c), len(bias)))


def _candidates(x_c: Tensor, W: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row starts, latents (int64) and float32 products of what may be open.

    W: [n_latents, d_in], contiguous. The bound is that of `screen_bf16` in the C file less its last
    term: here the product is not stored in bfloat16.
    """
    rows, d = x_c.shape
    n = len(W)
    counts = torch.empty(rows, dtype=torch.int64, device=x_c.device)
    (x16, *x_sizes), (w16, *w_sizes) = _rounded(x_c), _rounded(W)
    a = torch.mm(x16, w16.T, out_dtype=torch.float32)
    inputs = (a, bias, *x_sizes, *w_sizes, d * SUM_ERROR, n)
    _screen[(rows,)](*inputs, counts, counts, counts, False)
    crow = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    col = torch.empty(int(crow[-1]), dtype=torch.int64, device=x_c.device)
    _screen[(rows,)](*inputs, crow, counts, col, True)
    return crow, col, _entry_products(x_c, W, crow, col)


def _entry_products(x: Tensor, W: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """x[row] · W[latent] of each entry; both contiguous."""
    (rows, d), value = x.shape, torch.empty(len(col), device=x.device)
    _products[(rows,)](x, W, crow, col, value, d, triton.next_power_of_2(d), num_warps=_warps(d))
    return value


def entry_products(x: Tensor, W: Tensor, codes: SparseCodes) -> Tensor:
    """As `plain.entry_products`."""
    return _entry_products(x, W, codes.crow, codes.col)


def _rounded(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x in bfloat16, ‖row‖, and ‖row − its bfloat16‖."""
    (rows, d), sizes = x.shape, torch.empty(2, len(x), device=x.device)
    x16 = torch.empty(x.shape, dtype=torch.bfloat16, device=x.device)
    _round[(rows,)](x, x16, sizes[0], sizes[1], d, triton.next_power_of_2(d), num_warps=_warps(d))
    return x16, sizes[0], sizes[1]


def decode(
    x: Tensor, W_dec: Tensor, b_dec: Tensor, codes: SparseCodes, f: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `plain.decode`."""
    (rows, d), error, g_code = x.shape, torch.empty_like(x), torch.empty_like(f)
    squared = torch.empty(rows, device=x.device)
    block = triton.next_power_of_2(d)
    _decode[(rows,)](
        x,
        W_dec,
        b_dec,
        codes.crow,
        codes.col,
        f,
        error,
        squared,
        g_code,
        scale,
        d,
        block,
        num_warps=_warps(d),
    )
    return error, squared.double().sum(), g_code


def weight_gradient(
    x: Tensor, codes: SparseCodes, values: Tensor, n_latents: int, out: Tensor | None = None
) -> Tensor:
    """As `plain.weight_gradient`."""
    d_in = x.shape[1]
    gradient = torch.empty(n_latents, d_in, device=values.device) if out is None else out
    places = (codes.ccol, codes.row, codes.order)
    block = triton.next_power_of_2(d_in)
    grid = (n_latents,)
    _weights[grid](x, *places, values, gradient, d_in, block, num_warps=_warps(d_in))
    return gradient


def _warps(d: int) -> int:
    """Eight values of a row a thread, within what a program may have."""
    return min(16, max(1, triton.next_power_of_2(d) // 256))
