"""Figures of what an SAE trades: FVU, loss recovered and shrinkage against L0, FVU and L0 against λ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
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
)
from saelib.show.style import INK, L0_FLOOR, LOOKS, METRIC_LABELS, Look, label_of, looks_of


def _geometric(values: pd.Series) -> float:
    return float(np.exp(np.log(values).mean()))


def _seed_means(rows: pd.DataFrame, y: str) -> pd.DataFrame:
    """One row a λ that all seeds have: geometric means of L0 and FVU, arithmetic of the rest; without λ the rows.

    A λ tried for some seeds alone has points and no mean: a line through it would bend with the choice of seeds.
    """
    if "lambda" not in rows:
        return rows.sort_values("l0")
    seeds = rows.groupby("lambda")["l0"].transform("size")
    how = {"l0": _geometric, y: _geometric if y == "fvu" else "mean"} | {
        k: "first" for k in ("lo", "hi") if k in rows
    }
    return rows[seeds == seeds.max()].groupby("lambda", as_index=False).agg(how)


def _curve(ax: Axes, rows: pd.DataFrame, y: str, look: Look) -> None:
    """One trade-off curve: seeds as faint points, their mean as the line, collapsed codes at the axis's edge."""
    rows = rows.dropna(subset=["l0", y]).assign(l0=lambda t: t["l0"].clip(lower=L0_FLOOR))
    centre = _seed_means(rows, y)
    ax.plot(centre["l0"], centre[y], color=look.color, marker=look.marker, label=look.label)
    if len(rows) > len(centre):
        ax.plot(rows["l0"], rows[y], look.marker, color=look.color, ms=3.2, alpha=0.5)
    interval_bars(ax.vlines, centre["l0"], centre, look.color)
    gone = centre[centre["l0"] <= L0_FLOOR]
    if len(gone):
        label = f"collapsed: L0 ≤ {L0_FLOOR}"
        ax.plot(
            gone["l0"],
            gone[y],
            "<",
            mfc="white",
            mec=look.color,
            ms=9,
            mew=1.5,
            ls="none",
            label=label,
            zorder=4,
        )


def _baselines(ax: Axes, y: str, pca: pd.DataFrame | None, floor: float) -> None:
    """Mean predictor and PCA on an FVU axis; the identity where 1 is the best there is."""
    words = {
        "fvu": "mean predictor (FVU = 1)",
        "loss_recovered": "identity (1)",
        "shrinkage": "no shrinkage (1)",
    }[y]
    ax.axhline(1, color=LOOKS["mean"].color, ls=":", lw=1.8, label=words, zorder=1)
    if y == "fvu" and pca is not None:
        shown = pca[(pca["fvu"] >= 0.8 * floor) & (pca["rank"] >= 1)].sort_values("rank")
        ax.plot(
            shown["rank"],
            shown["fvu"],
            color=LOOKS["pca"].color,
            label=LOOKS["pca"].label,
            zorder=1.5,
        )


def _against_l0(
    table: pd.DataFrame, y: str, pca: pd.DataFrame | None = None, highlight: Any = None
) -> Figure:
    fig, panels = panels_by(
        table, "site", "site {:g}".format, ylabel=METRIC_LABELS[y], sharey=True, sharex=True
    )
    for ax, site, rows in panels:
        for arm, look in looks_of(table["arm"]).items():
            _curve(ax, rows[rows["arm"] == arm], y, look)
        _baselines(ax, y, None if pca is None else pca[pca["site"] == site], rows[y].min())
        if highlight is not None and highlight in rows.index:
            at = max(rows.loc[highlight, "l0"], L0_FLOOR), rows.loc[highlight, y]
            ax.plot(
                *at, "o", ms=15, mfc="none", mec=INK, mew=1.8, ls="none", label="chosen", zorder=5
            )
        ax.set_xlabel(METRIC_LABELS["l0"])
    log_axes(panels[0][0], "x", "y") if y == "fvu" else log_axes(panels[0][0], "x")
    return fig


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
    """FVU (or y='loss_recovered') against L0, one panel a site, one curve an arm through its λ.

    Columns arm, site, lambda, l0, and `y`; optional seed rows (same arm, site, lambda) and lo, hi of `y`, which are of
    the mean over seeds and stand in each of their rows.
    `pca` [site, rank, fvu] adds PCA at rank k = L0; `highlight` is the index label of a row to ring.
    """
    fig = _against_l0(table, y, pca, highlight)
    seeds = (
        "Small points: seeds; line: their mean. "
        if table.duplicated(["arm", "site", "lambda"]).any()
        else ""
    )
    return finish(fig, title, figure_caption(table, interval, seeds + note))


@requires("arm", "site", "l0", "shrinkage")
def shrinkage(table: pd.DataFrame, *, title: str, interval: str = "", note: str = "") -> Figure:
    """Shrinkage γ = E‖x̂‖² / E⟨x, x̂⟩ against L0, one panel a site; 1 is none (Rajamanoharan et al. 2024)."""
    fig = _against_l0(table, "shrinkage")
    return finish(fig, title, figure_caption(table, interval, note))


@requires("site", "arm", "lambda", "fvu", "l0")
def trade_off_by_lambda(
    table: pd.DataFrame, *, title: str, note: str = "", n_layers: int | None = None
) -> Figure:
    """FVU and L0 against λ: one column an arm, one line a site; the grey line is the mean predictor.

    With a column `panel`, whose words say in what units λ is, one column of panels each. Optional lo, hi of FVU.
    """
    by, units = (
        ("panel", "L1 coefficient λ")
        if "panel" in table
        else ("arm", "L1 coefficient λ (normalised units)")
    )
    heads = list(dict.fromkeys(table[by]))
    fig, axes = panel_grid(
        len(heads), rows=2, height=2.6, sharex="col" if by == "panel" else True, sharey="row"
    )
    sites = looks_of(sorted(table["site"].unique()), n_layers)
    for column, head in zip(axes.T, heads, strict=True):
        for ax, y in zip(column, ("fvu", "l0"), strict=True):
            for site, look in sites.items():
                rows = table[(table[by] == head) & (table["site"] == site)].dropna(subset=[y])
                mean = (
                    rows.assign(l0=rows["l0"].clip(lower=L0_FLOOR))
                    .groupby("lambda")[y]
                    .apply(_geometric)
                )
                ax.plot(
                    mean.index,
                    mean.to_numpy(),
                    color=look.color,
                    marker=look.marker,
                    label=look.label,
                )
                if y == "fvu":
                    interval_bars(ax.vlines, rows["lambda"], rows, look.color)
        column[0].axhline(
            1, color=LOOKS["mean"].color, ls=":", label="mean predictor (FVU = 1)", zorder=1
        )
        column[0].set_title(label_of(head), loc="left")
        column[1].set_xlabel(units, size=9.5)
    for ax in axes.flat:
        log_axes(ax, "x", "y")
    for ax, words in zip(axes[:, 0], ("FVU", METRIC_LABELS["l0"]), strict=True):
        ax.set_ylabel(words)
    return finish(fig, title, note)
