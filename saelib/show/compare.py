"""Figures that compare: values and ratios with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saelib.show.panels import (
    figure_caption,
    finish,
    interval_bars,
    log_axes,
    panel_grid,
    panels_by,
    requires,
    tick_text,
)
from saelib.show.style import FAINT, INK, Look, label_of, looks_of

SEEDS_NOTE = "Small open points: seeds."
BLOCK_LINE = 0.6  # room of a block's heading; a group has 1
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
    limits: Mapping[str, tuple[float | int, str]] | None = None,
    n_layers: int | None = None,
) -> Figure:
    """Dots with intervals: a line per group, a colour per hue, a panel per value of `panel`.

    Args:
        table: group, hue, value; optional lo, hi (named by `interval`), panel, and note, whose
            text ('unreachable', 'not applicable') stands where the value is missing. A whole
            number as hue is a site. Optional block: heads the groups that belong together.
        seeds: group, hue, value (and panel), drawn as small open points.
        reference: (value, words) of a dotted vertical line.
        limits: panel -> (value, words) of a dashed vertical line, what a rule asks for.
    """
    seeds = table.iloc[:0] if seeds is None else seeds
    if "panel" not in table:
        table = table.assign(panel="")
        seeds = seeds.assign(panel="")
    lines = _lines(table)
    n_lines = sum(BLOCK_LINE if isinstance(line, Heading) else 1.0 for line in lines)
    looks = looks_of(table["hue"], n_layers)
    height = 0.25 + n_lines * (0.2 + 0.2 * len(looks))
    size = {
        "height": max(1.6, height),
        "width": 3.2 if table["panel"].nunique() > 1 else 5.4,
    }
    fig, panels = panels_by(table, "panel", sharey=True, sharex=share_x, **size)
    for ax, panel, rows in panels:
        if reference:
            ax.axvline(reference[0], color=FAINT, lw=1.2, ls=":", label=reference[1], zorder=1)
        if limits and panel in limits:
            limit, words = limits[panel]
            ax.axvline(limit, color=INK, lw=1.0, ls="--", label=words, zorder=1)
        _all_dots(ax, rows, seeds[seeds["panel"] == panel], lines, looks)
        ax.set_xlabel(value_label)
        ax.grid(visible=False, axis="y")
    _name_lines(panels[0][0], lines)
    for ax, _, _ in panels:
        ax.xaxis.set_major_locator(ticker.MaxNLocator(4))
        ax.xaxis.set_major_formatter(tick_text)
        if log:
            log_axes(ax, "x")
    caption = figure_caption(table, interval, note)
    return finish(fig, title, f"{SEEDS_NOTE} {caption}" if len(seeds) else caption)


class Heading(str):
    """The name of a block of groups, which takes a line of its own."""

    __slots__ = ()


def _lines(table: pd.DataFrame) -> list[Any]:
    """The groups from top to bottom; with a column `block` each block under its heading."""
    if "block" not in table:
        return list(dict.fromkeys(table["group"]))
    lines: list[Any] = []
    for block, rows in table.groupby("block", sort=False):
        lines += [Heading(block), *dict.fromkeys(rows["group"])]
    return lines


def _places(lines: Sequence[Any]) -> list[float]:
    """Where each line stands on the y axis: groups are 1 apart, a heading is nearer its groups."""
    places = []
    top = 0.0
    for line in lines:
        room = BLOCK_LINE if isinstance(line, Heading) else 1.0
        places.append(top + (room - 1) / 2)
        top += room
    return places


def _name_lines(ax: Axes, lines: Sequence[Any]) -> None:
    """Tick every group with its name, and set the headings in bold without a tick."""
    places = _places(lines)
    ax.set_yticks(places, [label_of(line) for line in lines])
    ax.set_ylim(places[-1] + 0.5, -0.5)
    for line, tick in zip(lines, ax.yaxis.get_major_ticks(), strict=True):
        if isinstance(line, Heading):
            tick.label1.set_fontweight("bold")
            tick.tick1line.set_visible(False)


def _all_dots(
    ax: Axes,
    rows: pd.DataFrame,
    seeds: pd.DataFrame,
    lines: Sequence[Any],
    looks: dict[Any, Look],
) -> None:
    """Every hue's dots in one panel, side by side within a group; a hue may have no rows here."""
    for i, (hue, look) in enumerate(looks.items()):
        shift = SPREAD * ((i + 0.5) / len(looks) - 0.5)
        one = rows[rows["hue"] == hue]
        small = seeds[seeds["hue"] == hue]
        _dots(ax, one, _heights(one, lines, shift), look)
        _seed_dots(ax, small, _heights(small, lines, shift) + BELOW, look)


def _heights(rows: pd.DataFrame, lines: Sequence[Any], shift: float) -> pd.Series:
    """Where each row stands on the y axis."""
    places = dict(zip(lines, _places(lines), strict=True))
    return rows["group"].map(places).astype(float) + shift


