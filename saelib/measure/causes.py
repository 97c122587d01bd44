"""What a gap between two sites is made of: shares of causes that act together, and encoder against dictionary."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelib.measure.pursuit import fista_at_l1, learn_atoms, nn_omp, refit
from saelib.sae.base import SAE, GatedSAE

TOGGLES = ("mask", "center", "scale", "match")
LEARN_ROWS = 1024  # training rows a batch when items are learned


def coalitions(players: Collection[str] = TOGGLES) -> list[frozenset[str]]:
    """All 2ⁿ subsets, the smallest first, each size in the players' order."""
    return [
        frozenset(some) for size in range(len(players) + 1) for some in combinations(players, size)
    ]


def recipe_of(coalition: Collection[str]) -> dict[str, str]:
    """`TrainConfig` and `SAEConfig` fields of a coalition of `TOGGLES`; "match" is about λ and no field.

    mask    sinks and first positions are left out of training (and of the normaliser)
    center  the site's mean is taken off
    scale   rows are scaled to E‖x‖² = d, site by site
    """
    unknown = set(coalition) - set(TOGGLES)
    if unknown:
        raise ValueError(f"{sorted(unknown)}: expected some of {', '.join(TOGGLES)}")
    normalize = "_".join(name for name in ("center", "scale") if name in coalition) or "none"
    return {"normalize": normalize, "tokens_mask": "ordinary" if "mask" in coalition else "all"}


def shapley(value: Mapping[frozenset[str], Any]) -> dict[str, np.ndarray | np.floating]:
    """Shapley value of each player: what it adds on joining, averaged over all orders (Shapley 1953).

    value[S] for every subset S of the players, numbers or arrays of replicates of one shape. The values add up to
    value[all] − value[∅].
    """
    players = sorted(frozenset().union(*value))
    missing = [sorted(s) for s in coalitions(players) if s not in value]
    if missing:
        raise ValueError(
            f"no value of {missing[0]}: expected all {2 ** len(players)} subsets of {players}"
        )
    n, out = len(players), {}
    for player in players:
        without = [s for s in value if player not in s]
        weight = [
            math.factorial(len(s)) * math.factorial(n - len(s) - 1) / math.factorial(n)
            for s in without
        ]
        gains = [
            np.asarray(value[s | {player}], dtype=float) - np.asarray(value[s], dtype=float)
            for s in without
        ]
        out[player] = sum(w * gain for w, gain in zip(weight, gains, strict=True))
    return out


@torch.no_grad()
def code_errors(
    sae: SAE | GatedSAE,
    x: Float[Tensor, "n d"],
    train: Float[Tensor, "m d"],
    others: Mapping[str, SAE | GatedSAE] | None = None,
    seed: int = 0,
) -> dict[str, Float[np.ndarray, " n"]]:
    """‖x − x̂‖² of each row (model units) under codes and items other than an SAE's own; `train` are training rows.

    encoder          the SAE as it is
    refitted         the best codes ≥ 0 on the latents that the encoder chose: what its magnitudes cost
    lasso            the decoder's items under `fista` at the encoder's mean ‖f‖₁
    pursuit          the decoder's items, as many on each row as the encoder used, chosen by `nn_omp`
    learned items    pursuit over items that were learned with pursuit on `train`, starting from the decoder's
    random items     pursuit over random directions
    and by the name of each of `others`, other SAEs of the site: pursuit over its items, with the first SAE's number of
    latents on each row.
    """
    for one in (sae, *(others or {}).values()):
        if one.config.l1_mode != "unit_norm":
            raise ValueError(
                f"l1_mode = {one.config.l1_mode!r}: codes are compared under a unit-norm decoder alone"
            )
    target, own, items = sae.normalize(x) - sae.b_dec, sae.encode_raw(x), sae.W_dec
    used = (own > 0).sum(-1)
    batches = (sae.normalize(train) - sae.b_dec).split(LEARN_ROWS)
    learned = learn_atoms(batches, items, max(1, round(float(used.float().mean()))))
    random = torch.randn(items.shape, generator=torch.Generator().manual_seed(seed)).to(items)
    random /= random.norm(dim=-1, keepdim=True)
    rebuilt = {
        "encoder": own @ items,
        "refitted": refit(target, items, own) @ items,
        "lasso": fista_at_l1(target, items, own) @ items,
        "pursuit": nn_omp(target, items, used) @ items,
        "learned items": nn_omp(target, learned, used) @ learned,
        "random items": nn_omp(target, random, used) @ random,
    }
    errors = {name: (target - y) / sae.scale for name, y in rebuilt.items()}
    for name, other in (others or {}).items():
        about = other.normalize(x) - other.b_dec
        errors[name] = (about - nn_omp(about, other.W_dec, used) @ other.W_dec) / other.scale
    return {name: e.double().square().sum(-1).cpu().numpy() for name, e in errors.items()}


def shuffled_dims(x: Float[Tensor, "n d"], seed: int) -> Float[Tensor, "n d"]:
    """Rows whose dimensions are permuted independently: every dimension keeps its values, and nothing they share."""
    generator = torch.Generator(x.device).manual_seed(seed)
    return x.gather(0, torch.rand(x.shape, generator=generator, device=x.device).argsort(0))


class ShuffledDims:
    """A stream of rows (`store.ShuffledRows`) with `shuffled_dims` applied to each batch: what an SAE finds in it is
    not in the activations' structure. The same batch is shuffled the same way whenever it is read."""

    def __init__(self, stream: Any, seed: int = 0) -> None:
        self.stream, self.seed = stream, seed

    def __next__(self) -> tuple[Tensor, np.ndarray]:
        at = self.stream.cursor
        x, rows = next(self.stream)
        return shuffled_dims(x.to(self.stream.device), self.seed + at), rows

    def seek(self, cursor: int) -> None:
        """Continue at the row with this number."""
        self.stream.seek(cursor)

    def sample(self, n: int, generator: torch.Generator, cursor: int) -> Tensor:
        """Up to n rows of the stream, shuffled among themselves."""
        return shuffled_dims(self.stream.sample(n, generator, cursor), self.seed)
