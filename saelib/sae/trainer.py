"""One training loop for one or many SAEs: Adam, schedules by `transformers`' names, λ warm-up, resampling.

`Trainer` holds everything a run is (weights, moments, schedule, random state, dead counters, history); `train_groups`
reads and normalises each batch of a stream once, gives it to every trainer of the stream's group, and lets several
streams go on side by side. Each SAE ends bit-identical to one trained alone, and a run continued from a checkpoint to
one that was never interrupted.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import get_scheduler

from saelib.config import ConfigError, TrainConfig
from saelib.sae import dense, sparse
from saelib.sae.base import SAE, GatedSAE
from saelib.sae.resample import ResampleEvent, resample_, row_losses
from saelib.sae.sharding import ALONE, Split

WEISZFELD_STEPS = 32
SPARSE_BELOW = (
    0.25  # share of open entries in the last batch under which "auto" takes the sparse step
)
SCREEN_BELOW = 0.03  # and under which the sparse step's encoder multiplies in bfloat16 first
B_DEC_ROWS = 8192  # training rows from which b_dec is initialised
BLOCK_BYTES = (
    32 << 20
)  # of normalised rows read ahead: each SAE takes these batches before the next one does


class TrainingDiverged(RuntimeError):
    """The loss stopped being finite; the message names the step and the configuration."""


@runtime_checkable
class RowSource(Protocol):
    """What training needs of a stream: `store.ShuffledRows`, or `stream.LiveRows` of a language model at work.

    `cursor` counts the rows handed out. `sample` draws up to n rows [n, d_in] in model units, which depend on the
    cursor given alone, never on how far the stream has been read ahead.
    """

    def __next__(self) -> tuple[Tensor, np.ndarray]: ...
    def seek(self, cursor: int) -> None: ...
    def sample(self, n: int, generator: torch.Generator, cursor: int) -> Tensor: ...


@dataclass
class Snapshot:
    """State of the gates at one moment, on fixed probe rows."""

    step: int
    tokens: int
    fire_rate: Tensor  # [n_latents], share of probe rows on which the latent fires
    open: Tensor  # bool [probe rows, n_latents]
    b_gate: Tensor  # [n_latents]; of `SAE` its b_enc


@dataclass
class History:
    """What a run leaves beside the weights."""

    table: list[dict[str, float]] = field(default_factory=list)  # one row every `log_every` steps
    events: list[ResampleEvent] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    resumed_at: int = 0


def geometric_median(x: Tensor) -> Tensor:
    """Weiszfeld's iteration for argmin_m Σ‖x − m‖. x: [rows, d_in] -> [d_in]."""
    median = x.mean(0)
    for _ in range(WEISZFELD_STEPS):
        weights = 1 / (x - median).norm(dim=1).clamp_min(1e-8)
        median = (weights[:, None] * x).sum(0) / weights.sum()
    return median


def make_scheduler(
    optimizer: torch.optim.Optimizer, cfg: TrainConfig
) -> torch.optim.lr_scheduler.LRScheduler:
    """`transformers.get_scheduler` by name; `n_cycles` divides what follows the warm-up."""
    name = {"constant": "constant_with_warmup"}.get(cfg.schedule, cfg.schedule)
    extra = {"num_cycles": cfg.n_cycles} if cfg.schedule == "cosine_with_restarts" else None
    warmup = round(cfg.warmup * cfg.total_steps)
    return get_scheduler(name, optimizer, warmup, cfg.total_steps, scheduler_specific_kwargs=extra)


