"""The browser without a kernel and without script: what a batch run leaves in a notebook.

One line about the SAE, a short table of latents that are neither rare nor dense, and the page of
one of them. It is deterministic, and every text of a document in it is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Float64

from saelib.measure.columns import FACTS, TITLES
from saelib.measure.features import FeatureIndex
from saelib.show.explore.records import latent_view, reference_activation
from saelib.show.tokens import shade

USUAL_DENSITY = 3e-3  # latents of the table fire about as often: neither rare nor dense
TABLE_ROWS = 12
SHOWN_CONTEXTS = 6
GREY = "#767676"
MISSING = "–"
COLUMNS = ("latent", "fires most on", "promotes most", "density", "largest activation")


def moderate_latents(density: Float64[np.ndarray, " n_latents"], n: int = TABLE_ROWS) -> list[int]:
    """The n living latents with density nearest `USUAL_DENSITY` (in ratio), nearest first."""
    alive = np.flatnonzero(density > 0)
    distance = np.abs(np.log(density[alive] / USUAL_DENSITY))
    return alive[np.argsort(distance, kind="stable")[:n]].tolist()


def static_html(
    index: FeatureIndex,
    tokenizer: Any,
    name: str,
    facts: Mapping[str, Any],
    latent: int | None = None,
) -> str:
    """The whole: the SAE, its table, and the page of `latent` (without it the table's first).

    Raises:
        ValueError: the SAE has no such latent.
    """
    listed = moderate_latents(index.table["density"].to_numpy())
    parts = [_about(index, name, facts), _table(index, listed)]
    chosen = latent if latent is not None else next(iter(listed), None)
    if chosen is not None:
        parts.append(latent_html(index, chosen, tokenizer))
    return _page("".join(parts))


def latent_html(index: FeatureIndex, latent: int, tokenizer: Any, k: int = SHOWN_CONTEXTS) -> str:
    """A latent's page: a sentence, and its k strongest contexts on the SAE's one scale.

    Raises:
        ValueError: the SAE has no such latent.
    """
    view = latent_view(index, latent, tokenizer)
    full = reference_activation(index)
    blocks = [_context(context, full) for context in view["contexts"]["top"][:k]]
    head = f"<p>{_sentence(index, view)}</p>"
    return _page(head + (_legend(full) if blocks else "") + "".join(blocks))


def _page(inner: str) -> str:
    """On white with dark text, whatever the theme around it."""
    style = "background:#ffffff;color:#222222;padding:6px;font-family:sans-serif"
    return f'<div style="{style}">{inner}</div>'


# The SAE


def _about(index: FeatureIndex, name: str, facts: Mapping[str, Any]) -> str:
    dead = int(index.table["dead"].sum())
    latents = f"{index.n_latents:,} latents, {dead:,} of them dead"
    tokens = f"on {index.manifest['n_ordinary']:,} ordinary tokens"
    listed = [f"{TITLES[key]} {_value(facts[key])}" for key in FACTS if key in facts]
    metrics = f"<br>{escape(' · '.join(listed))}" if listed else ""
    return f"<p><b>{escape(name)}</b>: {latents} {tokens}.{metrics}</p>"


def _value(value: Any) -> str:
    """A metric; a dash where it is not defined."""
    if isinstance(value, str):
        return value
    if value is None or not np.isfinite(value):
        return MISSING
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _table(index: FeatureIndex, latents: Sequence[int]) -> str:
    if not latents:
        return "<p>No latent fires on these tokens.</p>"
    head = "".join(_cell("th", title, number > 2) for number, title in enumerate(COLUMNS))
    rows = "".join(f"<tr>{_row(index, latent)}</tr>" for latent in latents)
    note = f"Latents that fire on about {100 * USUAL_DENSITY:.2g} % of the tokens, nearest first."
    style = "border-collapse:collapse;color:#222222;font-variant-numeric:tabular-nums"
    return f'<p>{note}</p><table style="{style}"><tr>{head}</tr>{rows}</table>'


def _row(index: FeatureIndex, latent: int) -> str:
    line = index.table.loc[latent]
    texts = (str(latent), _quoted(line["top_token"]), _quoted(line["promoted"]))
    numbers = (f"{100 * line['density']:.3g} %", f"{line['max']:.3g}")
    cells = [_cell("td", text, False) for text in texts]
    return "".join(cells + [_cell("td", number, True) for number in numbers])


def _cell(tag: str, text: str, right: bool) -> str:
    align = "right" if right else "left"
    return f'<{tag} style="text-align:{align};padding:1px 14px 1px 0">{escape(text)}</{tag}>'


def _quoted(text: str) -> str:
    """A token between marks, so that its spaces are seen; a dash where there is none."""
    return f"‘{_visible(text)}’" if text else MISSING


def _visible(text: str) -> str:
    return text.replace("\n", "↵")


# One latent


def _sentence(index: FeatureIndex, view: Mapping[str, Any]) -> str:
    n_tokens = index.manifest["n_ordinary"]
    name = f"<b>Latent {view['latent']}</b>"
    if view["facts"]["dead"]:
        return f"{name} fires on none of {n_tokens:,} ordinary tokens."
    share = f"{100 * view['facts']['density']:.3g} % of {n_tokens:,} ordinary tokens"
    types = ", ".join(_quoted(entry["text"]) for entry in view["types"][:5])
    promoted = ", ".join(_quoted(entry["text"]) for entry in view["promoted"][:5])
    largest = f"Its largest activation is {view['facts']['max']:.3g}."
    most = f"It fires most on {escape(types)}."
    raises = f" It promotes {escape(promoted)}." if promoted else ""
    return f"{name} fires on {share}. {largest} {most}{raises}"


def _legend(full: float) -> str:
    return (
        f"<p>Its strongest contexts, one per line. Full colour is an activation of {full:.3g} or "
        "more, the median of this SAE’s living latents’ largest; the strongest token is outlined, "
        "grey tokens are not ordinary and left out.</p>"
    )


def _context(context: Mapping[str, Any], full: float) -> str:
    peak = context["peak"]
    tokens = zip(context["tokens"], context["activations"], strict=True)
    text = "".join(_token(piece, value, full, i == peak) for i, (piece, value) in enumerate(tokens))
    place = f"{escape(context['title'])}, position {context['position']}"
    head = f"<b>{context['activations'][peak]:.3g}</b> · {place}"
    style = "margin:0 0 10px;padding:4px 8px;border-left:3px solid #cccccc"
    return (
        f'<div style="{style}"><div style="color:#555555;font-size:85%">{head}</div>'
        f'<div style="white-space:pre-wrap;line-height:1.6">{text}</div></div>'
    )


def _token(piece: str, activation: float | None, full: float, peak: bool) -> str:
    text = escape(piece).replace("\n", "↵\n") or "·"
    if activation is None:
        return f'<span style="color:{GREY}" title="not an ordinary token">{text}</span>'
    if not activation > 0:
        return text
    back, ink = shade(min(1.0, activation / full))
    mark = ";outline:2px solid #000000;font-weight:bold" if peak else ""
    return (
        f'<span style="background:{back};color:{ink}{mark}" title="{activation:.3g}">{text}</span>'
    )
