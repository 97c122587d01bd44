"""Several processes that act as the ranks of one run."""

import os
import socket
from contextlib import contextmanager

import torch


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_ranks(function, size, *args):
    """Let `size` processes call a module's function: with the rank, then `args`; `wait_for` them.

    They are forked from a server that has imported the package.
    """
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["saelib.run.sweep", "pytest"])
    return torch.multiprocessing.start_processes(
        function, args, nprocs=size, join=False, start_method="forkserver"
    )


def wait_for(*groups):
    """Until all processes of what `start_ranks` returned have ended; raises where one failed."""
    for group in groups:
        while not group.join():
            pass


def place(rank, size, port):
    """Tell this process its place as `torchrun` does."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size)
    )
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)


@contextmanager
def one_thread():
    """As each of several ranks has it: another number of threads changes the last bits of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
