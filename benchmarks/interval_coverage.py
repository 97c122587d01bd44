"""How often an interval over test pages holds what it is about: on made pages, by the package.

    python benchmarks/interval_coverage.py [--json PATH] [--sets 2000] [--pages 6 12 22 50 300]

Sets of pages are drawn from a known population, and each set's interval is made as a study makes
it. A page has a length, an error per token and, for each SAE and seed, noise of its own, all
log-normal. Even lengths spread as the contexts that profile default takes of its pages; uneven
pages count for 0.44 as many equal ones, where whole pages of the embedded text do for 0.57. With a
light tail errors differ by 15 % between pages, with a heavy one few pages carry most of the error.

statistic         ratio              FVU of one SAE
                  paired             FVU of one SAE over another's on the same pages
                  paired, 3 seeds    the same over three training seeds, which differ too
                  loss recovered     a ratio whose pages may be negative
coverage          share of the sets whose interval holds the truth; below, above: where it does not
width             median width of the interval, over the truth
told              share of the sets with a notice that one page has over a tenth
percentile        coverage and width of the plain percentile interval of the same draws
studentised       of the bootstrap-t interval of the logarithm, with the ratio's standard error
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from harness import machine, parser, report

from saelib.measure.bootstrap import SHARES, page_draws
from saelib.study.estimate import HEAVY, Estimate, over_seeds, ratio_of_pages

PAGES = (6, 12, 22, 50, 300)
LENGTHS = {"even": 0.35, "uneven": 0.9}  # spread of the logarithm of a page's tokens
TAILS = {"light": 0.15, "heavy": 1.5}  # of its error per token
CASES = (("even", "light"), ("uneven", "light"), ("uneven", "heavy"))
SAE_NOISE = 0.05  # of one SAE's error on a page, beside the other SAE's
SEED_NOISE = 0.02  # of one seed's error on all pages
FVU = 0.4
BETTER = 0.9  # the second SAE's error over the first one's
RECOVERED = 0.9
LOSS_NOISE = 0.1  # of the loss recovered on a page; times its tail
SEEDS = 3
COLUMNS = ("name", "lengths", "tail", "pages", "coverage", "below", "above", "width", "told")
COLUMNS += ("percentile", "percentile_width", "studentised", "studentised_width")


class Made(NamedTuple):
    """One set of pages: what is estimated, what is true, and the sums of a plain ratio if any."""

    estimate: Estimate
    truth: float
    num: np.ndarray | None
    den: np.ndarray | None


class Population(NamedTuple):
    """Pages of one kind."""

    lengths: str
    tail: str

    def pages(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Variance and error of n pages."""
        tokens = np.exp(rng.normal(0, LENGTHS[self.lengths], n))
        per_token = np.exp(rng.normal(0, TAILS[self.tail], n))
        return tokens, FVU * tokens * per_token


def ratio(rng: np.random.Generator, kind: Population, n: int) -> Made:
    den, num = kind.pages(rng, n)
    truth = FVU * np.exp(TAILS[kind.tail] ** 2 / 2)
    return Made(ratio_of_pages(num, den), truth, num, den)


def paired(rng: np.random.Generator, kind: Population, n: int) -> Made:
    den, num = kind.pages(rng, n)
    first, second = (num * np.exp(rng.normal(0, SAE_NOISE, n)) for _ in range(2))
    second = second * BETTER
    estimate = ratio_of_pages(second, den) / ratio_of_pages(first, den)
    return Made(estimate, BETTER, second, first)


def paired_over_seeds(rng: np.random.Generator, kind: Population, n: int) -> Made:
    den, num = kind.pages(rng, n)
    per_seed = []
    for _ in range(SEEDS):
        first, second = (_of_seed(rng, num) for _ in range(2))
        pair = ratio_of_pages(second * BETTER, den) / ratio_of_pages(first, den)
        per_seed.append(pair.log())
    return Made(over_seeds(per_seed).exp(), BETTER, None, None)


def _of_seed(rng: np.random.Generator, num: np.ndarray) -> np.ndarray:
    return num * np.exp(rng.normal(0, SEED_NOISE) + rng.normal(0, SAE_NOISE, len(num)))


