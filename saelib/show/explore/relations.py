"""A latent in the SAEs that its own is compared with: is this feature real?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from saelib.measure.features import FeatureIndex, twins
from saelib.measure.lens import Lens
from saelib.show.explore.records import plain


class Relations:
    """The twins of all latents of one SAE, by relative; indices that are missing are built."""

    def __init__(self, lens: Lens) -> None:
        self.tables = {
            relative.name: twin_table(lens.index, relative.load().index)
            for relative in lens.relatives
        }

    def rows(self, latent: int, numbers: Mapping[str, int]) -> list[dict[str, Any]]:
        """A latent's twins, largest cosine first, then those of other sites by Jaccard.

        numbers: of the SAEs that the browser can open, by name.
        """
        rows = [
            _row(name, table.loc[latent], numbers.get(name)) for name, table in self.tables.items()
        ]
        return sorted((row for row in rows if row["latent"] >= 0), key=_nearness)


def twin_table(a: FeatureIndex, b: FeatureIndex) -> pd.DataFrame:
    """For each latent of a its match in b: latent (-1: none), cosine, jaccard, mutual.

    At one site the match is the nearest by decoder cosine, else by co-firing.
    """
    table = twins(a, b)
    if a.manifest["site"] != b.manifest["site"]:
        names = {"firing_twin": "latent", "firing_mutual": "mutual"}
        kept = ["firing_twin", "cosine", "jaccard", "firing_mutual"]
        return table[kept].rename(columns=names)
    pairs = table["twin"].items()
    table["jaccard"] = [_jaccard(a, latent, b, int(twin)) for latent, twin in pairs]
    return table[["twin", "cosine", "jaccard", "mutual"]].rename(columns={"twin": "latent"})


def _jaccard(a: FeatureIndex, latent: int, b: FeatureIndex, twin: int) -> float:
    """Tokens on which both fire over those on which either does; 0 where neither fires."""
    if twin < 0:
        return 0.0
    rows = _rows(a, latent)
    others = _rows(b, twin)
    both = len(np.intersect1d(rows, others, assume_unique=True))
    return both / max(len(rows) + len(others) - both, 1)


def _rows(index: FeatureIndex, latent: int) -> np.ndarray:
    starts = index.codes.starts
    return index.codes.rows[starts[latent] : starts[latent + 1]]


def _row(name: str, match: pd.Series, number: int | None) -> dict[str, Any]:
    return {
        "subject": number,
        "name": name,
        "latent": int(match["latent"]),
        "cosine": plain(float(match["cosine"])),
        "jaccard": plain(float(match["jaccard"])),
        "mutual": bool(match["mutual"]),
    }


def _nearness(row: Mapping[str, Any]) -> tuple[bool, float, float]:
    return (row["cosine"] is None, -(row["cosine"] or 0.0), -(row["jaccard"] or 0.0))
