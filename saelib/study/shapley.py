"""Shares of causes that act together: coalitions of causes, and what each adds on joining."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from itertools import combinations
from typing import Any

import numpy as np

TOGGLES = ("mask", "center", "scale", "match")


def coalitions(players: Collection[str] = TOGGLES) -> list[frozenset[str]]:
    """All 2ⁿ subsets, the smallest first, each size in the players' order."""
    sizes = range(len(players) + 1)
    return [frozenset(subset) for size in sizes for subset in combinations(players, size)]


def recipe_of(coalition: Collection[str]) -> dict[str, str]:
    """`TrainConfig` and `SAEConfig` fields of a coalition of `TOGGLES`; "match" is about λ alone.

    mask    sinks and first positions are left out of training (and of the normaliser)
    center  the site's mean is taken off
    scale   rows are scaled to E‖x‖² = d, site by site

    Raises `ValueError` naming what is not in `TOGGLES`.
    """
    unknown = set(coalition) - set(TOGGLES)
    if unknown:
        raise ValueError(f"{sorted(unknown)}: expected some of {', '.join(TOGGLES)}")
    normalize = "_".join(name for name in ("center", "scale") if name in coalition) or "none"
    return {"normalize": normalize, "tokens_mask": "ordinary" if "mask" in coalition else "all"}


def shapley(value: Mapping[frozenset[str], Any]) -> dict[str, np.ndarray | np.floating]:
    """Shapley value of each player: what it adds on joining, averaged over all orders.

    Source: Shapley (1953).

    value[S] for each subset S of the players: numbers, or arrays of replicates of one shape. The
    shares add up to value[all] − value[∅]. Raises `ValueError` naming a subset that has no value.
    """
    players = sorted(frozenset().union(*value))
    missing = [sorted(subset) for subset in coalitions(players) if subset not in value]
    if missing:
        raise ValueError(
            f"no value of {missing[0]}: expected all {2 ** len(players)} subsets of {players}"
        )
    return {player: _share(value, player, len(players)) for player in players}


def _share(value: Mapping[frozenset[str], Any], player: str, n: int) -> np.ndarray | np.floating:
    """Sum of the player's gains over the coalitions without it.

    Each gain is weighted by the share of orders in which the player joins there.
    """
    share = 0
    for subset, before in value.items():
        if player in subset:
            continue
        orders = math.factorial(len(subset)) * math.factorial(n - len(subset) - 1)
        gain = np.asarray(value[subset | {player}], dtype=float) - np.asarray(before, dtype=float)
        share = share + orders / math.factorial(n) * gain
    return share
