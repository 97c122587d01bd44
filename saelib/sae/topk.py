"""The TopK SAE (Gao et al. 2024, Scaling and evaluating sparse autoencoders, arXiv 2406.04093).

f = TopK(ReLU((x − b_dec) W_enc + b_enc)): per token, the k largest codes; the others are 0
x̂ = f W_dec + b_dec
L = ‖x − x̂‖² + (1/32) ‖e − ê‖², e = x − x̂ without a gradient

AuxK, the second term: ê = z W_dec, where z are the aux_k largest codes among the dead latents, per
token. It gives latents that never fire a gradient towards what the others miss; ê has no bias,
since e has none. There is no L1 penalty: k is what λ is elsewhere. The paper divides both terms by
constants of the data; here 1/32 is the ratio of the undivided errors. Dead latents may be resampled
as well, but a revived encoder of a fifth of the norm is seldom among the k largest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saelib.config import Checked, ConfigError, SAEConfig
from saelib.sae import sparse
from saelib.sae.base import Autoencoder, How
from saelib.sae.dense import (
    Gradients,
    SparseCodes,
    StepStats,
    codes_at_places,
    decoding_error,
    encoder_gradient,
    encoder_product,
)
from saelib.sae.losses import LossTerms, squared_error

AUX_COEFFICIENT = 1 / 32


@dataclass(frozen=True)
class TopKOptions(Checked):
    """The options of a TopK SAE."""

    k: int = 32  # latents that fire per token, at most
    aux_k: int = 256  # dead latents that rebuild the error per token, at most; 0 is off

    def check(self) -> None:
        self._at_least(1, "at least 1", "k")
        self._at_least(0, "0 (off) or more", "aux_k")


def top_positive(a: Tensor, bias: Tensor, k: int, allowed: Tensor | None = None) -> Tensor:
    """Where a + bias is above 0 and among the k largest of its row.

    a: [batch, n_latents], bias: [n_latents] -> bool [batch, n_latents]. Only latents of `allowed`
    (bool [n_latents]) count; without it all do.
    """
    pre = a.detach() + bias.detach()
    if allowed is not None:
        pre = pre.masked_fill(~allowed, -torch.inf)
    largest, latents = pre.topk(min(k, pre.shape[1]), dim=1, sorted=False)
    return torch.zeros_like(pre, dtype=torch.bool).scatter_(1, latents, largest > 0)


class TopKSAE(Autoencoder):
    """f = TopK(ReLU((x − b_dec) W_enc + b_enc)), x̂ = f W_dec + b_dec."""

    LOSSES = ("topk",)
    KNOB = "k"
    Options = TopKOptions

    @classmethod
    def checked(cls, config: SAEConfig) -> SAEConfig:
        config = super().checked(config)
        k = config.options["k"]
        if k > config.n_latents:
            raise ConfigError(
                f"TopKOptions.k = {k}: expected at most n_latents = {config.n_latents}"
            )
        if config.l1_mode != "unit_norm":
            raise ConfigError(
                f"SAEConfig.l1_mode = {config.l1_mode!r}: expected 'unit_norm', since arch 'topk' "
                "has no L1 penalty to weight"
            )
        return config

    @classmethod
    def bias_names(cls) -> tuple[str, ...]:
        return ("b_enc",)

    def encode(self, x: Tensor) -> Tensor:
        a = (x - self.b_dec) @ self.W_enc
        return torch.relu(a + self.b_enc) * top_positive(a, self.b_enc, self.options.k)

    def loss_terms(self, x: Tensor, lam: float, how: How) -> LossTerms:
        a = (x - self.b_dec) @ self.W_enc
        pre = torch.relu(a + self.b_enc)
        x_hat = self.decode(pre * top_positive(a, self.b_enc, self.options.k))
        mse = squared_error(x, x_hat)
        none = torch.zeros_like(mse)
        if not self._rebuilds_error(how):
            return LossTerms(mse, none, none)
        z = pre * top_positive(a, self.b_enc, self.options.aux_k, how.dead)
        error = (x - x_hat).detach()
        return LossTerms(mse, none, AUX_COEFFICIENT * squared_error(error, z @ self.W_dec))

    def _rebuilds_error(self, how: How) -> bool:
        """Whether AuxK has something to do: there are dead latents."""
        return self.options.aux_k > 0 and how.dead is not None and bool(how.dead.any())

    @torch.no_grad()
    def dense_step(self, x: Tensor, lam: float, how: How) -> tuple[StepStats, Gradients]:
        factor = 2 / len(x)
        x_c = x - self.b_dec
        a = encoder_product(x_c, self.W_enc, how.encoder)
        active = top_positive(a, self.b_enc, self.options.k)
        pre = a + self.b_enc
        f = pre * active
        error = decoding_error(x, f, self.W_dec, self.b_dec, how.all_reduce)
        mse = error.pow(2).sum()
        aux = x.new_zeros(())
        g_pre = (factor * error @ self.W_dec.T).mul_(active)
        grads = {"W_dec": f.T @ (factor * error)}
        if self._rebuilds_error(how):
            rebuilding = top_positive(a, self.b_enc, self.options.aux_k, how.dead)
            z = pre * rebuilding
            aux_error = z @ self.W_dec + error  # ê − e, and the error here is −e
            aux = AUX_COEFFICIENT * aux_error.pow(2).sum()
            aux_error *= AUX_COEFFICIENT * factor
            grads["W_dec"] += z.T @ aux_error
            g_pre += (aux_error @ self.W_dec.T).mul_(rebuilding)
        grads["W_enc"] = encoder_gradient(x_c, g_pre)
        grads["b_enc"] = g_pre.sum(0)
        grads["b_dec"] = factor * error.sum(0) - self.W_enc @ grads["b_enc"]
        return self._stats(mse, aux, active.sum(), active.any(0)), grads

    def _stats(self, mse: Tensor, aux: Tensor, count: Tensor, fired: Tensor) -> StepStats:
        return StepStats(mse, mse.new_zeros(()), aux, count, count, fired, fired)

    @torch.no_grad()
    def encode_sparse(self, x: Tensor, encoder: str = "exact") -> tuple[SparseCodes, Tensor]:
        a = encoder_product(x - self.b_dec, self.W_enc, encoder)
        return self._codes(a, self.options.k)

    def _codes(
        self, a: Tensor, k: int, allowed: Tensor | None = None
    ) -> tuple[SparseCodes, Tensor]:
        """The k largest codes per row of a = (x − b_dec) W_enc among `allowed` latents."""
        row, col = top_positive(a, self.b_enc, k, allowed).nonzero(as_tuple=True)
        codes = codes_at_places(row, col, a[row, col], a.shape)
        return codes, codes.value + self.b_enc[col]

    @torch.no_grad()
    def sparse_step(self, x: Tensor, lam: float, how: How) -> tuple[StepStats, Gradients]:
        factor = 2 / len(x)
        n_latents = self.config.n_latents
        operations = sparse.operations(x.device)
        x_c = x - self.b_dec
        a = encoder_product(x_c, self.W_enc, how.encoder)
        codes, f = self._codes(a, self.options.k)
        error, mse, g_pre = operations.decode(x, self.W_dec, self.b_dec, codes, f, factor)
        aux = x.new_zeros(())
        grads = {
            "W_dec": operations.weight_gradient(error, codes, f, n_latents),
            "W_enc": operations.weight_gradient(x_c, codes, g_pre, n_latents).T,
            "b_enc": sparse.sum_by_latent(codes, g_pre, n_latents),
        }
        if self._rebuilds_error(how):
            aux = self._add_aux_gradients_(grads, a, x_c, error / -factor, how)
        grads["b_dec"] = error.sum(0) - self.W_enc @ grads["b_enc"]
        fired = sparse.latents_with(codes, torch.ones_like(f, dtype=torch.bool), n_latents)
        return self._stats(mse, aux, torch.tensor(len(f)), fired), grads

    def _add_aux_gradients_(
        self, grads: Gradients, a: Tensor, x_c: Tensor, missed: Tensor, how: How
    ) -> Tensor:
        """Add AuxK's gradients for what the main codes missed [batch, d_in]; returns its loss."""
        n_latents = self.config.n_latents
        operations = sparse.operations(a.device)
        codes, z = self._codes(a, self.options.aux_k, how.dead)
        factor = AUX_COEFFICIENT * 2 / len(x_c)
        no_bias = torch.zeros_like(self.b_dec)
        error, squared, g_pre = operations.decode(missed, self.W_dec, no_bias, codes, z, factor)
        grads["W_dec"] += operations.weight_gradient(error, codes, z, n_latents)
        grads["W_enc"] += operations.weight_gradient(x_c, codes, g_pre, n_latents).T
        grads["b_enc"] += sparse.sum_by_latent(codes, g_pre, n_latents)
        return AUX_COEFFICIENT * squared
