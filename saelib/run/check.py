"""Reading everything that a profile has on disk, to tell what is damaged and what heals it.

Each file is read as its own reader reads it: the store by its manifest, run folders by their seals,
reference losses, counts of live rows, checkpoints and what is kept of features by the checksum in
them, indices of features by their seals, `results.csv` by its seal and the runs it was built from,
and what notebooks left by their records.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from saelib.activations.live import StreamError, read_counts
from saelib.activations.shards import (
    PROGRESS,
    StoreError,
    check_hash,
    check_sizes,
    read_manifest,
    read_progress,
)
from saelib.config import ConfigError
from saelib.env import data_dir
from saelib.files import is_there, read_json
from saelib.measure.descriptions import read_lines
from saelib.measure.features.bound_table import read_bound
from saelib.measure.features.index import ANEW as ANEW_INDEX
from saelib.measure.features.index import INDEX
from saelib.measure.indexed import ABLATION, TWINS
from saelib.measure.reference import read_reference
from saelib.run.edited import absent_rows, edited_rows, unknown_rows
from saelib.run.identity import IDENTITY_FILE, read_identity, require_same_store
from saelib.run.jobs import read_record
from saelib.run.results import RESULTS, TIMES, read_results, read_times
from saelib.run.run_folder import ALL_FILES, CHECKPOINT, METRICS, RunFolder, run_folders
from saelib.run.seals import edited
from saelib.run.source_notebooks import require_valid
from saelib.run.trained import Trained
from saelib.sae.checkpoint import check_checkpoint
from saelib.seal import SEAL, checked, read_seal
from saelib.show.explore.notes import NOTES, Notes

# What an OSError has that tells of what lies there, not of whether it can be read.
NOT_REFUSED = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
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
            if refusal := _refusal(error):
                self.refused(refusal, path)
                return None
            sentence = " ".join(str(error).split())
            where = "" if str(path) in sentence else f"{path}: damaged: "
            self.damaged.append(f"{where}{sentence}" + (f"; {heals}" if heals else ""))
            return None

    def refused(self, error: OSError, path: Path | None = None) -> None:
        """Tell what the system does not let be read: that says nothing of what is in it."""
        where = error.filename or path
        self.damaged.append(
            f"{where}: cannot be read ({error.strerror}), so nothing is known of it; see to its "
            "permissions, or to its disk"
        )


def _refusal(error: BaseException | None) -> OSError | None:
    """The refusal of the system to read, where an error comes from one."""
    while error is not None:
        if isinstance(error, OSError) and error.errno not in NOT_REFUSED:
            return error
        error = error.__context__
    return None


def profiles() -> list[str]:
    """The profiles that something was collected for."""
    return sorted(path.parent.name for path in data_dir("").glob(f"*/{IDENTITY_FILE}"))


def check_profile(profile: str) -> Inspection:
    """Read all of a profile; changes nothing, but what killed writers left may go.

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
    for _ in os.walk(folder, onerror=seen.refused):  # a pattern passes over such folders
        pass
    recorded = seen.read(folder / IDENTITY_FILE, lambda: read_identity(folder, profile), AGAIN)
    manifest = _check_store(folder / "store", seen)
    if recorded and manifest:
        seen.read(
            folder / IDENTITY_FILE,
            lambda: require_same_store(folder, recorded, manifest),
        )
    _check_runs(folder / "saes", seen)
    for path in sorted((folder / "eval").glob("*.json")):
        seen.read(path, lambda path=path: read_reference(path))
    for path in sorted((folder / "stream").glob("*.jsonl")):
        seen.read(path, lambda path=path: read_counts(path))
    _check_features(folder, seen)
    _check_tables(folder, seen)
    if not seen.damaged:
        _check_results(profile, folder / RESULTS, seen)
    changed = seen.read(folder / "notebooks", lambda: edited(profile)) or []
    seen.damaged += [_named(folder, line) for line in changed]
    return seen


def _named(folder: Path, line: str) -> str:
    """A sentence of `seals.edited` with the whole path in it."""
    return line if str(folder) in line else f"{folder}/{line}"


def _check_store(folder: Path, seen: Inspection) -> dict[str, Any] | None:
    """Every file of a finished store; returns its manifest, None without a whole one."""
    if not is_there(folder / "manifest.json"):
        state = "unfinished" if is_there(folder / PROGRESS) else "missing"
        seen.notices.append(f"{folder}: {state}; notebook 01 collects what is missing")
        _check_progress(folder, seen)
        return None
    manifest = seen.read(folder / "manifest.json", lambda: read_manifest(folder))
    if manifest is None:
        return None
    shards = [entry for shard in manifest["shards"] for entry in shard["files"].items()]
    for name, entry in [*manifest["files"].items(), *shards]:
        path = folder / name
        seen.read(path, lambda path=path, entry=entry: _check_stored(path, entry))
    return manifest


def _check_progress(folder: Path, seen: Inspection) -> None:
    """The record of an unfinished store, and the shards that it lists."""
    for path in sorted(folder.glob("progress*.jsonl")):
        entries = seen.read(path, lambda path=path: read_progress(path)) or [{}]
        for shard in entries[1:]:
            for name, entry in shard["files"].items():
                file = folder / name
                if is_there(file):  # else it is written again
                    seen.read(file, lambda file=file, entry=entry: _check_stored(file, entry))


