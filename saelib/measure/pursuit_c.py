"""Pursuit, lasso and learned atoms on the CPU in C, for float32 rows.

`pursuit` defines them and has their twins in plain PyTorch, for other rows and without a compiler.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from saelib.sae.sparse.library import call, compiled

SOURCE = Path(__file__).with_name("pursuit.c")
ROWS = 256  # coded at once: as many products with all atoms are held
ATOMS = 64  # moved at once when atoms are learned
PARTS = 256  # atoms whose products with the rest are computed at once
# Share of a row's largest product with an atom by which the lasso's conditions may be missed: a few
# roundings of float32.
LASSO_TOLERANCE = 1e-5


def takes(*arrays: Tensor) -> bool:
    """Whether arrays are coded here: float32 on the CPU, and there is a C compiler.

    RuntimeError as `library.compiled` raises it.
    """
    fit = all(a.dtype == torch.float32 and a.device.type == "cpu" for a in arrays)
    return fit and compiled(SOURCE) is not None


def _call(name: str, *arguments: Tensor | int | float) -> None:
    """Call a function that says whether its memory sufficed; MemoryError where not."""
    failed = torch.zeros((), dtype=torch.int64)
    call(compiled(SOURCE), name, *arguments, failed)
    if failed:
        raise MemoryError(f"{name}: no memory for the work on one row")


def gram_of(atoms: Tensor) -> Tensor:
    """D Dᵀ [m, m] of atoms [m, d]: the upper part computed, the lower its mirror image."""
    m = len(atoms)
    gram = torch.empty(m, m)
    for first in range(0, m, PARTS):
        last = min(first + PARTS, m)
        gram[first:last, first:] = atoms[first:last] @ atoms[first:].T
        gram[last:, first:last] = gram[first:last, last:].T
    return gram


def _parts(n: int) -> Iterator[slice]:
    """Rows in parts of nearly one size: a product of few rows depends on the number of threads."""
    size = -(-n // max(1, -(-n // ROWS)))
    for first in range(0, n, max(1, size)):
        yield slice(first, min(first + size, n))


@torch.no_grad()
def pursue(x: Tensor, atoms: Tensor, k: Tensor, tolerance: float) -> Tensor:
    """`nn_omp` codes [n, m] with k [n] atoms, each at most m."""
    x = x.contiguous()
    atoms = atoms.contiguous()
    k = k.to(torch.int64).contiguous()
    codes = torch.zeros(len(x), len(atoms))
    most = int(k.max()) if len(k) else 0
    if not most:
        return codes
    gram = gram_of(atoms)
    for block in _parts(len(x)):
        product = x[block] @ atoms.T
        sizes = (len(product), *atoms.shape, most)
        _call("pursuit", x[block], atoms, gram, product, k[block], *sizes, tolerance, codes[block])
    return codes


@torch.no_grad()
def refit(x: Tensor, atoms: Tensor, f: Tensor, tolerance: float) -> Tensor:
    """`pursuit.refit` of codes f [n, m]."""
    codes = torch.zeros_like(f, memory_format=torch.contiguous_format)
    most = int((f > 0).sum(-1).max()) if len(f) else 0
    if most:
        arrays = (x.contiguous(), atoms.contiguous(), f.contiguous())
        _call("refit", *arrays, len(x), *atoms.shape, most, tolerance, codes)
    return codes


class Lasso:
    """Codes of `pursuit.lasso` for fixed atoms [m, d], of some rows at some λ."""

    @torch.no_grad()
    def __init__(self, atoms: Tensor) -> None:
        self.atoms = atoms.contiguous()
        self.gram = gram_of(self.atoms)

    @torch.no_grad()
    def __call__(self, x: Tensor, lam: float, start: Tensor) -> Tensor:
        """Codes [n, m] of rows x [n, d], found from those given."""
        codes = start.clone(memory_format=torch.contiguous_format)
        for block in _parts(len(x)):
            product = x[block] @ self.atoms.T
            arrays = (self.gram, product)
            _call("lasso", *arrays, *product.shape, float(lam), LASSO_TOLERANCE, codes[block])
        return codes


@torch.no_grad()
def learn_from(x: Tensor, f: Tensor, atoms: Tensor, gram: Tensor, cross: Tensor) -> None:
    """Add rows x [n, d] and their codes f [n, m] to the sums, and move the atoms; all in place."""
    m, d = atoms.shape
    room = torch.empty(m, dtype=torch.int64)
    library = compiled(SOURCE)
    call(library, "add_codes", f.contiguous(), x.contiguous(), len(x), m, d, gram, cross, room)
    moved = torch.empty(min(ATOMS, m), d)
    for first in range(0, m, ATOMS):
        last = min(first + ATOMS, m)
        count = last - first
        whole = gram[max(0, last - ATOMS) : last]  # see `_parts`
        mixed = (whole @ atoms)[-count:]
        call(library, "move_atoms", atoms, gram, cross, mixed, first, count, m, d, moved)
