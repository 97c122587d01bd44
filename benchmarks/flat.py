"""Memory and open files of one process over twenty runs of profile default's number of SAEs.

    OMP_NUM_THREADS=1 python benchmarks/flat.py [--runs 20] [--saes 168] [--json PATH]

Each run has a workbook folder of its own, collects a tiny model's activations, trains and measures
so many tiny SAEs, and is removed. A row a run: what the process holds after it. The last row has
the slope of a line through the later half of the runs, in megabytes a run.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from harness import machine, parser, report
from helpers.whole_profile import collect, make_home, opened, write_workbook

COLUMNS = ("name", "saes", "rss_mb", "open_files", "threads", "seconds", "mb_per_run")
SHAPE = {"n_latents": 32, "tokens": 256, "batch_size": 64, "lr": 3e-3, "log_every": 2}
SITES = (1, 2, 3)
PROFILE = "flat"


def held() -> dict[str, float | int]:
    """Resident memory, open files and threads of this process."""
    gc.collect()
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return {
        "rss_mb": int(status["VmRSS"].split()[0]) * 1024 / 1e6,
        "open_files": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
    }


def run(folder: Path, number: int, saes: int) -> None:
    """One run in a workbook folder of its own, which is removed."""
    home = make_home(folder, f"run_{number}")
    os.environ["SAELIB_HOME"] = str(home)
    collect(PROFILE)
    ws = opened(PROFILE)
    specs = [
        ws.spec(("plain", "full")[i % 2], SITES[i % len(SITES)], lam=0.5, seed=i, **SHAPE)
        for i in range(saes)
    ]
    ws.train(specs, "02_train_sae")
    shutil.rmtree(home)


def main() -> None:
    options = parser(__doc__, timed=False)
    options.add_argument("--runs", type=int, default=20)
    options.add_argument("--saes", type=int, default=168)
    args = options.parse_args()
    about = machine("cpu")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_workbook(folder)
        for number in range(args.runs):
            start = time.perf_counter()
            run(folder, number, args.saes)
            seconds = time.perf_counter() - start
            rows.append({"name": f"run {number + 1}", "saes": args.saes, "seconds": seconds})
            rows[-1] |= held()
    later = [row["rss_mb"] for row in rows[len(rows) // 2 :]]
    slope = float(np.polyfit(range(len(later)), later, 1)[0]) if len(later) > 1 else 0.0
    files = {row["open_files"] for row in rows}
    total = {"name": "later half", "mb_per_run": slope, "open_files": max(files) - min(files)}
    report([*rows, total], COLUMNS, about, args.json)


if __name__ == "__main__":
    main()
