"""Parts that figures share: panels, axes, interval bars, lines by site and seed, title, caption.

Every figure takes its `title` from the caller, who computed what it states. Axes carry units. What
an error bar or a band means stands under the figure: `interval` names the columns lo and hi, `note`
adds to the caption. Missing values leave gaps or are named in words, never drawn as zero. A figure
with nothing to draw says why (`empty_figure`).
"""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from saelib.show.style import DPI, FAINT, INK, Look, style

FEW_SITES = 8  # up to so many sites have their own tick each, larger markers, and bars side by side
CAPTION_COLOR = "#555555"
TITLE_SIZE = 12.0  # points
CAPTION_SIZE = 8.5
LINE_HEIGHT = 1.3  # of the size of its letters
DIGIT = 0.08  # width of a digit of a tick's name, inches
NAME_GAP = 0.04  # between two of them
NO_BREAK = "\N{NO-BREAK SPACE}"

# How a table becomes a figure


def requires(*columns: str) -> Callable[[Callable[..., Figure]], Callable[..., Figure]]:
    """Decorate a figure: it draws inside `style()`, from a table that has these columns.

    A table without rows becomes an `empty_figure`.

    Raises:
        ValueError: a column is missing.
    """

    def decorate(draw: Callable[..., Figure]) -> Callable[..., Figure]:
        @functools.wraps(draw)
        def styled(table: pd.DataFrame, *args: Any, **kwargs: Any) -> Figure:
            missing = [column for column in columns if column not in table.columns]
            if missing:
                needs = f"it needs {', '.join(columns)}"
                raise ValueError(f"{draw.__name__}: column {missing[0]!r} is missing; {needs}")
            if table.empty:
                reason = "this run has no row of the table behind this figure"
                return empty_figure(kwargs["title"], reason, kwargs.get("note", ""))
            with style():
                return draw(table, *args, **kwargs)

        return styled

    return decorate


def empty_figure(title: str, reason: str, note: str = "") -> Figure:
    """Make a figure of words alone: there is nothing to draw, and why.

    reason: a clause, such as "loss recovered is undefined at every site".
    """
    with style():
        fig = Figure(figsize=(6.4, 2.2), layout="constrained", dpi=DPI)
        ax = fig.subplots()
        ax.set_axis_off()
        say_in_panel(ax, wrapped(fig, f"Nothing to draw: {reason.rstrip('.')}.", 10.0))
        return finish(fig, title, note)


def say_in_panel(ax: Axes, text: str) -> None:
    """Put words in the middle of a panel that has nothing else."""
    place = {"transform": ax.transAxes, "ha": "center", "va": "center"}
    ax.text(0.5, 0.5, text, size=10, style="italic", color=FAINT, **place)


def panel_grid(
    columns: int,
    rows: int = 1,
    *,
    width: float = 3.2,
    height: float = 3.0,
    wrap: int = 4,
    **kwargs: Any,
) -> tuple[Figure, Any]:
    """Make a figure and its panels [rows, columns], with room for a legend at the right.

    A single row of more than `wrap` panels breaks into several. width, height: inches per panel.
    """
    n_panels = rows * columns
    if rows == 1 and columns > wrap:
        rows = math.ceil(n_panels / wrap)
        columns = wrap
    size = (max(columns * width + 1.9, 6.4), rows * height + 0.9)
    fig = Figure(figsize=size, layout="constrained", dpi=DPI)
    axes = fig.subplots(rows, columns, squeeze=False, **kwargs)
    for ax in axes.flat[n_panels:]:
        ax.set_axis_off()
    lowest = axes.flat[n_panels - columns : n_panels]  # of each column; an empty one may follow
    for ax in lowest:
        ax.tick_params(labelbottom=True)
    return fig, axes


def panels_by(
    table: pd.DataFrame,
    by: str,
    head: Callable[[Any], str] = str,
    *,
    ylabel: str = "",
    **kwargs: Any,
) -> tuple[Figure, list[tuple[Axes, Any, pd.DataFrame]]]:
    """Make one panel per value of a column: (axes, value, the value's rows).

    Numbers rise from left to right, words come in the table's order. `head` words the heading.
    """
    values = list(dict.fromkeys(table[by]))
    if pd.api.types.is_numeric_dtype(table[by]):
        values = sorted(table[by].unique())
    fig, axes = panel_grid(len(values), **kwargs)
    panels = []
    for ax, value in zip(axes.flat, values, strict=False):
        ax.set_title(head(value), loc="left")
        panels.append((ax, value, table[table[by] == value]))
    panels[0][0].set_ylabel(ylabel)
    return fig, panels


