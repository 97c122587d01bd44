"""Figures of latents: what describes them, how many are found again, and a few as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle

from saelib.show.panels import empty_figure, finish, panels_by, requires
from saelib.show.style import DPI, FAINT, INK, LOOKS, looks_of, style
from saelib.show.tokens import shade

# Parts of a bar, in this order: the same colour in every figure of them.
KIND_LOOKS = {
    "token": ("by the token itself", "#0072B2"),
    "next": ("by the token after it", "#56B4E9"),
    "before": ("by the token before it", "#CC79A7"),
    "no short description": ("no short description", "#D9D4CB"),
    "too rare to judge": ("too rare to judge", "#F3F0EA"),
}
FITTING = ("token", "next", "before")
MONO = "DejaVu Sans Mono"
MISSING = "□"  # for a character that the font lacks
CARD_CHARS = 96  # of a context's line
LINE = 0.235  # inches
CHAR = 0.0655  # inches, of a letter of the contexts' size
LETTERS = 7.8  # points


@requires("arm", "site", "kind", "share")
def kinds_of_latents(
    table: pd.DataFrame, totals: pd.DataFrame, *, title: str, note: str = ""
) -> Figure:
    """Living latents by what describes them, one panel an architecture, one bar a site.

    totals: arm, site, share, lo, hi, by_chance, of the judged latents; drawn as points beside.
    """
    labels = looks_of(table["arm"])
    fig, panels = panels_by(
        table,
        "arm",
        lambda arm: labels[arm].label,
        ylabel="share of living latents",
        sharey=True,
        width=3.4,
        height=3.3,
    )
    for ax, arm, rows in panels:
        sites = sorted(rows["site"].unique())
        places = np.arange(len(sites))
        below = np.zeros(len(sites))
        for kind, (label, color) in KIND_LOOKS.items():
            heights = (
                rows[rows["kind"] == kind].set_index("site")["share"].reindex(sites).to_numpy()
            )
            ax.bar(places, heights, 0.62, below, color=color, label=label, ec="#ffffff", lw=0.5)
            below = below + heights
        _totals(ax, totals[totals["arm"] == arm].set_index("site").reindex(sites), places + 0.41)
        ax.set_xticks(places, [str(site) for site in sites])
        ax.set_xlabel("site")
        ax.set_ylim(0, 1)
        ax.grid(axis="x", visible=False)
    return finish(fig, title, note)


def _totals(ax: Any, rows: pd.DataFrame, places: np.ndarray) -> None:
    known = rows["share"].notna().to_numpy()
    ax.vlines(places[known], rows["lo"][known], rows["hi"][known], color=INK, lw=1.3)
    ax.plot(
        places[known],
        rows["share"][known],
        "o",
        color=INK,
        ms=4.5,
        label="looks like one thing,\nof those judged",
    )
    ax.plot(
        places[known],
        rows["by_chance"][known],
        "_",
        color=FAINT,
        ms=9,
        mew=2,
        label="the same on\nshuffled tokens",
    )


@requires("site", "in", "share")
def found_again(table: pd.DataFrame, *, title: str, note: str = "") -> Figure:
    """Share of latents that another training has too, by site: points of each pair, and means."""
    known = table.dropna(subset=["share"])
    if known.empty:
        return empty_figure(title, "no latent was judged", note)
    with style():
        fig = Figure(figsize=(6.4, 3.6), layout="constrained", dpi=DPI)
        ax = fig.subplots()
        sites = sorted(table["site"].unique())
        for n, (name, color) in enumerate(
            zip(
                ("another seed", "the Gated SAE"),
                (LOOKS["plain"].color, LOOKS["full"].color),
                strict=True,
            )
        ):
            rows = known[known["in"] == name]
            if rows.empty:
                continue
            places = np.array([sites.index(site) for site in rows["site"]]) + 0.16 * n - 0.08
            ax.plot(places, rows["share"], "o", color=color, ms=3.5, alpha=0.5)
            mean = rows.groupby("site")["share"].mean().reindex(sites)
            ax.plot(
                np.arange(len(sites)) + 0.16 * n - 0.08,
                mean,
                "_",
                ms=16,
                mew=2.4,
                color=color,
                label=f"in {name}",
            )
        ax.set_xticks(range(len(sites)), [str(site) for site in sites])
        ax.set_xlabel("site")
        ax.set_ylabel("share of judged latents")
        ax.set_ylim(0, 1)
        return finish(fig, title, note)


# A few latents as text


@dataclass(frozen=True)
class Card:
    """One latent: its heading, a line of facts, and contexts as (tokens, activations, peak)."""

    heading: str
    facts: str
    contexts: Sequence[tuple[Sequence[str], Sequence[float | None], int]]


def cards(
    shown: Sequence[Card], reference: Mapping[str, float], *, title: str, note: str = ""
) -> Figure:
    """Latents as text: each context a line, tokens shaded by activation, the strongest outlined.

    reference: by heading, the activation of full colour.
    """
    if not shown:
        return empty_figure(title, "no latent fits the rule", note)
    lines = sum(2.3 + len(card.contexts) for card in shown)
    width = CARD_CHARS * CHAR + 0.7
    with style():
        fig = Figure(figsize=(width, lines * LINE + 1.0), dpi=DPI, layout="constrained")
        ax = fig.subplots()
        ax.set_axis_off()
        ax.set_xlim(0, width - 0.5)
        ax.set_ylim(lines * LINE, 0)
        y = 0.0
        for card in shown:
            y = _card(ax, card, reference[card.heading], y)
        return finish(fig, title, note)


def _card(ax: Any, card: Card, reference: float, y: float) -> float:
    ax.text(0, y + LINE * 0.75, drawable(card.heading), size=9.5, weight="bold", color=INK)
    ax.text(0, y + LINE * 1.5, drawable(card.facts), size=8, color=FAINT)
    y += LINE * 1.75
    for tokens, activations, peak in card.contexts:
        _context(ax, tokens, activations, peak, reference, y)
        y += LINE
    return y + LINE * 0.55


def _context(
    ax: Any,
    tokens: Sequence[str],
    activations: Sequence[float | None],
    peak: int,
    reference: float,
    y: float,
) -> None:
    """A line of tokens, the peak in the middle; what does not fit is cut off."""
    texts = [drawable(token.replace("\n", "↵")) for token in tokens]
    before = sum(map(len, texts[:peak]))
    start = CARD_CHARS // 2 - before  # in letters
    for n, (text, value) in enumerate(zip(texts, activations, strict=True)):
        shown = text[max(0, -start) :] if start < 0 else text
        place = max(start, 0)
        shown = shown[: max(0, CARD_CHARS - place)]
        start += len(text)
        if not shown:
            continue
        _token(ax, shown, value, reference, n == peak, place * CHAR, y)


def _token(
    ax: Any, text: str, value: float | None, reference: float, is_peak: bool, x: float, y: float
) -> None:
    share = 0.0 if value is None else min(1.0, value / reference)
    back, ink = shade(share)
    color = FAINT if value is None else ink
    if share > 0:
        edge = INK if is_peak else back
        box = {"facecolor": back, "edgecolor": edge, "lw": 1.0 if is_peak else 0}
        ax.add_patch(_rectangle(x, y + 0.02, len(text) * CHAR, LINE * 0.88, box))
    weight = "bold" if is_peak else "normal"
    ax.text(x, y + LINE * 0.7, text, family=MONO, size=LETTERS, color=color, weight=weight)


def _rectangle(x: float, y: float, width: float, height: float, look: Mapping[str, Any]) -> Any:
    return Rectangle((x, y), width, height, **look)


def drawable(text: str) -> str:
    """The text with a box for each character that the font lacks; tabs are spaces."""
    known = get_font(findfont(FontProperties(family=MONO))).get_charmap()
    text = text.replace("\t", " ").replace("$", r"\$")
    return "".join(letter if ord(letter) in known else MISSING for letter in text)
