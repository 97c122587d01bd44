"""Is this feature real? The latents of other SAEs that are most like it.

SAEs of one site (other seeds, λ, architectures) are compared by decoder cosine. SAEs of any site of
one model are compared by what they fire on: the Jaccard of the tokens, on the same text. A match is
*mutual* where each is the other's best.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from saelib.measure.features.index import FeatureIndex
from saelib.measure.features.neighbours import Nearest, nearest_by_cosine, nearest_by_firing
from saelib.measure.features.sources import ORDINARY


def twins(a: FeatureIndex, b: FeatureIndex) -> pd.DataFrame:
    """For each latent of a, its best matches in b.

    twin, cosine, mutual                       by decoder cosine; -1, nan, False at another site
    firing_twin, jaccard, firing_mutual        by the tokens on which both fire; -1, 0, False where
                                               it fires with none

    Tokens count that are ordinary for both; `attrs["n_rows"]` says how many were counted.

    Raises:
        ValueError: the indices are of different models or texts; names both.
    """
    _check_same_tokens(a, b)
    same_site = a.manifest["site"] == b.manifest["site"]
    table = pd.DataFrame(index=pd.RangeIndex(a.n_latents, name="latent"))
    if same_site:
        near, back = _cosine_matches(a, b)
        _add(table, "twin", "cosine", "mutual", near, back)
    else:
        table["twin"] = -1
        table["cosine"] = np.nan
        table["mutual"] = False
    rows = np.flatnonzero((a.tokens.kind == ORDINARY) & (b.tokens.kind == ORDINARY))
    near = nearest_by_firing(a.codes, b.codes, rows, 1, same=False)
    back = nearest_by_firing(b.codes, a.codes, rows, 1, same=False)
    _add(table, "firing_twin", "jaccard", "firing_mutual", near.nearest, back.nearest)
    table.attrs["n_rows"] = near.n_rows
    return table


def matches(a: FeatureIndex, b: FeatureIndex) -> pd.DataFrame:
    """For each latent of a its one match in b: twin (-1: none), cosine, jaccard, mutual.

    At one site the match is the nearest by decoder cosine, and jaccard is that pair's; at another
    site it is the nearest by co-firing, and cosine is nan.

    Raises:
        ValueError: the indices are of different models or texts; names both.
    """
    table = twins(a, b)
    if a.manifest["site"] != b.manifest["site"]:
        names = {"firing_twin": "twin", "firing_mutual": "mutual"}
        kept = ["firing_twin", "cosine", "jaccard", "firing_mutual"]
        return table[kept].rename(columns=names)
    pairs = table["twin"].items()
    table["jaccard"] = [_jaccard(a, latent, b, int(twin)) for latent, twin in pairs]
    return table[["twin", "cosine", "jaccard", "mutual"]]


def _jaccard(a: FeatureIndex, latent: int, b: FeatureIndex, twin: int) -> float:
    """Tokens on which both fire over those on which either does; 0 where neither fires."""
    if twin < 0:
        return 0.0
    rows, _ = a.codes.of(latent)
    others, _ = b.codes.of(twin)
    both = len(np.intersect1d(rows, others, assume_unique=True))
    return both / max(len(rows) + len(others) - both, 1)


def _check_same_tokens(a: FeatureIndex, b: FeatureIndex) -> None:
    for name in ("model_id", "corpus_id", "source", "n_rows"):
        _require_equal(a, b, name)


def _require_equal(a: FeatureIndex, b: FeatureIndex, name: str) -> None:
    if a.manifest[name] != b.manifest[name]:
        raise ValueError(
            f"{a.folder} and {b.folder} cannot be compared: {name} is {a.manifest[name]!r} in the "
            f"one and {b.manifest[name]!r} in the other"
        )


def _cosine_matches(a: FeatureIndex, b: FeatureIndex) -> tuple[Nearest, Nearest]:
    """The best match of each latent of a in b, and of b in a."""
    W_a, W_b = (index.sae.W_dec.detach().cpu() for index in (a, b))
    return nearest_by_cosine(W_a, W_b, 1, same=False), nearest_by_cosine(W_b, W_a, 1, same=False)


def _add(
    table: pd.DataFrame, name: str, value: str, mutual: str, near: Nearest, back: Nearest
) -> None:
    """Three columns: the match, how near it is, and whether it is mutual."""
    latent = near.latent[:, 0]
    table[name] = latent
    table[value] = near.value[:, 0]
    table[mutual] = (latent >= 0) & (back.latent[latent, 0] == np.arange(len(latent)))
