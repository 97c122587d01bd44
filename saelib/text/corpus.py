"""Documents -> contexts: pages are streamed from a source, split by page, tokenised and cut into contexts.

| source        | path                                                       | page id                   |
|---------------|------------------------------------------------------------|---------------------------|
| embedded      | (none) the excerpt of English Wikipedia of `assets`        | MediaWiki's page number   |
| enwik8        | (none) the first 10⁸ bytes of Wikipedia's dump of 2006     | MediaWiki's page number   |
| mediawiki     | a dump, .xml, .xml.bz2 or .xml.gz, or a folder of a dump's | MediaWiki's page number   |
|               | parts; articles only, markup removed                       |                           |
| fever         | folder or .zip of wiki-*.jsonl, folder of Parquet, hub id  | FEVER's id, as it stands  |
| dataset       | hub id or local folder, as name[:config[:split]]           | `id_column` or row number |
| jsonl, parquet| a file, or a folder of them                                | `id_column` or row number |
| text          | a folder: each .txt is a page                              | path within the folder    |
|               | a file: each block of lines between blank lines is a page  | number of its first line  |

Files are read in name order. A context never crosses a page. The split is a function of the page id alone, so a page
stays in its split whatever else is in the corpus and in whatever order (row numbers are ids only as long as the rows
keep their order).

With `n_docs` the pages taken are those n, of all that are not blank, whose sha256 of "seed:page id" is smallest: the
same pages whatever form the corpus has and in whatever order, in the order in which they stand there. That takes two
passes, the first of which reads everything; a corpus with fewer pages gives them all. A hub data set is streamed twice.

Memory: one batch of pages, about 100 bytes a page or context, and a digest for each of `n_docs`; from the hub also what
is read ahead, up to 1 GB. Token ids go to a temporary file (4 bytes a token, 8 for a moment where lengths differ),
which `Contexts` maps.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import mmap
import os
import re
import tempfile
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from io import FileIO
from itertools import groupby, islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Int8, Int32, Int64

from saelib.config import CorpusConfig, stable_hash
from saelib.text import wikitext
from saelib.text.assets import embedded_wiki, enwik8, made_once
from saelib.text.wikitext import CorpusError, articles

SPLITS = ("train", "val", "test")  # position = stored int8
SPLIT_ENDS = (0.7, 0.8, 1.0)  # 70 % train, 10 % val, 20 % test
SPLIT_SALT = (
    43  # fixed: a salt with which the few pages of the embedded excerpt come close to these shares
)
# the hub's own Parquet conversion, <configuration>/<split>/0000.parquet on a branch of its own
FEVER_ON_THE_HUB = {"data_files": "wiki_pages/**/*.parquet", "revision": "refs/convert/parquet"}
BATCH_CHARS = (
    250_000  # tokenised at once: the tokenizer takes about 100 bytes of memory a character
)
PIECE = 1 << 20  # token ids written, moved or hashed at once
EXAMPLES = 5  # bad lines named in the report


@dataclass(frozen=True)
class Page:
    """A document. `id` decides its split."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, eq=False)
class Contexts:
    """Tokenised pages cut into contexts, the shortest first. Context i is `ids[offsets[i] : offsets[i + 1]]`."""

    ids: Int32[
        np.ndarray, "tokens"
    ]  # BOS included, where the contexts have one; `pack` maps a file without a name
    offsets: Int64[np.ndarray, "bounds"]  # n_contexts + 1 of them
    page: Int32[np.ndarray, "contexts"]  # index into `page_ids`
    start: Int32[
        np.ndarray, "contexts"
    ]  # where its first text token stands among its page's text tokens
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
        ids, ends = (
            np.concatenate([self.tokens(i) for i in index.tolist()]),
            np.cumsum(np.diff(self.offsets)[index]),
        )
        chosen = {
            "offsets": np.concatenate([[0], ends]),
            "page": self.page[index],
            "start": self.start[index],
        }
        return replace(self, ids=ids, **chosen)

    @cached_property
    def corpus_id(self) -> str:
        """Hash of the content: tokens, bounds, pages, split. Report and titles do not enter."""
        arrays = [_sha256(a) for a in (self.ids, self.offsets, self.page, self.start, self.split)]
        # `stable_hash(arrays, page_ids, bos)`, without the list and the text of all page ids
        digest = hashlib.sha256(f"[{json.dumps(arrays, separators=(',', ':'))},[".encode())
        for number, page_id in enumerate(self.page_ids):
            digest.update(("," * (number > 0) + json.dumps(page_id)).encode())
        digest.update(f"],{json.dumps(self.bos)}]".encode())
        return digest.hexdigest()[:12]


