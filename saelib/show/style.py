"""The look of every figure, and its file: labels, colours, markers, the style sheet, PNG at 150 dpi.

The same thing looks the same everywhere: `looks.csv` holds label, colour and marker of arms, token classes, schedules
and baselines, sites take a sequential map by depth. Within a group the colours stay apart under simulated protanopia
and deuteranopia (a test checks it). Equal figures give equal bytes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import seaborn as sns
from IPython.display import Image, display
from matplotlib.figure import Figure

from saelib.env import root
from saelib.measure.columns import LABELS

STYLE = Path(__file__).with_name("plots.mplstyle")


DPI = 150


L0_FLOOR = 0.5  # codes sparser than this have collapsed: log axes end here, and such runs are drawn at the edge


INK, FAINT = "#333333", "#777777"


class Look(NamedTuple):
    """How one thing appears in every figure."""

    label: str
    color: str
    marker: str = "o"


with Path(__file__).with_name("looks.csv").open(encoding="utf-8", newline="") as _looks:
    LOOKS: dict[Any, Look] = {row.pop("name"): Look(**row) for row in csv.DictReader(_looks)}


OTHER_COLORS = (
    "#332288",
    "#44AA99",
    "#CCAA33",
    "#882255",
    "#117733",
    "#88CCEE",
    "#AA4499",
    "#661100",
)


OTHER_MARKERS = "osD^vP*X"


METRIC_LABELS = LABELS | {  # and what a history has beside the table's columns
    "loss": "training loss (normalised units)",
    "adam_m": "Adam's m",
    "adam_v": "Adam's √v",
}


def style() -> AbstractContextManager:
    """The look of every figure, as a context: nothing global changes outside it."""
    return mpl.rc_context(
        sns.axes_style("ticks") | mpl.rc_params_from_file(STYLE, use_default_template=False)
    )


def site_color(site: int | np.integer, n_layers: int) -> tuple[float, float, float, float]:
    """Colour of a site by its depth site / n_layers, from light pink to dark plum."""
    return mpl.colormaps["RdPu"](0.3 + 0.7 * min(1.0, site / max(n_layers, 1)))


def looks_of(values: Iterable[Any], n_layers: int | None = None) -> dict[Any, Look]:
    """Label, colour and marker of each value: named in `LOOKS`, a site (a whole number), or the next free colour."""
    values = list(dict.fromkeys(values))
    deepest = n_layers or int(max((v for v in values if is_site(v)), default=1))
    found: dict[Any, Look] = {}
    for value in values:
        free = sum(v not in LOOKS and not is_site(v) for v in found)
        other = Look(
            str(value),
            OTHER_COLORS[free % len(OTHER_COLORS)],
            OTHER_MARKERS[free % len(OTHER_MARKERS)],
        )
        found[value] = (
            Look(f"site {value}", site_color(value, deepest))
            if is_site(value)
            else LOOKS.get(value, other)
        )
    return found


def label_of(value: Any) -> str:
    return LOOKS[value].label if value in LOOKS else str(value)


def is_site(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_))


def to_png(fig: Figure) -> bytes:
    """The figure as PNG at 150 dpi in 256 colours; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with style():
        fig.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return indexed(buffer.getvalue())


def indexed(png: bytes) -> bytes:
    """A PNG picture in the 256 colours nearest to its own: a third of the bytes, which notebooks and git keep twice."""
    buffer = io.BytesIO()
    with PIL.Image.open(io.BytesIO(png)) as picture:
        few = picture.convert("RGB").quantize(256, dither=PIL.Image.Dither.NONE)
        few.save(buffer, format="png", optimize=True, dpi=picture.info["dpi"])
    return buffer.getvalue()


def save_figure(fig: Figure, name: str, profile: str) -> Path:
    """Write `figures/<profile>/<name>.png` under the workbook's root, atomically, and close the figure."""
    path = root() / "figures" / profile / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(to_png(fig))
    temporary.replace(path)
    plt.close(fig)  # figures of this module are not pyplot's; a caller's own may be
    return path


def show(fig: Figure, name: str, profile: str) -> None:
    """Save the figure, display the saved picture once, and print its name relative to the workbook's root."""
    path = save_figure(fig, name, profile)
    display(Image(path.read_bytes(), width=round(96 * fig.get_figwidth()), alt=fig.get_suptitle()))
    print(path.relative_to(root()).as_posix())
