"""What changes with the step: the learning rate, λ, and how far training is."""

from __future__ import annotations

import torch
from transformers import get_scheduler

from saelib.config import TrainConfig


def make_scheduler(
    optimizer: torch.optim.Optimizer, cfg: TrainConfig
) -> torch.optim.lr_scheduler.LRScheduler:
    """`transformers.get_scheduler` by name; `n_cycles` divides what follows the warm-up."""
    name = {"constant": "constant_with_warmup"}.get(cfg.schedule, cfg.schedule)
    extra = {"num_cycles": cfg.n_cycles} if cfg.schedule == "cosine_with_restarts" else None
    warmup = round(cfg.warmup * cfg.total_steps)
    return get_scheduler(name, optimizer, warmup, cfg.total_steps, scheduler_specific_kwargs=extra)


def lam_of_step(cfg: TrainConfig, step: int) -> float:
    """λ of the step with that number, counted from 0; rises linearly over the warm-up."""
    warmup = round(cfg.lam_warmup * cfg.total_steps)
    return cfg.lam * min(1.0, (step + 1) / max(1, warmup))


def progress_of_step(cfg: TrainConfig, step: int) -> float:
    """Share of the schedule's steps before the step with that number, counted from 0: in [0, 1)."""
    return step / cfg.total_steps
