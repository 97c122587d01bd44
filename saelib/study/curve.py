"""Curves of λ or k: SAEs that differ in what sets their L0 alone, compared at one L0.

Choices use validation L0 (`l0_val`); what is compared there was measured on test pages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from saelib.sae.spec import Spec
from saelib.study.estimate import REPLICATES, Estimate, of_pages, undefined
from saelib.study.matched import interpolate_matched_l0, interpolation_error, propose_lambda


@runtime_checkable
class Trains(Protocol):
    """What a study asks of a workspace to train: the real one, or one that only plans."""

    def train(self, specs: Sequence[Spec], notebook: str) -> pd.DataFrame:
        """Rows of `results.csv`, one per spec, in order; what is missing is trained."""

    def pages(self, run: str) -> pd.DataFrame:
        """Sums by test page of the run with this id."""


@dataclass(frozen=True, eq=False)
class Curve:
    """Rows of `results.csv` for one SAE per λ, and where each one's sums by test page come from.

    Where another setting than λ governs L0, as k does, it stands in a column `knob`.
    """

    rows: pd.DataFrame
    pages: Callable[[str], pd.DataFrame]

    @property
    def knob(self) -> pd.Series:
        """The setting that governs L0, row by row."""
        return self.rows["knob" if "knob" in self.rows else "lambda"]

    def bracket(self, l0: float | int) -> list[float]:
        """The λ with validation L0 nearest to `l0` on either side, ascending; empty without both.

        A collapsed SAE, L0 = 0, is no side: there is no logarithm to interpolate from.
        """
        rows = self.rows.assign(knob=self.knob)
        alive = rows[rows["l0_val"] > 0].sort_values("l0_val")
        below = alive[alive["l0_val"] <= l0].tail(1)
        above = alive[alive["l0_val"] >= l0].head(1)
        if not (len(below) and len(above)):
            return []
        return sorted({float(side["knob"].iloc[0]) for side in (below, above)})

    def at_l0(self, l0: float | int, column: str = "fvu") -> float | None:
        """`column` at validation L0 = `l0`, interpolated; None where the curve does not reach it.

        FVU and the setting that governs L0 (λ, or "knob") are interpolated in log-log, any other
        column linearly over log L0.
        """
        log_y = column.startswith("fvu") or column in ("lambda", "knob")
        values = self.knob if column == "knob" else self.rows[column]
        return interpolate_matched_l0(self.rows["l0_val"], values, l0, log_y=log_y)

    def samples_at_l0(self, l0: float | int, column: str = "fvu", n: int = REPLICATES) -> Estimate:
        """`of_pages` at validation L0 = `l0`: every draw is interpolated along the curve.

        Validation L0 are not redrawn. All nan where the curve does not reach.
        """
        sums = [self.pages(run) for run in self.rows["run_id"]]
        return matched(sums, self.rows["l0_val"], l0, column, n)


def matched(
    pages: Sequence[pd.DataFrame],
    l0: Iterable,
    target: float | int,
    column: str = "fvu",
    n: int = REPLICATES,
) -> Estimate:
    """`of_pages` at L0 = target, interpolated draw by draw along SAEs of these page sums and L0.

    Its interval is stretched by `interpolation_error`. All nan where the curve does not reach, as
    one without SAEs does not.
    """
    if not pages:
        return undefined(n)
    measured = [of_pages(sums, column, n) for sums in pages]
    points = np.stack([x.draws for x in measured], axis=1)  # [1 + n, λ]
    log_y = column == "fvu"
    l0 = list(l0)
    values = [interpolate_matched_l0(l0, draw, target, log_y=log_y) for draw in points]
    draws = np.array([np.nan if v is None else v for v in values])
    if not np.isfinite(draws[0]):
        return undefined(n)
    known = [at for at, x in zip(l0, measured, strict=True) if at > 0 and x.defined]
    error = interpolation_error(known, target, column)
    stretch = error * draws[0] if log_y else error
    return Estimate(draws, float(stretch), max(x.heaviest for x in measured))


# (setting, L0) of a curve's points and the L0 to reach -> the setting to train next, if any.
Propose = Callable[[Iterable, float | int], float | int | None]


def proposed_lambda(pairs: Iterable, target: float | int) -> float | None:
    """`propose_lambda` in the four digits with which it is trained."""
    lam = propose_lambda(pairs, target)
    return None if lam is None else float(f"{lam:.4g}")


def reach_l0(
    ws: Trains,
    notebook: str,
    make: Callable[..., Spec],
    lambdas: Mapping[tuple, Sequence[float]],
    target: float | int | Sequence[float | int],
    max_extra: int = 3,
    refine: int = 0,
    propose: Propose = proposed_lambda,
) -> dict[tuple, Curve]:
    """Curves of λ, each with up to `max_extra` more λ until validation L0 brackets `target`.

    lambdas: the λ a curve begins with, by its key; `make(*key, lam)` is the spec of one of its
    SAEs. Curves go outwards together, one λ each per round. A bracketed one gets up to `refine`
    more λ between the two points nearest to the target, while `propose` finds them too far apart.
    Of several targets each has its own budget of λ. With another `propose` the curves are of
    another setting than λ.
    """
    curves: dict[tuple, Curve] = {}
    spent: Counter[Any] = Counter()
    targets = _targets(target)
    wanted = {key: list(lams) for key, lams in lambdas.items()}
    while wanted:
        cells = [(key, lam) for key, lams in wanted.items() for lam in lams]
        new = ws.train([make(*key, lam) for key, lam in cells], notebook)
        new = new.assign(knob=[lam for _, lam in cells])
        keys = [key for key, _ in cells]
        curves |= {key: _longer(curves.get(key), new, keys, key, ws) for key in wanted}
        following = {
            key: _following(curves[key], key, targets, spent, max_extra, refine, propose)
            for key in wanted
        }
        wanted = {key: [value] for key, value in following.items() if value is not None}
    return curves


def _longer(
    curve: Curve | None, new: pd.DataFrame, keys: Sequence[tuple], key: tuple, ws: Trains
) -> Curve:
    """A curve with those rows of `new` whose key is its own."""
    added = new[[k == key for k in keys]]
    if curve is None:
        return Curve(added.reset_index(drop=True), ws.pages)
    return Curve(pd.concat([curve.rows, added], ignore_index=True), ws.pages)


def _following(
    curve: Curve,
    key: tuple,
    targets: Sequence[float | int],
    spent: Counter[Any],
    max_extra: int,
    refine: int,
    propose: Propose,
) -> float | int | None:
    """What to train next of a curve, for the first target that lacks something; None at its end.

    `spent` counts it by curve, target and whether the target is bracketed.
    """
    for target in targets:
        further = propose(zip(curve.knob, curve.rows["l0_val"], strict=True), target)
        reached = len(curve.bracket(target)) > 0
        allowed = refine if reached else max_extra
        if further is not None and spent[key, target, reached] < allowed:
            spent[key, target, reached] += 1
            return further
    return None


def curves_over_seeds(
    ws: Trains,
    notebook: str,
    make: Callable[..., Spec],
    start: Mapping[tuple, Sequence[float]],
    seeds: Sequence[int],
    target: float | int | Sequence[float | int],
    max_extra: int = 3,
    refine: int = 0,
    propose: Propose = proposed_lambda,
) -> dict[tuple[Hashable, ...], Curve]:
    """`reach_l0` of every cell of `start` and seed, by (*cell, seed); `make(*cell, seed, lam)`.

    The first seed's curves begin at the λ of `start`, those of the others at the two λ between
    which the first one's has each `target`, so that all are interpolated over the same stretch
    where possible.
    """
    first = {(*cell, seeds[0]): lams for cell, lams in start.items()}
    curves = reach_l0(ws, notebook, make, first, target, max_extra, refine, propose)
    targets = _targets(target)
    near = {cell: _around(curves[*cell, seeds[0]], targets) or lams for cell, lams in start.items()}
    others = {(*cell, seed): near[cell] for cell in start for seed in seeds[1:]}
    return curves | reach_l0(ws, notebook, make, others, target, max_extra, refine, propose)


def _targets(target: float | int | Sequence[float | int]) -> list[float | int]:
    """One L0 or several, as a list."""
    return [target] if isinstance(target, int | float) else list(target)


def _around(curve: Curve, targets: Sequence[float | int]) -> list[float]:
    """The settings between which a curve has each target, ascending."""
    return sorted({value for l0 in targets for value in curve.bracket(l0)})
