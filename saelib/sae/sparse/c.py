"""The sparse operations on the CPU in C (definition: `plain`), and the bfloat16 screen.

Two small files are compiled once with the system's compiler and kept in the user's cache
(`library`). Without a compiler `available()` is False, and the sparse step runs in plain PyTorch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from saelib.sae.dense import SUM_ERROR, SparseCodes, encoder_product, rows_at_once
from saelib.sae.sparse.library import call, compiled
from saelib.sae.sparse.selection import largest

SOURCE = Path(__file__).with_name("sparse_step.c")
SELECTION = Path(__file__).with_name("select.c")
ROUNDING = 2.0**-7  # of storing a product as bfloat16, relative: twice the worst case
# Groups of latents per code that is looked for (see select.c): the bound leaves 1.2 entries a code.
GROUPS_PER_CODE = 3
LANES = 16  # of a group's vectors
SCREENED_AT_ONCE = 2**24  # values of a product in bfloat16, 32 MB; it is quicker in one piece
_KEPT = threading.local()  # see `_held`


def available() -> bool:
    """Whether there is a C compiler; RuntimeError as `library.compiled` raises it."""
    return compiled(SOURCE) is not None and compiled(SELECTION) is not None


def _call(name: str, *arguments: Tensor | int | float) -> None:
    call(compiled(SOURCE), name, *arguments)


def _select(name: str, *arguments: Tensor | int | float) -> None:
    call(compiled(SELECTION), name, *arguments)


def open_entries(x_c: Tensor, W_enc: Tensor, bias: Tensor, encoder: str = "exact") -> SparseCodes:
    """Entries of a = x_c W_enc with a + bias > 0. x_c [rows, d_in], W_enc [d_in, n_latents].

    Both are float32. encoder "exact": a in float32. "screen": a in bfloat16 first, then in float32
    wherever a + bias may be above 0 by the error bound of `screen_bf16` in the C file: the same
    entries and values up to float32 rounding, faster where few are open. "bfloat16": a in bfloat16
    alone, which is not exact. a is computed for some rows at a time.
    """
    n = W_enc.shape[1]
    if encoder == "screen":
        crow, col, value = _screened(x_c, W_enc.T, bias)
    else:
        crow, col, value = _gathered(x_c, W_enc, bias, encoder)
    return _by_latent(crow, col, value, n)


def _by_latent(crow: Tensor, col: Tensor, value: Tensor, n: int) -> SparseCodes:
    """Entries given row by row, in CSR, with the same places latent by latent."""
    ccol = torch.empty(n + 1, dtype=torch.long)
    row, order = torch.empty_like(col), torch.empty_like(col)
    _call("by_latent", len(crow) - 1, n, crow, col, ccol, row, order)
    return SparseCodes(crow, col, value, ccol, row, order)


def _chunks(x: Tensor, size: int) -> Iterator[tuple[slice, Tensor]]:
    """The rows of x, `size` at a time: where they stand, and they."""
    for first in range(0, max(1, len(x)), size):
        yield slice(first, first + size), x[first : first + size]


def _gathered(
    x_c: Tensor, W_enc: Tensor, bias: Tensor, encoder: str
) -> tuple[Tensor, Tensor, Tensor]:
    n = W_enc.shape[1]
    bits, counts = _bits(len(x_c), n)
    cols, values = [], []
    for place, rows in _chunks(x_c, rows_at_once(n, x_c.device)):
        a = encoder_product(rows, W_enc, encoder)
        _call("screen", a, bias, len(rows), n, bits[place], counts[place])
        crow, col, value = _room(counts[place])
        _call("gather", a, bits[place], len(rows), n, crow, col, value)
        cols.append(col)
        values.append(value)
    return _starts(counts), torch.cat(cols), torch.cat(values)


def _screened(x_c: Tensor, W: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """W [n_latents, d_in], contiguous."""
    (rows, d), n = x_c.shape, len(W)
    (x16, *x_sizes), (w16, *w_sizes) = _rounded(x_c), _rounded(W)
    bits, counts = _bits(rows, n)
    bounds = (*w_sizes, d * SUM_ERROR, ROUNDING)
    for place, some in _chunks(x16, max(1, SCREENED_AT_ONCE // n)):
        a = torch.mm(some, w16.T, out=_held(len(some) * n).view(len(some), n))
        of_x = (size[place] for size in x_sizes)
        _call("screen_bf16", a, bias, len(some), n, *of_x, *bounds, bits[place], counts[place])
    start, col, value = _room(counts)
    _call("recompute", x_c, W, bias, bits, rows, n, d, start, col, value, counts)
    return _packed(start, counts, col, value)


def _packed(
    start: Tensor, counts: Tensor, col: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Entries in CSR, of which each row has so many from its start on."""
    crow = _starts(counts)
    _call("pack", len(counts), start, crow, col, value)
    size = int(crow[-1])
    return crow, col[:size], value[:size]


def _held(size: int) -> Tensor:
    """Memory for so many values in bfloat16, the same at each call of a thread.

    To touch fresh memory takes longer than to fill it.
    """
    if len(getattr(_KEPT, "product", ())) < size:
        with torch.inference_mode(False):  # or it could not be written again outside that mode
            _KEPT.product = torch.empty(size, dtype=torch.bfloat16)
    return _KEPT.product[:size]