def _sha256(a: np.ndarray) -> str:
    digest = hashlib.sha256()
    for first in range(0, len(a), PIECE):
        digest.update(np.ascontiguousarray(a[first : first + PIECE]))
        _let_go(a)
    return digest.hexdigest()


class Strings(Sequence):
    """Strings in one buffer of UTF-8: millions of them as a tuple would take five times as much memory."""

    def __init__(self) -> None:
        self._utf8, self._ends = bytearray(), array("q", [0])

    def append(self, text: str) -> None:
        self._utf8 += text.encode()
        self._ends.append(len(self._utf8))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        at = range(len(self))[index]
        if isinstance(at, range):
            return tuple(self[i] for i in at)
        return self._utf8[self._ends[at] : self._ends[at + 1]].decode()


def load_contexts(cfg: CorpusConfig, tokenizer: Any) -> Contexts:
    """Read the corpus a configuration names and cut it into contexts; see `pack` for the errors."""
    report: dict[str, Any] = {}
    return pack(read_pages(cfg, report), tokenizer, cfg, report)


def split_of(page_id: str) -> str:
    """Split of a page by the hash of its id: the same on every machine and in every corpus."""
    share = (
        int.from_bytes(hashlib.sha256(f"{SPLIT_SALT}:{page_id}".encode()).digest()[:8], "big")
        / 2**64
    )
    return next(name for name, end in zip(SPLITS, SPLIT_ENDS, strict=True) if share < end)


# ---- pages

# where ("file:line"), and the row's fields, None for an empty line, or what is wrong with it
Row = tuple[str, dict[str, Any] | str | None]


def read_pages(cfg: CorpusConfig, report: dict[str, Any] | None = None) -> Iterator[Page]:
    """Stream the pages of a corpus as text, blank ones skipped; of `n_docs` or more the drawn ones (module docstring).

    Counts go into `report`: `pages_blank`, `bad_lines` with the first few, for a dump also
    `pages_redirect` and `pages_other_namespace`. Raises `CorpusError` naming file and line where a row is malformed,
    wrongly encoded or lacks its text (`on_bad_line="skip"` counts these instead), or where the source is missing.
    """
    report = {} if report is None else report
    return _drawn(cfg, report) if cfg.n_docs else _pages(cfg, report)


def _pages(
    cfg: CorpusConfig, report: dict[str, Any], wanted: Callable[[str], bool] = lambda page_id: True
) -> Iterator[Page]:
    """One pass over the corpus. Only the wanted pages become text: removing markup is slow."""
    report.update(source=cfg.source, pages_blank=0, bad_lines=0, bad_line_examples=[])
    for number, (where, fields) in enumerate(READERS[cfg.source](cfg, report), 1):
        page = _page(fields, cfg, str(number))
        if isinstance(page, str):
            _bad_line(f"{where}: {page}", cfg, report)
            continue
        if page.text.strip() and not wanted(page.id):
            continue
        page = _as_text(page, cfg)
        if page.text.strip():
            yield page
        else:
            report["pages_blank"] += 1


def _drawn(cfg: CorpusConfig, report: dict[str, Any]) -> Iterator[Page]:
    """The `n_docs` pages of smallest digest in reading order: a first pass draws and counts, a second one yields."""
    smallest: list[int] = []  # digests times -1, a heap: the largest digest is first

    def enters(page_id: str) -> bool:
        return len(smallest) < cfg.n_docs or _digest(page_id, cfg) < -smallest[0]

    for page in _pages(replace(cfg, detokenize=False), report, enters):
        (heapq.heappush if len(smallest) < cfg.n_docs else heapq.heapreplace)(
            smallest, -_digest(page.id, cfg)
        )
    if smallest:
        yield from islice(
            _pages(cfg, {}, lambda page_id: _digest(page_id, cfg) <= -smallest[0]), cfg.n_docs
        )


