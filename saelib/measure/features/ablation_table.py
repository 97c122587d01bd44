"""What ablations were measured of an SAE, on disk: one table, a line a latent."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from saelib.files import locked
from saelib.measure.features.bound_table import read_bound, write_bound
from saelib.measure.features.identity import SHORT

COLUMNS = (
    *("n_contexts", "n_targets", "n_fired"),
    *("ce_clean", "ce_ablated", "delta_ce", "delta_per_firing"),
)
VERSION = 1  # raised where `ablation_losses` computes another number


class Measured(NamedTuple):
    """What a table is of: an SAE by its checksum, pages, and n contexts a latent at most."""

    sae: str
    corpus_id: str
    split: str
    n: int

    def path(self, folder: Path) -> Path:
        """Its file in a folder of such tables."""
        return folder / f"{self.sae[:SHORT]}-{self.split}-{self.n}-v{VERSION}.csv"


def read_losses(measured: Measured, folder: Path) -> pd.DataFrame:
    """Lines of `ablation_losses` by latent; none where nothing was measured.

    Raises:
        ValueError: the file is damaged or of something else; names it.
    """
    table = read_bound(measured.path(folder), measured._asdict())
    if table is None:
        return pd.DataFrame(columns=list(COLUMNS)).rename_axis("latent")
    return table


def kept_losses(measured: Measured, folder: Path, lines: pd.DataFrame) -> pd.DataFrame:
    """All lines that are there after these are added, those measured anew in place of old ones.

    Raises:
        ValueError: the file is damaged or of something else; names it.
    """
    path = measured.path(folder)
    with locked(path.with_suffix(".lock")):
        there = read_losses(measured, folder)
        others = there.drop(lines.index, errors="ignore")
        table = pd.concat([others, lines]) if len(others) else lines
        write_bound(path, table.sort_index(), measured._asdict())
    return read_losses(measured, folder)
