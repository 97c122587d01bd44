"""Tables of `matches` on disk, one a pair of SAEs, and what they say together of each latent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from saelib.measure.features.bound_table import read_bound, write_bound
from saelib.measure.features.identity import SHORT
from saelib.measure.features.index import FeatureIndex
from saelib.measure.features.twins import matches

VERSION = 1  # raised where `matches` computes another number
BEST = "twin"
BEST_LABEL = "decoder cosine with its nearest twin in another SAE"


class Pair(NamedTuple):
    """Two SAEs on one text; a table says of each latent of `a` its match in `b`."""

    a: str  # checksums
    b: str
    corpus_id: str
    split: str

    def path(self, folder: Path) -> Path:
        """The pair's file in a folder of such tables."""
        return folder / f"{self.a[:SHORT]}-{self.b[:SHORT]}-{self.split}-v{VERSION}.csv"


def read_matches(pair: Pair, folder: Path) -> pd.DataFrame | None:
    """The table of `matches`, None where it is not there.

    Raises:
        ValueError: the file is damaged or of another pair or text; names it.
    """
    return read_bound(pair.path(folder), pair._asdict())


def kept_matches(pair: Pair, a: FeatureIndex, b: FeatureIndex, folder: Path) -> pd.DataFrame:
    """The table of `matches(a, b)`, computed and kept."""
    write_bound(pair.path(folder), matches(a, b), pair._asdict())
    return pd.DataFrame(read_matches(pair, folder))


def best_twin(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame | None:
    """By latent, the largest cosine among its matches in SAEs of its site; None without any.

    A table of one column, `BEST`; `attrs["labels"]` has what it says.
    """
    cosines = pd.DataFrame({name: table["cosine"] for name, table in tables.items()})
    cosines = cosines.dropna(axis=1, how="all")
    if cosines.empty:
        return None
    best = cosines.max(axis=1).to_frame(BEST)
    best.attrs["labels"] = {BEST: BEST_LABEL}
    return best
