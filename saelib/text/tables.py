"""Rows of Parquet files and of data sets, local or on the hub, read by the `datasets` library."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from saelib.config import HUB_CHARS, CorpusConfig, shown
from saelib.files import is_there, read_json
from saelib.text.lines import LINE_BYTES
from saelib.text.rows import CorpusError, Row, matching_files

# "name" or "owner/name"
HUB_ID = re.compile(rf"(?=.{{1,{HUB_CHARS}}}\Z)[\w-][\w.-]*(/[\w-][\w.-]*)?")
SLICE = re.compile(r"([^\[\]:+]+)\[([0-9]{0,18}):([0-9]{0,18})\]", re.ASCII)
FILE_SUFFIXES = (".zip", ".jsonl", ".parquet", ".gz", ".txt")
BATCH = 8  # rows that are read at once
REFUSED = ("webdataset", "iceberg", "lance")  # formats of `datasets` that are not opened
SAVED = ("state.json", "dataset_dict.json")  # files that `save_to_disk` leaves


def parquet_rows(cfg: CorpusConfig, report: dict[str, Any]) -> Iterator[Row]:
    """Rows of a Parquet file or of a folder of them."""
    for path in matching_files(cfg.path, cfg.source, "*.parquet"):
        refuse_huge_rows(path)
        yield from _parquet_file(path, _columns(cfg))


def _columns(cfg: CorpusConfig) -> list[str]:
    """The columns of which a page is made, its text's first."""
    return [name for name in (cfg.text_column, cfg.id_column, "title") if name]


