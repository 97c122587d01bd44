"""Batches of the rows of a tensor in a seeded order, endless."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32, Integer
from torch import Tensor


class TensorRows:
    """Endless seeded batches of the rows of a tensor; an epoch is a permutation of (seed, epoch).

    As `rows.ShuffledRows` is of a store: `cursor`, the rows consumed, is the whole state.
    """

    def __init__(self, x: Float32[Tensor, "n d_in"], batch_size: int, seed: int) -> None:
        if not len(x):
            raise ValueError("x: no rows to draw batches from")
        self.x = x
        self.device = x.device
        self.batch_size = batch_size
        self.seed = seed
        self.cursor = 0

    def __next__(self) -> tuple[Float32[Tensor, "batch d_in"], Integer[np.ndarray, " batch"]]:
        pieces: list[np.ndarray] = []
        missing = self.batch_size
        while missing:
            epoch, start = divmod(self.cursor, len(self.x))
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.x))
            piece = order[start : start + missing]
            pieces.append(piece)
            self.cursor += len(piece)
            missing -= len(piece)
        rows = np.sort(np.concatenate(pieces))
        return self.x[torch.from_numpy(rows).to(self.device)], rows

    def seek(self, cursor: int) -> None:
        """Go to where `cursor` rows have been consumed."""
        self.cursor = cursor

    def sample(self, n: int, generator: torch.Generator, cursor: int) -> Float32[Tensor, "n d_in"]:
        """Up to n rows drawn from all rows, wherever the cursor stands."""
        drawn = torch.randperm(len(self.x), generator=generator)[:n].sort().values
        return self.x[drawn.to(self.device)]
