"""How many tokens a profile's text has, before it is read: counted, sampled, or assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from saelib.activations.store import Store
from saelib.config import ConfigError, CorpusConfig
from saelib.env import data_dir
from saelib.files import is_there
from saelib.run.identity import read_identity
from saelib.run.parameters import filled
from saelib.text.contexts import load_contexts
from saelib.text.models import resolve_model
from saelib.text.pages import count_pages, read_pages
from saelib.text.rows import separated_path

SHARES = np.array([0.7, 0.1, 0.2])  # of tokens in the splits, where pages are not at hand
SAMPLE = 500  # pages read of a text that lies here
CHARACTERS = 4.2  # per token
# (pages, tokens per page): assumed where no text is at hand
PAGES = {"fever": (0, 100), "enwik8": (8571, 1832)}
TOKENS_OF_A_PAGE = 500  # of any other text
ASSUMED = "assumed"  # how a text is known that is elsewhere


@dataclass(frozen=True)
class TextSize:
    """Tokens of a profile's text."""

    train: float | int
    val: float | int
    test: float | int
    depths: float | int  # in the section on all depths, which takes fewer contexts of a page
    known: str  # how they are known

    @property
    def held_out(self) -> float | int:
        return self.val + self.test

    @property
    def total(self) -> float | int:
        return self.train + self.held_out

    def streamed(self, held_out: int) -> TextSize:
        """The same with at most `held_out` tokens of validation and of test pages; 0: all."""
        if not held_out:
            return self
        return replace(self, val=min(self.val, held_out), test=min(self.test, held_out))


def text_of(p: Mapping[str, Any], depth_contexts: int) -> TextSize:
    """Counted where the store or the embedded text is there; else sampled from local pages.

    Assumed where the text is elsewhere; ConfigError where nothing says how many pages are taken.
    """
    cfg = filled(CorpusConfig, p, seed=p["corpus_seed"])
    folder = data_dir(p["profile"])
    identity = read_identity(folder, folder.name) if is_stored(folder) else {}
    if identity.get("corpus") == cfg.to_dict() and "stream" not in identity:
        tokens = Store.open(folder / "store", verify=False).tokens
        return _counted(tokens["page"], tokens["split"], cfg, depth_contexts)
    if cfg.source == "embedded":
        contexts = load_contexts(cfg, AutoTokenizer.from_pretrained(resolve_model(p["model"])))
        page = np.repeat(contexts.page, np.diff(contexts.offsets))
        return _counted(page, contexts.split[page], cfg, depth_contexts)
    return estimated(cfg, depth_contexts)


def is_stored(folder: Path) -> bool:
    """Whether a profile's store is finished."""
    return all((folder / name).exists() for name in ("workspace.json", "store/manifest.json"))


def _counted(
    page: np.ndarray, split: np.ndarray, cfg: CorpusConfig, depth_contexts: int
) -> TextSize:
    """From the page and the split of every token."""
    counts = np.bincount(split, minlength=3).tolist()
    depths = np.minimum(np.bincount(page), depth_contexts * cfg.ctx_len).sum()
    return TextSize(*counts, float(depths), "counted")


def kept(tokens: float | int, cfg: CorpusConfig, contexts: int) -> float | int:
    """Tokens of a page in contexts, at most so many of these (0: all)."""
    whole, tail = divmod(tokens, cfg.ctx_len)
    long_enough = tail >= cfg.min_ctx_len > 0
    total = whole * cfg.ctx_len + (tail if long_enough else 0)
    return min(total, contexts * cfg.ctx_len) if contexts else total


def estimated(cfg: CorpusConfig, depth_contexts: int) -> TextSize:
    """From the first local pages, or from what is known of the source; see `text_of`."""
    pages, tokens, origin = _pages_of(cfg)
    if not pages and origin == ASSUMED:
        raise ConfigError(
            f"path = {cfg.path!r}: {_absent(cfg.path)}, so that its pages cannot be counted; "
            "correct it, or set n_docs to plan a text that is elsewhere"
        )
    every = sum(kept(n, cfg, cfg.contexts_per_page) for n in tokens)
    if not pages * every:
        raise ConfigError(
            f"path = {cfg.path!r}: {pages} pages, with {every:.0f} tokens in contexts "
            f"of {cfg.ctx_len} in the first {len(tokens)}; set n_docs to plan with so many pages, "
            "or ctx_len, min_ctx_len"
        )
    times = pages / len(tokens)
    depths = times * sum(kept(n, cfg, depth_contexts) for n in tokens)
    known = f"{pages:,} pages of {np.mean(tokens):,.0f} tokens, {origin}"
    return TextSize(*(SHARES * times * every).tolist(), float(depths), known)


def _absent(path: str) -> str:
    """Where a path was looked for, since a relative one begins at the notebooks."""
    return f"nothing lies at {Path(path).expanduser().resolve()}" if path else "it is empty"


def _lies_here(cfg: CorpusConfig) -> bool:
    """Whether the path exists, or with text and data sets what stands before its colon."""
    path = Path(cfg.path)
    if cfg.source in ("text", "dataset"):
        path, _ = separated_path(cfg.path)
    return bool(cfg.path) and is_there(path.expanduser())


def _pages_of(cfg: CorpusConfig) -> tuple[int, Sequence[float | int], str]:
    """How many pages are taken (0: unknown), tokens of some of them, and how both are known.

    More pages than a local source holds are not believed: they are counted, up to `n_docs`.
    """
    if not _lies_here(cfg):
        pages, tokens = PAGES.get(cfg.source, (0, TOKENS_OF_A_PAGE))
        return cfg.n_docs or pages, [tokens], ASSUMED
    everything = replace(cfg, n_docs=0)
    tokens = [len(page.text) / CHARACTERS for page in islice(read_pages(everything), SAMPLE)]
    pages = count_pages(everything, cfg.n_docs) or 0
    return pages, tokens, f"as the first {len(tokens)} have"
