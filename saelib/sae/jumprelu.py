"""The JumpReLU SAE (Rajamanoharan et al. 2024, arXiv 2407.14435).

z = (x − b_dec) W_enc + b_enc
f = ReLU(z) ⊙ 1[z > θ], θ the latent's `threshold`
x̂ = f W_dec + b_dec

It is trained with one of two objectives:

    jumprelu        ‖x − x̂‖² + λ ‖f‖₀, the paper's (equation 9)
    jumprelu_tanh   ‖x − x̂‖² + λ Σ tanh(c f) + λ_P Σ ReLU(θ − z) over dead latents (Conerly et al.
                    2025, Circuits Updates, January: Dictionary Learning Optimization Techniques)

**The gradient of θ.** Jumps have none, so both objectives take the paper's pseudo-derivatives, with
K the rectangle of width ε, `bandwidth`: ∂f/∂θ = −(θ/ε) K and ∂1[z > θ]/∂θ = −(1/ε) K, where K is 1
for |z − θ| < ε/2, else 0 (equations 11 and 12). Averaged over rows they estimate the gradient of
the expected loss (section 4). Towards z f keeps its own derivative, 1[z > θ], and the count ‖f‖₀
none.

**Units.** Normalised activations have a mean square of 1 per dimension, ‖x‖ ≈ √d, and codes of
decoder rows of unit norm share their unit. So have θ and ε, whose defaults grow as √d; the paper's
ε = 0.001 is for ‖x‖ ≈ 1, thus √d times as much here, and Conerly et al. take 2. Of the count, λ is
the squared error that one more code has to save: a latent fires where it saves more than λ, and θ
comes to rest near √λ. The tanh counts nearly the same, since tanh(c f) is near 1 above 1/c. Decoder
rows have unit norm, so that c f is the c f ‖W_dec,i‖ of the source, where they are free.

**θ in training** goes `THRESHOLD_RATE` times as far as Adam takes it. Adam moves each parameter by
about the learning rate, whatever λ, and where steps are few θ does not get to √λ so: L0 then hardly
follows λ. It stays at least `LEAST_THRESHOLD`, by a clamp after each step: at 0 the gradient that f
passes to it would vanish for good. The stored `threshold` is θ itself, and SAEs of other libraries
may have any.

**The source's third term**, λ_P Σ ReLU(θ − z), has there every latent; here only those that did not
fire for `dead_window` tokens, as in SAELens: with the source's λ_P it moves no other, and it would
need every z. `aux_k` adds AuxK. Resampling works too: a revived latent's θ starts again at
`initial_threshold`.

Published SAEs are of this kind (Gemma Scope, Llama Scope), and every Gated SAE equals one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from saelib.config import SAEConfig
from saelib.sae import sparse
from saelib.sae.aux_k import AuxKOptions, add_aux_k_, aux_k_loss
from saelib.sae.base import Autoencoder, How
from saelib.sae.dense import (
    Gradients,
    SparseCodes,
    StepStats,
    decoding_error,
    encoder_gradient,
    encoder_product,
    rows_at_once,
)
from saelib.sae.gated import GatedSAE
from saelib.sae.losses import LossTerms, decode, squared_error, sum_over_ranks

LEAST_THRESHOLD = 1e-3  # of an SAE in training, in normalised units
THRESHOLD_RATE = 3.0  # θ's learning rate over that of the other parameters
CHUNK = 128  # rows whose code gradients a sum over the kernel's band copies at once


@dataclass(frozen=True)
class JumpReLUOptions(AuxKOptions):
    """How a JumpReLU SAE is trained; in normalised units. Its codes do not depend on them."""

    # ε, the width of the kernel that gives θ its gradient; by default √d_in / 48
    bandwidth: float | None = None
    initial_threshold: float | None = None  # by default √d_in / 48
    tanh_scale: float | None = None  # c of "jumprelu_tanh"; by default 96 / √d_in
    pre_act: float = 3e-6  # λ_P of "jumprelu_tanh"; 0 is off

    def check(self) -> None:
        super().check()
        start = self.initial_threshold
        self._require(self.bandwidth is None or self.bandwidth > 0, "bandwidth", "a width > 0")
        self._require(start is None or start >= 0, "initial_threshold", "a threshold of 0 or more")
        self._require(self.tanh_scale is None or self.tanh_scale > 0, "tanh_scale", "a factor > 0")
        self._require(self.pre_act >= 0, "pre_act", "0 (off) or more")

    def of_width(self, d_in: int) -> JumpReLUOptions:
        """With what is left to the width filled in: codes of rows of that width grow as √d_in."""
        share = d_in**0.5 / 48
        defaults = {"bandwidth": share, "initial_threshold": share, "tanh_scale": 2 / share}
        missing = {k: v for k, v in defaults.items() if getattr(self, k) is None}
        return replace(self, **missing)


def jumprelu_codes(z: Tensor, threshold: Tensor) -> Tensor:
    """f = ReLU(z) ⊙ 1[z > θ]. z: [batch, n_latents], threshold: [n_latents]."""
    return torch.relu(z) * (z > threshold)


def in_band(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Where the kernel is 1: |z − θ| < ε/2. z and threshold: of one shape, or stretched to it."""
    half = bandwidth / 2
    return (z > threshold - half) & (z < threshold + half)


