"""The header of a GGUF file, checked against the file's size before any library trusts it.

A GGUF file says how long each of its parts is. The readers believe it: a damaged length makes them
loop for hours, fill the memory, or fail with an error that names no file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.constants import GGUF_DEFAULT_ALIGNMENT
from gguf.gguf_reader import READER_SUPPORTED_VERSIONS

MAGIC = b"GGUF"
SHORTEST = 24  # bytes: magic, version, two counts
MOST_DIMENSIONS = 4  # of a tensor, in ggml
WIDTHS = ("embedding_length", "feed_forward_length")  # each a side of some tensor
BLOCK = re.compile(r"blk\.(\d+)\.")
CODES = {  # numpy's letters for values of one size
    GGUFValueType.UINT8: "u1",
    GGUFValueType.INT8: "i1",
    GGUFValueType.UINT16: "u2",
    GGUFValueType.INT16: "i2",
    GGUFValueType.UINT32: "u4",
    GGUFValueType.INT32: "i4",
    GGUFValueType.FLOAT32: "f4",
    GGUFValueType.BOOL: "u1",
    GGUFValueType.UINT64: "u8",
    GGUFValueType.INT64: "i8",
    GGUFValueType.FLOAT64: "f8",
}


class GGUFError(ValueError):
    """A GGUF file is damaged; names the file and the place."""


class TensorEntry(NamedTuple):
    """What the header says of a tensor."""

    name: str
    shape: list[int]
    n_bytes: int
    offset: int  # from where the data begin


def check_gguf(path: Path) -> None:
    """Read a GGUF file's header, in a time that its size bounds.

    Raises `GGUFError` where it is damaged or cut short, and where it holds tensors of more blocks
    than its `block_count`, which would be left out in silence, or states sizes that no tensor has.
    """
    header = _Header(path)
    values = dict(header.values())
    tensors = list(header.tensors())
    align = values.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(align, int) or align < 1 or align & (align - 1):
        raise GGUFError(f"{path}: general.alignment = {align!r}, expected a power of two")
    start = -(-header.place // align) * align
    for tensor in tensors:
        if start + tensor.offset + tensor.n_bytes > header.size:
            raise GGUFError(
                f"{path}: damaged or cut short, tensor {tensor.name!r} ends at byte "
                f"{start + tensor.offset + tensor.n_bytes} of {header.size}"
            )
    _check_sizes(path, values, tensors)


def _check_sizes(path: Path, values: dict[str, Any], tensors: list[TensorEntry]) -> None:
    """Refuse tensors of blocks past those that the header counts, and sizes that no tensor has."""
    architecture = values.get("general.architecture")
    key = f"{architecture}.block_count"
    count = values.get(key)
    if not isinstance(count, int) or count > len(tensors):
        raise GGUFError(
            f"{path}: {key} = {count!r}, expected the number of blocks, "
            f"at most one for each of the {len(tensors)} tensors"
        )
    names = sorted(tensor.name for tensor in tensors)
    beyond = [name for name in names if (block := BLOCK.match(name)) and int(block[1]) >= count]
    if beyond:
        raise GGUFError(
            f"{path}: {key} = {count}, but it holds tensors of later blocks, as {beyond[0]!r}"
        )
    largest = max((size for tensor in tensors for size in tensor.shape), default=0)
    for name in WIDTHS:
        width = values.get(f"{architecture}.{name}")
        if isinstance(width, int) and width > largest:
            raise GGUFError(
                f"{path}: {architecture}.{name} = {width}, but no side of a tensor is longer than "
                f"{largest}"
            )


class _Header:
    """The header from its beginning; what is read moves on, and must be read in this order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
        if self.size < SHORTEST or magic != MAGIC:
            raise GGUFError(f"{path}: not a GGUF file (its first bytes are not {MAGIC.decode()})")
        self._data = np.memmap(path, mode="r")
        self.place = len(MAGIC)
        self._order = "<"
        version = self._number("u4", "version")
        if version & 65535 == 0:  # of a machine of the other byte order
            self._order = ">"
            version = int.from_bytes(version.to_bytes(4, "little"), "big")
        if version not in READER_SUPPORTED_VERSIONS:
            accepted = ", ".join(map(str, READER_SUPPORTED_VERSIONS))
            raise GGUFError(f"{path}: GGUF version {version}, expected one of {accepted}")
        self._n_tensors = self._number("u8", "number of tensors")
        self._n_values = self._number("u8", "number of values")

    def values(self) -> Iterator[tuple[str, Any]]:
        """(name, value) of the metadata; of an array None."""
        for number in range(self._n_values):
            name = self._text(f"name of value {number}")
            kind = self._kind(GGUFValueType, name)
            yield name, self._value(kind, name)

    def tensors(self) -> Iterator[TensorEntry]:
        """The entries of all tensors, after the metadata."""
        for number in range(self._n_tensors):
            name = self._text(f"name of tensor {number}")
            n_dims = self._number("u4", name)
            if n_dims > MOST_DIMENSIONS:
                raise self._damage(name, f"{n_dims} dimensions")
            shape = [self._number("u8", name) for _ in range(n_dims)]
            block, size = GGML_QUANT_SIZES[self._kind(GGMLQuantizationType, name)]
            n_bytes = math.prod(shape) * size // block
            yield TensorEntry(name, shape, n_bytes, self._number("u8", name))

    def _value(self, kind: GGUFValueType, name: str) -> Any:
        if kind in CODES:
            return self._number(CODES[kind], name)
        if kind == GGUFValueType.STRING:
            return self._text(name)
        item = self._kind(GGUFValueType, name)
        count = self._number("u8", name)
        if item in CODES:
            self._take(count * np.dtype(CODES[item]).itemsize, name)
        elif item == GGUFValueType.STRING:
            for _ in range(count):
                self._take(self._number("u8", name), name)
        else:
            raise self._damage(name, "an array of arrays")
        return None

    def _take(self, n_bytes: int, name: str) -> np.ndarray:
        if self.place + n_bytes > self.size:
            raise GGUFError(
                f"{self.path}: damaged or cut short, {name!r} ends at byte "
                f"{self.place + n_bytes} of {self.size}"
            )
        part = self._data[self.place : self.place + n_bytes]
        self.place += n_bytes
        return part

    def _number(self, code: str, name: str) -> Any:
        """A number; whole ones as Python's, which do not overflow."""
        dtype = np.dtype(self._order + code)
        return self._take(dtype.itemsize, name).view(dtype)[0].item()

    def _text(self, name: str) -> str:
        data = self._take(self._number("u8", name), name).tobytes()
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self._damage(name, f"no UTF-8, {error}") from error

    def _kind(self, kinds: Any, name: str) -> Any:
        number = self._number("u4", name)
        try:
            return kinds(number)
        except ValueError as error:
            raise self._damage(name, str(error)) from error

    def _damage(self, name: str, reason: str) -> GGUFError:
        return GGUFError(f"{self.path}: damaged at {name!r} ({reason})")
