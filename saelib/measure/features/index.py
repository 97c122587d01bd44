"""An index of an SAE's features, opened: a table of all latents, and a record of each.

On disk it is one folder, bound to the SAE by a checksum of its configuration and weights, and
sealed (`saelib.seal`): an index that was edited is refused by its reader.

    index.json               what it belongs to, written last: a folder that has it is complete
    latents.csv              the table, see `columns`
    codes.safetensors        where each latent fires, and its activations
    tokens.safetensors       the tokens, see `sources.TokenTable`
    details.safetensors      histograms, contexts, token types, vocabulary, neighbours
    seal.json                size and checksum of these, which each reader checks
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import safetensors.numpy
from jaxtyping import Float32, Int32, Int64

from saelib.files import read_json
from saelib.measure.features.codes import LatentCodes, load_codes, load_latent
from saelib.measure.features.columns import TOKEN_IDS, read_latents
from saelib.measure.features.contexts import KINDS, WIDTH, ContextWindow, window
from saelib.measure.features.identity import SHORT, sae_checksum
from saelib.measure.features.options import IndexOptions
from saelib.measure.features.sources import TokenTable
from saelib.measure.features.statistics import EDGES
from saelib.measure.latents import latent_number
from saelib.sae import Autoencoder
from saelib.seal import checked

VERSION = 1
ANEW = "delete its folder, and the index is built anew"
FEATURES = "features"  # folder of an index, beside the SAE's weights
INDEX, LATENTS = "index.json", "latents.csv"
MANIFEST = {  # what `index.json` has at least
    *("version", "sae", "site", "model_id", "corpus_id", "source"),
    *("n_latents", "n_ordinary", "n_contexts", "options", "titles", "texts"),
}
CODES, TOKENS, DETAILS = "codes.safetensors", "tokens.safetensors", "details.safetensors"
FILES = (LATENTS, CODES, TOKENS, DETAILS, INDEX)


class TokenType(NamedTuple):
    """A token type that a latent fires on."""

    token_id: int
    count: int  # firings on it
    mean: float  # activation


class Scored(NamedTuple):
    """A token with its logit, or a latent with its cosine or Jaccard."""

    number: int
    value: float


class Histogram(NamedTuple):
    """Firings by activation; the outer bins take what lies beyond the edges."""

    edges: Float32[np.ndarray, " bins_plus_1"]
    counts: Int32[np.ndarray, " bins"]


class FeatureRecord(NamedTuple):
    """All that an index holds of one latent."""

    latent: int
    facts: dict[str, Any]  # its line of the table
    histogram: Histogram
    contexts: dict[str, list[ContextWindow]]  # by `contexts.KINDS`
    token_types: list[TokenType]  # most activation mass first
    promoted: list[Scored]  # empty where the index was built without a model
    suppressed: list[Scored]
    nearest: list[Scored]  # latents by decoder cosine
    companions: list[Scored]  # latents by co-firing


class FeatureIndex:
    """An open index; read only. `table` has a line for each latent."""

    def __init__(self, folder: Path, manifest: dict[str, Any], sae: Autoencoder) -> None:
        self.folder = folder
        self.sae = sae
        self.manifest = manifest
        self.n_latents: int = manifest["n_latents"]
        self.options = IndexOptions.from_dict(manifest["options"])
        self.texts = {int(number): text for number, text in manifest["texts"].items()}

    @classmethod
    def open(cls, folder: str | Path, sae: Autoencoder) -> FeatureIndex:
        """Open a finished index of this SAE.

        Raises:
            FileNotFoundError: the folder holds no (finished) index.
            ValueError: it is of another SAE or version, or a file is damaged; names the file.
        """
        path = Path(folder) / INDEX
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: not a (finished) index of features")
        manifest = read_json(checked(path, ANEW))
        if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
            version = manifest.get("version") if isinstance(manifest, dict) else None
            raise ValueError(f"{path}: version {version!r}, expected {VERSION}; build it anew")
        if missing := sorted(MANIFEST - set(manifest)):
            raise ValueError(f"{path}: damaged ({', '.join(missing)} missing); build it anew")
        checksum = sae_checksum(sae)
        if manifest["sae"] != checksum:
            raise ValueError(
                f"{path} is an index of SAE {manifest['sae'][:SHORT]}, not of this one, "
                f"{checksum[:SHORT]}; build it anew"
            )
        return cls(Path(folder), manifest, sae)

    def _checked(self, name: str) -> Path:
        return checked(self.folder / name, ANEW)

    # -- tables

    @cached_property
    def table(self) -> pd.DataFrame:
        """A line for each latent: `columns.TABLE`, and the texts of its token ids."""
        table = read_latents(self._checked(LATENTS))
        for name in TOKEN_IDS:
            texts = table[name].map(lambda token: self.text(token) if token >= 0 else "")
            table[name.removesuffix("_id")] = texts
        return table

    @cached_property
    def tokens(self) -> TokenTable:
        """The tokens it was built on."""
        return TokenTable.load(self._checked(TOKENS), self.manifest["titles"])

    @cached_property
    def codes(self) -> LatentCodes:
        """Where all latents fire; read into memory at the first use."""
        return load_codes(self._checked(CODES))

    @cached_property
    def _details(self) -> dict[str, np.ndarray]:
        path = self._checked(DETAILS)
        try:
            return safetensors.numpy.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path}: damaged ({error}); build the index anew") from error

    @cached_property
    def _starts(self) -> Int64[np.ndarray, " latents_plus_1"]:
        with safetensors.safe_open(self._checked(CODES), "np") as file:
            return file.get_tensor("starts")

    @cached_property
    def _by_row(self) -> tuple[np.ndarray, np.ndarray]:
        """Entries in the order of their rows, and where each row's begin."""
        order = np.argsort(self.codes.rows, kind="stable")
        counts = np.bincount(self.codes.rows, minlength=len(self.tokens))
        return order, np.concatenate([[0], np.cumsum(counts)])

    def text(self, token_id: int) -> str:
        """Text of a token that the index names; its number where it was built without a tokenizer.

        Tokens of contexts that no column names are decoded by the tokenizer, not here.
        """
        return self.texts.get(int(token_id), str(token_id))

    def token_ids(self, name: str) -> Int64[np.ndarray, "latents k"]:
        """Of all latents, the tokens of one list, most first; -1 where there are fewer.

        name: "types" (those it fires on, by mass), "promoted" or "suppressed".
        """
        return self._details[f"{name}.ids"].astype(np.int64)

    # -- one latent, one token

    def firing(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of `tokens` on which a latent fires, rising, and its activations there.

        Raises:
            ConfigError: the SAE has no such latent.
        """
        latent = latent_number(latent, self.n_latents)
        span = slice(int(self._starts[latent]), int(self._starts[latent + 1]))
        return load_latent(self._checked(CODES), span)

    def firing_on(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Latents that fire on a row of `tokens`, strongest first, and their activations there.

        No latents where the token is not ordinary: codes there are not kept.

        Raises:
            ValueError: there is no such row.
        """
        if not 0 <= row < len(self.tokens):
            raise ValueError(f"row {row}: expected 0 to {len(self.tokens) - 1}")
        order, starts = self._by_row
        entries = order[starts[row] : starts[row + 1]]
        latents = np.searchsorted(self.codes.starts, entries, side="right") - 1
        values = self.codes.values[entries]
        strongest = np.argsort(-values, kind="stable")
        return latents[strongest], values[strongest]

    def contexts(self, latent: int, kind: str, width: int = WIDTH) -> list[ContextWindow]:
        """Kept contexts of one of `contexts.KINDS`, `width` tokens either side of the peak.

        Raises:
            ConfigError: no such latent. ValueError: no such kind.
        """
        rows, values = self.firing(latent)
        chosen = self.context_rows(latent, kind)
        return [window(self.tokens, row, rows, values, width) for row in chosen]

    def context_rows(self, latent: int, kind: str) -> list[int]:
        """Rows of `tokens` of the peaks of kept contexts of one of `contexts.KINDS`.

        Raises:
            ConfigError: no such latent. ValueError: no such kind.
        """
        latent = latent_number(latent, self.n_latents)
        if kind not in KINDS:
            raise ValueError(f"kind = {kind!r}: expected one of {', '.join(KINDS)}")
        chosen = self._details["contexts"][latent, KINDS.index(kind)]
        return chosen[chosen >= 0].tolist()

    def latent(self, latent: int) -> FeatureRecord:
        """All that the index holds of a latent.

        Raises:
            ConfigError: the SAE has no such latent.
        """
        latent = latent_number(latent, self.n_latents)
        return FeatureRecord(
            latent=latent,
            facts=self.table.loc[latent].to_dict(),
            histogram=Histogram(EDGES, self._details["histogram"][latent]),
            contexts={kind: self.contexts(latent, kind) for kind in KINDS},
            token_types=self._token_types(latent),
            promoted=self._scored("promoted", latent),
            suppressed=self._scored("suppressed", latent),
            nearest=self._scored("nearest", latent),
            companions=self._scored("companions", latent),
        )

    def _token_types(self, latent: int) -> list[TokenType]:
        columns = (self._details[f"types.{name}"][latent] for name in ("ids", "counts", "mass"))
        return [
            TokenType(int(token), int(count), float(mass) / int(count))
            for token, count, mass in zip(*columns, strict=True)
            if token >= 0
        ]

    def _scored(self, name: str, latent: int) -> list[Scored]:
        numbers = self._details[f"{name}.ids"][latent]
        values = self._details[f"{name}.values"][latent]
        pairs = zip(numbers.tolist(), values.tolist(), strict=True)
        return [Scored(number, value) for number, value in pairs if number >= 0]
