"""The TopK SAE (Gao et al. 2024, Scaling and evaluating sparse autoencoders, arXiv 2406.04093).

f = TopK(ReLU((x − b_dec) W_enc + b_enc)): per token, the k largest codes; the others are 0
x̂ = f W_dec + b_dec
L = ‖x − x̂‖², and AuxK for dead latents (`aux_k`)

There is no L1 penalty: k is what λ is elsewhere. Dead latents are not resampled: a revived encoder
has a fifth of the others' norm, and its codes are seldom among the k largest. AuxK revives them.

`TopKSAE` is also the base of architectures that choose their codes otherwise (`_chosen`,
`_entries`) or add up other errors (`_squared_errors`, `_decoded`, `_decoded_sparse`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from saelib.config import Checked, ConfigError, SAEConfig
from saelib.sae import sparse
from saelib.sae.aux_k import add_aux_k_, aux_k_loss
from saelib.sae.base import Autoencoder, How
from saelib.sae.dense import (
    Gradients,
    SparseCodes,
    StepStats,
    decoding_error,
    encoder_gradient,
    encoder_product,
)
from saelib.sae.losses import LossTerms, squared_error
from saelib.sae.sparse.selection import largest


@dataclass(frozen=True)
class TopKOptions(Checked):
    """The options of a TopK SAE."""

    k: int = 32  # latents that fire per token, at most
    aux_k: int = 256  # dead latents that rebuild the error per token, at most; 0 is off

    def check(self) -> None:
        self._at_least(1, "at least 1", "k")
        self._at_least(0, "0 (off) or more", "aux_k")


class Decoded(NamedTuple):
    """What a step needs of a decoding: squared errors, and gradients of their mean over rows."""

    x_hat: Tensor  # gradient of what all latents rebuild, 2/batch (x̂ − x) [batch, d_in]
    mse: Tensor  # Σ ‖x̂ − x‖² of all latents
    nested: Tensor  # Σ of the squared errors of fewer latents, where the objective has such
    W_dec: Tensor  # gradient [n_latents, d_in]
    b_dec: Tensor  # gradient [d_in], of the decoding alone
    f: Tensor  # gradient of the codes: [batch, n_latents], or [entries]


class TopKSAE(Autoencoder):
    """f = TopK(ReLU((x − b_dec) W_enc + b_enc)), x̂ = f W_dec + b_dec."""

    LOSSES = ("topk",)
    KNOB = "k"
    L0_IS_EXACT = True
    Options = TopKOptions
    UNRESAMPLED = (
        "of which a revived encoder, at a fifth of the others' norm, is seldom among the largest; "
        "aux_k revives its dead latents"
    )

    @classmethod
    def checked(cls, config: SAEConfig) -> SAEConfig:
        config = super().checked(config)
        k = config.options["k"]
        if k > config.n_latents:
            raise ConfigError(
                f"{cls.Options.__name__}.k = {k}: expected at most n_latents = {config.n_latents}"
            )
        if config.l1_mode != "unit_norm":
            raise ConfigError(
                f"SAEConfig.l1_mode = {config.l1_mode!r}: expected 'unit_norm', since arch "
                f"{config.arch!r} has no L1 penalty to weight"
            )
        return config

    @classmethod
    def bias_names(cls) -> tuple[str, ...]:
        return ("b_enc",)

    # -- how codes are chosen

    def encode(self, x: Tensor) -> Tensor:
        pre = (x - self.b_dec) @ self.W_enc + self.b_enc
        return torch.relu(pre) * self._chosen(pre)

    @torch.no_grad()
    def encode_sparse(self, x: Tensor, encoder: str = "exact") -> tuple[SparseCodes, Tensor]:
        codes = self._entries(x - self.b_dec, encoder)
        return codes, codes.value + self.b_enc[codes.col.long()]

    def _chosen(self, pre: Tensor) -> Tensor:
        """Which codes of a training batch fire. [batch, n_latents] -> bool, the same shape."""
        return largest(pre, self.options.k)

    def _entries(self, x_c: Tensor, encoder: str) -> SparseCodes:
        """The same from x_c = x − b_dec [batch, d_in], float32."""
        operations = sparse.operations(x_c.device)
        return operations.top_entries(x_c, self.W_enc, self.b_enc, self.options.k, encoder)

    def _note_codes_(self, f: Tensor, n_rows: int) -> None:
        """Told the codes above 0 of each training batch [entries]; here they leave no trace."""

    # -- the objective and its gradients

    def loss_terms(self, x: Tensor, lam: float, how: How) -> LossTerms:
        pre = (x - self.b_dec) @ self.W_enc + self.b_enc
        f = torch.relu(pre) * self._chosen(pre)
        mse, nested = self._squared_errors(x, f)
        aux = nested + aux_k_loss(self, x, how, f, positive=True)
        return LossTerms(mse, torch.zeros_like(mse), aux)

    def _squared_errors(self, x: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        """‖x − x̂‖² of all latents and what is added for fewer of them, differentiable. [batch]."""
        mse = squared_error(x, self.decode(f))
        return mse, torch.zeros_like(mse)

    @torch.no_grad()
    def dense_step(self, x: Tensor, lam: float, how: How) -> tuple[StepStats, Gradients]:
        x_c = x - self.b_dec
        pre = encoder_product(x_c, self.W_enc, how.encoder) + self.b_enc
        active = self._chosen(pre)
        decoded = self._decoded(x, pre * active)
        g_pre = decoded.f.mul_(active)
        grads = {
            "W_dec": decoded.W_dec,
            "W_enc": encoder_gradient(x_c, g_pre),
            "b_enc": g_pre.sum(0),
        }
        grads["b_dec"] = decoded.b_dec - self.W_enc @ grads["b_enc"]
        aux = add_aux_k_(self, x_c, decoded.x_hat, how, grads, positive=True)
        self._note_codes_(pre[active], len(x))
        return self._stats(decoded, aux, active.sum(), active.any(0)), grads

    def _decoded(self, x: Tensor, f: Tensor) -> Decoded:
        """x: [batch, d_in], f: [batch, n_latents]."""
        error = decoding_error(x, f, self.W_dec, self.b_dec, None)
        mse = error.pow(2).sum()
        error *= 2 / len(x)
        return Decoded(
            x_hat=error,
            mse=mse,
            nested=x.new_zeros(()),
            W_dec=f.T @ error,
            b_dec=error.sum(0),
            f=error @ self.W_dec.T,
        )

    def _stats(self, decoded: Decoded, aux: Tensor, count: Tensor, fired: Tensor) -> StepStats:
        none = decoded.mse.new_zeros(())
        aux = aux + decoded.nested
        return StepStats(decoded.mse, none, aux, count, count, fired, fired)

    @torch.no_grad()
    def sparse_step(self, x: Tensor, lam: float, how: How) -> tuple[StepStats, Gradients]:
        x_c = x - self.b_dec
        codes = self._entries(x_c, how.encoder)
        f = codes.value + self.b_enc[codes.col.long()]
        decoded = self._decoded_sparse(x, codes, f, how.room)
        g_pre = decoded.f
        grads = {
            "W_dec": decoded.W_dec,
            "W_enc": sparse.encoder_gradient(x_c, codes, g_pre, how.room),
            "b_enc": sparse.sum_by_latent(codes, g_pre),
        }
        grads["b_dec"] = decoded.b_dec - self.W_enc @ grads["b_enc"]
        aux = add_aux_k_(self, x_c, decoded.x_hat, how, grads, positive=True)
        self._note_codes_(f, len(x))
        fired = sparse.latents_with_entries(codes)
        return self._stats(decoded, aux, torch.tensor(len(f)), fired), grads

    def _decoded_sparse(
        self, x: Tensor, codes: SparseCodes, f: Tensor, room: Gradients | None
    ) -> Decoded:
        """x: [batch, d_in], f: [entries]; `room` as in `sparse.decoder_gradient`."""
        operations = sparse.operations(x.device)
        error, mse, g_f = operations.decode(x, self.W_dec, self.b_dec, codes, f, 2 / len(x))
        return Decoded(
            x_hat=error,
            mse=mse,
            nested=x.new_zeros(()),
            W_dec=sparse.decoder_gradient(error, codes, f, room),
            b_dec=error.sum(0),
            f=g_f,
        )
