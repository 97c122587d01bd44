"""Figures of the activations: norms, token classes, the mean vector, dimensions, spectra."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saelib.show.panels import (
    dodge,
    finish,
    line_by_site,
    log_axes,
    panel_grid,
    panels_by,
    percent_axis,
    requires,
    site_axis,
    sites_of,
    tick_text,
)
from saelib.show.style import LOOKS, label_of, looks_of

NORM_LABEL = "norm ‖x‖ (model units)"
MAX_NAMED = 8  # so many sites are named in a legend or on an axis


@requires("site", "class", "q10", "median", "q90")
def norm_profile(table: pd.DataFrame, *, title: str, note: str = "") -> Figure:
    """Norm of the residual stream against depth, by token class (first, sink, ordinary); log y."""
    fig, axes = panel_grid(1, width=6.2, height=3.4)
    ax = axes[0, 0]
    table = table.rename(columns={"q10": "lo", "q90": "hi"})
    sites = sites_of(table)
    step = dodge(sites)
    for i, (name, look) in enumerate(looks_of(table["class"]).items()):
        rows = table[table["class"] == name]
        line_by_site(ax, rows, "median", look, sites, shift=(i - 1) * step)
    ax.set_ylabel(NORM_LABEL)
    site_axis(ax, sites)
    log_axes(ax, "y")
    return finish(fig, title, f"Points: median; bars: 10 % to 90 % of the tokens. {note}")


@requires("site", "position", "median", "q10", "q90", "variant")
def norm_by_position(table: pd.DataFrame, *, title: str, note: str = "") -> Figure:
    """Norm against position in the context, one panel per site, one line per variant.

    Variants are 'as collected' and 'BOS prepended' or 'BOS removed'; the latter are dashed.
    """
    head = "site {:g}".format
    fig, panels = panels_by(table, "site", head, ylabel=NORM_LABEL, sharey=True)
    for ax, _, rows in panels:
        _position_lines(ax, rows, list(table["variant"]))
        # Position 0 has its own place, later ones are logarithmic.
        ax.set_xscale("symlog", linthresh=1)
        ax.xaxis.set_major_formatter(tick_text)
        ax.set(xlabel="position in the context", xlim=(-0.15, None))
    log_axes(panels[0][0], "y")
    return finish(fig, title, f"Lines: median; bands: 10 % to 90 % of the contexts. {note}")


def _position_lines(ax: Axes, rows: pd.DataFrame, variants: Sequence[str]) -> None:
    """Median and band of each variant at one site."""
    for name, look in looks_of(variants).items():
        one = rows[rows["variant"] == name].sort_values("position")
        dashes = "-" if name == "as collected" else (0, (4, 1.5))
        ax.fill_between(one["position"], one["q10"], one["q90"], color=look.color, alpha=0.2, lw=0)
        ax.plot(one["position"], one["median"], color=look.color, ls=dashes, label=look.label)


@requires("site", "variant", "median", "q10", "q90")
def norm_of_first_word(table: pd.DataFrame, *, title: str, note: str = "") -> Figure:
    """Norm of a context's first word without and with BOS before it: two dots per site; log y.

    One row per site and variant ('as collected', and 'BOS prepended' or 'BOS removed').
    """
    fig, axes = panel_grid(1, width=6.2, height=3.4)
    ax = axes[0, 0]
    table = table.rename(columns={"q10": "lo", "q90": "hi"})
    sites = sites_of(table)
    step = 2 * dodge(sites)
    for i, (name, look) in enumerate(looks_of(table["variant"]).items()):
        rows = table[table["variant"] == name]
        line_by_site(ax, rows, "median", look, sites, shift=(i - 0.5) * step)
        ax.lines[-1].set_linestyle("none")
    ax.set_ylabel(NORM_LABEL)
    site_axis(ax, sites)
    log_axes(ax, "y")
    return finish(fig, title, f"Dots: median; bars: 10 % to 90 % of the contexts. {note}".strip())


@requires("site", "class", "share_tokens", "share_sq_norm")
def class_shares(table: pd.DataFrame, *, title: str, note: str = "") -> Figure:
    """Share of tokens and of squared norm by token class, stacked to 100 %, per site.

    The part that is not ordinary stands in figures above each bar.
    """
    fig, axes = panel_grid(2, width=3.6, sharey=True)
    classes = [name for name in ("ordinary", "sink", "first") if name in set(table["class"])]
    panels = {"share_tokens": "share of tokens", "share_sq_norm": "share of squared norm"}
    for ax, (column, head) in zip(axes.flat, panels.items(), strict=True):
        shares = table.pivot(index="site", columns="class", values=column)
        _stacked_shares(ax, shares[classes].fillna(0.0))
        ax.set_title(head, loc="left", pad=18)
        ax.set_xlabel("site (depth)")
        ax.grid(visible=False, axis="x")
    percent_axis(axes[0, 0], bottom=0, top=1)
    axes[0, 0].set_ylabel("share (%)")
    return finish(fig, title, f"Numbers above the bars: first and sink tokens together. {note}")


def _stacked_shares(ax: Axes, shares: pd.DataFrame) -> None:
    """One bar per row of `shares` (index: site; columns: classes)."""
    bottom = np.zeros(len(shares))
    places = np.arange(len(shares))
    for name in shares.columns:
        looks = {"color": LOOKS[name].color, "label": LOOKS[name].label, "lw": 0}
        ax.bar(places, shares[name], 0.72, bottom=bottom, **looks)
        bottom += shares[name].to_numpy()
    if len(shares) <= MAX_NAMED:
        not_ordinary = shares.drop(columns="ordinary", errors="ignore").sum(axis=1)
        for i, share in enumerate(not_ordinary):
            ax.text(i, 1.015, f"{100 * share:.3g} %", ha="center", va="bottom", size=9)
    step = math.ceil(len(shares) / MAX_NAMED)
    ax.set_xticks(places[::step], [str(site) for site in shares.index[::step]])


@requires("site", "offset_share", "top_dim_share_all", "top_dim_share_ordinary")
def mean_offset_and_dims(table: pd.DataFrame, *, title: str, note: str = "") -> Figure:
    """Left: ‖μ‖² / E‖x‖² of ordinary tokens. Right: variance in the largest single dimension."""
    fig, (axes,) = panel_grid(2, width=3.6, sharey=True)
    sites = sites_of(table)
    line_by_site(axes[0], table, "offset_share", LOOKS["ordinary"], sites)
    axes[0].set_title("mean squared norm that is the mean vector", loc="left", size=9.5)
    for name in ("all", "ordinary"):
        line_by_site(axes[1], table, f"top_dim_share_{name}", LOOKS[name], sites)
    axes[1].set_title("variance in the largest dimension", loc="left", size=9.5)
    for ax in axes:
        site_axis(ax, sites)
    percent_axis(axes[0], bottom=0, top=1.03)
    axes[0].set_ylabel("share (%)")
    return finish(fig, title, note)


@requires("site", "rank", "cumulative", "variant")
def spectra(
    table: pd.DataFrame, *, title: str, note: str = "", n_layers: int | None = None
) -> Figure:
    """Cumulative share of variance against rank (log x): a line per site, a panel per variant.

    Variants are token classes (all, ordinary). Of many sites eight are named in the legend.
    """
    ylabel = "cumulative share of variance (%)"
    fig, panels = panels_by(table, "variant", label_of, ylabel=ylabel, width=3.6, sharey=True)
    looks = looks_of(sorted(table["site"].unique()), n_layers)
    named = _evenly_spaced(list(looks), MAX_NAMED)
    for ax, _, rows in panels:
        for site, look in looks.items():
            one = rows[rows["site"] == site].sort_values("rank")
            label = look.label if site in named else None
            ax.plot(one["rank"], one["cumulative"], color=look.color, label=label)
        ax.set_xlabel("rank (principal components)")
        log_axes(ax, "x")
    percent_axis(panels[0][0], bottom=0, top=1.03)
    return finish(fig, title, note)


def _evenly_spaced(values: Sequence[int | np.integer], count: int) -> set[int | np.integer]:
    """First, last and evenly spaced values between them, `count` in all."""
    places = np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)
    return {values[i] for i in places}