class Trainer:
    """One SAE in training. `step_` consumes a batch of normalised rows; `split`: how ranks share the work."""

    def __init__(
        self,
        sae: SAE | GatedSAE,
        cfg: TrainConfig,
        probe: Tensor | None = None,
        split: Split = ALONE,
    ) -> None:
        if isinstance(sae, GatedSAE) == (cfg.loss == "plain"):
            raise ConfigError(
                f"TrainConfig.loss = {cfg.loss!r} does not fit a {type(sae).__name__}"
            )
        self.sae, self.cfg, self.probe, self.split = sae.requires_grad_(True), cfg, probe, split
        self.leaves = {name: _contiguous_view(p) for name, p in sae.named_parameters()}
        self.optimizer = torch.optim.Adam(
            self.leaves.values(), cfg.lr, (cfg.beta1, cfg.beta2), fused=True
        )
        self.scheduler = make_scheduler(self.optimizer, cfg)
        self.generator = torch.Generator().manual_seed(cfg.seed)
        self.step, self.history = 0, History()
        device, n = sae.W_dec.device, len(sae.W_dec)
        self.idle = torch.zeros(n, dtype=torch.long, device=device)  # tokens since the latent fired
        self.gate_idle = torch.zeros(
            n, dtype=torch.long, device=device
        )  # tokens since its gate was open
        self.density = 1.0  # open entries of the last batch, as a share
        self._sparse_here = cfg.step != "dense" and sae.W_dec.dtype == torch.float32
        self._screen_here = self._sparse_here and sparse.screens(device)
        if cfg.step == "sparse" and not self._sparse_here:
            raise ConfigError(
                f"TrainConfig.step = 'sparse': not with {sae.W_dec.dtype} weights; use 'auto' or 'dense'"
            )
        self._sums: dict[str, Tensor] = {}

    @property
    def tokens(self) -> int:
        """Training tokens consumed."""
        return self.step * self.cfg.batch_size

    @property
    def lam(self) -> float:
        """λ of the coming step."""
        warmup = round(self.cfg.lam_warmup * self.cfg.total_steps)
        return self.cfg.lam * min(1.0, (self.step + 1) / max(1, warmup))

    def dead(self) -> Tensor:
        """Latents whose code was not above 0 in the last `dead_window` tokens. bool [n_latents]."""
        return self.split.join(self.idle >= self.cfg.dead_window)

    def step_(self, x: Tensor) -> None:
        """One optimiser step on x [batch, d_in], normalised."""
        lam, lr = self.lam, self.scheduler.get_last_lr()[0]
        stats = self._gradients(x, lam)
        self.sae.project_decoder_grad_()
        if self.cfg.grad_clip:
            self.split.clip_(self.sae, self.cfg.grad_clip)
        self.optimizer.step()
        self.scheduler.step()
        self.sae.unit_norm_decoder_()
        self.step += 1
        self.idle.add_(len(x)).masked_fill_(stats.fired, 0)
        self.gate_idle.add_(len(x)).masked_fill_(stats.opened, 0)
        self._accumulate(stats, x)
        self._check_finite(stats, x)
        if self._log_due():
            self._log(lam, lr)
        if self._snapshot_due():
            self._snapshot()

    def _gradients(self, x: Tensor, lam: float) -> dense.StepStats:
        params, mode = dict(self.sae.named_parameters()), self.sae.config.l1_mode
        step, rows, reduce = (
            sparse if self.takes_sparse_step() else dense,
            self.split.part(x),
            self.split.reduce,
        )
        if self.cfg.loss == "plain":
            stats, grads = step.sae_step(rows, params, lam, mode, self.encoder(), reduce)
        else:
            stats, grads = step.gated_step(
                rows, params, lam, mode, self.cfg.loss, self.encoder(), reduce
            )
        for name, parameter in params.items():
            parameter.grad = grads[name]
            self.leaves[name].grad = _oriented(grads[name], parameter, self.leaves[name])
        stats = self.split.combine(
            stats, [leaf.grad for leaf in self.leaves.values()], len(rows) / len(x)
        )
        self.density = float(stats.n_open) / (len(x) * self.sae.config.n_latents)
        return stats

    def takes_sparse_step(self) -> bool:
        """By the density of the last batch, never by time, so that a run's arithmetic does not depend on the clock."""
        if self.cfg.step == "auto":
            return self._sparse_here and self.density < SPARSE_BELOW
        return self.cfg.step == "sparse"

    def encoder(self) -> str:
        """How the coming step multiplies: see `sparse.open_entries`; by density too."""
        if self.cfg.encoder == "bfloat16":
            return "bfloat16"
        screened = self._screen_here and self.takes_sparse_step() and self.density < SCREEN_BELOW
        return "screen" if screened else "exact"

    def _accumulate(self, stats: dense.StepStats, x: Tensor) -> None:
        new = {k: getattr(stats, k).double() for k in ("mse", "l1", "aux", "l0")}
        new |= {
            "variance": (x - x.mean(0)).pow(2).sum().double(),
            "rows": torch.tensor(float(len(x))),
        }
        self._sums = {k: v + self._sums[k] if self._sums else v for k, v in new.items()}

    def _check_finite(self, stats: dense.StepStats, x: Tensor) -> None:
        if x.device.type == "cpu" or self._log_due():
            loss = float(stats.mse + stats.l1 + stats.aux)
            if not math.isfinite(loss):
                raise TrainingDiverged(
                    f"loss is {loss} at step {self.step} of {self.cfg.steps} ({self.sae.config.to_dict()}, "
                    f"{self.cfg.to_dict()}); earlier checkpoints are kept"
                )

    def _log_due(self) -> bool:
        return self.step % self.cfg.log_every == 0 or self.step == self.cfg.steps

    def _log(self, lam: float, lr: float) -> None:
        sums = {k: float(v) for k, v in self._sums.items()}
        row = {k: sums[k] / sums["rows"] for k in ("mse", "l1", "aux", "l0")}
        row |= {"step": self.step, "tokens": self.tokens, "lr": lr, "lam": lam}
        row |= {
            "loss": row["mse"] + row["l1"] + row["aux"],
            "fvu": sums["mse"] / max(sums["variance"], 1e-300),
        }
        gate_dead = self.split.join(self.gate_idle >= self.cfg.dead_window)
        row |= {
            "dead_fraction": float(self.dead().float().mean()),
            "gate_dead": float(gate_dead.float().mean()),
        }
        row |= self._adam_moments()
        self.history.table.append(row)
        self._sums = {}

    def _adam_moments(self) -> dict[str, float]:
        """Root mean squares, over all weights, of Adam's moment m and of √v; a step is lr · m / √v."""
        state = [
            self.optimizer.state[leaf]
            for name, leaf in self.leaves.items()
            if self.split.counts(name)
        ]
        size = sum(s["exp_avg"].numel() for s in state)
        m, v = (
            sum(float(s[k].pow(p).sum()) for s in state)
            for k, p in (("exp_avg", 2), ("exp_avg_sq", 1))
        )
        size, m, v = self.split.totals(size, m, v)
        return {"adam_m": (m / size) ** 0.5, "adam_v": (v / size) ** 0.5}

    def _snapshot_due(self) -> bool:
        if self.probe is None or not self.cfg.snapshots:
            return False
        marks = {
            round(self.cfg.steps * (i + 1) / self.cfg.snapshots) for i in range(self.cfg.snapshots)
        }
        return self.step in marks

    @torch.no_grad()
    def _snapshot(self) -> None:
        rate = self.split.join((self.sae.encode(self.probe) > 0).float().mean(0)).cpu()
        bias = self.split.join(getattr(self.sae, self.sae.bias_names()[0]).detach()).cpu().clone()
        gates = self.split.join(self.sae.gate_open(self.probe).T).T.cpu()
        self.history.snapshots.append(Snapshot(self.step, self.tokens, rate, gates, bias))

    def resample_(self, x: Tensor) -> None:
        """Resample what is dead now, drawing from normalised rows x [rows, d_in]."""
        dead, gate_dead = self.dead(), self.split.join(self.gate_idle >= self.cfg.dead_window)
        losses = row_losses(self.sae, x, self.lam, self.cfg.loss, reduce=self.split.reduce).cpu()
        revived = resample_(self.sae, self.optimizer, dead, x, losses, self.generator, self.split)
        _, here = self.split.local(revived)
        self.idle[here] = 0
        self.gate_idle[here] = 0
        counts = int(dead.sum()), int(gate_dead.sum())
        self.history.events.append(ResampleEvent(self.step, self.tokens, *counts, revived.tolist()))

    def finish(self) -> None:
        """Count, for every resampling, the revived latents that are alive now without having been revived again.

        `TrainingDiverged` where a weight is not finite: in a latent that never fires it shows in no loss.
        """
        self._require_finite_weights()
        dead, again = self.dead(), set()
        for event in reversed(self.history.events):
            event.alive_later = sum(
                not dead[latent] for latent in event.revived if latent not in again
            )
            again |= set(event.revived)

    def _require_finite_weights(self) -> None:
        bad = [
            name for name, v in self.sae.state_dict().items() if not bool(torch.isfinite(v).all())
        ]
        if self.split.ranks.any_(
            torch.tensor(bool(bad))
        ):  # by all ranks, or the others would wait for one that left
            raise TrainingDiverged(
                f"{', '.join(bad) or 'weights of another rank'} not finite after step {self.step} of {self.cfg.steps} "
                f"({self.cfg.to_dict()}); earlier checkpoints are kept"
            )

    # -- checkpoints -------------------------------------------------------------------------------------------

    def save_checkpoint(self, path: Path) -> None:
        """Write everything a run is into one safetensors file, atomically; refuses weights that are not finite.

        Where ranks share the latents, one file a rank beside `path` (see `sharding.Split`).
        """
        self._require_finite_weights()
        if self.split.writes():
            self._write_checkpoint(self.split.file(path, self.step))
        self.split.settle(path, self.step)

    def _write_checkpoint(self, path: Path) -> None:
        tensors = {f"w.{k}": v for k, v in self.sae.state_dict().items()}
        for name, leaf in self.leaves.items():
            tensors |= {f"a.{name}.{k}": v for k, v in self.optimizer.state[leaf].items()}
        tensors |= {
            "idle": self.idle,
            "gate_idle": self.gate_idle,
            "generator": self.generator.get_state(),
        }
        for i, s in enumerate(self.history.snapshots):
            tensors |= {f"s.{i}.{k}": getattr(s, k) for k in ("fire_rate", "open", "b_gate")}
        state = {"step": self.step, "train": self.cfg.to_dict(), "sae": self.sae.config.to_dict()}
        state |= {"density": self.density, "table": self.history.table}
        state |= {"events": [asdict(e) for e in self.history.events]}
        state |= {"snapshots": [[s.step, s.tokens] for s in self.history.snapshots]}
        state |= {
            "scheduler": {k: v for k, v in self.scheduler.state_dict().items() if k != "lr_lambdas"}
        }
        temporary = path.with_name(path.name + ".tmp")
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        save_file(tensors, temporary, metadata={"state": json.dumps(state)})
        os.replace(temporary, path)

    @torch.no_grad()
    def load_checkpoint(self, path: Path) -> None:
        """Continue from a checkpoint; one of another run is refused."""
        try:
            with safe_open(path, framework="pt") as file:
                state = json.loads((file.metadata() or {})["state"])
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path}: damaged ({error!r}); without it the run starts anew"
            ) from error
        for name, config in (("train", self.cfg), ("sae", self.sae.config)):
            if state[name] != config.to_dict():
                raise ConfigError(
                    f"{path} belongs to another run: its {name} configuration is {state[name]}"
                )
        self.sae.load_state_dict({k[2:]: v for k, v in tensors.items() if k.startswith("w.")})
        self._load_moments(tensors)
        self.scheduler.load_state_dict(
            state["scheduler"] | {"lr_lambdas": [None] * len(self.optimizer.param_groups)}
        )
        for group, lr in zip(
            self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True
        ):
            group["lr"] = lr
        self.idle.copy_(tensors["idle"])
        self.gate_idle.copy_(tensors["gate_idle"])
        self.generator.set_state(tensors["generator"])
        self.step, self.density = state["step"], state["density"]
        snapshots = [
            Snapshot(*when, *(tensors[f"s.{i}.{k}"] for k in ("fire_rate", "open", "b_gate")))
            for i, when in enumerate(state["snapshots"])
        ]
        events = [ResampleEvent(**e) for e in state["events"]]
        self.history = History(state["table"], events, snapshots, resumed_at=self.step)
        self.split.ranks.agree(f"step in {path.name}", self.step)

    def _load_moments(self, tensors: dict[str, Tensor]) -> None:
        for name, leaf in self.leaves.items():
            prefix = f"a.{name}."
            # fused Adam wants its step counter on the parameter's device
            moments = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
            self.optimizer.state[leaf] = {k: v.to(leaf.device) for k, v in moments.items()}


