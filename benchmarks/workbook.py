"""Where a profile's time went: by stage, and by training, measuring and rest in each notebook.

    python benchmarks/workbook.py [--profile default] [--json PATH]

Reads `timings.csv` and `results.csv` of a finished run (`make workbook`); runs nothing. A stage
done more than once, as after a kill, counts each time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))
from harness import machine, parser, report

from saelib.env import data_dir


def rows_of(timings: pd.DataFrame, notebook_of: pd.Series) -> list[dict]:
    """One row a notebook and stage; "rest" is what a notebook took beyond its stages."""
    timings = timings.assign(notebook=timings["run_id"].map(notebook_of))
    timings.loc[timings["stage"] == "collect", "notebook"] = "01_collect"
    rows = []
    whole = timings[timings["stage"].str.startswith("notebook:")]
    for name, times in whole.groupby(whole["stage"].str.removeprefix("notebook:")):
        parts = (
            timings[timings["notebook"] == name]
            .groupby("stage")["seconds"]
            .agg(["sum", "count", "median"])
        )
        for stage, part in parts.iterrows():
            rows.append(
                {
                    "name": f"{name}: {stage}",
                    "seconds": float(part["sum"]),
                    "times": int(part["count"]),
                }
            )
            rows[-1] |= {"seconds_median": float(part["median"])}
        rest = float(times["seconds"].sum() - parts["sum"].sum())
        rows.append(
            {"name": f"{name}: rest", "seconds": rest, "times": len(times), "seconds_median": None}
        )
    total = sum(row["seconds"] for row in rows)
    rows.append(
        {"name": "all notebooks", "seconds": total, "times": len(whole), "seconds_median": None}
    )
    return [row | {"share": row["seconds"] / total} for row in rows]


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--profile", default="default")
    args = options.parse_args()
    folder = data_dir(args.profile)
    for name in ("timings.csv", "results.csv"):
        if not (folder / name).exists():
            sys.exit(
                f"{folder / name} is missing: run `make workbook PROFILE={args.profile}` first"
            )
    timings, results = (pd.read_csv(folder / name) for name in ("timings.csv", "results.csv"))
    rows = rows_of(timings, results.set_index("run_id")["notebook"])
    report(rows, ("name", "seconds", "times", "seconds_median", "share"), machine("cpu"), args.json)


if __name__ == "__main__":
    main()
