"""Text -> token ids in which a control token, such as <s>, that a page spells stays text.

A token that a vocabulary has added without calling it special, such as a run of spaces or
`<think>`, stays one token: it was one wherever the model's training text spelt it, and nothing in a
tokenizer tells markup from words among these.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from saelib.text.rows import CorpusError


def control_tokens(tokenizer: Any) -> dict[int, str]:
    """The tokenizer's special tokens by id, but for the one of unknown characters."""
    special = {n: t.content for n, t in tokenizer.added_tokens_decoder.items() if t.special}
    return {n: token for n, token in special.items() if n != tokenizer.unk_token_id}


def token_ids(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Ids of each text alone: no token is added, none is one of control.

    Raises `CorpusError` where the tokenizer makes such a token of other characters than its own.
    """
    control = control_tokens(tokenizer)
    ids = _encoded(texts, tokenizer)
    return [
        page if control.keys().isdisjoint(page) else _spelt(text, tokenizer, control)
        for text, page in zip(texts, ids, strict=True)
    ]


def _encoded(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    # verbose=False: a page longer than the model's window is no mistake here, it is cut
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    return tokenizer(list(texts), **options)["input_ids"]


def _spelt(text: str, tokenizer: Any, control: dict[int, str]) -> list[int]:
    """Ids of a text that holds a control token's spelling, which some vocabularies have as a piece.

    The text is cut after the first character of each.
    """
    longest_first = sorted(filter(None, control.values()), key=len, reverse=True)
    spelling = re.compile("|".join(map(re.escape, longest_first)))
    cuts = [0, *(match.start() + 1 for match in spelling.finditer(text)), len(text)]
    pieces = [text[first:last] for first, last in pairwise(cuts)]
    ids = [n for piece in _encoded(pieces, tokenizer) for n in piece]
    left = sorted({control[n] for n in ids if n in control})
    if left:
        raise CorpusError(
            f"the tokenizer makes its control tokens {', '.join(map(repr, left))} of a page's text "
            f"that begins {text[:40]!r}: no such page can be read as text"
        )
    return ids
