"""Pairs of processes that work on one micro profile at once."""

import random
import time
import traceback
from pathlib import Path

import torch

from helpers.workspaces import RECIPE, open_workspace, specs_over_sites

TIMEOUT = 600  # seconds, of which a round takes two on a free machine


def collect_and_train(home: Path, profile: str, which: int) -> None:
    """Everything from the text to the table; the second process asks in another order."""
    workspace = open_workspace(home, profile)
    workspace.checkpoint_every = 4
    workspace.together = 2
    specs = specs_over_sites(workspace)
    workspace.train(specs[::-1] if which else specs, "02_train_sae")


def train_with_resampling(home: Path, profile: str, which: int) -> None:
    """One long SAE that both ask for, and one that each has alone."""
    workspace = open_workspace(home, profile)
    workspace.checkpoint_every = 1
    both = workspace.spec("full", 2, lam=0.7, resample_at=(0.3,), dead_window=512, **RECIPE)
    alone = workspace.spec("plain", 1 + 2 * which, lam=0.7, **RECIPE)
    workspace.train([both, alone], "03_train_gated")


def _child(work, home, profile, which, delay, start, failures):
    torch.set_num_threads(1)
    start.wait(TIMEOUT)
    time.sleep(delay)
    try:
        work(home, profile, which)
    except BaseException:
        failures.put(traceback.format_exc())
        raise


def run_pair(work, home: Path, profile: str, seed: int) -> list[str]:
    """Call `work` in two processes, the second a moment later; returns the failures' tracebacks."""
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers.pairs"])
    start = context.Barrier(2)
    failures = context.SimpleQueue()
    delays = (0.0, random.Random(seed).choice((0.0, 0.05, 0.3, 0.6)))
    processes = [
        context.Process(target=_child, args=(work, home, profile, i, delay, start, failures))
        for i, delay in enumerate(delays)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT)
        if process.is_alive():
            process.kill()
            failures.put(f"process {process.pid} did not end within {TIMEOUT} s")
    found = []
    while not failures.empty():
        found.append(failures.get())
    return found
