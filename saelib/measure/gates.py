"""How the gates of a gated SAE behave over training, and how concentrated its firing is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

BIAS_QUANTILES = {"b_gate_q10": 0.1, "b_gate_median": 0.5, "b_gate_q90": 0.9}


def gini(values: Iterable) -> float:
    """Gini coefficient of the values.

    It is 0 when all are equal, (n − 1) / n when one holds all, and nan when all are 0.

    Raises `ValueError` without a value, or with one below 0.
    """
    v = np.sort(np.asarray(values, dtype=np.float64))
    if v.size == 0 or v[0] < 0:
        raise ValueError(
            f"gini takes at least one value, none below 0; got {v.size} values, least {v[:1]}"
        )
    total = v.sum()
    if not total:
        return math.nan
    ranks = np.arange(1, v.size + 1)
    return float((2 * ranks - v.size - 1) @ v / (v.size * total))


def gate_statistics(snapshots: Iterable[Any]) -> pd.DataFrame:
    """How gates behave over training, one row per snapshot.

    A snapshot (mapping or object) has step, tokens, fire_rate [n_latents] (share of rows on which a
    latent fires), open [probe rows, n_latents] bool on the same rows each time, b_gate [n_latents].

    open_fraction        share of open (row, latent) entries
    never_open           share of latents whose gate is open on no probe row
    persistence          P(open now | open at the snapshot before), over (row, latent) entries;
                         nan for the first
    persistence_chance   the same if a latent's rows now were independent of its rows before:
                         Σ p q / Σ p over latents, with p and q a latent's open share before and
                         now. Latents that open often keep doing so under it: what persists beyond
                         it is the choice of rows.
    gini                 of fire_rate: how concentrated firing is
    b_gate_q10, b_gate_median, b_gate_q90

    Raises `ValueError` where two snapshots are of other probe rows.
    """
    rows = []
    before = None
    for snapshot in snapshots:
        fields = snapshot if isinstance(snapshot, Mapping) else vars(snapshot)
        now = np.asarray(fields["open"], dtype=bool)
        if before is not None and before.shape != now.shape:
            raise ValueError(
                f"snapshot at step {fields['step']}: open is {now.shape}, "
                f"the one before {before.shape}"
            )
        rows.append(_statistics(fields, before, now))
        before = now
    return pd.DataFrame(rows)


def _statistics(
    fields: Mapping[str, Any], before: np.ndarray | None, now: Bool[np.ndarray, "rows n_latents"]
) -> dict[str, Any]:
    """One row of `gate_statistics`."""
    b_gate = np.asarray(fields["b_gate"], dtype=np.float64)
    quantiles = np.quantile(b_gate, list(BIAS_QUANTILES.values()))
    return {
        "step": fields["step"],
        "tokens": fields["tokens"],
        "open_fraction": now.mean(),
        "never_open": 1 - now.any(0).mean(),
        **_persistence(before, now),
        "gini": gini(np.asarray(fields["fire_rate"], dtype=np.float64)),
        **dict(zip(BIAS_QUANTILES, quantiles, strict=True)),
    }


def _persistence(before: np.ndarray | None, now: np.ndarray) -> dict[str, float]:
    if before is None or not before.any():
        return {"persistence": np.nan, "persistence_chance": np.nan}
    share_before = before.mean(0)
    share_now = now.mean(0)
    chance = share_before @ share_now / share_before.sum()
    return {"persistence": now[before].mean(), "persistence_chance": chance}
