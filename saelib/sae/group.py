"""Many SAEs on few streams: each batch is read and normalised once for all SAEs of its stream.

Each SAE ends bit-identical to one trained alone, whatever it was trained beside.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from saelib.config import ConfigError, TrainConfig
from saelib.sae.base import Autoencoder
from saelib.sae.checkpoint import load_checkpoint, save_checkpoint
from saelib.sae.history import History, TrainingDiverged
from saelib.sae.sharding import UNSHARDED, Sharding
from saelib.sae.trainer import Trainer

log = logging.getLogger(__name__)

WEISZFELD_STEPS = 32
B_DEC_ROWS = 8192  # training rows from which b_dec is initialised
# Bytes of normalised rows per block: each SAE takes these batches before the next SAE does.
BLOCK_BYTES = 32 << 20

OnLog = Callable[[int, dict[str, Any]], None]  # number of the run, new row of its history


@runtime_checkable
class RowSource(Protocol):
    """What training needs of a stream: stored rows in a shuffled order, or a language model's.

    `cursor` counts the rows handed out. `sample` draws up to n rows [n, d_in] in model units, which
    depend on the cursor given alone, never on how far the stream has been read ahead.
    """

    def __next__(self) -> tuple[Tensor, np.ndarray]: ...
    def seek(self, cursor: int) -> None: ...
    def sample(self, n: int, generator: torch.Generator, cursor: int) -> Tensor: ...


class Run(NamedTuple):
    """One SAE to train in place, with probe rows [k, d_in] in model units and a checkpoint file.

    With `sharding` the ranks train it together: each makes the same call, with the SAE or its shard
    of it.
    """

    sae: Autoencoder
    cfg: TrainConfig
    probe: Tensor | None = None  # for gate snapshots
    checkpoint: Path | None = None  # continued from if it exists
    sharding: Sharding = UNSHARDED


def train(sae: Autoencoder, stream: RowSource, cfg: TrainConfig) -> History:
    """Train one SAE in place; for checkpoints, snapshots, several SAEs see `train_together`.

    Raises:
        TrainingDiverged: the loss or a weight stopped being finite.
    """
    (result,) = train_together([([Run(sae, cfg)], stream)])
    if isinstance(result, TrainingDiverged):
        raise result
    return result


def train_together(
    groups: Sequence[tuple[Sequence[Run], RowSource]],
    checkpoint_every: int = 200,
    on_log: OnLog | None = None,
    ahead: int = 0,
) -> list[History | TrainingDiverged]:
    """Train groups (runs, stream) side by side; a group's runs share normaliser and batch size.

    Returns the history of each run, in the groups' order, or why it was given up; `on_log` gets the
    number of the run in that order. Checkpoints are rewritten about every `checkpoint_every` steps
    (rounded to `log_every`).

    The group furthest behind goes on by a block of batches, so that streams of several sites of a
    language model can take their rows from the same forwards. A block has at most `ahead` rows (0:
    as many as suit the cache), and no group reads more than three blocks further than another has
    trained.

    Raises:
        ConfigError: the runs of a group cannot share a stream.
    """
    members: list[Group] = []
    with ExitStack() as stack:
        first = 0
        for runs, stream in groups:  # all are started before one trains
            group = Group(runs, stream, checkpoint_every, _numbered(on_log, first), ahead)
            members.append(stack.enter_context(closing(group)))
            first += len(runs)
        while unfinished := [group for group in members if group.active]:
            min(unfinished, key=lambda group: group.rows_trained).advance()
    return [result for group in members for result in group.results]


def _numbered(on_log: OnLog | None, first: int) -> OnLog | None:
    """`on_log` for a group whose first run has that number."""
    return None if on_log is None else lambda i, row: on_log(first + i, row)


class Group:
    """Runs of one stream, trained block by block. `active` are the trainers not yet finished."""

    def __init__(
        self,
        runs: Sequence[Run],
        stream: RowSource,
        checkpoint_every: int = 200,
        on_log: OnLog | None = None,
        ahead: int = 0,
    ) -> None:
        self.runs = runs
        self.stream = stream
        self.checkpoint_every = checkpoint_every
        self.on_log = on_log
        sae = _shared_normalizer(runs)
        trainers = [_start(run, stream) for run in runs]
        self.results: list[History | TrainingDiverged] = [t.history for t in trainers]
        self.active = dict(enumerate(trainers))
        self.batch_size = runs[0].cfg.batch_size
        fitting = BLOCK_BYTES // (sae.config.d_in * 4)
        self.blocks = Blocks(
            stream,
            sae,
            first=min(trainer.step for trainer in trainers),
            stop=max(run.cfg.steps for run in runs),
            batch_size=self.batch_size,
            size=max(1, min(fitting, ahead or fitting) // self.batch_size),
        )

    @property
    def rows_trained(self) -> int:
        """Rows of the stream before the block at hand."""
        return self.blocks.first * self.batch_size

    def advance(self) -> None:
        """Train every active run on the block at hand, then take the next block."""
        for i, trainer in list(self.active.items()):
            try:
                self._train_block(i, trainer)
            except TrainingDiverged as error:
                self.results[i] = error
                del self.active[i]
        if self.active:
            self.blocks.advance()

    def _train_block(self, i: int, trainer: Trainer) -> None:
        """A run's step s takes batch s, whatever it was trained beside."""
        for number, x in enumerate(self.blocks.batches, self.blocks.first):
            if trainer.step <= number < trainer.cfg.steps:
                self._step(i, trainer, x)
        if trainer.step == trainer.cfg.steps:
            trainer.finish()
            del self.active[i]

    def _step(self, i: int, trainer: Trainer, x: Tensor) -> None:
        """One step, and what is due after it."""
        cfg = trainer.cfg
        trainer.step_(x)
        if trainer.step in cfg.resample_steps:
            generator = trainer.generator
            trainer.resample_(
                _random_rows(trainer.sae, self.stream, cfg.resample_rows, generator, trainer.tokens)
            )
        if self.on_log and trainer.step % cfg.log_every == 0:
            self.on_log(i, trainer.history.table[-1])
        interval = max(1, round(self.checkpoint_every / cfg.log_every)) * cfg.log_every
        checkpoint = self.runs[i].checkpoint
        if checkpoint and trainer.step % interval == 0 and trainer.step < cfg.steps:
            save_checkpoint(trainer, checkpoint)

    def close(self) -> None:
        """Wait for the block that is being read, and read no more."""
        self.blocks.close()


