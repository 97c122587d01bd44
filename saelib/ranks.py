"""Many processes: which one this is, what they exchange, and how they share one SAE's training.

`torchrun`, or accelerate's `notebook_launcher`, starts equal processes ("ranks") whose environment
says which is which; `process_group` joins them, by NCCL for CUDA tensors with one GPU a rank and by
gloo for those on the CPU. Without that environment the world is one process, and nothing here costs
anything. Only tensors travel: object collectives pickle. How ranks share one SAE is
`sae.sharding`'s.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from saelib.config import ConfigError, stable_hash

PATIENCE = timedelta(
    days=7
)  # ranks of a grid end hours apart; it is `torchrun` that notices a lost one, not a wait


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
        """Raise `ConfigError` on every rank where one has another `value` (JSON-able) than rank 0.

        The message names that rank.
        """
        hashes = torch.zeros(self.size, dtype=torch.long)
        hashes[self.rank] = int(stable_hash(value), 16)
        odd = (self.sum_(hashes) != hashes[0]).nonzero().flatten().tolist()
        if odd:
            raise ConfigError(
                f"rank {odd[0]} of {self.size} has another {what} than rank 0: all need equal "
                "code, profile and files"
            )

    def share(self, n: int, rank: int | None = None) -> slice:
        """The stretch of n things for this rank, or for `rank`; lengths differ by at most one."""
        rank = self.rank if rank is None else rank
        return slice(n * rank // self.size, n * (rank + 1) // self.size)


SINGLE_PROCESS = Ranks()


@contextmanager
def process_group(device: str = "auto") -> Iterator[Ranks]:
    """Join the ranks that were started together, for the length of the context.

    Gives `SINGLE_PROCESS` where nobody started any.

    `ConfigError` where there are fewer GPUs here than ranks. After an error the group is left as it
    is: taking it down would wait for the others.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield SINGLE_PROCESS
        return
    here, gpus = (
        int(os.environ.get("LOCAL_WORLD_SIZE", size)),
        0 if device == "cpu" else torch.cuda.device_count(),
    )
    if device not in ("auto", "cpu", "cuda") or (here > gpus and (gpus or device == "cuda")):
        raise ConfigError(
            f"device = {device!r}, {here} processes and {gpus} GPUs on this machine: expected at "
            "most a process a GPU with 'auto' or 'cuda', or 'cpu'"
        )
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", os.environ["RANK"])))
    store, rank, size = next(distributed.rendezvous("env://"))
    store = distributed.PrefixStore(_attempt(), store)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    distributed.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=PATIENCE
    )
    yield Ranks(rank, size)
    distributed.destroy_process_group()


def _attempt() -> str:
    """A name for this start of the group.

    torchrun keeps its store over restarts, with the addresses of lost ranks.

    Machines count restarts apart, so for several of them torchrun has to make a new store (no name
    is needed then).
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return "0"
    if os.environ["GROUP_WORLD_SIZE"] != "1" and os.environ["TORCHELASTIC_MAX_RESTARTS"] != "0":
        raise ConfigError(
            "--max-restarts on several machines: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for "
            "torchrun, or restarted ranks would look for the lost ones"
        )
    return os.environ["TORCHELASTIC_RESTART_COUNT"]
