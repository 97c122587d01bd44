"""Figures of training: metrics, gates and dead latents over its tokens, and how often latents fire at its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saelib.show.panels import (
    finish,
    line_with_seeds,
    log_axes,
    panel_grid,
    panels_by,
    percent_axis,
    requires,
    rows_by_site,
    tick_text,
    token_axis,
)
from saelib.show.style import FAINT, METRIC_LABELS, label_of, looks_of, style


@requires("tokens", "label")
def learning_curves(
    table: pd.DataFrame, *, title: str, note: str = "", metrics: Sequence[str] = ()
) -> Figure:
    """Metrics over training tokens: one row of panels a metric, one column a site (if there is a column `site`).

    Columns tokens, label (a schedule, an arm, or any name), seed (optional), and any of loss, fvu, l0, dead_fraction,
    lr, adam_m, adam_v, which `metrics` picks from. Several seeds are thin lines with their mean thick.
    """
    shown = [
        m for m in metrics or ("loss", "fvu", "l0", "dead_fraction", "lr") if m in table.columns
    ]
    if not shown:
        raise ValueError(
            "learning_curves: no metric column to draw; it knows loss, fvu, l0, dead_fraction, lr"
        )
    parts = rows_by_site(table)
    fig, axes = panel_grid(
        len(parts), rows=len(shown), height=2.1, width=3.2 if len(parts) > 1 else 5.6, sharex=True
    )
    for column, (head, rows) in zip(axes.T, parts.items(), strict=True):
        for ax, metric in zip(column, shown, strict=False):
            for label, look in looks_of(table["label"]).items():
                line_with_seeds(ax, rows[rows["label"] == label], "tokens", metric, look)
            _metric_axis(ax, metric)
        token_axis(column[-1])
        column[0].set_title(head, loc="left")
    for ax, metric in zip(axes[:, 0], shown, strict=False):
        ax.set_ylabel(
            METRIC_LABELS[metric].split(" (")[0] + (" (%)" if metric == "dead_fraction" else "")
        )
    many = "seed" in table and table["seed"].nunique() > 1
    return finish(
        fig, title, (f"Thin lines: seeds; thick: their mean. {note}" if many else note).strip()
    )


def _metric_axis(ax: Axes, metric: str) -> None:
    if metric == "dead_fraction":
        percent_axis(ax, bottom=0)
    elif metric == "lr":
        ax.yaxis.set_major_formatter(tick_text)
        ax.set_ylim(bottom=0)
    else:
        log_axes(ax, "y")


GATE_PANELS = {
    "open_fraction": "open gates (%)",
    "persistence": "gates open at both of two\ncheckpoints / at the first (%)",
    "gini": "concentration of firing (Gini)",
    "b_gate_median": "gate bias b_gate",
}


@requires("tokens", "arm", "open_fraction", "persistence", "persistence_chance", "gini")
def gate_over_training(table: pd.DataFrame, *, title: str, note: str = "") -> Figure:
    """Open fraction, persistence (with its chance level), Gini and b_gate over training.

    Columns as above with b_gate_q10, b_gate_median, b_gate_q90; four panels, or with a column `site` of several
    values one column of four panels a site. Optional `seed` averages.
    """
    parts = rows_by_site(table)
    several = len(parts) > 1
    fig, axes = panel_grid(
        *(len(parts), 4) if several else (2, 2), height=2.4, width=3.4, sharex=True
    )
    columns = axes.T if several else [axes.ravel()]
    for column, (head, rows) in zip(columns, parts.items(), strict=True):
        for ax, y in zip(column, GATE_PANELS, strict=True):
            _gate_panel(ax, rows, y, table["arm"])
        column[0].set_title(head if several else "", loc="left")
    for ax, words in zip(columns[0], GATE_PANELS.values(), strict=True):
        ax.set_ylabel(words, size=9.5)
    for ax in axes[-1]:
        token_axis(ax)
    return finish(
        fig, title, f"b_gate: median over latents, band 10 % to 90 %. Dotted: chance. {note}"
    )


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
            ax.fill_between(
                band.index,
                band["b_gate_q10"],
                band["b_gate_q90"],
                color=look.color,
                alpha=0.18,
                lw=0,
            )
    if y in ("open_fraction", "persistence"):
        percent_axis(ax, bottom=0)
    elif y == "gini":
        ax.set_ylim(0, 1.02)


@requires("tokens", "arm", "resample", "setting", "dead_fraction")
def dead_over_time(table: pd.DataFrame, *, title: str, note: str = "") -> Figure:
    """Dead latents (%) over training tokens: one panel a setting, one row a site (if there is a column `site`).

    Colour is the arm, line style resampling; a true `resample_event` marks where latents were resampled.
    """
    settings, parts = list(dict.fromkeys(table["setting"])), rows_by_site(table)
    fig, axes = panel_grid(
        len(settings), rows=len(parts), height=2.6, width=3.6, sharex=True, sharey=True
    )
    for line, (head, rows) in zip(axes, parts.items(), strict=False):
        for ax, setting in zip(line, settings, strict=False):
            _dead_panel(ax, rows[rows["setting"] == setting], table["arm"])
            ax.set_title(f"{setting}, {head}" if head else setting, loc="left")
        line[0].set_ylabel(METRIC_LABELS["dead_fraction"])
    for ax in axes[-1]:
        token_axis(ax)
    percent_axis(axes[0, 0], bottom=0)
    return finish(fig, title, note)


def _dead_panel(ax: Axes, rows: pd.DataFrame, arms: Iterable[str]) -> None:
    for arm, look in looks_of(arms).items():
        for value, one in rows[rows["arm"] == arm].groupby("resample", sort=False):
            dashes, words = (
                ("-", "resampling") if value in (True, "on") else ("--", "no resampling")
            )
            line_with_seeds(
                ax,
                one,
                "tokens",
                "dead_fraction",
                look._replace(label=f"{look.label}, {words}"),
                ls=dashes,
            )
    if "resample_event" in rows:
        for i, tokens in enumerate(
            sorted(rows.loc[rows["resample_event"].astype(bool), "tokens"].unique())
        ):
            ax.axvline(
                tokens, color=FAINT, lw=0.9, ls=":", zorder=1, label=None if i else "a resampling"
            )


@requires("arm", "event", "revived", "alive_later")
def survivors(table: pd.DataFrame, *, title: str, note: str = "") -> Figure:
    """How many resampled latents are alive later: one panel an arm, a pair of bars a resampling event."""
    looks, events = looks_of(table["arm"]), sorted(table["event"].unique())
    fig, panels = panels_by(table, "arm", label_of, ylabel="latents", width=2.8, sharey=True)
    for ax, arm, rows in panels:
        sums = rows.groupby("event")[["revived", "alive_later"]].sum()
        at, color = np.searchsorted(events, sums.index), looks[arm].color
        ax.bar(at, sums["alive_later"], 0.7, color=color, lw=0, alpha=0.8)
        outlines = ax.bar(at, sums["revived"], 0.7, color="none", edgecolor=color, lw=1.4)
        words = [
            f"{100 * alive / revived:.0f} %" if revived else "none\ndead"
            for revived, alive in sums.to_numpy()
        ]
        ax.bar_label(outlines, words, padding=3, size=9)
        ax.set_xticks(range(len(events)), [f"{e:,}" for e in events])
        ax.set(xlabel="resampling event", xlim=(-0.6, len(events) - 0.4))
        ax.grid(visible=False, axis="x")
        ax.margins(y=0.12)
    panels[0][0].yaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    return finish(fig, title, f"Outline: resampled; filled, with its share: alive later. {note}")


def feature_density(densities: Mapping[str, np.ndarray], *, title: str, note: str = "") -> Figure:
    """Histogram of log10 density (share of tokens on which a latent fires) of the alive latents; dead ones counted.

    densities: label (an arm, or any name) -> [n_latents], fractions of tokens; 0 is dead.
    """
    with style():
        fig, axes = panel_grid(1, width=6.2, height=3.4)
        ax = axes[0, 0]
        alive = {k: np.asarray(v, dtype=float)[np.asarray(v) > 0] for k, v in densities.items()}
        pooled = np.log10(np.concatenate([*alive.values(), np.zeros(0)]))
        edges = (
            np.linspace(pooled.min() - 0.05, pooled.max() + 0.05, 41)
            if pooled.size
            else np.linspace(-5, 0, 41)
        )
        for name, look in looks_of(densities).items():
            n, dead = len(densities[name]), len(densities[name]) - len(alive[name])
            label = f"{look.label}\n{dead:,} of {n:,} dead ({100 * dead / n:.3g} %)"
            heights, _ = np.histogram(np.log10(alive[name]), edges)
            ax.stairs(heights, 10**edges, color=look.color, lw=1.8, label=label)
            ax.stairs(heights, 10**edges, color=look.color, fill=True, alpha=0.12)
        ax.set(xlabel="density: share of tokens on which the latent fires", ylabel="latents")
        ax.set_ylim(0, max(1, ax.get_ylim()[1]))
        log_axes(ax, "x")
        return finish(fig, title, note)
