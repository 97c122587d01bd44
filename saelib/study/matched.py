"""Comparing at one L0: interpolation along a curve of λ or k, and the λ or k to train next.

FVU depends on how many latents are active, so two SAEs are compared at equal L0. A curve of λ is
interpolated, never extrapolated; where it misses the target L0, `propose_lambda` extends it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

LAMBDA_BOUNDS = (1e-4, 1e4)  # no λ outside is proposed
LAMBDA_STEP = 4.0  # the longest step past a curve's end, as a factor in λ
LAMBDA_BEYOND = 1.2  # how far past the target's expected place, as a factor in λ
# The second derivative over log L0, of log FVU or of a loss recovered, that interpolation allows
# for. benchmarks/bend.py measures on recorded curves how often it is enough.
BEND = {"fvu": 0.2, "loss_recovered": 0.1, "loss_recovered_mean": 0.1}
K_BEYOND = 1.02  # how far past the k that the target asks for, as a factor
NEAR = 1.1  # an L0 within this factor of the target is near it
SAME_LAMBDA = 1.01  # two λ within this factor are not divided further


def three_digits(lam: float | int) -> float:
    """λ with three significant digits, as it stands in a run's id."""
    return float(f"{lam:.3g}")


def times(lambdas: Iterable[float | int], factor: float | int) -> list[float]:
    """Multiples of λ with three significant digits."""
    return [three_digits(lam * factor) for lam in lambdas]


def interpolate_matched_l0(
    l0: Iterable, y: Iterable, target: float | int, log_y: bool = True
) -> float | None:
    """y at L0 = target, piecewise linear in log L0 and log y (y itself with log_y=False).

    None outside the points. Meant for y = FVU. Points with L0 = 0, y not finite, or y ≤ 0 under
    log_y are left out; the y of equal L0 are averaged.
    """
    l0 = np.asarray(l0, dtype=np.float64)
    y = np.asarray(y, dtype=np.float64)
    keep = (l0 > 0) & np.isfinite(l0) & np.isfinite(y) & ((y > 0) | (not log_y))
    if not keep.any() or not l0[keep].min() <= target <= l0[keep].max():
        return None
    x, where = np.unique(l0[keep], return_inverse=True)
    y = np.log(y[keep]) if log_y else y[keep]
    y = np.bincount(where, weights=y) / np.bincount(where)
    value = np.interp(math.log(target), np.log(x), y)
    return float(np.exp(value) if log_y else value)


def interpolation_error(l0: Iterable, target: float | int, column: str = "fvu") -> float:
    """How far the curve through these L0 > 0 may lie from its chord at L0 = target.

    b (x − x₀)(x₁ − x) / 2, with x = log L0 between its neighbours x₀ and x₁ on the curve: the most
    that a second derivative of at most b, `BEND`, can do. Of log FVU, or of a loss recovered. 0 at
    a point of the curve; nan outside of it. Raises `KeyError` for another column.
    """
    bend = BEND[column]
    x = np.sort(np.log(np.asarray(l0, dtype=np.float64)))
    at = math.log(target)
    if not len(x) or not x[0] <= at <= x[-1]:
        return math.nan
    below = x[x <= at].max()
    above = x[x >= at].min()
    return float(bend * (at - below) * (above - at) / 2)


def propose_lambda(
    pairs: Iterable, target: float | int, max_ratio: float | int = 2.0
) -> float | None:
    """The next λ to train so that L0 = target lies between two trained points; None without one.

    pairs of (λ > 0, L0). Where the target is bracketed: the middle, in log λ, of the two points
    nearest in L0, or None when their L0, both above 0, are within a factor `max_ratio` (with inf,
    always) or their λ within 1 %. Where it is not: outwards from the end of the curve, by
    `_outwards`, held to `LAMBDA_BOUNDS`, or None when that bound was tried.
    """
    pairs = sorted((float(lam), float(l0)) for lam, l0 in pairs if lam > 0 and math.isfinite(l0))
    if not pairs:
        raise ValueError("propose_lambda needs at least one pair of λ > 0 and a finite L0")
    # of equal L0, the λ nearest the gap
    above = min(((l0, -lam) for lam, l0 in pairs if l0 >= target), default=None)
    below = max(((l0, -lam) for lam, l0 in pairs if l0 <= target), default=None)
    if above is None:
        return _smaller(pairs, target)
    if below is None:
        return _larger(pairs, target)
    close = below[0] > 0 and above[0] <= max_ratio * below[0]
    low, high = sorted((-above[1], -below[1]))
    return None if close or high <= SAME_LAMBDA * low else math.sqrt(low * high)