def _digest(name: str, cfg: CorpusConfig) -> int:
    """What draws of pages and of their contexts go by."""
    return int.from_bytes(hashlib.sha256(f"{cfg.seed}:{name}".encode()).digest(), "big")


def _page(fields: dict[str, Any] | str | None, cfg: CorpusConfig, number: str) -> Page | str:
    """The page of a row, or the sentence saying what is wrong with the row."""
    if fields is None:
        return Page(number, "", "")
    id_column = cfg.id_column or ID_COLUMNS.get(cfg.source, "")
    wrong = fields if isinstance(fields, str) else _wrong(fields, cfg.text_column, id_column)
    if wrong:
        return wrong
    text, page_id = fields[cfg.text_column], str(fields[id_column] if id_column else number)
    title = fields.get("title")
    return Page(page_id, title if isinstance(title, str) else page_id, text)


def _as_text(page: Page, cfg: CorpusConfig) -> Page:
    """The page without its source's markup or treebank tokens."""
    if cfg.source == "mediawiki":
        return replace(page, text=wikitext.clean_markup(page.text))
    if cfg.source == "fever" and cfg.detokenize:
        return Page(page.id, fever_title(page.title), detokenize(page.text))
    return replace(page, text=page.text.strip()) if cfg.source == "fever" else page


def _wrong(fields: dict[str, Any], text_column: str, id_column: str) -> str:
    """What is wrong with a row's text, id or title, in a sentence; nothing where they can be used."""
    for column in filter(None, (text_column, id_column)):
        if column not in fields:
            return f"no field {column!r}; it has {', '.join(map(repr, fields)) or 'none'}"
        if fields[column] is None:
            return f"field {column!r} is null"
    if not isinstance(fields[text_column], str):
        return f"field {text_column!r} is {type(fields[text_column]).__name__}, expected text"
    for column in filter(None, (text_column, id_column, "title")):
        try:  # JSON can spell half a surrogate pair, which no tokenizer and no hash takes
            str(fields.get(column)).encode("utf-8")
        except UnicodeEncodeError as exc:
            half = f"U+{ord(exc.object[exc.start]):04X}, character {exc.start + 1}"
            return f"field {column!r} cannot be written as UTF-8 (lone surrogate {half})"
    return ""


def _bad_line(message: str, cfg: CorpusConfig, report: dict[str, Any]) -> None:
    if cfg.on_bad_line == "raise":
        raise CorpusError(message)
    report["bad_lines"] += 1
    report["bad_line_examples"] = [*report["bad_line_examples"], message][:EXAMPLES]


# ---- sources


def _files(path: str, source: str, pattern: str) -> list[Path]:
    """The file itself, or the folder's matching files in name order; one that is not there is an error."""
    if not Path(path).exists():
        raise CorpusError(
            f"corpus path {path!r} does not exist; source {source!r} reads a file or a folder"
        )
    files = (
        [Path(path)]
        if Path(path).is_file()
        else sorted(p for p in Path(path).rglob(pattern) if p.is_file())
    )
    if not files:
        raise CorpusError(
            f"corpus folder {path!r} holds no {pattern}, which source {source!r} reads"
        )
    return files


def _decode(raw: bytes, line: int = 1) -> tuple[str, int]:
    """Text, 0; or what is wrong with the bytes and the line where, the first one being `line`."""
    try:
        return raw.decode("utf-8-sig"), 0
    except UnicodeDecodeError as exc:
        return f"not UTF-8 ({exc.reason}, byte 0x{raw[exc.start]:02x})", line + raw.count(
            b"\n", 0, exc.start
        )


def _json_lines(name: str, stream: Iterable[bytes]) -> Iterator[Row]:
    """Rows of a JSONL file; an empty line is an empty page."""
    for number, raw in enumerate(stream, 1):
        text, bad = _decode(raw)
        yield f"{name}:{number}", text if bad else _json_object(text)


def _json_object(text: str) -> dict[str, Any] | str | None:
    if not text.strip():
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:  # the first is also a number of thousands of digits
        return f"not JSON ({exc})"
    return (
        value
        if isinstance(value, dict)
        else f"expected a JSON object, found {type(value).__name__}"
    )


