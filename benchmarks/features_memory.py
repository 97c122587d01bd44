"""An index of a large dictionary: seconds and peak memory by the number of tokens.

    python benchmarks/features_memory.py [--json PATH] [--latents 32768] [--rows 30000 120000]

The inputs are those of `features.py`; each size is built in a process of its own, whose peak
resident memory is told before the build (model, store, SAE: `mib_before`) and within it. The build
says beforehand what it will take: `seconds_told`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from features import SITE, random_lm, random_sae, random_store
from harness import machine, parser, report

from saelib.measure.features import IndexOptions, build_index
from saelib.measure.features.build import forecast

COLUMNS = ("n_latents", "n_rows", "l0", "seconds", "seconds_told", "mib_before", "mib_peak")


def options() -> ArgumentParser:
    out = parser(__doc__.splitlines()[0])
    out.add_argument("--latents", type=int, default=32768)
    out.add_argument("--rows", type=int, nargs="+", default=[30_000, 120_000])
    out.add_argument("--l0", type=float, default=32.0)
    out.add_argument("--vocabulary", type=int, default=49_152)
    out.set_defaults(rounds=1, device="cpu")
    return out


def peak_mib(reset: bool = False) -> float:
    """Largest resident memory of this process since the last reset; Linux alone."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = dict(line.split(":", 1) for line in lines)
    if reset:  # the peak falls back to what is resident now
        Path("/proc/self/clear_refs").write_text("5")
        return int(sizes["VmRSS"].split()[0]) / 1024
    return int(sizes["VmHWM"].split()[0]) / 1024


def measured(n_rows: int, args: Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        lm = random_lm(args.vocabulary)
        store = random_store(folder / "store", lm, n_rows)
        test = np.flatnonzero(store.tokens["split"] == 2)
        sae = random_sae(args.latents, store.rows(SITE, test[:4096]), args.l0)
        before = peak_mib(reset=True)
        told = forecast(sae, store, lm, IndexOptions())
        start = time.perf_counter()
        index = build_index(sae, store, lm, folder / "index", progress=False)
        seconds = time.perf_counter() - start
        l0 = index.table["n_fired"].sum() / index.manifest["n_ordinary"]
    values = (args.latents, len(test), float(l0), seconds, told, before, peak_mib())
    return dict(zip(COLUMNS, values, strict=True))


def main() -> None:
    args = options().parse_args()
    about = machine("cpu")
    context = get_context("forkserver")
    context.set_forkserver_preload(["__main__"])  # the libraries are loaded once for all sizes
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as alone:
        rows = [alone.submit(measured, n_rows, args).result() for n_rows in args.rows]
    report(rows, COLUMNS, about, args.json)


if __name__ == "__main__":
    main()
