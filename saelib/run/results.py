"""The two tables of a profile: `results.csv`, one row per trained SAE, and `timings.csv`, one row
per piece of work. The first is sealed by the `seal.json` beside it.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from saelib.files import full_disk_named, lock_file
from saelib.measure.columns import COLUMNS, NUMBERS, read_table
from saelib.seal import checked, fault_of, read_seal, replace_sealed

ANEW = "delete it and run notebook 02: it is built anew"
RESULTS = "results.csv"
TIMES = "timings.csv"
TIMINGS = ("run_id", "stage", "seconds", "tokens_per_second", "resumed")


def results_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of results with their `arm`, in the order given, in the dtypes of the columns."""
    return pd.DataFrame(list(rows), columns=[*COLUMNS, "arm"]).astype(NUMBERS)


def read_results(path: Path) -> pd.DataFrame:
    """`results.csv` as a table, with column `arm`.

    Raises FileNotFoundError where nothing was trained, ValueError naming the file where it is
    damaged, or was edited since it was written.
    """
    if not path.exists():
        profile = path.parent.name
        raise FileNotFoundError(
            f"{path} is missing: run notebooks 02 to 04 with profile {profile!r} first"
        )
    checked(path, heals=ANEW, notice=False)
    try:
        table = read_table(path)
    except (ValueError, OverflowError) as error:  # no table, a column missing, or no such number
        raise ValueError(f"{path}: damaged ({error}); {ANEW}") from error
    return table.assign(arm=table["loss"])


def write_results(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `results.csv` whole or not at all, and its seal; floats in repr, so equal rows give
    equal bytes.
    """
    replace_sealed(path, results_text(rows).encode("utf-8"), heals=ANEW)


def is_sealed(path: Path) -> bool:
    """Whether `results.csv` is as it was written; True too where its folder cannot be sealed."""
    seal = read_seal(path.parent, heals=ANEW)
    if seal is None:
        return not os.access(path.parent, os.W_OK)
    return not fault_of(path, seal)


def holds(path: Path, rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether `results.csv` has these rows and no others."""
    return path.is_file() and path.read_bytes() == results_text(rows).encode("utf-8")


def results_text(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """The content of `results.csv`; of an earlier version, of its columns."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def log_time(
    folder: Path,
    stage: str,
    seconds: float,
    run: str = "",
    tokens: int = 0,
    resumed: bool = False,
) -> None:
    """Append one row to `timings.csv` in `folder`: seconds of a stage, tokens per second where it
    has tokens.
    """
    path = folder / TIMES
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = f"{tokens / seconds:.1f}" if tokens and seconds > 0 else ""
    row = [run, stage, f"{seconds:.3f}", rate, str(resumed).lower()]
    with full_disk_named(path), path.open("a+b", buffering=0) as file:
        lock_file(file, path)
        end = _drop_half_row(file)
        text = io.StringIO(newline="")
        csv.writer(text).writerows([row] if end else [TIMINGS, row])
        try:
            _write_all(file, text.getvalue().encode())
        except OSError:
            file.truncate(end)  # no half row where the disk is full
            raise


def _drop_half_row(file: io.RawIOBase) -> int:
    """Cut off what a killed process wrote of a row; the bytes that stay."""
    file.seek(0)
    content = file.read()
    end = len(whole_rows(content))
    if end < len(content):
        file.truncate(end)
    return end


def whole_rows(content: bytes) -> bytes:
    """The content of `timings.csv` without a last row that is being written, or never was."""
    return content[: content.rfind(b"\n") + 1]


def read_times(folder: Path) -> pd.DataFrame:
    """The rows of `timings.csv`, each once; empty where there are none.

    Two rows that are equal to the millisecond are one that was written twice.

    Raises ValueError naming the file where it is no table, or a row is not one that was written.
    """
    path = folder / TIMES
    content = whole_rows(path.read_bytes()) if path.is_file() else b""
    if not content:
        return pd.DataFrame()
    try:
        _check_times(content.decode("utf-8"))
        rows = pd.read_csv(io.BytesIO(content)).astype({"stage": str, "seconds": float})
    except (ValueError, KeyError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: damaged ({reason}); delete it, or run its notebook") from error
    return rows.drop_duplicates(ignore_index=True)


def _check_times(text: str) -> None:
    """ValueError for a row that lacks a value, or begins with a part of a run's id.

    Rows are appended by many, so that no checksum covers the last ones.
    """
    for row in csv.reader(io.StringIO(text, newline="")):
        is_whole = len(row) == len(TIMINGS) and (row[0] in ("", TIMINGS[0]) or is_run_id(row[0]))
        if not is_whole:
            raise ValueError(f"the row {','.join(row)[:80]!r}")


def is_run_id(text: str) -> bool:
    """Whether a text has the form of a run's id."""
    return re.fullmatch(r"[0-9a-f]{12}", text) is not None


def _write_all(file: io.RawIOBase, data: bytes) -> None:
    """Write all of it: one call may write a part, as on a disk that becomes full."""
    while data:
        data = data[file.write(data) :]
