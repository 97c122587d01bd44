"""The BatchTopK SAE (Bussmann, Leask, Nanda 2024, arXiv 2412.06410).

In training, over a batch of B rows:
    f = the k · B largest of ReLU((x − b_dec) W_enc + b_enc), of all rows together; the others are 0
    L = ‖x − x̂‖², and AuxK for dead latents (`aux_k`)
Afterwards, each row for itself:
    a = (x − b_dec) W_enc + b_enc
    f = a ⊙ 1[a > θ]

k is the mean L0: rows that need more latents get more. θ, the one `threshold`, is a running mean of
the smallest code that each training batch kept. The paper averages it over data after training;
here the mean runs along, with weights that rise as a power of the batch's number, so that about the
last twentieth of the batches taken counts however long training is (see `HORIZON`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from saelib.sae import sparse
from saelib.sae.base import Autoencoder
from saelib.sae.dense import SparseCodes
from saelib.sae.jumprelu import JumpReLUSAE
from saelib.sae.sparse.selection import largest_of_batch
from saelib.sae.topk import TopKOptions, TopKSAE

# Batch t enters the mean with the share (HORIZON + 1) / (t + HORIZON): the first one wholly, and in
# the end batch s has a weight that goes as s ** HORIZON. In the last twentieth of a rate that falls
# linearly the weights hardly move, and so many batches average the noise of one.
HORIZON = 19


@dataclass(frozen=True)
class BatchTopKOptions(TopKOptions):
    """The options of a BatchTopK SAE: k is the mean number of latents that fire per token."""


class BatchTopKSAE(TopKSAE):
    """f = a ⊙ 1[a > θ], a = (x − b_dec) W_enc + b_enc; in training the batch's largest codes."""

    LOSSES = ("batchtopk",)
    Options = BatchTopKOptions
    L0_IS_EXACT = False  # a threshold chooses the codes of other rows
    rowwise = False
    threshold: Tensor
    n_batches: Tensor

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("n_batches", torch.zeros(()))  # that the threshold is a mean of
        self._smallest: Tensor | None = None  # code that the batch at hand kept

    def encode(self, x: Tensor) -> Tensor:
        a = (x - self.b_dec) @ self.W_enc
        return (a + self.b_enc) * (a + (self.b_enc - self.threshold) > 0)

    @torch.no_grad()
    def encode_sparse(self, x: Tensor, encoder: str = "exact") -> tuple[SparseCodes, Tensor]:
        operations = sparse.operations(x.device)
        bias = self.b_enc - self.threshold
        codes = operations.open_entries(x - self.b_dec, self.W_enc, bias, encoder)
        return codes, codes.value + self.b_enc[codes.col.long()]

    def _chosen(self, pre: Tensor) -> Tensor:
        return largest_of_batch(pre, self.options.k * len(pre))

    def _entries(self, x_c: Tensor, encoder: str) -> SparseCodes:
        operations = sparse.operations(x_c.device)
        count = self.options.k * len(x_c)
        return operations.batch_top_entries(x_c, self.W_enc, self.b_enc, count, encoder)

    def _note_codes_(self, f: Tensor, n_rows: int) -> None:
        """Where fewer codes than k a row are above 0, all of them fire: the threshold is 0."""
        competing = len(f) == self.options.k * n_rows
        self._smallest = f.detach().min() if competing else torch.zeros_like(self.threshold)

    @torch.no_grad()
    def after_step_(self) -> None:
        """Take the batch's smallest code into the threshold."""
        if self._smallest is None:
            return
        self.n_batches += 1
        share = (HORIZON + 1) / (self.n_batches + HORIZON)
        self.threshold += share * (self._smallest - self.threshold)
        self._smallest = None

    @torch.no_grad()
    def folded(self) -> Autoencoder:
        """As `Autoencoder.folded`; the threshold has the unit of the codes."""
        plain = super().folded()
        plain.threshold.div_(self.scale)
        return plain


@torch.no_grad()
def jumprelu_of_batch(sae: BatchTopKSAE) -> JumpReLUSAE:
    """The JumpReLU SAE that a BatchTopK one equals after training, in the same units."""
    config = replace(sae.config, arch="jumprelu", options={})
    equal = JumpReLUSAE(config).to(sae.W_dec)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        getattr(equal, name).copy_(getattr(sae, name))
    equal.threshold.fill_(sae.threshold)
    equal.set_normalizer_(sae.mean, float(sae.scale))
    return equal.requires_grad_(False)
