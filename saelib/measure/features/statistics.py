"""Numbers of each latent from its codes: how often, how much, and on which tokens it fires.

The token types that a latent fires on are weighed by activation mass, the sum of its activations
there. With p the shares of its mass,

    concentration    max p
    token types      exp(−Σ p log p), the perplexity of p: as many types of equal mass
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

from saelib.measure.features.codes import LatentCodes

# Of activations in normalised units; the outer bins take what lies beyond.
EDGES = np.geomspace(1e-3, 1e3, 49).astype(np.float32)


class Firing(NamedTuple):
    """Of each of some latents: n_fired, Σ and largest of its activations, row of the largest."""

    count: Int64[np.ndarray, " latents"]
    total: Float64[np.ndarray, " latents"]
    largest: Float32[np.ndarray, " latents"]  # 0 where it never fires
    row: Int64[np.ndarray, " latents"]  # the first such; -1 where it never fires

    @classmethod
    def of(cls, codes: LatentCodes) -> Firing:
        """Of the latents that codes hold."""
        fired = np.flatnonzero(codes.counts)
        starts = codes.starts[fired]
        total = np.zeros(codes.n_latents)
        largest = np.zeros(codes.n_latents, dtype=np.float32)
        row = np.full(codes.n_latents, -1)
        if len(fired):
            total[fired] = np.add.reduceat(codes.values.astype(np.float64), starts)
            largest[fired] = np.maximum.reduceat(codes.values, starts)
            peaks = np.flatnonzero(codes.values == largest[codes.latents])
            latent, first = np.unique(codes.latents[peaks], return_index=True)
            row[latent] = codes.rows[peaks[first]]
        return cls(codes.counts, total, largest, row)


def histograms(codes: LatentCodes) -> Int32[np.ndarray, "latents bins"]:
    """Firings in each bin of `EDGES`, as `bins` has them."""
    n_bins = len(EDGES) - 1
    place = codes.latents * n_bins + bins(codes.values)
    counts = np.bincount(place, minlength=codes.n_latents * n_bins)
    return counts.reshape(-1, n_bins).astype(np.int32)


def bins(values: Float32[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """The bin of each activation; a bin holds its lower edge."""
    return (np.searchsorted(EDGES, values, side="right") - 1).clip(0, len(EDGES) - 2)


class TokenTypes(NamedTuple):
    """The token types that latents fire on most by mass, and how concentrated the mass is."""

    token_id: Int32[np.ndarray, "latents k"]  # -1 where there are fewer
    count: Int32[np.ndarray, "latents k"]
    mass: Float32[np.ndarray, "latents k"]
    concentration: Float64[np.ndarray, " latents"]  # nan where a latent never fires
    n_types: Float64[np.ndarray, " latents"]  # exp of the entropy; nan likewise

    @classmethod
    def of(cls, codes: LatentCodes, token_id: Int32[np.ndarray, " rows"], k: int) -> TokenTypes:
        """`token_id` is of each row; of equal mass the smaller id comes first."""
        latent, token, count, mass = _type_sums(codes, token_id)
        order = np.lexsort((token, -mass, latent))
        place = ranks(latent[order])
        kept = order[place < k]
        at_rank = (latent[kept], place[place < k])
        shape = (codes.n_latents, k)
        return cls(
            _scattered(shape, at_rank, token[kept], -1, np.int32),
            _scattered(shape, at_rank, count[kept], 0, np.int32),
            _scattered(shape, at_rank, mass[kept], 0, np.float32),
            *_concentration(latent, mass, codes.n_latents),
        )


def _type_sums(
    codes: LatentCodes, token_id: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(latent, token id, count, mass) of each pair that fires."""
    tokens = token_id[codes.rows].astype(np.int64)
    span = int(token_id.max(initial=0)) + 1
    keys = codes.latents * span + tokens
    order = np.argsort(keys, kind="stable")
    pairs, starts = np.unique(keys[order], return_index=True)
    if not len(pairs):
        return pairs, pairs, pairs, pairs.astype(np.float64)
    mass = np.add.reduceat(codes.values[order].astype(np.float64), starts)
    count = np.diff(starts, append=len(keys))
    return pairs // span, pairs % span, count, mass


def _concentration(
    latent: np.ndarray, mass: np.ndarray, n_latents: int
) -> tuple[np.ndarray, np.ndarray]:
    total = np.bincount(latent, mass, n_latents)
    share = mass / total[latent]
    largest = np.zeros(n_latents)
    np.maximum.at(largest, latent, share)
    entropy = np.bincount(latent, -share * np.log(share), n_latents)
    fires = total > 0
    return np.where(fires, largest, np.nan), np.where(fires, np.exp(entropy), np.nan)


def ranks(groups: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """The place of each element within its group, from 0; groups stand together."""
    begins = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]]) if len(groups) else groups
    return np.arange(len(groups)) - np.repeat(begins, np.diff(np.r_[begins, len(groups)]))


def _scattered(
    shape: tuple[int, int], places: tuple, values: np.ndarray, empty: int, dtype: type
) -> np.ndarray:
    """Values at (row, column) places of an array that is `empty` elsewhere."""
    out = np.full(shape, empty, dtype=dtype)
    out[places] = values
    return out
