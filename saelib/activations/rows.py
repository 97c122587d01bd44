"""Batches of stored rows in a seeded order, endless."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32, Integer, Shaped
from torch import Tensor

from saelib.activations.store import Store


class ShuffledRows:
    """Endless seeded batches of rows `index` of a site; an epoch is a permutation of (seed, epoch).

    Yields (x [batch_size, d_model] as `Store.stored_rows` gives them, rows [batch_size]), rows
    ascending; a batch may straddle epochs. `cursor`, the rows consumed, is the whole state: what
    follows a cursor is the same however it was reached.
    """

    def __init__(
        self, store: Store, site: int, index: Integer[np.ndarray, " n"], batch_size: int, seed: int
    ) -> None:
        if not len(index):
            raise ValueError(f"site {site}: no rows to draw batches from")
        self.store = store
        self.site = site
        self.index = index
        self.device = store.device
        self.batch_size = batch_size
        self.seed = seed
        self.cursor = 0
        self._epoch = -1
        self._order = index

    def sample(
        self, n: int, generator: torch.Generator, cursor: int
    ) -> Float32[Tensor, "n d_model"]:
        """Up to n rows drawn from all rows, wherever the cursor stands."""
        chosen = torch.randperm(len(self.index), generator=generator)[:n].sort().values
        return self.store.rows(self.site, self.index[chosen.numpy()])

    def seek(self, cursor: int) -> None:
        """Go to where `cursor` rows have been consumed."""
        self.cursor = cursor

    def next_rows(self) -> Integer[np.ndarray, " batch"]:
        """Row numbers of the next batch, ascending; moves the cursor."""
        pieces: list[np.ndarray] = []
        missing = self.batch_size
        while missing:
            epoch, start = divmod(self.cursor, len(self.index))
            piece = self._permutation(epoch)[start : start + missing]
            pieces.append(piece)
            self.cursor += len(piece)
            missing -= len(piece)
        return np.sort(np.concatenate(pieces))

    def _permutation(self, epoch: int) -> np.ndarray:
        """Rows in the order of an epoch; the last one asked for is kept."""
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.index)
            self._epoch = epoch
        return self._order

    def __next__(self) -> tuple[Shaped[Tensor, "batch d_model"], Integer[np.ndarray, " batch"]]:
        rows = self.next_rows()
        return self.store.stored_rows(self.site, rows), rows
