"""What an index of features keeps, and how it is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from saelib.config import Checked


@dataclass(frozen=True)
class IndexOptions(Checked):
    """The numbers are per latent; a smaller dictionary or vocabulary gives what it has."""

    split: Literal["train", "val", "test"] = "test"  # of a store; own text has none
    contexts: int = 8  # kept of each kind: `contexts.KINDS`
    token_types: int = 10  # it fires on most
    vocabulary: int = 10  # promoted, and as many suppressed
    neighbours: int = 8  # by decoder cosine, and as many by co-firing
    batch: int = 2048  # rows encoded at once
    seed: int = 0  # of the random contexts

    def check(self) -> None:
        counts = ("contexts", "token_types", "vocabulary", "neighbours", "batch")
        self._at_least(1, "at least 1", *counts)
        self._at_least(0, "0 or more", "seed")
