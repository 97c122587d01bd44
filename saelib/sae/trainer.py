"""`Trainer`: one SAE in training: Adam, schedules by `transformers`' names, λ warm-up, resampling.

A trainer holds everything a run is: weights, moments, schedule, random state, counters of dead
latents, history. `group` feeds trainers from streams of rows, `checkpoint` writes and reads them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saelib.config import ConfigError, TrainConfig
from saelib.sae import sparse
from saelib.sae.base import Autoencoder, How, check_training
from saelib.sae.dense import Gradients, StepStats
from saelib.sae.history import History, Snapshot, TrainingDiverged
from saelib.sae.optimizer import RowAdam
from saelib.sae.resample import ResampleEvent, resample_, row_losses
from saelib.sae.schedule import lam_of_step, make_scheduler, progress_of_step
from saelib.sae.sharding import UNSHARDED, Sharding
from saelib.sae.sparse import adam

# Share of open entries in the last batch below which "auto" takes the sparse step.
SPARSE_BELOW = 0.25
# Share of open entries below which the sparse step's encoder multiplies in bfloat16 first.
SCREEN_BELOW = 0.03


class Trainer:
    """One SAE in training. `step_` consumes a batch of normalised rows.

    `probe` are normalised rows for gate snapshots; `sharding` says how ranks share the work.

    Raises:
        ConfigError: the architecture does not take the loss, the way its L1 term is weighted,
            resampling, or ranks that share a batch, or the step does not take the weights.
    """

    def __init__(
        self,
        sae: Autoencoder,
        cfg: TrainConfig,
        probe: Tensor | None = None,
        sharding: Sharding = UNSHARDED,
    ) -> None:
        if not sae.LOSSES:
            raise ConfigError(
                f"a {type(sae).__name__} cannot be trained; it can be opened and measured"
            )
        if cfg.loss not in sae.LOSSES:
            raise ConfigError(
                f"TrainConfig.loss = {cfg.loss!r} does not fit a {type(sae).__name__}: "
                f"expected one of {', '.join(map(repr, sae.LOSSES))}"
            )
        check_training(type(sae), sae.config, cfg)
        if sharding.rows.size > 1 and not sae.rowwise:
            raise ConfigError(
                f"arch = {sae.config.arch!r}: ranks cannot share the rows of a batch ('data'), "
                "since its loss is of the whole batch; share the list of runs ('grid')"
            )
        self.sae = sae.requires_grad_(True)
        sae.zero_grad()  # a caller's may have other strides, and a step writes over the last ones
        self.cfg = cfg
        self.probe = probe
        self.sharding = sharding
        self.leaves = {name: _contiguous_view(p) for name, p in sae.named_parameters()}
        self.generator = torch.Generator().manual_seed(cfg.seed)
        self.step = 0
        self.history = History()
        none = torch.zeros(len(sae.W_dec), dtype=torch.long, device=sae.W_dec.device)
        self.tokens_since_fired = none
        self.tokens_since_open = none.clone()  # since the latent's gate was open
        self.density = _density_at_start(sae)  # open entries of the last batch, as a share
        self._sparse_here = cfg.step != "dense" and sae.W_dec.dtype == torch.float32
        self._screen_here = self._sparse_here and sparse.screens(sae.W_dec.device)
        if cfg.step == "sparse" and not self._sparse_here:
            raise ConfigError(
                f"TrainConfig.step = 'sparse': not with {sae.W_dec.dtype} weights; "
                "use 'auto' or 'dense'"
            )
        compiled = self._sparse_here and sae.W_dec.device.type == "cpu" and adam.available()
        self.optimizer = RowAdam(sae, self.leaves, cfg, sharding, compiled)
        self.scheduler = make_scheduler(self.optimizer, cfg)
        self._sums: dict[str, Tensor] = {}

    @property
    def tokens(self) -> int:
        """Training tokens consumed."""
        return self.step * self.cfg.batch_size

    @property
    def lam(self) -> float:
        """λ of the coming step."""
        return lam_of_step(self.cfg, self.step)

    def dead(self) -> Tensor:
        """Latents that did not fire in the last `dead_window` tokens. bool [n_latents]."""
        return self.sharding.all_gather(self.tokens_since_fired >= self.cfg.dead_window)

    def gate_dead(self) -> Tensor:
        """Latents whose gate was not open in the last `dead_window` tokens. bool [n_latents]."""
        return self.sharding.all_gather(self.tokens_since_open >= self.cfg.dead_window)

    def step_(self, x: Tensor) -> None:
        """One optimiser step on x [batch, d_in], normalised.

        Raises:
            TrainingDiverged: the loss is not finite.
        """
        lam = self.lam
        lr = self.scheduler.get_last_lr()[0]
        stats = self._gradients(x, lam)
        self.optimizer.step()
        self.scheduler.step()
        self.sae.after_step_()
        self.step += 1
        self.tokens_since_fired.add_(len(x)).masked_fill_(stats.fired, 0)
        self.tokens_since_open.add_(len(x)).masked_fill_(stats.opened, 0)
        self._accumulate(stats, x)
        self._check_finite(stats, x)
        if self._log_due():
            self._log(lam, lr)
        if self._snapshot_due():
            self._snapshot()

    def _gradients(self, x: Tensor, lam: float) -> StepStats:
        """Set the gradient of every parameter; returns the statistics of the whole batch."""
        rows = self.sharding.local_rows(x)
        is_sparse = self.takes_sparse_step()
        how = How(
            loss=self.cfg.loss,
            sparse=is_sparse,
            encoder=self.encoder(),
            all_reduce=self.sharding.all_reduce,
            dead=self.tokens_since_fired >= self.cfg.dead_window,
            progress=progress_of_step(self.cfg, self.step),
            room=self._gradients_before(is_sparse),
        )
        stats, grads = self.sae.step(rows, lam, how)
        for name, parameter in self.sae.named_parameters():
            parameter.grad = grads[name]
            self.leaves[name].grad = _oriented(grads[name], parameter, self.leaves[name])
        leaf_grads = [leaf.grad for leaf in self.leaves.values()]
        stats = self.sharding.combine(stats, leaf_grads, len(rows) / len(x))
        self.density = float(stats.n_open) / (len(x) * self.sae.config.n_latents)
        return stats

    def _gradients_before(self, is_sparse: bool) -> Gradients | None:
        """The last step's gradients, for a sparse step to write over; before a dense one freed."""
        gradients = {name: p.grad for name, p in self.sae.named_parameters() if p.grad is not None}
        if is_sparse:
            return gradients or None
        self.sae.zero_grad()
        self.optimizer.zero_grad()
        return None

    def takes_sparse_step(self) -> bool:
        """Whether the coming step is sparse: by the density of the last batch.

        Never by time, so that the arithmetic of a run does not depend on the clock.
        """
        if self.cfg.step == "auto":
            return self._sparse_here and self.density < SPARSE_BELOW
        return self.cfg.step == "sparse"

    def encoder(self) -> str:
        """How the coming step multiplies, see `sparse.c.open_entries`; by density too."""
        if self.cfg.encoder == "bfloat16":
            return "bfloat16"
        screened = self._screen_here and self.takes_sparse_step() and self.density < SCREEN_BELOW
        return "screen" if screened else "exact"

    def _accumulate(self, stats: StepStats, x: Tensor) -> None:
        """Add the batch to what the next row of the history is made from."""
        new = {k: getattr(stats, k).double() for k in ("mse", "l1", "aux", "l0")}
        new["variance"] = (x - x.mean(0)).square_().sum().double()
        new["rows"] = torch.tensor(float(len(x)))
        self._sums = {k: v + self._sums[k] if self._sums else v for k, v in new.items()}

    def _check_finite(self, stats: StepStats, x: Tensor) -> None:
        """At every step on the CPU; on a GPU, where reading the loss costs, when a row is due."""
        if x.device.type != "cpu" and not self._log_due():
            return
        loss = float(stats.mse + stats.l1 + stats.aux)
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"loss is {loss} at step {self.step} of {self.cfg.steps} "
                f"({self.sae.config.to_dict()}, {self.cfg.to_dict()}); "
                "earlier checkpoints are kept"
            )

    def _log_due(self) -> bool:
        return self.step % self.cfg.log_every == 0 or self.step == self.cfg.steps

    def _log(self, lam: float, lr: float) -> None:
        sums = {k: float(v) for k, v in self._sums.items()}
        row = {k: sums[k] / sums["rows"] for k in ("mse", "l1", "aux", "l0")}
        row |= {"step": self.step, "tokens": self.tokens, "lr": lr, "lam": lam}
        row["loss"] = row["mse"] + row["l1"] + row["aux"]
        row["fvu"] = sums["mse"] / max(sums["variance"], 1e-300)
        row |= self._dead_shares()
        row |= self.optimizer.root_mean_squares()
        self.history.table.append(row)
        self._sums = {}

    def _dead_shares(self) -> dict[str, float]:
        """Shares of latents and of gates that are dead; nan where training is shorter than
        `dead_window`, so that none can be found dead.
        """
        if self.cfg.dead_window > self.cfg.steps * self.cfg.batch_size:
            return {"dead_fraction": math.nan, "gate_dead": math.nan}
        return {
            "dead_fraction": float(self.dead().float().mean()),
            "gate_dead": float(self.gate_dead().float().mean()),
        }

    def _snapshot_due(self) -> bool:
        if self.probe is None or not self.cfg.snapshots:
            return False
        shares = ((i + 1) / self.cfg.snapshots for i in range(self.cfg.snapshots))
        return self.step in {round(self.cfg.steps * share) for share in shares}

    @torch.no_grad()
    def _snapshot(self) -> None:
        gather = self.sharding.all_gather
        rate = gather((self.sae.encode(self.probe) > 0).float().mean(0)).cpu()
        bias = gather(getattr(self.sae, self.sae.bias_names()[0]).detach()).cpu().clone()
        gates = gather(self.sae.gate_open(self.probe).T).T.cpu()
        self.history.snapshots.append(Snapshot(self.step, self.tokens, rate, gates, bias))

    def resample_(self, x: Tensor) -> None:
        """Resample what is dead now, drawing from normalised rows x [rows, d_in]."""
        dead = self.dead()
        gate_dead = self.gate_dead()
        how = How(
            loss=self.cfg.loss,
            all_reduce=self.sharding.all_reduce,
            dead=self.tokens_since_fired >= self.cfg.dead_window,
            progress=progress_of_step(self.cfg, self.step),
        )
        losses = row_losses(self.sae, x, self.lam, how, self.cfg.batch_size).cpu()
        revived = resample_(
            self.sae, self.optimizer, dead, x, losses, self.generator, self.sharding
        )
        _, local = self.sharding.local(revived)
        self.tokens_since_fired[local] = 0
        self.tokens_since_open[local] = 0
        counts = int(dead.sum()), int(gate_dead.sum())
        self.history.events.append(ResampleEvent(self.step, self.tokens, *counts, revived.tolist()))

    def finish(self) -> None:
        """Count, per resampling, the revived latents alive now without a later revival.

        Raises:
            TrainingDiverged: a weight is not finite; in a latent that never fires no loss shows it.
        """
        self.require_finite_weights()
        dead = self.dead()
        revived_later: set[int] = set()
        for event in reversed(self.history.events):
            alive = [i for i in event.revived if i not in revived_later and not dead[i]]
            event.alive_later = len(alive)
            revived_later |= set(event.revived)

    def require_finite_weights(self) -> None:
        """Refuse weights that are not finite.

        Raises:
            TrainingDiverged: on every rank, or the others would wait for one that left.
        """
        bad = [k for k, v in self.sae.state_dict().items() if not bool(torch.isfinite(v).all())]
        if self.sharding.ranks.any_(torch.tensor(bool(bad))):
            raise TrainingDiverged(
                f"{', '.join(bad) or 'weights of another rank'} not finite after step "
                f"{self.step} of {self.cfg.steps} ({self.cfg.to_dict()}); "
                "earlier checkpoints are kept"
            )


def _density_at_start(sae: Autoencoder) -> float:
    """What an option says of the first batch's density: its step is sparse then, too."""
    return 1.0 if sae.KNOB == "lam" else getattr(sae.options, sae.KNOB) / sae.config.n_latents


def _contiguous_view(parameter: Tensor) -> Tensor:
    """The parameter as the optimiser takes it: fused Adam copies what is stored transposed."""
    return parameter.detach() if parameter.is_contiguous() else parameter.detach().T


def _oriented(x: Tensor, parameter: Tensor, leaf: Tensor) -> Tensor:
    """x, shaped as the parameter, as its leaf is stored."""
    return x if parameter.stride() == leaf.stride() else x.T
