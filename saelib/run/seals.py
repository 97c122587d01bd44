"""What an executed notebook left, sealed when it finished: the report says what was edited since.

A seal is a checksum in the notebook's record (`jobs`): of its verdicts, its part of the abstract,
its tables, figures and atlases, of its code cells with their outputs, of its prose, which is
brought up to the source's later, of what else the file holds, and of `timings.csv` up to then.
`results.csv`, which several notebooks add to, has a seal of its own (`saelib.seal`).
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
from saelib.run.source_notebooks import INJECTED, code_cells, read_notebook, tags
from saelib.seal import SEAL, SealError, fault_of, read_seal

PROSE = ("prose", "texts")  # parts of a notebook that are brought up to the source's
KINDS = ("verdicts/*.json", "verdicts/*.txt", "diagnostics/*.csv", f"{ATLAS}/*.html")


def seals_of(job: Job) -> dict[str, Any]:
    """Checksums of what a job left, by path below the folder of its profile or grid point."""
    folder = job.folder.parent
    seals: dict[str, Any] = {
        str(path.relative_to(folder)): _digest(path.read_bytes())
        for path in [*job.claims, *job.atlases]
    }
    parts = _parts(job.output)
    seals[_notebook(job)] = {name: parts[name] for name in ("cells", "texts", "rest")}
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
        parts = _parts(job.output)
        seals[name] = {
            part: parts[part] if part in PROSE else kept for part, kept in seals[name].items()
        }
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
    """Whether each part of it that was sealed is as it was; at first the code cells alone were."""
    kept = seal if isinstance(seal, Mapping) else {"cells": seal}
    try:
        parts = _parts(path)
    except ValueError:
        return False
    return all(parts.get(name) == value for name, value in kept.items())


def _parts(path: Path) -> dict[str, str]:
    """Checksums of an executed notebook's parts.

    cells: sources and outputs of the code; texts: the other cells and their places (prose: their
    sources, as earlier versions sealed them); rest: all else, such as the injected parameters.
    """
    notebook = read_notebook(path)
    code = code_cells(notebook)
    texts = [cell if cell["cell_type"] != "code" else None for cell in notebook["cells"]]
    frames = [
        cell if INJECTED in tags(cell) else _without_content(cell)
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]
    return {
        "cells": stable_hash([[cell["source"], cell.get("outputs")] for cell in code]),
        "prose": stable_hash([cell["source"] for cell in filter(None, texts)]),
        "texts": stable_hash(texts),
        "rest": stable_hash({**notebook, "cells": frames}),
    }


def _without_content(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in cell.items() if name not in ("source", "outputs")}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
