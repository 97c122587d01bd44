"""Figures that compare: values and ratios with their intervals."""

from __future__ import annotations

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
    """Dots with intervals: one line a group, one colour a hue, one panel a value of the optional column `panel`.

    table: group, hue, value; optional lo, hi (named by `interval`), panel, and note, whose text ('unreachable',
    'not applicable') stands where the value is missing. seeds: group, hue, value (and panel), small open points.
    A whole number as hue is a site. reference: (value, words) of a vertical line.
    """
    seeds = table.iloc[:0] if seeds is None else seeds
    if "panel" not in table:
        table, seeds = table.assign(panel=""), seeds.assign(panel="")
    groups, looks = list(dict.fromkeys(table["group"])), looks_of(table["hue"], n_layers)
    height = max(1.6, 0.25 + len(groups) * (0.2 + 0.2 * len(looks)))
    width = 3.2 if table["panel"].nunique() > 1 else 5.4
    fig, panels = panels_by(table, "panel", width=width, height=height, sharey=True, sharex=share_x)
    for ax, panel, rows in panels:
        if reference:
            ax.axvline(reference[0], color=FAINT, lw=1.2, ls=":", label=reference[1], zorder=1)
        small = seeds[seeds["panel"] == panel]
        for i, (hue, look) in enumerate(looks.items()):
            shift = 0.64 * ((i + 0.5) / len(looks) - 0.5)
            _dots(ax, rows[rows["hue"] == hue], small[small["hue"] == hue], groups, shift, look)
        ax.set_xlabel(value_label)
        ax.grid(visible=False, axis="y")
    panels[0][0].set_yticks(range(len(groups)), [label_of(g) for g in groups])
    panels[0][0].set_ylim(len(groups) - 0.5, -0.5)
    for ax, _, _ in panels:
        ax.xaxis.set_major_locator(ticker.MaxNLocator(4))
        ax.xaxis.set_major_formatter(tick_text)
        if log:
            log_axes(ax, "x")
    caption = figure_caption(table, interval, note)
    return finish(fig, title, f"Small open points: seeds. {caption}" if len(seeds) else caption)


def _dots(
    ax: Axes, rows: pd.DataFrame, seeds: pd.DataFrame, groups: list[Any], shift: float, look: Look
) -> None:
    """One hue's dots, intervals, seeds, and words where a value is missing."""
    at = (
        rows["group"].map(groups.index).astype(float) + shift
    )  # a hue may have no rows in this panel
    ax.plot(
        rows["value"],
        at,
        look.marker,
        color=look.color,
        ms=7,
        ls="none",
        label=look.label,
        zorder=3,
    )
    interval_bars(ax.hlines, at, rows, look.color, lw=2.2)
    if len(seeds):
        height = seeds["group"].map(groups.index).astype(float) + shift + 0.08  # below the dot
        ax.plot(
            seeds["value"],
            height,
            "o",
            ms=4,
            mfc="white",
            mec=look.color,
            mew=0.9,
            ls="none",
            zorder=4,
        )
    for y, (_, row) in zip(at, rows.iterrows(), strict=True):
        if pd.isna(row["value"]):
            words = row["note"] if isinstance(row.get("note"), str) and row["note"] else "no value"
            looks = {"va": "center", "size": 8.5, "color": look.color, "style": "italic"}
            ax.text(0.02, y, words, transform=ax.get_yaxis_transform(), **looks)
