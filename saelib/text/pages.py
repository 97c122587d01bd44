"""Documents: pages streamed from a source, all of them or a draw, and the split each belongs to.

The split is a function of the page id alone, so a page stays in its split whatever else is in the
corpus and in whatever order. (Row numbers are ids only as long as the rows keep their order.)

With `n_docs` the pages taken are those n, of all that are not blank, whose sha256 of "seed:page id"
is smallest: the same pages whatever form the corpus has and in whatever order, in the order in
which they stand there. That takes two passes, the first of which reads everything; a corpus with
fewer pages gives them all. A hub data set is streamed twice.

Memory: one row, and a digest for each of `n_docs`; from the hub also what is read ahead (1 GB).
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from saelib.config import NAME_CHARS, CorpusConfig, shown
from saelib.text.apart import Cleaner, MarkupError
from saelib.text.lines import PAGE_CHARS
from saelib.text.rows import CorpusError, Row
from saelib.text.sources import SOURCES

SPLITS = ("train", "val", "test")  # position = the int8 that contexts and stores keep
SPLIT_ENDS = (0.7, 0.8, 1.0)  # 70 % train, 10 % validation, 20 % test
# With this salt the few pages of the embedded excerpt come close to these shares.
SPLIT_SALT = 43
EXAMPLES = 5  # bad lines named in the report
FIELDS = 20  # of a row, named in a message


@dataclass(frozen=True)
class Page:
    """A document. `id` decides its split."""

    id: str
    title: str
    text: str


def split_of(page_id: str) -> str:
    """Split of a page by the hash of its id: the same on every machine and in every corpus."""
    digest = hashlib.sha256(f"{SPLIT_SALT}:{page_id}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return next(name for name, end in zip(SPLITS, SPLIT_ENDS, strict=True) if share < end)


def draw_digest(name: str, cfg: CorpusConfig) -> int:
    """The number by which pages, and contexts of a page, are drawn: the smallest are taken."""
    return int.from_bytes(hashlib.sha256(f"{cfg.seed}:{name}".encode()).digest(), "big")


def read_pages(cfg: CorpusConfig, report: dict[str, Any] | None = None) -> Iterator[Page]:
    """Stream the pages of a corpus as text, blank ones skipped; with `n_docs` the drawn ones.

    Counts go into `report`: `pages_blank`, `bad_lines` with the first few, for a dump also
    `pages_redirect` and `pages_other_namespace`. Raises `CorpusError` naming file and line where a
    row is malformed, wrongly encoded, longer than `text.lines` reads or lacks its text, or takes
    longer than `text.apart` gives it (`on_bad_line="skip"` counts these instead), or where the
    source is missing.
    """
    report = {} if report is None else report
    return draw_pages(cfg, report) if cfg.n_docs else _all_pages(cfg, report)


def draw_pages(cfg: CorpusConfig, report: dict[str, Any]) -> Iterator[Page]:
    """The `n_docs` pages of smallest digest, in reading order; reads the corpus twice."""
    largest = _largest_digest(cfg, report)
    if largest is not None:
        drawn = _all_pages(cfg, {}, lambda page_id: draw_digest(page_id, cfg) <= largest)
        yield from islice(drawn, cfg.n_docs)


def _largest_digest(cfg: CorpusConfig, report: dict[str, Any]) -> int | None:
    """The largest digest of the draw, None for no page; one pass that counts into `report`."""
    drawn: list[int] = []  # digests times -1: the heap's first is the largest digest

    def enters(page_id: str) -> bool:
        return len(drawn) < cfg.n_docs or draw_digest(page_id, cfg) < -drawn[0]

    for page in _all_pages(replace(cfg, detokenize=False), report, enters):
        push = heapq.heappush if len(drawn) < cfg.n_docs else heapq.heapreplace
        push(drawn, -draw_digest(page.id, cfg))
    return -drawn[0] if drawn else None


def count_pages(cfg: CorpusConfig, limit: int = 0) -> int | None:
    """Pages with text that a local source holds, counted up to `limit` (0: all); None for the hub.

    Cheap: markup stays, nothing is tokenised, bad rows are passed over, and reading ends at the
    limit. A page whose text is markup alone is counted although it will turn out blank.
    """
    source = SOURCES[cfg.source]
    if source.on_hub(cfg):
        return None
    pages = (_page(row, cfg, number) for number, row in enumerate(source.rows(cfg, {}), 1))
    filled = (1 for page in pages if isinstance(page, Page) and page.text.strip())
    return sum(islice(filled, limit or None))


def _all_pages(
    cfg: CorpusConfig, report: dict[str, Any], wanted: Callable[[str], bool] = lambda page_id: True
) -> Iterator[Page]:
    """One pass over the corpus. Only the wanted pages become text: removing markup is slow."""
    source = SOURCES[cfg.source]
    report.update(source=cfg.source, pages_blank=0, bad_lines=0, bad_line_examples=[])
    with Cleaner() as cleaner:
        for number, row in enumerate(source.rows(cfg, report), 1):
            page = _page(row, cfg, number)
            if isinstance(page, Page) and (not page.text.strip() or wanted(page.id)):
                page = _as_text(page, cfg, cleaner)
            elif isinstance(page, Page):
                continue
            if isinstance(page, str):
                _report_bad_line(f"{row[0]}: {page}", cfg, report)
            elif page.text.strip():
                yield page
            else:
                report["pages_blank"] += 1


def _as_text(page: Page, cfg: CorpusConfig, cleaner: Cleaner) -> Page | str:
    """The page as text, or the sentence saying why its markup cannot be removed."""
    source = SOURCES[cfg.source]
    title, text = source.as_text(page.title, page.text, cfg)
    try:
        return Page(page.id, title, cleaner(text) if source.markup else text)
    except MarkupError as error:
        return str(error)


def _page(row: Row, cfg: CorpusConfig, number: int) -> Page | str:
    """The page of row `number`, or the sentence saying what is wrong with the row."""
    _, fields = row
    if fields is None:
        return Page(str(number), "", "")
    if isinstance(fields, str):
        return fields
    id_column = cfg.id_column or SOURCES[cfg.source].id_column
    fault = _fault(fields, cfg.text_column, id_column)
    if fault:
        return fault
    page_id = str(fields[id_column] if id_column else number)
    title = fields.get("title")
    return Page(page_id, title if isinstance(title, str) else page_id, fields[cfg.text_column])


def _fault(fields: dict[str, Any], text_column: str, id_column: str) -> str:
    """What is wrong with a row's text, id or title, in a sentence; "" where they can be used."""
    for column in filter(None, (text_column, id_column)):
        if column not in fields:
            return f"no field {column!r}; it has {_listed(list(fields))}"
        if fields[column] is None:
            return f"field {column!r} is null"
    text = fields[text_column]
    if not isinstance(text, str):
        return f"field {text_column!r} is {type(text).__name__}, expected text"
    if len(text) > PAGE_CHARS:
        return f"a page of {len(text):,} characters, of which at most {PAGE_CHARS:,} are read"
    for column in filter(None, (id_column, "title")):
        length = len(str(fields.get(column)))
        if length > NAME_CHARS and (column == id_column or isinstance(fields[column], str)):
            return f"field {column!r} has {length:,} characters, expected at most {NAME_CHARS:,}"
    for column in filter(None, (text_column, id_column, "title")):
        fault = _lone_surrogate(str(fields.get(column)))
        if fault:
            return f"field {column!r} cannot be written as UTF-8 ({fault})"
    return ""


def _listed(names: list[str]) -> str:
    """The first names of a row's fields, and how many more there are."""
    more = f" and {len(names) - FIELDS:,} more" if len(names) > FIELDS else ""
    return (", ".join(map(shown, names[:FIELDS])) or "none") + more


def _lone_surrogate(text: str) -> str:
    """The first half of a surrogate pair: JSON can spell it, no tokenizer and no hash takes it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        character = ord(error.object[error.start])
        return f"lone surrogate U+{character:04X}, character {error.start + 1}"
    return ""


def _report_bad_line(message: str, cfg: CorpusConfig, report: dict[str, Any]) -> None:
    """Count a bad line, or raise `CorpusError` where the configuration asks for that."""
    if cfg.on_bad_line == "raise":
        raise CorpusError(message)
    report["bad_lines"] += 1
    report["bad_line_examples"] = [*report["bad_line_examples"], message][:EXAMPLES]
