"""What the benchmarks share: rows timed in turn in one process, so that all meet the same speed."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch


def parser(description: str, timed: bool = True) -> argparse.ArgumentParser:
    """The options every benchmark has, and those of one that times."""
    out = argparse.ArgumentParser(description=description)
    out.add_argument("--json", type=Path, help="write the rows there")
    if not timed:
        return out
    out.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    out.add_argument(
        "--rounds", type=int, default=7, help="times each row is run; the median counts"
    )
    return out


def machine(device: str) -> dict[str, Any]:
    """What the numbers belong to."""
    cpu = next(
        (x for x in _lines("/proc/cpuinfo") if x.startswith("model name")), platform.processor()
    )
    name = (
        torch.cuda.get_device_name() if device.startswith("cuda") else cpu.partition(":")[2].strip()
    )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_before": load,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


def interleaved(
    calls: Sequence[Callable[[], Any]],
    rounds: int,
    device: str,
    warmup: int = 2,
    seconds: float = 0.0,
) -> list[list[float]]:
    """Seconds of each call in each round: every round runs all calls once, in turn.

    Rounds go on until there are `rounds` of them and `seconds` have passed.
    """
    sync = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    times: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    done = -warmup
    while done < rounds or time.perf_counter() - start < seconds:
        for call, found in zip(calls, times, strict=True):
            sync()
            before = time.perf_counter()
            call()
            sync()
            if done >= 0:
                found.append(time.perf_counter() - before)
        done += 1
    return times


def median(times: Sequence[float]) -> float:
    return float(np.median(times))


def report(
    rows: list[dict[str, Any]], columns: Sequence[str], about: dict[str, Any], path: Path | None
) -> None:
    """Print the rows as a table; write all as JSON, with the machine (or each with its own)."""
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    cells = [[_cell(row.get(c)) for c in columns] for row in rows]
    widths = [max(len(c), *(len(line[i]) for line in cells)) for i, c in enumerate(columns)]
    for line in (columns, *cells):
        print("  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip())
    if path:
        path.write_text(
            json.dumps([{"machine": about} | row for row in rows], indent=1) + "\n",
            encoding="utf-8",
        )


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
