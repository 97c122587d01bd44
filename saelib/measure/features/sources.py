"""The tokens an index is built on: pages of a store, or an own text run through the model.

A source gives whole contexts, so that a firing token can be shown among its neighbours. Tokens
that are not ordinary (first in their context, or sinks) are encoded too, but counted apart: an SAE
was not trained there and its codes are of another size.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from jaxtyping import Float32, Int8, Int32, Int64
from torch import Tensor

from saelib.activations.lm import LM
from saelib.activations.store import CLASSES, Store, token_classes
from saelib.files import replaced_file
from saelib.text.pages import SPLITS

ORDINARY = CLASSES.index("ordinary")


class TokenTable:
    """The tokens of an index, row by row; `kind` is an index into `CLASSES`."""

    COLUMNS = ("token_id", "position", "context", "page", "kind")

    def __init__(
        self,
        token_id: Int32[np.ndarray, " rows"],
        position: Int32[np.ndarray, " rows"],
        context: Int32[np.ndarray, " rows"],
        page: Int32[np.ndarray, " rows"],
        kind: Int8[np.ndarray, " rows"],
        titles: Sequence[str],
    ) -> None:
        self.token_id = token_id
        self.position = position
        self.context = context  # its number in the store or the own text; ascending
        self.page = page  # index into `titles`
        self.kind = kind
        self.titles = tuple(titles)

    def __len__(self) -> int:
        return len(self.token_id)

    @property
    def ordinary(self) -> Int64[np.ndarray, " ordinary"]:
        """Rows that count."""
        return np.flatnonzero(self.kind == ORDINARY)

    def context_rows(self, row: int) -> range:
        """Rows of the context that a row is in."""
        bounds = np.searchsorted(self.context, [self.context[row], self.context[row] + 1])
        return range(int(bounds[0]), int(bounds[1]))

    def save(self, path: Path) -> None:
        """Write the columns; titles are kept in `index.json`."""
        columns = {name: getattr(self, name) for name in self.COLUMNS}
        with replaced_file(path) as temporary:  # with the permissions that others' files have
            safetensors.numpy.save_file(columns, temporary)

    @classmethod
    def load(cls, path: Path, titles: Sequence[str]) -> TokenTable:
        """Read the columns back."""
        return cls(**safetensors.numpy.load_file(path), titles=titles)


class Source(ABC):
    """Tokens, their activations at one site, and what they are."""

    tokens: TokenTable
    model_id: str
    corpus_id: str
    name: str  # the split, or "own text"; stands in `index.json`

    @abstractmethod
    def iter_rows(self, batch: int) -> Iterator[Float32[Tensor, "batch d_model"]]:
        """Activations of all rows in order, about `batch` at a time."""


class StorePages(Source):
    """All contexts of a split of a store.

    A token is ordinary only if it is so at every stored site, as everywhere in the workbook.
    n_tokens: with it, whole contexts drawn by `seed` until they have as many rows.
    """

    def __init__(
        self, store: Store, site: int, split: str, n_tokens: int = 0, seed: int = 0
    ) -> None:
        self.store = store
        self.site = site
        self.name = split
        self.model_id = store.model_id
        self.corpus_id = store.corpus_id
        self.rows = np.flatnonzero(store.tokens["split"] == SPLITS.index(split))
        if n_tokens:
            self.rows = self._drawn(n_tokens, seed)
        self.tokens = self._table()

    def _drawn(self, n_tokens: int, seed: int) -> Int64[np.ndarray, " rows"]:
        context = self.store.tokens["context"][self.rows]
        names, lengths = np.unique(context, return_counts=True)
        order = np.random.default_rng(seed).permutation(len(names))
        n_contexts = int(np.searchsorted(np.cumsum(lengths[order]), n_tokens)) + 1
        return self.rows[np.isin(context, names[order[:n_contexts]])]

    def _table(self) -> TokenTable:
        first = self.store.tokens["position"] == 0
        kind = np.where(self.store.mask("ordinary"), ORDINARY, CLASSES.index("sink"))
        kind[first] = CLASSES.index("first")
        columns = {
            name: self.store.tokens[name][self.rows]
            for name in ("token_id", "position", "context", "page")
        }
        kinds = kind[self.rows].astype(np.int8)
        return TokenTable(**columns, kind=kinds, titles=self.store.page_titles)

    def iter_rows(self, batch: int) -> Iterator[Float32[Tensor, "batch d_model"]]:
        yield from self.store.iter_rows(self.site, self.rows, batch)


class OwnText:
    """Contexts of token ids to be run through a model; `build_index` takes it for a source.

    `median_norm` is what a sink is measured by, a store's `median_norm(site)`; without it that of
    the text's own tokens after position 0.

    Raises:
        ValueError: no context, one without tokens, or one longer than the model takes.
    """

    def __init__(
        self,
        lm: LM,
        contexts: Sequence[Sequence[int]],
        titles: Sequence[str] | None = None,
        median_norm: float | None = None,
    ) -> None:
        self.lm = lm
        self.contexts = [np.asarray(context, dtype=np.int32) for context in contexts]
        self.titles = tuple(titles or (f"text {i + 1}" for i in range(len(contexts))))
        self.median_norm = median_norm
        self._check()

    @classmethod
    def from_text(cls, lm: LM, text: str, title: str = "own text", **options: float) -> OwnText:
        """One context of a text, tokenised as the model's tokenizer does by default."""
        return cls(lm, [lm.tokenizer(text)["input_ids"]], [title], **options)

    def _check(self) -> None:
        if not self.contexts or not all(map(len, self.contexts)):
            raise ValueError("own text: no tokens; expected one or more in each context")
        if len(self.titles) != len(self.contexts):
            raise ValueError(
                f"own text: {len(self.titles)} titles for {len(self.contexts)} contexts; expected "
                "one each"
            )
        longest = max(map(len, self.contexts))
        if self.lm.max_length and longest > self.lm.max_length:
            raise ValueError(
                f"own text: a context of {longest} tokens, {self.lm.name} takes at most "
                f"{self.lm.max_length}"
            )


