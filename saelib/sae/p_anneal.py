"""The p-annealed SAE (Karvonen et al. 2024, Measuring Progress in Dictionary Learning, 2408.00113).

f = ReLU((x − b_dec) W_enc + b_enc), x̂ = f W_dec + b_dec: a plain SAE's codes
L = ‖x − x̂‖² + λ r Σ φ_p(f), φ_p(f) = (f + δ)ᵖ − δᵖ; AuxK for dead latents if `aux_k` is set

p is 1 until the share `anneal_start` of training, then falls linearly to reach `p_end` at its end:
a penalty near the count of codes, approached from one that has a gradient everywhere.

**r keeps the penalty's size.** The paper rescales λ whenever it changes p, so that the penalty of
the last batches stays what it was. Here p changes at every step, and r = Σ f / Σ φ_p(f) over the
batch at hand, a constant to the gradient: the penalty is λ ‖f‖₁ throughout, its pull on the codes
falls as p does, and neither a buffer nor a checkpoint has to carry anything. So ranks cannot share
the rows of a batch.

**δ = `SMOOTHING`** bounds the slope at 0, where that of fᵖ is infinite: single codes near 0 would
outweigh all others in the gradient. At p = 1 φ_p(f) = f.

Decoder rows have unit norm, as in the paper. Dead latents can be resampled: they are a plain SAE's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from saelib.sae.aux_k import AuxKOptions, aux_k_loss
from saelib.sae.base import How
from saelib.sae.losses import LossTerms, decode, squared_error, sum_over_ranks
from saelib.sae.relu import ReluSAE

SMOOTHING = 0.01  # δ, in normalised units: a hundredth of what codes are about
CHUNK = 128  # rows whose powers are in memory at once
CHUNK_ENTRIES = 2**19  # the same, of codes that are given as entries


@dataclass(frozen=True)
class PAnnealOptions(AuxKOptions):
    """How p falls over training, and AuxK."""

    p_end: float = 0.2  # p at the end
    anneal_start: float = 0.1  # share of training with p = 1

    def check(self) -> None:
        super().check()
        self._require(0 < self.p_end <= 1, "p_end", "an exponent in (0, 1]")
        self._require(0 <= self.anneal_start < 1, "anneal_start", "a share in [0, 1)")


def smoothed_power(f: Tensor, p: float) -> Tensor:
    """φ_p(f) = (f + δ)ᵖ − δᵖ for f ≥ 0: 0 at 0, f at p = 1."""
    return (f + SMOOTHING).pow(p) - SMOOTHING**p


class PAnnealSAE(ReluSAE):
    """f = ReLU((x − b_dec) W_enc + b_enc), x̂ = f W_dec + b_dec."""

    LOSSES = ("p_anneal",)
    rowwise = False  # r is of the whole batch
    Options = PAnnealOptions
    UNTRAINED: ClassVar[dict[str, str]] = {
        "norm_weighted": "since Σ ‖W_dec,i‖ fᵖ falls with the norm where p < 1, however large the "
        "codes that make up for it"
    }

    def exponent(self, progress: float) -> float:
        """p after that share of training."""
        start = self.options.anneal_start
        share = max(0.0, (progress - start) / (1 - start))
        return 1 + (self.options.p_end - 1) * share

    def separates_rows(self, how: How) -> bool:
        """At p = 1, where r is 1: a run's first steps, which are dense, take little memory so."""
        return self.exponent(how.progress) == 1

    def loss_terms(self, x: Tensor, lam: float, how: How) -> LossTerms:
        p = self.exponent(how.progress)
        f = self.encode(x)
        powers = smoothed_power(f, p) * (f > 0)  # δᵖ − δᵖ is not quite 0
        rate = _rate(f.detach().sum(), powers.detach().sum(), how)
        l1 = sum_over_ranks(lam * rate * powers.sum(-1), how.all_reduce)
        mse = squared_error(x, decode(f, self.W_dec, self.b_dec, how.all_reduce))
        return LossTerms(mse, l1, aux_k_loss(self, x, how))

    def _penalty_(
        self, f: Tensor, factor: float, how: How, latents: Tensor | None = None
    ) -> tuple[Tensor, Tensor | float]:
        p = self.exponent(how.progress)
        if p == 1:
            return super()._penalty_(f, factor, how, latents)
        power = _power_sum(f, p)
        rate = _rate(f.sum(), power, how)
        slopes = f.add_(SMOOTHING).pow_(p - 1).mul_(factor * p * rate)
        return factor * rate * power, slopes


def _power_sum(f: Tensor, p: float) -> Tensor:
    """Σ φ_p(f) over the codes f ≥ 0, without a copy of all: of [batch, n_latents] or [entries]."""
    size = CHUNK if f.ndim > 1 else CHUNK_ENTRIES
    # δᵖ − δᵖ is not quite 0
    parts = [smoothed_power(some, p).mul_(some > 0).sum() for some in f.split(size)]
    return torch.stack(parts).sum()


def _rate(size: Tensor, power: Tensor, how: How) -> Tensor:
    """r = Σ f / Σ φ_p(f), both over all ranks that share the latents; 1 where nothing fires."""
    total, powers = sum_over_ranks(torch.stack([size, power]), how.all_reduce)
    return torch.where(powers > 0, total / powers, 1.0)
