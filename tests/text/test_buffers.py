"""Strings in little memory."""

import numpy as np
import pytest

from saelib.text.buffers import Strings


def test_strings_are_a_sequence_of_what_was_put_in():
    given = ["Abel", "", "日本", "a\nb"]
    strings = Strings()
    for text in given:
        strings.append(text)
    assert list(strings) == given
    assert (len(strings), strings[-1], strings[np.int32(2)], strings[1:3]) == (
        4,
        "a\nb",
        "日本",
        ("", "日本"),
    )
    assert "日本" in strings
    with pytest.raises(IndexError):
        strings[4]
