"""What one process and several train alike: rows, recipes, ways to split, the SAE after each."""

import torch

from helpers.streams import MemoryStream
from saelib.config import SAEConfig, TrainConfig
from saelib.ranks import SINGLE_PROCESS
from saelib.sae import build_sae
from saelib.sae.group import Run, train_together
from saelib.sae.sharding import UNSHARDED, Sharding

D = 8
N = 50  # latents: neither 4 ranks nor 2 blocks of 16 divide them
SILENT = 20
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
    l1_mode = "norm_weighted" if cfg.loss == "plain" and cfg.grad_clip else "unit_norm"
    config = SAEConfig(arch, d_in=D, n_latents=N, l1_mode=l1_mode)
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
