"""How far interpolation along recorded curves of λ is off, and how often its bound is enough.

    python benchmarks/bend.py [--json PATH] [--profile full]

Of every three points of a curve in `data/recorded/<profile>/results.csv` the inner one is left out
and interpolated from the other two, whose L0 lie a factor 1.4 to 9 apart. A curve has SAEs that
differ in λ alone. Pairs are curves of two architectures, or of two sites, alike in all else: both
are interpolated at one L0 between far points and between the nearest ones, and the error is of the
logarithm of their ratio.

holds      share of the errors within `matched.interpolation_error`: of a pair within the larger one
bent       the second derivative over log L0 that would explain the error: its 5, 50 and 95 %
error      median, and 95 %, of the error's size
bound      median of the bound
parabola   share of the errors within what a parabola through a further point says instead
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))
from harness import machine, parser, report

from saelib.env import data_dir
from saelib.study.matched import BEND, interpolation_error

RECIPE = ["arch", "loss", "site", "normalize", "tokens_mask", "schedule", "lr", "resample", "seed"]
RECIPE += ["n_latents", "tokens_trained", "l1_mode", "b_dec_init", "batch_size", "warmup"]
ARM = ("arch", "loss")
APART = (1.4, 9.0)  # L0 of the outer points, as a factor
L0 = (8, 128)  # of the inner point
TARGETS = (12, 16, 24, 32, 48, 64)  # L0 at which pairs are compared
CLOSER = 0.4  # the nearest points' bound over the far ones', at most, where they judge these
COLUMNS = ("name", "column", "n", "holds", "bent_5", "bent_50", "bent_95", "error_50", "error_95")
COLUMNS += ("bound_50", "parabola")


class Points(NamedTuple):
    """A curve: log L0 ascending, and log FVU or a loss recovered."""

    x: np.ndarray
    y: np.ndarray

    def chord(self, i: int, j: int, at: float) -> float:
        """Between points i and j."""
        return float(np.interp(at, self.x[[i, j]], self.y[[i, j]]))


def curves(results: pd.DataFrame, column: str) -> dict[tuple, Points]:
    """The curves of three points or more, by what their SAEs have in common."""
    kept = results[(results["l0_val"] > 1) & results[column].notna()].sort_values("l0_val")
    by_recipe = {}
    for recipe, rows in kept.groupby(RECIPE, dropna=False):
        rows = rows.drop_duplicates("lambda").drop_duplicates("l0_val")
        if len(rows) >= 3:
            y = rows[column].to_numpy()
            y = np.log(y) if column == "fvu" else y
            by_recipe[tuple(recipe)] = Points(np.log(rows["l0_val"].to_numpy()), y)
    return by_recipe


def far_apart(x: np.ndarray, i: int, j: int) -> bool:
    low, high = np.log(APART)
    return bool(low <= x[j] - x[i] <= high)


def left_out(curve: Points, column: str) -> Iterator[dict[str, float]]:
    """The error at every point between two others."""
    for i, k, j in itertools.combinations(range(len(curve.x)), 3):
        at = curve.x[k]
        if not far_apart(curve.x, i, j) or not L0[0] <= math.exp(at) <= L0[1]:
            continue
        error = curve.y[k] - curve.chord(i, j, at)
        bound = interpolation_error(np.exp(curve.x[[i, j]]), math.exp(at), column)
        yield {"error": error, "bound": bound, "parabola": parabola(curve, i, j, at, k)}


def parabola(curve: Points, i: int, j: int, at: float, hidden: int) -> float:
    """The most that a parabola through i, j and a point outside says the chord is off, or nan."""
    further = [m for m in range(len(curve.x)) if (m < i or m > j) and m != hidden]
    off = [np.nan]
    for m in further:
        beyond = curve.y[m] - np.polyval(
            np.polyfit(curve.x[[i, j]], curve.y[[i, j]], 1), curve.x[m]
        )
        bend = beyond / ((curve.x[m] - curve.x[i]) * (curve.x[m] - curve.x[j]))
        off.append(abs(bend * (at - curve.x[i]) * (at - curve.x[j])))
    return float(np.nanmax(off)) if further else math.nan


def far_and_near(curve: Points, target: float, column: str) -> Iterator[tuple[float, float]]:
    """Error and bound of far points at L0 = target, judged by the nearest ones."""
    at = math.log(target)
    above = int(np.searchsorted(curve.x, at))
    if not 0 < above < len(curve.x):
        return
    nearest = curve.chord(above - 1, above, at)
    near = interpolation_error(np.exp(curve.x), target, column)
    for i, j in itertools.product(range(above), range(above, len(curve.x))):
        bound = interpolation_error(np.exp(curve.x[[i, j]]), target, column)
        if far_apart(curve.x, i, j) and near <= CLOSER * bound:
            yield nearest - curve.chord(i, j, at), bound


def compared(
    by_recipe: dict[tuple, Points], differing: tuple[str, ...], column: str
) -> Iterator[dict[str, float]]:
    """Errors of ratios between curves that differ in these fields alone."""
    places = [RECIPE.index(name) for name in differing]
    others = [i for i in range(len(RECIPE)) if i not in places]
    for a, b in itertools.combinations(by_recipe, 2):
        # as text, since an empty field is nan, which equals nothing
        if any(str(a[i]) != str(b[i]) for i in others):
            continue
        for target in TARGETS:
            ends = (far_and_near(by_recipe[key], target, column) for key in (a, b))
            for (first, of_first), (second, of_second) in itertools.product(*ends):
                yield {"error": first - second, "bound": max(of_first, of_second)}


def row(name: str, column: str, errors: pd.DataFrame) -> dict[str, Any]:
    size = errors["error"].abs()
    out = {"name": name, "column": column, "n": len(errors), "bend": BEND[column]}
    out["holds"] = float((size <= errors["bound"]).mean())
    bent = BEND[column] * errors["error"] / errors["bound"]
    out |= {f"bent_{q}": float(bent.quantile(q / 100)) for q in (5, 50, 95)}
    out |= {f"error_{q}": float(size.quantile(q / 100)) for q in (50, 95)}
    out["bound_50"] = float(errors["bound"].median())
    told = errors[errors["parabola"].notna()] if "parabola" in errors else errors.iloc[:0]
    if len(told):
        out["parabola"] = float((told["error"].abs() <= told["parabola"]).mean())
    return out


def main() -> None:
    options = parser(__doc__, timed=False)
    options.add_argument("--profile", default="full", help="of data/recorded")
    args = options.parse_args()
    results = pd.read_csv(data_dir("recorded") / args.profile / "results.csv")
    rows = []
    for column in BEND:
        by_recipe = curves(results, column)
        single = [error for curve in by_recipe.values() for error in left_out(curve, column)]
        found = {"a point left out": single}
        if column == "fvu":
            falling = [curve for curve in by_recipe.values() if (np.diff(curve.y) < 0).all()]
            of_falling = [error for curve in falling for error in left_out(curve, column)]
            found["the same, FVU falls throughout"] = of_falling
            found["ratio of architectures"] = list(compared(by_recipe, ARM, column))
            found["ratio of sites"] = list(compared(by_recipe, ("site",), column))
        rows += [row(name, column, pd.DataFrame(x)) for name, x in found.items() if x]
    report(rows, COLUMNS, machine("cpu"), args.json)


if __name__ == "__main__":
    main()