def loss_recovered(rng: np.random.Generator, kind: Population, n: int) -> Made:
    tokens, _ = kind.pages(rng, n)
    den = tokens * rng.normal(1, 0.3, n)  # of a few pages below 0: ablation helps there
    off = rng.normal(0, LOSS_NOISE, n) * np.exp(rng.normal(0, TAILS[kind.tail], n))
    num = RECOVERED * den + tokens * off
    return Made(ratio_of_pages(num, den, signed=True), RECOVERED, None, None)


STATISTICS: dict[str, Callable[[np.random.Generator, Population, int], Made]] = {
    "ratio": ratio,
    "paired": paired,
    "paired, 3 seeds": paired_over_seeds,
    "loss recovered": loss_recovered,
}


def percentile(num: np.ndarray, den: np.ndarray) -> tuple[float, float]:
    """The plain percentile interval over redrawn pages."""
    times = page_draws(len(num))
    low, high = np.quantile((times @ num) / (times @ den), SHARES)
    return float(low), float(high)


def studentised(num: np.ndarray, den: np.ndarray) -> tuple[float, float]:
    """The bootstrap-t interval of the logarithm of Σnum / Σden."""
    times = page_draws(len(num))
    whole = np.ones((1, len(num)))
    value, error = _log_ratio(whole, num, den)
    drawn, errors = _log_ratio(times, num, den)
    usable = errors > 0  # one page drawn alone has no spread
    t_low, t_high = np.quantile((drawn[usable] - value) / errors[usable], SHARES)
    return float(np.exp(value - t_high * error)[0]), float(np.exp(value - t_low * error)[0])


def _log_ratio(
    times: np.ndarray, num: np.ndarray, den: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """log Σnum / Σden of pages drawn so often, and its standard error by the delta method."""
    top, bottom = times @ num, times @ den
    variance = times @ num**2 / top**2 + times @ den**2 / bottom**2
    variance -= 2 * (times @ (num * den)) / (top * bottom)
    return np.log(top / bottom), np.sqrt(np.maximum(variance, 0))


def coverage(name: str, kind: Population, n: int, sets: int, seed: int = 0) -> dict[str, Any]:
    """One row: how `sets` intervals of n pages lie about the truth."""
    rng = np.random.default_rng([seed, n, *map(ord, name + kind.lengths + kind.tail)])
    made = [STATISTICS[name](rng, kind, n) for _ in range(sets)]
    truth = made[0].truth
    ends = np.array([(x.estimate.lo, x.estimate.hi) for x in made])
    row = {"name": name, "lengths": kind.lengths, "tail": kind.tail, "pages": n}
    row |= _share(ends, truth) | {"width": _width(ends, truth)}
    row["told"] = float(np.mean([x.estimate.heaviest > HEAVY for x in made]))
    if made[0].num is not None:
        for other in (percentile, studentised):
            ends = np.array([other(x.num, x.den) for x in made])
            row[other.__name__] = _share(ends, truth)["coverage"]
            row[f"{other.__name__}_width"] = _width(ends, truth)
    return row | {"sets": sets, "seed": seed}


def _share(ends: np.ndarray, truth: float) -> dict[str, float]:
    below = float(np.mean(ends[:, 1] < truth))
    above = float(np.mean(ends[:, 0] > truth))
    return {"coverage": 1 - below - above, "below": below, "above": above}


def _width(ends: np.ndarray, truth: float) -> float:
    return float(np.median(ends[:, 1] - ends[:, 0]) / truth)


def main() -> None:
    options = parser(__doc__, timed=False)
    options.add_argument("--sets", type=int, default=2000, help="sets of pages a row")
    options.add_argument("--pages", type=int, nargs="+", default=PAGES)
    args = options.parse_args()
    about = machine("cpu")
    cells = itertools.product(STATISTICS, CASES, args.pages)
    rows = [coverage(name, Population(*case), n, args.sets) for name, case, n in cells]
    report(rows, COLUMNS, about, args.json)


if __name__ == "__main__":
    main()