def _contiguous_view(parameter: Tensor) -> Tensor:
    """The parameter's memory as the optimiser takes it: fused Adam copies what is stored transposed, as W_enc is."""
    return parameter.detach() if parameter.is_contiguous() else parameter.detach().T


def _oriented(x: Tensor, parameter: Tensor, leaf: Tensor) -> Tensor:
    """x, shaped as the parameter, as its leaf is stored."""
    return x if parameter.stride() == leaf.stride() else x.T


class Run(NamedTuple):
    """One SAE to train in place, with rows [k, d_in] in model units for its gate snapshots and its checkpoint file.

    With `split` the ranks train it together: each makes the same call, with the SAE or its share of it.
    """

    sae: SAE | GatedSAE
    cfg: TrainConfig
    probe: Tensor | None = None
    checkpoint: Path | None = None  # continued from if it exists
    split: Split = ALONE


def train(sae: SAE | GatedSAE, stream: RowSource, cfg: TrainConfig) -> History:
    """Train one SAE in place; raises `TrainingDiverged`. Checkpoints, gate snapshots, several SAEs: `train_groups`."""
    (result,) = train_groups([([Run(sae, cfg)], stream)])
    if isinstance(result, TrainingDiverged):
        raise result
    return result


def train_groups(
    groups: Sequence[tuple[Sequence[Run], RowSource]],
    checkpoint_every: int = 200,
    on_log: Callable[[int, dict[str, Any]], None] | None = None,
    ahead: int = 0,
) -> list[History | TrainingDiverged]:
    """Train groups (runs, stream) of SAEs, each of one normaliser and batch size on one stream, side by side.

    Returns a history a run, in the groups' order, or why it was given up; on_log gets the run's number in that order
    and each new row of its history. Checkpoints are rewritten about every `checkpoint_every` steps (rounded to
    `log_every`).

    The group furthest behind goes on by a block of batches, so that streams of several sites of a language model can
    take their rows from the same forwards. A block has at most `ahead` rows (0: as many as are good for the cache),
    and no group reads more than three of them further than another has trained.
    """
    first = [sum(len(runs) for runs, _ in groups[:i]) for i in range(len(groups))]
    logs = [on_log and (lambda i, row, at=at: on_log(at + i, row)) for at in first]
    going = {
        i: _training(*group, checkpoint_every, logs[i], ahead) for i, group in enumerate(groups)
    }
    at, results = dict.fromkeys(going, -1), {}  # all are started before one trains
    while going:
        i = min(going, key=at.__getitem__)
        try:
            at[i] = next(going[i])
        except StopIteration as end:
            results[i] = end.value
            del going[i]
    return [result for i in range(len(groups)) for result in results[i]]