def _check_stored(path: Path, entry: dict[str, Any]) -> None:
    check_sizes(path.parent, {path.name: entry})
    check_hash(path, entry)


def _check_runs(folder: Path, seen: Inspection) -> None:
    """Every run's folder."""
    runs = run_folders(folder)
    for run in runs:
        _check_run(run, seen)
    told = " ".join(seen.damaged)
    unsealed = [run for run in runs if not is_there(run.path / SEAL)]
    unsealed = [run for run in unsealed if str(run.path / SEAL) not in told]
    if unsealed:
        seen.notices.append(
            f"{folder}: {len(unsealed)} of {len(runs)} run folders have no seal, being of an "
            "earlier version: they were read, but a change of a number in them cannot be told"
        )


def _check_run(run: RunFolder, seen: Inspection) -> None:
    """The sealed files of a run, then what they hold, and its checkpoints."""
    n_damaged = len(seen.damaged)
    seal = seen.read(run.path / SEAL, run.seal)
    for name in seal.files if seal else ():
        seen.read(run.path / name, lambda name=name: checked(run.path / name))
    unlisted = [name for name in (*ALL_FILES, METRICS) if is_there(run.path / name)]
    unlisted = [name for name in unlisted if seal and name not in seal.files]
    if unlisted:
        seen.notices.append(
            f"{run.path / SEAL}: does not list {', '.join(unlisted)}, so they count as not written "
            "to their end, as after a kill; notebook 02 writes them anew"
        )
    if len(seen.damaged) == n_damaged:
        seen.read(run.path / METRICS, lambda: run.row)
    if len(seen.damaged) == n_damaged and run.is_trained:
        _check_sae(run, seen, is_sealed=seal is not None)
    for path in sorted(run.path.glob(CHECKPOINT.replace(".", "*."))):
        seen.read(path, lambda path=path: check_checkpoint(path))


def _check_sae(run: RunFolder, seen: Inspection, is_sealed: bool) -> None:
    """A finished SAE and what training left beside it.

    What is as it was sealed, but unknown to this version, is of another one and no damage.
    """

    def everything() -> None:
        try:
            run.load()
        except ConfigError as error:
            if not is_sealed:
                raise
            seen.notices.append(f"{error}: whole, but of another version; left as it is")
        run.history, run.events, run.snapshots  # noqa: B018 (reads them)

    seen.read(run.path, everything, f"delete the folder {run.path} and run `make workbook` again")


def _check_features(folder: Path, seen: Inspection) -> None:
    """Indices of features, what is kept beside them, and the reader's notes."""
    for index in sorted(folder.rglob(INDEX)):
        _check_index(index.parent, seen)
    tables = [path for name in (TWINS, ABLATION) for path in folder.rglob(f"{name}/*.csv")]
    for path in sorted(tables):
        seen.read(path, lambda path=path: read_bound(path, {}))
    for path in sorted(folder.rglob("descriptions/*.jsonl")):
        seen.read(path, lambda path=path: read_lines(path))
    notes = folder / NOTES
    if is_there(notes):
        seen.read(notes, lambda: Notes(notes).read(""))


def _check_index(folder: Path, seen: Inspection) -> None:
    """The sealed files of an index of features; one of an earlier version has no seal."""
    seal = seen.read(folder / SEAL, lambda: read_seal(folder, ANEW_INDEX))
    for name in seal.files if seal else ():
        seen.read(folder / name, lambda name=name: checked(folder / name, ANEW_INDEX))


def _check_tables(folder: Path, seen: Inspection) -> None:
    """Tables and records that notebooks left: whether they can be read."""
    for path in sorted(folder.glob("notebooks/*.ipynb")):
        seen.read(path, lambda path=path: require_valid(path), AGAIN)
    for path in sorted(folder.glob("notebooks/*.json")):
        seen.read(path, lambda path=path: read_record(path), AGAIN)
    for path in sorted(folder.glob("verdicts/*.json")):
        seen.read(path, lambda path=path: read_json(path), AGAIN)
    for path in sorted(folder.glob("verdicts/*.txt")):
        seen.read(path, lambda path=path: path.read_text(encoding="utf-8"), AGAIN)
    for path in sorted(folder.glob("diagnostics/*.csv")):
        seen.read(path, lambda path=path: pd.read_csv(path), AGAIN)
    for path in folder.glob(TIMES):
        seen.read(path, lambda: read_times(folder), AGAIN)


def _check_results(profile: str, path: Path, seen: Inspection) -> None:
    """Each row of results.csv must be what its run's metrics.json says, and all be as sealed."""
    if not is_there(path):
        seen.notices += filter(None, [absent_rows(path)])
        return
    wrong = seen.read(path, lambda: sorted(edited_rows(path)))
    seen.damaged += wrong or []
    if wrong or wrong is None or seen.read(path, lambda: read_results(path)) is None:
        return
    seen.notices += filter(None, (Trained(profile).runs_without_row(path), unknown_rows(path)))
