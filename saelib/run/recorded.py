"""What an SAE will come out with, before it is trained: looked up in recorded runs, or predicted.

A study decides by measured L0 which λ it trains next. A plan needs that L0 without training: of the
same SAE in the profile's record, else of its neighbours on the same curve of λ, else of the curve
that recorded runs have on average.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from saelib.measure.columns import COLUMNS
from saelib.run.results import read_results
from saelib.sae.spec import Spec

# log L0 = level + slope · log λ, means over three sites of the recorded run `full`, by arm.
CURVES = {"plain": (4.3, -1.3), "two_term": (2.6, -0.3), "full": (4.8, -1.35)}
D_FITTED = 576  # width of the model they were fitted on: λ goes with the square root of the width
EXPECTED_FVU = 0.3  # of an SAE that nothing is recorded of
LEAST_LAMBDA = 1e-6  # stands for λ = 0, which has no logarithm

Key = tuple[Any, ...]


def resample_words(shares: Iterable[float]) -> str:
    """Column `resample` of results.csv: "none", or the shares of training."""
    return " ".join(f"{share:g}" for share in shares) or "none"


def curve_key(spec: Spec) -> Key:
    """All that results.csv states of an SAE's recipe, but λ and the seed."""
    cfg = spec.train
    return (
        cfg.loss,
        spec.options,
        spec.sae.site,
        spec.sae.normalize,
        cfg.tokens_mask,
        spec.sae.l1_mode,
        cfg.schedule,
        cfg.lr,
        cfg.batch_size,
        cfg.warmup,
        resample_words(cfg.resample_at),
        spec.sae.n_latents,
        cfg.b_dec_init,
        cfg.steps * cfg.batch_size,
    )


CURVE_COLUMNS = [
    "loss",
    "options",
    "site",
    "normalize",
    "tokens_mask",
    "l1_mode",
    "schedule",
    "lr",
    "batch_size",
    "warmup",
    "resample",
    "n_latents",
    "b_dec_init",
    "tokens_trained",
]


class RecordedRuns:
    """Rows of a results.csv, found by what was trained."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table
        self._curves: dict[Key, pd.DataFrame] = dict(iter(table.groupby(CURVE_COLUMNS, sort=False)))

    @classmethod
    def read(cls, *paths: Path) -> RecordedRuns:
        """The runs of some `results.csv`, of two alike the first; none where none is there."""
        tables = [read_results(path) for path in paths if path.is_file()]
        if not tables:
            return cls(pd.DataFrame(columns=[*COLUMNS, "arm"]))
        return cls(pd.concat(tables, ignore_index=True))

    def row(self, spec: Spec) -> dict[str, Any]:
        """The row of this SAE in results.csv: recorded, or predicted for its L0 and FVU."""
        curve = self._curves.get(curve_key(spec))
        if curve is None:
            return described(spec) | predicted(spec)
        of_seed = curve[curve["seed"] == spec.train.seed]
        same = of_seed[np.isclose(of_seed["lambda"], spec.train.lam, rtol=1e-9)]
        if len(same):
            return same.iloc[0].to_dict()
        if spec.fixed_l0 is not None:
            return described(spec) | predicted(spec)
        if spec.nominal_l0 is not None:  # the curve has one setting: its k
            return described(spec) | _measured(curve["l0_val"].mean(), curve["fvu"].mean())
        return described(spec) | interpolated(of_seed if len(of_seed) else curve, spec.train.lam)

    def scale(self, site: int, normalize: str, tokens_mask: str) -> float | None:
        """Scale of a site's normaliser, from errors in both units; None where none is recorded."""
        table = self.table
        rows = table[
            (table["site"] == site)
            & (table["normalize"] == normalize)
            & (table["tokens_mask"] == tokens_mask)
        ]
        if not len(rows):
            return None
        return float(math.sqrt(rows["mse"].iloc[0] / rows["mse_raw"].iloc[0]))


def described(spec: Spec) -> dict[str, Any]:
    """The columns that say what an SAE is; what is measured is missing."""
    cfg = spec.train
    own = spec.sae.to_dict() | cfg.to_dict()
    own |= {
        "options": spec.options,
        "lambda": cfg.lam,
        "resample": resample_words(cfg.resample_at),
        "tokens_trained": cfg.steps * cfg.batch_size,
        "n_test_pages": 0,
        "n_test_tokens": 0,
        "ctx_len": 0,
    }
    return {column: own.get(column, math.nan) for column in COLUMNS} | {"arm": spec.arm}


def predicted(spec: Spec) -> dict[str, float]:
    """L0 as an option asks for it, else by the power law of the recorded runs, at λ per root of
    the width; and an FVU.
    """
    if spec.nominal_l0 is not None:
        return _measured(spec.nominal_l0, EXPECTED_FVU)
    level, slope = CURVES.get(spec.arm, CURVES["plain"])
    lam = max(spec.train.lam, LEAST_LAMBDA) / math.sqrt(spec.sae.d_in / D_FITTED)
    l0 = math.exp(level + slope * math.log(lam))
    l0 = min(l0, float(spec.sae.n_latents))
    return _measured(l0, EXPECTED_FVU)


def interpolated(curve: pd.DataFrame, lam: float) -> dict[str, float]:
    """L0 and FVU between, or beyond, the recorded λ of a curve: straight in their logarithms."""
    apart = (curve["l0_val"] > 0) & (curve["lambda"] > 0)
    alive = curve[apart].groupby("lambda")[["l0_val", "fvu"]].mean()
    if not len(alive):
        return _measured(0.0, 1.0)
    logs = np.log(alive)
    x = np.log(alive.index.to_numpy(dtype=float))
    log_lam = math.log(max(lam, LEAST_LAMBDA))
    l0, fvu = (math.exp(_along(log_lam, x, logs[name].to_numpy())) for name in logs)
    return _measured(l0, fvu)


def _along(x: float, known: np.ndarray, values: np.ndarray) -> float:
    """Piecewise linear through known points, and on with the slope of the nearest two."""
    if len(known) == 1:
        return float(values[0]) - 1.3 * (x - float(known[0]))
    first = int(np.clip(np.searchsorted(known, x) - 1, 0, len(known) - 2))
    slope = (values[first + 1] - values[first]) / (known[first + 1] - known[first])
    return float(values[first] + slope * (x - known[first]))


def _measured(l0: float, fvu: float) -> dict[str, float]:
    return {"l0": l0, "l0_val": l0, "fvu": fvu, "fvu_val": fvu}
