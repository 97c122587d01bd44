"""The Gated SAE (Rajamanoharan et al. 2024, arXiv 2404.16014).

π = (x − b_dec) W_enc + b_gate
f = 1[π > 0] ⊙ ReLU(((x − b_dec) W_enc) ⊙ exp(r_mag) + b_mag)
x̂ = f W_dec + b_dec
L = ‖x − x̂(f)‖² + λ ‖ReLU(π)‖₁ + ‖x − x̂_frozen(ReLU(π))‖²; AuxK by π for dead latents if `aux_k`
    is set

The loss "two_term" leaves out the last term, which the paper calls incorrect: then only the
sparsity term reaches b_gate, and it can only close gates.

It is trained with decoder rows of unit norm alone. Weighted by free decoder norms the L1 term takes
π ‖W_dec,i‖, which falls with the rows while r_mag makes up for them in f W_dec, so that nothing
holds the codes sparse. SAEs of other libraries that were trained so can be opened and measured.
"""

from __future__ import annotations

from typing import ClassVar

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


def gated_codes(
    x: Tensor, W_enc: Tensor, b_gate: Tensor, r_mag: Tensor, b_mag: Tensor, b_dec: Tensor
) -> tuple[Tensor, Tensor]:
    """Codes and gate pre-activations (f, π), each [batch, n_latents]; equations 5 to 7.

    The gate is a step: no gradient passes it.
    """
    a = (x - b_dec) @ W_enc
    pi = a + b_gate
    f = (pi > 0).to(x.dtype) * torch.relu(a * r_mag.exp() + b_mag)
    return f, pi


def gated_loss(
    x: Tensor,
    params: dict[str, Tensor],
    lam: float,
    l1_mode: str,
    loss: str,
    all_reduce: AllReduce = None,
) -> LossTerms:
    """The objective per row (equation 8). x: [batch, d_in]; loss: "full" or "two_term".

    In the last term W_dec and b_dec are constants of the decoding; the encoder's own x − b_dec
    keeps its gradient.

    Raises:
        ValueError: another loss.
    """
    W_dec, b_dec = params["W_dec"], params["b_dec"]
    f, pi = gated_codes(
        x, params["W_enc"], params["b_gate"], params["r_mag"], params["b_mag"], b_dec
    )
    gate_codes = torch.relu(pi)
    l1 = sum_over_ranks(lam * (gate_codes * l1_weights(W_dec, l1_mode)).sum(-1), all_reduce)
    mse = squared_error(x, decode(f, W_dec, b_dec, all_reduce))
    if loss == "two_term":
        return LossTerms(mse, l1, torch.zeros_like(mse))
    if loss != "full":
        raise ValueError(f"loss = {loss!r}: expected 'full' or 'two_term'")
    frozen = decode(gate_codes, W_dec.detach(), b_dec.detach(), all_reduce)
    return LossTerms(mse, l1, squared_error(x, frozen))


