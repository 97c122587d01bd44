"""A lens: a language model seen through one of its SAEs, on any text.

    lens = saelib.open("default", site=15, l0=32)    # of a profile, the SAE nearest to that L0
    lens = saelib.open(folder, model="…")            # any SAE's folder, with its language model
    lens.top("The war ended in 1945.")               # which latents fire on which token
    lens.contexts(707); lens.logits(707)             # where it fires, which words it promotes
    lens.twins(707)                                  # its best match in other trainings
    lens.steer(707, 3, "The war ended in")           # what the model says with one of them changed
    lens.export("saelens", folder)                   # the SAE, for another library

SAEs are trained on ordinary tokens. On the first token of a text, and on sinks (tokens of huge
norm), their codes say nothing: these are told apart, with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from saelib.activations.store import CLASSES, token_classes
from saelib.config import ConfigError
from saelib.measure.indexed import IndexedSAE, Subject
from saelib.measure.steering import (
    Change,
    continuation,
    divergence,
    next_tokens,
    plain_logits,
    steered_logits,
)
from saelib.sae.formats import export

__all__ = ["Lens", "Seen", "Steered", "Subject"]

log = logging.getLogger(__name__)

CONTINUED = 20  # tokens a continuation has, where the caller names no number


@dataclass(frozen=True)
class Seen:
    """A text through the SAE: token_ids [tokens], their text, class, codes [tokens, n_latents]."""

    token_ids: list[int]
    tokens: list[str]
    classes: list[str]
    codes: Float32[Tensor, "tokens n_latents"]
    missed: list[float]  # share of each token's ‖x − mean‖² that the SAE does not rebuild


@dataclass(frozen=True)
class Steered:
    """A prompt's continuation without and with a change, and the next token's distributions.

    next_tokens: those that move most, with columns token, before, after; kl in nats.
    """

    before: str
    after: str
    next_tokens: pd.DataFrame
    kl: float


class Lens(IndexedSAE):
    """An SAE on any text, besides what `IndexedSAE` says of its latents on test pages.

    A sink is a token of over `SINK_FACTOR` median norms: of the site's training rows, or without
    activations of the text itself.
    """

    # -- text --------------------------------------------------------------------------------------

    def see(self, text: str) -> Seen:
        """Every token of a text with its class and codes.

        Raises:
            ConfigError: the text is empty, or longer than the model's context.
        """
        ids = self._ids(text)
        site = self.sae.config.site
        stream = self.lm.capture(ids, [site])[site][0].float()
        with torch.no_grad():
            codes = self.sae.encode_raw(stream)
            error = (self.sae.decode_raw(codes) - stream).pow(2).sum(1)
            total = (stream - self.sae.mean).pow(2).sum(1)
        return Seen(
            ids[0].tolist(),
            [self.lm.tokenizer.decode([i]) for i in ids[0].tolist()],
            self._classes(stream),
            codes,
            (error / total).tolist(),
        )

    def top(self, text: str, k: int = 5) -> pd.DataFrame:
        """The k largest codes on each ordinary token: position, token, latent, code.

        Tokens that are first or a sink have no rows; a warning names them.
        """
        seen = self.see(text)
        odd = [n for n, name in enumerate(seen.classes) if name != "ordinary"]
        if odd:
            named = ", ".join(f"{n} {seen.tokens[n]!r} ({seen.classes[n]})" for n in odd)
            log.warning(f"left out, as the SAE is of ordinary tokens: {named}")
        rows = []
        for position in sorted(set(range(len(seen.tokens))) - set(odd)):
            values, latents = seen.codes[position].topk(min(k, seen.codes.shape[1]))
            rows += [
                (position, seen.tokens[position], int(latent), float(value))
                for latent, value in zip(latents, values, strict=True)
                if value > 0
            ]
        return pd.DataFrame(rows, columns=["position", "token", "latent", "code"])

    def _ids(self, text: str) -> Int64[Tensor, "1 tokens"]:
        ids = self.lm.tokenizer(text, return_tensors="pt")["input_ids"].long()
        if not ids.numel():
            raise ConfigError(f"text = {text!r}: no tokens")
        limit = self.lm.max_length
        if limit and ids.shape[1] > limit:
            raise ConfigError(
                f"text of {ids.shape[1]:,} tokens: model {self.lm.name!r} takes {limit:,}"
            )
        return ids.to(self.lm.device)

    def _classes(self, stream: Float32[Tensor, "tokens d_in"]) -> list[str]:
        norms = stream.norm(dim=1)
        if self.store is None:
            later = norms[1:] if len(norms) > 1 else norms
            median = float(later.median())
        else:
            median = float(self.store.median_norm(self.sae.config.site))
        kinds = token_classes(norms.cpu().numpy(), np.arange(len(norms)), median)
        return [CLASSES[kind] for kind in kinds]

    def export(self, format: str, folder: str | Path, arch: str = "") -> Path:
        """Write the SAE as another library reads it: "saelens" or "dictionary_learning".

        Raises:
            FormatError: the format is unknown, has not that architecture, or the folder is taken.
        """
        return export(self.sae, format, folder, model=self.lm.name, arch=arch)

    # -- steering ----------------------------------------------------------------------------------

    def steer(
        self,
        latent: int,
        strength: float | int,
        prompt: str,
        mode: str = "add",
        n_tokens: int = CONTINUED,
    ) -> Steered:
        """Continue a prompt with one latent changed at every token but the first.

        strength: for "add" and "clamp" in multiples of the latent's largest code on test pages; for
        "scale" a factor; "ablate" takes none.

        Raises:
            ConfigError: there is no such latent; or there are no test pages for its largest code.
        """
        value = strength * self.largest_code(latent) if mode in ("add", "clamp") else strength
        change = Change(latent, mode, float(value))
        ids = self._ids(prompt)
        positions = torch.ones_like(ids, dtype=torch.bool)
        positions[:, 0] = False
        before = plain_logits(self.lm, self.sae, ids)[0, -1]
        after = steered_logits(self.lm, self.sae, ids, change, positions)[0, -1]
        moved = next_tokens(before, after)
        moved.insert(0, "token", [self._text([i]) for i in moved.pop("token_id")])
        return Steered(
            self._text(continuation(self.lm, self.sae, ids, None, n_tokens)),
            self._text(continuation(self.lm, self.sae, ids, change, n_tokens)),
            moved,
            divergence(before, after),
        )

    def largest_code(self, latent: int) -> float:
        """A latent's largest code on the ordinary tokens of test pages; 0 where it never fires.

        Raises:
            ConfigError: there is no such latent, or there are no activations.
        """
        n_latents = self.sae.config.n_latents
        if not 0 <= latent < n_latents:
            raise ConfigError(f"latent {latent}: this SAE has the latents 0 to {n_latents - 1:,}")
        if self.store is None or self.features is None:
            raise ConfigError(
                "strength: multiples of a latent's largest code need a profile's test pages; open "
                "the SAE by its profile, or use mode 'scale' or 'ablate'"
            )
        return float(self.index.table["max"].iloc[latent])

    def _text(self, ids: Sequence[int]) -> str:
        return self.lm.tokenizer.decode(list(ids))
