"""The atlas: the browser of one SAE's features as a single HTML file, with its data inside.

No network, no kernel. The data is JSON, compressed (deflate, base64). The tokens of the index stand
in it once, and contexts are spans of them, so that thousands of latents take few megabytes. Equal
indices give equal bytes.
"""

from __future__ import annotations

import base64
import itertools
import json
import zlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from saelib.files import write_text
from saelib.measure.features import FeatureIndex
from saelib.measure.features.contexts import KINDS, WIDTH, ContextWindow
from saelib.measure.features.pieces import token_pieces
from saelib.measure.features.sources import ORDINARY
from saelib.measure.features.statistics import EDGES
from saelib.measure.features.twin_tables import best_twin
from saelib.measure.latents import latent_number
from saelib.show.explore import frontend
from saelib.show.explore.notes import Note
from saelib.show.explore.records import FLAGS, NUMBERS, about, plain, table_view
from saelib.show.explore.relations import twin_rows

MOST = 2500  # latents of a file, the strongest of a larger dictionary: a few megabytes
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ margin: 0; }} nav {{ padding: 0.4rem 0.7rem; font: 14px system-ui, sans-serif; }}
@media screen and (prefers-color-scheme: dark) {{ body {{ background: #161616; color: #e8e6e3; }}
 nav a {{ color: #8ab4f8; }} }}
{style}
</style></head><body>{bar}<div id="atlas" class="sae-follows"></div>
<noscript>This page needs scripts; it asks no server for anything.</noscript>
<script type="text/plain" id="atlas-data">{data}</script>
<script type="module">
{script}
openAtlas(document.getElementById("atlas"), document.getElementById("atlas-data"));
</script></body></html>
"""


class Extras(NamedTuple):
    """What an atlas shows beside the index, by latent."""

    descriptions: Mapping[int, tuple[str, float | None]] = MappingProxyType({})  # text, score
    notes: Mapping[int, Note] = MappingProxyType({})
    ablation: pd.DataFrame | None = None  # `measure.features.ablation_losses`


def write_atlas(
    path: str | Path,
    index: FeatureIndex,
    tokenizer: Any,
    name: str,
    facts: Mapping[str, Any],
    *,
    latents: Sequence[int] | None = None,
    twins: Mapping[str, pd.DataFrame] | None = None,
    pages: Mapping[str, str] | None = None,
    links: Sequence[tuple[str, str]] = (),
    extras: Extras | None = None,
) -> Path:
    """Write the page of an SAE's features.

    latents: those of the page, without them the `MOST` whose largest activations are largest.
    twins: by the name of another SAE, `measure.features.matches` of this index with that SAE's.
    pages: by the same names, the file of that SAE's own atlas, to be linked. links: (target, text)
    of a bar above, such as the way back to a report.

    Raises:
        ConfigError: there is no such latent.
    """
    chosen = _chosen(index, latents)
    data = _data(index, tokenizer, name, facts, chosen, twins or {}, pages or {})
    _add_extras(data, chosen, extras or Extras())
    page = PAGE.format(
        title=escape(f"Features of {name}"),
        style=frontend.style(),
        bar=_bar(links),
        data=packed(data),
        script=frontend.script(frontend.ATLAS),
    )
    write_text(Path(path), page)
    return Path(path)


def packed(data: Mapping[str, Any]) -> str:
    """JSON, compressed, in letters that a page may hold anywhere."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _bar(links: Sequence[tuple[str, str]]) -> str:
    if not links:
        return ""
    shown = [f'<a href="{escape(target, quote=True)}">{escape(text)}</a>' for target, text in links]
    return f"<nav>{' · '.join(shown)}</nav>"


def _chosen(index: FeatureIndex, latents: Sequence[int] | None) -> list[int]:
    if latents is None:
        order = np.argsort(-index.table["max"].to_numpy(), kind="stable")
        return sorted(order[:MOST].tolist())
    return sorted({latent_number(latent, index.n_latents) for latent in latents})


def _data(
    index: FeatureIndex,
    tokenizer: Any,
    name: str,
    facts: Mapping[str, Any],
    chosen: Sequence[int],
    twins: Mapping[str, pd.DataFrame],
    pages: Mapping[str, str],
) -> dict[str, Any]:
    pages_of = [_latent(index, latent) for latent in chosen]
    for latent, entry in zip(chosen, pages_of, strict=True):
        if twins:
            entry["twins"] = _twins(twins, latent)
    return {
        "about": about(index, name, facts) | {"relatives": len(twins)},
        "edges": [plain(float(edge)) for edge in EDGES],
        "table": _table(index, chosen, best_twin(twins)),
        "stream": _stream(index, tokenizer),
        "latents": pages_of,
        "others": [{"name": other, "href": pages.get(other)} for other in twins],
    }


def _add_extras(data: dict[str, Any], chosen: Sequence[int], extras: Extras) -> None:
    notes = {latent: extras.notes[latent].to_dict() for latent in chosen if latent in extras.notes}
    described = {n: extras.descriptions[n] for n in chosen if n in extras.descriptions}
    data["about"]["notes"] = notes
    data["about"]["descriptions"] = {latent: text for latent, (text, _) in described.items()}
    for latent, entry in zip(chosen, data["latents"], strict=True):
        if latent in notes:
            entry["note"] = notes[latent]
        if latent in described:
            text, score = described[latent]
            entry["description"] = {"text": text, "score": plain(score)}
        if extras.ablation is not None and latent in extras.ablation.index:
            line = extras.ablation.loc[latent, ["delta_ce", "n_contexts"]]
            entry["ablation"] = {name: plain(value) for name, value in line.items()}


def _table(index: FeatureIndex, chosen: Sequence[int], more: pd.DataFrame | None) -> dict[str, Any]:
    """The table of the chosen latents, with the texts that it and the pages name."""
    content = table_view(index, more).content
    table = index.table if more is None else index.table.join(more)
    numbers = [
        column | {"values": [plain(value) for value in table[column["name"]].iloc[chosen]]}
        for column in content["numbers"]
    ]
    tokens = [
        entry | {"ids": index.token_ids(entry["name"])[chosen].ravel().tolist()}
        for entry in content["tokens"]
    ]
    named = {token for entry in tokens for token in entry["ids"]}
    texts = {token: text for token, text in content["texts"].items() if int(token) in named}
    return {"ids": list(chosen), "numbers": numbers, "tokens": tokens, "texts": texts}


def _stream(index: FeatureIndex, tokenizer: Any) -> dict[str, Any]:
    """The tokens of the index as texts, each text once, and the contexts that they stand in.

    A context: its first row, the end of its rows, and position and page of the first.
    """
    tokens = index.tokens
    starts = np.flatnonzero(np.r_[True, tokens.context[1:] != tokens.context[:-1]])
    bounds = [*starts.tolist(), len(tokens)]
    numbers: dict[str, int] = {}
    piece: list[int] = []
    for first, stop in itertools.pairwise(bounds):
        for text in token_pieces(tokenizer, tokens.token_id[first:stop].tolist()):
            piece.append(numbers.setdefault(text, len(numbers)))
    contexts = [
        {
            "first": first,
            "stop": stop,
            "position": int(tokens.position[first]),
            "page": int(tokens.page[first]),
        }
        for first, stop in itertools.pairwise(bounds)
    ]
    return {
        "width": WIDTH,
        "pieces": list(numbers),
        "piece": piece,
        "ordinary": "".join("1" if kind == ORDINARY else "0" for kind in tokens.kind.tolist()),
        "contexts": contexts,
        "titles": list(tokens.titles),
    }


def _latent(index: FeatureIndex, latent: int) -> dict[str, Any]:
    record = index.latent(latent)
    counts = record.histogram.counts
    return {
        "facts": {
            name: plain(bool(record.facts[name]) if name in FLAGS else record.facts[name])
            for name in NUMBERS
        },
        "histogram": [[int(bin), int(counts[bin])] for bin in np.flatnonzero(counts)],
        "contexts": {
            kind: _windows(index.context_rows(latent, kind), record.contexts[kind])
            for kind in KINDS
        },
        "types": [[kind.token_id, kind.count, plain(kind.mean)] for kind in record.token_types],
        "promoted": _scores(record.promoted),
        "suppressed": _scores(record.suppressed),
        "nearest": _scores(record.nearest),
        "companions": _scores(record.companions),
    }


def _scores(entries: Sequence[tuple[int, float]]) -> list[list[Any]]:
    return [[number, plain(value)] for number, value in entries]


def _windows(rows: Sequence[int], contexts: Sequence[ContextWindow]) -> list[list[Any]]:
    """[peak's row, [place from the peak, activation, place, …]] of each kept context."""
    windows = []
    for row, shown in zip(rows, contexts, strict=True):
        fired = np.flatnonzero(np.nan_to_num(shown.activations) > 0).tolist()
        entries = [(n - shown.peak, plain(float(shown.activations[n]))) for n in fired]
        windows.append([row, list(itertools.chain.from_iterable(entries))])
    return windows


def _twins(twins: Mapping[str, pd.DataFrame], latent: int) -> list[list[Any]]:
    """[number of the other SAE, its latent, cosine, Jaccard, mutual], nearest first."""
    numbers = {name: number for number, name in enumerate(twins)}
    return [
        [row["subject"], row["latent"], row["cosine"], row["jaccard"], row["mutual"]]
        for row in twin_rows(twins, latent, numbers)
    ]
