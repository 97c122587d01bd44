"""How ranks share the training of one SAE: by the rows of a batch, by latents, or not at all.

    rows     every rank has the whole SAE and takes rows rank::size of each batch; gradients and
             counts are summed
    latents  every rank has a shard of the latents, with their moments and counters, and sees all
             rows; partial x̂ [batch, d_in], sums [d_in] and scalars are summed

Every rank reads the same batches and draws from equal generators, and a sum is the same on all
ranks bit by bit, so that what is not split stays equal without being sent.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import utils

from saelib.config import ConfigError
from saelib.ranks import SINGLE_PROCESS, Ranks

SHARED = ("b_dec", "mean", "scale")  # what every rank holds where latents are split


class Sharding:
    """How ranks share one SAE: `rows` and `latents` are the ranks that share them.

    Attributes:
        shard: the latents of this rank.
        all_reduce: sums over ranks what each computes from its shard; None where none is shared.

    Raises:
        ConfigError: fewer latents than ranks.
    """

    def __init__(
        self, rows: Ranks = SINGLE_PROCESS, latents: Ranks = SINGLE_PROCESS, n_latents: int = 0
    ) -> None:
        if latents.size > max(1, n_latents):
            raise ConfigError(
                f"n_latents = {n_latents}: expected at least one for each of {latents.size} ranks"
            )
        self.rows = rows
        self.latents = latents
        self.n_latents = n_latents
        self.ranks = rows if rows.size > 1 else latents
        alone = latents.size == 1
        self.shard = slice(0, sys.maxsize) if alone else latents.share(n_latents)
        self.all_reduce = None if alone else latents.sum_

    def local_rows(self, x: Tensor) -> Tensor:
        """The rows of a batch whose gradients this rank computes.

        Raises:
            ConfigError: the batch has fewer rows than there are ranks.
        """
        if len(x) < self.rows.size:
            raise ConfigError(
                f"batch_size = {len(x)}: expected at least a row for each of {self.rows.size} ranks"
            )
        return x if self.rows.size == 1 else x[self.rows.rank :: self.rows.size].contiguous()

    def combine(self, stats: Any, grads: list[Tensor], share: float) -> Any:
        """The `dense.StepStats` of the batch from those of this rank's `share` of its rows.

        `grads` become those of the batch, in place.
        """
        if self.ranks.size == 1:
            return stats
        # where latents are shared every rank knows x̂, and so the errors
        names = ("l1", "l0", "n_open")
        if self.rows.size > 1:
            names += ("mse", "aux")
            for grad in grads:
                self.rows.sum_(grad.mul_(share))  # each is a mean over rows
        values = torch.stack(
            [getattr(stats, name).to(stats.mse.device, torch.float64) for name in names]
        )
        fired, opened = self.rows.any_(torch.stack([stats.fired, stats.opened]))
        summed = dict(zip(names, self.ranks.sum_(values).unbind(), strict=True))
        return stats._replace(fired=fired, opened=opened, **summed)

    def counts(self, name: str) -> bool:
        """Whether this rank's copy of a parameter enters `totals`: what all hold counts once."""
        return name not in SHARED or self.latents.rank == 0

    def totals(self, *values: float | int) -> list[float]:
        """Sums over the ranks that share the latents."""
        return self.latents.sum_(torch.tensor(values, dtype=torch.float64)).tolist()

    def clip_(self, sae: nn.Module, max_norm: float) -> None:
        """Bound the norm of the whole gradient."""
        norm = utils.get_total_norm(
            [p.grad for name, p in sae.named_parameters() if self.counts(name)]
        )
        if self.latents.size > 1:
            norm = norm.new_tensor(self.totals(float(norm) ** 2)[0] ** 0.5)
        utils.clip_grads_with_norm_(list(sae.parameters()), max_norm, norm)

    def norm(self, squares: dict[str, float]) -> float:
        """The norm of the whole gradient, from ‖gradient‖² of each parameter held here."""
        (total,) = self.totals(sum(v for name, v in squares.items() if self.counts(name)))
        return total**0.5

    def mean(self, values: Tensor) -> float | None:
        """The mean over latents of one value each; None where there are none."""
        if self.latents.size == 1:
            return float(values.mean()) if len(values) else None
        total, count = self.totals(float(values.double().sum()), len(values))
        return total / count if count else None

    def local(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Which latents, numbered over all ranks, are in this shard, and their numbers there.

        numbers: int64 [k] -> bool [k], int64 [local].
        """
        is_local = (numbers >= self.shard.start) & (numbers < self.shard.stop)
        return is_local, numbers[is_local] - self.shard.start

    def all_gather(self, shard: Tensor, everywhere: bool = True) -> Tensor:
        """The values of all latents from each rank's [shard, ...]; on rank 0, or `everywhere`."""
        if self.latents.size == 1:
            return shard
        shard = shard.detach().cpu().contiguous()
        if shard.dtype == torch.bool:  # sent as bytes: not every backend knows it
            return self.all_gather(shard.view(torch.uint8), everywhere).view(torch.bool)
        if self.latents.rank:
            distributed.send(shard, 0)
            if not everywhere:
                return shard
        full = shard.new_empty(self.n_latents, *shard.shape[1:])
        if self.latents.rank == 0:
            full[self.shard] = shard
            for other in range(1, self.latents.size):
                distributed.recv(full[self.latents.share(self.n_latents, other)], other)
        if everywhere:
            distributed.broadcast(full, 0)
        return full

    def gather_state(self, sae: nn.Module) -> dict[str, Tensor]:
        """The SAE's tensors, as one process has them, on rank 0."""
        shards = {name: v for name, v in sae.state_dict().items() if name not in SHARED}
        full = {
            name: self.all_gather(v.T if name == "W_enc" else v, everywhere=False)
            for name, v in shards.items()
        }
        return {**sae.state_dict(), **full, "W_enc": full["W_enc"].T}

    def writes(self) -> bool:
        """Whether this rank writes a checkpoint."""
        return self.latents.size > 1 or self.rows.rank == 0

    def file(self, path: Path, step: int | str, rank: int | None = None) -> Path:
        """The checkpoint file of `path`; where latents are shared, one per rank beside it."""
        rank = self.latents.rank if rank is None else rank
        name = f"{path.stem}.{step}.{rank}of{self.latents.size}{path.suffix}"
        return path if self.latents.size == 1 else path.with_name(name)

    def newest(self, path: Path) -> Path | None:
        """The checkpoint to continue from: of the latest step with all ranks' files, or None.

        Rank 0 looks, and all follow it.

        Raises:
            ConfigError: files of another number of ranks.
        """
        if self.latents.size == 1:
            return path if self.ranks.first(int(path.exists())) else None
        files = list(path.parent.glob(f"{path.stem}.*.*of*{path.suffix}"))
        for file in files:
            if not file.stem.endswith(f"of{self.latents.size}"):
                raise ConfigError(
                    f"{file}: written by another number of ranks than {self.latents.size}; "
                    "start as many, or delete it to start anew"
                )
        ranks = range(self.latents.size)
        steps = {int(file.name.split(".")[-3]) for file in files}
        complete = [s for s in steps if all(self.file(path, s, rank) in files for rank in ranks)]
        step = self.ranks.first(max(complete, default=0))
        return self.file(path, step) if step else None

    def settle(self, path: Path, step: int) -> None:
        """Drop the checkpoints that this step's replace, once all ranks have written theirs."""
        self.latents.wait()
        for old in path.parent.glob(self.file(path, "*").name):
            if old != self.file(path, step):
                old.unlink()


UNSHARDED = Sharding()
