"""The sparse step's three operations in PyTorch's own functions: the definition, and the path without a compiler."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from saelib.sae.dense import Entries, encoder_product, entries_of

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
CHUNK = 8192  # entries whose decoder rows the code gradient holds at once


def open_entries(x_c: Tensor, W_enc: Tensor, bias: Tensor, encoder: str = "exact") -> Entries:
    """Entries of a = x_c W_enc with a + bias > 0. x_c [rows, d_in], W_enc [d_in, n_latents], both float32.

    encoder "bfloat16" multiplies in bfloat16, which is not exact.
    """
    return entries_of(encoder_product(x_c, W_enc, encoder), bias)


def decode(
    x: Tensor, W_dec: Tensor, b_dec: Tensor, at: Entries, f: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(scale · error [rows, d_in], Σ squared error, scale · error[row] · W_dec[latent] of each entry)."""
    f_csr = torch.sparse_csr_tensor(
        at.crow, at.col.long(), f, (len(x), len(W_dec)), check_invariants=False
    )
    error = (f_csr @ W_dec).add_(b_dec).sub_(x)
    squared = error.double().square().sum()
    error *= scale
    row = torch.repeat_interleave(at.crow.diff())
    parts = zip(row.split(CHUNK), at.col.split(CHUNK), strict=True)
    return error, squared, torch.cat([(error[r] * W_dec[c]).sum(1) for r, c in parts])


def weights(rows_of: Tensor, at: Entries, v: Tensor, n: int) -> Tensor:
    """Σ over entries of v · rows_of[row], latent by latent. -> [n, d_in]."""
    size = (n, len(rows_of))
    return (
        torch.sparse_csr_tensor(at.ccol, at.row.long(), v[at.order], size, check_invariants=False)
        @ rows_of
    )
