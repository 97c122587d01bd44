"""What ranks that share the latents of one SAE tell each other, with threads for ranks."""

import threading

import pytest
import torch
from helpers.threaded_ranks import on_ranks

from saelib.ranks import Ranks
from saelib.sae import sharding
from saelib.sae.sharding import SHARED, UNSHARDED, Sharding


class OwnMessages:
    """Each thread's own `torch.distributed`."""

    def __init__(self):
        self.local = threading.local()

    def __getattr__(self, name):
        return getattr(self.local.messages, name)


@pytest.fixture
def gathered(monkeypatch):
    """What each of some ranks gets of rows that they hold in shards."""
    own = OwnMessages()
    monkeypatch.setattr(sharding, "distributed", own)

    def gather(whole, size, everywhere):
        def job(ranks, messages):
            own.local.messages = messages
            shared = Sharding(latents=ranks, n_latents=len(whole))
            return shared.all_gather(whole[shared.shard], everywhere)

        return on_ranks(size, job)

    return gather


@pytest.mark.parametrize(
    "whole", [torch.arange(14.0).view(7, 2), torch.tensor([True, False] * 3 + [True])]
)
@pytest.mark.parametrize("size", [2, 3])
def test_shards_are_put_together_on_rank_0_or_everywhere(gathered, whole, size):
    for result in gathered(whole, size, everywhere=True):
        assert result.dtype == whole.dtype
        assert torch.equal(result, whole)
    first, *others = gathered(whole, size, everywhere=False)
    assert torch.equal(first, whole)
    assert all(len(result) < len(whole) for result in others)  # they keep their shard


def test_what_every_rank_holds_counts_once():
    ranks = [Sharding(latents=Ranks(rank, 3), n_latents=9) for rank in range(3)]
    for name in SHARED:
        assert [rank.counts(name) for rank in ranks] == [True, False, False]
    assert all(rank.counts("W_enc") for rank in ranks)
    assert all(UNSHARDED.counts(name) for name in (*SHARED, "W_dec"))
