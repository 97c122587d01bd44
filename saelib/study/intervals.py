"""Estimates kept in front of their bootstrap replicates, so that ratios, differences and means carry both along.

An array [draws] = [1 + n] holds the estimate, then n replicates. Test pages are drawn the same way for every SAE
measured on them, so that two SAEs stay paired; `over_seeds` adds the spread over training seeds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64

from saelib.measure.bootstrap import interval_of, page_replicates, student_975
from saelib.study.matched import interpolate_matched_l0

REPLICATES = 1000
NORMAL_975 = 1.959964
RECOVERED = {
    "loss_recovered": "ce_zero",
    "loss_recovered_mean": "ce_mean",
}  # of the loss that this ablation costs


def ratio(num: Iterable, den: Iterable, n: int = REPLICATES) -> Float64[np.ndarray, " draws"]:
    """Σnum / Σden over test pages, one value a page, and its replicates under redrawn pages."""
    num, den = np.asarray(num, dtype=np.float64), np.asarray(den, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):  # no pages, or none with a loss: nan
        return np.r_[num.sum() / den.sum(), page_replicates(num, den, n)]


def samples(
    pages: pd.DataFrame, column: str = "fvu", n: int = REPLICATES
) -> Float64[np.ndarray, " draws"]:
    """`column` ("fvu" or one of `RECOVERED`) of one SAE, from its sums by test page (`Workspace.pages`)."""
    if column != "fvu" and column not in RECOVERED:
        raise ValueError(f"column = {column!r}: expected 'fvu', {', '.join(map(repr, RECOVERED))}")
    if column == "fvu":
        return ratio(pages["sse"], pages["sst"], n)
    p = pages[pages["ce_n"] > 0]  # pages with a context whose loss was measured
    ablated = p[RECOVERED[column]]
    return ratio(ablated - p["ce_sae"], ablated - p["ce_id"], n)


def matched(
    curve: Sequence[pd.DataFrame],
    l0: Iterable,
    target: float | int,
    column: str = "fvu",
    n: int = REPLICATES,
) -> Float64[np.ndarray, " draws"]:
    """`samples` at validation L0 = target: every replicate is interpolated along the curve of λ.

    curve: page sums of one SAE a λ; l0: their validation L0, not redrawn. All nan where the curve does not reach.
    """
    l0 = list(l0)
    points = np.stack([samples(pages, column, n) for pages in curve], axis=1)  # [1 + n, λ]
    values = (interpolate_matched_l0(l0, row, target, log_y=column == "fvu") for row in points)
    return np.array([np.nan if v is None else v for v in values])


def over_seeds(per_seed: Iterable, seed: int = 0) -> Float64[np.ndarray, " draws"]:
    """Mean over training seeds of arrays [1 + n]; each replicate adds a draw of the seeds' spread to that of the pages.

    The spread is normal with the standard error of the mean, widened by Student's quantile over the normal one, so that
    without spread over pages the interval of `summary` is Student's. It is the same linear form of the estimates for
    every cell with as many seeds: ratios and differences of cells trained with the same seeds stay paired. With one
    seed there is no such spread, and the interval is of pages alone.
    """
    x = np.stack([np.asarray(v, dtype=np.float64) for v in per_seed])
    n, away = len(x), x[:, 0] - x[:, 0].mean()
    out = x.mean(axis=0)
    if n > 1:
        widen = student_975(n - 1) / NORMAL_975 / (n * (n - 1)) ** 0.5
        out[1:] += widen * (
            away @ np.random.default_rng([seed, 1]).normal(size=(n, x.shape[1] - 1))
        )
    return out


def summary(x: Float[np.ndarray, " draws"]) -> dict[str, float]:
    """value, and lo and hi of the 95 % percentile interval; all nan where the estimate is."""
    lo, hi = interval_of(x[1:]) if np.isfinite(x[0]) else (np.nan, np.nan)
    return {"value": float(x[0]), "lo": lo, "hi": hi}


def words(x: Float[np.ndarray, " draws"], reference: float | int, margin: float) -> str:
    """How x lies about reference ± margin by its interval.

    "lower", "higher" or "equal": the interval lies below, above, or inside the band; "not higher", "not lower": it
    leaves the band on one side only; "unclear": on both, or there is no interval; "unreachable": there is no estimate.
    """
    s, low, high = summary(x), reference - margin, reference + margin
    if np.isnan(s["value"]):
        return "unreachable"
    if np.isnan(s["lo"]):
        return "unclear"
    if s["hi"] < low or s["lo"] > high:
        return "lower" if s["hi"] < low else "higher"
    below, above = s["lo"] < low, s["hi"] > high
    return {(0, 0): "equal", (1, 0): "not higher", (0, 1): "not lower", (1, 1): "unclear"}[
        below, above
    ]


def majority(found: Sequence[str], yes: Collection[str], no: Collection[str]) -> str:
    """A verdict: "replicates" where most of `found` are in `yes`, "does not replicate" where most are in `no`."""
    counts = (sum(word in kind for word in found) for kind in (yes, no))
    for_it, against = (2 * count > len(found) for count in counts)
    return "replicates" if for_it else "does not replicate" if against else "cannot tell"
