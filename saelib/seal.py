"""Seals: what a folder's files are, by size and SHA-256, written last and checked by each reader.

    seal.json   {"format": 1, "run_id", "files": {name: {"bytes", "sha256"}}, "hash": of all this}

A file that the seal does not list is not there yet: its writer was killed. While a file is replaced
(`replace_sealed`) its entry has the former one too, as "before", and either content is whole. A
file is hashed once a process, and again where its size or its times have changed. Folders written
before there were seals are opened unchecked, with a notice.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from saelib.config import stable_hash
from saelib.files import read_json, write_bytes, write_json

SEAL = "seal.json"
FORMAT = 1
SETTLED = 2_000_000_000  # ns; a file changed later than this before its hash may change unnoticed
KEPT = 4096  # paths of which a process remembers the hash, or the seal
ATTEMPTS = 3  # readings of a folder whose writer is at work

log = logging.getLogger(__name__)

Stamp = tuple[int, int, int, int]  # size, inode, times of the last change of content and of state
_hashes: dict[str, tuple[Stamp, str]] = {}
_seals: dict[str, tuple[Stamp, "Seal"]] = {}
_noticed: set[Path] = set()


class SealError(ValueError):
    """A file is not what its folder's seal says; names the file and what to do."""


class Seal(NamedTuple):
    """What a folder says of its files."""

    run_id: str  # empty where the folder is no run's
    files: dict[str, dict[str, Any]]


def _stamp(path: Path) -> Stamp:
    stat = path.stat()
    return stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns


