"""Files and folders that appear whole or not at all, JSON whose errors name the file, and locks.

A writer fills a temporary neighbour, `.name.<hash of the host>.<pid>.tmp`, and renames it, which
POSIX does atomically. So a reader sees the old content or the new one, and two processes that write
one file do not disturb each other. A killed writer leaves its neighbour behind:
`remove_leftovers`. Content is not flushed to the disk first: after a loss of power a file may be
damaged.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


class LockedError(RuntimeError):
    """Another process holds the lock; `holder` says which: "pid 7 on host h"."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path} is held by {holder}")
        self.holder = holder


def temporary_name(path: Path) -> Path:
    """The neighbour of `path` that this process fills before it takes the place of `path`."""
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.tmp")


def _host() -> str:
    """This host as twelve hex digits: a host's name may hold dots and what a pattern means."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12]


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left anywhere in a folder.

    Only for the holder of a lock that keeps other writers away: theirs would be deleted too.
    """
    for path in sorted(folder.rglob(".*.tmp")):
        _remove(path)


def remove_leftovers_of_the_dead(folder: Path) -> None:
    """Delete what writers on this host left that no longer run; for folders without a lock.

    In a folder that this process cannot write nothing is deleted.
    """
    for path in sorted(folder.rglob(".*.tmp")):
        writer = re.fullmatch(rf"\..*\.{_host()}\.(\d+)\.tmp", path.name)
        if writer and not _is_running(int(writer[1])) and os.access(path.parent, os.W_OK):
            _remove(path)


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
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; afterwards the file there takes the place of `path`.

    If the block raises, `path` stays as it was. The file gets the permissions that `open` gives
    (the umask's), also where a library creates it for its owner alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    temporary.unlink(missing_ok=True)  # of a killed process that had the same number
    temporary.touch()
    mode = temporary.stat().st_mode & 0o777
    try:
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; afterwards it takes the place of `folder`.

    If the block raises, `folder` stays as it was. A folder cannot be replaced in one step: a
    process killed between the two steps leaves none.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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


def read_json(path: Path) -> Any:
    """Read a JSON file; `ValueError` naming the file where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged, not JSON ({error})") from error


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold an advisory lock on the file `path`, which is made where it is missing and stays there.

    The kernel drops the lock with the process, however that ends. While it is held the file names
    its holder. Where another holds it, this waits, or without `wait` raises `LockedError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        _acquire(file, path, wait)
        file.truncate(0)
        file.write(f"pid {os.getpid()} on host {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _acquire(file: Any, path: Path, wait: bool) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise LockedError(path, file.read() or "another process") from None
