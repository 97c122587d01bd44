"""What `quality.py` reports: ours over the best peer at equal L0, and how often not worse.

A curve is a list of its rows, one trained SAE each; a row's "knob" is what set its L0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from systems import SYSTEMS, is_ours, peers_of

from saelib.study.curve import matched
from saelib.study.estimate import Estimate, over_seeds
from saelib.study.matched import interpolate_matched_l0

Row = dict[str, Any]
Job = tuple[str, int, int]  # system, site, seed

BETTER = {"fvu": min, "loss_recovered": max}
COLUMNS = ("system", "site", "l0", "seeds", "lr", "fvu", "loss_recovered", "dead_fraction")
COLUMNS += ("peers_reached",)
COLUMNS += tuple(f"{column}_{part}" for column in BETTER for part in ("over_best", "lo", "hi"))
WORSE = {"at_most_0": 0.0, "at_most_2_percent": 0.02}  # bounds on ours / best peer − 1
CELLS = ("system", "cells", "of", *WORSE)


def at(rows: Sequence[Row], target: float, column: str) -> float | None:
    """`column` where a curve has validation L0 = target; None where it does not reach it."""
    l0, y = ([row[k] for row in rows] for k in ("l0_val", column))
    return interpolate_matched_l0(l0, y, target, log_y=column.startswith("fvu"))


def summarised(curves: Mapping[Job, list[Row]], lrs: Mapping[str, float], args: Any) -> list[Row]:
    """One row a system, site and target; of systems whose curves of all seeds are finished."""
    out = []
    for site in dict.fromkeys(site for _, site, _ in curves):
        finished = {
            system: [curves[system, site, seed] for seed in args.seeds]
            for system in args.systems
            if all((system, site, seed) in curves for seed in args.seeds)
        }
        for target in args.targets:
            out += _cell(finished, lrs, args.systems, site, target)
    return out


def _cell(
    finished: Mapping[str, list[list[Row]]],
    lrs: Mapping[str, float],
    asked: list[str],
    site: int,
    target: float,
) -> list[Row]:
    """The rows of one site and target."""
    rows, estimates = {}, {}
    for system, mine in finished.items():
        row = {"system": system, "site": site, "l0": target, "seeds": len(mine), "lr": lrs[system]}
        for column in (*BETTER, "dead_fraction"):
            row[column] = _mean(mine, target, column)
        for column in BETTER:
            estimates[system, column] = _estimate(mine, target, column)
        rows[system] = row
    for system, row in rows.items():
        if is_ours(system):
            row |= _against_peers(row, rows, estimates, peers_of(system, asked))
    return list(rows.values())


def _mean(curves: list[list[Row]], target: float, column: str) -> float | None:
    values = [at(rows, target, column) for rows in curves]
    return None if None in values else float(np.mean(values))


def _estimate(curves: list[list[Row]], target: float, column: str) -> Estimate:
    """`column` at L0 = target, over test pages and seeds."""
    per_seed = []
    for rows in curves:
        pages = [pd.DataFrame(row["pages"]) for row in rows]
        per_seed.append(matched(pages, [row["l0_val"] for row in rows], target, column))
    return over_seeds(per_seed)


def _against_peers(
    row: Row, rows: Mapping[str, Row], estimates: Mapping[tuple, Estimate], peers: list[str]
) -> Row:
    """Ours over the best peer's of the same architecture, less 1, with its interval.

    Of the peers that reach the target, and `peers_reached` says how many of them do. Without the
    comparison where ours does not reach it or a peer is not finished.
    """
    if not peers or any(name not in rows for name in peers):
        return {}
    reached = [rows[name] for name in peers if rows[name]["fvu"] is not None]
    found = {"peers_reached": f"{len(reached)} of {len(peers)}"}
    if not reached or row["fvu"] is None:
        return found
    for column, best_of in BETTER.items():
        best = best_of(reached, key=lambda r: r[column])
        mine, theirs = (estimates[name, column] for name in (row["system"], best["system"]))
        over_best = mine / theirs - 1
        found |= {
            f"{column}_best_peer": best["system"],
            f"{column}_over_best": over_best.value,
            f"{column}_lo": over_best.lo,
            f"{column}_hi": over_best.hi,
        }
    return found


def cells(rows: Sequence[Row]) -> list[Row]:
    """For each of ours, in how many cells (site × L0) FVU is at most so much above the best peer's.

    By the upper end of the 95 % interval. `cells` are those with a comparison, `of` all of them;
    empty for a system that has no comparison at all.
    """
    out = []
    for system in dict.fromkeys(row["system"] for row in rows):
        mine = [row for row in rows if row["system"] == system]
        bounds = [row["fvu_hi"] for row in mine if "fvu_hi" in row]
        if bounds:
            counts = {name: sum(hi <= most for hi in bounds) for name, most in WORSE.items()}
            out.append({"system": system, "cells": len(bounds), "of": len(mine)} | counts)
    return out


def settings_at(rows: Sequence[Row], targets: Sequence[float], system: str) -> list[float]:
    """The values of the knob with which a later seed begins, read off the first seed's curve."""
    if SYSTEMS[system].rises:
        return around(rows, targets)
    return lambdas_at(rows, targets)


def around(rows: Sequence[Row], targets: Sequence[float]) -> list[float]:
    """The settings next to each target on either side, rising."""
    near = set()
    for target in targets:
        below = [row for row in rows if row["l0_val"] <= target]
        above = [row for row in rows if row["l0_val"] >= target]
        near |= {max(below, key=lambda r: r["l0_val"])["knob"]} if below else set()
        near |= {min(above, key=lambda r: r["l0_val"])["knob"]} if above else set()
    return sorted(near)


def lambdas_at(rows: Sequence[Row], targets: Sequence[float]) -> list[float]:
    """λ a little outside the first and last target, and λ at those between.

    They are read off a curve, at its ends where it stops.
    """
    low, *between, high = sorted(targets) if len(targets) > 1 else [*targets] * 2
    rows = sorted(rows, key=lambda row: row["l0_val"])
    l0, lams = ([row[k] for row in rows] for k in ("l0_val", "knob"))
    wanted = [
        interpolate_matched_l0(l0, lams, value) for value in (0.9 * low, *between, 1.12 * high)
    ]
    ends = [wanted[0] or lams[0], *(lam for lam in wanted[1:-1] if lam), wanted[-1] or lams[-1]]
    return [float(f"{lam:.3g}") for lam in ends]
