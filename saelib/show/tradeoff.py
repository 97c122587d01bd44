"""Figures of what an SAE trades: reconstruction, loss and shrinkage against L0 and against λ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saelib.show.panels import (
    empty_figure,
    figure_caption,
    finish,
    interval_bars,
    log_axes,
    panel_grid,
    panels_by,
    requires,
    say_in_panel,
)
from saelib.show.style import INK, L0_FLOOR, LOOKS, METRIC_LABELS, Look, label_of, looks_of

BEST_OR_MEAN = {
    "fvu": "mean predictor (FVU = 1)",
    "loss_recovered": "identity (1)",
    "shrinkage": "no shrinkage (1)",
}  # what 1 is


@requires("arm", "site", "lambda", "l0")
def trade_off(
    table: pd.DataFrame,
    pca: pd.DataFrame | None = None,
    *,
    title: str,
    y: str = "fvu",
    interval: str = "",
    note: str = "",
    highlight: Any = None,
) -> Figure:
    """FVU (or y='loss_recovered') against L0: a panel per site, a curve per arm through its λ.

    Args:
        table: arm, site, lambda, l0 and `y`; optional rows of several seeds (same arm, site,
            lambda), and lo, hi of `y`, which are of the mean over seeds and stand in each row.
        pca: site, rank, fvu; adds PCA at rank k = L0.
        highlight: index label of a row to ring.
    """
    if table[["l0", y]].isna().any(axis=1).all():
        return empty_figure(title, f"{_name(y)} is undefined for every SAE", note)
    fig = _against_l0(table, y, pca, highlight)
    several = table.duplicated(["arm", "site", "lambda"]).any()
    seeds = "Small points: seeds; line: their mean. " if several else ""
    return finish(fig, title, figure_caption(table, interval, seeds + note))


@requires("arm", "site", "l0", "shrinkage")
def shrinkage(table: pd.DataFrame, *, title: str, interval: str = "", note: str = "") -> Figure:
    """Shrinkage γ = E‖x̂‖² / E⟨x, x̂⟩ against L0, one panel per site; 1 is none.

    Source: Rajamanoharan et al. 2024, arXiv 2404.16014, section 3.
    """
    if table[["l0", "shrinkage"]].isna().any(axis=1).all():
        return empty_figure(title, "shrinkage is undefined for every SAE", note)
    fig = _against_l0(table, "shrinkage")
    return finish(fig, title, figure_caption(table, interval, note))


def _against_l0(
    table: pd.DataFrame, y: str, pca: pd.DataFrame | None = None, highlight: Any = None
) -> Figure:
    """One panel per site with the curves of all arms and the baselines."""
    shared = {"sharey": True, "sharex": True}
    fig, panels = panels_by(table, "site", "site {:g}".format, ylabel=METRIC_LABELS[y], **shared)
    for ax, site, rows in panels:
        for arm, look in looks_of(table["arm"]).items():
            _curve(ax, rows[rows["arm"] == arm], y, look)
        if rows[["l0", y]].isna().any(axis=1).all():
            say_in_panel(ax, f"{_name(y)}\nundefined here")
        ax.axhline(1, color=LOOKS["mean"].color, ls=":", lw=1.8, label=BEST_OR_MEAN[y], zorder=1)
        if y == "fvu" and pca is not None:
            _pca_line(ax, pca[pca["site"] == site], rows["fvu"].min())
        if highlight is not None and highlight in rows.index:
            _ring(ax, max(rows.loc[highlight, "l0"], L0_FLOOR), rows.loc[highlight, y])
        ax.set_xlabel(METRIC_LABELS["l0"])
    log_axes(panels[0][0], *(("x", "y") if y == "fvu" else "x"))
    return fig


def _name(y: str) -> str:
    """What is drawn, without its unit."""
    return METRIC_LABELS[y].split(" (")[0]


def _curve(ax: Axes, rows: pd.DataFrame, y: str, look: Look) -> None:
    """One curve: seeds as faint points, their mean as the line, collapsed codes at the edge."""
    rows = rows.dropna(subset=["l0", y])
    rows = rows.assign(l0=rows["l0"].clip(lower=L0_FLOOR))
    mean = _seed_means(rows, y)
    ax.plot(mean["l0"], mean[y], color=look.color, marker=look.marker, label=look.label)
    if len(rows) > len(mean):
        ax.plot(rows["l0"], rows[y], look.marker, color=look.color, ms=3.2, alpha=0.5)
    interval_bars(ax.vlines, mean["l0"], mean, look.color)
    collapsed = mean[mean["l0"] <= L0_FLOOR]
    if len(collapsed):
        looks = {"mfc": "white", "mec": look.color, "ms": 9, "mew": 1.5, "ls": "none", "zorder": 4}
        label = f"collapsed: L0 ≤ {L0_FLOOR}"
        ax.plot(collapsed["l0"], collapsed[y], "<", label=label, **looks)


def _seed_means(rows: pd.DataFrame, y: str) -> pd.DataFrame:
    """One row per λ that all seeds have: geometric means of L0 and FVU, arithmetic of the rest.

    Without λ the rows themselves. A λ tried for some seeds alone has points and no mean: a line
    through it would bend with the choice of seeds.
    """
    if "lambda" not in rows:
        return rows.sort_values("l0")
    how: dict[str, Any] = {"l0": _geometric, y: _geometric if y == "fvu" else "mean"}
    how |= {bound: "first" for bound in ("lo", "hi") if bound in rows}
    seeds = rows.groupby("lambda")["l0"].transform("size")
    return rows[seeds == seeds.max()].groupby("lambda", as_index=False).agg(how)


def _geometric(values: pd.Series) -> float:
    return float(np.exp(np.log(values).mean()))


def _pca_line(ax: Axes, pca: pd.DataFrame, least: float) -> None:
    """PCA against its rank, down to a little below the least FVU of the SAEs."""
    shown = pca[(pca["fvu"] >= 0.8 * least) & (pca["rank"] >= 1)].sort_values("rank")
    looks = {"color": LOOKS["pca"].color, "label": LOOKS["pca"].label, "zorder": 1.5}
    ax.plot(shown["rank"], shown["fvu"], **looks)


def _ring(ax: Axes, x: float, y: float) -> None:
    looks = {"mfc": "none", "mec": INK, "ms": 15, "mew": 1.8, "ls": "none", "zorder": 5}
    ax.plot(x, y, "o", label="chosen", **looks)


@requires("site", "arm", "lambda", "fvu", "l0")
def trade_off_by_lambda(
    table: pd.DataFrame, *, title: str, note: str = "", n_layers: int | None = None
) -> Figure:
    """FVU and L0 against λ: a column per arm, a line per site; the grey line is the mean predictor.

    With a column `panel`, whose words say in what units λ is, one column of panels each. Optional
    lo, hi of FVU.
    """
    if table[["fvu", "l0"]].isna().all(axis=None):
        return empty_figure(title, "FVU and L0 are undefined for every SAE", note)
    in_units = "panel" in table
    by = "panel" if in_units else "arm"
    xlabel = "L1 coefficient λ" if in_units else "L1 coefficient λ (normalised units)"
    heads = list(dict.fromkeys(table[by]))
    sharex = "col" if in_units else True
    fig, axes = panel_grid(len(heads), rows=2, height=2.6, sharex=sharex, sharey="row")
    sites = looks_of(sorted(table["site"].unique()), n_layers)
    for column, head in zip(axes.T, heads, strict=True):
        rows = table[table[by] == head]
        for ax, y in zip(column, ("fvu", "l0"), strict=True):
            for site, look in sites.items():
                _line_by_lambda(ax, rows[rows["site"] == site].dropna(subset=[y]), y, look)
        looks = {"color": LOOKS["mean"].color, "ls": ":", "zorder": 1}
        column[0].axhline(1, label=BEST_OR_MEAN["fvu"], **looks)
        column[0].set_title(label_of(head), loc="left")
        column[1].set_xlabel(xlabel, size=9.5)
    for ax in axes.flat:
        log_axes(ax, "x", "y")
    axes[0, 0].set_ylabel("FVU")
    axes[1, 0].set_ylabel(METRIC_LABELS["l0"])
    return finish(fig, title, note)


def _line_by_lambda(ax: Axes, rows: pd.DataFrame, y: str, look: Look) -> None:
    """Geometric means over seeds at each λ, with the bars of FVU."""
    floored = rows.assign(l0=rows["l0"].clip(lower=L0_FLOOR))
    mean = floored.groupby("lambda")[y].apply(_geometric)
    looks = {"color": look.color, "marker": look.marker, "label": look.label}
    ax.plot(mean.index, mean.to_numpy(), **looks)
    if y == "fvu":
        interval_bars(ax.vlines, rows["lambda"], rows, look.color)
