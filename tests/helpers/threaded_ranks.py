"""Ranks as threads of one process: what `saelib.sae.sharding` sends goes through queues."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any

from torch import Tensor

from saelib.ranks import Ranks

PATIENCE = 20  # s until a rank that waits for another gives up


class Messages:
    """`send`, `recv` and `broadcast` of torch.distributed, as one rank of `size` calls them."""

    def __init__(self, rank: int, queues: dict[tuple[int, int], Queue]) -> None:
        self.rank, self.queues = rank, queues

    def send(self, x: Tensor, to: int) -> None:
        self.queues[self.rank, to].put(x.clone())

    def recv(self, x: Tensor, source: int) -> None:
        x.copy_(self.queues[source, self.rank].get(timeout=PATIENCE))

    def broadcast(self, x: Tensor, source: int) -> None:
        if self.rank != source:
            self.recv(x, source)
            return
        for sender, to in self.queues:
            if sender == source and to != source:
                self.send(x, to)


def on_ranks(size: int, job: Callable[[Ranks, Messages], Any]) -> list[Any]:
    """What a job returns on each rank; nothing may be left unread between them."""
    queues = {(a, b): Queue() for a in range(size) for b in range(size)}
    with ThreadPoolExecutor(size) as pool:
        jobs = [pool.submit(job, Ranks(r, size), Messages(r, queues)) for r in range(size)]
        results = [done.result(timeout=2 * PATIENCE) for done in jobs]
    assert all(queue.empty() for queue in queues.values())
    return results
