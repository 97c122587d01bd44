"""Figures: tables and arrays in, a matplotlib `Figure` out.

Every figure takes its `title` from the caller, who computed the sentence it states; axes carry units; what an error
bar or a band means is written under the figure (`interval` names the columns lo and hi, `note` adds to the caption).
The same thing looks the same everywhere: `looks.csv` holds label, colour and marker of arms, token classes, schedules
and baselines, sites take a sequential map by depth, and resampling is the line style (off dashed, on solid). Within a
group the colours stay apart under simulated protanopia and deuteranopia (a test checks it).
Missing values leave gaps or are named in words, never drawn as zero.
"""

from __future__ import annotations

import csv
import functools
import io
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import seaborn as sns
from IPython.display import Image, display
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saelib.env import root

STYLE = Path(__file__).with_name("plots.mplstyle")
DPI = 150
L0_FLOOR = 0.5  # codes sparser than this have collapsed: log axes end here, and such runs are drawn at the edge
INK, FAINT = "#333333", "#777777"


class Look(NamedTuple):
    """How one thing appears in every figure."""

    label: str
    color: str
    marker: str = "o"


# Okabe and Ito's palette for arms and token classes, Tol's muted one for schedules and whatever has no name there.
with Path(__file__).with_name("looks.csv").open(encoding="utf-8", newline="") as _looks:
    LOOKS: dict[Any, Look] = {row.pop("name"): Look(**row) for row in csv.DictReader(_looks)}
OTHER_COLORS = (
    "#332288",
    "#44AA99",
    "#CCAA33",
    "#882255",
    "#117733",
    "#88CCEE",
    "#AA4499",
    "#661100",
)
OTHER_MARKERS = "osD^vP*X"
METRIC_LABELS = {
    "loss": "training loss (normalised units)",
    "fvu": "FVU (fraction of variance unexplained)",
    "l0": "L0 (active latents a token)",
    "loss_recovered": "loss recovered",
    "dead_fraction": "dead latents (%)",
    "lr": "learning rate",
    "adam_m": "Adam's m",
    "adam_v": "Adam's √v",
    "shrinkage": "shrinkage γ (1 = none)",
}


def style() -> AbstractContextManager:
    """The look of every figure, as a context: nothing global changes outside it."""
    return mpl.rc_context(
        sns.axes_style("ticks") | mpl.rc_params_from_file(STYLE, use_default_template=False)
    )


def site_color(site: int | np.integer, n_layers: int) -> tuple[float, float, float, float]:
    """Colour of a site by its depth site / n_layers, from light pink to dark plum."""
    return mpl.colormaps["RdPu"](0.3 + 0.7 * min(1.0, site / max(n_layers, 1)))


def looks_of(values: Iterable[Any], n_layers: int | None = None) -> dict[Any, Look]:
    """Label, colour and marker of each value: named in `LOOKS`, a site (a whole number), or the next free colour."""
    values = list(dict.fromkeys(values))
    deepest = n_layers or int(max((v for v in values if _is_site(v)), default=1))
    found: dict[Any, Look] = {}
    for value in values:
        free = sum(v not in LOOKS and not _is_site(v) for v in found)
        other = Look(
            str(value),
            OTHER_COLORS[free % len(OTHER_COLORS)],
            OTHER_MARKERS[free % len(OTHER_MARKERS)],
        )
        found[value] = (
            Look(f"site {value}", site_color(value, deepest))
            if _is_site(value)
            else LOOKS.get(value, other)
        )
    return found


def _label(value: Any) -> str:
    return LOOKS[value].label if value in LOOKS else str(value)


def _is_site(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_))


# Parts


def _takes(*columns: str) -> Callable[[Callable[..., Figure]], Callable[..., Figure]]:
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


