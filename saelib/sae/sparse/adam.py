"""Adam over the rows of a weight in C: the twin of torch's, which is its definition.

For rows of unit norm the step takes what else such rows need: the gradient along a row is removed
before it, and the row is brought back to unit norm after it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saelib.sae.sparse.library import call, compiled

SOURCE = Path(__file__).with_name("adam.c")


def available() -> bool:
    """Whether there is a C compiler; RuntimeError as `library.compiled` raises it."""
    return compiled(SOURCE) is not None


class Rates(NamedTuple):
    """What one step of Adam is governed by."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    step: int  # counted from 1


def _rows(tensor: Tensor) -> tuple[int, int]:
    """Rows and their width; a vector is one row."""
    return (len(tensor), tensor.shape[1]) if tensor.ndim == 2 else (1, len(tensor))


def square_norm(gradient: Tensor, weight: Tensor, unit: bool) -> float:
    """‖gradient‖², a contiguous matrix or vector; where rows have `unit` norm, of what is left.

    Then each row of the gradient loses its part along the weight's row, in place.
    """
    n_rows, width = _rows(weight)
    squares = torch.empty(n_rows, dtype=torch.float64)
    call(compiled(SOURCE), "squares", gradient, weight, n_rows, width, int(unit), squares)
    return float(squares.sum())


def step_(
    weight: Tensor,
    gradient: Tensor,
    moments: tuple[Tensor, Tensor],
    rates: Rates,
    unit: bool = False,
    projected: bool = False,
    factor: float = 1.0,
) -> None:
    """One step of Adam with factor · gradient, in place; all are contiguous and of one shape.

    Rows of `unit` norm stay so; their gradient is projected here unless it is already `projected`.
    """
    call(
        compiled(SOURCE),
        "adam",
        weight,
        gradient,
        *moments,
        *_rows(weight),
        int(unit),
        int(projected),
        factor,
        1 - rates.beta1,
        rates.beta2,
        1 - rates.beta2,
        rates.lr / (1 - rates.beta1**rates.step),
        1 / math.sqrt(1 - rates.beta2**rates.step),
        rates.eps,
    )
