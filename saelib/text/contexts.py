"""Pages -> contexts: tokenised, and cut into pieces that never cross a page.

Memory: one batch of pages and about 100 bytes a page or context. Token ids go to a temporary file
(`buffers.TokenFile`), which `Contexts` maps.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int8, Int32, Int64, UInt64

from saelib.config import CorpusConfig
from saelib.text import buffers
from saelib.text.buffers import Strings, TokenFile, release
from saelib.text.pages import SPLITS, Page, draw_digest, read_pages, split_of
from saelib.text.rows import CorpusError
from saelib.text.spelling import token_ids

# Characters tokenised at once: the tokenizer takes about 100 bytes of memory for each.
BATCH_CHARS = 250_000


@dataclass(frozen=True, eq=False)
class Contexts:
    """Tokenised pages cut into contexts, the shortest first.

    Context i is `ids[offsets[i] : offsets[i + 1]]`.
    """

    ids: Int32[np.ndarray, "tokens"]  # BOS included, where the contexts have one
    offsets: Int64[np.ndarray, "bounds"]  # n_contexts + 1 of them
    page: Int32[np.ndarray, "contexts"]  # index into `page_ids`
    start: Int32[np.ndarray, "contexts"]  # place of its first text token among the page's
    page_ids: Sequence[str]  # pages that have a context, in reading order
    page_titles: Sequence[str]
    split: Int8[np.ndarray, "pages"]  # index into `SPLITS`
    bos: bool  # each context begins with BOS
    report: dict[str, Any]  # counts of what was read, skipped and kept

    @property
    def n_contexts(self) -> int:
        return len(self.page)

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    def tokens(self, i: int) -> Int32[np.ndarray, "length"]:
        """Token ids of context i."""
        return self.ids[self.offsets[i] : self.offsets[i + 1]]

    def select(self, index: Int64[np.ndarray, " n"]) -> Contexts:
        """The contexts `index`, ascending, as a corpus of their own; pages keep their numbers."""
        ids = np.concatenate([self.tokens(i) for i in index.tolist()])
        ends = np.cumsum(np.diff(self.offsets)[index])
        offsets = np.concatenate([[0], ends])
        return replace(
            self, ids=ids, offsets=offsets, page=self.page[index], start=self.start[index]
        )

    @cached_property
    def corpus_id(self) -> str:
        """Hash of the content: tokens, bounds, pages, split. Report and titles do not enter."""
        arrays = (self.ids, self.offsets, self.page, self.start, self.split)
        hashes = json.dumps([_sha256(values) for values in arrays], separators=(",", ":"))
        # `stable_hash(hashes, page_ids, bos)`, without the list and the text of all page ids
        digest = hashlib.sha256(f"[{hashes},[".encode())
        for number, page_id in enumerate(self.page_ids):
            separator = "," if number else ""
            digest.update(f"{separator}{json.dumps(page_id)}".encode())
        digest.update(f"],{json.dumps(self.bos)}]".encode())
        return digest.hexdigest()[:12]


def _sha256(values: np.ndarray) -> str:
    digest = hashlib.sha256()
    for first in range(0, len(values), buffers.PIECE):
        digest.update(np.ascontiguousarray(values[first : first + buffers.PIECE]))
        release(values)
    return digest.hexdigest()


def load_contexts(cfg: CorpusConfig, tokenizer: Any) -> Contexts:
    """Read the corpus a configuration names and cut it into contexts; see `pack` for the errors."""
    report: dict[str, Any] = {}
    return pack(read_pages(cfg, report), tokenizer, cfg, report)


def pack(
    pages: Iterable[Page], tokenizer: Any, cfg: CorpusConfig, report: dict[str, Any] | None = None
) -> Contexts:
    """Tokenise pages and cut them into contexts of `ctx_len` tokens that never cross a page.

    `tokenizer` is any Hugging Face tokenizer. Contexts are sorted by length, stably, so equal
    lengths are adjacent. Raises `CorpusError`, with the pages and tokens there were, when no page
    holds a context or a split stays empty, when two pages that hold contexts share an id (splits
    and statistics by page go by it), and when there is no room for temporary files.
    """
    report = {"source": cfg.source} if report is None else report
    bos = wants_bos(tokenizer, cfg.bos)
    with TokenFile() as tokens:
        page_ids, titles, texts, (length, page, start) = _cut(
            pages, tokenizer, cfg, bos, report, tokens
        )
        _refuse_same_id(page_ids, cfg)
        split = np.fromiter((SPLITS.index(split_of(p)) for p in page_ids), np.int8, len(page_ids))
        _complete_report(report, length, page, split)
        _count_same_text(report, texts, split)
        _refuse_too_little(report, cfg)
        order = np.argsort(length, kind="stable")
        ids = tokens.mapped(length, order)
    offsets = np.concatenate([[0], np.cumsum(length[order], dtype=np.int64)])
    return Contexts(ids, offsets, page[order], start[order], page_ids, titles, split, bos, report)


def wants_bos(tokenizer: Any, mode: str) -> bool:
    """Whether contexts begin with BOS: "always", "never", or as the tokenizer itself does ("auto").

    Raises `CorpusError` for "always" where the tokenizer has no BOS.
    """
    bos = tokenizer.bos_token_id
    if mode == "always" and bos is None:
        raise CorpusError(
            "CorpusConfig.bos = 'always', but the tokenizer has no BOS token: "
            "expected 'auto' or 'never'"
        )
    if mode == "auto":
        return bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos]
    return mode == "always"


# ---- cutting


def _cut(
    pages: Iterable[Page],
    tokenizer: Any,
    cfg: CorpusConfig,
    bos: bool,
    report: dict[str, Any],
    tokens_kept: TokenFile,
) -> tuple[Strings, Strings, UInt64[np.ndarray, "pages"], Int32[np.ndarray, "3 contexts"]]:
    """Ids, titles and texts' hashes of pages with a context; length, page and start of each."""
    page_ids, titles = Strings(), Strings()
    texts = array("Q")
    table = array("i")  # three numbers a context
    report.update(pages=0, pages_short=0, chars=0, tokens_read=0)
    for page, tokens in _tokenised(pages, tokenizer):
        spans = _spans(len(tokens), cfg, bos, page.id)
        report["pages"] += 1
        report["pages_short"] += not spans
        report["chars"] += len(page.text)
        report["tokens_read"] += len(tokens)
        for start, end in spans:
            tokens_kept.extend([tokenizer.bos_token_id] * bos + tokens[start:end])
            table.extend((end - start + bos, len(page_ids), start))
        if spans:
            page_ids.append(page.id)
            titles.append(page.title)
            texts.append(_text_hash(page.text))
    contexts = np.array(table, np.int32).reshape(-1, 3).T.copy()
    return page_ids, titles, np.array(texts, np.uint64), contexts


