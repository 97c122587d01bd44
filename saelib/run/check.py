"""Reading everything that a profile has on disk, to tell what is damaged and what heals it.

Each file is read as its own reader reads it: the store by its manifest, run folders by their seals,
reference losses, counts of live rows and checkpoints by the checksum in them, `results.csv` by its
seal and the runs it was built from, indices of features by their seals, what notebooks left by the
seals in their records. `twins/`, `ablation/` and `descriptions/` beside an SAE are bound to it by
their own files, and are looked at when they are opened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from saelib.activations.live import StreamError, read_counts
from saelib.activations.shards import PROGRESS, StoreError, check_hash, check_size, read_manifest
from saelib.env import data_dir
from saelib.files import read_json
from saelib.measure.features.index import ANEW as ANEW_INDEX
from saelib.measure.features.index import FEATURES
from saelib.measure.reference import read_reference
from saelib.run.identity import IDENTITY_FILE, read_identity
from saelib.run.results import ANEW, RESULTS, read_results, results_text
from saelib.run.run_folder import CHECKPOINT, RunFolder
from saelib.run.seals import edited
from saelib.run.trained import Trained
from saelib.sae.checkpoint import check_checkpoint
from saelib.seal import SEAL, checked, fault_of, read_seal, remedy

AGAIN = "delete it and run `make workbook` again"


@dataclass
class Inspection:
    """What was read of a profile; a sentence for each damaged file, and for what cannot be told.

    A sentence on damage names the file and ends with what heals it.
    """

    n_files: int = 0
    damaged: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def read(self, path: Path, reader: Callable[[], Any], heals: str = "") -> Any:
        """What a reader makes of a file, None where it is damaged.

        heals: what to do then, where the reader's own sentence does not say it.
        """
        self.n_files += 1
        try:
            return reader()
        except (OSError, ValueError, KeyError, StoreError, StreamError) as error:
            sentence = " ".join(str(error).split())
            where = "" if str(path) in sentence else f"{path}: damaged: "
            self.damaged.append(f"{where}{sentence}" + (f"; {heals}" if heals else ""))
            return None


def profiles() -> list[str]:
    """The profiles that something was collected for."""
    return sorted(path.parent.name for path in data_dir("").glob(f"*/{IDENTITY_FILE}"))


def check_profile(profile: str) -> Inspection:
    """Read all of a profile; changes nothing.

    Raises:
        FileNotFoundError: there is no such profile.
    """
    if profile not in profiles():
        names = ", ".join(profiles()) or "none"
        raise FileNotFoundError(
            f"{data_dir(profile) / IDENTITY_FILE} is missing; there are profiles: {names}"
        )
    folder = data_dir(profile)
    seen = Inspection()
    seen.read(folder / IDENTITY_FILE, lambda: read_identity(folder, profile), AGAIN)
    _check_store(folder / "store", seen)
    _check_runs(folder / "saes", seen)
    for path in sorted((folder / "eval").glob("*.json")):
        seen.read(path, lambda path=path: read_reference(path))
    for path in sorted((folder / "stream").glob("*.jsonl")):
        seen.read(path, lambda path=path: read_counts(path))
    _check_tables(folder, seen)
    if not seen.damaged:
        _check_results(profile, folder / RESULTS, seen)
    seen.damaged += [
        line if str(folder) in line else f"{folder}/{line}" for line in edited(profile)
    ]
    return seen


def _check_store(folder: Path, seen: Inspection) -> None:
    """Every file of a finished store."""
    if not (folder / "manifest.json").exists():
        state = "unfinished" if (folder / PROGRESS).exists() else "missing"
        seen.notices.append(f"{folder}: {state}; notebook 01 collects what is missing")
        return
    manifest = seen.read(folder / "manifest.json", lambda: read_manifest(folder))
    if manifest is None:
        return
    shards = [entry for shard in manifest["shards"] for entry in shard["files"].items()]
    for name, entry in [*manifest["files"].items(), *shards]:
        path = folder / name
        seen.read(path, lambda path=path, entry=entry: _check_stored(path, entry))


def _check_stored(path: Path, entry: dict[str, Any]) -> None:
    check_size(path, entry)
    check_hash(path, entry)


def _check_runs(folder: Path, seen: Inspection) -> None:
    """Every run's folder."""
    runs = [RunFolder(path) for path in sorted(folder.glob("*")) if path.is_dir()]
    for run in runs:
        _check_run(run, seen)
    unsealed = sum(not (run.path / SEAL).exists() for run in runs)
    if unsealed:
        seen.notices.append(
            f"{folder}: {unsealed} of {len(runs)} run folders have no seal, being of an earlier "
            "version: they were read, but a change of a number in them cannot be told"
        )


def _check_run(run: RunFolder, seen: Inspection) -> None:
    """The sealed files of a run, then what they hold, and its checkpoints."""
    n_damaged = len(seen.damaged)
    seal = seen.read(run.path / SEAL, run.seal)
    for name in seal.files if seal else ():
        path = run.path / name
        seen.n_files += 1
        if fault := fault_of(path, seal):
            seen.damaged.append(f"{path}: {fault}; {remedy(path)}")
    if run.path.exists() and len(seen.damaged) == n_damaged:
        if run.is_trained:
            heals = f"delete the folder {run.path} and run `make workbook` again"
            seen.read(run.path, lambda: (run.load(), run.history, run.events, run.snapshots), heals)
        seen.read(run.path / "metrics.json", lambda: run.row)
    for folder in sorted(run.path.glob(f"{FEATURES}*")):
        _check_index(folder, seen)
    for path in sorted(run.path.glob(CHECKPOINT.replace(".", "*."))):
        seen.read(path, lambda path=path: check_checkpoint(path))


def _check_index(folder: Path, seen: Inspection) -> None:
    """The sealed files of an index of features; one of an earlier version has no seal."""
    seal = seen.read(folder / SEAL, lambda: read_seal(folder, ANEW_INDEX))
    for name in seal.files if seal else ():
        seen.read(folder / name, lambda name=name: checked(folder / name, ANEW_INDEX))


def _check_tables(folder: Path, seen: Inspection) -> None:
    """Tables and records that notebooks left: whether they can be read."""
    for path in sorted(folder.glob("verdicts/*.json")):
        seen.read(path, lambda path=path: read_json(path), AGAIN)
    for path in [*sorted(folder.glob("diagnostics/*.csv")), *folder.glob("timings.csv")]:
        seen.read(path, lambda path=path: pd.read_csv(path), AGAIN)


def _check_results(profile: str, path: Path, seen: Inspection) -> None:
    """Each row of results.csv must be what its run's metrics.json says, and all be as sealed."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rebuilt = results_text(Trained(profile).measured_rows()).splitlines()
    wrong = sorted(set(lines) - set(rebuilt)) if lines[:1] == rebuilt[:1] else []
    for line in wrong:
        seen.damaged.append(
            f"{path}: the row of run {line.partition(',')[0]} is not what the runs' metrics.json "
            f"say; {ANEW}"
        )
    if not wrong and seen.read(path, lambda: read_results(path)) is None:
        return
    if lines[:1] != rebuilt[:1]:
        seen.notices.append(f"{path}: has other columns, being of an earlier version")
    elif set(rebuilt) - set(lines):
        seen.notices.append(f"{path}: lacks runs that are measured; notebook 02 adds them")
