"""Damaged and hostile text through every reader: what becomes of it.

    python benchmarks/fuzz_text.py [--trials 1000000] [--seed 1] [--parsed-every 1000] [--json PATH]

Every trial is seeded by its number. It ends in pages, in an error of the project that names the
file, or with a traceback that names the trial: then the script stops. No trial may take more than
5 s of processor time, and the peak of memory is said at the end. One trial in `--parsed-every` goes
through the parser of markup too, which is slow; `tests/faults/test_fuzz_text.py` is the short form.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from harness import machine, parser, report
from helpers.fuzzed_text import trials

COLUMNS = ("form", "trials", "pages", "errors", "text", "markup_errors", "seconds", "peak_mb")


def peak_mb() -> float:
    """Peak memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def rows_of(outcomes: Counter[tuple[str, str]], seconds: float) -> list[dict[str, object]]:
    """A row for each form, and one for all."""
    forms = sorted({form for form, _ in outcomes})
    kinds = {"pages": "pages", "errors": "CorpusError", "text": "text"}
    kinds["markup_errors"] = "MarkupError"
    rows = [
        {"form": form, **{column: outcomes[form, kind] for column, kind in kinds.items()}}
        for form in forms
    ]
    total = {"form": "all", **{column: sum(row[column] for row in rows) for column in kinds}}
    for row in (*rows, total):
        row["trials"] = sum(row[column] for column in kinds)
    return [*rows, total | {"seconds": seconds, "peak_mb": peak_mb()}]


def main() -> None:
    options = parser(__doc__, timed=False)
    options.add_argument("--trials", type=int, default=100_000)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--parsed-every", type=int, default=1000)
    args = options.parse_args()
    about = machine("cpu")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = trials(Path(folder), args.trials, args.seed, args.parsed_every)
    report(rows_of(outcomes, time.perf_counter() - start), COLUMNS, about, args.json)


if __name__ == "__main__":
    main()
