"""The sparse operations in PyTorch: their definition, and the path without a compiler."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from saelib.sae.dense import SparseCodes, encoder_product, open_codes
from saelib.sae.sparse import selection

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
CHUNK = 8192  # entries whose decoder rows the code gradient holds at once

top_entries = selection.top_entries
batch_top_entries = selection.batch_top_entries


def open_entries(x_c: Tensor, W_enc: Tensor, bias: Tensor, encoder: str = "exact") -> SparseCodes:
    """Entries of a = x_c W_enc with a + bias > 0. x_c [rows, d_in], W_enc [d_in, n_latents].

    Both are float32. encoder "bfloat16" multiplies in bfloat16, which is not exact.
    """
    return open_codes(encoder_product(x_c, W_enc, encoder), bias)


def decode(
    x: Tensor, W_dec: Tensor, b_dec: Tensor, codes: SparseCodes, f: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(scale · error [rows, d_in], Σ error², scale · error[row] · W_dec[latent] per entry)."""
    f_csr = torch.sparse_csr_tensor(
        codes.crow, codes.col.long(), f, (len(x), len(W_dec)), check_invariants=False
    )
    error = (f_csr @ W_dec).add_(b_dec).sub_(x)
    squared = error.double().square().sum()
    error *= scale
    return error, squared, entry_products(error, W_dec, codes)


def entry_products(x: Tensor, W: Tensor, codes: SparseCodes) -> Tensor:
    """x[row] · W[latent] of each entry. x: [rows, d_in], W: [n_latents, d_in] -> [entries]."""
    row = torch.repeat_interleave(codes.crow.diff())
    parts = zip(row.split(CHUNK), codes.col.split(CHUNK), strict=True)
    return torch.cat([(x[r] * W[c]).sum(1) for r, c in parts])


def weight_gradient(
    x: Tensor, codes: SparseCodes, values: Tensor, n_latents: int, out: Tensor | None = None
) -> Tensor:
    """Σ over entries of value · x[row], latent by latent. x: [rows, d_in] -> [n_latents, d_in].

    `out` is memory that may be written over and returned.
    """
    by_latent = torch.sparse_csr_tensor(
        codes.ccol,
        codes.row.long(),
        values[codes.order],
        (n_latents, len(x)),
        check_invariants=False,
    )
    return by_latent @ x


def sum_by_latent(codes: SparseCodes, values: Tensor) -> Tensor:
    """Σ of values [entries] over the entries of each latent, in float64. -> float32 [n_latents]."""
    sums = torch.zeros(len(codes.ccol) - 1, dtype=torch.float64, device=values.device)
    return sums.index_add_(0, codes.col.long(), values.double()).float()
