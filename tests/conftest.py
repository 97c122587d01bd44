"""Every test runs without a display and the hub; `home` gives it a workbook folder of its own."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # tests import from `helpers`, as do the processes they start
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, [HERE.parent, HERE]))

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("SAELIB_HEADLESS", "1")
os.environ.setdefault(
    "HF_HUB_OFFLINE", "1"
)  # the embedded model and text come from the package index, not the hub
os.environ.setdefault(
    "JUPYTER_PLATFORM_DIRS", "1"
)  # silences a warning of jupyter_core in the notebooks' kernels


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from helpers.order import longest_first  # found by the path above

    longest_first(items)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workbook folder: `saelib.config.root()` for the test and the notebooks it runs."""
    monkeypatch.setenv("SAELIB_HOME", str(tmp_path))
    (tmp_path / "notebooks" / "profiles").mkdir(parents=True)
    return tmp_path


@pytest.fixture(autouse=True)
def same_home() -> Iterator[None]:
    """No test leaves another workbook folder behind for the next one."""
    before = os.environ.get("SAELIB_HOME")
    yield
    if before is None:
        os.environ.pop("SAELIB_HOME", None)
    else:
        os.environ["SAELIB_HOME"] = before


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No C compiler is found, whatever was compiled before."""
    from saelib.sae.sparse import library  # torch is loaded where it is needed alone

    monkeypatch.setenv("CC", "no-such-compiler")
    library.compiled.cache_clear()
    yield
    library.compiled.cache_clear()
