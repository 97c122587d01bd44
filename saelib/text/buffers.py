"""Strings and token ids of millions of pages in little memory."""

from __future__ import annotations

import mmap
import os
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from saelib.text.rows import CorpusError

PIECE = 1 << 20  # token ids written, moved or hashed at once
ID_BYTES = 4  # an int32


class Strings(Sequence):
    """Strings in one buffer of UTF-8: a fifth of what millions of them take in a tuple."""

    def __init__(self) -> None:
        self._utf8 = bytearray()
        self._ends = array("q", [0])

    def append(self, text: str) -> None:
        """Add a string at the end."""
        self._utf8 += text.encode()
        self._ends.append(len(self._utf8))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return tuple(self[i] for i in chosen)
        return self._utf8[self._ends[chosen] : self._ends[chosen + 1]].decode()


class TokenFile:
    """Token ids on their way to disk: a temporary file without a name, a context manager.

    Takes 4 bytes a token of disk, and 8 while they are reordered. Raises `CorpusError` naming the
    folder of temporary files where that has no room.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by __exit__
        self._ids = array("i")

    def __enter__(self) -> TokenFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def extend(self, ids: Iterable[int]) -> None:
        """Add ids at the end."""
        self._ids.extend(ids)
        if len(self._ids) >= PIECE:
            self._flush()

    def _flush(self) -> None:
        _write(self._file, self._ids)
        self._ids = array("i")

    def mapped(
        self, length: Int32[np.ndarray, "contexts"], order: Int64[np.ndarray, "contexts"]
    ) -> Int32[np.ndarray, "tokens"]:
        """All ids, memory-mapped: contexts of these lengths follow each other in `order`.

        The map outlives this object. Reordering reads the file, since reading through a map would
        fill memory.
        """
        self._flush()
        if length.min() == length.max():  # `order` is stable, so nothing moves
            return np.memmap(self._file, np.int32, "r")
        ends = np.cumsum(length, dtype=np.int64)
        step = max(1, PIECE // int(length.max()))
        with tempfile.TemporaryFile(buffering=0) as reordered:
            for first in range(0, len(order), step):
                contexts = order[first : first + step]
                _write(reordered, self._read(length[contexts], ends[contexts]))
            return np.memmap(reordered, np.int32, "r")

    def _read(self, lengths: np.ndarray, ends: np.ndarray) -> bytes:
        """Bytes of contexts of these lengths that end at these tokens."""
        bounds = zip(ID_BYTES * lengths, ID_BYTES * ends, strict=True)
        return b"".join(os.pread(self._file.fileno(), size, end - size) for size, end in bounds)


def _write(file: Any, data: array | bytes) -> None:
    """Write all of it. Unbuffered: a buffer without room would fail once more when it is closed."""
    rest = memoryview(data).cast("B")
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        folder = tempfile.gettempdir()
        raise CorpusError(
            f"{folder}: token ids cannot be kept there ({error.strerror}); "
            "set TMPDIR to a folder on a disk with room"
        ) from error


def release(mapped: np.ndarray) -> None:
    """Drop a mapped file's pages from this process's memory (`MADV_DONTNEED`)."""
    if isinstance(mapped.base, mmap.mmap):
        mapped.base.madvise(mmap.MADV_DONTNEED)