def _jsonl(cfg: CorpusConfig, report: dict[str, Any]) -> Iterator[Row]:
    for path in _files(
        cfg.path, cfg.source, "wiki-*.jsonl" if cfg.source == "fever" else "*.jsonl"
    ):
        with path.open("rb") as stream:
            yield from _json_lines(str(path), stream)


def _zipped(cfg: CorpusConfig, report: dict[str, Any]) -> Iterator[Row]:
    """FEVER's own archive, wiki-pages.zip, read without unpacking."""
    where = cfg.path
    try:
        with zipfile.ZipFile(cfg.path) as archive:
            names = sorted(n for n in archive.namelist() if PurePosixPath(n).match("wiki-*.jsonl"))
            if not names:
                raise CorpusError(
                    f"corpus archive {cfg.path!r} holds no wiki-*.jsonl, which source 'fever' reads"
                )
            for name in names:
                where = f"{cfg.path}/{name}"
                with archive.open(name) as stream:
                    yield from _json_lines(where, stream)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        RuntimeError,
    ) as exc:  # the last: encrypted, or packed otherwise
        raise CorpusError(
            f"{where}: archive cannot be read ({str(exc) or 'it ends too early'})"
        ) from exc


def _fever(cfg: CorpusConfig, report: dict[str, Any]) -> Iterator[Row]:
    """FEVER's wiki pages: a folder or archive of wiki-*.jsonl, or the hub's Parquet conversion (folder or hub id)."""
    path, columns = Path(cfg.path), ["id", cfg.text_column]
    if path.is_dir() and not any(path.rglob("wiki-*.jsonl")) and any(path.rglob("*.parquet")):
        return _loaded(cfg.path, where=cfg.path, columns=columns, data_files="**/*.parquet")
    if path.exists():
        return (
            _zipped(cfg, report)
            if path.is_file() and path.suffix.lower() == ".zip"
            else _jsonl(cfg, report)
        )
    return _loaded(
        _hub_id(cfg.path, cfg.source), where=cfg.path, columns=columns, **FEVER_ON_THE_HUB
    )


def _hub_id(path: str, source: str) -> str:
    """The path, if it can be a hub id: a missing file must not become a question to the hub."""
    if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path) and Path(path).suffix not in (
        ".zip",
        ".jsonl",
        ".parquet",
    ):
        return path
    raise CorpusError(
        f"corpus path {path!r} does not exist, and is no hub id (owner/name); source {source!r}"
    )


def _dataset(cfg: CorpusConfig, report: dict[str, Any]) -> Iterator[Row]:
    """Any data set `datasets` reads, local or on the hub, or one it saved."""
    name, config, split = (*cfg.path.split(":"), "", "")[:3]
    split = split or "train"
    if any((Path(name) / file).exists() for file in ("state.json", "dataset_dict.json")):
        return _saved(name, split)
    return _loaded(
        name if Path(name).exists() else _hub_id(name, cfg.source),
        name,
        name=config or None,
        split=split,
    )


def _saved(folder: str, split: str) -> Iterator[Row]:
    import datasets  # takes seconds to import: only where it is needed

    loaded = datasets.load_from_disk(folder)
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise CorpusError(f"{folder}: no split {split!r}; it has {', '.join(loaded)}")
        loaded = loaded[split]
    return ((f"{folder}, row {n}", row) for n, row in enumerate(loaded, 1))


def _loaded(path: str, where: str, split: str = "train", **options: Any) -> Iterator[Row]:
    """Rows of a hub data set or a local folder, streamed."""
    import datasets

    try:
        rows = datasets.load_dataset(path, split=split, streaming=True, **options)
        if Path(path).exists():  # by row group: a whole Parquet file is read ahead, by up to 1 GB
            rows = rows.reshard()  # not on the hub, where each group would be requests of its own
        for number, row in enumerate(rows, 1):
            yield f"{where}, row {number}", row
    except (
        Exception
    ) as exc:  # the hub client raises its transport's errors, which share no base class
        reason = (str(exc).splitlines() or [type(exc).__name__])[0]
        advice = (
            ""
            if Path(path).exists()
            else "; where the hub cannot be reached, give a local folder as path"
        )
        raise CorpusError(f"{where}: cannot be read ({reason}){advice}") from exc


