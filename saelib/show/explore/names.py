"""What lists call an SAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saelib.show.style import looks_of


def subject_name(row: Mapping[str, Any]) -> str:
    """What a list says of a run: "site 15 · plain SAE · λ 1.3 · L0 31.2 · seed 0"."""
    knob = f"λ {row['lambda']:g}" if row["lambda"] else ""
    arm = looks_of([row["arm"]])[row["arm"]].label
    parts = (f"site {row['site']}", arm, knob, f"L0 {row['l0']:.3g}", f"seed {row['seed']}")
    return " · ".join(part for part in parts if part)
