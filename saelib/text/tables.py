"""Rows of Parquet files and of data sets, local or on the hub, read by the `datasets` library."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from saelib.config import HUB_CHARS, CorpusConfig, shown
from saelib.files import is_there
from saelib.text.lines import LINE_BYTES
from saelib.text.rows import CorpusError, Row, matching_files

# "name" or "owner/name"
HUB_ID = re.compile(rf"(?=.{{1,{HUB_CHARS}}}\Z)[\w-][\w.-]*(/[\w-][\w.-]*)?")
SLICE = re.compile(r"([^\[\]:+]+)\[([0-9]{0,18}):([0-9]{0,18})\]", re.ASCII)
FILE_SUFFIXES = (".zip", ".jsonl", ".parquet", ".gz", ".txt")
BATCH = 8  # rows that are read at once
SAVED = ("state.json", "dataset_dict.json")  # files that `save_to_disk` leaves


def parquet_rows(cfg: CorpusConfig, report: dict[str, Any]) -> Iterator[Row]:
    """Rows of a Parquet file or of a folder of them."""
    for path in matching_files(cfg.path, cfg.source, "*.parquet"):
        refuse_huge_rows(path)
        yield from _parquet_file(path)


def _parquet_file(path: Path) -> Iterator[Row]:
    """Rows of one file, a value unpacked at a time.

    Texts stay in their dictionary until then: a value that many rows share, written once, would
    fill the memory where they are unpacked together.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        texts = [field.name for field in schema if pa.types.is_string(field.type)]
        file = pq.ParquetFile(path, read_dictionary=texts, pre_buffer=False)
        number = 0
        for batch in _batches(file):
            for row in range(batch.num_rows):
                number += 1
                values = {name: batch[name][row].as_py() for name in batch.schema.names}
                yield f"{path}, row {number}", values
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorpusError(f"{path}: cannot be read ({reason})") from error


def _batches(file: Any) -> Iterator[Any]:
    """A few rows at a time of each row group, none of the next one before it is asked for."""
    for group in range(file.num_row_groups):
        yield from file.iter_batches(BATCH, row_groups=[group])


def refuse_huge_rows(path: Path) -> None:
    """Raise `CorpusError` where a group's rows unpack to more than a page may have, on average.

    Its footer says so; read whole, a file of 16 kB took 1.8 GB of memory. Asked of the group, not
    of its columns: where a column's statistics are damaged, pyarrow ends the process as they are
    asked for (26.0: "Definition level histogram size mismatch").
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        footer = pq.read_metadata(path)
        groups = [footer.row_group(n) for n in range(footer.num_row_groups)]
        sizes = [(group.num_rows, group.total_byte_size) for group in groups]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorpusError(f"{path}: cannot be read ({error})") from error
    for rows, size in sizes:
        if size > max(1, rows) * LINE_BYTES:
            raise CorpusError(
                f"{path}: {rows} rows unpack to {size:,} bytes; a page has at most {LINE_BYTES:,}"
            )


def dataset_rows(cfg: CorpusConfig, report: dict[str, Any]) -> Iterator[Row]:
    """Rows of a data set that `datasets` reads or saved; the path is name[:config[:split]].

    A split may be a slice of one, such as train[:30] or train[100:200], of its rows by number.
    """
    name, config, asked = (*cfg.path.split(":", 2), "", "")[:3]
    split, first, last = sliced(asked or "train", cfg.path)
    if any(is_there(Path(name) / file) for file in SAVED):
        return islice(_saved_rows(name, split), first, last)
    path = name if is_there(name) else hub_id(name, cfg.source)
    return islice(loaded_rows(path, name, name=config or None, split=split), first, last)


def sliced(asked: str, path: str) -> tuple[str, int, int | None]:
    """A split's name, its first row and the one after its last (None: all).

    Raises `CorpusError` for a slice that is not of row numbers.
    """
    if "[" not in asked:
        return asked, 0, None
    parts = SLICE.fullmatch(asked)
    first, last = (int(n) if n else None for n in parts.groups()[1:]) if parts else (0, 0)
    if not parts or (last is not None and last <= (first or 0)):
        raise CorpusError(
            f"corpus path {shown(path)}: split {shown(asked)}: expected a split's name, or "
            "name[first:last] with row numbers, such as train[:30] or train[100:200]"
        )
    return parts[1], first or 0, last


def hub_id(path: str, source: str) -> str:
    """The path, if it can be a hub id: a missing file must not become a question to the hub.

    Raises `CorpusError` otherwise.
    """
    if HUB_ID.fullmatch(path) and Path(path).suffix not in FILE_SUFFIXES:
        return path
    raise CorpusError(
        f"corpus path {shown(path)} does not exist, and is no hub id (owner/name); source "
        f"{source!r}"
    )


def _saved_rows(folder: str, split: str) -> Iterator[Row]:
    import datasets  # takes seconds to import: only where it is needed

    loaded = datasets.load_from_disk(folder)
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise CorpusError(f"{folder}: no split {split!r}; it has {', '.join(loaded)}")
        loaded = loaded[split]
    return ((f"{folder}, row {n}", row) for n, row in enumerate(loaded, 1))


def loaded_rows(path: str, where: str, split: str = "train", **options: Any) -> Iterator[Row]:
    """Rows of a hub data set or a local folder, streamed.

    Raises `CorpusError` naming `where` for whatever stops the library.
    """
    import datasets

    local = Path(path).exists()
    try:
        rows = datasets.load_dataset(path, split=split, streaming=True, **options)
        if local:  # by row group: a whole Parquet file is read ahead, by up to 1 GB
            rows = rows.reshard()  # not on the hub, where each group would be its own request
        for number, row in enumerate(rows, 1):
            yield f"{where}, row {number}", row
    except Exception as error:  # the hub client's transports share no base class of errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        advice = "" if local else "; where the hub cannot be reached, give a local folder as path"
        raise CorpusError(f"{where}: cannot be read ({reason}){advice}") from error
