"""The columns of an index's table, one line each: name, type, and what it says of a latent.

Activations are in normalised units, over ordinary tokens; token ids become texts in a column of the
name without `_id`. To add a column: its line here, its values in `build._columns`, a test against
the plain computation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd


@dataclass(frozen=True)
class LatentColumn:
    """One column of the table."""

    name: str
    dtype: Literal["int64", "float64", "bool"]
    label: str  # on an axis or in a list


TABLE = (
    LatentColumn("n_fired", "int64", "ordinary tokens it fires on"),
    LatentColumn("density", "float64", "share of ordinary tokens it fires on"),
    LatentColumn("mean", "float64", "mean activation where it fires"),
    LatentColumn("max", "float64", "largest activation"),
    LatentColumn("max_token_id", "int64", "token of the largest activation"),  # -1 of a dead one
    LatentColumn("share_first", "float64", "share of its firings on first tokens"),
    LatentColumn("share_sink", "float64", "share of its firings on sinks"),
    LatentColumn("share_ordinary", "float64", "share of its firings on ordinary tokens"),
    LatentColumn("concentration", "float64", "share of its mass on its commonest token type"),
    LatentColumn("n_types", "float64", "token types it fires on (exp of the mass' entropy)"),
    LatentColumn("top_token_id", "int64", "token type with most of its mass"),  # -1 of a dead one
    LatentColumn("dead", "bool", "never fires on these ordinary tokens"),
    LatentColumn("revived", "bool", "given new weights in training"),
    LatentColumn("promoted_id", "int64", "token it promotes most"),  # -1 without a model
    LatentColumn("suppressed_id", "int64", "token it suppresses most"),  # -1 without a model
    LatentColumn("nearest", "int64", "nearest latent by decoder cosine"),  # -1 of a single latent
    LatentColumn("nearest_cosine", "float64", "decoder cosine with its nearest latent"),
    LatentColumn("companion", "int64", "latent that fires with it most (Jaccard)"),  # -1: none does
    LatentColumn("companion_jaccard", "float64", "co-firing with its nearest companion (Jaccard)"),
)
LABELS = {column.name: column.label for column in TABLE}
TOKEN_IDS = tuple(column.name for column in TABLE if column.name.endswith("_id"))


def write_latents(path: Path, table: pd.DataFrame) -> None:
    """Write the table, a latent a line."""
    types = {column.name: column.dtype for column in TABLE}
    table[list(types)].astype(types).to_csv(path, index_label="latent")


def read_latents(path: Path) -> pd.DataFrame:
    """The table, by latent.

    Raises:
        ValueError: it lacks a column, or holds a word where a number belongs; names the file.
    """
    types = {column.name: column.dtype for column in TABLE}
    try:
        return pd.read_csv(path, index_col="latent", dtype=types)[list(types)]
    except (ValueError, KeyError, OverflowError) as error:
        raise ValueError(f"{path}: damaged ({error})") from error
