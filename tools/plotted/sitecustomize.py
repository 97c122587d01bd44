"""Write the data behind every saved figure as JSON: a hook for `tools/compare.py`.

Not a part of the package.

    SAELIB_PLOTTED=/tmp/after PYTHONPATH=tools/plotted python -m saelib run --profile smoke

Python imports a module of this name at its start. Each figure that `save_figure` saves then leaves
NAME.json in the folder that `SAELIB_PLOTTED` names: for each of its axes the points of lines and
marks, the vertices of paths, and the boxes of bars.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

FOLDER = os.environ.get("SAELIB_PLOTTED")
PATHS = 200  # of one collection


def numbers(values: Any) -> list[float]:
    """Finite numbers of an array, flat."""
    import numpy as np

    flat = np.asarray(values, dtype=float).ravel()
    return [float(value) for value in flat if np.isfinite(value)]


def drawn(axes: Any) -> dict[str, list[list[float]]]:
    """What one axes shows, in data coordinates."""
    paths = [path for c in axes.collections for path in c.get_paths()[:PATHS]]
    return {
        "lines": [numbers(line.get_xydata()) for line in axes.lines],
        "marks": [numbers(c.get_offsets()) for c in axes.collections],
        "paths": [numbers(path.vertices) for path in paths],
        "boxes": [
            numbers(patch.get_bbox()) for patch in axes.patches if hasattr(patch, "get_bbox")
        ],
    }


def figure_name() -> str | None:
    """The name that the calling `save_figure` gives its figure; None outside one."""
    frame = sys._getframe(2)
    while frame and frame.f_code.co_name != "save_figure":
        frame = frame.f_back
    return frame.f_locals["name"] if frame else None


def install(folder: Path) -> None:
    """Let `Figure.savefig` leave what it drew in `folder`."""
    from matplotlib.figure import Figure

    savefig = Figure.savefig

    def recorded(self: Figure, *args: Any, **kwargs: Any) -> Any:
        result = savefig(self, *args, **kwargs)
        name = figure_name()
        if name:
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps([drawn(axes) for axes in self.axes], indent=1)
            (folder / f"{name}.json").write_text(text, encoding="utf-8")
        return result

    Figure.savefig = recorded


if FOLDER:
    install(Path(FOLDER))
