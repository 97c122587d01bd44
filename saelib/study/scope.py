"""What captions and sentences say of a run's size: model, training seeds, test pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelib.measure.bootstrap import LEAST_PAGES
from saelib.text.models import label_of


@dataclass(frozen=True)
class Scope:
    """The size of a comparison: which model, how many training seeds, how many test pages."""

    model: str
    n_seeds: int
    n_pages: int

    @classmethod
    def of_workspace(cls, ws: Any, seeds: Sequence[int], n_pages: int) -> Scope:
        """The scope of SAEs trained in workspace `ws` with `seeds`, measured on `n_pages` pages."""
        return cls(model_label(ws.identity["model"]), len(seeds), n_pages)

    @property
    def trainings(self) -> str:
        """The number of training seeds in words: "1 seed", "3 seeds"."""
        return f"{self.n_seeds} seed{'s' * (self.n_seeds > 1)}"

    @property
    def interval(self) -> str:
        """What an interval is: of test pages, and of seeds where there are several."""
        return interval_words(self.n_pages, self.n_seeds)

    @property
    def matched_interval(self) -> str:
        """What an interval at matched L0 is: it also holds what a curve may bend between points."""
        if self.n_pages < LEAST_PAGES:
            return self.interval
        return f"{self.interval}, wider by what a curve may bend"

    @property
    def note(self) -> str:
        """The end of a caption: seeds and model."""
        return f"{self.trainings}. {self.model}."


def interval_words(n_pages: int, n_seeds: int, pages: str = "test pages") -> str:
    """What an interval over pages and, where there are several, seeds is; or why there is none."""
    if n_pages < LEAST_PAGES:
        return f"no interval: {n_pages} {pages}, and {LEAST_PAGES} or more have one"
    return f"95 % bootstrap over {n_pages} {pages}{' and seeds' * (n_seeds > 1)}"


def model_label(model: str) -> str:
    """A model's name for readers: a named model in words, a folder without its path."""
    if (label := label_of(model)) is not None:
        return label
    return Path(model).name if Path(model).is_absolute() else model


def sites_label(sites: Sequence[int]) -> str:
    """Sites in words: "site 15", "sites 2, 15, 29"."""
    return f"site{'s' * (len(sites) > 1)} {', '.join(map(str, sites))}"
