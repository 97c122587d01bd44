"""Intervals of what is measured: over test pages drawn anew, and over training seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float64, Int64

REPLICATES = 1000  # draws of the pages
SHARES = [0.025, 0.975]  # of the replicates that lie below the two ends of a 95 % interval
# 97.5 % quantiles of Student's t for 1 .. 30 degrees of freedom
T_975 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


def page_draws(
    n_pages: int, n: int = REPLICATES, seed: int = 0
) -> Int64[np.ndarray, "draws n_pages"]:
    """How often each page comes in each of `n` draws of `n_pages` with replacement."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_pages, np.full(n_pages, 1 / n_pages), size=n)


def page_replicates(
    num: Iterable, den: Iterable, n: int = REPLICATES, seed: int = 0
) -> Float64[np.ndarray, " n"]:
    """Σnum / Σden over pages drawn with replacement, `n` times.

    num and den hold one value per page. The same seed and number of pages draw the same pages, so
    that the replicates of two SAEs on the same pages are paired. All nan below two pages, which say
    nothing of a spread. Raises `ValueError` where num and den differ in shape.
    """
    num = np.asarray(num, dtype=np.float64)
    den = np.asarray(den, dtype=np.float64)
    if num.shape != den.shape or num.ndim != 1:
        raise ValueError(
            f"num has shape {num.shape}, den {den.shape}: expected one value per page in both"
        )
    pages = len(num)
    if pages < 2:
        return np.full(n, np.nan)
    times = page_draws(pages, n, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (times @ num) / (times @ den)


def bootstrap_pages(
    num: Iterable, den: Iterable, n: int = REPLICATES, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of Σnum / Σden over redrawn pages; (nan, nan) below two pages.

    FVU: num = sse, den = sst. Loss recovered: num = ce_zero − ce_sae, den = ce_zero − ce_id.
    """
    return interval_of(page_replicates(num, den, n, seed))


def interval_of(replicates: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of the replicates that have a value; (nan, nan) if none has.

    A draw of pages without variance has none.
    """
    defined = replicates[np.isfinite(replicates)]
    if not len(defined):
        return math.nan, math.nan
    low, high = np.quantile(defined, SHARES)
    return float(low), float(high)


def student_975(df: int) -> float:
    """97.5 % quantile of Student's t with `df` degrees of freedom, 1 or more."""
    return T_975[df - 1] if df <= len(T_975) else 1.96


def seed_interval(values: Iterable) -> tuple[float, float]:
    """95 % Student-t interval of the mean over seeds: mean ± t s / √n; (nan, nan) below two."""
    v = np.asarray(values, dtype=np.float64)
    if v.size < 2:
        return math.nan, math.nan
    half = student_975(v.size - 1) * v.std(ddof=1) / math.sqrt(v.size)
    return float(v.mean() - half), float(v.mean() + half)
