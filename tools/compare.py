"""Say in what two runs of one profile differ: the safety net of a rebuilding.

    python tools/compare.py BEFORE AFTER [--plotted PLOTTED_BEFORE PLOTTED_AFTER]

BEFORE and AFTER are folders `data/<profile>` (or `data/recorded/<profile>`). Compared are

    results.csv       every row, byte for byte but for run_id and code_version
    diagnostics/      every table, byte for byte; a run_id stands for the row that it names
    verdicts/         the verdict of each finding, every number that the text before stated, and
                      every estimate where both runs keep them
    figures           with --plotted: the data drawn (see tools/plotted), every axes of every figure

It prints one line for each difference and exits with 1 where there is one, else with 0.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

NAMES = ("run_id", "code_version")  # what a rebuilding may change of a row
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
SAME_VERDICT = {
    "replicates": "supported",
    "does not replicate": "contradicted",
    "cannot tell": "undecided",
}


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, as text."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def content(row: Mapping[str, str], columns: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """A row without what names it, over the columns that both tables have."""
    return tuple((name, row[name]) for name in columns if name not in NAMES)


class Results:
    """`results.csv` of a run, and what its run ids stand for."""

    def __init__(self, folder: Path) -> None:
        self.rows = read_table(folder / "results.csv")
        self.columns = list(self.rows[0]) if self.rows else []

    def contents(self, columns: Sequence[str]) -> Counter:
        """How often each row occurs."""
        return Counter(content(row, columns) for row in self.rows)

    def by_id(self, columns: Sequence[str]) -> dict[str, tuple]:
        """run_id -> its row's content."""
        return {row["run_id"]: content(row, columns) for row in self.rows}


def results_differences(before: Results, after: Results) -> Iterator[str]:
    """Columns and rows that one table alone has."""
    for name in before.columns:
        if name not in after.columns:
            yield f"results.csv: column {name} is gone"
    columns = [name for name in before.columns if name in after.columns]
    rows_before = before.contents(columns)
    rows_after = after.contents(columns)
    for row in (rows_before - rows_after).elements():
        yield f"results.csv: a row of BEFORE is not in AFTER: {short(row)}"
    for row in (rows_after - rows_before).elements():
        yield f"results.csv: a row of AFTER is not in BEFORE: {short(row)}"


def short(row: tuple[tuple[str, str], ...]) -> str:
    """A row's first columns, to find it by."""
    wanted = {"notebook", "arch", "loss", "site", "lambda", "seed", "fvu"}
    return ", ".join(f"{name} {value}" for name, value in row if name in wanted)


def table_differences(
    before: Path, after: Path, ids: Sequence[Mapping[str, tuple]]
) -> Iterator[str]:
    """Differences of one table; run ids are replaced by the rows that they stand for."""
    if not after.exists():
        yield f"diagnostics/{before.name} is gone"
        return
    rows = [
        [tuple(known.get(cell, cell) for cell in row.values()) for row in read_table(path)]
        for path, known in zip((before, after), ids, strict=True)
    ]
    if Counter(rows[0]) != Counter(rows[1]):
        differing = sum((Counter(rows[0]) - Counter(rows[1])).values())
        yield f"diagnostics/{before.name}: {differing} of {len(rows[0])} rows differ"
    elif rows[0] != rows[1] and not is_list_of_runs(before):
        yield f"diagnostics/{before.name}: the rows come in another order"


def is_list_of_runs(path: Path) -> bool:
    """Whether a table lists run ids alone; it may be in their order."""
    return path.read_text(encoding="utf-8").splitlines()[0] == "run_id"


