"""Lines, blocks and separated documents: as plain code would cut them, and none without a bound."""

import io
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saelib.text import lines
from saelib.text.lines import bounded_lines, separated, text_blocks

PIECES = st.lists(
    st.sampled_from([b"a", b"bb", b"\n", b" ", b"<|>", b"<", b"|", b">"]), max_size=60
)
four_bytes = patch.object(lines, "LINE_BYTES", 4)
read_by_three = patch.object(lines, "PIECE", 3)


@settings(max_examples=150, deadline=None)
@given(pieces=PIECES)
def test_a_line_is_whole_or_none(pieces):
    data = b"".join(pieces)
    expected = [line if len(line) <= 4 else None for line in io.BytesIO(data)]
    with four_bytes:
        assert list(bounded_lines(io.BytesIO(data))) == expected


@settings(max_examples=150, deadline=None)
@given(pieces=PIECES)
def test_a_block_is_a_run_of_lines_that_are_not_blank(pieces):
    data = b"".join(pieces)
    blocks: dict[int, bytes] = {}
    first = 0
    for number, line in enumerate(io.BytesIO(data), 1):
        first = (first or number) if line.strip() else 0
        if first:
            blocks[first] = blocks.get(first, b"") + line
    with patch.object(lines, "LINE_BYTES", 20):
        bounded = [(n, block if len(block) <= 20 else None) for n, block in blocks.items()]
        assert list(text_blocks(io.BytesIO(data))) == bounded


@settings(max_examples=150, deadline=None)
@given(pieces=PIECES)
def test_a_document_is_what_stands_between_separators(pieces):
    data = b"".join(pieces)
    expected = []
    place = 0
    for document in data.split(b"<|>"):
        text = document.strip()
        line = 1 + data.count(b"\n", 0, place + document.find(text))
        expected += [(line, text)] if text else []
        place += len(document) + len(b"<|>")
    with read_by_three:
        assert list(separated(io.BytesIO(data), b"<|>")) == expected


@pytest.mark.parametrize("separator", [b"|", b"<|>"])
def test_a_document_that_is_too_long_is_none_and_the_next_one_has_its_line(separator):
    data = separator.join([b"one", b"two\n3\nfour\n", b"\nfive", b"six\n77"])
    with patch.object(lines, "LINE_BYTES", 6), read_by_three:
        documents = list(separated(io.BytesIO(data), separator))
    assert documents == [(1, b"one"), (1, None), (5, b"five"), (5, b"six\n77")]