def _training(
    runs: Sequence[Run],
    stream: RowSource,
    checkpoint_every: int,
    on_log: Callable[[int, dict[str, Any]], None] | None,
    ahead: int,
) -> Iterator[int]:
    """Train runs of one stream; yields the rows consumed before each block of batches, returns the results."""
    first = _same_stream(runs)
    trainers = [_started(run, stream) for run in runs]
    results: list[History | TrainingDiverged] = [trainer.history for trainer in trainers]
    going = dict(enumerate(trainers))
    for start, batches in _blocks(
        stream, first, min(trainer.step for trainer in trainers), runs, ahead
    ):
        yield start * runs[0].cfg.batch_size
        for i, trainer in list(going.items()):
            todo = [
                x
                for number, x in enumerate(batches, start)
                if trainer.step <= number < trainer.cfg.steps
            ]
            try:
                for x in todo:
                    _advance(
                        trainer,
                        x,
                        stream,
                        runs[i].checkpoint,
                        checkpoint_every,
                        on_log and partial(on_log, i),
                    )
                if trainer.step == trainer.cfg.steps:
                    trainer.finish()
                    del going[i]
            except TrainingDiverged as error:
                results[i] = error
                del going[i]
        if not going:
            break
    return results


def _same_stream(runs: Sequence[Run]) -> SAE | GatedSAE:
    """The first SAE, whose normaliser is everyone's; `ConfigError` where it is not."""
    first = runs[0]
    for run in runs[1:]:
        same = torch.equal(run.sae.mean, first.sae.mean) and torch.equal(
            run.sae.scale, first.sae.scale
        )
        if not same or run.cfg.batch_size != first.cfg.batch_size:
            raise ConfigError("SAEs on one stream need the same normaliser and the same batch_size")
    return first.sae