def _dots(ax: Axes, rows: pd.DataFrame, heights: pd.Series, look: Look) -> None:
    """One hue's dots and intervals, and words where a value is missing."""
    looks = {"color": look.color, "ms": 7, "ls": "none", "zorder": 3}
    ax.plot(rows["value"], heights, look.marker, label=look.label, **looks)
    interval_bars(ax.hlines, heights, rows, look.color, lw=2.2)
    for y, (_, row) in zip(heights, rows.iterrows(), strict=True):
        if pd.isna(row["value"]):
            words = row["note"] if isinstance(row.get("note"), str) and row["note"] else "no value"
            style = {"va": "center", "size": 8.5, "color": look.color, "style": "italic"}
            blank = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # over a vertical line
            place = {"transform": ax.get_yaxis_transform(), "bbox": blank, "zorder": 3}
            ax.text(0.02, y, words, **place, **style)


def _seed_dots(ax: Axes, rows: pd.DataFrame, heights: pd.Series, look: Look) -> None:
    if len(rows):
        looks = {"mfc": "white", "mec": look.color, "ms": 4, "mew": 0.9, "ls": "none", "zorder": 4}
        ax.plot(rows["value"], heights, "o", **looks)


# From a first value to a last one

TOTAL = Look("the gap, first and last", "#555555")
RISE = Look("raises the gap", "#D55E00")
FALL = Look("lowers the gap", "#0072B2")
TOLERANCE = 1e-6  # by which first value and changes may miss the last one


@requires("group", "value")
def waterfall(
    table: pd.DataFrame,
    seeds: pd.DataFrame | None = None,
    *,
    title: str,
    value_label: str,
    interval: str = "",
    note: str = "",
    reference: tuple[float | int, str] | None = None,
) -> Figure:
    """How changes lead from a first value to a last: a bar per row, each from where it starts.

    Args:
        table: group, value; the first and the last row are totals, those between are changes;
            optional lo, hi of the value, and note, which stands where the value is missing.
        seeds: group, value, drawn as small open points at the end of their bar.
        reference: (value, words) of a vertical line.

    Raises:
        ValueError: the first value and the changes do not add up to the last.
    """
    table = table.reset_index(drop=True)
    starts = _starts(table["value"])
    height = max(1.8, 0.25 + 0.42 * len(table))
    fig, axes = panel_grid(1, width=5.4, height=height)
    ax = axes[0, 0]
    if reference:
        ax.axvline(reference[0], color=FAINT, lw=1.2, ls=":", label=reference[1], zorder=1)
    for i, row in table.iterrows():
        total = i in (0, len(table) - 1)
        look = TOTAL if total else RISE if row["value"] >= 0 else FALL
        _fall_bar(ax, i, starts[i], row, look, signed=not total)
    _fall_steps(ax, table["value"].to_numpy(dtype=float), starts)
    if seeds is not None:
        places = seeds["group"].map(list(table["group"]).index).astype(int)
        ends = seeds["value"] + np.asarray(starts)[places]
        _seed_dots(ax, seeds.assign(value=ends), places + 0.24, TOTAL)
    _name_lines(ax, list(table["group"]))
    ax.margins(x=0.12)
    ax.xaxis.set_major_locator(ticker.MaxNLocator(5))
    ax.xaxis.set_major_formatter(tick_text)
    ax.set_xlabel(value_label)
    ax.grid(visible=False, axis="y")
    caption = figure_caption(table, interval, note, "Dark lines across a bar's end")
    return finish(fig, title, caption if seeds is None else f"{SEEDS_NOTE} {caption}")


def _starts(values: pd.Series) -> list[float]:
    """Where each bar starts: totals at 0, a change where the one before ended (0 if unknown)."""
    sums = values.iloc[:-1].cumsum()
    last = values.iloc[-1]
    if values.notna().all() and abs(sums.iloc[-1] - last) > TOLERANCE * max(1.0, abs(last)):
        parts = f"the first value and the changes add up to {sums.iloc[-1]:g}"
        raise ValueError(f"waterfall: {parts}, the last value is {last:g}")
    known = values.notna().all()
    return [0.0, *(sums.iloc[:-1] if known else [0.0] * (len(values) - 2)), 0.0]


def _fall_bar(ax: Axes, place: int, start: float, row: pd.Series, look: Look, signed: bool) -> None:
    """One bar with its interval and its value in figures, or words where there is none."""
    if pd.isna(row["value"]):
        words = row["note"] if isinstance(row.get("note"), str) and row["note"] else "no value"
        style = {"va": "center", "size": 8.5, "color": look.color, "style": "italic"}
        ax.text(0.02, place, words, transform=ax.get_yaxis_transform(), **style)
        return
    looks = {"color": look.color, "label": look.label, "lw": 0, "zorder": 2}
    ax.barh(place, row["value"], 0.56, left=start, **looks)
    ends = [start + row["value"]]
    if pd.notna(row.get("lo")) and pd.notna(row.get("hi")):
        ends += [start + row["lo"], start + row["hi"]]
        ax.hlines(place, ends[1], ends[2], color=INK, lw=1.6, zorder=3)
    text = f"{row['value']:+.2f}" if signed else f"{row['value']:.2f}"
    right = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "size": 9}
    ax.annotate(text.replace("-", "−"), (max(start, *ends), place), **right)


def _fall_steps(ax: Axes, values: np.ndarray, starts: Sequence[float]) -> None:
    """Thin lines from each bar's end to the next bar."""
    if not np.isfinite(values).all():
        return
    for i, (start, value) in enumerate(zip(starts[:-1], values[:-1], strict=True)):
        ax.vlines(start + value, i, i + 1, color=FAINT, lw=0.8, zorder=1)
