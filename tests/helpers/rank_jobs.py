"""What ranks do together: one function per start, called by every rank."""

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers.collecting import CFG, SITES, make_lm
from helpers.processes import free_port, place, start_ranks, wait_for
from helpers.random_stores import make_contexts
from helpers.rank_restarts import undisturbed
from helpers.rank_trainings import DTYPES, KINDS, MODES, D, N, told_history, trained
from saelib.activations.collect import collect
from saelib.config import ConfigError, SAEConfig
from saelib.ranks import SINGLE_PROCESS, process_group
from saelib.sae import base as sae_module
from saelib.sae import build_sae
from saelib.sae.sharding import Sharding


def train_every_mode(ranks, folder):
    for name, cfg in MODES.items():
        for kind, make in KINDS.items():
            for dtype in DTYPES[name]:
                sharding = make(ranks)
                sae, history = trained(cfg, sharding, dtype)
                state = sharding.gather_state(sae) | told_history(history)
                if ranks.rank == 0:
                    state = {k: v.detach().contiguous() for k, v in state.items()}
                    save_file(state, folder / f"{name}.{kind}.{str(dtype)[6:]}.{ranks.size}")


def start_from_the_same_weights(ranks):
    sae_module.DRAWN_ROWS = 16
    sharding, config = Sharding(SINGLE_PROCESS, ranks, N), SAEConfig(d_in=5, n_latents=N)
    whole = build_sae(config, torch.Generator().manual_seed(0))
    part = build_sae(config, torch.Generator().manual_seed(0), sharding.shard)
    assert torch.equal(part.W_dec, whole.W_dec[sharding.shard])
    assert torch.equal(part.W_enc, whole.W_enc[:, sharding.shard])
    sae_module.DRAWN_ROWS = 4096


def disagree(ranks):
    odd = ranks.size - 1
    ranks.agree("profile", {"lam": 1.0})
    with pytest.raises(
        ConfigError, match=f"rank {odd} of {ranks.size} has another profile than rank 0"
    ):
        ranks.agree("profile", {"lam": 1.0 + (ranks.rank == odd)})
    with pytest.raises(
        ConfigError, match=f"rank {odd} of {ranks.size} has another model, text, sites or settings"
    ):
        collect(
            make_lm(seed=int(ranks.rank == odd)),
            make_contexts(),
            SITES,
            Path("never"),
            CFG,
            ranks=ranks,
        )
    assert not Path("never").exists()
    with pytest.raises(
        ConfigError, match=f"n_latents = 1: expected at least one for each of {ranks.size} ranks"
    ):
        Sharding(SINGLE_PROCESS, ranks, 1)
    with pytest.raises(
        ConfigError, match=f"batch_size = 1: expected at least a row for each of {ranks.size} ranks"
    ):
        Sharding(ranks).local_rows(torch.zeros(1, D))


def keep_whole_checkpoints_alone(ranks, folder):
    path, sharding = folder / f"kept{ranks.size}.safetensors", Sharding(SINGLE_PROCESS, ranks, N)
    trained(MODES["plain"], sharding, checkpoint=path)
    assert sharding.newest(path) == sharding.file(path, 80)
    ranks.wait()
    if ranks.rank == 0:
        found = sorted(p.name for p in folder.glob(f"kept{ranks.size}.*"))
        assert found == [sharding.file(path, 80, rank).name for rank in range(ranks.size)], (
            found
        )  # older ones are gone
    ranks.wait()
    if ranks.rank:
        sharding.file(path, 80).unlink()
    ranks.wait()
    assert sharding.newest(path) is None
    ranks.wait()
    if ranks.rank == 0:
        sharding.file(path, 80).rename(folder / f"kept{ranks.size}.80.0of9.safetensors")
    ranks.wait()
    with pytest.raises(
        ConfigError,
        match=rf"0of9\.safetensors: written by another number of ranks than {ranks.size}",
    ):
        sharding.newest(path)


def everything(ranks, folder):
    collect(make_lm(), make_contexts(), SITES, folder / f"store{ranks.size}", CFG, False, ranks)
    start_from_the_same_weights(ranks)
    disagree(ranks)
    keep_whole_checkpoints_alone(ranks, folder)
    train_every_mode(ranks, folder)


def one_shard_lost(ranks, folder):
    """Collect, but rank 1 is killed after its first shard."""
    if ranks.rank == 1:
        from saelib.activations.writer import StoreWriter

        write, written = StoreWriter.write_shard, []

        def write_once(*args):
            if written:
                os.kill(os.getpid(), signal.SIGKILL)
            written.append(write(*args))

        StoreWriter.write_shard = write_once
    collect(make_lm(), make_contexts(), SITES, folder / "lost", CFG, False, ranks)


JOBS = {job.__name__: job for job in (everything, one_shard_lost, undisturbed)}


def run_ranks(job, size, folder):
    """Let `size` processes do one of the jobs; returns when all have ended."""
    run_groups(job, (size,), folder)


def run_groups(job, sizes, folder):
    """Let groups of so many processes do one of the jobs, all groups at once.

    They wait for one another most of the time: two groups take little longer than one.
    """
    wait_for(*[start_ranks(start, n, job, n, free_port(), str(folder)) for n in sizes])


def start(rank, job, size, port, folder):
    """One of these processes."""
    place(rank, size, port)
    with process_group("cpu") as ranks:
        JOBS[job](ranks, Path(folder))


def start_sweep(rank, size, port, home, profile, over):
    """A process that trains a profile's SAEs."""
    from saelib.run import sweep

    place(rank, size, port)
    os.environ["SAELIB_HOME"] = home
    sweep.train(profile, over)
