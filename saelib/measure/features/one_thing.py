"""Does a short description of a latent, found on some pages, hold on others?

A description is three token types at one place beside the firing token: the token itself, the one
after it, or the one before it. Of the three places that one is taken whose three types of most
activation mass hold the largest share of the mass. On other pages, the description *holds* as far
as those types hold the mass there:

    share = Σ activations where the token at that place is one of the three / Σ activations

A place outside the context counts as a token type of its own.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64

from saelib.measure.features.build import entries
from saelib.measure.features.codes import LatentCodes, sorted_codes
from saelib.measure.features.sources import ORDINARY, Source, TokenTable
from saelib.measure.features.statistics import TokenTypes
from saelib.sae import Autoencoder

PLACES = {"token": 0, "next": 1, "before": -1}  # by distance from the firing token
N_TYPES = 3
OUTSIDE = -1  # of a place outside the context
BATCH = 2048


class Description(NamedTuple):
    """For each latent a place, an index into `PLACES`, and the token types there."""

    place: Int64[np.ndarray, " latents"]
    types: Int64[np.ndarray, "latents types"]  # OUTSIDE - 1 where there are fewer
    n_fired: Int64[np.ndarray, " latents"]  # rows that it was found on


class Held(NamedTuple):
    """Mass of each latent on each page it fires on: all of it, and where its description holds.

    Pairs of a latent and a page stand latent after latent; the others have no mass.
    """

    latent: Int64[np.ndarray, " pairs"]
    page: Int64[np.ndarray, " pairs"]
    inside: Float64[np.ndarray, " pairs"]
    total: Float64[np.ndarray, " pairs"]
    n_fired: Int64[np.ndarray, " latents"]
    n_pages: int

    def sums(
        self, name: Literal["inside", "total"], weights: Float64[np.ndarray, "pages draws"]
    ) -> Float64[np.ndarray, "latents draws"]:
        """Mass of each latent with pages weighed, for each draw of weights."""
        matrix = torch.sparse_coo_tensor(
            torch.from_numpy(np.stack([self.latent, self.page])),
            torch.from_numpy(getattr(self, name)),
            (len(self.n_fired), self.n_pages),
            check_invariants=True,
        )
        return (matrix @ torch.from_numpy(np.ascontiguousarray(weights))).numpy()

    def shares(self, weights: Float64[np.ndarray, " pages"]) -> Float64[np.ndarray, " latents"]:
        """Share of the mass that the description holds, pages weighed; nan without mass."""
        inside, total = (self.sums(name, weights[:, None])[:, 0] for name in ("inside", "total"))
        return inside / np.where(total > 0, total, np.nan)


@torch.no_grad()
def source_codes(sae: Autoencoder, source: Source) -> LatentCodes:
    """Codes above 0 on the ordinary tokens of a source, by its row numbers."""
    parts = []
    start = 0
    for x in source.iter_rows(BATCH):
        rows, latents, values = entries(sae, x)
        kept = source.tokens.kind[rows + start] == ORDINARY
        parts.append((rows[kept] + start, latents[kept], values[kept]))
        start += len(x)
    rows, latents, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    return sorted_codes(rows, latents, values, sae.config.n_latents)


def tokens_at(tokens: TokenTable, distance: int) -> Int64[np.ndarray, " rows"]:
    """Token id so many places after each row, within its context; `OUTSIDE` beyond it."""
    n_rows = len(tokens)
    place = np.arange(n_rows) + distance
    inside = (place >= 0) & (place < n_rows)
    place = place.clip(0, n_rows - 1)
    inside &= tokens.context[place] == tokens.context
    return np.where(inside, tokens.token_id[place], OUTSIDE).astype(np.int64)


def describe(codes: LatentCodes, tokens: TokenTable) -> Description:
    """The description of each latent; of equal places the first of `PLACES`."""
    shares = []
    types = []
    mass = np.bincount(codes.latents, codes.values, codes.n_latents)
    for distance in PLACES.values():
        ids = (tokens_at(tokens, distance) + 1).astype(np.int32)  # from 0
        most = TokenTypes.of(codes, ids, N_TYPES)
        shares.append(most.mass.sum(1) / np.where(mass > 0, mass, 1))
        types.append(most.token_id.astype(np.int64) - 1)
    # sums of the same mass in another order differ in the last digits: a tie is a tie
    place = np.argmax(np.round(shares, 6), axis=0)
    chosen = np.stack(types)[place, np.arange(codes.n_latents)]
    return Description(place, chosen, codes.counts)


def held(codes: LatentCodes, tokens: TokenTable, description: Description) -> Held:
    """How far descriptions hold on other tokens, by page (of `tokens.page`, ascending)."""
    pages, page = np.unique(tokens.page, return_inverse=True)
    latents = codes.latents
    at_places = np.stack([tokens_at(tokens, distance) for distance in PLACES.values()])
    token = at_places[description.place[latents], codes.rows]
    fits = (description.types[latents] == token[:, None]).any(1)
    cell = latents * len(pages) + page[codes.rows]
    cells, pair = np.unique(cell, return_inverse=True)
    values = codes.values.astype(np.float64)
    return Held(
        latent=cells // len(pages),
        page=cells % len(pages),
        inside=np.bincount(pair, values * fits, len(cells)),
        total=np.bincount(pair, values, len(cells)),
        n_fired=codes.counts,
        n_pages=len(pages),
    )


def shuffled(codes: LatentCodes, tokens: TokenTable, seed: int) -> LatentCodes:
    """The same codes on ordinary tokens that were permuted: counts and sizes without meaning."""
    ordinary = tokens.ordinary
    target = np.arange(len(tokens))
    target[ordinary] = np.random.default_rng(seed).permutation(ordinary)
    rows = target[codes.rows]
    rising = np.argsort(rows, kind="stable")
    latents = codes.latents[rising]
    return sorted_codes(rows[rising], latents, codes.values[rising], codes.n_latents)
