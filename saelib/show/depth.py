"""Figures of depth: reconstruction and other quantities from site to site."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saelib.show.panels import (
    dodge,
    empty_figure,
    figure_caption,
    finish,
    line_by_site,
    log_axes,
    panels_by,
    requires,
    site_axis,
    sites_of,
    zero_based_axis,
)
from saelib.show.style import LOOKS, METRIC_LABELS, Look, looks_of


@requires("site", "recipe", "class", "fvu")
def layer_reconstruction(
    table: pd.DataFrame, *, title: str, interval: str = "", note: str = ""
) -> Figure:
    """FVU against depth by token class (all, ordinary, sink), one panel per recipe; log y.

    The mean predictor stands at 1. Optional lo, hi, and l0, which then stands under each site.
    Classes without enough tokens are gaps.
    """
    if table["fvu"].isna().all():
        return empty_figure(title, "the FVU is undefined at every site", note)
    sites = sites_of(table)
    looks = looks_of(table["class"])
    size = {"width": 3.9, "height": 3.3}
    fig, panels = panels_by(table, "recipe", ylabel=METRIC_LABELS["fvu"], sharey=True, **size)
    for ax, _, rows in panels:
        for name, look in looks.items():
            line_by_site(ax, rows[rows["class"] == name], "fvu", look, sites)
        ax.axhline(1, color=LOOKS["mean"].color, ls=":", label="mean predictor", zorder=1)
        site_axis(ax, sites, _l0_labels(rows, sites))
    log_axes(panels[0][0], "y")
    return finish(fig, title, figure_caption(table, interval, note))


def _l0_labels(rows: pd.DataFrame, sites: Sequence[int]) -> list[str] | None:
    """Tick labels 'site, L0 n' where the table has l0 (the mean over its rows of a site)."""
    if "l0" not in rows:
        return None
    labels = []
    for site, l0 in rows.groupby("site")["l0"].mean().reindex(sites).items():
        labels.append(f"{site}\nL0 {l0:,.0f}" if pd.notna(l0) else str(site))
    return labels


@requires("site", "arm", "l0_target", "fvu")
def layer_matched(table: pd.DataFrame, *, title: str, interval: str = "", note: str = "") -> Figure:
    """FVU against depth at matched L0: a panel per target, a line per arm, PCA of rank k = L0.

    Optional lo, hi, pca_fvu. A missing fvu is 'unreachable': a cross at the top of the panel.
    """
    if table["fvu"].isna().all():
        targets = ", ".join(f"{target:g}" for target in sorted(table["l0_target"].unique()))
        return empty_figure(title, f"no λ reaches L0 = {targets} at any site", note)
    head = "L0 = {:g}".format
    labels = {"ylabel": METRIC_LABELS["fvu"], "height": 3.3}
    fig, panels = panels_by(table, "l0_target", head, sharey=True, **labels)
    sites = sites_of(table)
    arms = looks_of(table["arm"])
    step = dodge(sites)
    for ax, _, rows in panels:
        for i, (arm, look) in enumerate(arms.items()):
            shift = (i - (len(arms) - 1) / 2) * step
            one = rows[rows["arm"] == arm]
            line_by_site(ax, one, "fvu", look, sites, shift=shift)
            _crosses(ax, one.loc[one["fvu"].isna(), "site"] + shift, look)
        if "pca_fvu" in rows:
            pca = rows.groupby("site")["pca_fvu"].first()
            looks = {"color": LOOKS["pca"].color, "label": LOOKS["pca"].label, "zorder": 1.5}
            ax.plot(pca.index, pca.to_numpy(), **looks)
        site_axis(ax, sites)
    log_axes(panels[0][0], "y")
    return finish(fig, title, figure_caption(table, interval, note))


def _crosses(ax: Axes, sites: pd.Series, look: Look) -> None:
    """Mark at the top of the panel where an arm does not reach the L0."""
    if len(sites):
        looks = {"color": look.color, "ms": 8, "mec": "white", "ls": "none", "zorder": 4}
        place = {"transform": ax.get_xaxis_transform(), "label": f"unreachable: {look.label}"}
        ax.plot(sites, [0.97] * len(sites), "X", **place, **looks)


@requires("panel", "series", "site", "value")
def by_depth(
    table: pd.DataFrame, *, title: str, log: Iterable[str] = (), interval: str = "", note: str = ""
) -> Figure:
    """Several quantities against depth, each in its own panel with its own axis.

    Columns panel (its words head the panel), series (an arm, a token class, or any name), site,
    value; optional lo, hi. `log` names the panels with a logarithmic axis; the others start at 0,
    or below it where values do.
    """
    sites = sites_of(table)
    looks = looks_of(table["series"])
    n_panels = table["panel"].nunique()
    size = (
        {"wrap": 4, "width": 2.7} if n_panels % 3 == 1 else {"wrap": 3}
    )  # no panel in a row alone
    fig, panels = panels_by(table, "panel", height=2.4, **size)
    for ax, panel, rows in panels:
        for name, one in rows.groupby("series", sort=False):
            line_by_site(ax, one, "value", looks[name], sites)
        ax.set_title(panel, loc="left", size=9.5)
        site_axis(ax, sites)
        if panel in log:
            log_axes(ax, "y")
        else:
            zero_based_axis(ax, rows[["value", *({"lo"} & set(rows))]].min(axis=1))
    return finish(fig, title, figure_caption(table, interval, note))
