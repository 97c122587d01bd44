"""Tokens as they stand in their text, and a context as text with its peak marked."""

from __future__ import annotations

from typing import Any

from saelib.measure.features.contexts import ContextWindow


def token_pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """Text of each token as it stands in the text: joined they are the decoded whole.

    A character of several tokens goes to the last of them, the others are empty.
    """
    pieces, before = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        text = text if end == len(ids) else text.rstrip("\ufffd")  # an unfinished character
        pieces.append(text[len(before) :])
        before = max(before, text, key=len)
    return pieces


def is_writable(text: str) -> bool:
    """Whether a text can be written as UTF-8; half of a surrogate pair, as in JSON, cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def marked_text(tokenizer: Any, window: ContextWindow) -> str:
    """A context's text, the token of its peak «like this», spaces outside the marks."""
    pieces = token_pieces(tokenizer, window.token_ids.tolist())
    return "".join(
        marked(piece) if place == window.peak else piece for place, piece in enumerate(pieces)
    )


def marked(piece: str) -> str:
    """A token's text «like this», spaces around it outside the marks; blank text as it is."""
    word = piece.strip()
    before, _, after = piece.partition(word) if word else ("", "", "")
    return f"{before}«{word or piece}»{after}"