def propose_k(pairs: Iterable, target: float | int, n_latents: int) -> int | None:
    """The next k to train where k sets the L0, nearly: L0 falls short of k where fewer codes are
    positive, or a threshold of training lets fewer through.

    pairs of (k, L0). Where the target lies between two of them: by interpolation between the two
    nearest in L0, or None where one is near the target, or no further k lies between. Where it does
    not: outwards, or None where no k is left on that side.
    """
    pairs = sorted((int(k), float(l0)) for k, l0 in pairs if math.isfinite(l0))
    tried = {k for k, _ in pairs}
    proposed = _proposed_k(pairs, target, n_latents)
    return None if proposed in tried else proposed


def _proposed_k(pairs: list[tuple[int, float]], target: float | int, n_latents: int) -> int | None:
    """What `propose_k` gives, be it tried already or not."""
    pairs = [(k, l0) for k, l0 in pairs if l0 > 0] or pairs  # at 0 a curve has no point
    if not pairs:
        raise ValueError("propose_k needs at least one pair of k and a finite L0")
    values = [l0 for _, l0 in pairs]
    if max(values) < target:
        k, l0 = pairs[-1]
        wanted = max(k + 1, math.ceil(K_BEYOND * k * target / max(l0, 1.0)))
        return min(wanted, n_latents) if k < n_latents else None
    if min(values) > target:
        k, l0 = pairs[0]
        return max(1, min(k - 1, math.floor(k * target / l0 / K_BEYOND))) if k > 1 else None
    return _between(pairs, target)


def is_near(l0: float | int, target: float | int) -> bool:
    """Whether an L0 is within a factor `NEAR` of the target > 0."""
    return bool(target / NEAR <= l0 <= target * NEAR)


def _between(pairs: Sequence[tuple[int, float]], target: float | int) -> int | None:
    """A k between the two whose L0 are the nearest on either side of the target; None without."""
    # of equal L0, the k nearest the gap
    below_l0, below_k = max((l0, k) for k, l0 in pairs if l0 <= target)
    above_l0, above_k = min((l0, k) for k, l0 in pairs if l0 >= target)
    low, high = sorted((below_k, above_k))
    if is_near(below_l0, target) or is_near(above_l0, target) or high - low < 2:
        return None
    share = math.log(target / below_l0) / math.log(above_l0 / below_l0)
    k = round(below_k * (above_k / below_k) ** share)
    return min(max(k, low + 1), high - 1)


def _smaller(pairs: Sequence[tuple[float, float]], target: float | int) -> float | None:
    """A λ below the smallest, where every point is too sparse."""
    least = pairs[0][0]
    lowest = LAMBDA_BOUNDS[0]
    return max(least / _outwards(pairs, target), lowest) if least > lowest else None


def _larger(pairs: Sequence[tuple[float, float]], target: float | int) -> float | None:
    """A λ above the largest, where no point is sparse enough."""
    greatest = pairs[-1][0]
    highest = LAMBDA_BOUNDS[1]
    return min(greatest * _outwards(pairs[::-1], target), highest) if greatest < highest else None


def _outwards(pairs: Sequence[tuple[float, float]], target: float | int) -> float:
    """The factor in λ by which to go past the end `pairs[0]` of a curve of (λ, L0).

    To where the line through the last two points, log L0 over log λ, has `target`, and by
    `LAMBDA_BEYOND` further; at most `LAMBDA_STEP`, which is also the answer without such a line.
    """
    lam, l0 = pairs[0]
    next_lam, next_l0 = pairs[min(1, len(pairs) - 1)]
    if lam == next_lam or min(l0, next_l0) <= 0 or (l0 - next_l0) * (lam - next_lam) >= 0:
        return LAMBDA_STEP
    slope = math.log(l0 / next_l0) / math.log(lam / next_lam)
    # a slope near 0 leads beyond any float
    distance = min(abs(math.log(target / l0) / slope), math.log(LAMBDA_STEP))
    return min(LAMBDA_BEYOND * math.exp(distance), LAMBDA_STEP)
