"""The compiled C files: built once and loaded from a folder that this user alone writes.

    <cache>/saelib/kernels/<file>_<key>_<sha256>.so     <cache>: $XDG_CACHE_HOME or ~/.cache

The key hashes what the content depends on: source and headers, compiler, options, processor, C
library and Python. The SHA-256 is the content's, and is checked before anything is loaded. Code is
never taken from a data folder, which may come from elsewhere.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from torch import Tensor

from saelib.files import remove_leftovers_of_the_dead, temporary_name

log = logging.getLogger(__name__)

WAY_OUT = (
    "set XDG_CACHE_HOME to a folder of yours; with CC=none training does without compiled code"
)

# No -ffast-math: in a shared library it changes how the whole process rounds denormals.
FLAGS = (
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fopenmp",
    "-shared",
    "-fPIC",
)


def call(library: ctypes.CDLL, name: str, *arguments: Tensor | int | float) -> None:
    """Call a function of compiled code with arrays, whole numbers (int64) and floats (float32).

    Raises:
        TypeError: an array is not contiguous.
    """
    getattr(library, name)(*(_as_c(name, a) for a in arguments))


def _as_c(name: str, a: Tensor | int | float) -> ctypes._SimpleCData:
    if isinstance(a, Tensor):
        if not a.is_contiguous():
            raise TypeError(f"{name}: an array of strides {a.stride()} is not contiguous")
        return ctypes.c_void_p(a.data_ptr())
    return ctypes.c_float(a) if isinstance(a, float) else ctypes.c_int64(a)


def compiler_command(source: Path, flags: Sequence[str]) -> list[str] | None:
    """The command that compiles, but for its output's path; None without a compiler (`CC`)."""
    compiler, *options = shlex.split(os.environ.get("CC", "cc")) or [""]
    program = shutil.which(compiler)
    return None if program is None else [program, *options, *flags, str(source), "-o"]


@cache
def compiled(source: Path) -> ctypes.CDLL | None:
    """A C file of this package, compiled; None without a compiler.

    Raises:
        RuntimeError: there is one that fails, or its output cannot be kept (see `load_library`).
    """
    command = compiler_command(source, FLAGS)
    return None if command is None else load_library(source, command)


def load_library(source: Path, command: Sequence[str]) -> ctypes.CDLL:
    """The library that `command` makes of `source`, compiled where no sound one is kept.

    One whose content changed since, or which does not load here, is compiled anew with a notice.

    Raises:
        RuntimeError: the compiler fails, the cache folder is not this user's alone, or what was
            compiled does not load; names the file and the way out.
    """
    folder = _private_folder()
    name = f"{source.stem}_{_key(source, command)}_"
    kept = sorted(folder.glob(f"{name}*.so"))
    for path in kept:
        library = _sound_library(path, path.stem.removeprefix(name))
        if library is not None:
            return library
    path = _compile(source, command, folder, name)
    for damaged in kept:
        if damaged != path:
            damaged.unlink(missing_ok=True)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeError(f"{path}: compiled, but does not load ({error}); {WAY_OUT}") from error


def _private_folder() -> Path:
    """The folder of compiled code, made where it is missing; RuntimeError where others write."""
    folder = _cache() / "saelib"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for part in (folder, folder / "kernels"):
            part.mkdir(mode=0o700, exist_ok=True)
            _refuse_others(part)
    except OSError as error:
        raise RuntimeError(
            f"{folder}: no folder for compiled code can be made ({error}); {WAY_OUT}"
        ) from error
    return folder / "kernels"


def _cache() -> Path:
    """The user's cache; as its specification says, a relative XDG_CACHE_HOME does not count."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return given if given.is_absolute() else Path(os.path.expanduser("~/.cache"))


def _refuse_others(path: Path) -> None:
    """RuntimeError for a file or folder that another user owns or may write to, and for a link."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise RuntimeError(f"{path}: a link, where a folder for compiled code belongs; {WAY_OUT}")
    if found.st_uid != os.geteuid():
        raise RuntimeError(
            f"{path}: belongs to user {found.st_uid}, not to {os.geteuid()} who runs this; "
            f"compiled code is taken from one's own folder alone; {WAY_OUT}"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RuntimeError(
            f"{path}: others may write to it (mode {stat.S_IMODE(found.st_mode):o}), so compiled "
            f"code is not taken from there; chmod 700 it, or {WAY_OUT}"
        )


def _key(source: Path, command: Sequence[str]) -> str:
    sources = [source, *sorted(source.parent.glob("*.h"))]
    parts = [path.read_text(encoding="utf-8") for path in sources]
    parts += [*command, os.path.realpath(command[0])]
    parts += [*platform.libc_ver(), sysconfig.get_platform(), str(sys.implementation.cache_tag)]
    return hashlib.sha256("\0".join([*parts, _processor()]).encode()).hexdigest()[:16]


def _processor() -> str:
    """What -march=native depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return (
        "".join(line for line in lines if line.startswith(("model name", "flags")))
        or os.uname().machine
    )


def _sound_library(path: Path, checksum: str) -> ctypes.CDLL | None:
    """A kept library; None with a notice where it is to be compiled anew."""
    try:
        _refuse_others(path)
        if _checksum(path) != checksum:
            log.warning(f"{path}: its content is not what was compiled; compiled anew")
            return None
        return ctypes.CDLL(str(path))
    except OSError as error:
        log.warning(f"{path}: does not load here ({error}); compiled anew")
        return None


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _compile(source: Path, command: Sequence[str], folder: Path, name: str) -> Path:
    """Run the compiler; its file appears in `folder` whole or not at all, its SHA-256 in the name.

    Raises RuntimeError with the compiler's message.
    """
    build = temporary_name(folder / "build")
    built = build / "out.so"
    try:
        remove_leftovers_of_the_dead(folder)
        shutil.rmtree(build, ignore_errors=True)  # of a killed process that had the same number
        build.mkdir()
        done = subprocess.run([*command, str(built)], capture_output=True, text=True)
        if done.returncode == 0 and built.exists():
            built.chmod(0o700)
            path = folder / f"{name}{_checksum(built)}.so"
            os.replace(built, path)
            return path
        reason = done.stderr.strip() or f"no file written, exit status {done.returncode}"
    except OSError as error:
        reason = str(error)
    finally:
        shutil.rmtree(build, ignore_errors=True)
    raise RuntimeError(
        f"{command[0]} could not compile {source} into {folder} "
        f"(CC=none in the environment trains without it): {reason}"
    )
