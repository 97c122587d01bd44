"""Figures of training: metrics, gates and dead latents over its tokens, density of latents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saelib.show.panels import (
    empty_figure,
    finish,
    line_with_seeds,
    log_axes,
    panel_grid,
    panels_by,
    percent_axis,
    requires,
    rows_by_site,
    say_in_panel,
    tick_text,
    token_axis,
)
from saelib.show.style import FAINT, METRIC_LABELS, Look, label_of, looks_of, style

CURVES = ("loss", "fvu", "l0", "dead_fraction", "lr")  # drawn where the caller names none
GATE_PANELS = {
    "open_fraction": "open gates (%)",
    "persistence": "gates open at both of two\ncheckpoints / at the first (%)",
    "gini": "concentration of firing (Gini)",
    "b_gate_median": "gate bias b_gate",
}
DENSITY_BINS = 40


@requires("tokens", "label")
def learning_curves(
    table: pd.DataFrame, *, title: str, note: str = "", metrics: Sequence[str] = ()
) -> Figure:
    """Metrics over training tokens: one row of panels per metric, one column per site.

    Args:
        table: tokens, label (a schedule, an arm, or any name); optional site and seed; any of
            loss, fvu, l0, dead_fraction, lr, adam_m, adam_v. Several seeds are thin lines, their
            mean is thick.
        metrics: the columns to draw, in this order; those the table lacks, or has no value of at
            any site, are left out.

    Raises:
        ValueError: the table has none of the metrics.
    """
    columns = [metric for metric in metrics or CURVES if metric in table.columns]
    if not columns:
        known = ", ".join(CURVES)
        raise ValueError(f"learning_curves: no metric column to draw; it knows {known}")
    shown = [metric for metric in columns if table[metric].notna().any()]
    if not shown:
        return empty_figure(title, "every measure is undefined throughout", note)
    by_site = rows_by_site(table)
    width = 3.2 if len(by_site) > 1 else 5.6
    fig, axes = panel_grid(len(by_site), rows=len(shown), height=2.1, width=width, sharex=True)
    looks = looks_of(table["label"])
    for column, (head, rows) in zip(axes.T, by_site.items(), strict=True):
        for ax, metric in zip(column, shown, strict=False):
            for label, look in looks.items():
                line_with_seeds(ax, rows[rows["label"] == label], "tokens", metric, look)
            if rows[metric].isna().all():
                say_in_panel(ax, "undefined here")
            _metric_axis(ax, metric)
        token_axis(column[-1])
        column[0].set_title(head, loc="left")
    for ax, metric in zip(axes[:, 0], shown, strict=False):
        unit = " (%)" if metric == "dead_fraction" else ""
        ax.set_ylabel(METRIC_LABELS[metric].split(" (")[0] + unit)
    if "seed" in table and table["seed"].nunique() > 1:
        note = f"Thin lines: seeds; thick: their mean. {note}"
    return finish(fig, title, note.strip())


def _metric_axis(ax: Axes, metric: str) -> None:
    if metric == "dead_fraction":
        percent_axis(ax, bottom=0)
    elif metric == "lr":
        ax.yaxis.set_major_formatter(tick_text)
        ax.set_ylim(bottom=0)
    else:
        log_axes(ax, "y")


@requires("tokens", "arm", "open_fraction", "persistence", "persistence_chance", "gini")
def gate_over_training(table: pd.DataFrame, *, title: str, note: str = "") -> Figure:
    """Open fraction, persistence (with its chance level), Gini and b_gate over training.

    Columns as above with b_gate_q10, b_gate_median, b_gate_q90; optional `seed` averages. Four
    panels; with a column `site` of several values one column of four panels per site.
    """
    by_site = rows_by_site(table)
    several = len(by_site) > 1
    shape = (len(by_site), 4) if several else (2, 2)
    fig, axes = panel_grid(*shape, height=2.4, width=3.4, sharex=True)
    columns = axes.T if several else [axes.ravel()]
    for column, (head, rows) in zip(columns, by_site.items(), strict=True):
        for ax, y in zip(column, GATE_PANELS, strict=True):
            _gate_panel(ax, rows, y, table["arm"])
        column[0].set_title(head if several else "", loc="left")
    for ax, label in zip(columns[0], GATE_PANELS.values(), strict=True):
        ax.set_ylabel(label, size=9.5)
    for ax in axes[-1]:
        token_axis(ax)
    bands = "b_gate: median over latents, band 10 % to 90 %. Dotted: chance."
    return finish(fig, title, f"{bands} {note}")


def _gate_panel(ax: Axes, rows: pd.DataFrame, y: str, arms: Iterable[str]) -> None:
    """One quantity of the gate over training, for every arm."""
    for arm, look in looks_of(arms).items():
        one = rows[rows["arm"] == arm]
        line_with_seeds(ax, one, "tokens", y, look)
        if y == "persistence":
            mean = one.groupby("tokens")["persistence_chance"].mean()
            ax.plot(mean.index, mean.to_numpy(), color=look.color, ls=":")
        if y == "b_gate_median":
            band = one.groupby("tokens")[["b_gate_q10", "b_gate_q90"]].mean()
            looks = {"color": look.color, "alpha": 0.18, "lw": 0}
            ax.fill_between(band.index, band["b_gate_q10"], band["b_gate_q90"], **looks)
    if y in ("open_fraction", "persistence"):
        percent_axis(ax, bottom=0)
    elif y == "gini":
        ax.set_ylim(0, 1.02)


@requires("tokens", "arm", "resample", "setting", "dead_fraction")
def dead_over_time(table: pd.DataFrame, *, title: str, note: str = "") -> Figure:
    """Dead latents (%) over training tokens: one panel per setting, one row per site (if any).

    Colour is the arm, line style resampling (off dashed, on solid); a true `resample_event` marks
    where latents were resampled.
    """
    if table["dead_fraction"].isna().all():
        return empty_figure(title, "the share of dead latents is undefined throughout", note)
    settings = list(dict.fromkeys(table["setting"]))
    by_site = rows_by_site(table)
    shape = (len(settings), len(by_site))
    fig, axes = panel_grid(*shape, height=2.6, width=3.6, sharex=True, sharey=True)
    for line, (head, rows) in zip(axes, by_site.items(), strict=False):
        for ax, setting in zip(line, settings, strict=False):
            _dead_panel(ax, rows[rows["setting"] == setting], table["arm"])
            ax.set_title(f"{setting}, {head}" if head else setting, loc="left")
        line[0].set_ylabel(METRIC_LABELS["dead_fraction"])
    for ax in axes[-1]:
        token_axis(ax)
    percent_axis(axes[0, 0], bottom=0)
    return finish(fig, title, note)


def _dead_panel(ax: Axes, rows: pd.DataFrame, arms: Iterable[str]) -> None:
    """Every arm's dead latents, without and with resampling, and when latents were resampled."""
    for arm, look in looks_of(arms).items():
        for resample, one in rows[rows["arm"] == arm].groupby("resample", sort=False):
            _dead_line(ax, one, look, resample in (True, "on"))
    if "resample_event" not in rows:
        return
    moments = rows.loc[rows["resample_event"].astype(bool), "tokens"].unique()
    for i, tokens in enumerate(sorted(moments)):
        label = None if i else "a resampling"
        ax.axvline(tokens, color=FAINT, lw=0.9, ls=":", zorder=1, label=label)


