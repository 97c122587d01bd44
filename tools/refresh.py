"""Execute the source notebooks at smoke size and replace them in place, each only on success.

python tools/refresh.py [NOTEBOOK …]        # name, number or path; none: all; `make refresh`
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from saelib.run.execution import execute
from saelib.run.source_notebooks import sources


def refresh(names: Sequence[str] = ()) -> list[Path]:
    """Re-execute notebooks with their own literals (the smoke size).

    Each is replaced in place, only on success.
    """
    paths = sources(names)
    for path in paths:
        temp = path.with_name(f".{path.name}")
        try:
            execute(path, temp, {})
            os.replace(temp, path)
        finally:
            temp.unlink(missing_ok=True)
    return paths


def main(names: Sequence[str]) -> int:
    try:
        print("refreshed:", ", ".join(path.name for path in refresh(names)))
    except ValueError as error:  # no such notebook
        print(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