class Jump(torch.autograd.Function):
    """f of z [batch, n_latents] and θ [n_latents], with the pseudo-derivative towards θ."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        """`jumprelu_codes`."""
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return jumprelu_codes(z, threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """1[z > θ] towards z, −(θ/ε) K towards θ."""
        z, threshold = ctx.saved_tensors
        band_sums = (grad * in_band(z, threshold, ctx.bandwidth)).sum(0)
        return grad * (z > threshold), -(threshold / ctx.bandwidth) * band_sums, None


class Count(torch.autograd.Function):
    """1[z > θ], summed to ‖f‖₀ by the caller, with the pseudo-derivative towards θ alone."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        """1 where z > θ, else 0. z: [batch, n_latents], threshold: [n_latents]."""
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        """Nothing towards z, −(1/ε) K towards θ."""
        z, threshold = ctx.saved_tensors
        band_sums = (grad * in_band(z, threshold, ctx.bandwidth)).sum(0)
        return None, -band_sums / ctx.bandwidth, None


class JumpReLUSAE(Autoencoder):
    """f = ReLU(z) ⊙ 1[z > θ], z = (x − b_dec) W_enc + b_enc."""

    LOSSES = ("jumprelu_tanh", "jumprelu")
    Options = JumpReLUOptions
    can_be_sharded = True
    STARTS: ClassVar[dict[str, str]] = {"threshold": "initial_threshold"}
    FLOORS: ClassVar[dict[str, float]] = {"threshold": LEAST_THRESHOLD}
    UNTRAINED: ClassVar[dict[str, str]] = {
        "norm_weighted": "since threshold and bandwidth are in the units of such rows' codes"
    }

    @classmethod
    def checked(cls, config: SAEConfig) -> SAEConfig:
        """The configuration, its options at their default left out: SAEs of other libraries, which
        have none, keep their identity.
        """
        options = cls.Options.from_dict(config.options)
        return replace(config, options=options.to_dict(omit_defaults=True))

    @classmethod
    def options_of(cls, config: SAEConfig) -> JumpReLUOptions:
        return super().options_of(config).of_width(config.d_in)

    @classmethod
    def bias_names(cls) -> tuple[str, ...]:
        return ("b_enc", "threshold")

    def _pre_activations(self, x: Tensor) -> Tensor:
        return (x - self.b_dec) @ self.W_enc + self.b_enc

    def encode(self, x: Tensor) -> Tensor:
        return jumprelu_codes(self._pre_activations(x), self.threshold)

    # -- the threshold in training

    def step(self, x: Tensor, lam: float, how: How) -> tuple[StepStats, Gradients]:
        self._threshold_before = self.threshold.detach().clone()
        return super().step(x, lam, how)

    @torch.no_grad()
    def after_step_(self) -> None:
        moved = self.threshold - self._threshold_before
        self.threshold.add_(moved, alpha=THRESHOLD_RATE - 1).clamp_(min=LEAST_THRESHOLD)

    # -- the objective

    def loss_terms(self, x: Tensor, lam: float, how: How) -> LossTerms:
        z = self._pre_activations(x)
        f = Jump.apply(z, self.threshold, self.options.bandwidth)
        if how.loss == "jumprelu":
            counts = Count.apply(z, self.threshold, self.options.bandwidth)
        else:
            counts = torch.tanh(self.options.tanh_scale * f)
        l1 = sum_over_ranks(lam * counts.sum(-1), how.all_reduce)
        mse = squared_error(x, decode(f, self.W_dec, self.b_dec, how.all_reduce))
        aux = self._pre_act_loss(z, how) + aux_k_loss(self, x, how)
        return LossTerms(mse, l1, aux)

    def _lifts(self, how: How) -> bool:
        """Whether the objective has a term of dead latents; the same on all ranks."""
        return how.loss == "jumprelu_tanh" and self.options.pre_act > 0 and how.dead is not None

    def _pre_act_loss(self, z: Tensor, how: How) -> Tensor:
        """λ_P Σ ReLU(θ − z) over dead latents, per row. z: [batch, n_latents] -> [batch]."""
        if not self._lifts(how):
            return torch.zeros_like(z[:, 0])
        missing = torch.relu(self.threshold - z) * how.dead
        return sum_over_ranks(self.options.pre_act * missing.sum(-1), how.all_reduce)

    # -- the step on full matrices

    @torch.no_grad()
    def dense_step(self, x: Tensor, lam: float, how: How) -> tuple[StepStats, Gradients]:
        n_rows = len(x)
        bandwidth = self.options.bandwidth
        x_c = x - self.b_dec
        z = encoder_product(x_c, self.W_enc, how.encoder).add_(self.b_enc)  # [batch, n_latents]
        fires = z > self.threshold
        band = in_band(z, self.threshold, bandwidth)
        f = z.mul_(fires)  # θ is at least 0 in training
        error = decoding_error(x, f, self.W_dec, self.b_dec, how.all_reduce)
        mse = error.pow(2).sum()
        error *= 2 / n_rows

        grads = {"W_dec": f.T @ error}
        g_f = error @ self.W_dec.T
        count = fires.sum()
        penalty, per_entry = self._add_penalty_gradient_(g_f, f, count, lam / n_rows, how)
        n_in_band = band.sum(0, dtype=x.dtype)
        g_jump = self.threshold * _band_sums(g_f, band) + per_entry * n_in_band
        grads["threshold"] = g_jump / -bandwidth
        g_z = g_f.mul_(fires)
        grads["W_enc"] = encoder_gradient(x_c, g_z)
        grads["b_enc"] = g_z.sum(0)
        aux = self._add_pre_act_gradients_(grads, x_c, how)
        through_encoder = sum_over_ranks(self.W_enc @ grads["b_enc"], how.all_reduce)
        grads["b_dec"] = error.sum(0) - through_encoder
        aux = aux + add_aux_k_(self, x_c, error, how, grads)
        fired = fires.any(0)
        n_taken = fires.logical_or_(band).sum()
        return StepStats(mse, lam * penalty, aux, count, n_taken, fired, fired), grads

    def _add_penalty_gradient_(
        self, g_f: Tensor, f: Tensor, count: Tensor, factor: float, how: How
    ) -> tuple[Tensor, float]:
        """Add the gradient of factor · penalty towards the codes f to g_f; f is overwritten.

        Returns the penalty, Σ tanh(c f) or the `count` of codes, and what an entry in the kernel's
        band adds to −ε ∂/∂θ by itself.
        """
        if how.loss == "jumprelu":
            return count.to(f.dtype), factor
        saturation = f.mul_(self.options.tanh_scale).tanh_()
        slope = factor * self.options.tanh_scale
        g_f.add_(slope).addcmul_(saturation, saturation, value=-slope)
        return saturation.sum(), 0.0

    def _add_pre_act_gradients_(self, grads: Gradients, x_c: Tensor, how: How) -> Tensor:
        """Add the gradients of the term of dead latents to W_enc, b_enc, θ; returns its sum."""
        if not self._lifts(how):
            return x_c.new_zeros(())
        dead = how.dead.nonzero().flatten()
        W_enc, b_enc, threshold = self.W_enc[:, dead], self.b_enc[dead], self.threshold[dead]
        total = x_c.new_zeros(())
        g_W_enc, g_z = torch.zeros_like(W_enc), torch.zeros_like(b_enc)
        for rows in x_c.split(rows_at_once(max(1, len(dead)), x_c.device)):
            missing = (threshold - (encoder_product(rows, W_enc) + b_enc)).relu_()
            lacks = (missing > 0).to(rows.dtype)
            total += missing.sum()
            g_z -= lacks.sum(0)
            g_W_enc -= encoder_gradient(rows, lacks)
        factor = self.options.pre_act / len(x_c)
        grads["W_enc"][:, dead] += factor * g_W_enc
        grads["b_enc"][dead] += factor * g_z
        grads["threshold"][dead] -= factor * g_z
        return sum_over_ranks(self.options.pre_act * total, how.all_reduce)

    # -- the step on the entries that fire, or lie in the kernel's band

    @torch.no_grad()
    def encode_sparse(self, x: Tensor, encoder: str = "exact") -> tuple[SparseCodes, Tensor]:
        return self._entries(x - self.b_dec, self.threshold.clamp_min(0), encoder)

    def _entries(self, x_c: Tensor, above: Tensor, encoder: str) -> tuple[SparseCodes, Tensor]:
        """Entries with z above a bound [n_latents], and their z. x_c: [batch, d_in]."""
        operations = sparse.operations(x_c.device)
        codes = operations.open_entries(x_c, self.W_enc, self.b_enc - above, encoder)
        return codes, codes.value + self.b_enc[codes.col.long()]

    @torch.no_grad()
    def sparse_step(self, x: Tensor, lam: float, how: How) -> tuple[StepStats, Gradients]:
        n_rows = len(x)
        n_latents = len(self.threshold)
        bandwidth = self.options.bandwidth
        x_c = x - self.b_dec
        codes, z = self._entries(x_c, self.threshold - bandwidth / 2, how.encoder)
        threshold = self.threshold[codes.col.long()]
        fires = z > threshold
        band = in_band(z, threshold, bandwidth)
        f = z * fires
        error, mse, g_f = sparse.decode(
            x, self.W_dec, self.b_dec, codes, f, 2 / n_rows, how.all_reduce
        )
        grads = {"W_dec": sparse.decoder_gradient(error, codes, f, how.room)}
        count = fires.sum()
        penalty, per_entry = self._add_penalty_gradient_(g_f, f, count, lam / n_rows, how)
        g_jump = (threshold * g_f + per_entry) * band
        grads["threshold"] = sparse.sum_by_latent(codes, g_jump) / -bandwidth
        g_z = g_f.mul_(fires)
        grads["W_enc"] = sparse.encoder_gradient(x_c, codes, g_z, how.room)
        grads["b_enc"] = sparse.sum_by_latent(codes, g_z)
        aux = self._add_pre_act_gradients_(grads, x_c, how)
        through_encoder = sum_over_ranks(self.W_enc @ grads["b_enc"], how.all_reduce)
        grads["b_dec"] = error.sum(0) - through_encoder
        aux = aux + add_aux_k_(self, x_c, error, how, grads)
        fired = sparse.latents_with(codes, fires, n_latents)
        n_taken = torch.tensor(len(f))
        return StepStats(mse, lam * penalty, aux, count, n_taken, fired, fired), grads


def _band_sums(g_f: Tensor, band: Tensor) -> Tensor:
    """Σ over rows of g_f where the kernel is 1, without a copy of all. -> [n_latents]."""
    sums = torch.zeros_like(g_f[0])
    for rows, in_rows in zip(g_f.split(CHUNK), band.split(CHUNK), strict=True):
        sums += (rows * in_rows).sum(0)
    return sums


@torch.no_grad()
def jumprelu_of(sae: GatedSAE) -> JumpReLUSAE:
    """The JumpReLU SAE that a Gated one equals, in the same units (section 3.2 of 2404.16014).

    With a = (x − b_dec) W_enc the Gated code is z = eʳ a + b_mag where both a > −b_gate and z > 0.
    Since eʳ > 0, a > −b_gate is z > b_mag − eʳ b_gate. So W = eʳ W_enc, b_enc = b_mag and
    θ = max(0, b_mag − eʳ b_gate).
    """
    gain = sae.r_mag.exp()
    equal = JumpReLUSAE(replace(sae.config, arch="jumprelu", options={})).to(sae.W_dec)
    equal.W_enc.copy_(sae.W_enc * gain)
    equal.b_enc.copy_(sae.b_mag)
    equal.threshold.copy_((sae.b_mag - gain * sae.b_gate).clamp_min(0))
    equal.W_dec.copy_(sae.W_dec)
    equal.b_dec.copy_(sae.b_dec)
    equal.set_normalizer_(sae.mean, float(sae.scale))
    return equal.requires_grad_(False)
