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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from saelib.activations.lm import LM
from saelib.activations.store import CLASSES, Store, token_classes
from saelib.config import ConfigError
from saelib.measure.features import FeatureIndex, ablation_losses, build_index, twins
from saelib.measure.steering import (
    Change,
    continuation,
    divergence,
    next_tokens,
    plain_logits,
    steered_logits,
)
from saelib.sae import Autoencoder
from saelib.sae.formats import export

log = logging.getLogger(__name__)

ABLATED_CONTEXTS = 8
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


@dataclass(frozen=True)
class Subject:
    """An SAE that can be looked at, before it is loaded.

    facts: what a list says of it, by the names of the columns of `results.csv`; at least `site`.
    """

    name: str
    facts: Mapping[str, Any]
    load: Callable[[], Lens] = field(repr=False)


class Lens:
    """One SAE, its language model and, if they are there, the activations it is measured on.

    A sink is a token of over `SINK_FACTOR` median norms: of the site's training rows, or without
    activations of the text itself. features: the folder of the SAE's index, written at first use.
    relatives: SAEs that its latents are compared with (`twins`).
    """

    def __init__(
        self,
        lm: LM,
        sae: Autoencoder,
        store: Store | None = None,
        features: Path | None = None,
        relatives: Sequence[Subject] = (),
    ) -> None:
        if lm.tokenizer is None:
            raise ConfigError(f"model {lm.name!r} has no tokenizer: a lens reads text")
        if sae.config.d_in != lm.d_model:
            raise ConfigError(
                f"SAE of width d_in = {sae.config.d_in} does not fit model {lm.name!r} of width "
                f"{lm.d_model}"
            )
        lm.site(sae.config.site)
        self.lm = lm
        self.sae = sae.to(lm.device)
        self.store = store
        self.features = features
        self.relatives = tuple(relatives)
        self._twin_tables: dict[str, pd.DataFrame] = {}

    @cached_property
    def index(self) -> FeatureIndex:
        """The index of the SAE's features on test pages: opened if it is there, else built.

        Raises:
            ConfigError: there are no test pages, or no folder to keep it in.
            ValueError: the one there is damaged, or of another SAE; names the file.
        """
        if self.store is None or self.features is None:
            raise ConfigError(
                "an index of features is built on a profile's test pages; open the SAE by its "
                "profile, or a folder with profile='…'"
            )
        if not (self.features / "index.json").exists():
            return build_index(self.sae, self.store, self.lm, self.features)
        index = FeatureIndex.open(self.features, self.sae)
        if index.manifest["corpus_id"] != self.store.corpus_id:
            raise ValueError(
                f"{self.features} is an index on text {index.manifest['corpus_id']}, the profile "
                f"has {self.store.corpus_id}; delete the folder and it is built anew"
            )
        return index

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

    # -- one latent --------------------------------------------------------------------------------

    def logits(self, latent: int) -> pd.DataFrame:
        """The vocabulary that a latent promotes most and suppresses most: token, logit.

        logit: of one unit of its code, through final norm and unembedding alone.

        Raises:
            ValueError: there is no such latent. ConfigError: there is no index.
        """
        record = self.index.latent(latent)
        ends = [*record.promoted, *reversed(record.suppressed)]
        rows = [(self.index.text(token), logit) for token, logit in ends]
        return pd.DataFrame(rows, columns=["token", "logit"])

    def contexts(self, latent: int, kind: str = "top") -> pd.DataFrame:
        """Contexts of test pages: activation, title, position, text with the peak «marked».

        kind: "top", "middle", "low", or "off" for tokens in whose context it is silent.

        Raises:
            ValueError: no such latent or kind. ConfigError: there is no index.
        """
        rows = []
        for window in self.index.contexts(latent, kind):
            ids = window.token_ids.tolist()
            before, after = self._text(ids[: window.peak]), self._text(ids[window.peak + 1 :])
            text = f"{before}«{self._text(ids[window.peak : window.peak + 1])}»{after}"
            rows.append((window.activation, window.title, window.position, text))
        return pd.DataFrame(rows, columns=["activation", "title", "position", "text"])

    def neighbours(self, latent: int) -> pd.DataFrame:
        """Latents of the same SAE near this one: latent, by (cosine or co-firing), value, token.

        Raises:
            ValueError: there is no such latent. ConfigError: there is no index.
        """
        record = self.index.latent(latent)
        near = [("cosine", *entry) for entry in record.nearest]
        near += [("co-firing", *entry) for entry in record.companions]
        tokens = self.index.table["top_token"]
        rows = [(number, by, value, tokens[number]) for by, number, value in near if number >= 0]
        return pd.DataFrame(rows, columns=["latent", "by", "value", "token"])

    def twins(self, latent: int) -> pd.DataFrame:
        """Is it real? Its best match in each relative: sae, twin, cosine, jaccard, mutual.

        By direction at the same site, by the tokens on which both fire at another (cosine is nan
        there). Indices that are missing are built first.

        Raises:
            ValueError: there is no such latent. ConfigError: there is no index.
        """
        self.index.latent(latent)
        rows = [(relative.name, *self._twin(relative, latent)) for relative in self.relatives]
        table = pd.DataFrame(rows, columns=["sae", "twin", "cosine", "jaccard", "mutual"])
        nearness = table[["cosine", "jaccard"]].max(axis=1)
        return table.loc[nearness.sort_values(ascending=False, kind="stable").index]

    def _twin(self, relative: Subject, latent: int) -> tuple[int, float, float, bool]:
        if relative.name not in self._twin_tables:
            other = relative.load()
            self._twin_tables[relative.name] = twins(self.index, other.index)
        line = self._twin_tables[relative.name].loc[latent]
        by_direction = line["twin"] >= 0
        twin, mutual = ("twin", "mutual") if by_direction else ("firing_twin", "firing_mutual")
        same = line[twin] == line["firing_twin"]
        jaccard = line["jaccard"] if same else np.nan
        return int(line[twin]), float(line["cosine"]), float(jaccard), bool(line[mutual])

    def ablation(self, latent: int, n_contexts: int = ABLATED_CONTEXTS) -> float:
        """Rise of the next-token loss, in nats a token, where the latent is taken out.

        Over a fixed sample of contexts of test pages in which it fires; nan where it never does.

        Raises:
            ValueError: there is no such latent. ConfigError: there are no test pages.
        """
        self.index.latent(latent)
        losses = ablation_losses(self.sae, self.lm, self.store, [latent], n_contexts)
        return float(losses.loc[latent, "delta_ce"])

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
