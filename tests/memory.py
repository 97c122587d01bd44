"""A stream of rows without a disk, for tests."""

import torch


class MemoryStream:
    """Rows of a fixed table in a seeded order: `store.ShuffledRows` without a disk."""

    def __init__(self, x, batch_size):
        self.x, self.batch_size, self.cursor, self.device = x, batch_size, 0, x.device

    def __next__(self):
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(self.cursor))[: self.batch_size]
        self.cursor += self.batch_size
        return self.x[order], order.numpy()

    def seek(self, cursor):
        self.cursor = cursor

    def sample(self, n, generator, cursor):
        return self.x[torch.randperm(len(self.x), generator=generator)[:n].sort().values]