class Blocks:
    """Normalised batches of a stream, several at a time; the next block is read meanwhile.

    Several batches at a time, so that the weights of one SAE stay in the cache for more than one
    step. `first` is the number of the first batch at hand.
    """

    def __init__(
        self,
        stream: RowSource,
        sae: Autoencoder,
        first: int,
        stop: int,
        batch_size: int,
        size: int,
    ) -> None:
        self.stream = stream
        self.sae = sae
        self.stop = stop
        self.size = size
        self.first = first
        self.batches: list[Tensor] = []
        stream.seek(first * batch_size)
        self._pool = ThreadPoolExecutor(1)
        self._reading = self._read_from(first)
        self._take()

    def advance(self) -> None:
        """Go on to the next block."""
        self.first += len(self.batches)
        self._take()

    def _take(self) -> None:
        batches = self._reading.result()
        self._reading = self._read_from(self.first + len(batches))
        device = self.sae.W_dec.device
        normalize = self.sae.normalize
        self.batches = [normalize(x.to(device, non_blocking=True)).detach() for x in batches]

    def _read_from(self, first: int) -> Future[list[Tensor]]:
        return self._pool.submit(self._read, min(self.size, self.stop - first))

    def _read(self, count: int) -> list[Tensor]:
        """Pinned rows travel while the GPU works; a live model's are there already."""
        batches = [next(self.stream)[0] for _ in range(count)]
        pins = self.sae.W_dec.device.type == "cuda"
        return [x.pin_memory() if pins and x.device.type == "cpu" else x for x in batches]

    def close(self) -> None:
        """Wait for the block that is being read, and read no more."""
        self._pool.shutdown()


def _shared_normalizer(runs: Sequence[Run]) -> Autoencoder:
    """The first SAE, whose normaliser all have; `ConfigError` where one has another."""
    first = runs[0]
    for run in runs[1:]:
        same_mean = torch.equal(run.sae.mean, first.sae.mean)
        same_scale = torch.equal(run.sae.scale, first.sae.scale)
        if not (same_mean and same_scale) or run.cfg.batch_size != first.cfg.batch_size:
            raise ConfigError("SAEs on one stream need the same normaliser and the same batch_size")
    return first.sae


def _start(run: Run, stream: RowSource) -> Trainer:
    """A trainer at the run's checkpoint, or at its beginning."""
    saved = run.sharding.newest(run.checkpoint) if run.checkpoint else None
    if not saved:
        _raise_to_floors_(run.sae)
    probe = None if run.probe is None else run.sae.normalize(run.probe.to(run.sae.W_dec.device))
    trainer = Trainer(run.sae, run.cfg, probe, run.sharding)
    if saved:
        load_checkpoint(trainer, saved)
    else:
        _initialise_b_dec_(run.sae, stream, run.cfg)
    return trainer


@torch.no_grad()
def _raise_to_floors_(sae: Autoencoder) -> None:
    """Put biases below 0, as SAEs of other libraries may have, where training keeps them.

    A step takes a threshold below 0 for one that lets negative codes through, which `encode` does
    not; after its first step training would clamp it anyway.
    """
    for name, floor in sae.FLOORS.items():
        values = getattr(sae, name)
        below = values < 0
        if below.any():
            log.warning(
                f"{name}: {int(below.sum()):,} of {values.numel():,} are below 0, which says the "
                f"same as 0; they are trained from {floor:g}"
            )
            values[below] = floor


@torch.no_grad()
def _random_rows(
    sae: Autoencoder, stream: RowSource, n: int, generator: torch.Generator, cursor: int
) -> Tensor:
    return sae.normalize(stream.sample(n, generator, cursor).to(sae.W_dec.device))


@torch.no_grad()
def _initialise_b_dec_(sae: Autoencoder, stream: RowSource, cfg: TrainConfig) -> None:
    """Start the decoder bias at the mean or geometric median of normalised rows, or leave it 0."""
    if cfg.b_dec_init == "zero":
        return
    generator = torch.Generator().manual_seed(cfg.seed)
    rows = _random_rows(sae, stream, B_DEC_ROWS, generator, cursor=0)
    centre = geometric_median(rows) if cfg.b_dec_init == "geometric_median" else rows.mean(0)
    sae.b_dec.copy_(centre)


def geometric_median(x: Tensor) -> Tensor:
    """Weiszfeld's iteration for argmin_m Σ‖x − m‖. x: [rows, d_in] -> [d_in]."""
    median = x.mean(0)
    for _ in range(WEISZFELD_STEPS):
        weights = 1 / (x - median).norm(dim=1).clamp_min(1e-8)
        median = (weights[:, None] * x).sum(0) / weights.sum()
    return median
