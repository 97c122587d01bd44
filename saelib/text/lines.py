"""Lines, blocks of lines and separated documents of a stream of bytes, in bounded memory.

What is longer than the bounds comes as None and is passed over in pieces, so that a file which
unpacks to one huge line takes no more memory than any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from io import BufferedIOBase
from itertools import chain

PAGE_CHARS = 4_000_000  # of the longest page; the tokenizer takes about 100 bytes for each
# Of the longest line, block of lines, text file, and page of a dump: a longest page has no more.
LINE_BYTES = 4 * PAGE_CHARS
PIECE = 1 << 20  # bytes read at once
TOO_LONG = f"more than {LINE_BYTES:,} bytes, the most that is read of one page"


def bounded_lines(stream: BufferedIOBase) -> Iterator[bytes | None]:
    """Lines with their ends; None for one of more than `LINE_BYTES`."""
    while line := stream.readline(LINE_BYTES + 1):
        yield line if len(line) <= LINE_BYTES else None
        while len(line) >= LINE_BYTES and not line.endswith(b"\n"):
            line = stream.readline(LINE_BYTES)


def text_blocks(stream: BufferedIOBase) -> Iterator[tuple[int, bytes | None]]:
    """(first line, bytes) of each run of lines that are not blank; None for too many bytes."""
    block = bytearray()
    first = 0  # 0: in no block
    whole = True
    for number, line in enumerate(chain(bounded_lines(stream), [b""]), 1):
        if line is None or line.strip():
            first = first or number
            fits = line is not None and len(block) + len(line) <= LINE_BYTES
            if whole and not fits:
                yield first, None
            whole = whole and fits
            if whole:
                block += line
            else:
                block.clear()
        else:
            if first and whole:
                yield first, bytes(block)
            block = bytearray()
            first = 0
            whole = True


def separated(stream: BufferedIOBase, separator: bytes) -> Iterator[tuple[int, bytes | None]]:
    """(first line, bytes) of each document between separators, stripped, blank ones left out.

    None stands for one of more than `LINE_BYTES`.
    """
    rest = bytearray()  # read, and not yet given out
    line = 1
    whole = True
    for piece in chain(iter(partial(stream.read, PIECE), b""), [separator]):
        place = max(0, len(rest) - len(separator) + 1)
        rest += piece
        while (end := rest.find(separator, place)) >= 0:
            document = bytes(rest[:end]).strip()
            if whole and document:
                first = line + rest.count(b"\n", 0, rest.find(document, 0, end))
                yield first, document if len(document) <= LINE_BYTES else None
            line += rest.count(b"\n", 0, end)
            del rest[: end + len(separator)]
            place = 0
            whole = True
        surplus = len(rest) - len(separator) + 1  # a separator may have begun in the last bytes
        if surplus > LINE_BYTES:
            if whole:
                yield line, None
            whole = False
            line += rest.count(b"\n", 0, surplus)
            del rest[:surplus]
