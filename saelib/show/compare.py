"""Figures that compare: values and ratios with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saelib.show.panels import (
    figure_caption,
    finish,
    interval_bars,
    log_axes,
    panels_by,
    requires,
    tick_text,
)
from saelib.show.style import FAINT, Look, label_of, looks_of

SEEDS_NOTE = "Small open points: seeds."
SPREAD = 0.64  # of the room of a group, over which its hues spread
BELOW = 0.08  # a seed's point lies so far below the dot


@requires("group", "hue", "value")
def interval_points(
    table: pd.DataFrame,
    seeds: pd.DataFrame | None = None,
    *,
    title: str,
    value_label: str,
    interval: str = "",
    note: str = "",
    log: bool = False,
    share_x: bool = True,
    reference: tuple[float | int, str] | None = None,
    n_layers: int | None = None,
) -> Figure:
    """Dots with intervals: a line per group, a colour per hue, a panel per value of `panel`.

    Args:
        table: group, hue, value; optional lo, hi (named by `interval`), panel, and note, whose
            text ('unreachable', 'not applicable') stands where the value is missing. A whole
            number as hue is a site.
        seeds: group, hue, value (and panel), drawn as small open points.
        reference: (value, words) of a vertical line.
    """
    seeds = table.iloc[:0] if seeds is None else seeds
    if "panel" not in table:
        table = table.assign(panel="")
        seeds = seeds.assign(panel="")
    groups = list(dict.fromkeys(table["group"]))
    looks = looks_of(table["hue"], n_layers)
    size = {
        "height": max(1.6, 0.25 + len(groups) * (0.2 + 0.2 * len(looks))),
        "width": 3.2 if table["panel"].nunique() > 1 else 5.4,
    }
    fig, panels = panels_by(table, "panel", sharey=True, sharex=share_x, **size)
    for ax, panel, rows in panels:
        if reference:
            ax.axvline(reference[0], color=FAINT, lw=1.2, ls=":", label=reference[1], zorder=1)
        _all_dots(ax, rows, seeds[seeds["panel"] == panel], groups, looks)
        ax.set_xlabel(value_label)
        ax.grid(visible=False, axis="y")
    panels[0][0].set_yticks(range(len(groups)), [label_of(group) for group in groups])
    panels[0][0].set_ylim(len(groups) - 0.5, -0.5)
    for ax, _, _ in panels:
        ax.xaxis.set_major_locator(ticker.MaxNLocator(4))
        ax.xaxis.set_major_formatter(tick_text)
        if log:
            log_axes(ax, "x")
    caption = figure_caption(table, interval, note)
    return finish(fig, title, f"{SEEDS_NOTE} {caption}" if len(seeds) else caption)


def _all_dots(
    ax: Axes,
    rows: pd.DataFrame,
    seeds: pd.DataFrame,
    groups: Sequence[Any],
    looks: dict[Any, Look],
) -> None:
    """Every hue's dots in one panel, side by side within a group; a hue may have no rows here."""
    for i, (hue, look) in enumerate(looks.items()):
        shift = SPREAD * ((i + 0.5) / len(looks) - 0.5)
        one = rows[rows["hue"] == hue]
        small = seeds[seeds["hue"] == hue]
        _dots(ax, one, _heights(one, groups, shift), look)
        _seed_dots(ax, small, _heights(small, groups, shift) + BELOW, look)


def _heights(rows: pd.DataFrame, groups: Sequence[Any], shift: float) -> pd.Series:
    """Where each row stands on the y axis."""
    return rows["group"].map(list(groups).index).astype(float) + shift


def _dots(ax: Axes, rows: pd.DataFrame, heights: pd.Series, look: Look) -> None:
    """One hue's dots and intervals, and words where a value is missing."""
    looks = {"color": look.color, "ms": 7, "ls": "none", "zorder": 3}
    ax.plot(rows["value"], heights, look.marker, label=look.label, **looks)
    interval_bars(ax.hlines, heights, rows, look.color, lw=2.2)
    for y, (_, row) in zip(heights, rows.iterrows(), strict=True):
        if pd.isna(row["value"]):
            words = row["note"] if isinstance(row.get("note"), str) and row["note"] else "no value"
            style = {"va": "center", "size": 8.5, "color": look.color, "style": "italic"}
            ax.text(0.02, y, words, transform=ax.get_yaxis_transform(), **style)


def _seed_dots(ax: Axes, rows: pd.DataFrame, heights: pd.Series, look: Look) -> None:
    if len(rows):
        looks = {"mfc": "white", "mec": look.color, "ms": 4, "mew": 0.9, "ls": "none", "zorder": 4}
        ax.plot(rows["value"], heights, "o", **looks)