def _parquet(cfg: CorpusConfig, report: dict[str, Any]) -> Iterator[Row]:
    for path in _files(cfg.path, cfg.source, "*.parquet"):
        # by its folder: asked for the "parquet" loader by name, the library would count the use on the hub
        yield from _loaded(str(path.parent.resolve()), where=str(path), data_files=path.name)


def _text(cfg: CorpusConfig, report: dict[str, Any]) -> Iterator[Row]:
    path = Path(cfg.path)
    if path.is_dir():
        for file in _files(cfg.path, cfg.source, "*.txt"):
            yield _text_row(
                file,
                file.read_bytes(),
                1,
                cfg,
                {"id": str(file.relative_to(path)), "title": file.stem},
            )
        return
    with _files(cfg.path, cfg.source, "*.txt")[0].open("rb") as stream:
        for line, block in _blocks(stream):
            yield _text_row(path, block, line, cfg, {"id": str(line)})


def _blocks(stream: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """(first line, bytes) of each run of lines that are not blank."""
    for filled, lines in groupby(enumerate(stream, 1), lambda line: bool(line[1].strip())):
        if filled:
            number, first = next(lines)
            yield number, first + b"".join(raw for _, raw in lines)


def _text_row(path: Path, raw: bytes, line: int, cfg: CorpusConfig, fields: dict[str, str]) -> Row:
    text, bad = _decode(raw, line)
    return (f"{path}:{bad}", text) if bad else (f"{path}:{line}", {cfg.text_column: text, **fields})


# ---- MediaWiki


def _mediawiki(cfg: CorpusConfig, report: dict[str, Any]) -> Iterator[Row]:
    for where, article in articles(_files(cfg.path, cfg.source, "*.xml*"), report):
        yield where, {cfg.text_column: article.pop("wikitext"), **article}


def _cleaned(cfg: CorpusConfig, report: dict[str, Any]) -> Iterator[Row]:
    """Rows of a dump of `assets`. Cleaning is slow, so its result is kept beside it, named by a hash of its code."""
    cut = cfg.source == "enwik8"  # the first 10⁸ bytes of a dump: they end in the middle of a page
    dump = enwik8() if cut else embedded_wiki()
    code = hashlib.sha256(Path(wikitext.__file__).read_bytes()).hexdigest()
    path = dump.with_name(f"{dump.name[:6]}-{stable_hash(code, version('mwparserfromhell'))}.jsonl")
    made_once(path, lambda folder: wikitext.write_cleaned(dump, folder / path.name, cut))
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            if "title" in row:
                yield f"{dump}, page {row['title']!r}", {cfg.text_column: row.pop("text"), **row}
            else:
                report.update(row)


# ---- treebank tokens (FEVER's pages were tokenised by CoreNLP)

BRACKETS = {
    "-LRB-": "(",
    "-RRB-": ")",
    "-LSB-": "[",
    "-RSB-": "]",
    "-LCB-": "{",
    "-RCB-": "}",
    "-COLON-": ":",
}
SPACING = [  # after the brackets are back
    (re.compile(r"``\s?"), '"'),
    (re.compile(r"\s?''"), '"'),
    (re.compile(r"(?<!\S)`\s?(?=\S)"), "'"),
    (re.compile(r"\s+(?=[,.;:?!%)\]}](?:[\s\"')\]},.;:?!]|$))"), ""),
    (re.compile(r"(?<=[(\[{])\s+"), ""),
    (re.compile(r"\s+(?=(?:n't|N'T|'(?i:s|re|ve|ll|d|m))\b)"), ""),
    (re.compile(r"(?<=\w) '(?=\s(?!\d)|$)"), "'"),
    (re.compile(r"(?<!\S)([$£€])\s(?=\d)"), r"\1"),
]


def detokenize(text: str) -> str:
    """Treebank tokens -> text: brackets, colons and quotes as written, no space before punctuation, ends stripped."""
    text = re.sub(r"-(?:[LR][RSC]B|COLON)-", lambda m: BRACKETS[m[0]], text)
    for pattern, replacement in SPACING:
        text = pattern.sub(replacement, text)
    return text.strip()


def fever_title(page_id: str) -> str:
    """Title of a FEVER page: its id with brackets, colons and spaces as written."""
    return detokenize(page_id.replace("_", " "))


# ---- contexts


def pack(
    pages: Iterable[Page], tokenizer: Any, cfg: CorpusConfig, report: dict[str, Any] | None = None
) -> Contexts:
    """Tokenise pages and cut them into contexts of `ctx_len` tokens that never cross a page.

    `tokenizer` is any Hugging Face tokenizer. Contexts are sorted by length, stably, so equal lengths are adjacent.
    Raises `CorpusError`, with the pages and tokens there were, when no page holds a context or a split stays empty,
    when two pages that hold contexts share an id, which is what splits and statistics by page go by, and when the
    folder of temporary files has no room for 4 bytes a token (8 where lengths differ).
    """
    report = {"source": cfg.source} if report is None else report
    bos = wants_bos(tokenizer, cfg.bos)
    with tempfile.TemporaryFile(buffering=0) as file:
        page_ids, titles, (length, page, start) = _cut(pages, tokenizer, cfg, bos, report, file)
        _refuse_same_id(page_ids, cfg)
        split = np.fromiter((SPLITS.index(split_of(p)) for p in page_ids), np.int8, len(page_ids))
        _count(report, cfg, length, page, split)
        order = np.argsort(length, kind="stable")
        ids = _reordered(file, length, order)
    offsets = np.concatenate([[0], np.cumsum(length[order], dtype=np.int64)])
    return Contexts(ids, offsets, page[order], start[order], page_ids, titles, split, bos, report)


def wants_bos(tokenizer: Any, mode: str) -> bool:
    """Whether contexts begin with BOS: "always", "never", or ("auto") as the tokenizer itself would do."""
    bos = tokenizer.bos_token_id
    if mode == "always" and bos is None:
        raise CorpusError(
            "CorpusConfig.bos = 'always', but the tokenizer has no BOS token: expected 'auto' or 'never'"
        )
    if mode == "auto":
        return bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos]
    return mode == "always"


