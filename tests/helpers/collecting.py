"""A collection that takes a moment: a Llama of width 16, sites, and batches and shards of 8 tokens.

Its text is `random_stores.make_contexts()`, of which it makes six shards.
"""

import torch

from helpers.models import llama
from saelib.activations.lm import LM
from saelib.config import CollectConfig

VOCAB = 61
SITES = (1, "middle", -1)  # resolved: 1, 2, 4
CFG = CollectConfig(batch_tokens=8, shard_tokens=8)


def make_lm(seed=0, dtype=torch.float32):
    """The collection's Llama: weights are drawn ten times as large as by default."""
    model = llama(seed, width=16, inner=24, vocabulary=VOCAB, initializer_range=0.2)
    return LM(model.to(dtype), name="tiny")
