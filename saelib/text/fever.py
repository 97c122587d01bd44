"""Rows of FEVER's wiki pages: its folder or archive of wiki-*.jsonl, or the hub's Parquet form."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from saelib.config import SHOWN, CorpusConfig, shown
from saelib.files import check_packing, is_there
from saelib.text.rows import DAMAGE, CorpusError, Row, json_lines, jsonl_rows
from saelib.text.tables import hub_id, loaded_rows

PAGES = "wiki-*.jsonl"
# The hub's own conversion, <configuration>/<split>/0000.parquet, lies on a branch of its own.
ON_THE_HUB = {"data_files": "wiki_pages/**/*.parquet", "revision": "refs/convert/parquet"}


def fever_rows(cfg: CorpusConfig, report: dict[str, Any]) -> Iterator[Row]:
    """Rows of whichever form lies at the path; a path that does not exist is taken as a hub id."""
    path = Path(cfg.path)
    columns = ["id", cfg.text_column]
    if not is_there(path):
        hub = hub_id(cfg.path, cfg.source)
        return loaded_rows(hub, cfg.path, columns, columns=columns, **ON_THE_HUB)
    if is_conversion(path):
        files = {"columns": columns, "data_files": "**/*.parquet"}
        return loaded_rows(cfg.path, cfg.path, columns, **files)
    if is_archive(path):
        return _archived_rows(cfg.path)
    return jsonl_rows(cfg, report, PAGES)


def is_conversion(path: Path) -> bool:
    """Whether the path is a folder with the hub's Parquet form alone."""
    return path.is_dir() and not any(path.rglob(PAGES)) and any(path.rglob("*.parquet"))


def is_archive(path: Path) -> bool:
    """Whether the path is a zip file."""
    return path.is_file() and path.suffix.lower() == ".zip"


def _archived_rows(path: str) -> Iterator[Row]:
    """Rows of FEVER's own archive, wiki-pages.zip, read without unpacking."""
    where = path
    try:
        with zipfile.ZipFile(path) as archive:
            check_packing(archive)
            for name in archived_names(archive, path):
                where = f"{path}/{_printable(name)}"
                # buffered: a member's own `readline` with a bound is slow
                with archive.open(name) as member, io.BufferedReader(member) as stream:
                    yield from json_lines(where, stream)
    except DAMAGE as error:
        reason = str(error)[:SHOWN] or "it ends too early"  # it may hold two names
        raise CorpusError(f"{where}: archive cannot be read ({reason})") from error


def _printable(name: str) -> str:
    """A member's name as a message may have it: of others, and of up to 65,535 characters."""
    return name if name.isprintable() and len(name) <= SHOWN else shown(name)


def archived_names(archive: zipfile.ZipFile, path: str) -> list[str]:
    """Names of the archive's files of pages, in order; `CorpusError` where there is none."""
    names = sorted(name for name in archive.namelist() if PurePosixPath(name).match(PAGES))
    if not names:
        raise CorpusError(f"corpus archive {path!r} holds no {PAGES}, which source 'fever' reads")
    return names
