"""The published copies of a recorded profile: a hash of each one's code, and which are older.

python tools/published.py [PROFILE …]       # write data/recorded/<profile>/sources.json

The hash says that nobody edits a copy, and whether it shows its notebook as it is today.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from saelib.env import data_dir, root
from saelib.files import read_json, write_json
from saelib.run.source_notebooks import code_cells, notebooks_dir, read_notebook


def copies(profile: str) -> list[Path]:
    """The executed notebooks that the repository keeps of a profile, in reading order."""
    return sorted((root() / "notebooks" / "published" / profile).glob("*.ipynb"))


def code_hash(path: Path) -> str:
    """SHA-256 of a notebook's code cells, papermill's cell apart."""
    sources = [cell["source"] for cell in code_cells(read_notebook(path))]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def hashes(paths: Iterable[Path]) -> dict[str, str]:
    """Name -> hash of its code, of notebooks."""
    return {path.stem: code_hash(path) for path in paths}


def recorded_hashes(profile: str) -> dict[str, str]:
    """What `sources.json` says of a profile's copies; empty where none is recorded."""
    path = data_dir("recorded") / profile / "sources.json"
    return read_json(path) if path.is_file() else {}


def older(profile: str) -> list[str]:
    """Notebooks whose published copy has other code than the notebook has today."""
    now = hashes(notebooks_dir().glob("[0-9]*.ipynb"))
    return [name for name, digest in recorded_hashes(profile).items() if now.get(name) != digest]


def main(profiles: Sequence[str]) -> int:
    for profile in profiles:
        path = data_dir("recorded") / profile / "sources.json"
        write_json(path, hashes(copies(profile)))
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
