"""Runs that are killed, find the disk full, or meet another process; what they leave is compared.

    python benchmarks/faults.py kills|pairs [--n N] [--seed 0] [--json PATH]
    python benchmarks/faults_kills.py refusals|ranks|smoke|threads [--n N] [--seed 0] [--json PATH]

With `--log PATH` trials are kept as they end, and a campaign that was stopped goes on.

kills     a micro profile through every stage, killed at the n-th change of a file and gone on with,
          until n kills are done: its folder must be that of an undisturbed run, byte for byte
refusals  n runs each on a disk that is full, fails or is read-only from some change on
ranks     n trainings by two processes, one of which is killed again and again
pairs     n rounds of two processes at once on one profile, through every stage
smoke     `python -m saelib run --profile smoke` with its kernels killed n times
threads   its notebooks 01 to 03 begun with two threads, killed, gone on with one: what differs

Needs a C compiler. `tests/helpers/kills.py` says what is counted and what may differ;
`tests/faults/test_kills.py` is the short form. Rows of other parts and seeds in the file are kept.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from harness import machine, report

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("part", "name", "seed", "trials", "kills", "faults", "seconds")
TEMPORARY = re.compile(r"^\.(.+)\.[0-9a-f]{12}\.\d+\.tmp$")  # a neighbour of what is being written
Rows = list[dict[str, Any]]


def _row(part: str, name: str, outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What became of some trials."""
    return {
        "part": part,
        "name": name,
        "seed": outcomes[0]["seed"],
        "trials": len(outcomes),
        "kills": sum(outcome["kills"] for outcome in outcomes),
        "faults": sum(bool(outcome["faults"]) for outcome in outcomes),
        "seconds": sum(outcome["seconds"] for outcome in outcomes),
        "first_faults": [outcome["faults"][:5] for outcome in outcomes if outcome["faults"]][:5],
    }


def kills(n: int, seed: int, folder: Path, log: Path | None) -> Rows:
    """Runs of the micro profile that are killed until n kills are done."""
    from helpers.kills import campaign

    return kills_rows(campaign(folder, seed, log, kills=n), seed)


def kills_rows(outcomes: Sequence[dict[str, Any]], seed: int) -> Rows:
    """A row for all kills, and one for each folder that was being changed."""
    places: Counter[str] = Counter()
    for outcome in outcomes:
        for name, number in outcome["places"].items():
            places[TEMPORARY.sub(r"\1", name)] += number
    whole = _row("kills", "all", outcomes) | {"changes": outcomes[0]["changes"]}
    by_place = {"part": "kills", "seed": seed}
    return [whole, *(by_place | {"name": name, "kills": places[name]} for name in sorted(places))]


def refusals(n: int, seed: int, folder: Path, log: Path | None) -> Rows:
    """A row for each kind of disk."""
    from helpers.kills import REFUSALS, campaign

    outcomes = campaign(folder, seed, log, refusals=n)
    return [
        _row("refusals", kind, [outcome for outcome in outcomes if outcome["kind"] == kind])
        for kind in REFUSALS
    ]


def ranks(n: int, seed: int, folder: Path, log: Path | None) -> Rows:
    """Two ranks, of which one is killed, again and again."""
    from helpers.kills import campaign

    return [_row("ranks", "all", campaign(folder, seed, log, ranks=n))]


def pairs(n: int, seed: int, folder: Path, log: Path | None) -> Rows:
    """Two whole runs at once."""
    from helpers.kills import campaign

    return [_row("pairs", "all", campaign(folder, seed, log, pairs=n))]


def smoke(n: int, seed: int, folder: Path, log: Path | None, notebooks: Sequence[str] = ()) -> Rows:
    """Notebooks of profile smoke through the driver, undisturbed and killed n times."""
    from helpers import killed_workbook as workbook

    request = ["--profile", "smoke", *notebooks]
    homes = [workbook.make_home(folder / name, ROOT) for name in ("alone", "killed")]
    said = log or folder / "log.txt"
    alone = workbook.run_killed(homes[0], "smoke", request, [], seed, said)
    moments = workbook.seeded_moments(n, workbook.n_files(homes[0], "smoke"), seed)
    killed = workbook.run_killed(homes[1], "smoke", request, moments, seed, said)
    return [smoke_row(alone, killed, homes, seed, " ".join(notebooks) or "all")]


def smoke_row(
    alone: Any, killed: Any, homes: Sequence[Path], seed: int, name: str
) -> dict[str, Any]:
    """What became of the two runs."""
    from helpers.killed_workbook import unequal

    faults = alone.faults + killed.faults + unequal(*homes, "smoke")
    outcome = {"seed": seed, "kills": killed.kills, "faults": faults, "seconds": killed.seconds}
    return _row("smoke", name, [outcome]) | {"seconds_alone": alone.seconds}


def threads(n: int, seed: int, folder: Path, log: Path | None) -> Rows:
    """Notebooks 01 to 03 of smoke begun with two threads, killed midway, gone on with one.

    n: runs that are tried, each killed at another moment.
    """
    from helpers import killed_workbook as workbook

    request = ["--profile", "smoke", "01", "02", "03"]
    alone = workbook.make_home(folder / "alone", ROOT)
    said = log or folder / "log.txt"
    workbook.run_killed(alone, "smoke", request, [], seed, said)
    rows = []
    for number in range(seed, seed + n):
        home = workbook.make_home(folder / f"threads_{number}", ROOT)
        moments = workbook.seeded_moments(1, workbook.n_files(alone, "smoke"), number)
        killed = workbook.run_killed(
            home, "smoke", request, moments, number, said, lambda kills: 1 if kills else 2
        )
        rows.append(threads_row(killed, alone, home, number))
    return rows


def threads_row(killed: Any, alone: Path, home: Path, seed: int) -> dict[str, Any]:
    """Beside what became of it: claims whose verdict is another one, the largest changes."""
    from helpers.killed_workbook import changes_of_results, other_verdicts

    faults = killed.faults + other_verdicts(home, alone, "smoke")
    outcome = {"seed": seed, "kills": killed.kills, "faults": faults, "seconds": killed.seconds}
    return _row("threads", "2, then 1", [outcome]) | changes_of_results(home, alone, "smoke")


PARTS = {"kills": (kills, 1000), "refusals": (refusals, 50), "ranks": (ranks, 20)}
PARTS |= {"pairs": (pairs, 100), "smoke": (smoke, 20), "threads": (threads, 1)}


def _kept(path: Path, rows: Rows, about: dict[str, Any]) -> Rows:
    """Rows of other parts and other seeds in a file, and these."""
    others = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    mine = {(row["part"], row["seed"]) for row in rows}
    kept = [row for row in others if (row["part"], row["seed"]) not in mine]
    return kept + [{"machine": about} | row for row in rows]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 where a trial had a fault."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("part", choices=sorted(PARTS))
    options.add_argument("--n", type=int)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--json", type=Path, help="write the rows there, beside other parts'")
    options.add_argument("--log", type=Path, help="trials are kept there, and not made again")
    options.add_argument("--notebooks", nargs="*", default=[], help="of smoke; none: all")
    args = options.parse_args(argv)
    run, n = PARTS[args.part]
    if args.part == "smoke":
        run = partial(smoke, notebooks=args.notebooks)
    about = machine("cpu")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows = run(args.n or n, args.seed, Path(folder), args.log)
    print(f"{args.part}: {time.monotonic() - start:.0f} s")
    report(rows, COLUMNS, about, None)
    if args.json:
        kept = _kept(args.json, rows, about)
        args.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return int(any(row.get("faults") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
