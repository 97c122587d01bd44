"""What ranks that share the latents of one SAE tell each other, with threads for ranks."""

import threading

import pytest
import torch
from helpers.threaded_ranks import on_ranks

from saelib.config import ConfigError
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


class OnlyFirst(Ranks):
    """Rank 0 of two, whose word the other takes."""

    def first(self, value):
        return value


def test_the_checkpoint_to_continue_from_is_the_latest_that_all_ranks_have_written(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    shared = Sharding(latents=OnlyFirst(0, 2), n_latents=8)
    assert shared.newest(path) is None
    for step, ranks in {20: (0, 1), 100: (0, 1), 200: (1,)}.items():
        for rank in ranks:
            shared.file(path, step, rank).touch()
    assert shared.newest(path) == tmp_path / "checkpoint.100.0of2.safetensors"
    shared.file(path, 200, 0).touch()
    assert shared.newest(path) == tmp_path / "checkpoint.200.0of2.safetensors"
    (tmp_path / "checkpoint.200.2of3.safetensors").touch()
    with pytest.raises(ConfigError, match=r"2of3.safetensors: written by another number of ranks"):
        shared.newest(path)


def test_what_every_rank_holds_counts_once():
    ranks = [Sharding(latents=Ranks(rank, 3), n_latents=9) for rank in range(3)]
    for name in SHARED:
        assert [rank.counts(name) for rank in ranks] == [True, False, False]
    assert all(rank.counts("W_enc") for rank in ranks)
    assert all(UNSHARDED.counts(name) for name in (*SHARED, "W_dec"))
