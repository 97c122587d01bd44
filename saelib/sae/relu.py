"""The plain SAE: ReLU codes and an L1 penalty (Bricken et al. 2023, Towards Monosemanticity).

f = ReLU((x − b_dec) W_enc + b_enc)
x̂ = f W_dec + b_dec
L = ‖x − x̂‖² + λ ‖f‖₁, or its decoder-norm-weighted form; AuxK for dead latents if `aux_k` is set
"""

from __future__ import annotations

import torch
from torch import Tensor

from saelib.sae import sparse
from saelib.sae.aux_k import AuxKOptions, add_aux_k_, aux_k_loss
from saelib.sae.base import Autoencoder, How
from saelib.sae.dense import (
    Gradients,
    SparseCodes,
    StepStats,
    decoder_norm_gradient,
    decoding_error,
    encoder_gradient,
    encoder_product,
    penalty_of,
)
from saelib.sae.losses import (
    AllReduce,
    LossTerms,
    decode,
    l1_weights,
    squared_error,
    sum_over_ranks,
)


def relu_codes(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
    """f = ReLU((x − b_dec) W_enc + b_enc). x: [batch, d_in] -> [batch, n_latents]."""
    return torch.relu((x - b_dec) @ W_enc + b_enc)


def relu_loss(
    x: Tensor, params: dict[str, Tensor], lam: float, l1_mode: str, all_reduce: AllReduce = None
) -> LossTerms:
    """‖x − x̂‖² + λ‖f‖₁ per row. x: [batch, d_in] normalised.

    With `all_reduce` params hold a shard of the latents; the terms are then without a gradient.
    """
    W_dec, b_dec = params["W_dec"], params["b_dec"]
    f = relu_codes(x, params["W_enc"], params["b_enc"], b_dec)
    l1 = sum_over_ranks(lam * (f * l1_weights(W_dec, l1_mode)).sum(-1), all_reduce)
    mse = squared_error(x, decode(f, W_dec, b_dec, all_reduce))
    return LossTerms(mse, l1, torch.zeros_like(mse))


class ReluSAE(Autoencoder):
    """f = ReLU((x − b_dec) W_enc + b_enc), x̂ = f W_dec + b_dec."""

    LOSSES = ("plain",)
    Options = AuxKOptions
    can_be_sharded = True

    @classmethod
    def bias_names(cls) -> tuple[str, ...]:
        return ("b_enc",)

    def encode(self, x: Tensor) -> Tensor:
        return relu_codes(x, self.W_enc, self.b_enc, self.b_dec)

    def loss_terms(self, x: Tensor, lam: float, how: How) -> LossTerms:
        params = dict(self.named_parameters())
        terms = relu_loss(x, params, lam, self.config.l1_mode, how.all_reduce)
        return terms._replace(aux=aux_k_loss(self, x, how))

    @torch.no_grad()
    def dense_step(self, x: Tensor, lam: float, how: How) -> tuple[StepStats, Gradients]:
        n_rows = len(x)
        x_c = x - self.b_dec
        f = encoder_product(x_c, self.W_enc, how.encoder).add_(self.b_enc).relu_()
        active = f > 0
        error = decoding_error(x, f, self.W_dec, self.b_dec, how.all_reduce)
        mse = error.pow(2).sum()
        error *= 2 / n_rows

        grads = {"W_dec": f.T @ error}
        if self.config.l1_mode == "norm_weighted":
            grads["W_dec"] += decoder_norm_gradient(f.sum(0), self.W_dec, lam / n_rows)
        l1, slopes = self._penalty_(f, lam / n_rows, how)
        g_pre = (error @ self.W_dec.T).add_(slopes).mul_(active)  # [batch, n_latents]
        grads["W_enc"] = encoder_gradient(x_c, g_pre)
        grads["b_enc"] = g_pre.sum(0)
        through_encoder = sum_over_ranks(self.W_enc @ grads["b_enc"], how.all_reduce)
        grads["b_dec"] = error.sum(0) - through_encoder
        count, fired = active.sum(), active.any(0)
        aux = add_aux_k_(self, x_c, error, how, grads)
        return StepStats(mse, l1 * n_rows, aux, count, count, fired, fired), grads

    def _penalty_(
        self, f: Tensor, factor: float, how: How, latents: Tensor | None = None
    ) -> tuple[Tensor, Tensor | float]:
        """factor · penalty of the codes, summed, and its slope at each; f may be overwritten.

        f: [batch, n_latents], or [entries] of the `latents` that are named.
        """
        slope = penalty_of(self.W_dec, self.config.l1_mode, factor)
        if isinstance(slope, Tensor) and latents is not None:
            slope = slope[latents.long()]
        return (f * slope).sum(), slope

    @torch.no_grad()
    def encode_sparse(self, x: Tensor, encoder: str = "exact") -> tuple[SparseCodes, Tensor]:
        return self._codes(x - self.b_dec, encoder)

    def _codes(self, x_c: Tensor, encoder: str) -> tuple[SparseCodes, Tensor]:
        """x_c: [batch, d_in] normalised, less b_dec."""
        operations = sparse.operations(x_c.device)
        codes = operations.open_entries(x_c, self.W_enc, self.b_enc, encoder)
        return codes, codes.value + self.b_enc[codes.col.long()]

    @torch.no_grad()
    def sparse_step(self, x: Tensor, lam: float, how: How) -> tuple[StepStats, Gradients]:
        n_rows = len(x)
        x_c = x - self.b_dec
        codes, f = self._codes(x_c, how.encoder)
        error, mse, g_pre = sparse.decode(
            x, self.W_dec, self.b_dec, codes, f, 2 / n_rows, how.all_reduce
        )
        grads = {"W_dec": sparse.decoder_gradient(error, codes, f, how.room)}
        if self.config.l1_mode == "norm_weighted":
            code_sums = sparse.sum_by_latent(codes, f)
            grads["W_dec"] += decoder_norm_gradient(code_sums, self.W_dec, lam / n_rows)
        l1, slopes = self._penalty_(f, lam / n_rows, how, codes.col)
        g_pre += slopes
        grads["W_enc"] = sparse.encoder_gradient(x_c, codes, g_pre, how.room)
        grads["b_enc"] = sparse.sum_by_latent(codes, g_pre)
        through_encoder = sum_over_ranks(self.W_enc @ grads["b_enc"], how.all_reduce)
        grads["b_dec"] = error.sum(0) - through_encoder
        count = torch.tensor(len(f))
        fired = sparse.latents_with_entries(codes)
        aux = add_aux_k_(self, x_c, error, how, grads)
        return StepStats(mse, l1 * n_rows, aux, count, count, fired, fired), grads
