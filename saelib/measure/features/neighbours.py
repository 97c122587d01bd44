"""Latents near each other: by direction, and by firing on the same tokens.

    cosine    ⟨W_dec[i], W_dec[j]⟩ / (‖W_dec[i]‖ ‖W_dec[j]‖)
    Jaccard   tokens on which both fire / tokens on which either does

Tokens on which both fire are counted from the codes alone: each row adds one to each pair of
latents that fire on it. Where that would take more than `PAIRS` additions, every m-th ordinary row
is counted; the number of rows is reported.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from saelib.measure.features.codes import LatentCodes

PAIRS = 1 << 28
TABLE = 1 << 22  # counts held at once
CHUNK = 1 << 22  # additions whose keys are held at once, and codes looked through at once
DIRECTIONS = 512


class Nearest(NamedTuple):
    """For each latent its nearest ones, nearest first; -1 and 0 where there are fewer."""

    latent: Int64[np.ndarray, "n k"]
    value: Float32[np.ndarray, "n k"]


def unit_rows(W: Float32[Tensor, "n d"]) -> Float32[Tensor, "n d"]:
    """Rows of length 1; a zero row stays."""
    return W / W.norm(dim=1, keepdim=True).clamp_min(1e-12)


def nearest_by_cosine(
    a: Float32[Tensor, "n d"], b: Float32[Tensor, "m d"], k: int, same: bool
) -> Nearest:
    """The k rows of b of largest cosine to each row of a; with `same` b is a, and i not its own."""
    k = min(k, len(b) - same)
    if k < 1:
        return Nearest(np.zeros((len(a), 0), np.int64), np.zeros((len(a), 0), np.float32))
    a = unit_rows(a.detach().float())
    others = unit_rows(b.detach().float()).T
    parts = []
    for start in range(0, len(a), DIRECTIONS):
        cosine = a[start : start + DIRECTIONS] @ others
        if same:
            cosine.diagonal(start).fill_(-2)
        parts.append(cosine.topk(k))
    latent = torch.cat([part.indices for part in parts]).numpy()
    return Nearest(latent, torch.cat([part.values for part in parts]).numpy())


class Cofiring(NamedTuple):
    """`Nearest` by Jaccard, and the rows that were counted."""

    nearest: Nearest
    n_rows: int


def nearest_by_firing(
    a: LatentCodes, b: LatentCodes, rows: Int64[np.ndarray, " rows"], k: int, same: bool
) -> Cofiring:
    """The k latents of b of largest Jaccard with each of a, over `rows`, on which both count.

    Latents that never fire together with any are without a nearest one.
    """
    step = max(1, -(-additions(a, b, rows) // PAIRS))
    counted = rows[::step]
    by_row = _RowCodes.of(b, counted)
    a = restricted(a, counted)
    fired = np.bincount(by_row.latents, minlength=b.n_latents)
    size = max(1, TABLE // b.n_latents)
    k = min(k, b.n_latents - same)
    parts = []
    for first in range(0, a.n_latents, size):
        stop = min(first + size, a.n_latents)
        both = _joint_counts(a, by_row, first, stop, b.n_latents)
        jaccard = both / np.maximum(a.counts[first:stop, None] + fired - both, 1)
        if same:
            jaccard[np.arange(stop - first), np.arange(first, stop)] = 0
        parts.append(_largest(jaccard.astype(np.float32), k))
    latent, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Cofiring(Nearest(latent, value), len(counted))


class _RowCodes(NamedTuple):
    """The latents that fire on each row: of row r, `latents[starts[r] : starts[r + 1]]`."""

    latents: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, codes: LatentCodes, rows: np.ndarray) -> _RowCodes:
        codes = restricted(codes, rows)
        order = np.argsort(codes.rows, kind="stable")
        n_rows = int(rows[-1]) + 1 if len(rows) else 0
        counts = np.bincount(codes.rows, minlength=n_rows)
        return cls(codes.latents[order], np.concatenate([[0], np.cumsum(counts)]))


def additions(a: LatentCodes, b: LatentCodes, rows: Int64[np.ndarray, " kept"]) -> int:
    """Pairs of a latent of a and one of b that fire on the same row."""
    counts = [_row_counts(codes, int(rows.max(initial=-1)) + 1) for codes in (a, b)]
    return int((counts[0][rows] * counts[1][rows]).sum())


def _row_counts(codes: LatentCodes, n_rows: int) -> Int64[np.ndarray, " rows"]:
    """Latents that fire on each row; of the codes a chunk is held at once."""
    counts = np.zeros(n_rows, dtype=np.int64)
    for start in range(0, len(codes.rows), CHUNK):
        part = codes.rows[start : start + CHUNK]
        counts += np.bincount(part[part < n_rows], minlength=n_rows)
    return counts


def restricted(codes: LatentCodes, rows: Int64[np.ndarray, " kept"]) -> LatentCodes:
    """Codes on some rows alone; rows keep their numbers."""
    size = max(int(codes.rows.max(initial=-1)), int(rows.max(initial=-1))) + 1
    kept = np.zeros(size, dtype=bool)
    kept[rows] = True
    # in chunks: numpy makes 8 bytes of each number that it looks up
    chunks = range(0, len(codes.rows), CHUNK)
    inside = [start + np.flatnonzero(kept[codes.rows[start : start + CHUNK]]) for start in chunks]
    entries = np.concatenate([np.zeros(0, dtype=np.int64), *inside])
    starts = np.searchsorted(entries, codes.starts)
    return LatentCodes(codes.rows[entries], codes.values[entries], starts)


def _joint_counts(
    a: LatentCodes, by_row: _RowCodes, first: int, stop: int, n_others: int
) -> np.ndarray:
    """Rows on which latents first..stop of a and each of b both fire. [stop − first, n_others]."""
    span = slice(a.starts[first], a.starts[stop])
    rows = a.rows[span]
    local = np.repeat(np.arange(stop - first), a.counts[first:stop])
    lengths = by_row.starts[rows + 1] - by_row.starts[rows]
    out = np.zeros((stop - first) * n_others, dtype=np.int64)
    ends = np.cumsum(lengths)
    begin = 0
    while begin < len(rows):
        before = ends[begin - 1] if begin else 0
        end = max(int(np.searchsorted(ends, before + CHUNK, side="right")), begin + 1)
        part = slice(begin, end)
        within = np.arange(ends[end - 1] - before) - np.repeat(
            ends[part] - lengths[part] - before, lengths[part]
        )
        others = by_row.latents[np.repeat(by_row.starts[rows[part]], lengths[part]) + within]
        keys = np.repeat(local[part] * n_others, lengths[part]) + others
        out += np.bincount(keys, minlength=len(out))
        begin = end
    return out.reshape(-1, n_others)


def _largest(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Places and values of each row's k largest that are above 0."""
    if k < 1:
        return np.zeros((len(values), 0), np.int64), np.zeros((len(values), 0), np.float32)
    top = torch.from_numpy(values).topk(k)
    latent = top.indices.numpy()
    value = top.values.numpy()
    return np.where(value > 0, latent, -1), value
