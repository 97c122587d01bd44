"""Where each latent fires: latent after latent, in constant memory while it is gathered.

Batches come row by row; what is asked is asked latent by latent. `CodeSpool` sorts some millions of
entries at a time into a temporary file, and hands them back for a few latents at a time, rows
rising within each. So its memory depends on neither the tokens nor the latents.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy
from jaxtyping import Float32, Int32, Int64
from safetensors import safe_open

BLOCK = 1 << 21  # entries sorted at once: about 16 MB, and as much again while they are sorted
ENTRY = 4  # bytes of a row number, and of a value


class LatentCodes(NamedTuple):
    """Codes above 0 of consecutive latents, latent after latent, rows rising within one."""

    rows: Int32[np.ndarray, " fired"]
    values: Float32[np.ndarray, " fired"]
    starts: Int64[np.ndarray, " latents_plus_1"]

    @property
    def n_latents(self) -> int:
        return len(self.starts) - 1

    @property
    def counts(self) -> Int64[np.ndarray, " latents"]:
        """Rows on which each latent fires."""
        return np.diff(self.starts)

    @property
    def latents(self) -> Int64[np.ndarray, " fired"]:
        """The latent of each entry, counted from the first one held."""
        return np.repeat(np.arange(self.n_latents), self.counts)

    def of(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows on which a latent fires, and its values there."""
        part = slice(self.starts[latent], self.starts[latent + 1])
        return self.rows[part], self.values[part]


def sorted_codes(
    rows: np.ndarray, latents: np.ndarray, values: np.ndarray, n_latents: int
) -> LatentCodes:
    """Codes of entries whose rows rise within each latent, latents in any order."""
    order = np.argsort(latents, kind="stable")
    starts = np.zeros(n_latents + 1, dtype=np.int64)
    starts[1:] = np.cumsum(np.bincount(latents, minlength=n_latents))
    return LatentCodes(rows[order].astype(np.int32), values[order].astype(np.float32), starts)


class CodeSpool:
    """Entries in, row by row; codes out, a few latents at a time."""

    def __init__(self, n_latents: int, folder: Path) -> None:
        self.n_latents = n_latents
        self.counts = np.zeros(n_latents, dtype=np.int64)
        # without a name: gone with the process
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._starts: list[np.ndarray] = []  # of each block, within it
        self._offsets: list[int] = []  # of each block, in entries
        self._pending: list[tuple[np.ndarray, ...]] = []
        self._n_pending = 0

    def __enter__(self) -> CodeSpool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, rows: np.ndarray, latents: np.ndarray, values: np.ndarray) -> None:
        """Entries of rows above all that came before."""
        self._pending.append((rows, latents, values))
        self._n_pending += len(rows)
        if self._n_pending >= BLOCK:
            self.flush()

    def flush(self) -> None:
        """Write what is pending."""
        if not self._n_pending:
            return
        columns = [np.concatenate(column) for column in zip(*self._pending, strict=True)]
        codes = sorted_codes(*columns, self.n_latents)
        self._offsets.append(int(self.counts.sum()))
        self._starts.append(codes.starts)
        self.counts += codes.counts
        self._file.write(codes.rows.tobytes())
        self._file.write(codes.values.tobytes())
        self._pending = []
        self._n_pending = 0

    def groups(self) -> Iterator[tuple[int, LatentCodes]]:
        """(first latent, codes) of consecutive latents; a block's entries, or one latent's."""
        self.flush()
        first = 0
        ends = np.cumsum(self.counts)
        while first < self.n_latents:
            before = ends[first - 1] if first else 0
            stop = max(int(np.searchsorted(ends, before + BLOCK, side="right")), first + 1)
            yield first, self._read(first, stop)
            first = stop

    def _read(self, first: int, stop: int) -> LatentCodes:
        parts = [self._part(block, first, stop) for block in range(len(self._starts))]
        if not parts:
            empty = np.zeros(0, dtype=np.int64)
            parts = [(empty, empty, empty.astype(np.float32))]
        rows, latents, values = (np.concatenate(column) for column in zip(*parts, strict=True))
        return sorted_codes(rows, latents, values, stop - first)

    def _part(self, block: int, first: int, stop: int) -> tuple[np.ndarray, ...]:
        """(rows, latents less `first`, values) of some latents in a block."""
        starts = self._starts[block]
        size = int(starts[stop] - starts[first])
        base = 2 * ENTRY * self._offsets[block] + ENTRY * int(starts[first])
        rows = self._slice(base, size, np.int32)
        values = self._slice(base + ENTRY * int(starts[-1]), size, np.float32)
        latents = np.repeat(np.arange(stop - first), np.diff(starts[first : stop + 1]))
        return rows, latents, values

    def _slice(self, offset: int, size: int, dtype: type) -> np.ndarray:
        self._file.seek(offset)
        return np.frombuffer(self._file.read(size * ENTRY), dtype=dtype)


class CodesFile:
    """Codes written group by group into a safetensors file of rows, values and starts."""

    def __init__(self, path: Path, counts: Int64[np.ndarray, " n_latents"]) -> None:
        self.path = path
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype("<i8")
        entries = int(self.starts[-1])
        sizes = {"starts": self.starts.nbytes, "rows": ENTRY * entries, "values": ENTRY * entries}
        kinds = {"starts": "I64", "rows": "I32", "values": "F32"}
        header: dict[str, dict] = {}
        end = 0
        for name, size in sizes.items():
            shape = [len(self.starts) if name == "starts" else entries]
            span = [end, end + size]
            header[name] = {"dtype": kinds[name], "shape": shape, "data_offsets": span}
            end += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # the format's alignment
        self._begin = 8 + len(text)
        self._spans = {name: entry["data_offsets"][0] for name, entry in header.items()}
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text + self.starts.tobytes())
        self._file.truncate(self._begin + end)

    def __enter__(self) -> CodesFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, first: int, codes: LatentCodes) -> None:
        """The codes of latents from `first` on."""
        offset = self._begin + ENTRY * int(self.starts[first])
        for name, column in (("rows", codes.rows), ("values", codes.values)):
            self._file.seek(offset + self._spans[name])
            self._file.write(column.astype(column.dtype.newbyteorder("<")).tobytes())


def load_codes(path: Path) -> LatentCodes:
    """All codes of a file, in memory."""
    return LatentCodes(**safetensors.numpy.load_file(path))


def load_latent(path: Path, span: slice) -> tuple[np.ndarray, np.ndarray]:
    """Rows and values at entries `span`; the rest of the file is not read."""
    if span.start == span.stop:  # safetensors refuses an empty slice at the end
        return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32)
    with safe_open(path, "np") as file:
        return file.get_slice("rows")[span], file.get_slice("values")[span]
