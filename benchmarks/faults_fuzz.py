"""Damaged and hostile input for every reader of what may come from strangers, counted.

    python benchmarks/faults.py fuzz [--n 1000000] [--seed 1] [--first 0] [--log PATH]
        [--texts SHARE] [--json PATH] [--add LOG]

One part in `--texts` goes to the readers of texts (`helpers.fuzzed_text`, slower), the others to
`helpers.fuzzed_readers`. A campaign runs in parts of `PART` trials, each one line of the log; one
that was stopped goes on with the next part. A trial may take 5 s and 1 GB.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from faults_record import add_rows, keep, kept
from fuzz_text import peak_mb
from harness import machine, parser
from helpers import fuzzed_readers, fuzzed_text

PART = 10_000
FAILED = "FAILED"


def main(argv: list[str]) -> None:
    options = parser(__doc__, timed=False)
    options.add_argument("--n", type=int, default=1_000_000)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--first", type=int, default=0, help="number of the first part")
    options.add_argument("--texts", type=float, default=0.1)
    options.add_argument("--log", type=Path)
    options.add_argument("--add", type=Path, nargs="*", default=[])
    args = options.parse_args(argv)
    about = machine("cpu")
    parts = kept(args.log)
    fuzzed_readers.limit_memory()
    with tempfile.TemporaryDirectory() as folder:
        number = args.first
        while sum(part["trials"] for part in parts.values()) < args.n:
            if number not in parts:
                size = min(PART, args.n - sum(part["trials"] for part in parts.values()))
                parts[number] = _part(Path(folder), number, size, args)
                keep(args.log, parts[number])
                print(f"part {number}: {parts[number]['failures'] or 'well'}", flush=True)
            number += 1
    for log in args.add:
        parts |= {f"{log} {n}": part for n, part in kept(log).items()}
    rows = rows_of(parts.values())
    for row in rows:
        print(row)
    add_rows(args.json, "fuzz", rows, about)


def _part(folder: Path, number: int, size: int, args: Any) -> dict[str, Any]:
    """Trials of one part."""
    start = time.process_time()
    n_texts = round(args.texts * size)
    first = number * PART
    found, failures, longest = fuzzed_readers.trials(
        folder, size - n_texts, args.seed, first, raising=False
    )
    outcomes: Counter[tuple[str, str]] = Counter(found)
    if n_texts:
        texts = fuzzed_text.trials(folder, n_texts, f"{args.seed}.{number}", n_texts)
        outcomes.update({(f"text: {form}", kind): n for (form, kind), n in texts.items()})
    return {
        "number": number,
        "trials": size,
        "outcomes": [[*key, n] for key, n in sorted(outcomes.items())],
        "failures": failures,
        "longest_s": longest,
        "seconds": time.process_time() - start,
        "peak_mb": peak_mb(),
    }


def rows_of(parts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each reader, and one for all."""
    counts: dict[str, Counter[str]] = {}
    for part in parts:
        for reader, kind, n in part["outcomes"]:
            counts.setdefault(reader, Counter())[kind] += n
    rows = [_row(reader, kinds) for reader, kinds in sorted(counts.items())]
    total = {name: sum(row[name] for row in rows) for name in ("trials", "answers", "errors")}
    total["failures"] = sum(row["failures"] for row in rows)
    return [
        *rows,
        {"reader": "all", **total}
        | {
            "longest_s": round(max(part["longest_s"] for part in parts), 2),
            "peak_mb": round(max(part["peak_mb"] for part in parts)),
            "seconds": round(sum(part["seconds"] for part in parts)),
        },
    ]


def _row(reader: str, kinds: Counter[str]) -> dict[str, Any]:
    answers = sum(kinds[kind] for kind in ("answer", "pages", "text"))
    failures = kinds[FAILED]
    trials = kinds.total()
    errors = trials - answers - failures
    return {
        "reader": reader,
        "trials": trials,
        "answers": answers,
        "errors": errors,
        "failures": failures,
    }
