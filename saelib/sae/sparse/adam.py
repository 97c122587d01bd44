"""Adam over the rows of a weight in C: the twin of torch's, which is its definition.

For rows of unit norm the step takes what else such rows need: the gradient along a row is removed
before it, and the row is brought back to unit norm after it.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saelib.sae.sparse.library import FLAGS, call, compiler_command, load_library

SOURCE = Path(__file__).with_name("adam.c")


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled C file; None without a compiler."""
    command = compiler_command(SOURCE, FLAGS)
    return None if command is None else load_library(SOURCE, command)


def available() -> bool:
    """Whether there is a C compiler; RuntimeError where there is one that fails or its output
    cannot be kept (see `load_library`).
    """
    return _library() is not None


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
    call(_library(), "squares", gradient, weight, n_rows, width, int(unit), squares)
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
        _library(),
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
