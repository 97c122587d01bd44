"""The JumpReLU SAE (Rajamanoharan et al. 2024, arXiv 2407.14435), for measuring; not trained yet.

a = (x − b_dec) W_enc + b_enc
f = ReLU(a) ⊙ 1[a > θ], θ the latent's `threshold`
x̂ = f W_dec + b_dec

Published SAEs are of this kind (Gemma Scope, Llama Scope), and every Gated SAE equals one.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from saelib.config import ConfigError
from saelib.sae.base import Autoencoder, How
from saelib.sae.gated import GatedSAE
from saelib.sae.losses import LossTerms


class JumpReLUSAE(Autoencoder):
    """f = ReLU(a) ⊙ 1[a > θ], a = (x − b_dec) W_enc + b_enc."""

    LOSSES = ()

    @classmethod
    def bias_names(cls) -> tuple[str, ...]:
        return ("b_enc", "threshold")

    def encode(self, x: Tensor) -> Tensor:
        a = (x - self.b_dec) @ self.W_enc + self.b_enc
        return torch.relu(a) * (a > self.threshold)

    def loss_terms(self, x: Tensor, lam: float, how: How) -> LossTerms:
        """There are none: the threshold has no gradient without a kernel for its step.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"arch = {self.config.arch!r}: it can be opened and measured, but not trained; "
            "train 'sae', 'gated' or 'topk'"
        )


@torch.no_grad()
def jumprelu_of(sae: GatedSAE) -> JumpReLUSAE:
    """The JumpReLU SAE that a Gated one equals, in the same units (section 3.2 of 2404.16014).

    With a = (x − b_dec) W_enc the Gated code is z = eʳ a + b_mag where both a > −b_gate and z > 0.
    Since eʳ > 0, a > −b_gate is z > b_mag − eʳ b_gate. So W = eʳ W_enc, b_enc = b_mag and
    θ = max(0, b_mag − eʳ b_gate).
    """
    gain = sae.r_mag.exp()
    equal = JumpReLUSAE(replace(sae.config, arch="jumprelu")).to(sae.W_dec)
    equal.W_enc.copy_(sae.W_enc * gain)
    equal.b_enc.copy_(sae.b_mag)
    equal.threshold.copy_((sae.b_mag - gain * sae.b_gate).clamp_min(0))
    equal.W_dec.copy_(sae.W_dec)
    equal.b_dec.copy_(sae.b_dec)
    equal.set_normalizer_(sae.mean, float(sae.scale))
    return equal.requires_grad_(False)
