"""Intervals of what is measured: over test pages drawn anew, and over training seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int64

REPLICATES = 1000  # draws of the pages
LEAST_PAGES = 5  # test pages below which there is no interval
LEAST_WEIGHT = 2.0  # equal pages that any pages count for, were one of them nearly all there is
SHARES = [0.025, 0.975]  # of the replicates that lie below the two ends of a 95 % interval
NORMAL_975 = 1.959964
# 97.5 % quantiles of Student's t for 1 .. 30 degrees of freedom
T_975 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


@lru_cache(maxsize=2)  # pages with an error, and those with a loss; 160 MB for 20,000 pages
def page_draws(
    n_pages: int, n: int = REPLICATES, seed: int = 0
) -> Int64[np.ndarray, "draws n_pages"]:
    """How often each page comes in each of `n` draws of `n_pages` with replacement; read-only."""
    rng = np.random.default_rng(seed)
    times = rng.multinomial(n_pages, np.full(n_pages, 1 / n_pages), size=n)
    times.setflags(write=False)  # one array for all who ask
    return times


def effective_pages(weights: Iterable) -> float:
    """How many equal pages weigh as much as these: (Σw)² / Σw², nan where nothing weighs."""
    w = np.abs(np.asarray(weights, dtype=np.float64))
    total = (w**2).sum()
    return float(w.sum() ** 2 / total) if total > 0 else math.nan


def heaviest_share(values: Iterable) -> float:
    """The largest share that one page has of a sum, 0 where the sum is; signs do not count."""
    v = np.abs(np.asarray(values, dtype=np.float64))
    return float(v.max() / v.sum()) if v.sum() > 0 else 0.0


def widening(weights: Iterable) -> float:
    """By how much replicates move off their estimate, so that few pages are not too sure.

    √(n / (n − 1)) times Student's quantile over the normal one, as the expanded percentile interval
    has it (Hesterberg, 2015): drawn pages spread less than pages do, and few tell less of it. n is
    the `effective_pages` of what each page adds to the denominator, `LEAST_WEIGHT` or more: where
    few pages are most of the text, the others add little. nan below `LEAST_PAGES` pages.
    """
    weights = np.asarray(weights, dtype=np.float64)
    n = effective_pages(weights)
    if len(weights) < LEAST_PAGES or math.isnan(n):
        return math.nan
    n = max(n, LEAST_WEIGHT)
    return math.sqrt(n / (n - 1)) * student_975(n - 1) / NORMAL_975


def page_replicates(
    num: Iterable, den: Iterable, n: int = REPLICATES, seed: int = 0, signed: bool = False
) -> Float64[np.ndarray, " n"]:
    """Σnum / Σden over pages drawn with replacement, `n` times, spread by `widening`.

    num and den hold one value per page. The same seed and number of pages draw the same pages, so
    that the replicates of two SAEs on the same pages are paired. They spread in the logarithm, so
    that no ratio of sums of squares gets below 0; as they stand where pages are `signed`, as
    differences of losses are. All nan below `LEAST_PAGES` pages, which say little of a spread.
    Raises `ValueError` where num and den differ in shape, or have a negative value unsigned.
    """
    num = np.asarray(num, dtype=np.float64)
    den = np.asarray(den, dtype=np.float64)
    if num.shape != den.shape or num.ndim != 1:
        raise ValueError(
            f"num has shape {num.shape}, den {den.shape}: expected one value per page in both"
        )
    least = min(num.min(initial=0), den.min(initial=0))
    if least < 0 and not signed:
        raise ValueError(f"a page has {least:g}: expected 0 or more, or signed=True")
    factor = widening(den)
    if math.isnan(factor):
        return np.full(n, np.nan)
    times = page_draws(len(num), n, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = num.sum() / den.sum()
        drawn = (times @ num) / (times @ den)
        if ratio > 0 and not signed:
            return ratio * (drawn / ratio) ** factor
        return ratio + factor * (drawn - ratio)


def bootstrap_pages(
    num: Iterable, den: Iterable, n: int = REPLICATES, seed: int = 0, signed: bool = False
) -> tuple[float, float]:
    """95 % interval of Σnum / Σden over redrawn pages; (nan, nan) below `LEAST_PAGES` pages.

    FVU: num = sse, den = sst. Loss recovered, signed: num = ce_zero − ce_sae,
    den = ce_zero − ce_id. Raises as `page_replicates`.
    """
    return interval_of(page_replicates(num, den, n, seed, signed))


def interval_of(replicates: np.ndarray) -> tuple[float, float]:
    """Ends that hold the middle 95 % of the replicates with a value; (nan, nan) if none has one.

    A draw of pages without variance has none.
    """
    defined = replicates[np.isfinite(replicates)]
    if not len(defined):
        return math.nan, math.nan
    low, high = np.quantile(defined, SHARES)
    return float(low), float(high)


def student_975(df: float | int) -> float:
    """97.5 % quantile of Student's t with `df` degrees of freedom, 1 or more.

    Between two of `T_975`, and past its end, on the straight line over 1 / df: within 0.004 of
    the quantile from 4 degrees of freedom on, above it below that.
    """
    steps = 1 / np.arange(len(T_975), 0, -1)
    return float(np.interp(1 / df, np.r_[0.0, steps], np.r_[NORMAL_975, T_975[::-1]]))


def seed_interval(values: Iterable) -> tuple[float, float]:
    """95 % Student-t interval of the mean over seeds: mean ± t s / √n; (nan, nan) below two."""
    v = np.asarray(values, dtype=np.float64)
    if v.size < 2:
        return math.nan, math.nan
    half = student_975(v.size - 1) * v.std(ddof=1) / math.sqrt(v.size)
    return float(v.mean() - half), float(v.mean() + half)
