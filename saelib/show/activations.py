"""Figures of notebook 01: norms, token classes, the mean vector, dimensions and spectra of the activations."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
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


@requires("site", "class", "q10", "median", "q90")
def norm_profile(table: pd.DataFrame, *, title: str, note: str = "") -> Figure:
    """Norm of the residual stream against depth, by token class (first, sink, ordinary); log y."""
    fig, axes = panel_grid(1, width=6.2, height=3.4)
    ax = axes[0, 0]
    table = table.rename(columns={"q10": "lo", "q90": "hi"})
    sites = sites_of(table)
    step = dodge(sites)
    for i, (name, look) in enumerate(looks_of(table["class"]).items()):
        line_by_site(ax, table[table["class"] == name], "median", look, sites, shift=(i - 1) * step)
    ax.set_ylabel("norm ‖x‖ (model units)")
    site_axis(ax, sites)
    log_axes(ax, "y")
    return finish(fig, title, f"Points: median; bars: 10 % to 90 % of the tokens. {note}")


@requires("site", "position", "median", "q10", "q90", "variant")
def norm_by_position(table: pd.DataFrame, *, title: str, note: str = "") -> Figure:
    """Norm against position in the context, one panel a site; variants 'as collected' and 'BOS prepended'."""
    fig, panels = panels_by(
        table, "site", "site {:g}".format, ylabel="norm ‖x‖ (model units)", sharey=True
    )
    for ax, _, rows in panels:
        for name, look in looks_of(table["variant"]).items():
            one = rows[rows["variant"] == name].sort_values("position")
            dashes = "-" if name == "as collected" else (0, (4, 1.5))
            ax.fill_between(
                one["position"], one["q10"], one["q90"], color=look.color, alpha=0.2, lw=0
            )
            ax.plot(one["position"], one["median"], color=look.color, ls=dashes, label=look.label)
        ax.set_xscale(
            "symlog", linthresh=1
        )  # position 0 has its own place, later ones are logarithmic
        ax.xaxis.set_major_formatter(tick_text)
        ax.set(xlabel="position in the context", xlim=(-0.15, None))
    log_axes(panels[0][0], "y")
    return finish(fig, title, f"Lines: median; bands: 10 % to 90 % of the contexts. {note}")


@requires("site", "class", "share_tokens", "share_sq_norm")
def class_shares(table: pd.DataFrame, *, title: str, note: str = "") -> Figure:
    """Share of tokens and of total squared norm by token class, stacked to 100 %; the part not ordinary in figures."""
    fig, axes = panel_grid(2, width=3.6, sharey=True)
    order = [c for c in ("ordinary", "sink", "first") if c in set(table["class"])]
    for ax, column, words in zip(
        axes.flat, ("share_tokens", "share_sq_norm"), ("tokens", "squared norm"), strict=True
    ):
        shares = table.pivot(index="site", columns="class", values=column)[order].fillna(0.0)
        bottom, at = np.zeros(len(shares)), np.arange(len(shares))
        for name in order:
            ax.bar(
                at,
                shares[name],
                0.72,
                bottom=bottom,
                lw=0,
                color=LOOKS[name].color,
                label=LOOKS[name].label,
            )
            bottom += shares[name].to_numpy()
        odd = shares.drop(columns="ordinary", errors="ignore").sum(axis=1)
        for i, share in enumerate(odd if len(odd) <= 8 else ()):
            ax.text(i, 1.015, f"{100 * share:.3g} %", ha="center", va="bottom", size=9)
        ax.set_title(f"share of {words}", loc="left", pad=18)
        every = math.ceil(len(shares) / 8)
        ax.set_xticks(at[::every], [str(s) for s in shares.index[::every]])
        ax.set_xlabel("site (depth)")
        ax.grid(visible=False, axis="x")
    percent_axis(axes[0, 0], bottom=0, top=1)
    axes[0, 0].set_ylabel("share (%)")
    return finish(fig, title, f"Numbers above the bars: first and sink tokens together. {note}")


@requires("site", "offset_share", "top_dim_share_all", "top_dim_share_ordinary")
def mean_offset_and_dims(table: pd.DataFrame, *, title: str, note: str = "") -> Figure:
    """Left: ‖μ‖² / E‖x‖² of ordinary tokens; right: variance in the single largest dimension, all and ordinary."""
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
    """Cumulative share of variance against rank (log x), one line a site, one panel a variant (all, ordinary)."""
    fig, panels = panels_by(
        table,
        "variant",
        label_of,
        ylabel="cumulative share of variance (%)",
        width=3.6,
        sharey=True,
    )
    looks = looks_of(sorted(table["site"].unique()), n_layers)
    named = {
        list(looks)[i]
        for i in np.linspace(0, len(looks) - 1, min(8, len(looks))).round().astype(int)
    }
    for ax, _, rows in panels:
        for site, look in looks.items():
            one = rows[rows["site"] == site].sort_values("rank")
            ax.plot(
                one["rank"],
                one["cumulative"],
                color=look.color,
                label=look.label if site in named else None,
            )
        ax.set_xlabel("rank (principal components)")
        log_axes(ax, "x")
    percent_axis(panels[0][0], bottom=0, top=1.03)
    return finish(fig, title, note)
