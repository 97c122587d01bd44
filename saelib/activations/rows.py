"""Batches of rows, of a store or a tensor, in a seeded order, endless."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32, Integer, Shaped
from torch import Tensor

from saelib.activations.store import Store


class RowOrder:
    """Endless seeded batches of row numbers `index`; an epoch is a permutation of (seed, epoch).

    Rows of a batch ascend; a batch may straddle epochs. `cursor`, the rows consumed, is the whole
    state: what follows a cursor is the same however it was reached.
    """

    def __init__(self, index: Integer[np.ndarray, " n"], batch_size: int, seed: int) -> None:
        self.index = index
        self.batch_size = batch_size
        self.seed = seed
        self.cursor = 0
        self._epoch = -1
        self._order = index

    def sampled_rows(self, n: int, generator: torch.Generator) -> Integer[np.ndarray, " n"]:
        """Up to n row numbers drawn from all, ascending in `index`."""
        chosen = torch.randperm(len(self.index), generator=generator)[:n].sort().values
        return self.index[chosen.numpy()]

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


class ShuffledRows(RowOrder):
    """Batches of rows `index` of a site of a store, in the order of `RowOrder`.

    Yields (x [batch_size, d_model] as `Store.stored_rows` gives them, rows [batch_size]).
    """

    def __init__(
        self, store: Store, site: int, index: Integer[np.ndarray, " n"], batch_size: int, seed: int
    ) -> None:
        if not len(index):
            raise ValueError(f"site {site}: no rows to draw batches from")
        super().__init__(index, batch_size, seed)
        self.store = store
        self.site = site
        self.device = store.device

    def sample(
        self, n: int, generator: torch.Generator, cursor: int
    ) -> Float32[Tensor, "n d_model"]:
        """Up to n rows drawn from all rows, wherever the cursor stands."""
        return self.store.rows(self.site, self.sampled_rows(n, generator))

    def __next__(self) -> tuple[Shaped[Tensor, "batch d_model"], Integer[np.ndarray, " batch"]]:
        rows = self.next_rows()
        return self.store.stored_rows(self.site, rows), rows


class TensorRows(RowOrder):
    """Batches of rows `index` of a tensor x [n, d_in], in the order of `RowOrder`."""

    def __init__(
        self,
        x: Float32[Tensor, "n d_in"],
        index: Integer[np.ndarray, " rows"],
        batch_size: int,
        seed: int,
    ) -> None:
        if not len(index):
            raise ValueError("x: no rows to draw batches from")
        super().__init__(index, batch_size, seed)
        self.x = x
        self.device = x.device

    def sample(self, n: int, generator: torch.Generator, cursor: int) -> Float32[Tensor, "n d_in"]:
        """Up to n rows drawn from all rows, wherever the cursor stands."""
        return rows_of(self.x, self.sampled_rows(n, generator))

    def __next__(self) -> tuple[Float32[Tensor, "batch d_in"], Integer[np.ndarray, " batch"]]:
        rows = self.next_rows()
        return rows_of(self.x, rows), rows


def rows_of(
    x: Float32[Tensor, "n d_in"], rows: Integer[np.ndarray, " rows"]
) -> Float32[Tensor, "rows d_in"]:
    """The rows of those numbers."""
    return x[torch.from_numpy(rows).to(x.device)]
