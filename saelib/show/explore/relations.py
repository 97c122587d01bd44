"""A latent in the SAEs that its own is compared with: is this feature real?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from saelib.show.explore.records import plain


def twin_rows(
    matches: Mapping[str, pd.DataFrame], latent: int, numbers: Mapping[str, int]
) -> list[dict[str, Any]]:
    """A latent's twins, largest cosine first, then those of other sites by Jaccard.

    matches: by name, `features.matches`. numbers: of the SAEs that the browser can open, by name.
    """
    rows = [_row(name, table.loc[latent], numbers.get(name)) for name, table in matches.items()]
    return sorted((row for row in rows if row["latent"] >= 0), key=_nearness)


def _row(name: str, match: pd.Series, number: int | None) -> dict[str, Any]:
    return {
        "subject": number,
        "name": name,
        "latent": int(match["twin"]),
        "cosine": plain(float(match["cosine"])),
        "jaccard": plain(float(match["jaccard"])),
        "mutual": bool(match["mutual"]),
    }


def _nearness(row: Mapping[str, Any]) -> tuple[bool, float, float]:
    return (row["cosine"] is None, -(row["cosine"] or 0.0), -(row["jaccard"] or 0.0))