class GatedSAE(Autoencoder):
    """f = 1[π > 0] ⊙ ReLU(a ⊙ exp(r_mag) + b_mag), a = (x − b_dec) W_enc, π = a + b_gate."""

    LOSSES = ("two_term", "full")
    Options = AuxKOptions
    has_gate = True
    can_be_sharded = True
    UNITLESS = ("r_mag",)
    UNTRAINED: ClassVar[dict[str, str]] = {
        "norm_weighted": "whose decoder rows would shrink until the penalty vanishes while r_mag "
        "makes up for them, so that no λ gives an L0"
    }

    @classmethod
    def bias_names(cls) -> tuple[str, ...]:
        return ("b_gate", "b_mag", "r_mag")

    def _gated_codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return gated_codes(x, self.W_enc, self.b_gate, self.r_mag, self.b_mag, self.b_dec)

    def encode(self, x: Tensor) -> Tensor:
        return self._gated_codes(x)[0]

    def gate_open(self, x: Tensor) -> Tensor:
        return self._gated_codes(x)[1] > 0

    def loss_terms(self, x: Tensor, lam: float, how: How) -> LossTerms:
        params = dict(self.named_parameters())
        terms = gated_loss(x, params, lam, self.config.l1_mode, how.loss, how.all_reduce)
        return terms._replace(aux=terms.aux + aux_k_loss(self, x, how))

    @torch.no_grad()
    def dense_step(self, x: Tensor, lam: float, how: How) -> tuple[StepStats, Gradients]:
        mode, n_rows = self.config.l1_mode, len(x)
        gain = self.r_mag.exp()
        x_c = x - self.b_dec
        a = encoder_product(x_c, self.W_enc, how.encoder)  # [batch, n_latents]
        gate_codes = (a + self.b_gate).relu_()  # ReLU(π)
        is_open = gate_codes > 0
        f = (a * gain).add_(self.b_mag).relu_().mul_(is_open)
        active = f > 0
        error = decoding_error(x, f, self.W_dec, self.b_dec, how.all_reduce)
        mse = error.pow(2).sum()
        error *= 2 / n_rows

        g_mag = (error @ self.W_dec.T).mul_(active)  # through the magnitude path alone
        penalty = penalty_of(self.W_dec, mode, lam / n_rows)
        g_pi = torch.zeros_like(a).add_(penalty)
        aux = x.new_zeros(())
        if how.loss == "full":
            aux_error = decoding_error(x, gate_codes, self.W_dec, self.b_dec, how.all_reduce)
            aux = aux_error.pow(2).sum()
            g_pi.addmm_(aux_error.mul_(2 / n_rows), self.W_dec.T)
        g_pi *= is_open
        grads = {"W_dec": f.T @ error, "b_gate": g_pi.sum(0), "b_mag": g_mag.sum(0)}
        if mode == "norm_weighted":
            grads["W_dec"] += decoder_norm_gradient(gate_codes.sum(0), self.W_dec, lam / n_rows)
        grads["r_mag"] = (g_mag * a).sum(0) * gain
        g_a = g_pi.addcmul_(g_mag, gain)
        grads["W_enc"] = encoder_gradient(x_c, g_a)
        through_encoder = sum_over_ranks(self.W_enc @ g_a.sum(0), how.all_reduce)
        grads["b_dec"] = error.sum(0) - through_encoder
        aux = aux + add_aux_k_(self, x_c, error, how, grads)
        l1 = (gate_codes * penalty).sum() * n_rows
        fired, opened = active.any(0), is_open.any(0)
        return StepStats(mse, l1, aux, active.sum(), is_open.sum(), fired, opened), grads

    @torch.no_grad()
    def encode_sparse(self, x: Tensor, encoder: str = "exact") -> tuple[SparseCodes, Tensor]:
        return self._codes(x - self.b_dec, encoder)[:2]

    def _codes(self, x_c: Tensor, encoder: str) -> tuple[SparseCodes, Tensor, Tensor]:
        """Open gates, their codes f, and what opened them, ReLU(π). x_c: [batch, d_in]."""
        operations = sparse.operations(x_c.device)
        codes = operations.open_entries(x_c, self.W_enc, self.b_gate, encoder)
        col = codes.col.long()
        gate_codes = codes.value + self.b_gate[col]
        f = (codes.value * self.r_mag.exp()[col] + self.b_mag[col]).relu_()
        return codes, f, gate_codes

    @torch.no_grad()
    def sparse_step(self, x: Tensor, lam: float, how: How) -> tuple[StepStats, Gradients]:
        mode, n_rows, n_latents = self.config.l1_mode, len(x), self.W_enc.shape[1]
        scale = 2 / n_rows
        gain = self.r_mag.exp()
        x_c = x - self.b_dec
        codes, f, gate_codes = self._codes(x_c, how.encoder)
        col = codes.col.long()
        active = f > 0
        full = how.loss == "full"
        (error, mse, g_f), *of_gates = sparse.decode_each(
            x,
            self.W_dec,
            self.b_dec,
            codes,
            [f, gate_codes] if full else [f],
            scale,
            how.all_reduce,
        )
        g_mag = g_f * active
        penalty = penalty_of(self.W_dec, mode, lam / n_rows)
        weight = penalty[col] if isinstance(penalty, Tensor) else torch.full_like(f, penalty)
        g_pi = weight
        aux = x.new_zeros(())
        if full:
            ((_, aux, g_aux),) = of_gates
            g_pi = weight + g_aux
        g_a = g_pi + g_mag * gain[col]
        grads = {
            "W_dec": sparse.decoder_gradient(error, codes, f, how.room),
            "W_enc": sparse.encoder_gradient(x_c, codes, g_a, how.room),
            "b_gate": sparse.sum_by_latent(codes, g_pi),
            "b_mag": sparse.sum_by_latent(codes, g_mag),
            "r_mag": sparse.sum_by_latent(codes, g_mag * codes.value) * gain,
        }
        g_a_sums = sparse.sum_by_latent(codes, g_a)
        through_encoder = sum_over_ranks(self.W_enc @ g_a_sums, how.all_reduce)
        grads["b_dec"] = error.sum(0) - through_encoder
        if mode == "norm_weighted":
            code_sums = sparse.sum_by_latent(codes, gate_codes)
            grads["W_dec"] += decoder_norm_gradient(code_sums, self.W_dec, lam / n_rows)
        aux = aux + add_aux_k_(self, x_c, error, how, grads)
        l1 = (gate_codes * weight).sum() * n_rows
        fired = sparse.latents_with(codes, active, n_latents)
        opened = sparse.latents_with_entries(codes)
        n_open = torch.tensor(len(f))
        return StepStats(mse, l1, aux, active.sum(), n_open, fired, opened), grads
