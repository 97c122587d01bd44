"""What the objectives share: differentiable formulas, the reference of each faster step.

Each architecture writes its objective beside its class, as a function that returns the terms per
row [batch]; the training loss is their sum, averaged over rows. Errors are sums over d_in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Sums a tensor over the ranks in place, where each rank holds a shard of the latents; else None.
AllReduce = Callable[[Tensor], Tensor] | None


class LossTerms(NamedTuple):
    """Terms of an objective per row, each [batch]; `l1` carries λ, and `total` is minimised."""

    mse: Tensor
    l1: Tensor
    aux: Tensor

    @property
    def total(self) -> Tensor:
        return self.mse + self.l1 + self.aux


def squared_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """‖x − x̂‖² per row. x, x_hat: [batch, d_in] -> [batch].

    Raises:
        ValueError: the shapes differ.
    """
    if x.shape != x_hat.shape:
        raise ValueError(f"x {tuple(x.shape)} and x_hat {tuple(x_hat.shape)} must have one shape")
    return (x - x_hat).pow(2).sum(-1)


def l1_weights(W_dec: Tensor, l1_mode: str) -> Tensor:
    """Weight of each latent in the L1 penalty: 1, or ‖W_dec,i‖ if norm-weighted. -> [n_latents].

    The norm-weighted form is Anthropic's April 2024 update: without the weight, a free decoder norm
    escapes the penalty.
    """
    return W_dec.norm(dim=1) if l1_mode == "norm_weighted" else torch.ones_like(W_dec[:, 0])


def sum_over_ranks(partial: Tensor, all_reduce: AllReduce) -> Tensor:
    """The sum of all ranks' partial results; without `all_reduce` the partial result is the sum."""
    return partial if all_reduce is None else all_reduce(partial)


def decode(f: Tensor, W_dec: Tensor, b_dec: Tensor, all_reduce: AllReduce = None) -> Tensor:
    """x̂ = f W_dec + b_dec. f: [batch, n_latents] -> [batch, d_in]."""
    return sum_over_ranks(f @ W_dec, all_reduce) + b_dec