def _started(run: Run, stream: RowSource) -> Trainer:
    probe = None if run.probe is None else run.sae.normalize(run.probe.to(run.sae.W_dec.device))
    trainer = Trainer(run.sae, run.cfg, probe, run.split)
    if run.checkpoint and (saved := run.split.newest(run.checkpoint)):
        trainer.load_checkpoint(saved)
    else:
        _initialise_b_dec_(run.sae, stream, run.cfg)
    return trainer


def _advance(
    trainer: Trainer,
    x: Tensor,
    stream: RowSource,
    checkpoint: Path | None,
    checkpoint_every: int,
    on_log: Callable[[dict[str, Any]], None] | None,
) -> None:
    """One step, and what is due after it."""
    cfg = trainer.cfg
    trainer.step_(x)
    if trainer.step in cfg.resample_steps:
        trainer.resample_(
            _random_rows(trainer.sae, stream, cfg.resample_rows, trainer.generator, trainer.tokens)
        )
    if on_log and trainer.step % cfg.log_every == 0:
        on_log(trainer.history.table[-1])
    every = max(1, round(checkpoint_every / cfg.log_every)) * cfg.log_every
    if checkpoint and trainer.step % every == 0 and trainer.step < cfg.steps:
        trainer.save_checkpoint(checkpoint)


