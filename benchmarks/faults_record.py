"""Trials of a campaign kept line by line, and its rows beside those of others in one JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def kept(log: Path | None) -> dict[int, dict[str, Any]]:
    """Trials of a log by number, each as it ended last; a line cut by a kill is dropped."""
    if log is None or not log.exists():
        return {}
    lines = log.read_text(encoding="utf-8").split("\n")[:-1]
    return {trial["number"]: trial for trial in map(json.loads, lines)}


def keep(log: Path | None, trial: Mapping[str, Any]) -> None:
    """Add a trial to a log."""
    if log is not None:
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(trial) + "\n")


def add_rows(
    path: Path | None, campaign: str, rows: Iterable[Mapping[str, Any]], about: Mapping[str, Any]
) -> None:
    """Put a campaign's rows into a JSON file in the place of its earlier ones."""
    if path is None:
        return
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    others = [row for row in before if row["campaign"] != campaign]
    mine = [{"campaign": campaign, "machine": dict(about), **row} for row in rows]
    path.write_text(json.dumps([*others, *mine], indent=1) + "\n", encoding="utf-8")
