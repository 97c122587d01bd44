"""Rows without a disk, and one SAE trained on them with all that `Run` has."""

import torch

from saelib.sae.group import Run, train_together
from saelib.sae.history import TrainingDiverged


def train_one(sae, stream, cfg, *, probe=None, checkpoint=None, checkpoint_every=200, on_log=None):
    """One run's history, with gate snapshots and a checkpoint if any; raises `TrainingDiverged`."""
    log = on_log and (lambda _, row: on_log(row))
    (result,) = train_together(
        [([Run(sae, cfg, probe, checkpoint)], stream)], checkpoint_every, log
    )
    if isinstance(result, TrainingDiverged):
        raise result
    return result


class MemoryStream:
    """Rows of a fixed table in a seeded order: `store.ShuffledRows` without a disk."""

    def __init__(self, x, batch_size):
        self.x = x
        self.batch_size = batch_size
        self.cursor = 0
        self.device = x.device

    def __next__(self):
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(self.cursor))[
            : self.batch_size
        ]
        self.cursor += self.batch_size
        return self.x[order], order.numpy()

    def seek(self, cursor):
        self.cursor = cursor

    def sample(self, n, generator, cursor):
        return self.x[torch.randperm(len(self.x), generator=generator)[:n].sort().values]
