"""Other Python processes, which find no module in the folder that they are started in.

That folder may be one of data, of others. `python -c` and `python -m` look there first, and so does
a Python whose `PYTHONPATH` has an empty entry.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

PACKAGE = str(Path(__file__).parents[2])  # the folder in which this package lies


def python(*arguments: str) -> list[str]:
    """The command that starts this Python, without its working folder among those of modules."""
    return [sys.executable, "-P", *arguments]


def environment(**variables: str) -> dict[str, str]:
    """This process's variables and others; where modules are found, this package comes first."""
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join([PACKAGE, *filter(None, folders)])
    return {**os.environ, "PYTHONPATH": path, **variables}
