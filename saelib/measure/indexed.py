"""An SAE's latents on test pages: words, contexts, neighbours, matches in other SAEs, ablations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from tqdm.auto import tqdm

from saelib.activations.lm import LM
from saelib.activations.store import Store
from saelib.config import ConfigError
from saelib.env import headless
from saelib.files import locked
from saelib.measure.features import FeatureIndex, IndexOptions, ablation_losses, build_index
from saelib.measure.features.ablation_table import Measured, kept_losses, read_losses
from saelib.measure.features.build import forecast
from saelib.measure.features.identity import sae_checksum
from saelib.measure.features.index import INDEX, Scored
from saelib.measure.features.pieces import marked_text
from saelib.measure.features.twin_tables import Pair, kept_matches, read_matches
from saelib.measure.features.vocabulary import LogitLens
from saelib.measure.latents import latent_number, whole_number
from saelib.measure.listing import Listing
from saelib.sae import Autoencoder

ABLATED_CONTEXTS = 8  # in which a latent's ablation is measured
Split = Literal["train", "val", "test"]
WORDS = 10  # tokens that a latent promotes most, and suppresses most
COMPARED = 0.4  # time of comparing two SAEs, as a share of that of an index
TWINS, ABLATION = "twins", "ablation"  # folders beside that of the index


@dataclass(frozen=True)
class Subject:
    """An SAE that can be looked at, before it is loaded.

    facts: what a list says of it, by the names of the columns of `results.csv`; at least `site`.
    load: gives its `Lens`.
    """

    name: str
    facts: Mapping[str, Any]
    load: Callable[[], Any] = field(repr=False)


class IndexedSAE:
    """One SAE, its language model and, if they are there, the activations it is measured on.

    features: the folder of the SAE's index, written at first use; beside it lie tables of matches
    in other SAEs, and of ablations. relatives: SAEs that its latents are compared with (`twins`).
    split: the pages that it is of, where that is said to be test pages below. name, facts: what a
    list says of it, see `Subject`; by default what its configuration says.
    """

    def __init__(
        self,
        lm: LM,
        sae: Autoencoder,
        store: Store | None = None,
        features: Path | None = None,
        relatives: Sequence[Subject] = (),
        name: str = "",
        facts: Mapping[str, Any] | None = None,
        split: Split = "test",
    ) -> None:
        if lm.tokenizer is None:
            raise ConfigError(f"model {lm.name!r} has no tokenizer: a lens reads text")
        if sae.config.d_in != lm.d_model:
            raise ConfigError(
                f"SAE of width d_in = {sae.config.d_in} does not fit model {lm.name!r} of width "
                f"{lm.d_model}"
            )
        lm.site(sae.config.site)
        if store is not None and store.model_id != lm.model_id:
            raise ConfigError(f"model {lm.model_id} is not that of the store, {store.model_id}")
        self.lm = lm
        self.sae = sae.to(lm.device)
        self.store = store
        self.options = IndexOptions(split=split)
        self.features = features
        if features is not None and split != "test":
            self.features = features.with_name(f"{features.name}_{split}")
        self.relatives = tuple(relatives)
        config = sae.config
        self.name = name or f"site {config.site} · {config.arch} · {config.n_latents:,} latents"
        self.facts = dict(facts or {"site": config.site, "arch": config.arch})

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.name}>"

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
        return _index(self, self.store, self.features, progress=True)

    def index_within(self) -> FeatureIndex:
        """`index`; where it is built, without a bar, for a caller that shows one."""
        if "index" not in vars(self) and self.store is not None and self.features is not None:
            self.index = _index(self, self.store, self.features, progress=False)
        return self.index

    @property
    def is_indexed(self) -> bool:
        """Whether the index lies on disk, so that it opens at once."""
        return self.features is not None and (self.features / INDEX).exists()

    @cached_property
    def checksum(self) -> str:
        """Of the SAE's configuration and weights."""
        return sae_checksum(self.sae)

    def beside(self, name: str) -> Path:
        """A folder beside the index, for what belongs to it: the index's own is replaced whole.

        Raises:
            ConfigError: the SAE has no folder of features.
        """
        if self.features is None:
            raise ConfigError("this SAE has no folder of features: nothing can be kept for it")
        return self.features.parent / name

    # -- one latent --------------------------------------------------------------------------------

    def logits(self, latent: int, k: int = WORDS) -> pd.DataFrame:
        """The k tokens that a latent promotes most and the k it suppresses most: token, logit.

        logit: of one unit of its code, through final norm and unembedding alone; largest first.

        Raises:
            ConfigError: there is no such latent, or k is below 1.
        """
        latent = self.latent_number(latent)
        if whole_number(k, "k") < 1:
            raise ConfigError(f"k = {k}: expected at least 1 token")
        promoted, suppressed = _words(self, latent, k)
        ends = [*promoted, *reversed(suppressed)]
        tokenizer = self.lm.tokenizer
        rows = [(tokenizer.decode([token]), logit) for token, logit in ends]
        return Listing(rows, columns=["token", "logit"])

    def contexts(self, latent: int, kind: str = "top") -> pd.DataFrame:
        """Contexts of test pages: activation, title, position, text with the peak «marked».

        kind: "top", "middle", "low", or "off" for tokens in whose context it is silent.

        Raises:
            ConfigError: there is no such latent, or no index. ValueError: no such kind.
        """
        latent = self.latent_number(latent)
        rows = [
            (shown.activation, shown.title, shown.position, marked_text(self.lm.tokenizer, shown))
            for shown in self.index.contexts(latent, kind)
        ]
        return Listing(rows, columns=["activation", "title", "position", "text"])

    def neighbours(self, latent: int) -> pd.DataFrame:
        """Latents of the same SAE near this one: latent, by (cosine or co-firing), value, token.

        Raises:
            ConfigError: there is no such latent, or no index.
        """
        latent = self.latent_number(latent)
        record = self.index.latent(latent)
        near = [("cosine", *entry) for entry in record.nearest]
        near += [("co-firing", *entry) for entry in record.companions]
        tokens = self.index.table["top_token"]
        rows = [(number, by, value, tokens[number]) for by, number, value in near if number >= 0]
        return Listing(rows, columns=["latent", "by", "value", "token"])

    def latent_number(self, latent: Any) -> int:
        """A latent's number as Python has it.

        Raises:
            ConfigError: it is no whole number, or there is no such latent.
        """
        return latent_number(latent, self.sae.config.n_latents)

    # -- in other SAEs -----------------------------------------------------------------------------

    def twins(self, latent: int) -> pd.DataFrame:
        """Is it real? Its best match in each relative: sae, twin, cosine, jaccard, mutual, run_id.

        By direction at the same site, by the tokens on which both fire at another (cosine is nan
        there), nearest first. jaccard: tokens on which both fire, of those on which either does.
        mutual: each is the other's best. SAEs of one seed begin with the same weights: a match in
        another seed says more. Tables that are missing are made first, and kept.

        Raises:
            ConfigError: there is no such latent, no other SAE, or no index.
            ValueError: a table on disk is damaged; names the file.
        """
        latent = self.latent_number(latent)
        if not self.relatives:
            raise ConfigError(
                "twins: no other SAE to compare with; open one that a profile trained, beside "
                "another seed, λ, architecture or site"
            )
        tables = self.matches()
        rows = [
            {"sae": other.name}
            | tables[other.name].loc[latent].to_dict()
            | {"run_id": other.facts.get("run_id", "")}
            for other in self.relatives
        ]
        table = Listing(rows)
        table = table.sort_values(["cosine", "jaccard"], ascending=False, kind="stable")
        return table[table["twin"] >= 0]

    def matches(self) -> dict[str, pd.DataFrame]:
        """By relative the match of every latent, `features.matches`; those missing are made.

        Says beforehand about how long that takes.

        Raises:
            ConfigError: there is no index. ValueError: a table on disk is damaged; names the file.
        """
        tables = self.kept_matches()
        missing = [other for other in self.relatives if other.name not in tables]
        if missing:
            tables |= _compared(self, self.index, missing)
        return {other.name: tables[other.name] for other in self.relatives}

    def kept_matches(
        self, on_damage: Callable[[ValueError], object] | None = None
    ) -> dict[str, pd.DataFrame]:
        """Of `matches` those that lie on disk.

        on_damage: called with the error of each table that is damaged, which is then left out.

        Raises:
            ConfigError: there is no index. ValueError: without `on_damage` a table is damaged;
                names the file.
        """
        folder = self.beside(TWINS)
        tables: dict[str, pd.DataFrame] = {}
        if not folder.is_dir():
            return tables
        for other, checksum in zip(self.relatives, self._related_checksums, strict=True):
            pair = _pair(self, checksum)
            try:
                table = read_matches(pair, folder)
            except ValueError as error:
                if on_damage is None:
                    raise
                on_damage(error)
                continue
            if table is not None:
                tables[other.name] = table
        return tables

    @cached_property
    def _related_checksums(self) -> list[str]:
        return [other.load().checksum for other in self.relatives]

    # -- without it --------------------------------------------------------------------------------

    def ablation(self, latent: int, n_contexts: int = ABLATED_CONTEXTS) -> float:
        """Rise of the next-token loss, in nats a token, where the latent is taken out.

        Over a fixed sample of contexts of test pages in which it fires; nan where it never does.
        Measured once, and kept.

        Raises:
            ConfigError: there is no such latent, or there are no test pages.
            ValueError: the table on disk is damaged; names the file.
        """
        latent = self.latent_number(latent)
        kept = self.ablations(n_contexts)
        if latent not in kept.index:
            split = self.options.split
            line = ablation_losses(self.sae, self.lm, self.store, [latent], n_contexts, split=split)
            kept = kept_losses(_measured(self, n_contexts), self.beside(ABLATION), line)
        return float(kept.loc[latent, "delta_ce"])

    def ablations(self, n_contexts: int = ABLATED_CONTEXTS) -> pd.DataFrame:
        """Lines of `features.ablation_losses`, of the latents measured so far; measures nothing.

        Raises:
            ConfigError: there are no test pages.
            ValueError: the table on disk is damaged; names the file.
        """
        return read_losses(_measured(self, n_contexts), self.beside(ABLATION))


