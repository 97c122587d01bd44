"""Every test runs without a display and without the hub; `home` gives it a workbook folder of its own."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("SAELIB_HEADLESS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the embedded model and text come from the package index, not the hub
os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")  # silences a warning of jupyter_core in the notebooks' kernels


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workbook folder: `saelib.config.root()` for the test and for the notebooks it runs."""
    monkeypatch.setenv("SAELIB_HOME", str(tmp_path))
    (tmp_path / "notebooks" / "profiles").mkdir(parents=True)
    return tmp_path
