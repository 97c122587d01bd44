"""A lens: a language model seen through one of its SAEs, on any text.

    lens = saelib.open("default", site=15, l0=32)    # of a profile, the SAE nearest to that L0
    lens = saelib.open(folder, model="…")            # any SAE's folder, with its language model
    lens.find(["In 1945", "By 1969 two men"])        # latents that texts have in common
    lens.top("The war ended in 1945.")               # which latents fire on which token
    lens.codes(707, "The war ended in 1945.")        # one latent on every token
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
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from saelib.activations.store import CLASSES, token_classes
from saelib.config import ConfigError
from saelib.measure.features import FeatureIndex
from saelib.measure.features.pieces import is_writable
from saelib.measure.indexed import IndexedSAE, Subject
from saelib.measure.latents import finite_number, whole_number
from saelib.measure.listing import Listing
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

NAMED = 5  # tokens that a warning names
CONTINUED = 20  # tokens a continuation has, where the caller names no number


@dataclass(frozen=True)
class Seen:
    """A text through the SAE: ids, texts and classes of its tokens, and what the SAE makes of each.

    x: the stream at the SAE's site, in model units. codes: what `encode_raw` gives, for first
    tokens and sinks too, of which it says nothing. missed: share of ‖x − mean‖² not rebuilt.
    """

    token_ids: list[int]
    tokens: list[str]
    classes: list[str]
    x: Float32[Tensor, "tokens d_in"] = field(repr=False)
    codes: Float32[Tensor, "tokens n_latents"] = field(repr=False)
    missed: list[float] = field(repr=False)

    @property
    def ordinary(self) -> Bool[np.ndarray, " tokens"]:
        """Tokens that are neither first nor a sink."""
        return np.array(self.classes) == "ordinary"


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
            ConfigError: the text is empty, none, or longer than the model's context.
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
            stream,
            codes,
            (error / total).tolist(),
        )

    def top(self, text: str, k: int = 5) -> pd.DataFrame:
        """The k largest codes on each ordinary token: position, token, latent, code.

        Tokens that are first or a sink have no rows; a warning names some.

        Raises:
            ConfigError: as `see`, or k is below 1.
        """
        if whole_number(k, "k") < 1:
            raise ConfigError(f"k = {k}: expected at least 1 latent")
        seen = self.see(text)
        _warn_of_odd(seen)
        rows = []
        for position in np.flatnonzero(seen.ordinary).tolist():
            values, latents = seen.codes[position].topk(min(k, seen.codes.shape[1]))
            rows += [
                (position, seen.tokens[position], int(latent), float(value))
                for latent, value in zip(latents, values, strict=True)
                if value > 0
            ]
        return Listing(rows, columns=["position", "token", "latent", "code"])

    def codes(self, latent: int, text: str) -> pd.DataFrame:
        """One latent on every token of a text: position, token, code; nan on first and sinks.

        Raises:
            ConfigError: there is no such latent; or as `see`.
        """
        latent = self.latent_number(latent)
        seen = self.see(text)
        codes = seen.codes[:, latent].cpu().numpy()
        table = Listing({"token": seen.tokens, "code": np.where(seen.ordinary, codes, np.nan)})
        return table.rename_axis("position").reset_index()

    def find(self, texts: str | Sequence[str], k: int = 10) -> pd.DataFrame:
        """Latents that texts have in common: latent, score, n_texts, on.

        score: mean over texts of the latent's largest code · ln(1 / density), so that rare latents
        weigh more than those that fire on everything. n_texts: in which it fires. on: the token of
        test pages on which it fires most.

        Raises:
            ConfigError: there is no text, or no index; or as `see`.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ConfigError("texts: expected at least one")
        largest = np.stack([self._largest(self.see(text)) for text in texts])
        table = Listing(
            {
                "score": (largest * rarity(self.index)).mean(0),
                "n_texts": (largest > 0).sum(0),
                "on": self.index.table["top_token"].to_numpy(),
            }
        ).rename_axis("latent")
        return table[table["n_texts"] > 0].nlargest(k, "score").reset_index()

    def _largest(self, seen: Seen) -> Float32[np.ndarray, " latents"]:
        """By latent, its largest code on ordinary tokens; 0 without any."""
        codes = seen.codes[torch.from_numpy(seen.ordinary)].cpu().numpy()
        return codes.max(0, initial=0.0)

    def _ids(self, text: str) -> Int64[Tensor, "1 tokens"]:
        if not isinstance(text, str) or not is_writable(text):
            raise ConfigError(f"text = {text!r:.80}: expected a text that can be written as UTF-8")
        ids = self._tokenized(text)
        if not ids.numel():
            raise ConfigError(f"text = {text!r}: no tokens")
        limit = self.lm.max_length
        if limit and ids.shape[1] > limit:
            raise ConfigError(
                f"text of {ids.shape[1]:,} tokens: model {self.lm.name!r} takes {limit:,}"
            )
        return ids.to(self.lm.device)

    def _tokenized(self, text: str) -> Int64[Tensor, "1 tokens"]:
        """Token ids, with BOS as the store's contexts have it, else as the tokenizer has it."""
        tokenizer = self.lm.tokenizer
        if self.store is None:
            return tokenizer(text, return_tensors="pt")["input_ids"].long()
        bos = [tokenizer.bos_token_id] if self.store.manifest["bos"] else []
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return torch.tensor([bos + ids if ids else []], dtype=torch.long)

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
            ConfigError: there is no such latent, the strength is no number or more than the model
                can compute with, or no token of the prompt would change; or there are no test pages
                for its largest code, or it is 0.
        """
        latent = self.latent_number(latent)
        value = finite_number(strength, "strength")
        if mode in ("add", "clamp"):
            value *= self.largest_code(latent)
        change = Change(latent, mode, value)
        ids = self._ids(prompt)
        if ids.shape[1] < 2:
            raise ConfigError(f"prompt = {prompt!r}: one token, and the first is never changed")
        positions = torch.ones_like(ids, dtype=torch.bool)
        positions[:, 0] = False
        before = plain_logits(self.lm, self.sae, ids)[0, -1]
        after = steered_logits(self.lm, self.sae, ids, change, positions)[0, -1]
        moved = next_tokens(before, after)
        moved.insert(0, "token", [self._text([i]) for i in moved.pop("token_id")])
        return Steered(
            self._text(continuation(self.lm, self.sae, ids, None, n_tokens)),
            self._text(continuation(self.lm, self.sae, ids, change, n_tokens)),
            Listing(moved),
            divergence(before, after),
        )

    def largest_code(self, latent: int) -> float:
        """A latent's largest code on the ordinary tokens of test pages.

        Raises:
            ConfigError: there is no such latent, or it never fires; or there are no activations.
        """
        latent = self.latent_number(latent)
        if self.store is None or self.features is None:
            raise ConfigError(
                "strength: multiples of a latent's largest code need a profile's test pages; open "
                "the SAE by its profile, or use mode 'scale' or 'ablate'"
            )
        largest = float(self.index.table["max"].iloc[latent])
        if largest == 0:
            raise ConfigError(f"latent {latent} never fires on test pages: it has no largest code")
        return largest

    def _text(self, ids: Sequence[int]) -> str:
        return self.lm.tokenizer.decode(list(ids))


def rarity(index: FeatureIndex) -> np.ndarray:
    """ln(1 / density) by latent: what a code's size is multiplied by to rank the rare higher.

    A latent that never fires on the index's tokens counts as firing on one of them.
    """
    least = 1 / index.manifest["n_ordinary"]
    return -np.log(index.table["density"].clip(lower=least).to_numpy())


def _warn_of_odd(seen: Seen) -> None:
    """Say which tokens of a text are left out, the first few by name."""
    odd = np.flatnonzero(~seen.ordinary).tolist()
    if not odd:
        return
    named = ", ".join(f"{n} {seen.tokens[n]!r} ({seen.classes[n]})" for n in odd[:NAMED])
    more = f" and {len(odd) - NAMED} more" if len(odd) > NAMED else ""
    log.warning(f"left out, as the SAE is of ordinary tokens: {named}{more}")