# Of an SAE, for the methods above


def _index(one: IndexedSAE, store: Store, folder: Path, progress: bool) -> FeatureIndex:
    if not one.is_indexed:
        with locked(one.beside(".features.lock")):
            if not one.is_indexed:  # another kernel may have built it meanwhile
                return build_index(
                    one.sae, store, one.lm, folder, options=one.options, progress=progress
                )
    index = FeatureIndex.open(folder, one.sae)
    expected = {"model_id": store.model_id, "corpus_id": store.corpus_id}
    for name, value in expected.items():
        if index.manifest[name] != value:
            raise ValueError(
                f"{folder} is an index of {name} {index.manifest[name]}, the profile has {value}; "
                "delete the folder and it is built anew"
            )
    return index


def _words(one: IndexedSAE, latent: int, k: int) -> tuple[list[Scored], list[Scored]]:
    """The k most promoted and suppressed tokens; each list the strongest first.

    Of the index, if it is there and holds so many.
    """
    if one.store is not None and one.is_indexed:
        record = one.index.latent(latent)
        if len(record.promoted) >= k:
            return record.promoted[:k], record.suppressed[:k]
    lens = LogitLens(one.lm)
    k = min(k, lens.W_U.shape[1] // 2)
    ends = lens.vocabulary(one.sae.W_dec[latent : latent + 1].detach() / one.sae.scale, k)
    high = zip(ends.promoted[0].tolist(), ends.promoted_logits[0].tolist(), strict=True)
    low = zip(ends.suppressed[0].tolist(), ends.suppressed_logits[0].tolist(), strict=True)
    return [Scored(*pair) for pair in high], [Scored(*pair) for pair in low]


def _pair(one: IndexedSAE, other: str) -> Pair:
    """This SAE and another, by its checksum, on the text of the index."""
    return Pair(one.checksum, other, one.index.manifest["corpus_id"], one.options.split)


def _compared(
    one: IndexedSAE, index: FeatureIndex, missing: Sequence[Subject]
) -> dict[str, pd.DataFrame]:
    """By relative the table of matches, made and kept; with one bar for all that this builds."""
    tables = {}
    if not headless():
        tqdm.write(_comparing(one, missing))
    for subject in tqdm(missing, desc="twins", unit="SAE", disable=headless()):
        other = subject.load()
        pair = _pair(one, other.checksum)
        theirs = other.index_within()
        tables[subject.name] = kept_matches(pair, index, theirs, one.beside(TWINS))
    return tables


def _comparing(one: IndexedSAE, missing: Sequence[Subject]) -> str:
    """How long comparing takes, with the indices of relatives that are not there yet."""
    index = forecast(one.sae, one.store, one.lm, one.options) if one.store else 0.0
    to_build = sum(not other.load().is_indexed for other in missing)
    seconds = index * (COMPARED * len(missing) + to_build)
    return f"twins: comparing with {len(missing)} SAEs, about {seconds:.0f} s"


def _measured(one: IndexedSAE, n_contexts: int) -> Measured:
    return Measured(one.checksum, one.index.manifest["corpus_id"], one.options.split, n_contexts)
