"""Write a recorded profile's estimates, from its recorded files alone.

They go to data/recorded/<profile>/estimates.json.

python tools/recorded_estimates.py [PROFILE]        # default: full

A run compares its own findings with these (`study.finding.beside_recorded`). Verdicts in today's
form hold their estimates; older ones hold them in a sentence, "site 2, constant: 1.015 [1.005,
1.026]", read by `SENTENCES` and rounded as recorded, unless a table has them unrounded (`TABLES`).
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from saelib.env import data_dir
from saelib.files import read_json, write_json
from saelib.measure.bootstrap import seed_interval
from saelib.study import f2_resampling_findings, f3_causes, f3_findings
from saelib.study.finding import RECORDED

Row = dict[str, float | None]


class Table(NamedTuple):
    """Where a table of `diagnostics/` holds a finding's estimates: columns value, lo, hi."""

    name: str
    effect: str  # name of an estimate, from the table's columns
    column: str  # rows are those whose `column` fits `pattern`
    pattern: str


NUMBER = r"[+-]?[\d.]+"
INTERVAL = rf"(?P<value>{NUMBER})%? \[(?P<lo>{NUMBER})%?, (?P<hi>{NUMBER})%?\]"

TABLES = {
    "F2": Table("04_effects", "{group}, {panel}, site {hue}", "group", "deficit|no resampling.*"),
    "F2f": Table("04_effects", "{group}, {panel}, site {hue}", "group", "no resampling.*"),
    "F3a": Table("05_gap", "{group}, deepest site over site {hue}", "group", "original.*"),
    "F3b": Table("05_gap", "{group}, deepest site over site {hue}", "group", "normalised.*"),
    "F3d": Table("05_items_or_selection", "FVU of {codes}, site {site}", "codes", "pursuit"),
    "F3f": Table("05_causes", "{group}", "group", ".*"),
}

# What older tables call it -> its name among estimates
RENAMED = {
    **f2_resampling_findings.NAMES,
    **f3_causes.ESTIMATES,
    "normal": "normal recipe",
    "dying": "large steps",
    "original recipe: v(∅)": f3_causes.ESTIMATES[f3_causes.FIRST],
    "unexplained remainder: v(all)": f3_causes.ESTIMATES[f3_causes.LAST],
}

# finding -> names of estimates, and the pattern that finds them in the older sentence
SENTENCES = {
    "F0": [
        (
            "{what}, {tokens}",
            rf"(?P<what>one latent|PCA, rank \d+) {INTERVAL} \((?P<tokens>\w+ tokens)\)",
        )
    ],
    "F1": [
        (
            "site {site}, hard restarts over {what}",
            rf"site (?P<site>\d+), (?P<what>[a-z ]+): {INTERVAL}",
        )
    ],
    "F4": [("site {site}, λ = {lam}", rf"site (?P<site>\d+), λ = (?P<lam>[\d.]+): {INTERVAL}")],
    "F2d": [
        ("persistence, two-term less plain", rf"over seeds: {INTERVAL}"),
        ("Gini, two-term less plain", rf"over seeds: .*? and {INTERVAL}"),
    ],
    "F2e": [
        (
            "share dead, {what}, normal recipe",
            rf"(?P<what>plain SAE|Gated, [\w-]+ loss) {INTERVAL.replace('%?', ' ?%?')}",
        )
    ],
    "F3c": [
        (f3_findings.LEFT, rf"FVU {INTERVAL}"),
        (f3_findings.RECOVERED, rf"ablation {INTERVAL}"),
    ],
    "F3e": [(f3_findings.REMOVED, rf"site (?P<site>\d+) {INTERVAL}")],
}
LISTED = {  # "sites 2, 15, 29: 0.93 [0.92, 0.94], …", in that order: what is over what
    "F2a": "two-term over plain",
    "F2b": "full over plain",
    "F2c": "two-term over full",
}
PERCENT = ("F2e", "F3e")


