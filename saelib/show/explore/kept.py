"""What lies beside an SAE's index that the browser shows: notes, twins, ablations, descriptions."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd

from saelib.measure.descriptions import kept_descriptions
from saelib.measure.features.ablation_table import COLUMNS
from saelib.measure.features.twin_tables import best_twin
from saelib.measure.lens import Lens
from saelib.show.explore.notes import Note, Notes

log = logging.getLogger(__name__)

SCORE = "score"
SCORE_LABEL = "balanced accuracy of its description"


class Kept(NamedTuple):
    """Everything by latent; `warnings` say of each file that cannot be read why."""

    notes: dict[int, Note]
    matches: dict[str, pd.DataFrame]  # `Lens.kept_matches`
    n_damaged: int  # tables of matches that cannot be read
    ablations: pd.DataFrame  # `Lens.ablations`
    descriptions: pd.DataFrame  # description, score
    warnings: tuple[str, ...]

    def columns(self) -> pd.DataFrame | None:
        """Further numbers for the table of all latents; `attrs["labels"]` says what they are."""
        parts = []
        if (best := best_twin(self.matches)) is not None:
            parts.append(best)
        if len(self.descriptions):
            scores = self.descriptions[[SCORE]].copy()
            scores.attrs["labels"] = {SCORE: SCORE_LABEL}
            parts.append(scores)
        if not parts:
            return None
        table = pd.concat(parts, axis=1)
        labels = [part.attrs["labels"] for part in parts]
        table.attrs["labels"] = {name: text for each in labels for name, text in each.items()}
        return table


def kept_of(lens: Lens, notes: Notes) -> Kept:
    """What was kept of a lens's SAE; what is damaged is left out, with a warning that names it."""
    warnings: list[str] = []
    damaged: list[ValueError] = []

    def warn(name: str, error: Exception) -> None:
        sentence = " ".join(str(error).split())
        log.warning(f"{name} are not shown: {sentence}")
        warnings.append(sentence)

    def read(name: str, reader: Callable[[], Any], empty: Any) -> Any:
        try:
            return reader()
        except (ValueError, OSError) as error:
            warn(name, error)
            return empty

    def twins() -> dict[str, pd.DataFrame]:
        return lens.kept_matches(on_damage=damaged.append)

    none = pd.DataFrame(columns=["latent", "description", SCORE])
    matches = read("twins", twins, {})
    for error in damaged:
        warn("twins of one SAE", error)
    described = read("descriptions", lambda: kept_descriptions(lens), none)
    return Kept(
        notes=read("notes", lambda: notes.read(lens.index.manifest["sae"]), {}),
        matches=matches,
        n_damaged=len(damaged),
        ablations=read("ablations", lens.ablations, pd.DataFrame(columns=list(COLUMNS))),
        descriptions=described.set_index("latent")[["description", SCORE]],
        warnings=tuple(warnings),
    )