class OwnPages(Source):
    """An own text at a site. The model runs twice: for the norms, and for the rows."""

    def __init__(self, text: OwnText, site: int) -> None:
        self.text = text
        self.site = site
        self.name = "own text"
        self.model_id = text.lm.model_id
        content = repr([context.tolist() for context in text.contexts])
        digest = hashlib.sha256(content.encode())
        self.corpus_id = f"own-{digest.hexdigest()[:12]}"
        self.tokens = self._table()

    def _streams(self) -> Iterator[Tensor]:
        for ids in self.text.contexts:
            batch = torch.from_numpy(ids.astype(np.int64))[None]
            yield self.text.lm.capture(batch, [self.site])[self.site][0].float().cpu()

    def _table(self) -> TokenTable:
        lengths = [len(ids) for ids in self.text.contexts]
        position = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
        context = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        token_id = np.concatenate(self.text.contexts)
        kind = self._kinds(position)
        return TokenTable(token_id, position, context, context, kind, self.text.titles)

    def _kinds(self, position: np.ndarray) -> Int8[np.ndarray, " rows"]:
        norm = torch.cat([stream.norm(dim=1) for stream in self._streams()]).numpy()
        later = norm[position > 0]
        median = self.text.median_norm or (np.median(later) if len(later) else np.inf)
        return token_classes(norm, position, float(median))

    def iter_rows(self, batch: int) -> Iterator[Float32[Tensor, "batch d_model"]]:
        for stream in self._streams():
            yield from stream.split(batch)


def open_source(source: Store | OwnText, site: int, split: str) -> Source:
    """The source at a site.

    Raises:
        ValueError: no ordinary token in it.
    """
    pages: Source = (
        OwnPages(source, site) if isinstance(source, OwnText) else StorePages(source, site, split)
    )
    if not len(pages.tokens.ordinary):
        raise ValueError(f"{pages.name}: no ordinary token to index; expected at least one")
    return pages
