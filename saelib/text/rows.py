"""Rows, what a source is before it becomes pages, and the readers of JSON Lines and of plain text.

A reader yields (where, fields) for each document. `where` names the place for an error, such as
"file:line"; `fields` are the row's columns, None for an empty line, or a sentence that says what is
wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from saelib.config import CorpusConfig

Row = tuple[str, dict[str, Any] | str | None]


class CorpusError(ValueError):
    """The corpus cannot be read or holds too little; the message names file and line, or counts."""


def matching_files(path: str, source: str, pattern: str) -> list[Path]:
    """The file itself, or the folder's files that match, in name order.

    Raises `CorpusError` where the path does not exist or the folder holds no such file.
    """
    given = Path(path)
    if not given.exists():
        raise CorpusError(
            f"corpus path {path!r} does not exist; source {source!r} reads a file or a folder"
        )
    if given.is_file():
        return [given]
    files = sorted(file for file in given.rglob(pattern) if file.is_file())
    if not files:
        raise CorpusError(
            f"corpus folder {path!r} holds no {pattern}, which source {source!r} reads"
        )
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
    """Rows of a JSONL file or of a folder of them."""
    for path in matching_files(cfg.path, cfg.source, pattern):
        with path.open("rb") as stream:
            yield from json_lines(str(path), stream)


def json_lines(name: str, stream: Iterable[bytes]) -> Iterator[Row]:
    """Rows of one JSONL stream; an empty line is an empty page."""
    for number, raw in enumerate(stream, 1):
        text, bad_line = decoded(raw)
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


def text_rows(cfg: CorpusConfig, report: dict[str, Any]) -> Iterator[Row]:
    """Rows of a folder, one for each .txt, or of a file, one for each block of lines."""
    path = Path(cfg.path)
    if path.is_dir():
        for file in matching_files(cfg.path, cfg.source, "*.txt"):
            fields = {"id": str(file.relative_to(path)), "title": file.stem}
            yield _text_row(file, file.read_bytes(), 1, cfg, fields)
        return
    (file,) = matching_files(cfg.path, cfg.source, "*.txt")
    with file.open("rb") as stream:
        for line, block in text_blocks(stream):
            yield _text_row(path, block, line, cfg, {"id": str(line)})


def text_blocks(stream: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """(first line, bytes) of each run of lines that are not blank."""
    for filled, lines in groupby(enumerate(stream, 1), lambda line: bool(line[1].strip())):
        if filled:
            number, first = next(lines)
            yield number, first + b"".join(raw for _, raw in lines)


def _text_row(path: Path, raw: bytes, line: int, cfg: CorpusConfig, fields: dict[str, str]) -> Row:
    text, bad_line = decoded(raw, line)
    if bad_line:
        return f"{path}:{bad_line}", text
    return f"{path}:{line}", {cfg.text_column: text, **fields}
