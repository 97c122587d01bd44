"""The look of every figure, and its file: labels, colours, markers, style sheet, PNG at 150 dpi.

The same thing looks the same everywhere: `looks.csv` holds label, colour and marker of arms, token
classes, schedules and baselines; sites take a sequential map by depth. Within a group the colours
stay apart under simulated protanopia and deuteranopia (a test checks it). Equal figures give equal
bytes.
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

from saelib.env import data_dir, root
from saelib.files import write_bytes
from saelib.measure.columns import LABELS

STYLE = Path(__file__).with_name("plots.mplstyle")
DPI = 150
L0_FLOOR = 0.5  # sparser codes have collapsed: log axes end here, such runs are drawn at the edge
INK = "#333333"
FAINT = "#777777"


class Look(NamedTuple):
    """How one thing appears in every figure."""

    label: str
    color: str
    marker: str = "o"


def _read_looks() -> dict[Any, Look]:
    """Okabe and Ito's palette for arms and token classes, Tol's muted one for schedules."""
    with Path(__file__).with_name("looks.csv").open(encoding="utf-8", newline="") as file:
        return {row.pop("name"): Look(**row) for row in csv.DictReader(file)}


LOOKS = _read_looks()
# For whatever has no name in `looks.csv`: Tol's muted palette, in this order.
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
    """Enter the look of every figure; nothing global changes outside the context."""
    sheet = mpl.rc_params_from_file(STYLE, use_default_template=False)
    return mpl.rc_context(sns.axes_style("ticks") | sheet)


def site_color(site: int | np.integer, n_layers: int) -> tuple[float, float, float, float]:
    """Colour of a site by its depth site / n_layers, from light pink to dark plum."""
    return mpl.colormaps["RdPu"](0.3 + 0.7 * min(1.0, site / max(n_layers, 1)))


def is_site(value: Any) -> bool:
    """Whether a value is drawn as a site: a whole number."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_))


def label_of(value: Any) -> str:
    """The label of a named thing, or the value as text."""
    return LOOKS[value].label if value in LOOKS else str(value)


def looks_of(values: Iterable[Any], n_layers: int | None = None) -> dict[Any, Look]:
    """Label, colour and marker of each value.

    The value is named in `LOOKS`, or is a site (a whole number), or takes the next free colour.
    """
    values = list(dict.fromkeys(values))
    deepest = n_layers or int(max(filter(is_site, values), default=1))
    looks: dict[Any, Look] = {}
    n_unnamed = 0
    for value in values:
        if is_site(value):
            looks[value] = Look(f"site {value}", site_color(value, deepest))
        elif value in LOOKS:
            looks[value] = LOOKS[value]
        else:
            color = OTHER_COLORS[n_unnamed % len(OTHER_COLORS)]
            marker = OTHER_MARKERS[n_unnamed % len(OTHER_MARKERS)]
            looks[value] = Look(str(value), color, marker)
            n_unnamed += 1
    return looks


# Files


def to_png(fig: Figure) -> bytes:
    """Draw the figure as PNG at 150 dpi in 256 colours; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with style():
        fig.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return indexed(buffer.getvalue())


def indexed(png: bytes) -> bytes:
    """Reduce a PNG picture to the 256 colours nearest to its own.

    It takes a third of the bytes, which notebooks and git keep twice.
    """
    buffer = io.BytesIO()
    with PIL.Image.open(io.BytesIO(png)) as picture:
        few = picture.convert("RGB").quantize(256, dither=PIL.Image.Dither.NONE)
        few.save(buffer, format="png", optimize=True, dpi=picture.info["dpi"])
    return buffer.getvalue()


def save_figure(fig: Figure, name: str, profile: str) -> Path:
    """Write `data/<profile>/figures/<name>.png`, and close the figure."""
    path = data_dir(profile) / "figures" / f"{name}.png"
    write_bytes(path, to_png(fig))
    plt.close(fig)  # figures of this package are not pyplot's; a caller's own may be
    return path


def show(fig: Figure, name: str, profile: str) -> None:
    """Save the figure, display the saved picture once, and print its name below the root."""
    path = save_figure(fig, name, profile)
    display(Image(path.read_bytes(), width=round(96 * fig.get_figwidth()), alt=fig.get_suptitle()))
    print(path.relative_to(root()).as_posix())
