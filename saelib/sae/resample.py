"""Resampling dead latents (Bricken et al. 2023, Towards Monosemanticity, "Neuron Resampling").

1. Dead: a latent whose code was not above 0 in a window of tokens.
2. Compute the loss of the current model on a random subset of training rows.
3. Draw a row for each dead latent with probability proportional to loss², here without replacement,
   so that no two latents get the same vector.
4. Decoder row <- the row minus b_dec, at unit norm. (The original text takes the row itself; with a
   mean offset all revived latents would then point along the mean.)
5. Encoder column <- the same direction at 0.2 x the mean encoder norm of the alive latents; every
   per-latent bias <- where it started, which is 0 but for a JumpReLU SAE's threshold (for the Gated
   SAE, without a published procedure, b_gate, b_mag and r_mag).
6. Adam's moments of every element that was written <- 0; its step counter is kept.

Alive latents stay bit-identical.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saelib.sae.base import ENCODER_INIT_NORM, Autoencoder, How
from saelib.sae.dense import rows_at_once
from saelib.sae.sharding import UNSHARDED, Sharding

ROWS_AT_ONCE = 2048  # whose losses are computed, at most
REVIVED_ENCODER_SHARE = 0.2  # of the mean encoder norm of alive latents


@dataclass
class ResampleEvent:
    """One resampling: how many latents were dead, which were revived, how many live on."""

    step: int
    tokens: int
    n_dead: int
    n_gate_dead: int
    revived: list[int]
    alive_later: int | None = None


@torch.no_grad()
def row_losses(sae: Autoencoder, x: Tensor, lam: float, how: How, batch: int) -> Tensor:
    """The training objective of each row. x: [rows, d_in] normalised -> float64 [rows].

    Where a row's loss depends on its batch, so many rows make one.
    """
    if sae.rowwise:
        batch = min(ROWS_AT_ONCE, rows_at_once(sae.config.n_latents, x.device))
    totals = [sae.loss_terms(rows, lam, how).total.double() for rows in x.split(batch)]
    return torch.cat(totals)


def draw_rows(row_loss: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Up to n row numbers, P ∝ loss², without replacement; at most the rows with positive loss."""
    weights = row_loss.double().pow(2)
    n = min(n, int((weights > 0).sum()))
    if n == 0:
        return torch.empty(0, dtype=torch.long)
    return torch.multinomial(weights / weights.sum(), n, replacement=False, generator=generator)


@torch.no_grad()
def resample_(
    sae: Autoencoder,
    optimizer: torch.optim.Optimizer,
    dead: Tensor,
    x: Tensor,
    row_loss: Tensor,
    generator: torch.Generator,
    sharding: Sharding = UNSHARDED,
) -> Tensor:
    """Reinitialise dead latents and their moments in place. -> latents revived, int64 [k].

    dead: bool [n_latents]; x: [rows, d_in] normalised training rows; row_loss: [rows]. Where more
    latents are dead than rows have positive loss, only that many (the lowest-numbered) are revived.
    Where ranks share the latents, dead and revived latents are numbered over all ranks, and each
    rank writes its shard.
    """
    rows = draw_rows(row_loss, int(dead.sum()), generator)
    revived = dead.nonzero().flatten()[: len(rows)]
    directions = x[rows] - sae.b_dec
    directions = directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12)
    alive_norms = sae.W_enc[:, ~dead[sharding.shard]].norm(dim=0)
    norm = sharding.mean(alive_norms)
    norm = ENCODER_INIT_NORM if norm is None else norm
    is_local, local = sharding.local(revived)
    sae.W_dec[local] = directions[is_local]
    sae.W_enc[:, local] = REVIVED_ENCODER_SHARE * norm * directions[is_local].T
    for name in sae.bias_names():
        getattr(sae, name)[local] = sae.bias_start(name)
    reset_moments_(sae, optimizer, local)
    return revived


@torch.no_grad()
def reset_moments_(sae: Autoencoder, optimizer: torch.optim.Optimizer, latents: Tensor) -> None:
    """Zero Adam's two moments of every element of `latents`; the step counter stays."""
    for name in ("W_dec", "W_enc", *sae.bias_names()):
        for moment in _moments(optimizer, getattr(sae, name)):
            if name == "W_enc":
                moment[:, latents] = 0
            else:
                moment[latents] = 0


def _moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> list[Tensor]:
    """Adam's moments of a parameter, in its shape, from an optimiser of transposed views."""
    leaves = [leaf for group in optimizer.param_groups for leaf in group["params"]]
    leaf = {leaf.data_ptr(): leaf for leaf in leaves}[parameter.data_ptr()]
    state = optimizer.state.get(leaf, {})
    moments = [state[name] for name in ("exp_avg", "exp_avg_sq") if name in state]
    return moments if leaf.stride() == parameter.stride() else [moment.T for moment in moments]
