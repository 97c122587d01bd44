"""Parts that figures share: panels, axes, interval bars, lines over sites and seeds, title and caption.

Every figure takes its `title` from the caller, who computed what it states; axes carry units; what an error bar or a
band means is written under the figure (`interval` names the columns lo and hi, `note` adds to the caption). Missing
values leave gaps or are named in words, never drawn as zero.
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
from matplotlib.figure import Figure

from saelib.show.style import DPI, INK, Look, style


def requires(*columns: str) -> Callable[[Callable[..., Figure]], Callable[..., Figure]]:
    """Draw inside `style()`, and refuse a table that is empty or lacks a column, by name."""

    def wrap(draw: Callable[..., Figure]) -> Callable[..., Figure]:
        @functools.wraps(draw)
        def styled(table: pd.DataFrame, *args: Any, **kwargs: Any) -> Figure:
            missing = [c for c in columns if c not in table.columns]
            if missing:
                raise ValueError(
                    f"{draw.__name__}: column {missing[0]!r} is missing; it needs {', '.join(columns)}"
                )
            if table.empty:
                raise ValueError(f"{draw.__name__}: the table has no rows to draw")
            with style():
                return draw(table, *args, **kwargs)

        return styled

    return wrap


def panel_grid(
    columns: int,
    rows: int = 1,
    *,
    width: float = 3.2,
    height: float = 3.0,
    wrap: int = 4,
    **kwargs: Any,
) -> tuple[Figure, Any]:
    """Figure, and its panels [rows, columns], with room for a legend at the right; a single row wraps at `wrap`."""
    n = rows * columns
    if rows == 1 and columns > wrap:
        rows, columns = math.ceil(n / wrap), wrap
    fig = Figure(
        figsize=(max(columns * width + 1.9, 6.4), rows * height + 0.9),
        layout="constrained",
        dpi=DPI,
    )
    axes = fig.subplots(rows, columns, squeeze=False, **kwargs)
    for ax in axes.flat[n:]:
        ax.set_axis_off()
    for ax in axes.flat[
        n - columns : n
    ]:  # the lowest panel of each column, though an empty one may follow
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
    """One panel a value of a column, numbers rising, words as they come: (axes, value, the value's rows)."""
    values = (
        sorted(table[by].unique())
        if pd.api.types.is_numeric_dtype(table[by])
        else dict.fromkeys(table[by])
    )
    fig, axes = panel_grid(len(values), **kwargs)
    panels = [(ax, v, table[table[by] == v]) for ax, v in zip(axes.flat, values, strict=False)]
    for ax, value, _ in panels:
        ax.set_title(head(value), loc="left")
    panels[0][0].set_ylabel(ylabel)
    return fig, panels


def rows_by_site(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Heading and rows of each site; without a column `site` all rows, and no heading."""
    if "site" not in table:
        return {"": table}
    return {f"site {s}": table[table["site"] == s] for s in sites_of(table)}


def wrapped(fig: Figure, text: str, points: float | int) -> str:
    """Break lines so that text of this size fits the figure's width."""
    return textwrap.fill(text, max(20, int(fig.get_figwidth() * 72 / (0.64 * points))))


def finish(fig: Figure, title: str, note: str = "") -> Figure:
    """Title, caption, and one legend for all panels."""
    fig.suptitle(wrapped(fig, title, 12), x=0.01, ha="left", size=12, weight="bold", color=INK)
    if note:
        fig.supxlabel(wrapped(fig, note, 8.5), x=0.01, ha="left", size=8.5, color="#555555")
    handles: dict[str, Any] = {}
    for ax in fig.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        fig.legend(handles.values(), handles.keys(), loc="outside right center", alignment="left")
    return fig


def figure_caption(table: pd.DataFrame, interval: str, note: str = "") -> str:
    """The caption; refuses intervals without a name."""
    if {"lo", "hi"} <= set(table.columns) and table[["lo", "hi"]].notna().any(axis=None):
        if not interval:
            raise ValueError(
                "columns lo and hi are drawn: say what they are, interval='95 % bootstrap over pages'"
            )
        note = f"Bars: {interval}. {note}"
    return note.strip()


def tick_text(value: float | int, _position: int | None = None) -> str:
    """Plain digits from 0.0001 to 999,999; powers of ten outside."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return f"{value:,.6g}".replace("-", "−")
    exponent = math.floor(math.log10(abs(value)))
    mantissa = value / 10**exponent
    return (
        rf"$10^{{{exponent}}}$"
        if round(mantissa, 3) == 1
        else rf"${mantissa:.3g}\cdot10^{{{exponent}}}$"
    )


def log_axes(ax: Axes, *names: str) -> None:
    """Logarithmic axes with plain numbers, those that share them too; call when everything is drawn."""
    for name in names:
        ax.set(**{f"{name}scale": "log"})
        axis = ax.xaxis if name == "x" else ax.yaxis
        decades = np.diff(np.log10(axis.get_view_interval()))[0]
        subs = [(1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)][
            int(np.searchsorted([0.9, 1.7, 3.2], decades))
        ]
        locator = (
            ticker.MaxNLocator(5) if decades < 0.45 else ticker.LogLocator(subs=subs, numticks=12)
        )
        axis.set_major_locator(locator)
        axis.set_major_formatter(tick_text)
        axis.set_minor_locator(ticker.NullLocator())


def sites_of(table: pd.DataFrame) -> list[int]:
    return sorted(int(s) for s in table["site"].unique())


def site_axis(ax: Axes, sites: Sequence[int], labels: Sequence[str] | None = None) -> None:
    """Sites at their depth; each one ticked where they are few, and named where its name has room."""
    margin = max(1.0, (0.08 if len(sites) <= 8 else 0.03) * (sites[-1] - sites[0]))
    ax.set(xlabel="site (depth)", xlim=(sites[0] - margin, sites[-1] + margin))
    if len(sites) <= 8:
        names, last = list(labels or map(str, sites)), sites[0]
        for i, site in enumerate(sites[1:], 1):
            names[i], last = (
                (names[i], site) if site - last > 0.05 * (sites[-1] - sites[0]) else ("", last)
            )
        ax.set_xticks(sites, names)
    else:
        ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))


def dodge(sites: Sequence[int]) -> float:
    """Distance between groups at one site, so that bars do not hide each other; none where sites are many."""
    return 0.014 * (sites[-1] - sites[0]) if len(sites) <= 8 else 0.0


def percent_axis(ax: Axes, **limits: float | int) -> None:
    """The y axis holds fractions and shows per cent."""
    ax.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.4g}")
    ax.set_ylim(**limits)


def token_axis(ax: Axes) -> None:
    ax.xaxis.set_major_locator(ticker.MaxNLocator(4))
    ax.xaxis.set_major_formatter(lambda v, _: f"{v / 1000:,.4g}k" if v else "0")
    ax.set_xlabel("training tokens")


def interval_bars(
    draw: Callable[..., Any], at: Any, rows: pd.DataFrame, color: Any, lw: float | int = 1.3
) -> None:
    """Interval bars, drawn with `ax.vlines` or `ax.hlines`, from column lo to column hi, where both are known."""
    if {"lo", "hi"} <= set(rows.columns):
        known = rows[["lo", "hi"]].notna().all(axis=1).to_numpy()
        draw(
            np.asarray(at)[known],
            rows["lo"][known],
            rows["hi"][known],
            color=color,
            lw=lw,
            alpha=0.7,
        )


def line_by_site(
    ax: Axes, rows: pd.DataFrame, y: str, look: Look, sites: Sequence[int], shift: float = 0.0
) -> None:
    """One line over all sites of the figure, with its bars; a missing site is a gap."""
    if rows["site"].duplicated().any():
        raise ValueError(f"several rows of {look.label!r} at one site: aggregate them first")
    values, ms = (
        rows.set_index("site")[y].reindex(sites).to_numpy(),
        5.5 if len(sites) <= 8 else 3.5,
    )
    ax.plot(
        np.add(sites, shift), values, color=look.color, marker=look.marker, ms=ms, label=look.label
    )
    interval_bars(ax.vlines, rows["site"] + shift, rows, look.color)


def line_with_seeds(
    ax: Axes, rows: pd.DataFrame, x: str, y: str, look: Look, **kwargs: Any
) -> None:
    """One thick line; with several seeds thin lines, and the thick one is their mean where all of them are there."""
    rows = rows.dropna(subset=[y]).sort_values(x)
    seeds = rows["seed"].nunique() if "seed" in rows else 1
    if seeds > 1:
        for _, one in rows.groupby("seed"):
            ax.plot(one[x], one[y], color=look.color, lw=0.7, alpha=0.5, **kwargs)
    mean = rows.groupby(x)[y].agg(["mean", "count"]).query("count >= @seeds")["mean"]
    ax.plot(mean.index, mean.to_numpy(), color=look.color, label=look.label, **kwargs)
