"""Which pre-activations are the largest, of each row or of a batch: the definition, in PyTorch.

Of equal values those that come first are taken, row by row and then by latent, so that a selection
does not depend on how it was computed. What is not above 0, or NaN, is never taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saelib.sae.dense import SparseCodes, codes_at_places, encoder_product


def largest(pre: Tensor, k: int, positive: bool = True) -> Tensor:
    """Where `pre` is above 0 and among the k largest of its row. [rows, n] -> bool [rows, n].

    With `positive` False values of 0 and below count too.
    """
    least = 0.0 if positive else -torch.inf
    pre = pre.detach()
    counts = pre > least
    if k >= pre.shape[1]:
        return counts
    if not k:
        return torch.zeros_like(counts)
    values = pre.masked_fill(~counts, least)
    kth = values.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    chosen = values > kth
    equal = (values == kth) & counts
    room = k - chosen.sum(1, keepdim=True)
    if (equal.sum(1, keepdim=True) > room).any():
        equal &= equal.cumsum(1) <= room
    return chosen | equal


def largest_of_batch(pre: Tensor, count: int) -> Tensor:
    """Where `pre` is above 0 and among the `count` largest of all rows. -> bool [rows, n]."""
    return largest(pre.reshape(1, -1), count).view_as(pre)


def top_entries(
    x_c: Tensor, W_enc: Tensor, bias: Tensor, k: int, encoder: str = "exact"
) -> SparseCodes:
    """Entries of a = x_c W_enc whose a + bias is above 0 and among the k largest of its row.

    x_c [rows, d_in], W_enc [d_in, n_latents], bias [n_latents], float32. encoder "bfloat16"
    multiplies in bfloat16, which is not exact.
    """
    a = encoder_product(x_c, W_enc, encoder)
    return _codes_where(largest(a + bias, k), a)


def batch_top_entries(
    x_c: Tensor, W_enc: Tensor, bias: Tensor, count: int, encoder: str = "exact"
) -> SparseCodes:
    """As `top_entries`, of the `count` largest a + bias of all rows."""
    a = encoder_product(x_c, W_enc, encoder)
    return _codes_where(largest_of_batch(a + bias, count), a)


def _codes_where(chosen: Tensor, a: Tensor) -> SparseCodes:
    row, col = chosen.nonzero(as_tuple=True)
    return codes_at_places(row, col, a[row, col], a.shape)
