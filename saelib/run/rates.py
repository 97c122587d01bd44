"""Seconds of the pieces of work on some machine: measured here in short runs, or stated."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM

from saelib.activations.lm import LM
from saelib.config import ConfigError, SAEConfig, TrainConfig
from saelib.measure.replaced_loss import next_token_losses, next_token_probs
from saelib.run import costs
from saelib.sae import build_sae
from saelib.sae.base import ENCODER_INIT_NORM
from saelib.sae.trainer import Trainer

ACTIVE = 48  # L0 at which a step is timed: the mean after λ has risen, in recorded runs
SHARE = 0.5  # of a product's rate, that diagnosis and pursuit reach: recorded runs
LAUNCH = 2.5e-3  # seconds per step beside its operations, on one H100
# Shares of a stated rate that one H100 reached; sums in float64 are assumed.
FORWARD_SHARE = 0.55
DENSE_SHARE = 0.06
SPARSE_SHARE = 0.1
SUMS_SHARE = 0.02
MATRIX_ROWS = 2048  # of the product that is timed in float64
# Weights and rows up to which a step is timed whole; a larger one is timed in part, and scaled.
MOST_WEIGHTS = {"cpu": 3 * 10**6, "cuda": 2**27}
MOST_ROWS = {"cpu": 512, "cuda": 8192}
FORWARD_WORK = 1e11  # operations of the forward that is timed, on at most 1,024 tokens


class Rates(NamedTuple):
    """Seconds of the pieces on some machine."""

    origin: str  # how they are known, as it is said after a time: "at rates measured on cpu"
    block: float  # seconds per token in a block
    head: float  # seconds per token in head and loss
    step: Callable[[int, int, bool, bool], float]  # seconds of a step: latents, rows, gated, dense
    sums: float | int  # operations per second of sums over rows in float64; each counts twice


def stated(shape: costs.Shape, ctx_len: int, rate: float | int) -> Rates:
    """From a stated rate of matrix products, and the shares of it that one H100 reached.

    Raises ConfigError for a rate that is not above 0.
    """
    if not rate > 0:
        raise ConfigError(f"rate = {rate!r}: expected operations a second, above 0, as 400e12")

    def step(latents: int, rows: int, gated: bool, dense: bool) -> float | int:
        active = None if dense else ACTIVE
        work = costs.step_flops(shape.d_model, latents, rows, active, gated)
        return work / rate / (DENSE_SHARE if dense else SPARSE_SHARE) + LAUNCH

    block = costs.forward_flops(shape, 1, ctx_len) / rate / FORWARD_SHARE
    head = costs.forward_flops(shape, 0, ctx_len, head=True) / rate / FORWARD_SHARE
    teraflops = f"{rate / 1e12:,.3g} × 10¹² operations a second"
    origin = f"at {teraflops} ({FORWARD_SHARE:.0%} of it in forwards, {SPARSE_SHARE:.0%} in steps)"
    return Rates(origin, block, head, step, SUMS_SHARE * rate)


def measured(config: Any, ctx_len: int, device: torch.device, dtype: torch.dtype) -> Rates:
    """From short runs on this machine, at the shapes asked for, with random weights."""
    d = config.get_text_config().hidden_size
    x = torch.randn(MATRIX_ROWS, min(1024, d), dtype=torch.float64, device=device)
    product = _seconds(lambda: x.T @ x, device)
    sums = SHARE * 4 * x.numel() * x.shape[1] / product
    block, head = _forward_seconds(config, ctx_len, device, dtype)
    step = cache(partial(_step_seconds, device, d))
    origin = f"at rates measured on {device} with {torch.get_num_threads()} threads"
    return Rates(origin, block, head, step, sums)


def _seconds(call: Callable[[], Any], device: torch.device, least: float = 0.4) -> float:
    """The least of a few calls: what else runs here can only add to it."""
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times: list[float] = []
    while len(times) < 2 or sum(times) < least:
        sync()
        start = time.perf_counter()
        call()
        sync()
        times.append(time.perf_counter() - start)
    return min(times)


def _forward_seconds(
    config: Any, ctx_len: int, device: torch.device, dtype: torch.dtype
) -> tuple[float, float]:
    """Seconds per token of a block, and of head and loss, from a model of two blocks."""
    small = config.to_dict() | {"num_hidden_layers": 2, "layer_types": None}
    with torch.device(device):
        lm = LM(AutoModelForCausalLM.from_config(type(config).from_dict(small), dtype=dtype))
    tokens = min(1024, int(FORWARD_WORK / costs.forward_flops(costs.shape_of(config), 2, ctx_len)))
    contexts = max(1, tokens // ctx_len)
    ids = torch.zeros(contexts, ctx_len, dtype=torch.long, device=device)
    resid = lm.capture(ids, [2])[2]
    clean = next_token_probs(lm.continue_from(2, resid, ids))

    def losses() -> Any:
        return next_token_losses(lm.continue_from(2, resid, ids), ids, clean)

    blocks = _seconds(lambda: lm.capture(ids, [2]), device, 1.5)
    head = _seconds(losses, device)
    return blocks / 2 / ids.numel(), head / ids.numel()


def _step_seconds(
    device: torch.device, d: int, latents: int, rows: int, gated: bool, dense: bool
) -> float:
    """Seconds of a step of a random SAE on normal rows, a row of its history included.

    A large one is timed in part, and scaled.
    """
    n = min(latents, MOST_WEIGHTS[device.type] // d)
    batch = min(rows, MOST_ROWS[device.type])
    trainer = _random_trainer(device, d, n, batch, gated, dense)
    x = torch.randn(batch, d, device=device)
    steps = trainer.cfg.log_every
    seconds = _seconds(lambda: [trainer.step_(x) for _ in range(steps)], device)
    return seconds / steps * latents / n * rows / batch


def _random_trainer(
    device: torch.device, d: int, latents: int, batch: int, gated: bool, dense: bool
) -> Trainer:
    """A trainer whose SAE has `ACTIVE` latents active on normal rows."""
    sae = build_sae(SAEConfig("gated" if gated else "sae", d, latents)).to(device)
    # the encoder's products are normal: a share ACTIVE / latents of them is above -bias
    share = min(0.5, ACTIVE / latents)
    quantile = float(torch.special.ndtri(torch.tensor(share)))
    with torch.no_grad():
        getattr(sae, sae.bias_names()[0]).fill_(ENCODER_INIT_NORM * quantile)
    loss = "full" if gated else "plain"
    step = "dense" if dense else "auto"
    cfg = TrainConfig(loss=loss, step=step, lr=1e-9, tokens=batch * 10**6, batch_size=batch)
    trainer = Trainer(sae, cfg)
    trainer.density = share
    return trainer
