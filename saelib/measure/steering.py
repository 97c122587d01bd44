"""What a language model says when one latent of an SAE is changed.

The stream x keeps everything but that latent's part: with codes f and a new code g of latent j,

    x' = x + (g − f_j) / scale · W_dec,j

so that a change that changes nothing (scale by 1) gives the model's own logits bit for bit, and the
SAE's error stays in the stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from saelib.activations.lm import LM
from saelib.config import ConfigError
from saelib.measure.latents import latent_number
from saelib.sae import Autoencoder

MODES = ("add", "scale", "clamp", "ablate")
LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Change:
    """A change of one latent's code f to g: f + value, value · f, value, or 0.

    value: for "add" and "clamp" a code in the SAE's units, for "scale" a factor.
    """

    latent: int
    mode: str = "add"  # one of `MODES`
    value: float | int = 0.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            accepted = ", ".join(map(repr, MODES))
            raise ValueError(f"mode = {self.mode!r}: expected one of {accepted}")
        if not abs(self.value) <= LARGEST:
            raise ConfigError(f"value = {self.value!r:.80}: expected a number of float32")

    def new_code(self, f: Tensor) -> Tensor:
        """g from f, of any shape."""
        match self.mode:
            case "add":
                return f + self.value
            case "scale":
                return f * self.value
            case "clamp":
                return torch.full_like(f, self.value)
        return torch.zeros_like(f)


@torch.no_grad()
def changed_stream(
    sae: Autoencoder,
    stream: Float[Tensor, "batch time d_in"],
    change: Change,
    positions: Bool[Tensor, "batch time"] | None = None,
) -> Float32[Tensor, "batch time d_in"]:
    """The stream at the SAE's site, in model units, with one latent changed at some positions.

    positions: where; everywhere without them.

    Raises:
        ConfigError: there is no such latent, or the changed stream is too large for the model.
    """
    latent_number(change.latent, sae.config.n_latents)
    x = stream.float()
    f = sae.encode_raw(x.flatten(0, 1))[:, change.latent].view(x.shape[:2])
    step = (change.new_code(f) - f) / sae.scale
    if positions is not None:
        step = step * positions
    moved = x + step[..., None] * sae.W_dec[change.latent]
    # the model takes squares of it in float32, and else computes in the stream's dtype
    fits = moved.square().sum(-1).isfinite().all() and moved.to(stream.dtype).isfinite().all()
    if not fits:
        raise ConfigError(
            f"mode {change.mode!r}, value = {change.value:g}: the model cannot compute with so "
            "large a stream; give a smaller change"
        )
    return moved


def steered_logits(
    lm: LM,
    sae: Autoencoder,
    ids: Int64[Tensor, "batch time"],
    change: Change,
    positions: Bool[Tensor, "batch time"] | None = None,
) -> Float[Tensor, "batch time vocab"]:
    """The model's logits with one latent changed at the SAE's site."""
    site = sae.config.site
    stream = lm.capture(ids, [site])[site]
    return lm.continue_from(site, changed_stream(sae, stream, change, positions), ids)


@torch.inference_mode()
def plain_logits(
    lm: LM, sae: Autoencoder, ids: Int64[Tensor, "batch time"]
) -> Float[Tensor, "batch time vocab"]:
    """The model's own logits, by the way that `steered_logits` goes."""
    site = sae.config.site
    return lm.continue_from(site, lm.capture(ids, [site])[site], ids)


def next_tokens(
    before: Float[Tensor, " vocab"], after: Float[Tensor, " vocab"], k: int = 10
) -> pd.DataFrame:
    """The k tokens whose probability a change of logits moves most: token_id, before, after."""
    p = torch.softmax(before.float(), -1)
    q = torch.softmax(after.float(), -1)
    tokens = (q - p).abs().topk(min(k, len(p))).indices
    return pd.DataFrame(
        {"token_id": tokens.tolist(), "before": p[tokens].tolist(), "after": q[tokens].tolist()}
    )


def divergence(before: Float[Tensor, " vocab"], after: Float[Tensor, " vocab"]) -> float:
    """KL(before ‖ after) of two next-token distributions, in nats."""
    log_p = torch.log_softmax(before.double(), -1)
    log_q = torch.log_softmax(after.double(), -1)
    return float((log_p.exp() * (log_p - log_q)).sum())


@torch.inference_mode()
def continuation(
    lm: LM,
    sae: Autoencoder,
    ids: Int64[Tensor, "1 time"],
    change: Change | None,
    n_tokens: int,
    keep_first: bool = True,
) -> list[int]:
    """The tokens that the model goes on with, greedily; of the model as it is without a change.

    keep_first: position 0 stays as it is, since SAEs of ordinary tokens were not trained on it.
    Ends early where the model's context is full.
    """
    grown = ids
    for _ in range(n_tokens):
        if lm.max_length and grown.shape[1] >= lm.max_length:
            break
        logits = _last_logits(lm, sae, grown, change, keep_first)
        grown = torch.cat([grown, logits.argmax().view(1, 1).to(grown)], dim=1)
    return grown[0, ids.shape[1] :].tolist()


def _last_logits(
    lm: LM, sae: Autoencoder, ids: Tensor, change: Change | None, keep_first: bool
) -> Any:
    if change is None:
        return plain_logits(lm, sae, ids)[0, -1]
    positions = torch.ones_like(ids, dtype=torch.bool)
    positions[:, 0] = not keep_first
    return steered_logits(lm, sae, ids, change, positions)[0, -1]
