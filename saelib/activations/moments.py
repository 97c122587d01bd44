"""First and second moments of stored rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Integer
from torch import Tensor

from saelib.activations.store import Store


class Moments(NamedTuple):
    """Moments of rows; errors and squares are sums over d_model, means over rows."""

    mean: Float64[Tensor, " d_model"]
    mean_sq_dev: float  # E||x - mean||^2
    mean_sq: float  # E||x||^2


def row_moments(
    store: Store, site: int, index: Integer[np.ndarray, " n"], batch: int = 4096
) -> Moments:
    """Moments of rows `index` of a site in one float64 pass.

    Sums are about the first batch's mean, against cancellation. Raises `ValueError` for no rows.
    """
    if not len(index):
        raise ValueError(f"site {site}: no rows to take moments of")
    shift = store.rows(site, index[:batch]).double().mean(0)
    total = torch.zeros_like(shift)
    total_sq_dev = 0.0
    total_sq = 0.0
    for x in store.iter_rows(site, index, batch):
        deviation = x.double() - shift
        total += deviation.sum(0)
        total_sq_dev += float(deviation.square().sum())
        total_sq += float(x.double().square().sum())
    offset = total / len(index)
    mean_sq_dev = total_sq_dev / len(index) - float(offset @ offset)
    return Moments(shift + offset, mean_sq_dev, total_sq / len(index))