def _grid(
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


def _panels(
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
    fig, axes = _grid(len(values), **kwargs)
    panels = [(ax, v, table[table[by] == v]) for ax, v in zip(axes.flat, values, strict=False)]
    for ax, value, _ in panels:
        ax.set_title(head(value), loc="left")
    panels[0][0].set_ylabel(ylabel)
    return fig, panels


def _site_rows(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Heading and rows of each site; without a column `site` all rows, and no heading."""
    if "site" not in table:
        return {"": table}
    return {f"site {s}": table[table["site"] == s] for s in _sites(table)}


def _wrap(fig: Figure, text: str, points: float | int) -> str:
    """Break lines so that text of this size fits the figure's width."""
    return textwrap.fill(text, max(20, int(fig.get_figwidth() * 72 / (0.64 * points))))


def _finish(fig: Figure, title: str, note: str = "") -> Figure:
    """Title, caption, and one legend for all panels."""
    fig.suptitle(_wrap(fig, title, 12), x=0.01, ha="left", size=12, weight="bold", color=INK)
    if note:
        fig.supxlabel(_wrap(fig, note, 8.5), x=0.01, ha="left", size=8.5, color="#555555")
    handles: dict[str, Any] = {}
    for ax in fig.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        fig.legend(handles.values(), handles.keys(), loc="outside right center", alignment="left")
    return fig


def _caption(table: pd.DataFrame, interval: str, note: str = "") -> str:
    """The caption; refuses intervals without a name."""
    if {"lo", "hi"} <= set(table.columns) and table[["lo", "hi"]].notna().any(axis=None):
        if not interval:
            raise ValueError(
                "columns lo and hi are drawn: say what they are, interval='95 % bootstrap over pages'"
            )
        note = f"Bars: {interval}. {note}"
    return note.strip()


def _number(value: float | int, _position: int | None = None) -> str:
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


def _log(ax: Axes, *names: str) -> None:
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
        axis.set_major_formatter(_number)
        axis.set_minor_locator(ticker.NullLocator())


def _sites(table: pd.DataFrame) -> list[int]:
    return sorted(int(s) for s in table["site"].unique())


def _site_axis(ax: Axes, sites: Sequence[int], labels: Sequence[str] | None = None) -> None:
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


def _dodge(sites: Sequence[int]) -> float:
    """Distance between groups at one site, so that bars do not hide each other; none where sites are many."""
    return 0.014 * (sites[-1] - sites[0]) if len(sites) <= 8 else 0.0


def _percent(ax: Axes, **limits: float | int) -> None:
    """The y axis holds fractions and shows per cent."""
    ax.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.4g}")
    ax.set_ylim(**limits)


def _thousands(ax: Axes) -> None:
    ax.xaxis.set_major_locator(ticker.MaxNLocator(4))
    ax.xaxis.set_major_formatter(lambda v, _: f"{v / 1000:,.4g}k" if v else "0")
    ax.set_xlabel("training tokens")


def _bars(
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


def _by_site(
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
    _bars(ax.vlines, rows["site"] + shift, rows, look.color)


def _seeded(ax: Axes, rows: pd.DataFrame, x: str, y: str, look: Look, **kwargs: Any) -> None:
    """One thick line; with several seeds thin lines, and the thick one is their mean where all of them are there."""
    rows = rows.dropna(subset=[y]).sort_values(x)
    seeds = rows["seed"].nunique() if "seed" in rows else 1
    if seeds > 1:
        for _, one in rows.groupby("seed"):
            ax.plot(one[x], one[y], color=look.color, lw=0.7, alpha=0.5, **kwargs)
    mean = rows.groupby(x)[y].agg(["mean", "count"]).query("count >= @seeds")["mean"]
    ax.plot(mean.index, mean.to_numpy(), color=look.color, label=look.label, **kwargs)


# 01: the activations


@_takes("site", "class", "q10", "median", "q90")
def norm_profile(table: pd.DataFrame, *, title: str, note: str = "") -> Figure:
    """Norm of the residual stream against depth, by token class (first, sink, ordinary); log y."""
    fig, axes = _grid(1, width=6.2, height=3.4)
    ax = axes[0, 0]
    table = table.rename(columns={"q10": "lo", "q90": "hi"})
    sites = _sites(table)
    step = _dodge(sites)
    for i, (name, look) in enumerate(looks_of(table["class"]).items()):
        _by_site(ax, table[table["class"] == name], "median", look, sites, shift=(i - 1) * step)
    ax.set_ylabel("norm ‖x‖ (model units)")
    _site_axis(ax, sites)
    _log(ax, "y")
    return _finish(fig, title, f"Points: median; bars: 10 % to 90 % of the tokens. {note}")


@_takes("site", "position", "median", "q10", "q90", "variant")
def norm_by_position(table: pd.DataFrame, *, title: str, note: str = "") -> Figure:
    """Norm against position in the context, one panel a site; variants 'as collected' and 'BOS prepended'."""
    fig, panels = _panels(
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
        ax.xaxis.set_major_formatter(_number)
        ax.set(xlabel="position in the context", xlim=(-0.15, None))
    _log(panels[0][0], "y")
    return _finish(fig, title, f"Lines: median; bands: 10 % to 90 % of the contexts. {note}")


@_takes("site", "class", "share_tokens", "share_sq_norm")
def class_shares(table: pd.DataFrame, *, title: str, note: str = "") -> Figure:
    """Share of tokens and of total squared norm by token class, stacked to 100 %; the part not ordinary in figures."""
    fig, axes = _grid(2, width=3.6, sharey=True)
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
    _percent(axes[0, 0], bottom=0, top=1)
    axes[0, 0].set_ylabel("share (%)")
    return _finish(fig, title, f"Numbers above the bars: first and sink tokens together. {note}")


@_takes("site", "offset_share", "top_dim_share_all", "top_dim_share_ordinary")
def mean_offset_and_dims(table: pd.DataFrame, *, title: str, note: str = "") -> Figure:
    """Left: ‖μ‖² / E‖x‖² of ordinary tokens; right: variance in the single largest dimension, all and ordinary."""
    fig, (axes,) = _grid(2, width=3.6, sharey=True)
    sites = _sites(table)
    _by_site(axes[0], table, "offset_share", LOOKS["ordinary"], sites)
    axes[0].set_title("mean squared norm that is the mean vector", loc="left", size=9.5)
    for name in ("all", "ordinary"):
        _by_site(axes[1], table, f"top_dim_share_{name}", LOOKS[name], sites)
    axes[1].set_title("variance in the largest dimension", loc="left", size=9.5)
    for ax in axes:
        _site_axis(ax, sites)
    _percent(axes[0], bottom=0, top=1.03)
    axes[0].set_ylabel("share (%)")
    return _finish(fig, title, note)


@_takes("site", "rank", "cumulative", "variant")
def spectra(
    table: pd.DataFrame, *, title: str, note: str = "", n_layers: int | None = None
) -> Figure:
    """Cumulative share of variance against rank (log x), one line a site, one panel a variant (all, ordinary)."""
    fig, panels = _panels(
        table, "variant", _label, ylabel="cumulative share of variance (%)", width=3.6, sharey=True
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
        _log(ax, "x")
    _percent(panels[0][0], bottom=0, top=1.03)
    return _finish(fig, title, note)


# 02, 05: trade-offs


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
    _bars(ax.vlines, centre["l0"], centre, look.color)
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
    fig, panels = _panels(
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
    _log(panels[0][0], "x", "y") if y == "fvu" else _log(panels[0][0], "x")
    return fig


@_takes("arm", "site", "lambda", "l0")
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
    return _finish(fig, title, _caption(table, interval, seeds + note))


@_takes("arm", "site", "l0", "shrinkage")
def shrinkage(table: pd.DataFrame, *, title: str, interval: str = "", note: str = "") -> Figure:
    """Shrinkage γ = E‖x̂‖² / E⟨x, x̂⟩ against L0, one panel a site; 1 is none (Rajamanoharan et al. 2024)."""
    fig = _against_l0(table, "shrinkage")
    return _finish(fig, title, _caption(table, interval, note))


@_takes("site", "arm", "lambda", "fvu", "l0")
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
    fig, axes = _grid(
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
                    _bars(ax.vlines, rows["lambda"], rows, look.color)
        column[0].axhline(
            1, color=LOOKS["mean"].color, ls=":", label="mean predictor (FVU = 1)", zorder=1
        )
        column[0].set_title(_label(head), loc="left")
        column[1].set_xlabel(units, size=9.5)
    for ax in axes.flat:
        _log(ax, "x", "y")
    for ax, words in zip(axes[:, 0], ("FVU", METRIC_LABELS["l0"]), strict=True):
        ax.set_ylabel(words)
    return _finish(fig, title, note)


# 02, 03, 04: over training


@_takes("tokens", "label")
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
    parts = _site_rows(table)
    fig, axes = _grid(
        len(parts), rows=len(shown), height=2.1, width=3.2 if len(parts) > 1 else 5.6, sharex=True
    )
    for column, (head, rows) in zip(axes.T, parts.items(), strict=True):
        for ax, metric in zip(column, shown, strict=False):
            for label, look in looks_of(table["label"]).items():
                _seeded(ax, rows[rows["label"] == label], "tokens", metric, look)
            _metric_axis(ax, metric)
        _thousands(column[-1])
        column[0].set_title(head, loc="left")
    for ax, metric in zip(axes[:, 0], shown, strict=False):
        ax.set_ylabel(
            METRIC_LABELS[metric].split(" (")[0] + (" (%)" if metric == "dead_fraction" else "")
        )
    many = "seed" in table and table["seed"].nunique() > 1
    return _finish(
        fig, title, (f"Thin lines: seeds; thick: their mean. {note}" if many else note).strip()
    )


def _metric_axis(ax: Axes, metric: str) -> None:
    if metric == "dead_fraction":
        _percent(ax, bottom=0)
    elif metric == "lr":
        ax.yaxis.set_major_formatter(_number)
        ax.set_ylim(bottom=0)
    else:
        _log(ax, "y")


GATE_PANELS = {
    "open_fraction": "open gates (%)",
    "persistence": "gates open at both of two\ncheckpoints / at the first (%)",
    "gini": "concentration of firing (Gini)",
    "b_gate_median": "gate bias b_gate",
}


@_takes("tokens", "arm", "open_fraction", "persistence", "persistence_chance", "gini")
def gate_over_training(table: pd.DataFrame, *, title: str, note: str = "") -> Figure:
    """Open fraction, persistence (with its chance level), Gini and b_gate over training.

    Columns as above with b_gate_q10, b_gate_median, b_gate_q90; four panels, or with a column `site` of several
    values one column of four panels a site. Optional `seed` averages.
    """
    parts = _site_rows(table)
    several = len(parts) > 1
    fig, axes = _grid(*(len(parts), 4) if several else (2, 2), height=2.4, width=3.4, sharex=True)
    columns = axes.T if several else [axes.ravel()]
    for column, (head, rows) in zip(columns, parts.items(), strict=True):
        for ax, y in zip(column, GATE_PANELS, strict=True):
            _gate_panel(ax, rows, y, table["arm"])
        column[0].set_title(head if several else "", loc="left")
    for ax, words in zip(columns[0], GATE_PANELS.values(), strict=True):
        ax.set_ylabel(words, size=9.5)
    for ax in axes[-1]:
        _thousands(ax)
    return _finish(
        fig, title, f"b_gate: median over latents, band 10 % to 90 %. Dotted: chance. {note}"
    )


def _gate_panel(ax: Axes, rows: pd.DataFrame, y: str, arms: Iterable[str]) -> None:
    """One quantity of the gate over training, for every arm."""
    for arm, look in looks_of(arms).items():
        one = rows[rows["arm"] == arm]
        _seeded(ax, one, "tokens", y, look)
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
        _percent(ax, bottom=0)
    elif y == "gini":
        ax.set_ylim(0, 1.02)


@_takes("tokens", "arm", "resample", "setting", "dead_fraction")
def dead_over_time(table: pd.DataFrame, *, title: str, note: str = "") -> Figure:
    """Dead latents (%) over training tokens: one panel a setting, one row a site (if there is a column `site`).

    Colour is the arm, line style resampling; a true `resample_event` marks where latents were resampled.
    """
    settings, parts = list(dict.fromkeys(table["setting"])), _site_rows(table)
    fig, axes = _grid(
        len(settings), rows=len(parts), height=2.6, width=3.6, sharex=True, sharey=True
    )
    for line, (head, rows) in zip(axes, parts.items(), strict=False):
        for ax, setting in zip(line, settings, strict=False):
            _dead_panel(ax, rows[rows["setting"] == setting], table["arm"])
            ax.set_title(f"{setting}, {head}" if head else setting, loc="left")
        line[0].set_ylabel(METRIC_LABELS["dead_fraction"])
    for ax in axes[-1]:
        _thousands(ax)
    _percent(axes[0, 0], bottom=0)
    return _finish(fig, title, note)


def _dead_panel(ax: Axes, rows: pd.DataFrame, arms: Iterable[str]) -> None:
    for arm, look in looks_of(arms).items():
        for value, one in rows[rows["arm"] == arm].groupby("resample", sort=False):
            dashes, words = (
                ("-", "resampling") if value in (True, "on") else ("--", "no resampling")
            )
            _seeded(
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


@_takes("arm", "event", "revived", "alive_later")
def survivors(table: pd.DataFrame, *, title: str, note: str = "") -> Figure:
    """How many resampled latents are alive later: one panel an arm, a pair of bars a resampling event."""
    looks, events = looks_of(table["arm"]), sorted(table["event"].unique())
    fig, panels = _panels(table, "arm", _label, ylabel="latents", width=2.8, sharey=True)
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
    return _finish(fig, title, f"Outline: resampled; filled, with its share: alive later. {note}")


def feature_density(densities: Mapping[str, np.ndarray], *, title: str, note: str = "") -> Figure:
    """Histogram of log10 density (share of tokens on which a latent fires) of the alive latents; dead ones counted.

    densities: label (an arm, or any name) -> [n_latents], fractions of tokens; 0 is dead.
    """
    with style():
        fig, axes = _grid(1, width=6.2, height=3.4)
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
        _log(ax, "x")
        return _finish(fig, title, note)


# 02 to 05: comparisons with intervals


@_takes("group", "hue", "value")
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
    fig, panels = _panels(table, "panel", width=width, height=height, sharey=True, sharex=share_x)
    for ax, panel, rows in panels:
        if reference:
            ax.axvline(reference[0], color=FAINT, lw=1.2, ls=":", label=reference[1], zorder=1)
        small = seeds[seeds["panel"] == panel]
        for i, (hue, look) in enumerate(looks.items()):
            shift = 0.64 * ((i + 0.5) / len(looks) - 0.5)
            _dots(ax, rows[rows["hue"] == hue], small[small["hue"] == hue], groups, shift, look)
        ax.set_xlabel(value_label)
        ax.grid(visible=False, axis="y")
    panels[0][0].set_yticks(range(len(groups)), [_label(g) for g in groups])
    panels[0][0].set_ylim(len(groups) - 0.5, -0.5)
    for ax, _, _ in panels:
        ax.xaxis.set_major_locator(ticker.MaxNLocator(4))
        ax.xaxis.set_major_formatter(_number)
        if log:
            _log(ax, "x")
    caption = _caption(table, interval, note)
    return _finish(fig, title, f"Small open points: seeds. {caption}" if len(seeds) else caption)


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
    _bars(ax.hlines, at, rows, look.color, lw=2.2)
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


# 05: layers


@_takes("site", "recipe", "class", "fvu")
def layer_reconstruction(
    table: pd.DataFrame, *, title: str, interval: str = "", note: str = ""
) -> Figure:
    """FVU against depth by token class (all, ordinary, sink), one panel a recipe; log y, mean predictor at 1.

    Optional lo, hi, and l0, which then stands under each site. Classes without enough tokens are gaps.
    """
    sites, looks = _sites(table), looks_of(table["class"])
    fig, panels = _panels(
        table, "recipe", ylabel=METRIC_LABELS["fvu"], width=3.9, height=3.3, sharey=True
    )
    for ax, _, rows in panels:
        for name, look in looks.items():
            _by_site(ax, rows[rows["class"] == name], "fvu", look, sites)
        ax.axhline(1, color=LOOKS["mean"].color, ls=":", label="mean predictor", zorder=1)
        _site_axis(ax, sites, _l0_labels(rows, sites))
    _log(panels[0][0], "y")
    return _finish(fig, title, _caption(table, interval, note))


def _l0_labels(rows: pd.DataFrame, sites: Sequence[int]) -> list[str] | None:
    """Tick labels 'site, L0 n' where the table has l0 (the mean over its rows of a site)."""
    if "l0" not in rows:
        return None
    l0 = rows.groupby("site")["l0"].mean().reindex(sites)
    return [f"{s}\nL0 {v:,.0f}" if pd.notna(v) else str(s) for s, v in l0.items()]


@_takes("site", "arm", "l0_target", "fvu")
def layer_matched(table: pd.DataFrame, *, title: str, interval: str = "", note: str = "") -> Figure:
    """FVU against depth at matched L0, one panel a target, one line an arm; PCA of rank k = L0 in grey.

    Optional lo, hi, pca_fvu. A missing fvu is 'unreachable': a cross at the top of the panel.
    """
    fig, panels = _panels(
        table, "l0_target", "L0 = {:g}".format, ylabel=METRIC_LABELS["fvu"], height=3.3, sharey=True
    )
    sites, arms = _sites(table), looks_of(table["arm"])
    step = _dodge(sites)
    for ax, _, rows in panels:
        for i, (arm, look) in enumerate(arms.items()):
            shift = (i - (len(arms) - 1) / 2) * step
            one = rows[rows["arm"] == arm]
            _by_site(ax, one, "fvu", look, sites, shift=shift)
            gone = one.loc[one["fvu"].isna(), "site"] + shift
            if len(gone):
                at_top = {
                    "transform": ax.get_xaxis_transform(),
                    "label": f"unreachable: {look.label}",
                    "zorder": 4,
                }
                ax.plot(
                    gone,
                    [0.97] * len(gone),
                    "X",
                    color=look.color,
                    ms=8,
                    mec="white",
                    ls="none",
                    **at_top,
                )
        if "pca_fvu" in rows:
            pca = rows.groupby("site")["pca_fvu"].first()
            ax.plot(
                pca.index,
                pca.to_numpy(),
                color=LOOKS["pca"].color,
                label=LOOKS["pca"].label,
                zorder=1.5,
            )
        _site_axis(ax, sites)
    _log(panels[0][0], "y")
    return _finish(fig, title, _caption(table, interval, note))


@_takes("panel", "series", "site", "value")
def by_depth(
    table: pd.DataFrame, *, title: str, log: Iterable[str] = (), interval: str = "", note: str = ""
) -> Figure:
    """Several quantities against depth, each in its own panel with its own axis.

    Columns panel (its words head the panel), series (an arm, a token class, or any name), site, value; optional lo, hi.
    `log` names the panels with a logarithmic axis; the other axes start at 0.
    """
    sites, looks = _sites(table), looks_of(table["series"])
    fig, panels = _panels(table, "panel", height=2.4, wrap=3)
    for ax, panel, rows in panels:
        for name, one in rows.groupby("series", sort=False):
            _by_site(ax, one, "value", looks[name], sites)
        ax.set_title(panel, loc="left", size=9.5)
        _site_axis(ax, sites)
        _log(ax, "y") if panel in log else ax.set_ylim(0, 1.05 * ax.get_ylim()[1])
    return _finish(fig, title, _caption(table, interval, note))


# Files


def to_png(fig: Figure) -> bytes:
    """The figure as PNG at 150 dpi in 256 colours; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with style():
        fig.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return indexed(buffer.getvalue())


def indexed(png: bytes) -> bytes:
    """A PNG picture in the 256 colours nearest to its own: a third of the bytes, which notebooks and git keep twice."""
    buffer = io.BytesIO()
    with PIL.Image.open(io.BytesIO(png)) as picture:
        few = picture.convert("RGB").quantize(256, dither=PIL.Image.Dither.NONE)
        few.save(buffer, format="png", optimize=True, dpi=picture.info["dpi"])
    return buffer.getvalue()


def save_figure(fig: Figure, name: str, profile: str) -> Path:
    """Write `figures/<profile>/<name>.png` under the workbook's root, atomically, and close the figure."""
    path = root() / "figures" / profile / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(to_png(fig))
    temporary.replace(path)
    plt.close(fig)  # figures of this module are not pyplot's; a caller's own may be
    return path


def show(fig: Figure, name: str, profile: str) -> None:
    """Save the figure, display the saved picture once, and print its name relative to the workbook's root."""
    path = save_figure(fig, name, profile)
    display(Image(path.read_bytes(), width=round(96 * fig.get_figwidth()), alt=fig.get_suptitle()))
    print(path.relative_to(root()).as_posix())