def estimates(profile: str) -> dict[str, dict[str, Row]]:
    """Finding -> effect -> {"value", "lo", "hi"} of a recorded profile."""
    folder = data_dir("recorded") / profile
    collected = {}
    for path in sorted(folder.glob("verdicts/*.json")):
        for entry in read_json(path):
            name = entry.get("name") or entry["finding"]
            collected[name] = _of_entry(folder, name, entry)
    return {name: rows for name, rows in collected.items() if rows}


def _of_entry(folder: Path, name: str, entry: dict[str, Any]) -> dict[str, Row]:
    if "estimates" in entry:
        return entry["estimates"]
    if name in TABLES:
        return _of_table(folder, TABLES[name])
    if name in LISTED:
        return _of_list(entry["effect"], LISTED[name])
    rows = _of_sentence(entry["effect"], name)
    return _powers(folder) | rows if name == "F4" else rows


def _of_table(folder: Path, table: Table) -> dict[str, Row]:
    rows = pd.read_csv(folder / "diagnostics" / f"{table.name}.csv")
    rows = rows[rows[table.column].str.fullmatch(table.pattern)]
    return {
        table.effect.format(**_renamed(row)): _row(row["value"], row["lo"], row["hi"])
        for row in rows.to_dict("records")
    }


def _renamed(row: dict[str, Any]) -> dict[str, Any]:
    return {column: RENAMED.get(value, value) for column, value in row.items()}


def _of_list(sentence: str, ratio: str) -> dict[str, Row]:
    sites = re.search(r"sites ([\d, ]+):", sentence)
    names = sites.group(1).split(", ") if sites else []
    matches = list(re.finditer(INTERVAL, sentence))
    return {
        f"site {site}, {ratio}": _row(*match.group("value", "lo", "hi"))
        for site, match in zip(names, matches, strict=True)
    }


def _of_sentence(sentence: str, name: str) -> dict[str, Row]:
    scale = 0.01 if name in PERCENT else 1.0
    rows: dict[str, Row] = {}
    for effect, pattern in SENTENCES.get(name, []):
        for match in re.finditer(pattern, sentence):
            row = _row(*match.group("value", "lo", "hi"), scale=scale)
            rows.setdefault(effect.format(**match.groupdict()), row)
    return rows


def _row(value: Any, lo: Any, hi: Any, scale: float = 1.0) -> Row:
    numbers = {"value": value, "lo": lo, "hi": hi}
    scaled = {name: round(float(number) * scale, 12) for name, number in numbers.items()}
    return {name: number if math.isfinite(number) else None for name, number in scaled.items()}


def _powers(folder: Path) -> dict[str, Row]:
    """FVU as a power of λ between smallest and largest, by site; Student's interval over seeds."""
    runs = pd.read_csv(folder / "diagnostics" / "02_curves.csv", dtype=str)["run_id"]
    rows = pd.read_csv(folder / "results.csv", dtype={"run_id": str})
    rows = rows[rows["run_id"].isin(set(runs))]
    powers = {}
    for site, sweep in rows.groupby("site"):
        by_seed = [_power(one) for _, one in sweep.groupby("seed")]
        mean = sweep.groupby("lambda", as_index=False)["fvu"].mean()
        powers[f"site {site}, power of λ"] = _row(_power(mean), *seed_interval(by_seed))
    return powers


def _power(rows: pd.DataFrame) -> float:
    ends = rows.sort_values("lambda")["fvu"].iloc[[0, -1]]
    lams = rows["lambda"].agg(["min", "max"])
    return math.log(ends.iloc[1] / ends.iloc[0]) / math.log(lams["max"] / lams["min"])


def write(profile: str) -> Path:
    """Write the estimates of a recorded profile beside its tables."""
    path = data_dir("recorded") / profile / "estimates.json"
    write_json(path, estimates(profile))
    return path


def main(args: Sequence[str]) -> int:
    if len(args) > 1:
        print(__doc__)
        return 2
    print(write(args[0] if args else RECORDED))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
