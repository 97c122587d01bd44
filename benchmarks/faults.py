"""Whatever lies on disk or comes in: nothing lost, nothing silently wrong, counted.

    python benchmarks/faults.py corruptions [--n 3000] [--seed 1] [--log PATH] [--json PATH]
    python benchmarks/faults.py fuzz [--n 1000000] [--seed 1] [--log PATH] [--json PATH]
    python benchmarks/faults.py kills | pairs [options of benchmarks/faults_kills.py]

Each trial is seeded by its number. `--json` adds a subcommand's rows to a file that may hold those
of others. With `--log` trials are kept there as they end, and a campaign that was stopped goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests"), str(HERE.parent)]


def _corruptions(argv: list[str]) -> None:
    import faults_corruptions

    faults_corruptions.main(argv)


def _fuzz(argv: list[str]) -> None:
    import faults_fuzz

    faults_fuzz.main(argv)


def _kills(argv: list[str]) -> None:
    import faults_kills

    faults_kills.main(["kills", *argv])


def _pairs(argv: list[str]) -> None:
    import faults_kills

    faults_kills.main(["pairs", *argv])


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "corruptions": _corruptions,
    "fuzz": _fuzz,
    "kills": _kills,
    "pairs": _pairs,
}


def main(argv: list[str]) -> None:
    if not argv or argv[0] not in COMMANDS:
        raise SystemExit(f"{__doc__}\nexpected one of {', '.join(COMMANDS)}")
    COMMANDS[argv[0]](argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
