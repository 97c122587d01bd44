"""What the browser shows of an SAE, as plain values: the table of all latents, a page of each.

The notebook sends these to the browser as they are asked for, the atlas holds them in its file.
Numbers that are not defined are None. Texts are as they stand in the documents; whoever shows them
escapes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from saelib.measure.columns import FACTS, TITLES
from saelib.measure.features import FeatureIndex
from saelib.measure.features.columns import LABELS
from saelib.measure.features.contexts import ContextWindow
from saelib.measure.features.index import Scored
from saelib.measure.features.pieces import token_pieces

# Columns of the table that the browser offers, in this order; `columns.TABLE` says what they mean.
NUMBERS = (
    *("density", "max", "mean", "concentration", "n_types", "n_fired"),
    *("nearest_cosine", "companion_jaccard", "share_first", "share_sink", "dead", "revived"),
)
FLAGS = ("dead", "revived")
TOKENS = ("types", "promoted", "suppressed")  # token ids of each latent, most first


class TableView(NamedTuple):
    """The table of all latents: what its columns are, and their values as bytes, little-endian.

    content["numbers"] names the columns, each float32 [n]; then follow content["tokens"], each
    int32 [n, width], -1 where there are fewer. content["texts"] has the text of each token id.
    """

    content: dict[str, Any]
    buffers: list[bytes]


def table_view(index: FeatureIndex, more: pd.DataFrame | None = None) -> TableView:
    """The table of an index; `more` has further numbers by latent, labels in `attrs["labels"]`."""
    table = index.table[list(NUMBERS)]
    labels = {name: LABELS[name] for name in NUMBERS}
    if more is not None:
        table = table.join(more)
        labels |= more.attrs.get("labels", {})
    tokens = {name: index.token_ids(name) for name in TOKENS}
    content = {
        "n": index.n_latents,
        "numbers": [
            {"name": name, "label": labels.get(name, name), "flag": name in FLAGS}
            for name in table.columns
        ],
        "tokens": [{"name": name, "width": ids.shape[1]} for name, ids in tokens.items()],
        "texts": {str(token): text for token, text in index.texts.items()},
    }
    buffers = [table[name].to_numpy("<f4").tobytes() for name in table.columns]
    buffers += [ids.astype("<i4").tobytes() for ids in tokens.values()]
    return TableView(content, buffers)


def reference_activation(index: FeatureIndex) -> float:
    """The activation that is shown in full colour: the median of living latents' largest ones.

    One scale for all latents of an SAE, so that a weak firing looks weak.
    """
    largest = index.table.loc[~index.table["dead"], "max"]
    return float(largest.median()) if len(largest) else 1.0


def about(index: FeatureIndex, name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the browser says of the SAE itself; `facts` are its columns of `results.csv`.

    Those that have a title are said in one line.
    """
    manifest = index.manifest
    return {
        "name": name,
        "site": manifest["site"],
        "n_latents": index.n_latents,
        "n_dead": int(index.table["dead"].sum()),
        "model": manifest["model_id"],
        "source": manifest["source"],
        "n_tokens": manifest["n_ordinary"],
        "n_contexts": manifest["n_contexts"],
        "sae": manifest["sae"],
        "reference": plain(reference_activation(index)),
        "facts": {key: plain(value) for key, value in facts.items()},
        "titles": {key: TITLES[key] for key in FACTS if key in facts},
    }


def latent_view(index: FeatureIndex, latent: int, tokenizer: Any) -> dict[str, Any]:
    """All that an index holds of a latent.

    Raises:
        ValueError: the SAE has no such latent.
    """
    record = index.latent(latent)
    histogram = record.histogram
    return {
        "latent": latent,
        "facts": {name: plain(record.facts[name]) for name in NUMBERS},
        "histogram": {"edges": _numbers(histogram.edges), "counts": histogram.counts.tolist()},
        "contexts": {
            kind: [context_view(window, tokenizer) for window in windows]
            for kind, windows in record.contexts.items()
        },
        "types": [
            {"text": index.text(kind.token_id), "count": kind.count, "mean": plain(kind.mean)}
            for kind in record.token_types
        ],
        "promoted": _token_scores(index, record.promoted),
        "suppressed": _token_scores(index, record.suppressed),
        "nearest": _latent_scores(record.nearest),
        "companions": _latent_scores(record.companions),
    }


def context_view(window: ContextWindow, tokenizer: Any) -> dict[str, Any]:
    """A context: its tokens as they stand in the text, and activations, None where not ordinary."""
    return {
        "title": window.title,
        "position": window.position,
        "peak": window.peak,
        "tokens": token_pieces(tokenizer, window.token_ids.tolist()),
        "activations": _numbers(window.activations),
    }


def _token_scores(index: FeatureIndex, scores: Sequence[Scored]) -> list[dict[str, Any]]:
    return [{"text": index.text(number), "value": plain(value)} for number, value in scores]


def _latent_scores(scores: Sequence[Scored]) -> list[dict[str, Any]]:
    return [{"latent": number, "value": plain(value)} for number, value in scores]


def _numbers(values: np.ndarray) -> list[float | None]:
    return [plain(value) for value in values.tolist()]


def plain(value: Any) -> Any:
    """A value that JSON has: floats to four significant digits, None where undefined."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value
