"""AuxK: dead latents rebuild what the others miss (Gao et al. 2024, arXiv 2406.04093, section 2).

L_aux = (1/32) ‖e − ê‖², e = x − x̂ without a gradient, ê = z W_dec

z are the aux_k largest pre-activations among the dead latents, per row. They give latents that
never fire a gradient towards the error; ê has no bias, since e has none. The paper divides both
errors by constants of the data; here 1/32 is the ratio of the undivided ones.

Of codes that compete for k places z is taken above 0 alone, as the paper does: a dead latent there
is one that others exceed. A latent that a penalty or a threshold silenced is below 0 on every row,
and would get nothing so: there z may be negative, whose gradient may bring it back.

It is an option of any architecture: `aux_k` in its options, `aux_k_loss` in its `loss_terms`, and
`add_aux_k_` in a step that is written out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saelib.config import Checked
from saelib.sae import sparse
from saelib.sae.base import Autoencoder, How
from saelib.sae.dense import Gradients, codes_at_places, encoder_product
from saelib.sae.losses import squared_error
from saelib.sae.sparse.selection import largest

AUX_COEFFICIENT = 1 / 32


@dataclass(frozen=True)
class AuxKOptions(Checked):
    """The option `aux_k` of an architecture that does without it by default."""

    aux_k: int = 0  # dead latents that rebuild the error per row, at most; 0 is off

    def check(self) -> None:
        self._at_least(0, "0 (off) or more", "aux_k")

    def to_dict(self, omit_defaults: bool = False) -> dict[str, Any]:
        """As `Checked.to_dict`; without `aux_k` where it is off.

        SAEs from before there was such an option are described, and named, as they were.
        """
        values = super().to_dict(omit_defaults)
        return {k: v for k, v in values.items() if k != "aux_k" or v}


def rebuilds_error(sae: Autoencoder, how: How) -> bool:
    """Whether AuxK has something to do: there is such an option, it is on, and there are dead."""
    is_on = getattr(sae.options, "aux_k", 0) > 0
    return is_on and how.dead is not None and bool(how.dead.any())


def aux_k_loss(
    sae: Autoencoder, x: Tensor, how: How, f: Tensor | None = None, positive: bool = False
) -> Tensor:
    """The term of each row, differentiable; 0 without dead latents. x: [batch, d_in] -> [batch].

    f: the codes [batch, n_latents] that miss the error, by default those of `encode`; they get no
    gradient. `positive`: z above 0 alone.
    """
    if not rebuilds_error(sae, how):
        return torch.zeros_like(x[:, 0])
    with torch.no_grad():
        missed = x - sae.decode(sae.encode(x) if f is None else f)
    bias = getattr(sae, sae.bias_names()[0])[how.dead]
    pre = (x - sae.b_dec) @ sae.W_enc[:, how.dead] + bias
    z = pre * largest(pre, sae.options.aux_k, positive)
    return AUX_COEFFICIENT * squared_error(missed, z @ sae.W_dec[how.dead])


@torch.no_grad()
def add_aux_k_(
    sae: Autoencoder,
    x_c: Tensor,
    g_x_hat: Tensor,
    how: How,
    grads: Gradients,
    positive: bool = False,
) -> Tensor:
    """Add the gradients of the term's mean over rows; returns its sum over rows, 0 without dead.

    x_c = x − b_dec, g_x_hat = 2/batch (x̂ − x), the reconstruction's gradient: [batch, d_in].
    """
    if not rebuilds_error(sae, how):
        return x_c.new_zeros(())
    dead = how.dead.nonzero().flatten()
    name = sae.bias_names()[0]
    W_enc, W_dec = sae.W_enc.T[dead].T, sae.W_dec[dead]
    a = encoder_product(x_c, W_enc, how.encoder)
    pre = a + getattr(sae, name)[dead]
    chosen = largest(pre, sae.options.aux_k, positive)
    missed = g_x_hat * (-len(x_c) / 2)
    rebuilt = _sparse_gradients if how.sparse else _dense_gradients
    squared, g_W_dec, g_W_enc, g_bias = rebuilt(x_c, missed, W_dec, pre, chosen)
    grads["W_dec"][dead] += g_W_dec
    grads["W_enc"].T[dead] += g_W_enc
    grads[name][dead] += g_bias
    grads["b_dec"] -= W_enc @ g_bias
    return AUX_COEFFICIENT * squared


def _dense_gradients(
    x_c: Tensor, missed: Tensor, W_dec: Tensor, pre: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Σ ‖ê − e‖² and the term's gradients, latent by latent, from full matrices of dead latents.

    W_dec [n_dead, d_in]; pre and chosen [batch, n_dead]. -> scalar, W_dec's [n_dead, d_in], W_enc's
    [n_dead, d_in], the bias's [n_dead].
    """
    z = pre * chosen
    error = z @ W_dec - missed
    squared = error.pow(2).sum()
    error *= AUX_COEFFICIENT * 2 / len(x_c)
    g_pre = (error @ W_dec.T).mul_(chosen)
    return squared, z.T @ error, g_pre.T @ x_c, g_pre.sum(0)


def _sparse_gradients(
    x_c: Tensor, missed: Tensor, W_dec: Tensor, pre: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `_dense_gradients`, from the chosen entries alone."""
    n_dead = len(W_dec)
    operations = sparse.operations(x_c.device)
    row, col = chosen.nonzero(as_tuple=True)
    z = pre[row, col]
    codes = codes_at_places(row, col, z, pre.shape)
    factor = AUX_COEFFICIENT * 2 / len(x_c)
    no_bias = torch.zeros_like(missed[0])
    error, squared, g_pre = operations.decode(missed, W_dec, no_bias, codes, z, factor)
    return (
        squared,
        operations.weight_gradient(error, codes, z, n_dead),
        operations.weight_gradient(x_c, codes, g_pre, n_dead),
        sparse.sum_by_latent(codes, g_pre),
    )
