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
HELD_AT_ONCE = 2**24  # values of a product that is quicker in one piece; in bfloat16 32 MB
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
    _check_float32(x_c, W_enc, bias)
    n = W_enc.shape[1]
    if encoder == "screen":
        crow, col, value = _screened(x_c, W_enc.T, bias)
    else:
        crow, col, value = _gathered(x_c, W_enc, bias, encoder)
    return _by_latent(crow, col, value, n)


def _check_float32(*arrays: Tensor) -> None:
    for array in arrays:
        if array.dtype != torch.float32:
            raise TypeError(f"sparse codes of {array.dtype}: expected torch.float32")


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
    for place, some in _chunks(x16, max(1, HELD_AT_ONCE // n)):
        held = _held(len(some) * n, torch.bfloat16)
        a = torch.mm(some, w16.T, out=held.view(len(some), n))
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


def _held(size: int, dtype: torch.dtype) -> Tensor:
    """Memory for so many values, the same at each call of a thread.

    To touch fresh memory takes longer than to fill it.
    """
    held: dict[torch.dtype, Tensor] = _KEPT.__dict__
    if dtype not in held or len(held[dtype]) < size:
        with torch.inference_mode(False):  # or it could not be written again outside that mode
            held[dtype] = torch.empty(size, dtype=dtype)
    return held[dtype][:size]


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
    product = _Product(x_c, W_enc, bias, encoder)
    found = []
    for place in product.places():
        product.multiply(place)
        maxima = product.group_maxima(place, _n_groups(k, len(bias)))
        start, counts, col, value = product.entries_from(place, _bounds(maxima, len(maxima), k))
        scratch = torch.empty_like(col)
        _select("keep_largest", start, bias, len(counts), k, scratch, col, value, counts)
        found.append((counts, *_packed(start, counts, col, value)[1:]))
    counts, col, value = _joined(found)
    return _by_latent(_starts(counts), col, value, len(bias))


def batch_top_entries(
    x_c: Tensor, W_enc: Tensor, bias: Tensor, count: int, encoder: str = "exact"
) -> SparseCodes:
    """As `selection.batch_top_entries`; encoder "screen" as in `open_entries`.

    The bound is of the whole batch: a product that does not fit at once is computed twice.
    """
    rows = len(x_c)
    product = _Product(x_c, W_enc, bias, encoder, size=HELD_AT_ONCE // len(bias))
    places = list(product.places())
    maxima = torch.empty(rows, _n_groups(-(-count // max(1, rows)), len(bias)))
    for place in places:
        product.multiply(place)
        maxima[place] = product.group_maxima(place, maxima.shape[1])
    bound = _bounds(maxima, 1, count)
    found = []
    for place in places:
        if len(places) > 1:
            product.multiply(place)
        start, counts, col, value = product.entries_from(place, bound)
        found.append((counts, *_packed(start, counts, col, value)[1:]))
    counts, col, value = _joined(found)
    kept = largest((value + bias[col.long()])[None], count)[0]
    crow = _starts(kept)[_starts(counts)]
    return _by_latent(crow, col[kept], value[kept], len(bias))


def _n_groups(per_row: int, n: int) -> int:
    """Groups of a row's latents, of whose maxima the bound is taken."""
    return min(n, LANES * max(1, -(-GROUPS_PER_CODE * per_row // LANES)))


def _bounds(maxima: Tensor, parts: int, k: int) -> Tensor:
    """For each of `parts` equal parts of the maxima [rows, groups] a bound that k of them reach."""
    bound = torch.empty(parts)
    if parts:
        _select("bounds", maxima, parts, maxima.numel() // parts, k, bound)
    return bound


def _joined(found: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of entries a row, their latents and values, of all rows."""
    counts, cols, values = zip(*found, strict=True)
    return torch.cat(counts), torch.cat(cols), torch.cat(values)


class _Product:
    """a = x_c W_enc of some rows at a time, in float32 or screened, and what is found in it."""

    def __init__(
        self, x_c: Tensor, W_enc: Tensor, bias: Tensor, encoder: str, size: int = 0
    ) -> None:
        _check_float32(x_c, W_enc, bias)
        self.x_c, self.W_enc, self.bias, self.encoder = x_c, W_enc, bias, encoder
        self.is_screened = encoder == "screen"
        n = len(bias)
        if self.is_screened:
            (self.x16, *self.x_sizes), (self.w16, *self.w_sizes) = _rounded(x_c), _rounded(W_enc.T)
            size = size or HELD_AT_ONCE // n
        self.size = max(1, size or rows_at_once(n, x_c.device))

    def places(self) -> Iterator[slice]:
        """Rows to be taken at once."""
        return (place for place, _ in _chunks(self.x_c, self.size))

    def multiply(self, place: slice) -> None:
        """Hold the product of these rows."""
        rows, n = self.x_c[place], len(self.bias)
        if self.encoder == "bfloat16":
            self.a = encoder_product(rows, self.W_enc, self.encoder)
            return
        left, right = (self.x16[place], self.w16.T) if self.is_screened else (rows, self.W_enc)
        self.a = torch.mm(left, right, out=_held(len(rows) * n, left.dtype).view(len(rows), n))

    def group_maxima(self, place: slice, groups: int) -> Tensor:
        """The largest pre-activation of each group of a row, or a lower bound of it, or 0."""
        maxima = torch.empty(len(self.a), groups)
        kind, errors = self._errors(place)
        _select(f"group_maxima{kind}", self.a, self.bias, *self.a.shape, groups, *errors, maxima)
        return maxima

    def entries_from(self, place: slice, bound: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Entries of the held rows whose pre-activation may be at least the bound, [1] or [rows].

        Returns where each row's entries start, their number, their latents and their values; there
        may be gaps between rows.
        """
        rows, n = self.a.shape
        bits, counts = _bits(rows, n)
        kind, errors = self._errors(place)
        bound = bound.expand(rows).contiguous()
        _select(f"bits_from{kind}", self.a, self.bias, rows, n, *errors, bound, bits, counts)
        start, col, value = _room(counts)
        if self.is_screened:
            x_c, W = self.x_c[place], self.W_enc.T
            shape = (rows, n, x_c.shape[1])
            _call("recompute", x_c, W, self.bias, bits, *shape, start, col, value, counts)
        else:
            _call("gather", self.a, bits, rows, n, start, col, value)
        return start, counts, col, value

    def _errors(self, place: slice) -> tuple[str, tuple[Tensor | float, ...]]:
        """The ending of the functions' names, and what bounds the held product's error."""
        if not self.is_screened:
            return "", ()
        of_x = (size[place] for size in self.x_sizes)
        return "_bf16", (*of_x, *self.w_sizes, self.x_c.shape[1] * SUM_ERROR, ROUNDING)


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


def entry_products(x: Tensor, W: Tensor, codes: SparseCodes) -> Tensor:
    """As `plain.entry_products`."""
    (rows, d), value = x.shape, torch.empty(len(codes.col))
    places = (codes.crow, codes.col)
    _call("entry_products", x, W, rows, len(W), d, *places, 1, value, torch.empty_like(codes.crow))
    return value


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