def _dead_line(ax: Axes, rows: pd.DataFrame, look: Look, resampled: bool) -> None:
    label = f"{look.label}, resampling" if resampled else f"{look.label}, no resampling"
    dashes = "-" if resampled else "--"
    line_with_seeds(ax, rows, "tokens", "dead_fraction", look._replace(label=label), ls=dashes)


@requires("arm", "event", "revived", "alive_later")
def survivors(table: pd.DataFrame, *, title: str, note: str = "") -> Figure:
    """How many resampled latents are alive later: a panel per arm, a pair of bars per event."""
    looks = looks_of(table["arm"])
    events = sorted(table["event"].unique())
    fig, panels = panels_by(table, "arm", label_of, ylabel="latents", width=2.8, sharey=True)
    for ax, arm, rows in panels:
        sums = rows.groupby("event")[["revived", "alive_later"]].sum()
        _survivor_bars(ax, np.searchsorted(events, sums.index), sums, looks[arm])
        ax.set_xticks(range(len(events)), [f"{event:,}" for event in events])
        ax.set(xlabel="resampling event", xlim=(-0.6, len(events) - 0.4))
        ax.grid(visible=False, axis="x")
        ax.margins(y=0.12)
    panels[0][0].yaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    return finish(fig, title, f"Outline: resampled; filled, with its share: alive later. {note}")


def _survivor_bars(ax: Axes, places: np.ndarray, sums: pd.DataFrame, look: Look) -> None:
    ax.bar(places, sums["alive_later"], 0.7, color=look.color, lw=0, alpha=0.8)
    outlines = ax.bar(places, sums["revived"], 0.7, color="none", edgecolor=look.color, lw=1.4)
    labels = []
    for revived, alive in sums[["revived", "alive_later"]].to_numpy():
        labels.append(f"{100 * alive / revived:.0f} %" if revived else "none\ndead")
    ax.bar_label(outlines, labels, padding=3, size=9)


def feature_density(densities: Mapping[str, np.ndarray], *, title: str, note: str = "") -> Figure:
    """Histogram of the density of alive latents over a log axis; dead ones are counted in words.

    densities: label (an arm, or any name) -> share of tokens on which each latent fires
        [n_latents]; 0 is dead.
    """
    with style():
        fig, axes = panel_grid(1, width=6.2, height=3.4)
        ax = axes[0, 0]
        edges = _density_edges(densities.values())
        for name, look in looks_of(densities).items():
            _density_steps(ax, np.asarray(densities[name], dtype=float), edges, look)
        ax.set(xlabel="density: share of tokens on which the latent fires", ylabel="latents")
        ax.set_ylim(0, max(1, ax.get_ylim()[1]))
        log_axes(ax, "x")
        return finish(fig, title, note)


def _density_edges(densities: Iterable[np.ndarray]) -> np.ndarray:
    """Bin edges over log10 of all densities above 0."""
    pooled = np.concatenate([*(np.asarray(d, dtype=float) for d in densities), np.zeros(0)])
    alive = np.log10(pooled[pooled > 0])
    if not alive.size:
        return np.linspace(-5, 0, DENSITY_BINS + 1)
    return np.linspace(alive.min() - 0.05, alive.max() + 0.05, DENSITY_BINS + 1)


def _density_steps(ax: Axes, density: np.ndarray, edges: np.ndarray, look: Look) -> None:
    """One histogram; its label counts the dead latents."""
    alive = density[density > 0]
    n_latents = len(density)
    n_dead = n_latents - len(alive)
    share = f"{100 * n_dead / n_latents:.3g} %"
    label = f"{look.label}\n{n_dead:,} of {n_latents:,} dead ({share})"
    heights, _ = np.histogram(np.log10(alive), edges)
    ax.stairs(heights, 10**edges, color=look.color, lw=1.8, label=label)
    ax.stairs(heights, 10**edges, color=look.color, fill=True, alpha=0.12)