def sites_of(table: pd.DataFrame) -> list[int]:
    """List the sites of a table, rising."""
    return sorted(int(site) for site in table["site"].unique())


def rows_by_site(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Heading and rows of each site; without a column `site` all rows, and no heading."""
    if "site" not in table:
        return {"": table}
    return {f"site {site}": table[table["site"] == site] for site in sites_of(table)}


# Title, caption, legend


def wrapped(fig: Figure, text: str, points: float) -> str:
    """Break lines so that text of this size fits the figure's width; a number keeps its "%"."""
    width = max(20, int(fig.get_figwidth() * 72 / (0.64 * points)))
    lines = textwrap.fill(text.replace(" %", f"{NO_BREAK}%"), width)
    return lines.replace(NO_BREAK, " ")


def finish(fig: Figure, title: str, note: str = "") -> Figure:
    """Add the title, the caption, and one legend for all panels."""
    heading = wrapped(fig, title, TITLE_SIZE)
    extra_lines = max(0, heading.count("\n") - 1) * TITLE_SIZE
    fig.suptitle(heading, x=0.01, ha="left", size=TITLE_SIZE, weight="bold", color=INK)
    if note:
        caption = wrapped(fig, note, CAPTION_SIZE)
        extra_lines += max(0, caption.count("\n") - 1) * CAPTION_SIZE
        fig.supxlabel(caption, x=0.01, ha="left", size=CAPTION_SIZE, color=CAPTION_COLOR)
    # Beyond two lines each, title and caption take their room from the figure, not from its panels.
    fig.set_figheight(fig.get_figheight() + LINE_HEIGHT * extra_lines / 72)
    handles: dict[str, Any] = {}
    for ax in fig.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        fig.legend(handles.values(), handles.keys(), loc="outside right center", alignment="left")
    return fig


def figure_caption(table: pd.DataFrame, interval: str, note: str = "", mark: str = "Bars") -> str:
    """Word the caption of a table whose columns lo and hi are drawn, as what `mark` says.

    Raises:
        ValueError: intervals are drawn and `interval` does not say what they are.
    """
    if {"lo", "hi"} <= set(table.columns) and table[["lo", "hi"]].notna().any(axis=None):
        if not interval:
            example = "interval='95 % bootstrap over pages'"
            raise ValueError(f"columns lo and hi are drawn: say what they are, {example}")
        note = f"{mark}: {interval}. {note}"
    return note.strip()


# Axes


def tick_text(value: float | int, _position: int | None = None) -> str:
    """Plain digits from 0.0001 to 999,999; powers of ten outside."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return f"{value:,.6g}".replace("-", "−")
    exponent = math.floor(math.log10(abs(value)))
    mantissa = value / 10**exponent
    if round(mantissa, 3) == 1:
        return rf"$10^{{{exponent}}}$"
    return rf"${mantissa:.3g}\cdot10^{{{exponent}}}$"


def log_axes(ax: Axes, *names: str) -> None:
    """Make axes logarithmic, with plain numbers, and those that share them.

    Call it when everything is drawn. An axis on which nothing lies above 0 stays linear.
    """
    for name in names:
        if not _has_positive(ax, name):
            continue
        ax.set(**{f"{name}scale": "log"})
        axis = ax.xaxis if name == "x" else ax.yaxis
        axis.set_major_locator(_log_ticks(axis))
        axis.set_major_formatter(tick_text)
        axis.set_minor_locator(ticker.NullLocator())


def _has_positive(ax: Axes, name: str) -> bool:
    """Whether anything above 0 is drawn along this axis, here or in a panel that shares it."""
    shared = ax.get_shared_x_axes() if name == "x" else ax.get_shared_y_axes()
    least = [getattr(one.dataLim, f"minpos{name}") for one in shared.get_siblings(ax)]
    return bool(np.isfinite(least).any())


def _log_ticks(axis: Axis) -> ticker.Locator:
    """As many ticks per decade as the range has room for."""
    decades = np.diff(np.log10(axis.get_view_interval()))[0]
    if decades < 0.45:
        return ticker.MaxNLocator(5)
    steps = [(1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)]
    range_class = int(np.searchsorted([0.9, 1.7, 3.2], decades))
    return ticker.LogLocator(subs=steps[range_class], numticks=12)


def site_axis(ax: Axes, sites: Sequence[int], labels: Sequence[str] | None = None) -> None:
    """Put sites at their depth; few sites have a tick each, and a name where it has room.

    A name without room beside the last one stands a line lower; of several lines it is left out.
    """
    extent = sites[-1] - sites[0]
    few = len(sites) <= FEW_SITES
    margin = max(1.0, (0.08 if few else 0.03) * extent)
    ax.set(xlabel="site (depth)", xlim=(sites[0] - margin, sites[-1] + margin))
    if not few:
        ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        return
    inches = ax.get_position().width * ax.figure.get_figwidth() / (extent + 2 * margin)
    names = list(labels or map(str, sites))
    ax.set_xticks(sites, _names_with_room([site * inches for site in sites], names))


def _names_with_room(places: Sequence[float], names: Sequence[str]) -> list[str]:
    """Names at these places [inches]: on the first line, else on the second, else left out."""
    n_lines = 1 if any("\n" in name for name in names) else 2
    ends = [-math.inf] * n_lines  # where the last name of each line ends
    shown = []
    for place, name in zip(places, names, strict=True):
        half = max(map(len, name.split("\n"))) * DIGIT / 2
        free = [line for line, end in enumerate(ends) if place - half >= end + NAME_GAP]
        shown.append("\n" * free[0] + name if free else "")
        if free:
            ends[free[0]] = place + half
    return shown


def dodge(sites: Sequence[int]) -> float:
    """Distance between groups at one site, so that bars do not hide each other; 0 if many."""
    return 0.014 * (sites[-1] - sites[0]) if len(sites) <= FEW_SITES else 0.0


def percent_axis(ax: Axes, **limits: float | int) -> None:
    """Show the fractions of the y axis as per cent."""
    ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}")
    ax.set_ylim(**limits)


def zero_based_axis(ax: Axes, values: pd.Series) -> None:
    """Start the y axis at 0; where values (and their bars) go below, let it, and draw the zero."""
    if values.min() < 0:
        ax.axhline(0, color=FAINT, lw=1.0, zorder=1)
        return
    ax.set_ylim(0, 1.05 * ax.get_ylim()[1])


def token_axis(ax: Axes) -> None:
    """Show training tokens on the x axis, in thousands."""
    ax.xaxis.set_major_locator(ticker.MaxNLocator(4))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:,.4g}k" if value else "0")
    ax.set_xlabel("training tokens")


# Bars and lines


def interval_bars(
    draw: Callable[..., Any],
    places: Any,
    rows: pd.DataFrame,
    color: Any,
    lw: float | int = 1.3,
) -> None:
    """Draw bars from column lo to column hi where both are known, with `ax.vlines` or `ax.hlines`.

    places: where each row's bar stands on the other axis.
    """
    if not {"lo", "hi"} <= set(rows.columns):
        return
    known = rows[["lo", "hi"]].notna().all(axis=1).to_numpy()
    low = rows["lo"][known]
    high = rows["hi"][known]
    draw(np.asarray(places)[known], low, high, color=color, lw=lw, alpha=0.7)


def line_by_site(
    ax: Axes, rows: pd.DataFrame, y: str, look: Look, sites: Sequence[int], shift: float = 0.0
) -> None:
    """Draw one line over all sites of the figure, with its bars; a missing site is a gap.

    Raises:
        ValueError: two rows have the same site.
    """
    if rows["site"].duplicated().any():
        raise ValueError(f"several rows of {look.label!r} at one site: aggregate them first")
    values = rows.set_index("site")[y].reindex(sites).to_numpy()
    size = 5.5 if len(sites) <= FEW_SITES else 3.5
    looks = {"color": look.color, "marker": look.marker, "ms": size, "label": look.label}
    ax.plot(np.add(sites, shift), values, **looks)
    interval_bars(ax.vlines, rows["site"] + shift, rows, look.color)


def line_with_seeds(
    ax: Axes, rows: pd.DataFrame, x: str, y: str, look: Look, **kwargs: Any
) -> None:
    """Draw one thick line; several seeds are thin lines, the thick one their mean.

    The mean stands only where every seed has a value.
    """
    rows = rows.dropna(subset=[y]).sort_values(x)
    seeds = rows["seed"].nunique() if "seed" in rows else 1
    if seeds > 1:
        for _, one in rows.groupby("seed"):
            ax.plot(one[x], one[y], color=look.color, lw=0.7, alpha=0.5, **kwargs)
    by_x = rows.groupby(x)[y].agg(["mean", "count"])
    mean = by_x["mean"][by_x["count"] >= seeds]
    ax.plot(mean.index, mean.to_numpy(), color=look.color, label=look.label, **kwargs)
