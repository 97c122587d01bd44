"""Files and folders that appear whole or not at all, JSON whose errors name the file, and locks.

A writer works in a temporary neighbour, the folder `.name.<hash of the host>.<pid>.tmp`, and
renames what it made there, which POSIX does atomically. So a reader sees the old content or the new
one, and two processes that write one file do not disturb each other. A killed writer leaves its
neighbour behind, with what libraries had begun in it: `remove_leftovers`. Content is not flushed to
the disk first: after a loss of power a file may be damaged.
"""

from __future__ import annotations

import errno
import fcntl
import filecmp
import hashlib
import json
import os
import re
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

NO_LOCKS = "SAELIB_NO_LOCKS"  # set: this is the one process at work here, and nothing is locked
# How members of an archive may be packed.
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of flock


class DiskFullError(OSError):
    """A file could not be written for want of space; names it and says what to do."""


class NoLocksError(OSError):
    """The file system cannot lock files; names the lock and says what to do."""


class LockedError(RuntimeError):
    """Another process holds the lock; `holder` says which: "pid 7 on host h"."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path} is held by {holder}")
        self.holder = holder


def is_there(path: str | Path) -> bool:
    """Whether there is a file or folder of that name; of one that none can have, False."""
    return os.path.exists(Path(path))


def temporary_name(path: Path) -> Path:
    """The neighbour of `path` in which this process makes what takes the place of `path`."""
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.tmp")


def _host() -> str:
    """This host as twelve hex digits: a host's name may hold dots and what a pattern means."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12]


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left anywhere in a folder.

    Only for the holder of a lock that keeps other writers away: theirs would be deleted too.
    """
    for path in _temporaries(folder):
        _remove(path)


def remove_leftovers_of_the_dead(folder: Path) -> None:
    """Delete what writers on this host left that no longer run; for folders without a lock.

    In a folder that this process cannot write nothing is deleted.
    """
    for path in _temporaries(folder):
        writer = re.fullmatch(rf"\..*\.{_host()}\.(\d+)\.tmp", path.name)
        if writer and not _is_running(int(writer[1])) and os.access(path.parent, os.W_OK):
            _remove(path)


def _temporaries(folder: Path) -> Iterator[Path]:
    """Temporary neighbours anywhere in a folder; those of running writers vanish meanwhile."""
    for parent, folders, files in os.walk(folder):  # it passes over folders that are gone
        found = [name for name in (*folders, *files) if re.fullmatch(r"\..*\.tmp", name)]
        folders[:] = [name for name in folders if name not in found]
        yield from (Path(parent, name) for name in found)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # asks alone
    except (ProcessLookupError, OverflowError):  # the latter of what is no process's number
        return False
    except PermissionError:  # another user's
        return True
    return True


def _remove(path: Path) -> None:
    """Delete a file or folder; another process may be deleting it too."""
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; afterwards the file there takes the place of `path`.

    If the block raises, `path` stays as it was. The file gets the permissions that `open` gives
    (the umask's), also where a library creates it for its owner alone.
    """
    neighbour = temporary_name(path)
    temporary = neighbour / path.name
    try:
        with full_disk_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove(neighbour)  # of a killed process that had the same number
            neighbour.mkdir()
            temporary.touch()
            mode = temporary.stat().st_mode & 0o777
            yield temporary
            temporary.chmod(mode)
            os.replace(temporary, path)
    finally:
        for _ in range(2):  # a file system of a network may refuse it for a moment
            shutil.rmtree(neighbour, ignore_errors=True)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; afterwards it takes the place of `folder`.

    Where that holds the same bytes already it is left as it is. If the block raises, `folder` stays
    as it was. A folder cannot be replaced in one step: a process killed between the two steps
    leaves none.

    Raises:
        FileExistsError: a file or a link lies there; names it.
    """
    if folder.is_symlink() or folder.is_file():
        raise FileExistsError(f"{folder}: a file or a link where a folder is to be; remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with full_disk_named(folder):
            temporary.mkdir()
            yield temporary
            if not _equal_folders(temporary, folder):
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _equal_folders(one: Path, two: Path) -> bool:
    """Whether two folders hold files of the same names and bytes."""
    names = [
        sorted(p.relative_to(folder) for p in folder.rglob("*")) if folder.is_dir() else None
        for folder in (one, two)
    ]
    files = [str(name) for name in names[0] or () if (one / name).is_file()]
    return names[0] == names[1] and filecmp.cmpfiles(one, two, files, shallow=False)[0] == files


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """`DiskFullError` naming `path` where the block finds no space to write it, by whatever
    library: safetensors has an error of its own. Other errors of the disk name `path` too.
    """
    try:
        yield
    except Exception as error:
        number = _system_error(error)
        if number in FULL:
            raise DiskFullError(
                f"{path}: not written ({os.strerror(number)}): free some space on its disk and "
                "run again; what was finished is kept"
            ) from error
        if number is None or getattr(error, "filename", None):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _system_error(error: Exception) -> int | None:
    """The system's number of an error, whatever library reports it; None where it has none."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match and isinstance(error, SafetensorError) else None


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically; its folder is made where it is missing."""
    with replaced_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, its line ends as they are; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, so that equal values give equal bytes.

    Raises `ValueError` for NaN or infinity.
    """
    write_text(path, _json_text(value))


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def update_text(path: Path, text: str) -> None:
    """`write_text`, unless the file holds just that: then a folder may be read-only."""
    if not path.is_file() or path.read_bytes() != text.encode("utf-8"):
        write_text(path, text)


