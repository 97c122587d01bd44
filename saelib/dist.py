"""Many processes: which of them this is, what they tell each other, and how they share the training of one SAE.

`torchrun`, or accelerate's `notebook_launcher`, starts equal processes ("ranks") whose environment says which is which;
`started` joins them, by NCCL for CUDA tensors with one GPU a rank and by gloo for those on the CPU. Without that
environment the world is one process, and nothing here costs anything. Only tensors travel: object collectives pickle.

    Split      one process has the SAE: alone, or as one cell of a grid that is spread over ranks
    ByRows     every rank has the whole SAE and takes rows rank::size of each batch; gradients and counts are summed
    ByLatents  every rank has a share of the latents and sees all rows; parts of x̂ [batch, d_in], sums [d_in] and
               scalars are summed

Every rank reads the same batches and draws from equal generators, and a sum is the same on all ranks bit by bit, so
that what is not split stays equal without being sent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import utils

from saelib.config import ConfigError, stable_hash

PATIENCE = timedelta(days=7)  # ranks of a grid end hours apart; it is `torchrun` that notices a lost one, not a wait
NOT_SPLIT = ("b_dec", "mean", "scale")  # what every rank holds where latents are split


@dataclass(frozen=True)
class Ranks:
    """This process among `size` equal ones. Each method is called by all ranks, in one order."""

    rank: int = 0
    size: int = 1

    def sum_(self, x: Tensor) -> Tensor:
        """The sum over ranks, in place. x: contiguous."""
        if self.size > 1:
            distributed.all_reduce(x)
        return x

    def any_(self, flags: Tensor) -> Tensor:
        """Where some rank has True. bool."""
        return self.sum_(flags.to(torch.int32)) > 0

    def first(self, value: int) -> int:
        """Rank 0's value."""
        return int(self.sum_(torch.tensor(value if self.rank == 0 else 0)))

    def wait(self) -> None:
        """Until every rank is here; on the CPU, so that no GPU spins meanwhile."""
        self.sum_(torch.zeros(1))

    def agree(self, what: str, value: Any) -> None:
        """`ConfigError` on every rank, naming the odd one, where one has another `value` (JSON-able) than rank 0."""
        hashes = torch.zeros(self.size, dtype=torch.long)
        hashes[self.rank] = int(stable_hash(value), 16)
        odd = (self.sum_(hashes) != hashes[0]).nonzero().flatten().tolist()
        if odd:
            raise ConfigError(
                f"rank {odd[0]} of {self.size} has another {what} than rank 0: all need equal code, profile and files"
            )

    def share(self, n: int, rank: int | None = None) -> slice:
        """The stretch of n things that falls to this rank, or to `rank`; lengths differ by one at most."""
        rank = self.rank if rank is None else rank
        return slice(n * rank // self.size, n * (rank + 1) // self.size)


ONE = Ranks()


@contextmanager
def started(device: str = "auto") -> Iterator[Ranks]:
    """Join the ranks that were started together, for the length of the context; `ONE` where nobody started any.

    `ConfigError` where there are fewer GPUs here than ranks. After an error the group is left as it is: taking it down
    would wait for the others.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ONE
        return
    here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), 0 if device == "cpu" else torch.cuda.device_count()
    if device not in ("auto", "cpu", "cuda") or (here > gpus and (gpus or device == "cuda")):
        raise ConfigError(
            f"device = {device!r}, {here} processes and {gpus} GPUs on this machine: expected at most a process a GPU "
            "with 'auto' or 'cuda', or 'cpu'"
        )
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
    yield Ranks(distributed.get_rank(), size)
    distributed.destroy_process_group()


class Split:
    """How ranks share the training of an SAE; here not at all. `train.Trainer` asks it where they could differ."""

    own = slice(None)  # latents of this rank
    reduce: Callable[[Tensor], Tensor] | None = None  # sums what each rank has a part of: x̂, and sums over latents
    summed: tuple[str, ...] = ()  # fields of `kernels.StepStats` that are sums over ranks

    def __init__(self, ranks: Ranks = ONE) -> None:
        self.ranks = ranks

    def rows(self, x: Tensor) -> Tensor:
        """Rows of a batch whose gradients this rank computes."""
        return x

    def combine(self, stats: Any, grads: list[Tensor], share: float) -> Any:
        """The whole batch's `StepStats` from this rank's, whose rows are that share of it; `grads` are made whole."""
        if not self.summed:
            return stats
        values = torch.stack([getattr(stats, name).to(stats.mse.device, torch.float64) for name in self.summed])
        return stats._replace(**dict(zip(self.summed, self.ranks.sum_(values).unbind(), strict=True)))

    def counts(self, name: str) -> bool:
        """Whether this rank's part of a parameter enters sums over all parameters (see `totals`)."""
        return True

    def totals(self, *values: float | int) -> list[float | int]:
        """Sums over ranks."""
        return list(values)

    def clip_(self, sae: nn.Module, max_norm: float) -> None:
        """Bound the norm of the whole gradient."""
        utils.clip_grad_norm_(sae.parameters(), max_norm)

    def mean(self, values: Tensor) -> float | None:
        """The mean of one value a latent; None where no rank has any."""
        return float(values.mean()) if len(values) else None

    def local(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Which of `latents`, numbered over all ranks, are this rank's [k bool], and their numbers here."""
        return torch.ones_like(latents, dtype=torch.bool), latents

    def join(self, part: Tensor, everywhere: bool = True) -> Tensor:
        """All latents' values from each rank's [own, ...]; on rank 0 alone unless `everywhere`."""
        return part

    def whole(self, sae: nn.Module) -> dict[str, Tensor]:
        """The SAE's tensors, on rank 0, as one process has them."""
        return sae.state_dict()

    def writes(self) -> bool:
        """Whether this rank writes a checkpoint."""
        return self.ranks.rank == 0

    def file(self, path: Path, step: int) -> Path:
        """Where this rank's checkpoint lies."""
        return path

    def newest(self, path: Path) -> Path | None:
        """The checkpoint to continue from, None without a complete one: as rank 0 sees it."""
        return path if self.ranks.first(int(path.exists())) else None

    def settle(self, path: Path, step: int) -> None:
        """After a checkpoint is written: drop what it replaces."""


ALONE = Split()


class ByRows(Split):
    """Data-parallel: the step is that of the whole batch, up to the order of summation."""

    summed = ("mse", "l1", "aux", "l0", "n_open")

    def rows(self, x: Tensor) -> Tensor:
        if len(x) < self.ranks.size:
            raise ConfigError(f"batch_size = {len(x)}: expected at least a row for each of {self.ranks.size} ranks")
        return x[self.ranks.rank :: self.ranks.size].contiguous()

    def combine(self, stats: Any, grads: list[Tensor], share: float) -> Any:
        for grad in grads:
            self.ranks.sum_(grad.mul_(share))  # each is a mean over the rank's rows
        fired, opened = self.ranks.any_(torch.stack([stats.fired, stats.opened]))
        return super().combine(stats, grads, share)._replace(fired=fired, opened=opened)


class ByLatents(Split):
    """A dictionary larger than one GPU: weights, moments and dead counters of a latent are on one rank alone."""

    summed = ("l1", "l0", "n_open")  # every rank knows the whole x̂, so the errors too

    def __init__(self, ranks: Ranks, n_latents: int) -> None:
        if n_latents < ranks.size:
            raise ConfigError(f"n_latents = {n_latents}: expected at least one for each of {ranks.size} ranks")
        super().__init__(ranks)
        self.n_latents, self.own, self.reduce = n_latents, ranks.share(n_latents), ranks.sum_

    def counts(self, name: str) -> bool:
        return name != "b_dec" or self.ranks.rank == 0

    def totals(self, *values: float | int) -> list[float | int]:
        return self.ranks.sum_(torch.tensor(values, dtype=torch.float64)).tolist()

    def clip_(self, sae: nn.Module, max_norm: float) -> None:
        own = utils.get_total_norm([p.grad for name, p in sae.named_parameters() if self.counts(name)])
        (square,) = self.totals(float(own) ** 2)
        utils.clip_grads_with_norm_(list(sae.parameters()), max_norm, own.new_tensor(square**0.5))

    def mean(self, values: Tensor) -> float | None:
        total, count = self.totals(float(values.double().sum()), len(values))
        return total / count if count else None

    def local(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        mine = (latents >= self.own.start) & (latents < self.own.stop)
        return mine, latents[mine] - self.own.start

    def join(self, part: Tensor, everywhere: bool = True) -> Tensor:
        part = part.detach().cpu().contiguous()
        if part.dtype == torch.bool:  # sent as bytes: not every backend knows it
            return self.join(part.view(torch.uint8), everywhere).view(torch.bool)
        if self.ranks.rank:
            distributed.send(part, 0)
            if not everywhere:
                return part
        whole = part.new_empty(self.n_latents, *part.shape[1:])
        if self.ranks.rank == 0:
            whole[self.own] = part
            for other in range(1, self.ranks.size):
                distributed.recv(whole[self.ranks.share(self.n_latents, other)], other)
        if everywhere:
            distributed.broadcast(whole, 0)
        return whole

    def whole(self, sae: nn.Module) -> dict[str, Tensor]:
        found = {}
        for name, value in sae.state_dict().items():
            latents_first = value.T if name == "W_enc" else value
            joined = value if name in NOT_SPLIT else self.join(latents_first, everywhere=False)
            found[name] = joined.T if name == "W_enc" else joined
        return found

    def writes(self) -> bool:
        return True

    def file(self, path: Path, step: int) -> Path:
        return self._file(path, step, self.ranks.rank)

    def _file(self, path: Path, step: int | str, rank: int | str) -> Path:
        return path.with_name(f"{path.stem}.{step}.{rank}of{self.ranks.size}{path.suffix}")

    def newest(self, path: Path) -> Path | None:
        """Of the latest step that every rank's file is there of; `ConfigError` for those of another number of ranks."""
        found = list(path.parent.glob(f"{path.stem}.*.*of*{path.suffix}"))
        for other in (p for p in found if not p.stem.endswith(f"of{self.ranks.size}")):
            raise ConfigError(
                f"{other}: written by another number of ranks than {self.ranks.size}; start as many, or delete it to "
                "start anew"
            )
        steps = {int(p.name.split(".")[-3]) for p in found}
        complete = (s for s in steps if all(self._file(path, s, r) in found for r in range(self.ranks.size)))
        step = self.ranks.first(max(complete, default=0))
        return self.file(path, step) if step else None

    def settle(self, path: Path, step: int) -> None:
        self.ranks.wait()  # the new set is complete before the old one goes
        for old in path.parent.glob(self._file(path, "*", self.ranks.rank).name):
            if old != self.file(path, step):
                old.unlink()