def _cut(
    pages: Iterable[Page],
    tokenizer: Any,
    cfg: CorpusConfig,
    bos: bool,
    report: dict[str, Any],
    file: FileIO,
) -> tuple[Strings, Strings, Int32[np.ndarray, "3 contexts"]]:
    """Ids and titles of the pages with a context; length, page and start of each context; its tokens go to `file`."""
    page_ids, titles = Strings(), Strings()
    ids, rows = array("i"), array("i")
    report.update(pages=0, pages_short=0, chars=0, tokens_read=0)
    for page, tokens in _tokenised(pages, tokenizer):
        spans = _spans(len(tokens), cfg, bos, page.id)
        report["pages"] += 1
        report["pages_short"] += not spans
        report["chars"] += len(page.text)
        report["tokens_read"] += len(tokens)
        for start, end in spans:
            ids.extend([tokenizer.bos_token_id] * bos + tokens[start:end])
            rows.extend((end - start + bos, len(page_ids), start))
        if spans:
            page_ids.append(page.id)
            titles.append(page.title)
        if len(ids) >= PIECE:
            _spill(file, ids)
            ids = array("i")
    _spill(file, ids)
    return page_ids, titles, np.array(rows, np.int32).reshape(-1, 3).T.copy()


def _spill(file: FileIO, ids: array | bytes) -> None:
    left = memoryview(ids).cast("B")
    try:
        while left:  # the file is unbuffered: a buffer that found no room would fail a second time when it is closed
            left = left[file.write(left) :]
    except OSError as exc:
        why = f"token ids cannot be kept there ({exc.strerror}); set TMPDIR to a folder on a disk with room"
        raise CorpusError(f"{tempfile.gettempdir()}: {why}") from exc


def _refuse_same_id(page_ids: Sequence[str], cfg: CorpusConfig) -> None:
    """Two pages of one id are an error. Found by sorted hashes: a set of all ids would take 100 bytes a page."""
    hashes = np.sort(np.fromiter(map(hash, page_ids), np.int64, len(page_ids)))
    twice = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    suspects = [p for p in page_ids if hash(p) in twice] if twice else []
    again = [p for number, p in enumerate(suspects) if p in suspects[:number]]
    if again:
        way_out = "remove the copy, or give an id_column that tells them apart"
        if cfg.id_column:
            way_out = f"give another id_column than {cfg.id_column!r}, or none"
        said = f"two pages have the id {again[0]!r}, by which pages are split and counted"
        raise CorpusError(f"{_named(cfg)}: {said}; {way_out}")