def _rounded(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x in bfloat16, ‖row‖, and ‖row − its bfloat16‖."""
    out, sizes = torch.empty(x.shape, dtype=torch.bfloat16), torch.empty(2, len(x))
    _call("round_rows", x, *x.shape, out, sizes[0], sizes[1])
    return out, sizes[0], sizes[1]


def _bits(rows: int, n: int) -> tuple[Tensor, Tensor]:
    return torch.empty(rows, -(-n // 64), dtype=torch.long), torch.empty(rows, dtype=torch.long)


def _starts(counts: Tensor) -> Tensor:
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def _room(counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where each row's entries start, and room for latents and values."""
    crow = _starts(counts)
    size = int(crow[-1])
    return crow, torch.empty(size, dtype=torch.int32), torch.empty(size)


def top_entries(
    x_c: Tensor, W_enc: Tensor, bias: Tensor, k: int, encoder: str = "exact"
) -> SparseCodes:
    """As `selection.top_entries`; encoder "screen" as in `open_entries`."""
    rows = len(x_c)
    start, counts, col, value = _largest(x_c, W_enc, bias, k, rows, encoder)
    _select("keep_largest", start, bias, rows, k, torch.empty_like(col), col, value, counts)
    return _by_latent(*_packed(start, counts, col, value), len(bias))


def batch_top_entries(
    x_c: Tensor, W_enc: Tensor, bias: Tensor, count: int, encoder: str = "exact"
) -> SparseCodes:
    """As `selection.batch_top_entries`; encoder "screen" as in `open_entries`."""
    start, counts, col, value = _largest(x_c, W_enc, bias, count, 1, encoder)
    crow, col, value = _packed(start, counts, col, value)
    kept = largest((value + bias[col.long()])[None], count)[0]
    return _by_latent(_starts(kept)[crow], col[kept], value[kept], len(bias))


def _largest(
    x_c: Tensor, W_enc: Tensor, bias: Tensor, k: int, parts: int, encoder: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Entries among which are the k largest of each part of the batch, and few others.

    `parts` is the number of rows, or 1. Returns where each row's entries start, their number, their
    latents and their values; there may be gaps between rows.
    """
    rows, n = len(x_c), len(bias)
    W = W_enc.T
    if encoder == "screen":
        (x16, *x_sizes), (w16, *w_sizes) = _rounded(x_c), _rounded(W)
        a, kind = x16 @ w16.T, "_bf16"
        errors = (*x_sizes, *w_sizes, x_c.shape[1] * SUM_ERROR, ROUNDING)
    else:
        a, kind, errors = encoder_product(x_c, W_enc, encoder), "", ()
    per_row = -(-k // max(1, rows // parts))
    groups = min(n, LANES * -(-GROUPS_PER_CODE * per_row // LANES))
    maxima, bound = torch.empty(rows, groups), torch.empty(parts)
    _select(f"group_maxima{kind}", a, bias, rows, n, groups, *errors, maxima)
    _select("bounds", maxima, parts, groups if parts == rows else rows * groups, k, bound)
    bits, counts = _bits(rows, n)
    bound = bound.expand(rows).contiguous()
    _select(f"bits_from{kind}", a, bias, rows, n, *errors, bound, bits, counts)
    start, col, value = _room(counts)
    if encoder == "screen":
        _call("recompute", x_c, W, bias, bits, rows, n, x_c.shape[1], start, col, value, counts)
    else:
        _call("gather", a, bits, rows, n, start, col, value)
    return start, counts, col, value


def decode(
    x: Tensor, W_dec: Tensor, b_dec: Tensor, codes: SparseCodes, f: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `plain.decode`."""
    ((error, squared, g_code),) = decode_each(x, W_dec, b_dec, codes, [f], scale)
    return error, squared, g_code


def decode_each(
    x: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    codes: SparseCodes,
    fs: Sequence[Tensor],
    scale: float,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """`decode` for several sets of codes at the same places: W_dec is read once for all."""
    (rows, d), sets = x.shape, len(fs)
    f = fs[0] if sets == 1 else torch.stack(list(fs))
    g_code = torch.empty(sets, len(codes.col))
    error = torch.empty(sets, rows, d)
    squared = torch.empty(sets, rows, dtype=torch.float64)
    shape = (rows, len(W_dec), d)
    places = (codes.crow, codes.col)
    results = (error, squared, g_code, torch.empty_like(codes.crow))
    _call("decode_and_code_gradient", x, W_dec, b_dec, *shape, *places, sets, f, scale, *results)
    return list(zip(error, squared.sum(1), g_code, strict=True))


def weight_gradient(
    x: Tensor, codes: SparseCodes, values: Tensor, n_latents: int, out: Tensor | None = None
) -> Tensor:
    """As `plain.weight_gradient`."""
    rows, d_in = x.shape
    gradient = torch.empty(n_latents, d_in) if out is None else out
    places = (codes.ccol, codes.row, codes.order)
    _call("weight_gradient", x, rows, n_latents, d_in, *places, values, gradient)
    return gradient


def sum_by_latent(codes: SparseCodes, values: Tensor) -> Tensor:
    """As `plain.sum_by_latent`."""
    n = len(codes.ccol) - 1
    sums = torch.empty(n)
    _call("sum_by_latent", n, codes.ccol, codes.order, values, sums)
    return sums
