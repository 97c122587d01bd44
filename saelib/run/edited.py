"""Rows of `results.csv` that are not what the folders of their runs say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saelib.measure.columns import COLUMNS
from saelib.run.identity import code_version
from saelib.run.results import ANEW, results_text
from saelib.run.run_folder import RunFolder, run_folders


def edited_rows(path: Path) -> Iterator[str]:
    """A sentence for each row that differs from its run's `metrics.json`, or stands there twice.

    Of rows whose runs' folders are gone nothing can be told. Raises what reading a folder does.
    """
    head, *lines = _lines(path)
    columns = head.split(",")
    unknown = sorted(set(columns) - set(COLUMNS))
    if unknown:  # what stands in which column is not known
        yield f"{path}: damaged, no column is called {unknown[0]!r:.40}; {ANEW}"
        return
    counts = Counter(line.partition(",")[0] for line in lines)
    for line in lines:
        run = line.partition(",")[0]
        row = _row(path.parent / "saes" / run)
        if row and line != results_text([row], columns).splitlines()[1]:
            yield f"{path}: the row of run {run} is not what the run's metrics.json says; {ANEW}"
    for run, count in counts.items():
        if count > 1:
            yield f"{path}: run {run} stands there {count} times; {ANEW}"


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: damaged ({error}); {ANEW}") from error
    if not lines:
        raise ValueError(f"{path}: damaged (empty); {ANEW}")
    return lines


def unknown_rows(path: Path) -> str:
    """In a sentence, how many rows are of runs that have no folder; empty where all have one.

    Of a recorded table, which has no folders beside it, nothing is said.
    """
    folder = path.parent / "saes"
    if not folder.is_dir():
        return ""
    runs = [line.partition(",")[0] for line in _lines(path)[1:]]
    unknown = [run for run in runs if not (folder / run).is_dir()]
    if not unknown:
        return ""
    return (
        f"{path}: {len(unknown)} rows are of runs that have no folder, as {unknown[0]:.20}; "
        "notebook 02 builds it anew"
    )


def absent_rows(path: Path) -> str:
    """In a sentence, how many runs measured by this code the table lacks; empty where none."""
    there = {line.partition(",")[0] for line in _lines(path)} if path.is_file() else set()
    runs = run_folders(path.parent / "saes")
    absent = [run for run in runs if run.run_id not in there and run.row]
    current = [run for run in absent if run.origin.get("code_version") == code_version()]
    if not current:
        return ""
    return f"{path}: lacks {len(current)} runs that are measured; notebook 02 adds them"


def _row(folder: Path) -> dict[str, Any] | None:
    """What a run's folder says; None where nothing is known of it."""
    return RunFolder(folder).row if folder.is_dir() else None
