"""Which contexts of a latent are kept: a few by interval of its activation, and some without it.

A context is ranked by its peak, the latent's largest activation in it; each stands once.

    top      the k strongest
    middle   of the others, k at random with a peak above 1/3 and up to 2/3 of the latent's largest
    low      of the others, k at random with a peak up to 1/3 of it
    off      k random ordinary tokens in whose context the latent fires nowhere

"At random" is by a fixed hash of seed, latent and row: the choice depends on no order and no batch.
Of a latent that fires in nearly every context, fewer "off" are found: `TRIES` · k tokens are drawn.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt64

from saelib.measure.features.codes import LatentCodes
from saelib.measure.features.sources import ORDINARY, TokenTable
from saelib.measure.features.statistics import ranks

KINDS = ("top", "middle", "low", "off")
TRIES = 4
WIDTH = 20  # tokens shown either side of the peak


class ContextWindow(NamedTuple):
    """The tokens around a peak, within its context."""

    title: str
    context: int  # its number in the store or the own text
    position: int  # of the peak, in its context
    peak: int  # which of the tokens below it is
    token_ids: Int32[np.ndarray, " window"]
    activations: Float32[np.ndarray, " window"]  # nan where a token is not ordinary

    @property
    def activation(self) -> float:
        """At the peak."""
        return float(self.activations[self.peak])


def priorities(
    seed: int, latent: Int64[np.ndarray, " n"], row: Int64[np.ndarray, " n"]
) -> UInt64[np.ndarray, " n"]:
    """Hashes of (seed, latent, row), uniform on 64 bits: two rounds of splitmix64.

    Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators.
    """
    start = np.uint64(seed) + latent.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return _mixed(_mixed(start) + row.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _mixed(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Peaks(NamedTuple):
    """The largest activation in each (latent, context) that fires, and its first row."""

    latent: Int64[np.ndarray, " n"]
    context: Int64[np.ndarray, " n"]
    row: Int64[np.ndarray, " n"]
    value: Float32[np.ndarray, " n"]

    @classmethod
    def of(cls, codes: LatentCodes, context: Int32[np.ndarray, " rows"]) -> Peaks:
        """`context` is of each row."""
        latents = codes.latents
        contexts = context[codes.rows].astype(np.int64)
        changes = (latents[1:] != latents[:-1]) | (contexts[1:] != contexts[:-1])
        starts = np.flatnonzero(np.r_[True, changes]) if len(latents) else np.zeros(0, np.int64)
        if not len(starts):
            return cls(latents, contexts, codes.rows.astype(np.int64), codes.values)
        value = np.maximum.reduceat(codes.values, starts)
        run = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(latents)]))
        strongest = np.flatnonzero(codes.values == value[run])
        _, first = np.unique(run[strongest], return_index=True)
        row = codes.rows[strongest[first]].astype(np.int64)
        return cls(latents[starts], contexts[starts], row, value)


def chosen_rows(
    codes: LatentCodes, first: int, tokens: TokenTable, k: int, seed: int
) -> Int32[np.ndarray, "latents kinds k"]:
    """Rows of the peaks of kept contexts, of latents from `first` on, in the order of `KINDS`.

    -1 where there are fewer. The strongest come first, the random ones by their hash.
    """
    peaks = Peaks.of(codes, tokens.context)
    out = np.full((codes.n_latents, len(KINDS), k), -1, dtype=np.int32)
    hashes = priorities(seed, peaks.latent + first, peaks.row)
    order = np.lexsort((peaks.row, -peaks.value, peaks.latent))
    is_top = ranks(peaks.latent[order]) < k
    _place(out, 0, peaks.latent, peaks.row, order[is_top])
    rest = order[~is_top]
    largest = np.zeros(codes.n_latents, dtype=np.float32)
    np.maximum.at(largest, peaks.latent, peaks.value)
    share = peaks.value / largest[peaks.latent]
    for kind, low, high in ((1, 1 / 3, 2 / 3), (2, 0, 1 / 3)):
        inside = rest[(share[rest] > low) & (share[rest] <= high)]
        _place(out, kind, peaks.latent, peaks.row, _by_hash(inside, peaks.latent, hashes))
    out[:, 3] = _silent_rows(peaks, codes.n_latents, first, tokens, k, seed)
    return out


def _by_hash(entries: np.ndarray, latent: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    return entries[np.lexsort((hashes[entries], latent[entries]))]


def _place(
    out: np.ndarray, kind: int, latent: np.ndarray, row: np.ndarray, entries: np.ndarray
) -> None:
    """Write the first k entries of each latent, which stand together in their order."""
    place = ranks(latent[entries])
    kept = place < out.shape[2]
    out[latent[entries[kept]], kind, place[kept]] = row[entries[kept]]


def _silent_rows(
    peaks: Peaks, n_latents: int, first: int, tokens: TokenTable, k: int, seed: int
) -> Int32[np.ndarray, "latents k"]:
    """Rows of the kind "off"."""
    draws = np.tile(np.arange(TRIES * k), n_latents)
    latent = np.repeat(np.arange(n_latents), TRIES * k)
    ordinary = tokens.ordinary
    # another stream than the peaks' hashes, so that the two choices are independent
    hashes = priorities(seed + 1, latent + first, draws)
    row = ordinary[(hashes % np.uint64(len(ordinary))).astype(np.int64)]
    span = int(tokens.context.max()) + 1
    key = latent * span + tokens.context[row]
    fires = np.isin(key, peaks.latent * span + peaks.context)
    _, earliest = np.unique(key, return_index=True)
    once = np.zeros(len(key), dtype=bool)
    once[earliest] = True
    entries = np.flatnonzero(once & ~fires)
    out = np.full((n_latents, 1, k), -1, dtype=np.int32)
    _place(out, 0, latent, row, entries)
    return out[:, 0]


def window(
    tokens: TokenTable,
    row: int,
    rows: Int32[np.ndarray, " fired"],
    values: Float32[np.ndarray, " fired"],
    width: int = WIDTH,
) -> ContextWindow:
    """The tokens around a row; `rows` and `values` are where the latent fires, rows rising."""
    whole = tokens.context_rows(row)
    shown = np.arange(max(whole.start, row - width), min(whole.stop, row + width + 1))
    begin, stop = np.searchsorted(rows, [shown[0], shown[-1] + 1])
    activations = np.zeros(len(shown), dtype=np.float32)
    activations[rows[begin:stop] - shown[0]] = values[begin:stop]
    activations[tokens.kind[shown] != ORDINARY] = np.nan
    return ContextWindow(
        title=tokens.titles[tokens.page[row]],
        context=int(tokens.context[row]),
        position=int(tokens.position[row]),
        peak=int(row - shown[0]),
        token_ids=tokens.token_id[shown],
        activations=activations,
    )
