"""Where things are, and how this process was started."""

from __future__ import annotations

import os
from pathlib import Path

ATLAS = "atlas"  # folder of a profile's pages of features


def root() -> Path:
    """The workbook's folder: `SAELIB_HOME` if set (tests use it), else the package's checkout."""
    return Path(os.environ.get("SAELIB_HOME") or Path(__file__).resolve().parents[1])


def data_dir(profile: str) -> Path:
    """Where a profile's store, runs, tables and executed notebooks lie: `data/<profile>`."""
    return root() / "data" / profile


def headless() -> bool:
    """Whether progress bars and live widgets are off: `SAELIB_HEADLESS` is set, as in tests."""
    return bool(os.environ.get("SAELIB_HEADLESS"))
