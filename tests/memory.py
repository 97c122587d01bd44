"""A stream of rows without a disk, for tests."""

import numpy as np
import torch


class MemoryStream:
    """Rows of a fixed table in a seeded order: `store.ShuffledRows` without a disk."""

    def __init__(self, x, batch_size):
        self.x, self.batch_size, self.cursor, self.index = x, batch_size, 0, np.arange(len(x))

    def __next__(self):
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(self.cursor))[: self.batch_size]
        self.cursor += self.batch_size
        return self.x[order], order.numpy()

    def seek(self, cursor):
        self.cursor = cursor

    def rows(self, index):
        return self.x[torch.from_numpy(index)]
