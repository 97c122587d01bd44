"""First and second moments of rows, of a store or a tensor, and the normaliser they give."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Integer
from torch import Tensor

from saelib.activations.rows import rows_of
from saelib.activations.store import Store

BATCH = 4096  # rows taken at once
# A power this small beside E‖x‖² is the rounding of float32: an FVU has no value there either.
NEGLIGIBLE = 1e-12


class Moments(NamedTuple):
    """Moments of rows; errors and squares are sums over d_model, means over rows."""

    mean: Float64[Tensor, " d_model"]
    mean_sq_dev: float  # E||x - mean||^2
    mean_sq: float  # E||x||^2

    def normalizer(
        self, mode: str, rows: str = "rows"
    ) -> tuple[Float32[Tensor, " d_model"], float]:
        """(mean, scale) with E‖scale · (x − mean)‖² = d_model, each where the mode names it.

        mode: "center_scale", "center", "scale" or "none"; `rows` says in an error whose they are.
        Raises `ValueError` where there is nothing to scale: rows that are all equal, or all zero.
        """
        centred = "center" in mode
        mean = self.mean.float() if centred else torch.zeros(len(self.mean))
        if "scale" not in mode:
            return mean, 1.0
        power = self.mean_sq_dev if centred else self.mean_sq
        if not power > NEGLIGIBLE * self.mean_sq:
            kind = "equal up to rounding" if self.mean_sq else "zero"
            raise ValueError(
                f"{rows}: all activations are {kind}, so normalize = {mode!r} has nothing to "
                "scale; expected activations that differ"
            )
        return mean, (len(self.mean) / power) ** 0.5


def row_moments(
    store: Store, site: int, index: Integer[np.ndarray, " n"], batch: int = BATCH
) -> Moments:
    """Moments of rows `index` of a site in one float64 pass.

    Sums are about the first batch's mean, against cancellation. Raises `ValueError` for no rows.
    """
    if not len(index):
        raise ValueError(f"site {site}: no rows to take moments of")
    shift = store.rows(site, index[:batch]).double().mean(0)
    return _moments(store.iter_rows(site, index, batch), shift, len(index))


def tensor_moments(
    x: Float32[Tensor, "n d"], index: Integer[np.ndarray, " rows"], batch: int = BATCH
) -> Moments:
    """Moments of rows `index` of a tensor, as `row_moments` takes them."""
    parts = np.split(index, range(batch, len(index), batch))
    shift = rows_of(x, parts[0]).double().mean(0)
    moments = _moments((rows_of(x, part) for part in parts), shift, len(index))
    return moments._replace(mean=moments.mean.cpu())


def _moments(
    batches: Iterable[Float32[Tensor, "batch d"]], shift: Float64[Tensor, " d"], n_rows: int
) -> Moments:
    """Sums about `shift`, in float64."""
    total = torch.zeros_like(shift)
    total_sq_dev = 0.0
    total_sq = 0.0
    for x in batches:
        deviation = x.double() - shift
        total += deviation.sum(0)
        total_sq_dev += float(deviation.square().sum())
        total_sq += float(x.double().square().sum())
    offset = total / n_rows
    mean_sq_dev = total_sq_dev / n_rows - float(offset @ offset)
    return Moments(shift + offset, mean_sq_dev, total_sq / n_rows)