def stated(value: Any) -> Iterator[str]:
    """Every string and number in a JSON value, as text."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from stated(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from stated(inner)
    elif value is not None:
        yield repr(value) if isinstance(value, float) else str(value)


def parsed(text: str) -> list[tuple[float, float]]:
    """(number, half a unit of its last digit) for each number of a text."""
    pairs = []
    for match in NUMBER.findall(text):
        plain = match.replace(",", "")
        mantissa, _, exponent = plain.partition("e")
        places = len(mantissa.partition(".")[2]) - int(exponent or 0)
        pairs.append((float(plain), 0.5 * 10.0**-places))
    return pairs


def verdict_differences(before: Path, after: Path) -> Iterator[str]:
    """Findings whose verdict changed, and numbers stated before that nothing states after."""
    if not after.exists():
        yield f"verdicts/{before.name} is gone"
        return
    entries = json.loads(before.read_text(encoding="utf-8"))
    now = json.loads(after.read_text(encoding="utf-8"))
    by_name = {entry.get("name", entry.get("finding")): entry for entry in now}
    numbers = sorted(value for text in stated(now) for value, _ in parsed(text))
    for entry in entries:
        name = entry.get("name", entry.get("finding"))
        if name not in by_name:
            yield f"verdicts/{before.name}: {name} is gone"
            continue
        verdict = SAME_VERDICT.get(entry["verdict"], entry["verdict"])
        if SAME_VERDICT.get(by_name[name]["verdict"], by_name[name]["verdict"]) != verdict:
            yield f"verdicts/{before.name}: {name} was {verdict}, is {by_name[name]['verdict']}"
        for value, half in parsed(entry.get("effect") or entry.get("sentence", "")):
            if not any(near(value, other, half) for other in numbers):
                yield f"verdicts/{before.name}: {name} stated {value:g}, nothing does now"
        for effect in differing_estimates(entry, by_name[name]):
            yield f"verdicts/{before.name}: {name}: the estimate {effect!r} differs"


def differing_estimates(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Effects of a finding whose estimate changed or is gone; older records keep no estimates."""
    if "estimates" not in after:
        return []
    estimates = before.get("estimates", {})
    return [name for name, row in estimates.items() if after["estimates"].get(name) != row]


def near(value: float, other: float, half: float) -> bool:
    """Whether a printed number is another one rounded: as it is, as a share or in percent."""
    scaled = (other, 100 * other, 100 * (other - 1), other / 100)
    return any(math.isclose(value, s, rel_tol=1e-12, abs_tol=1.0001 * half) for s in scaled)


def plotted_differences(before: Path, after: Path) -> Iterator[str]:
    """Figures whose drawn data differ: numbers that were drawn and are not."""
    for path in sorted(before.glob("*.json")):
        other = after / path.name
        if not other.exists():
            yield f"figure {path.stem} is gone"
            continue
        counts = [Counter(points(json.loads(p.read_text(encoding="utf-8")))) for p in (path, other)]
        lost = sum((counts[0] - counts[1]).values())
        new = sum((counts[1] - counts[0]).values())
        if lost or new:
            numbers = counts[0].total()
            yield f"figure {path.stem}: of {numbers} numbers {lost} are gone, {new} are new"


def points(panels: list[dict[str, list[list[float]]]]) -> Iterator[float]:
    """Every number that a figure's axes show."""
    for panel in panels:
        for kind in panel.values():
            for series in kind:
                yield from series


def differences(before: Path, after: Path) -> Iterator[str]:
    """Every difference between two runs' tables and verdicts."""
    results = Results(before), Results(after)
    yield from results_differences(*results)
    columns = [name for name in results[0].columns if name in results[1].columns]
    ids = [one.by_id(columns) for one in results]
    for path in sorted((before / "diagnostics").glob("*.csv")):
        yield from table_differences(path, after / "diagnostics" / path.name, ids)
    for path in sorted((before / "verdicts").glob("*.json")):
        yield from verdict_differences(path, after / "verdicts" / path.name)


def main(argv: Sequence[str] | None = None) -> int:
    """0 without a difference, 1 with one, 2 where a folder holds no run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--plotted", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    args = parser.parse_args(argv)
    for folder in (args.before, args.after):
        if not (folder / "results.csv").is_file():
            print(f"error: {folder}: no results.csv; expected a folder data/<profile> of a run")
            return 2
    lines = list(differences(args.before, args.after))
    if args.plotted:
        lines += plotted_differences(*args.plotted)
    print("\n".join(lines) or "no difference")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
