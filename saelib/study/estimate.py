"""An estimate before its bootstrap replicates: ratios, differences and means carry both.

`draws` [1 + n] holds the estimate, then n replicates. Test pages are redrawn the same way for every
SAE measured on them, so that two SAEs stay paired; `over_seeds` adds the spread over training
seeds. What no draw of pages or seeds tells, how far a value read between two points of a curve may
lie off the curve, is `stretch`: it is added to both ends of the interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64

from saelib.measure.bootstrap import (
    NORMAL_975,
    REPLICATES,
    heaviest_share,
    interval_of,
    page_replicates,
    student_975,
)

# loss recovered -> the loss under the ablation that it is a share of
ABLATED_LOSS = {"loss_recovered": "ce_zero", "loss_recovered_mean": "ce_mean"}
HEAVY = 0.1  # the share of a sum above which one page is worth a notice

Comparison = Literal[
    "lower", "higher", "equal", "not higher", "not lower", "unclear", "unreachable"
]


@dataclass(frozen=True, eq=False)
class Estimate:
    """A number with a 95 % interval: `draws[0]` is the estimate, the rest are its replicates.

    stretch: how much further than the replicates' each end lies, in units of the number. Curves
    that are compared bend alike: of a difference or ratio the larger one counts, in sums and
    products both do. heaviest: the largest share that one test page has of a sum in it.
    """

    draws: Float64[np.ndarray, " draws"]
    stretch: float = 0.0
    heaviest: float = 0.0

    @property
    def value(self) -> float:
        """The estimate, nan where there is none."""
        return float(self.draws[0])

    @property
    def lo(self) -> float:
        """Lower end of the 95 % interval, nan where there is none."""
        return self._interval()[0]

    @property
    def hi(self) -> float:
        """Upper end of the 95 % interval, nan where there is none."""
        return self._interval()[1]

    @property
    def defined(self) -> bool:
        """Whether there is a value."""
        return bool(np.isfinite(self.draws[0]))

    def _interval(self) -> tuple[float, float]:
        if not self.defined:
            return np.nan, np.nan
        low, high = interval_of(self.draws[1:])
        return low - self.stretch, high + self.stretch

    def __add__(self, other: Estimate | float | int) -> Estimate:
        y = _estimate(other)
        return _derived(self, self.draws + y.draws, self.stretch + y.stretch, y)

    def __radd__(self, other: float | int) -> Estimate:
        return self + other

    def __sub__(self, other: Estimate | float | int) -> Estimate:
        y = _estimate(other)
        same = np.array_equal(self.draws, y.draws, equal_nan=True)  # one curve: no error is left
        return _derived(
            self, self.draws - y.draws, 0.0 if same else max(self.stretch, y.stretch), y
        )

    def __rsub__(self, other: float | int) -> Estimate:
        return -self + other

    def __mul__(self, other: Estimate | float | int) -> Estimate:
        y = _estimate(other)
        stretch = self.stretch * abs(y.value) + y.stretch * abs(self.value)
        return _derived(self, self.draws * y.draws, stretch, y)

    def __rmul__(self, other: float | int) -> Estimate:
        return self * other

    def __truediv__(self, other: Estimate | float | int) -> Estimate:
        y = _estimate(other)
        same = np.array_equal(self.draws, y.draws, equal_nan=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            draws = np.asarray(self.draws / y.draws)
            of_y = y.stretch * abs(self.draws[0] / y.draws[0] ** 2)
            stretch = max(self.stretch / abs(y.draws[0]), of_y)
        return _derived(self, draws, 0.0 if same else float(stretch), y)

    def __rtruediv__(self, other: float | int) -> Estimate:
        return _estimate(other) / self

    def __neg__(self) -> Estimate:
        return _derived(self, -self.draws, self.stretch)

    def log(self) -> Estimate:
        """Natural logarithm; nan where a draw is not positive."""
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(self.draws)
            stretch = float(self.stretch / self.draws[0])
        return _derived(self, np.where(np.isfinite(logs), logs, np.nan), stretch)

    def exp(self) -> Estimate:
        """Exponential."""
        return _derived(self, np.exp(self.draws), self.stretch * float(np.exp(self.value)))

    def text(self, form: str = ".3g", missing: str = "L0 not reached") -> str:
        """Value and interval as "1.33 [1.29, 1.38]"; `missing` where there is no value.

        Without an interval it reads "1.33 (no interval)".
        """
        return _text(self.row(), form, missing)

    def row(self) -> dict[str, float]:
        """Value and ends of the interval, as tables and files keep them."""
        lo, hi = self._interval()
        return {"value": self.value, "lo": lo, "hi": hi}

    def compare(self, reference: float | int, margin: float | int = 0.0) -> Comparison:
        """How the interval lies about reference ± margin.

        "lower", "higher" or "equal": below, above, or inside the band. "not higher", "not lower":
        it leaves the band on one side only. "unclear": on both, or there is no interval.
        "unreachable": there is no estimate.
        """
        lo, hi = self._interval()
        if not self.defined:
            return "unreachable"
        if np.isnan(lo):
            return "unclear"
        return _place(lo, hi, reference - margin, reference + margin)

    def agrees(self, recorded: Mapping[str, float | int | None]) -> bool | None:
        """Whether the intervals of this and a recorded estimate overlap; None where one has none.

        recorded: `row` of the other.
        """
        here = _ends(self.row())
        there = _ends(recorded)
        if here is None or there is None:
            return None
        return here[0] <= there[1] and there[0] <= here[1]


def recorded_text(
    row: Mapping[str, float | int | None], form: str = ".3g", missing: str = "L0 not reached"
) -> str:
    """A recorded `Estimate.row` in words, as `Estimate.text` has it."""
    return _text(row, form, missing)


def _text(row: Mapping[str, float | int | None], form: str, missing: str) -> str:
    value, lo, hi = (_number(row[name]) for name in ("value", "lo", "hi"))
    if not np.isfinite(value):
        return missing
    if not np.isfinite(lo):
        return f"{value:{form}} (no interval)"
    return f"{value:{form}} [{lo:{form}}, {hi:{form}}]"


def _number(value: float | int | None) -> float:
    return np.nan if value is None else float(value)


def _ends(row: Mapping[str, float | int | None]) -> tuple[float, float] | None:
    lo, hi = _number(row["lo"]), _number(row["hi"])
    return (lo, hi) if np.isfinite([lo, hi]).all() else None


def _place(lo: float, hi: float, low: float, high: float) -> Comparison:
    """How the interval [lo, hi] lies about the band [low, high]."""
    if hi < low:
        return "lower"
    if lo > high:
        return "higher"
    leaves_below = lo < low
    leaves_above = hi > high
    if leaves_below and leaves_above:
        return "unclear"
    if leaves_below:
        return "not higher"
    return "not lower" if leaves_above else "equal"


def _derived(x: Estimate, draws: np.ndarray, stretch: float, y: Estimate | None = None) -> Estimate:
    """These draws, made of x and y, resting on the pages of both."""
    heaviest = x.heaviest if y is None else max(x.heaviest, y.heaviest)
    return Estimate(draws, stretch, heaviest)


def _estimate(other: Estimate | float | int) -> Estimate:
    """An estimate as it is; a number as one without a spread, which takes any number of draws."""
    return other if isinstance(other, Estimate) else constant(other, 0)


def notice(estimates: Iterable[Estimate]) -> str:
    """What a reader must know of these intervals in a sentence or two; empty where nothing.

    One page with over `HEAVY` of a sum, and how far interpolation between points stretches them.
    """
    estimates = [x for x in estimates if x.defined]
    sentences = []
    heaviest = max((x.heaviest for x in estimates), default=0.0)
    if heaviest > HEAVY:
        sentences.append(
            f"One test page has {100 * heaviest:.0f} % of an error, a variance or a loss, over "
            f"{100 * HEAVY:.0f} %: intervals may be too narrow."
        )
    stretch = max((x.stretch for x in estimates), default=0.0)
    if stretch > 0:
        sentences.append(
            f"Intervals reach up to {stretch:.2g} further than pages and seeds alone would, since "
            "curves may bend between the points that are interpolated."
        )
    return " ".join(sentences)


def undefined(n: int = REPLICATES) -> Estimate:
    """The estimate of what could not be measured: all nan."""
    return Estimate(np.full(1 + n, np.nan))


def constant(value: float | int, n: int = REPLICATES) -> Estimate:
    """A number without a spread."""
    return Estimate(np.full(1 + n, float(value)))


def ratio_of_pages(
    num: Iterable, den: Iterable, n: int = REPLICATES, signed: bool = False
) -> Estimate:
    """Σnum / Σden over test pages, one value per page, and its replicates under redrawn pages.

    signed, and what is raised: as in `page_replicates`.
    """
    num = np.asarray(num, dtype=np.float64)
    den = np.asarray(den, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):  # no pages, or none with a loss: nan
        draws = np.r_[num.sum() / den.sum(), page_replicates(num, den, n, signed=signed)]
    return Estimate(draws, heaviest=max(heaviest_share(num), heaviest_share(den)))


def of_pages(pages: pd.DataFrame, column: str = "fvu", n: int = REPLICATES) -> Estimate:
    """`column` ("fvu" or a key of `ABLATED_LOSS`) of one SAE, from its sums by test page."""
    if column == "fvu":
        return ratio_of_pages(pages["sse"], pages["sst"], n)
    if column not in ABLATED_LOSS:
        accepted = ", ".join(map(repr, ABLATED_LOSS))
        raise ValueError(f"column = {column!r}: expected 'fvu', {accepted}")
    measured = pages[pages["ce_n"] > 0]  # pages with a context whose loss was measured
    ablated = measured[ABLATED_LOSS[column]]
    recovered = ablated - measured["ce_sae"]
    return ratio_of_pages(recovered, ablated - measured["ce_id"], n, signed=True)


def over_seeds(per_seed: Sequence[Estimate], seed: int = 0) -> Estimate:
    """Mean over training seeds; each replicate adds a draw of the seeds' spread to the pages'.

    The spread is normal with the standard error of the mean, widened by Student's quantile over the
    normal one, so that without spread over pages the interval is Student's. It is the same linear
    form of the estimates for every cell with as many seeds: ratios and differences of cells trained
    with the same seeds stay paired. With one seed there is no such spread: the interval is of
    pages. Without any it is undefined.
    """
    if not per_seed:
        return undefined()
    x = np.stack([estimate.draws for estimate in per_seed])
    n = len(x)
    deviation = x[:, 0] - x[:, 0].mean()
    draws = x.mean(axis=0)
    if n > 1:
        widen = student_975(n - 1) / NORMAL_975 / (n * (n - 1)) ** 0.5
        normal = np.random.default_rng([seed, 1]).normal(size=(n, x.shape[1] - 1))
        draws[1:] += widen * (deviation @ normal)
    return _joined(draws, per_seed)


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of paired estimates, draw by draw; undefined without any."""
    if not estimates:
        return undefined()
    return _joined(np.stack([estimate.draws for estimate in estimates]).mean(axis=0), estimates)


def _joined(draws: np.ndarray, estimates: Sequence[Estimate]) -> Estimate:
    """The mean of estimates, given its draws: curves of several seeds or sites bend alike."""
    stretch = float(np.mean([x.stretch for x in estimates]))
    return Estimate(draws, stretch, max(x.heaviest for x in estimates))


def geometric_mean(estimates: Sequence[Estimate]) -> Estimate:
    """Geometric mean of paired estimates, draw by draw; undefined where one of them is."""
    return mean([estimate.log() for estimate in estimates]).exp()
