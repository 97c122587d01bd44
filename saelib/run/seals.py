"""What an executed notebook left, sealed when it finished: the report says what was edited since.

A seal is a checksum in the notebook's record (`jobs`): of its verdicts, its part of the abstract,
its tables, figures and atlases, of its code cells with their outputs, of its prose, which is
brought up to the source's later, and of `timings.csv` up to then. `results.csv`, which several
notebooks add to, has a seal of its own (`saelib.seal`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from saelib.config import stable_hash
from saelib.env import ATLAS, data_dir
from saelib.run.jobs import Job, intact_record, read_record
from saelib.run.results import ANEW, RESULTS, TIMES, whole_rows
from saelib.run.source_notebooks import code_cells, read_notebook
from saelib.seal import SEAL, SealError, fault_of, read_seal

KINDS = ("verdicts/*.json", "verdicts/*.txt", "diagnostics/*.csv", f"{ATLAS}/*.html")


def seals_of(job: Job) -> dict[str, Any]:
    """Checksums of what a job left, by path below the folder of its profile or grid point."""
    folder = job.folder.parent
    seals: dict[str, Any] = {
        str(path.relative_to(folder)): _digest(path.read_bytes())
        for path in [*job.claims, *job.atlases]
    }
    seals[_notebook(job)] = {"cells": _cells(job.output), "prose": _prose(job.output)}
    times = job.main.parent / TIMES
    if times.is_file() and not job.grid:
        content = whole_rows(times.read_bytes())  # more are added to it
        seals[TIMES] = {"bytes": len(content), "sha256": _digest(content)}
    return seals


def seals_with_prose(job: Job) -> dict[str, Any]:
    """A finished job's seals; its prose as it is now, brought up to the source's."""
    seals = dict(intact_record(job.record).get("seals", {}))
    name = _notebook(job)
    if isinstance(seals.get(name), Mapping):
        seals[name] = {**seals[name], "prose": _prose(job.output)}
    return seals


def _notebook(job: Job) -> str:
    return f"{job.folder.name}/{job.output.name}"


def edited(profile: str) -> list[str]:
    """Files of a profile that are not as their notebook sealed them, each in a sentence."""
    folder = data_dir(profile)
    records = [*folder.glob("notebooks/*.json"), *folder.glob("grid/*/notebooks/*.json")]
    lines: dict[str, None] = {}  # in order, each once
    for record in sorted(records):
        lines |= dict.fromkeys(_edited(folder, record))
    return list(lines)


def unsealed(profile: str) -> list[str]:
    """Verdicts, sentences, tables and atlases of a profile that there is no seal of."""
    folder = data_dir(profile)
    sealed: set[str] = set()
    for record in folder.glob("notebooks/*.json"):
        sealed |= set(_seals(record))
    present = [path for kind in KINDS for path in sorted(folder.glob(kind))]
    names = [str(path.relative_to(folder)) for path in present]
    unsealed_names = [name for name in names if name not in sealed]
    if (folder / RESULTS).is_file() and not (folder / SEAL).exists():
        unsealed_names.append(RESULTS)
    return unsealed_names


def edited_results(profile: str) -> list[str]:
    """A sentence where a profile's `results.csv` is not as it was written, or its seal damaged."""
    path = data_dir(profile) / RESULTS
    try:
        seal = read_seal(path.parent, heals=ANEW)
    except SealError as error:
        return [str(error)]
    if seal and path.is_file() and fault_of(path, seal):
        return [f"{RESULTS} was edited after it was written; {ANEW}"]
    return []


def _seals(record: Path) -> Mapping[str, Any]:
    """A record's seals; none of a record that is damaged, which `edited` says."""
    try:
        return read_record(record).get("seals", {})
    except ValueError:
        return {}


def _edited(profile: Path, record: Path) -> Iterator[str]:
    """What is not as a record says."""
    try:
        seals = read_record(record).get("seals", {})
    except ValueError as error:
        yield f"{error}; what {record.stem} left is not checked"
        return
    folder = record.parent.parent
    for name, seal in seals.items():
        path = folder / name
        below = path.relative_to(profile)
        if not path.is_file():
            yield f"{below} is missing; {_anew(record)}"
        elif not _is_whole(path, seal):
            yield f"{below} was edited after {record.stem} had finished; {_anew(record)}"


def _anew(record: Path) -> str:
    return f"run {record.stem} with --force to make it anew"


def _is_whole(path: Path, seal: Any) -> bool:
    """Whether a file is as it was sealed."""
    if path.suffix == ".ipynb":
        return _is_whole_notebook(path, seal)
    if isinstance(seal, Mapping):
        return _digest(path.read_bytes()[: seal["bytes"]]) == seal["sha256"]
    return _digest(path.read_bytes()) == seal


def _is_whole_notebook(path: Path, seal: Any) -> bool:
    """Whether its cells are as sealed; earlier versions sealed those of code alone."""
    kept = seal if isinstance(seal, Mapping) else {"cells": seal, "prose": None}
    try:
        is_same_prose = kept["prose"] in (None, _prose(path))
        return _cells(path) == kept["cells"] and is_same_prose
    except ValueError:
        return False


def _cells(path: Path) -> str:
    """Of the code cells and their outputs."""
    cells = code_cells(read_notebook(path))
    return stable_hash([[cell["source"], cell["outputs"]] for cell in cells])


def _prose(path: Path) -> str:
    """Of the cells that are no code."""
    cells = read_notebook(path)["cells"]
    return stable_hash([cell["source"] for cell in cells if cell["cell_type"] != "code"])


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
