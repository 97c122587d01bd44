"""What the processes of test_ranks.py do: one function per start, called by every rank.

Not a test module.
"""

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers.collecting import CFG, SITES, make_lm
from helpers.random_stores import make_contexts
from helpers.streams import MemoryStream
from safetensors.torch import save_file

from saelib.activations.collect import collect
from saelib.config import ConfigError, SAEConfig, TrainConfig
from saelib.ranks import SINGLE_PROCESS, process_group
from saelib.sae import base as sae_module
from saelib.sae import build_sae
from saelib.sae.group import Run, train_together
from saelib.sae.sharding import UNSHARDED, Sharding

D, N, SILENT = 8, 50, 20  # 50 latents: neither 4 ranks nor 2 blocks of 16 divide them
BASE = {
    "tokens": 3200,
    "batch_size": 32,
    "lam": 0.05,
    "lr": 2e-3,
    "dead_window": 640,
    "seed": 3,
}  # 100 steps
RESAMPLED = {"resample_at": (0.3, 0.6), "resample_rows": 500, "snapshots": 2, "schedule": "linear"}
MODES = {
    "plain": TrainConfig(**BASE, b_dec_init="mean"),
    "plain_clipped": TrainConfig(**BASE, grad_clip=0.05, step="dense"),
    "two_term": TrainConfig(**BASE, loss="two_term", grad_clip=0.5),
    "full": TrainConfig(**BASE, **RESAMPLED, loss="full", grad_clip=1.0, step="sparse"),
    "plain_resampled": TrainConfig(**BASE, **RESAMPLED),
}
DTYPES = {
    name: (torch.float32, torch.float64) if name in ("plain_clipped", "full") else (torch.float32,)
    for name in MODES
}
KINDS = {"data": Sharding, "latents": lambda ranks: Sharding(SINGLE_PROCESS, ranks, N)}


def rows(n=2000, seed=0):
    """Sparse sums of 24 directions, the same for every seed."""
    directions = torch.randn(24, D, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed + 1)
    codes = torch.rand(n, 24, generator=generator) * (torch.rand(n, 24, generator=generator) < 0.1)
    return 3 * codes @ directions


def trained(cfg, sharding: Sharding = UNSHARDED, dtype=torch.float32, checkpoint=None, on_log=None):
    """(SAE or this rank's share, history) after `cfg` on `rows`.

    Some latents are silent where it resamples.
    """
    arch = "sae" if cfg.loss == "plain" else "gated"
    config = SAEConfig(
        arch, d_in=D, n_latents=N, l1_mode="norm_weighted" if cfg.grad_clip == 0.5 else "unit_norm"
    )
    whole = torch.zeros(N)
    whole[:: N // SILENT] = -1e3 if cfg.resample_at else 0.0
    sae = build_sae(config, torch.Generator().manual_seed(cfg.seed), sharding.shard).to(dtype)
    with torch.no_grad():
        getattr(sae, sae.bias_names()[0]).copy_(whole[sharding.shard])
    step = {"step": "auto"} if dtype == torch.float64 and cfg.step == "sparse" else {}
    cfg = TrainConfig.from_dict(cfg.to_dict() | step)
    run = Run(sae, cfg, rows(50, 1).to(dtype), checkpoint, sharding)
    (history,) = train_together(
        [([run], MemoryStream(rows().to(dtype), cfg.batch_size))], 20, on_log
    )
    return sae, history


def told_history(history):
    """What a history says, as tensors."""
    keys = sorted(history.table[0])
    return {
        "h.table": torch.tensor(
            [[row[k] for k in keys] for row in history.table], dtype=torch.float64
        ),
        "h.revived": torch.tensor([latent for event in history.events for latent in event.revived]),
        "h.events": torch.tensor(
            [[e.n_dead, e.n_gate_dead, e.alive_later] for e in history.events]
        ),
        "h.open": torch.stack([s.open for s in history.snapshots] or [torch.zeros(1)]).contiguous(),
        "h.fire_rate": torch.stack([s.fire_rate for s in history.snapshots] or [torch.zeros(1)]),
    }


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


def undisturbed(ranks, folder, die=None):
    """One SAE sharding each way, with checkpoints; one that is there is not made again."""
    for kind, make in KINDS.items():
        if not (folder / kind).exists():
            sharding = make(ranks)
            told = die and (lambda _, row, kind=kind: die(kind, row["step"]))
            sae, history = trained(
                MODES["full"], sharding, checkpoint=folder / f"{kind}.safetensors", on_log=told
            )
            state = sharding.gather_state(sae) | {"resumed_at": torch.tensor(history.resumed_at)}
            if ranks.rank == 0:
                save_file({k: v.detach().contiguous() for k, v in state.items()}, folder / kind)
            ranks.wait()


def killed_and_restarted(folder):
    """Under torchrun: rank 1 kills itself once in each of the two."""
    with process_group("cpu") as ranks:
        due = {"0": "data", "1": "latents"}.get(os.environ["TORCHELASTIC_RESTART_COUNT"])

        def die(kind, step):
            if (kind, step, ranks.rank) == (due, 70, 1):
                os.kill(os.getpid(), signal.SIGKILL)

        undisturbed(ranks, folder, die)


@contextmanager
def one_thread():
    """As each of several ranks has it: another number of threads changes the last bits of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def place(rank, size, port):
    """Tell this process its place as `torchrun` does."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size)
    )
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)


def start(rank, job, size, port, folder):
    """A process that does one of the functions above."""
    place(rank, size, port)
    with process_group("cpu") as ranks:
        globals()[job](ranks, Path(folder))


def start_sweep(rank, size, port, home, profile, over):
    """A process that trains a profile's SAEs."""
    from saelib.run import sweep

    place(rank, size, port)
    os.environ["SAELIB_HOME"] = home
    sweep.train(profile, over)


if __name__ == "__main__":
    torch.set_num_threads(1)
    killed_and_restarted(Path(sys.argv[1]))