def _is_settled(stamp: Stamp) -> bool:
    """Whether a further change of the file would change its times too."""
    return time.time_ns() - max(stamp[2:]) > SETTLED


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex; computed once a process unless the file changes."""
    stamp = _stamp(path)
    kept = _hashes.get(str(path))
    if kept and kept[0] == stamp:
        return kept[1]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if _is_settled(stamp):
        _keep(_hashes, path, (stamp, digest))
    return digest


def _keep(kept: dict[str, Any], path: Path, value: Any) -> None:
    """Keep what was found of a path, and of at most `KEPT` of them."""
    while len(kept) >= KEPT:
        kept.pop(next(iter(kept)), None)
    kept[str(path)] = value


# -- reading


def read_seal(folder: Path, heals: str = "") -> Seal | None:
    """A folder's seal; None where it has none.

    heals: what to do where it is damaged, if that is not what `remedy` says.

    Raises:
        SealError: the seal is damaged, or of a later version.
    """
    path = folder / SEAL
    try:
        stamp = _stamp(path)
    except FileNotFoundError:
        return None
    kept = _seals.get(str(path))
    if kept and kept[0] == stamp:
        return kept[1]
    seal = _parsed(path, heals or remedy(path))
    if _is_settled(stamp):
        _keep(_seals, path, (stamp, seal))
    return seal


def _parsed(path: Path, heals: str) -> Seal:
    try:
        values = read_json(path)
    except ValueError as error:
        raise SealError(f"{error}; {heals}") from error
    if not isinstance(values, dict) or values.pop("hash", None) != stable_hash(values):
        raise SealError(f"{path}: damaged, its content is not what its hash says; {heals}")
    if values.get("format") != FORMAT:
        raise SealError(f"{path}: format = {values.get('format')!r:.80}: expected {FORMAT}")
    run_id, files = values.get("run_id"), values.get("files")
    if not isinstance(run_id, str):
        raise SealError(f"{path}: run_id = {run_id!r:.80}: expected a run's name; {heals}")
    if not isinstance(files, dict) or not all(map(_is_entry, files.items())):
        expected = "bytes and sha256 of files in this folder"
        raise SealError(f"{path}: files = {files!r:.80}: expected {expected}; {heals}")
    return Seal(run_id, files)


def _is_entry(item: tuple[str, Any]) -> bool:
    """Whether it is what `seal_files` says of a file, which lies in the folder itself."""
    name, entry = item
    if not name or Path(name).name != name or not isinstance(entry, dict):
        return False
    return _is_content(entry) and _is_content(entry.get("before", entry))


def _is_content(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("bytes"), int):
        return False
    return isinstance(entry.get("sha256"), str)


def is_listed(path: Path) -> bool:
    """Whether a file was written to its end: the seal lists it, or without a seal it exists."""
    seal = read_seal(path.parent)
    return path.exists() if seal is None else path.name in seal.files


def fault_of(path: Path, seal: Seal) -> str:
    """How a file differs from what the seal of its folder says; empty where it does not."""
    entry = seal.files.get(path.name)
    if entry is None:
        return f"is not in {SEAL}"
    if not path.is_file():
        return f"missing, {SEAL} lists it"
    if "before" in entry and not _difference(path, entry["before"]):
        return ""
    return _difference(path, entry)


def _difference(path: Path, entry: dict[str, Any]) -> str:
    size = path.stat().st_size
    if size != entry["bytes"]:
        return f"damaged, {size} bytes where {entry['bytes']} are sealed"
    digest = sha256_of(path)
    if digest != entry["sha256"]:
        return f"damaged, sha256 {digest[:12]} where {entry['sha256'][:12]} is sealed"
    return ""


def checked(path: Path, heals: str = "", notice: bool = True) -> Path:
    """The path itself, once the file is what its folder's seal says.

    Of a folder without a seal nothing is known: a notice says so, once for all folders beside it,
    unless there is to be none. heals: what to do, if that is not what `remedy` says.

    Raises:
        SealError: the file is missing, damaged or not sealed; names it and what to do.
    """
    seal = read_seal(path.parent, heals)
    for _ in range(ATTEMPTS):
        if seal is None:
            if notice:
                _notice(path.parent)
            return path
        fault = fault_of(path, seal)
        if not fault:
            return path
        before = seal
        seal = read_seal(path.parent, heals)
        if seal == before:  # else a writer replaced file and seal meanwhile
            break
    raise SealError(f"{path}: {fault}; {heals or remedy(path)}")


def remedy(path: Path) -> str:
    """What heals a damaged file of a sealed folder."""
    if not path.exists():
        return "run `make workbook` again, where a profile lacks it"
    if path.name == "metrics.json":
        return "delete it, and a run is measured again"
    return f"delete the folder {path.parent} and make it anew (a profile's by `make workbook`)"


def _notice(folder: Path) -> None:
    if folder.parent not in _noticed:
        _noticed.add(folder.parent)
        log.warning(
            f"{folder}: no {SEAL}, so written by an earlier version; its files, and those of such "
            f"folders beside it, are opened unchecked"
        )


# -- writing


def seal_files(folder: Path, names: Iterable[str], run_id: str | None = None) -> None:
    """List files of a folder in its seal, as they are now; what it lists already stays.

    run_id: whose folder it is; None leaves that as it is.
    """
    before = read_seal(folder) or Seal("", {})
    files = {name: _entry(folder / name) for name in names}
    _write(folder, before.run_id if run_id is None else run_id, before.files | files)


def unseal_files(folder: Path, names: Iterable[str]) -> None:
    """Take files out of a folder's seal before they are written anew.

    So a kill leaves files that are not there yet, never such as do not fit their seal.
    """
    seal = read_seal(folder)
    gone = set(names)
    if seal and gone & set(seal.files):
        _write(folder, seal.run_id, {k: v for k, v in seal.files.items() if k not in gone})


def replace_sealed(path: Path, data: bytes, heals: str = "") -> None:
    """Write a file of a folder anew, whole or not at all, and seal it.

    At every moment, and after a kill at any, a reader finds it whole: the old content or the new.

    Raises:
        SealError: the folder's seal is damaged; says that `heals`, or else `remedy`.
    """
    folder, name = path.parent, path.name
    seal = read_seal(folder, heals) or Seal("", {})
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if path.exists() and not fault_of(path, seal):
        _write(folder, seal.run_id, seal.files | {name: entry | {"before": _entry(path)}})
        write_bytes(path, data)
        _write(folder, seal.run_id, seal.files | {name: entry})
    else:
        write_bytes(path, data)
        _write(folder, seal.run_id, seal.files | {name: entry})


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _write(folder: Path, run_id: str, files: dict[str, dict[str, Any]]) -> None:
    values = {"format": FORMAT, "run_id": run_id, "files": files}
    write_json(folder / SEAL, values | {"hash": stable_hash(values)})
