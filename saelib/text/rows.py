"""Rows, what a source is before it becomes pages, and the readers of JSON Lines and of plain text.

A reader yields (where, fields) for each document. `where` names the place for an error, such as
"file:line"; `fields` are the row's columns, None for an empty line, or a sentence that says what is
wrong.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from saelib.config import CorpusConfig, shown
from saelib.files import is_there
from saelib.text.lines import LINE_BYTES, TOO_LONG, bounded_lines, separated, text_blocks

OPENERS = {".bz2": bz2.open, ".gz": gzip.open}
# What `zipfile` raises where an archive is damaged, encrypted (a RuntimeError), or packed in a way
# that it does not know (another).
DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError),
    *(struct.error, UnicodeDecodeError, OverflowError),
)
Row = tuple[str, dict[str, Any] | str | None]


class CorpusError(ValueError):
    """The corpus cannot be read or holds too little; the message names file and line, or counts."""


@contextmanager
def opened(path: Path) -> Iterator[BufferedIOBase]:
    """A file's bytes, unpacked where its name ends in .gz or .bz2.

    Raises `CorpusError` naming it where it cannot be read, or is not whole.
    """
    try:
        with OPENERS.get(path.suffix.lower(), open)(path, "rb") as stream:
            yield stream
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise CorpusError(f"{path}: cannot be read ({reason})") from error


def matching_files(path: str, source: str, *patterns: str) -> list[Path]:
    """The file itself, or the folder's files that match a pattern, in name order.

    Raises `CorpusError` where the path does not exist or the folder holds no such file.
    """
    given = Path(path)
    if not is_there(given):
        raise CorpusError(
            f"corpus path {shown(path)} does not exist; source {source!r} reads a file or a folder"
        )
    if given.is_file():
        return [given]
    files = sorted({file for p in patterns for file in given.rglob(p) if file.is_file()})
    if not files:
        names = " or ".join(patterns)
        raise CorpusError(f"corpus folder {path!r} holds no {names}, which source {source!r} reads")
    return files


def decoded(raw: bytes, line: int = 1) -> tuple[str, int]:
    """(text, 0), or (what is wrong with the bytes, the line it is in). The first line is `line`."""
    try:
        return raw.decode("utf-8-sig"), 0
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 ({error.reason}, byte 0x{raw[error.start]:02x})"
        return reason, line + raw.count(b"\n", 0, error.start)


# ---- JSON Lines


def jsonl_rows(
    cfg: CorpusConfig, report: dict[str, Any], pattern: str = "*.jsonl"
) -> Iterator[Row]:
    """Rows of a JSONL file or of a folder of them, plain or .gz."""
    for path in matching_files(cfg.path, cfg.source, pattern, f"{pattern}.gz"):
        with opened(path) as stream:
            yield from json_lines(str(path), stream)


def json_lines(name: str, stream: BufferedIOBase) -> Iterator[Row]:
    """Rows of one JSONL stream; an empty line is an empty page."""
    for number, raw in enumerate(bounded_lines(stream), 1):
        text, bad_line = (f"a line of {TOO_LONG}", number) if raw is None else decoded(raw)
        yield f"{name}:{number}", text if bad_line else _json_object(text)


def _json_object(text: str) -> dict[str, Any] | str | None:
    if not text.strip():
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError
        return f"not JSON ({error})"
    if isinstance(value, dict):
        return value
    return f"expected a JSON object, found {type(value).__name__}"


# ---- plain text

# A token that separates the documents of many corpora.
END_OF_TEXT = "<|endoftext|>"


def text_rows(cfg: CorpusConfig, report: dict[str, Any]) -> Iterator[Row]:
    """Rows of a folder, one for each .txt, or of a file, one for each block of lines.

    With a separator in the path, one for each document between two of it.
    """
    path, separator = separated_path(cfg.path)
    files = matching_files(str(path), cfg.source, "*.txt", "*.txt.gz")
    if separator:
        return _separated_rows(path, files, separator.encode(), cfg)
    return _file_rows(path, files, cfg) if path.is_dir() else _block_rows(path, cfg)


def separated_path(path: str) -> tuple[Path, str]:
    """(path, "") or, of path:separator where the path before a colon exists, both."""
    colons = [n for n, character in enumerate(path) if character == ":"]
    ends = [n for n in colons if n and path[n + 1 :] and is_there(path[:n])]
    if ends and not is_there(path):
        return Path(path[: ends[0]]), path[ends[0] + 1 :]
    return Path(path), ""


def _file_rows(folder: Path, files: list[Path], cfg: CorpusConfig) -> Iterator[Row]:
    for file in files:
        with opened(file) as stream:
            raw = stream.read(LINE_BYTES + 1)
        title = file.name.removesuffix(".gz").removesuffix(".txt")
        fields = {"id": str(file.relative_to(folder)), "title": title}
        yield _text_row(file, raw if len(raw) <= LINE_BYTES else None, 1, cfg, fields)


def _block_rows(file: Path, cfg: CorpusConfig) -> Iterator[Row]:
    with opened(file) as stream:
        for line, block in text_blocks(stream):
            if block is not None and block.strip() == END_OF_TEXT.encode():
                advice = f"give the path as {str(file) + ':' + END_OF_TEXT!r}"
                yield f"{file}:{line}", f"{END_OF_TEXT} alone: where it ends documents, {advice}"
            else:
                yield _text_row(file, block, line, cfg, {"id": str(line)})


def _separated_rows(
    path: Path, files: list[Path], separator: bytes, cfg: CorpusConfig
) -> Iterator[Row]:
    for file in files:
        before = f"{file.relative_to(path)}:" if path.is_dir() else ""
        with opened(file) as stream:
            for number, (line, document) in enumerate(separated(stream, separator), 1):
                yield _text_row(file, document, line, cfg, {"id": f"{before}{number}"})


def _text_row(
    path: Path, raw: bytes | None, line: int, cfg: CorpusConfig, fields: dict[str, str]
) -> Row:
    text, bad_line = (f"a page of {TOO_LONG}", line) if raw is None else decoded(raw, line)
    if bad_line:
        return f"{path}:{bad_line}", text
    return f"{path}:{line}", {cfg.text_column: text, **fields}
