"""Every artifact of a workbook folder damaged, trial by trial, and what its readers make of it.

    python benchmarks/faults.py corruptions [--n 3000] [--seed 1] [--first 0] [--only PATTERN]
        [--log PATH] [--again] [--json PATH] [--add LOG]

`helpers.corruptions` says what the outcomes mean. A trial whose draw changes nothing is not
counted. `--again`: trials of the log that failed are tried anew, with the code as it is now.
`--add`: further logs, of the same seed and other numbers, are counted too.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from faults_record import add_rows, keep, kept
from harness import machine, parser
from helpers.corruptions import FAILURES, WORST, Home, trial

ARTIFACTS = (  # path below the folder -> what it is called in the table
    (r"^data/[^/]+/store/", "activation store"),
    (r"/(features|twins|ablation|descriptions)/|notes\.json$", "index of features and beside it"),
    (r"/checkpoint", "checkpoint"),
    (r"^data/[^/]+/saes/", "run folder"),
    (r"^data/[^/]+/(eval|stream)/", "reference losses, counts of live rows"),
    (r"\.csv$|/(verdicts|figures)/", "tables, verdicts, figures"),
    (r"^data/[^/]+/notebooks/", "executed notebook and its record"),
    (r"workspace\.json$", "workspace.json"),
    (r"^notebooks/", "source notebook, profile"),
    (r"^model/", "model folder"),
    (r"^formats/", "SAEs of this and other libraries"),
    (r"", "texts"),
)


def main(argv: list[str]) -> None:
    options = parser(__doc__, timed=False)
    options.add_argument("--n", type=int, default=3000)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--first", type=int, default=0, help="number of the first trial")
    options.add_argument("--only", default="", help="paths to damage, as a pattern")
    options.add_argument("--log", type=Path)
    options.add_argument("--again", action="store_true")
    options.add_argument("--add", type=Path, nargs="*", default=[])
    args = options.parse_args(argv)
    about = machine("cpu")
    trials = kept(args.log)
    if args.again:
        trials = {n: one for n, one in trials.items() if not _failed(one)}
    _run(args, trials)
    counted = [one for log in args.add for one in kept(log).values()] + list(trials.values())
    rows = rows_of([one for one in counted if one["outcome"]])
    for row in rows:
        print(row)
    add_rows(args.json, "corruptions", rows, about)


def _run(args: Any, trials: dict[int, dict[str, Any]]) -> None:
    """Try what is missing of the numbers from `first` on, until `n` have changed something."""
    if sum(bool(one["outcome"]) for one in trials.values()) >= args.n:
        return
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder))
        number, start = args.first, time.monotonic()
        while sum(bool(one["outcome"]) for one in trials.values()) < args.n:
            if number not in trials:
                found = trial(home, number, args.seed, args.only)
                one = found._asdict() if found else {"number": number, "outcome": ""}
                trials[number] = one
                keep(args.log, one)
                if found and _failed(one):
                    print(f"{number} {found.path} {found.kind}: {found.outcome} {found.details}")
            number += 1
            if number % 100 == 0:
                print(f"{number - args.first} tried, {time.monotonic() - start:.0f} s", flush=True)


def _failed(trial: Mapping[str, Any]) -> bool:
    return trial["outcome"] in FAILURES or bool(trial.get("missed"))


def artifact_of(path: str) -> str:
    """What a file is called in the table."""
    return next(name for pattern, name in ARTIFACTS if re.search(pattern, path))


def rows_of(trials: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each kind of artifact, and one for all."""
    by_kind: dict[str, list[Mapping[str, Any]]] = {name: [] for _, name in ARTIFACTS}
    for one in trials:
        by_kind[artifact_of(one["path"])].append(one)
    rows = [_row(name, some) for name, some in by_kind.items() if some]
    return [*rows, _row("all", [one for some in by_kind.values() for one in some])]


def _row(name: str, trials: list[Mapping[str, Any]]) -> dict[str, Any]:
    counts = Counter(one["outcome"] for one in trials)
    return {
        "artifact": name,
        "trials": len(trials),
        **{outcome: counts[outcome] for outcome in WORST},
        "missed_by_check": sum(one["missed"] for one in trials),
        "longest_s": round(max(one["seconds"] for one in trials), 1),
        "peak_mb": round(max(one["peak_mb"] for one in trials)),
    }