def _text_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _tokenised(pages: Iterable[Page], tokenizer: Any) -> Iterator[tuple[Page, list[int]]]:
    for batch in _batches(pages):
        yield from zip(batch, token_ids([page.text for page in batch], tokenizer), strict=True)


def _batches(pages: Iterable[Page]) -> Iterator[list[Page]]:
    """Pages in batches of about `BATCH_CHARS` characters."""
    batch: list[Page] = []
    chars = 0
    for page in pages:
        batch.append(page)
        chars += len(page.text)
        if chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _spans(n_tokens: int, cfg: CorpusConfig, bos: bool, page_id: str) -> list[tuple[int, int]]:
    """(start, end) of a page's contexts among its text tokens, in order.

    Of a page with more than `contexts_per_page`, a draw seeded by its id.
    """
    room = cfg.ctx_len - bos
    shortest = max(1, (cfg.min_ctx_len or cfg.ctx_len) - bos)
    starts = (start for start in range(0, n_tokens, room) if n_tokens - start >= shortest)
    spans = [(start, min(start + room, n_tokens)) for start in starts]
    if not cfg.contexts_per_page or len(spans) <= cfg.contexts_per_page:
        return spans
    shuffled = sorted(spans, key=lambda span: draw_digest(f"{page_id}:{span[0]}", cfg))
    return sorted(shuffled[: cfg.contexts_per_page])


# ---- what is refused


def _refuse_same_id(page_ids: Sequence[str], cfg: CorpusConfig) -> None:
    """Refuse two pages of one id; sorted hashes find them, a set would take 100 bytes per page."""
    hashes = np.sort(np.fromiter(map(hash, page_ids), np.int64, len(page_ids)))
    repeated = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    suspects = [page_id for page_id in page_ids if hash(page_id) in repeated] if repeated else []
    duplicates = [page_id for n, page_id in enumerate(suspects) if page_id in suspects[:n]]
    if duplicates:
        way_out = "remove the copy, or give an id_column that tells them apart"
        if cfg.id_column:
            way_out = f"give another id_column than {cfg.id_column!r}, or none"
        raise CorpusError(
            f"{_label(cfg)}: two pages have the id {duplicates[0]!r}, "
            f"by which pages are split and counted; {way_out}"
        )


def _complete_report(
    report: dict[str, Any], length: np.ndarray, page: np.ndarray, split: np.ndarray
) -> None:
    """Add the counts of contexts, tokens and pages by split."""
    report.update(contexts=len(length), tokens=int(length.sum()))
    for number, name in enumerate(SPLITS):
        report[f"pages_{name}"] = int((split == number).sum())
        report[f"contexts_{name}"] = int((split[page] == number).sum())


def _count_same_text(
    report: dict[str, Any], texts: UInt64[np.ndarray, "pages"], split: Int8[np.ndarray, "pages"]
) -> None:
    """Add how many pages repeat another's text, and how many test pages that of a training page."""
    train, test = (texts[split == SPLITS.index(name)] for name in ("train", "test"))
    report["pages_same_text"] = len(texts) - len(np.unique(texts))
    report["pages_test_as_train"] = int(np.isin(test, train).sum())


def _refuse_too_little(report: dict[str, Any], cfg: CorpusConfig) -> None:
    """Refuse a corpus without a context or with an empty split."""
    have = f"{report['pages']} pages and {report['tokens_read']} tokens"
    if report.get("bad_lines"):
        have += f" ({report['bad_lines']} bad lines skipped)"
    if report["chars"] and not report["tokens_read"]:
        raise CorpusError(
            f"{_label(cfg)}: {have}: the model's tokenizer finds nothing in them; is its "
            "tokenizer.json whole?"
        )
    if not report["contexts"]:
        shortest = cfg.min_ctx_len or cfg.ctx_len
        raise CorpusError(
            f"{_label(cfg)}: {have}, but no page fills one context of {shortest} tokens"
        )
    empty = [name for name in SPLITS if not report[f"pages_{name}"]]
    if empty:
        n_pages = sum(report[f"pages_{name}"] for name in SPLITS)
        raise CorpusError(
            f"{_label(cfg)}: {have} give {n_pages} pages with {report['contexts']} contexts, "
            f"but none falls to the split {' and '.join(map(repr, empty))}; more pages are needed"
        )


def _label(cfg: CorpusConfig) -> str:
    return f"corpus {cfg.source} {cfg.path}".rstrip()