def _blocks(
    stream: RowSource, sae: SAE | GatedSAE, number: int, runs: Sequence[Run], ahead: int
) -> Iterator[tuple[int, list[Tensor]]]:
    """(number of the first batch, normalised batches) from batch `number` on; the next block is read meanwhile.

    A run's step s takes batch s, whatever it was trained beside. Several batches at a time, so that the weights of one
    SAE stay in the cache for more than one step.
    """
    cfg, device, stop = runs[0].cfg, sae.W_dec.device, max(run.cfg.steps for run in runs)
    rows = BLOCK_BYTES // (sae.config.d_in * 4)
    size = max(1, min(rows, ahead or rows) // cfg.batch_size)
    stream.seek(number * cfg.batch_size)

    def read(count: int) -> list[Tensor]:
        found = [next(stream)[0] for _ in range(count)]
        on_its_way = (
            device.type == "cuda"
        )  # pinned rows travel while the GPU works; a live model's are there already
        return [x.pin_memory() if on_its_way and x.device.type == "cpu" else x for x in found]

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(read, min(size, stop - number))
        while number < stop:
            batches, after = ahead.result(), min(number + size, stop)
            ahead = pool.submit(read, min(size, stop - after))
            yield number, [sae.normalize(x.to(device, non_blocking=True)).detach() for x in batches]
            number = after


@torch.no_grad()
def _random_rows(
    sae: SAE | GatedSAE, stream: RowSource, n: int, generator: torch.Generator, cursor: int
) -> Tensor:
    return sae.normalize(stream.sample(n, generator, cursor).to(sae.W_dec.device))


@torch.no_grad()
def _initialise_b_dec_(sae: SAE | GatedSAE, stream: RowSource, cfg: TrainConfig) -> None:
    """Where the decoder bias starts: zero, or the mean or geometric median of normalised rows."""
    if cfg.b_dec_init != "zero":
        rows = _random_rows(
            sae, stream, B_DEC_ROWS, torch.Generator().manual_seed(cfg.seed), cursor=0
        )
        sae.b_dec.copy_(
            geometric_median(rows) if cfg.b_dec_init == "geometric_median" else rows.mean(0)
        )