def _parquet_file(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    """Rows of one file, a value unpacked at a time; of other columns than the wanted the names.

    Texts stay in their dictionary until then: a value that many rows share, written once, would
    fill the memory where they are unpacked together.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        names = _once(schema.names, wanted, path)
        texts = [name for name in names if pa.types.is_string(schema.field(name).type)]
        file = pq.ParquetFile(path, read_dictionary=texts, pre_buffer=False)
        number = 0
        for batch in _batches(file, names):
            for row in range(batch.num_rows):
                number += 1
                yield f"{path}, row {number}", _values(batch, row, names, schema.names)
    except CorpusError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorpusError(f"{path}: cannot be read ({reason})") from error


def _once(names: Sequence[str], wanted: Sequence[str], path: Path) -> list[str]:
    """The wanted columns that a file has; `CorpusError` for a name that two of them have."""
    for name in wanted:
        if names.count(name) > 1:
            raise CorpusError(f"{path}: {names.count(name)} columns are called {shown(name)}")
    return [name for name in dict.fromkeys(wanted) if name in names]


def _values(
    batch: Any, row: int, names: Sequence[str], all_names: Sequence[str]
) -> dict[str, Any] | str:
    """A row's values, None for those that are not read, or why one of these cannot be one here.

    A time may be beyond the years that Python knows, and a text no UTF-8.
    """
    values = dict.fromkeys(all_names)
    for name in names:
        try:
            values[name] = batch[name][row].as_py()
        except (ValueError, ArithmeticError, LookupError) as error:
            return f"field {shown(name)} cannot be read ({error})"
    return values


def _batches(file: Any, names: Sequence[str]) -> Iterator[Any]:
    """A few rows at a time of each row group, none of the next one before it is asked for."""
    for group in range(file.num_row_groups):
        yield from file.iter_batches(BATCH, row_groups=[group], columns=names)


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
    wanted = _columns(cfg)
    if any(is_there(Path(name) / file) for file in SAVED):
        return islice(_saved_rows(name, split, wanted), first, last)
    if is_there(name) and Path(name).is_file():
        raise CorpusError(
            f"corpus path {shown(name)} is a file, and source {cfg.source!r} reads a folder or a "
            "hub id; expected source 'jsonl', 'parquet' or 'text' for a file"
        )
    path = name if is_there(name) else hub_id(name, cfg.source)
    rows = loaded_rows(path, name, wanted, name=config or None, split=split)
    return islice(rows, first, last)


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
    if HUB_ID.fullmatch(path) and Path(path).suffix.lower() not in FILE_SUFFIXES:
        return path
    raise CorpusError(
        f"corpus path {shown(path)} does not exist, and is no hub id (owner/name); source "
        f"{source!r}"
    )


def _saved_rows(folder: str, split: str, wanted: Sequence[str]) -> Iterator[Row]:
    """Rows of what `save_to_disk` left, a data set or a dictionary of them by split."""
    state, splits = (Path(folder) / file for file in SAVED)
    path = folder if is_there(state) else str(_saved_split(splits, split))

    def opened() -> Any:
        import datasets  # takes seconds to import: only where it is needed

        return datasets.Dataset.load_from_disk(path).to_iterable_dataset()

    return _read(folder, opened, wanted)


def _saved_split(splits: Path, split: str) -> Path:
    """The folder of a split that a dictionary of data sets lists; `CorpusError` without."""
    try:
        listed = read_json(splits)
    except (OSError, ValueError) as error:
        raise CorpusError(f"{splits}: cannot be read ({error})") from error
    names = listed.get("splits") if isinstance(listed, dict) else None
    if not isinstance(names, list):
        raise CorpusError(f"{splits}: damaged; expected an object with the list 'splits'")
    if split not in names:
        raise CorpusError(
            f"{splits.parent}: no split {split!r}; it has {', '.join(map(str, names[:20]))}"
        )
    return splits.parent / split


def loaded_rows(
    path: str, where: str, wanted: Sequence[str], split: str = "train", **options: Any
) -> Iterator[Row]:
    """Rows of a hub data set or a local folder, streamed: the wanted columns, the text's first.

    Raises `CorpusError` naming `where` for whatever stops the library.
    """
    local = Path(path).exists()

    def opened() -> Any:
        if not local:
            return _streamed(path, split, **options)
        _refuse_remote_files(Path(path))
        # whole, since a folder may be called like a format, such as "text"
        rows = _streamed(str(Path(path).absolute()), split, **options)
        # by row group: a whole Parquet file is read ahead, by up to 1 GB; not on the hub, where
        # each group would be its own request
        return rows.reshard()

    advice = "" if local else "; where the hub cannot be reached, give a local folder as path"
    return _read(where, opened, wanted, advice)


def _streamed(path: str, split: str, **options: Any) -> Any:
    """What `datasets.load_dataset` streams, but `CorpusError` for a format of `REFUSED`."""
    import datasets

    builder = datasets.load_dataset_builder(path, **options)
    kind = type(builder).__module__.rpartition(".")[2]
    if kind in REFUSED:
        raise CorpusError(
            f"{path}: data in the format {kind!r}, whose files may be pickles or name others "
            "elsewhere, are not read; expected JSON Lines, Parquet, Arrow, CSV or text"
        )
    return builder.as_streaming_dataset(split=split)


def _read(
    where: str, opened: Callable[[], Any], wanted: Sequence[str], advice: str = ""
) -> Iterator[Row]:
    """Rows of the streamed data set that `opened` gives; `CorpusError` for whatever stops it."""
    try:
        for number, row in enumerate(_unopened(opened(), wanted), 1):
            yield f"{where}, row {number}", row
    except CorpusError:
        raise
    # the hub client's transports share no base class of errors, and a file may hold anything
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise CorpusError(f"{where}: cannot be read ({reason}){advice}") from error


def _unopened(rows: Any, wanted: Sequence[str]) -> Any:
    """The rows with the wanted columns alone, where they have a text.

    A value that names an image or another file, which may lie anywhere, stays its name.
    """
    if rows.features is None:
        return rows
    rows = rows.decode(False)
    if wanted[0] not in rows.features:  # all of them, which a message lists
        return rows
    return rows.select_columns([name for name in dict.fromkeys(wanted) if name in rows.features])


def _refuse_remote_files(folder: Path) -> None:
    """Raise `CorpusError` where a folder's own description names data that lie elsewhere.

    A colon is in each address of them, also in those of files within remote archives.
    """
    for path, card in _descriptions(folder):
        for name in _places(card):
            if not isinstance(name, str) or ":" in name:
                raise CorpusError(
                    f"{path}: data_files or data_dir {shown(name)}: expected files of this "
                    "folder, without a colon; files of other places are not asked for"
                )


def _places(card: Any) -> Iterator[Any]:
    """The files and folders that a description names as its data, as it has them."""
    from datasets.data_files import sanitize_patterns
    from datasets.utils.metadata import MetadataConfigs

    for config in MetadataConfigs.from_dataset_card_data(card).values():
        for files in sanitize_patterns(config.get("data_files") or []).values():
            yield from files
        yield config.get("data_dir") or ""


def _descriptions(folder: Path) -> Iterator[tuple[Path, Any]]:
    """(file, what `datasets` reads of it) of each file in which a folder describes its data."""
    import yaml
    from huggingface_hub import DatasetCard, DatasetCardData

    readme, alone = folder / "README.md", folder / ".huggingface.yaml"
    if readme.is_file():
        yield readme, DatasetCard.load(readme).data
    if alone.exists():
        values = yaml.safe_load(alone.read_text(encoding="utf-8"))
        yield alone, DatasetCardData(**(values or {}))
