"""Curves of λ at matched L0, and the names that other modules of this folder had when they were here.

It goes when its users have switched to `study.matched`, `reconstruction`, `replaced_loss`,
`bootstrap` and `gates`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from saelib.measure.bootstrap import (
    bootstrap_pages,
    interval_of,
    page_replicates,
    seed_interval,
    student_975,
)
from saelib.measure.gates import gini
from saelib.measure.reconstruction import CodeSums, Reconstruction, RowSums, fvu
from saelib.measure.replaced_loss import loss_recovered, next_token_losses, next_token_probs

__all__ = [
    "CodeSums",
    "Reconstruction",
    "RowSums",
    "bootstrap_pages",
    "fvu",
    "gini",
    "interpolate_matched_l0",
    "interval_of",
    "loss_recovered",
    "next_token_losses",
    "next_token_probs",
    "page_replicates",
    "propose_lambda",
    "seed_interval",
    "student_975",
]
LAMBDA_BOUNDS = (1e-4, 1e4)  # no λ outside is proposed
LAMBDA_STEP = 4.0  # the longest step past a curve's end, a factor in λ
LAMBDA_BEYOND = 1.2  # how far past the target a step aims, a factor in λ


def interpolate_matched_l0(
    l0: Iterable, y: Iterable, target: float | int, log_y: bool = True
) -> float | None:
    """y at L0 = target, piecewise linear in log L0 and log y (y itself with log_y=False); None outside the points.

    Meant for y = FVU. Points with L0 = 0, y not finite, or y ≤ 0 under log_y are left out; equal L0 are averaged.
    """
    l0, y = np.asarray(l0, dtype=np.float64), np.asarray(y, dtype=np.float64)
    keep = (l0 > 0) & np.isfinite(l0) & np.isfinite(y) & ((y > 0) | (not log_y))
    if not keep.any() or not l0[keep].min() <= target <= l0[keep].max():
        return None
    x, where = np.unique(l0[keep], return_inverse=True)
    y = np.log(y[keep]) if log_y else y[keep]
    y = np.bincount(where, weights=y) / np.bincount(where)
    value = np.interp(math.log(target), np.log(x), y)
    return float(np.exp(value) if log_y else value)


def propose_lambda(
    pairs: Iterable, target: float | int, max_ratio: float | int = 2.0
) -> float | None:
    """The next λ to train so that L0 = target lies between two trained points; None where there is none to try.

    pairs of (λ > 0, L0). Where the target is bracketed: the middle, in log λ, of the two points nearest in L0, or None
    when their L0, both above 0, are within a factor `max_ratio` (with inf, always) or their λ within 1 %. Where it is
    not: outwards from the end of the curve, by `_outwards`, held to `LAMBDA_BOUNDS`, or None when that bound was tried.
    """
    pairs = sorted((float(lam), float(l0)) for lam, l0 in pairs if lam > 0 and math.isfinite(l0))
    if not pairs:
        raise ValueError("propose_lambda needs at least one pair of λ > 0 and a finite L0")
    above = min(
        ((l0, -lam) for lam, l0 in pairs if l0 >= target), default=None
    )  # of equal L0 the λ nearest the gap
    below = max(((l0, -lam) for lam, l0 in pairs if l0 <= target), default=None)
    lowest, highest = LAMBDA_BOUNDS
    if above is None:  # too sparse everywhere
        least = pairs[0][0]
        return max(least / _outwards(pairs, target), lowest) if least > lowest else None
    if below is None:
        greatest = pairs[-1][0]
        return (
            min(greatest * _outwards(pairs[::-1], target), highest) if greatest < highest else None
        )
    close = below[0] > 0 and above[0] <= max_ratio * below[0]
    low, high = sorted((-above[1], -below[1]))
    return None if close or high <= 1.01 * low else math.sqrt(low * high)


def _outwards(pairs: Sequence[tuple[float, float]], target: float | int) -> float:
    """The factor in λ by which to go past the end `pairs[0]` of a curve of (λ, L0).

    To where the line through the last two points, log L0 over log λ, has `target`, and by `LAMBDA_BEYOND` further; at
    most `LAMBDA_STEP`, which is also the answer where there is no such line.
    """
    (lam, l0), (lam_1, l0_1) = pairs[0], pairs[min(1, len(pairs) - 1)]
    if lam == lam_1 or min(l0, l0_1) <= 0 or (l0 - l0_1) * (lam - lam_1) >= 0:
        return LAMBDA_STEP
    slope = math.log(l0 / l0_1) / math.log(lam / lam_1)
    away = min(
        abs(math.log(target / l0) / slope), math.log(LAMBDA_STEP)
    )  # a slope near 0 leads beyond any float
    return min(LAMBDA_BEYOND * math.exp(away), LAMBDA_STEP)