def update_json(path: Path, value: Any) -> None:
    """`write_json`, unless the file holds just that: then a folder may be read-only."""
    update_text(path, _json_text(value))


def check_packing(archive: zipfile.ZipFile) -> None:
    """Raise `zipfile.BadZipFile` where a member is packed in a way that is not read.

    LZMA, since such a member may ask for 4 GB of memory in a few bytes.
    """
    for member in archive.infolist():
        if member.compress_type not in PACKINGS:
            raise zipfile.BadZipFile(
                f"{member.filename!r} is packed by method {member.compress_type}; expected "
                "stored (0), deflated (8) or bzip2 (12)"
            )


def read_json(path: Path) -> Any:
    """Read a JSON file; `ValueError` naming the file where it is damaged."""
    try:
        return parsed_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged, not JSON ({error})") from error


def parsed_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, is nested too deeply to read, or has a name twice in one mapping.
    """
    try:
        return json.loads(text, object_pairs_hook=_mapping)
    except RecursionError as error:
        raise ValueError("brackets nested too deeply") from error


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of JSON; of two values of one name the first would be gone without a word."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r:.80} stands twice in one mapping")
    return values


@contextmanager
def locked(
    path: Path, wait: bool = True, on_wait: Callable[[str], object] | None = None
) -> Iterator[None]:
    """Hold an advisory lock on the file `path`, which is made where it is missing and stays there.

    The kernel drops the lock with the process, however that ends. While it is held the file names
    its holder. Where another holds it, this waits, having called `on_wait` with that holder, or
    without `wait` raises `LockedError`.

    Raises NoLocksError on a file system without locks; where `SAELIB_NO_LOCKS` is set nothing is
    locked.
    """
    if os.environ.get(NO_LOCKS):
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:  # else closing it could try and fail to write
        _acquire(file, path, wait, on_wait)
        _name_holder(file, path, f"pid {os.getpid()} on host {socket.gethostname()}")
        try:
            yield
        finally:
            _name_holder(file, path, "")


def _name_holder(file: Any, path: Path, holder: str) -> None:
    with full_disk_named(path):
        file.truncate(0)
        file.write(holder.encode())


def _acquire(
    file: Any, path: Path, wait: bool, on_wait: Callable[[str], object] | None = None
) -> None:
    try:
        lock_file(file, path, wait=False)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().decode(errors="replace") or "another process"
        if not wait:
            raise LockedError(path, holder) from None
        if on_wait:
            on_wait(holder)
        lock_file(file, path)


def lock_file(file: Any, path: Path, wait: bool = True) -> None:
    """`flock` an open file until it is closed; NoLocksError where its file system has none.

    Without `wait`, BlockingIOError where another process holds it.
    """
    if os.environ.get(NO_LOCKS):
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        raise NoLocksError(
            f"{path}: its file system cannot lock files ({error.strerror}): put the data folder "
            f"on one that can, or set {NO_LOCKS}=1 and start one process at a time"
        ) from error
