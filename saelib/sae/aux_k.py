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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saelib.config import Checked
from saelib.sae import sparse
from saelib.sae.base import Autoencoder, How
from saelib.sae.dense import (
    Gradients,
    SparseCodes,
    codes_at_places,
    encoder_product,
    rows_at_once,
)
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
    part = _Part(
        W_enc=sae.W_enc.T[dead].T,
        bias=getattr(sae, name)[dead],
        W_dec=sae.W_dec[dead],
        k=sae.options.aux_k,
        positive=positive,
    )
    missed = g_x_hat * (-len(x_c) / 2)
    rebuilt = _sparse_gradients if how.sparse else _dense_gradients
    squared, g_W_dec, g_W_enc, g_bias = rebuilt(x_c, missed, part, how.encoder)
    grads["W_dec"][dead] += g_W_dec
    grads["W_enc"].T[dead] += g_W_enc
    grads[name][dead] += g_bias
    grads["b_dec"] -= part.W_enc @ g_bias
    return AUX_COEFFICIENT * squared


class _Part(NamedTuple):
    """The dead latents of an SAE, and which of their pre-activations take part."""

    W_enc: Tensor  # [d_in, n_dead], stored latent by latent
    bias: Tensor  # [n_dead]
    W_dec: Tensor  # [n_dead, d_in]
    k: int  # per row
    positive: bool  # those above 0 alone


def _dense_gradients(
    x_c: Tensor, missed: Tensor, part: _Part, encoder: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Σ ‖ê − e‖² and the term's gradients, latent by latent, from full matrices of dead latents.

    x_c and missed: [batch, d_in]. -> scalar, W_dec's [n_dead, d_in], W_enc's [n_dead, d_in], the
    bias's [n_dead].
    """
    pre = encoder_product(x_c, part.W_enc, encoder) + part.bias
    chosen = largest(pre, part.k, part.positive)
    z = pre * chosen
    error = z @ part.W_dec - missed
    squared = error.pow(2).sum()
    error *= AUX_COEFFICIENT * 2 / len(x_c)
    g_pre = (error @ part.W_dec.T).mul_(chosen)
    return squared, z.T @ error, g_pre.T @ x_c, g_pre.sum(0)


def _sparse_gradients(
    x_c: Tensor, missed: Tensor, part: _Part, encoder: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `_dense_gradients`, from the chosen entries alone."""
    operations = sparse.operations(x_c.device)
    codes = _chosen_entries(x_c, part, encoder)
    z = codes.value + part.bias[codes.col.long()]
    factor = AUX_COEFFICIENT * 2 / len(x_c)
    no_bias = torch.zeros_like(missed[0])
    error, squared, g_pre = operations.decode(missed, part.W_dec, no_bias, codes, z, factor)
    return (
        squared,
        sparse.decoder_gradient(error, codes, z),
        sparse.encoder_gradient(x_c, codes, g_pre).T,
        sparse.sum_by_latent(codes, g_pre),
    )


def _chosen_entries(x_c: Tensor, part: _Part, encoder: str) -> SparseCodes:
    """Entries of a = x_c W_enc that take part."""
    if part.positive:
        operations = sparse.operations(x_c.device)
        return operations.top_entries(x_c, part.W_enc, part.bias, part.k, encoder)
    n_dead = len(part.bias)
    rows, cols, values = [], [], []
    size = rows_at_once(n_dead, x_c.device)
    for first, some in zip(range(0, len(x_c), size), x_c.split(size), strict=True):
        a = encoder_product(some, part.W_enc, encoder)
        row, col = largest(a + part.bias, part.k, positive=False).nonzero(as_tuple=True)
        rows.append(row + first)
        cols.append(col)
        values.append(a[row, col])
    places = (torch.cat(rows), torch.cat(cols), torch.cat(values))
    return codes_at_places(*places, (len(x_c), n_dead))
