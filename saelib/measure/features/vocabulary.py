"""What a latent promotes and suppresses: its decoder row through final norm and unembedding.

The logit lens of a direction (nostalgebraist 2020; for SAEs Bricken et al. 2023): one unit of a
latent's code adds v = W_dec[j] / s to the residual stream (s is the SAE's scale, so that v is in
the model's units). Without what later blocks do with it, and with the final norm's division by the
stream's own size left out, that adds

    (v ⊙ γ) W_U

to the logits, γ being the final norm's weight. It is centred: its mean over the vocabulary, which
changes no probability, is taken off. A final norm that takes the mean off its input (LayerNorm)
does so to v as well.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from saelib.activations.lm import LM

DIRECTIONS = 256  # whose logits are held at once


class Vocabulary(NamedTuple):
    """The ends of each direction's logits, most extreme first."""

    promoted: Int64[Tensor, "n k"]  # token ids
    promoted_logits: Float32[Tensor, "n k"]
    suppressed: Int64[Tensor, "n k"]
    suppressed_logits: Float32[Tensor, "n k"]


class LogitLens:
    """The linear map from a change of the stream to a change of the logits, computed once."""

    def __init__(self, lm: LM) -> None:
        norm = final_norm(lm)
        head = lm.model.get_output_embeddings().weight.float()  # [vocab, d]
        self.gamma, self.centres = norm_response(norm, lm)
        self.W_U = head.T - head.mean(0)[:, None]  # [d, vocab], its mean over the vocabulary off

    @torch.no_grad()
    def logits(self, v: Float32[Tensor, "n d"]) -> Float32[Tensor, "n vocab"]:
        """Centred change of the logits per unit of each direction v, in the model's units."""
        v = v.to(self.W_U)
        if self.centres:
            v = v - v.mean(1, keepdim=True)
        return (v * self.gamma) @ self.W_U

    def vocabulary(self, v: Float32[Tensor, "n d"], k: int) -> Vocabulary:
        """The k most promoted and suppressed tokens of each direction."""
        k = min(k, self.W_U.shape[1])
        parts = [_ends(self.logits(some), k) for some in v.split(DIRECTIONS)]
        return Vocabulary(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


def _ends(logits: Tensor, k: int) -> Vocabulary:
    high = logits.topk(k)
    low = logits.topk(k, largest=False)
    return Vocabulary(high.indices, high.values, low.indices, low.values)


def final_norm(lm: LM) -> nn.Module:
    """The last module outside the blocks that a forward calls and that has a weight [d_model].

    Raises:
        ValueError: there is none.
    """
    inside = {id(module) for block in lm.blocks for module in block.modules()}
    called: list[nn.Module] = []

    def note(module: nn.Module, _: Any, __: Any) -> None:
        called.append(module)

    with ExitStack() as hooks:
        for module in lm.model.modules():
            weight = getattr(module, "weight", None)
            if id(module) not in inside and getattr(weight, "shape", ()) == (lm.d_model,):
                hooks.enter_context(module.register_forward_hook(note))
        token = torch.zeros(1, 1, dtype=torch.long, device=lm.device)
        with torch.inference_mode():
            lm.model(input_ids=token, use_cache=False)
    if not called:
        raise ValueError(f"{lm.name}: no final norm with a weight of {lm.d_model} values")
    return called[-1]


@torch.no_grad()
def norm_response(norm: nn.Module, lm: LM) -> tuple[Float32[Tensor, " d"], bool]:
    """(γ, whether the norm takes the mean off), asked of the norm itself.

    Models store γ as such or less 1, so it is read off an input of ±1, whose mean square is 1. Its
    size is scaled up so that the norm's ε, and off by the odd width's mean, do not count.
    """
    signs = torch.ones(lm.d_model, device=lm.device)
    signs[1::2] = -1
    x = 1024 * signs  # a power of two: exact in every dtype
    rows = torch.stack([x, -x, x + 1024])[None].to(lm.dtype)
    with torch.inference_mode():
        plus, minus, moved = norm(rows)[0].float()
    gamma = (plus - minus) / 2 * signs
    return gamma, bool(torch.allclose(plus, moved, rtol=0.02, atol=1e-3))