def _named(cfg: CorpusConfig) -> str:
    return f"corpus {cfg.source} {cfg.path}".rstrip()


def _tokenised(pages: Iterable[Page], tokenizer: Any) -> Iterator[tuple[Page, list[int]]]:
    for batch in _batches(pages):
        # verbose=False: a page longer than the model's window is no mistake here, it is cut
        encoded = tokenizer([p.text for p in batch], add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        yield from zip(batch, encoded, strict=True)


def _batches(pages: Iterable[Page]) -> Iterator[list[Page]]:
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


def _spans(n: int, cfg: CorpusConfig, bos: bool, page_id: str) -> list[tuple[int, int]]:
    """(start, end) of a page's contexts among its n text tokens; of a long page a draw seeded by its id, in order."""
    room = cfg.ctx_len - bos
    shortest = max(1, (cfg.min_ctx_len or cfg.ctx_len) - bos)
    spans = [(s, min(s + room, n)) for s in range(0, n, room) if n - s >= shortest]
    if not cfg.contexts_per_page or len(spans) <= cfg.contexts_per_page:
        return spans
    shuffled = sorted(spans, key=lambda span: _digest(f"{page_id}:{span[0]}", cfg))
    return sorted(shuffled[: cfg.contexts_per_page])


def _reordered(
    file: FileIO, length: Int32[np.ndarray, "contexts"], order: Int64[np.ndarray, "contexts"]
) -> Int32[np.ndarray, "tokens"]:
    """The tokens of the contexts in `file`, mapped in a new order. Reading them through a map would fill memory."""
    if length.min() == length.max():
        return np.memmap(file, np.int32, "r")
    size = length.dtype.itemsize  # of a token id too
    ends = np.cumsum(length, dtype=np.int64)
    step = max(1, PIECE // int(length.max()))
    with tempfile.TemporaryFile(buffering=0) as out:
        for first in range(0, len(order), step):
            some = order[first : first + step]
            bounds = zip(size * length[some], size * ends[some], strict=True)
            _spill(out, b"".join(os.pread(file.fileno(), n, end - n) for n, end in bounds))
        return np.memmap(out, np.int32, "r")


def _let_go(a: np.ndarray) -> None:
    """What was read of a mapped file leaves this process's memory; it is read again where it is needed."""
    if isinstance(a.base, mmap.mmap):
        a.base.madvise(mmap.MADV_DONTNEED)


def _count(
    report: dict[str, Any],
    cfg: CorpusConfig,
    length: np.ndarray,
    page: np.ndarray,
    split: np.ndarray,
) -> None:
    """Complete the report, and refuse a corpus that leaves a split empty."""
    report.update(contexts=len(length), tokens=int(length.sum()))
    for number, name in enumerate(SPLITS):
        report[f"pages_{name}"] = int((split == number).sum())
        report[f"contexts_{name}"] = int((split[page] == number).sum())
    have = f"{report['pages']} pages and {report['tokens_read']} tokens"
    if report.get("bad_lines"):
        have += f" ({report['bad_lines']} bad lines skipped)"
    what = _named(cfg)
    if not len(length):
        raise CorpusError(
            f"{what}: {have}, but no page fills one context of {cfg.min_ctx_len or cfg.ctx_len} tokens"
        )
    empty = [name for name in SPLITS if not report[f"pages_{name}"]]
    if empty:
        raise CorpusError(
            f"{what}: {have} give {len(split)} pages with {len(length)} contexts, but none falls to the split "
            f"{' and '.join(map(repr, empty))}; more pages are needed"
        )


READERS = {
    "embedded": _cleaned,
    "enwik8": _cleaned,
    "mediawiki": _mediawiki,
    "fever": _fever,
    "dataset": _dataset,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "text": _text,
}
ID_COLUMNS = dict.fromkeys(
    ("embedded", "enwik8", "mediawiki", "fever", "text"), "id"
)  # elsewhere the row's number
