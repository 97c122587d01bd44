"""F2, length of training: does the two-term loss fall behind the full one the longer it is trained?

A term that can only lower gate biases needs time to do its harm. At one site each arm is trained at
several lengths, each a whole run with its own schedule, and compared at L0 = `length_l0`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saelib.config import EvalConfig
from saelib.sae.spec import Spec
from saelib.show import compare
from saelib.study.curve import Curve, reach_l0
from saelib.study.estimate import Estimate, over_seeds
from saelib.study.f2_gated import ARMS, NOTEBOOK, GatedRuns, arm_lambdas, gated_spec, middle_site
from saelib.study.f2_gated import train as train_curves
from saelib.study.finding_params import LengthParams as Params
from saelib.study.scope import Scope

MAX_EXTRA = 4  # further λ per curve: an L0 moves with the length of training
GATED = ("two_term", "full")


# -- what is trained ---------------------------------------------------------------------------


def tokens_of_length(p: Params, share: float) -> int:
    """Training tokens of a run `share` as long, in whole batches."""
    return round(share * p.tokens / p.batch_size) * p.batch_size


def train(ws: Any, p: Params, runs: GatedRuns | None = None) -> dict[tuple[str, float, int], Curve]:
    """Curves at the middle site by (arm, length, seed); FVU alone is measured.

    runs: the curves of length 1, made where they are not given. Every other length begins at the
    two λ between which those have L0 = `length_l0`.
    """
    runs = runs or train_curves(ws, p)
    site = middle_site(ws, p)
    quick = ws.measuring(EvalConfig(ce_tokens=0))

    def spec(arm: str, share: float, seed: int, lam: float) -> Spec:
        return gated_spec(ws, p, arm, site, seed, lam, tokens=tokens_of_length(p, share))

    def reach(starts: Mapping[tuple, list[float]]) -> dict[tuple, Curve]:
        return reach_l0(quick, NOTEBOOK, spec, starts, p.length_l0, MAX_EXTRA, p.refine)

    keys = [(arm, seed) for arm in ARMS for seed in p.seeds]
    whole = {
        (arm, 1.0, seed): runs.curves[arm, site, seed].rows["lambda"].tolist() for arm, seed in keys
    }
    curves = reach(whole)
    given = arm_lambdas(p)
    others = {
        (arm, share, seed): curves[arm, 1.0, seed].bracket(p.length_l0) or given[arm]
        for arm in ARMS
        for share in p.lengths
        for seed in p.seeds
        if share != 1
    }
    return curves | reach(others)


# -- estimates ---------------------------------------------------------------------------------


class Lengths(NamedTuple):
    """log FVU at L0 = `length_l0` by arm and length: per seed, and over seeds."""

    per_seed: dict[tuple[str, float, int], Estimate]
    log_fvu: dict[tuple[str, float], Estimate]
    tokens: dict[float, int]  # of each length

    def over(self, arm: str, against: str, share: float) -> Estimate:
        """FVU of one arm over another's at one length."""
        return (self.log_fvu[arm, share] - self.log_fvu[against, share]).exp()

    @property
    def trend(self) -> Estimate:
        """Two-term over full at the longest training, over the same at the shortest."""
        shares = sorted(self.tokens)
        longest = self.over("two_term", "full", shares[-1])
        return longest / self.over("two_term", "full", shares[0])


def match(p: Params, curves: Mapping[tuple[str, float, int], Curve]) -> Lengths:
    """Read every curve at validation L0 = `length_l0`."""
    per_seed = {key: curve.samples_at_l0(p.length_l0).log() for key, curve in curves.items()}
    log_fvu = {
        (arm, share): over_seeds([per_seed[arm, share, seed] for seed in p.seeds])
        for arm in ARMS
        for share in p.lengths
    }
    return Lengths(per_seed, log_fvu, {share: tokens_of_length(p, share) for share in p.lengths})


def length_table(lengths: Lengths) -> pd.DataFrame:
    """FVU of the Gated arms over the plain SAE's: tokens, hue (arm), value, lo, hi, group, note."""
    rows = []
    for share, tokens in lengths.tokens.items():
        for arm in GATED:
            estimate = lengths.over(arm, "plain", share)
            note = "" if estimate.defined else "unreachable"
            named = {"tokens": tokens, "hue": arm, "group": f"{tokens:,} tokens", "note": note}
            rows.append(named | estimate.row())
    return pd.DataFrame(rows)


def shown_table(lengths: Lengths) -> pd.DataFrame:
    """The same for reading: one row per length, one column per arm, and two-term over full."""
    columns = {
        "two-term / plain": ("two_term", "plain"),
        "full / plain": ("full", "plain"),
        "two-term / full": ("two_term", "full"),
    }
    rows = {
        f"{tokens:,}": [
            lengths.over(*pair, share).text(".3f", "unreachable") for pair in columns.values()
        ]
        for share, tokens in lengths.tokens.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(columns)).rename_axis("tokens")


def seed_table(lengths: Lengths) -> pd.DataFrame:
    """The ratios of single seeds: group, hue, value."""
    rows = []
    for (arm, share, seed), estimate in lengths.per_seed.items():
        if arm == "plain" or share not in lengths.tokens:
            continue
        difference = estimate.value - lengths.per_seed["plain", share, seed].value
        rows.append((f"{lengths.tokens[share]:,} tokens", arm, float(np.exp(difference))))
    return pd.DataFrame(rows, columns=["group", "hue", "value"])


# -- figure ------------------------------------------------------------------------------------


def figure(lengths: Lengths, p: Params, site: int, scope: Scope) -> Figure:
    """FVU over the plain SAE's at each length, one colour per Gated loss."""
    return compare.interval_points(
        length_table(lengths),
        seed_table(lengths) if scope.n_seeds > 1 else None,
        title=title(lengths, p.margin, p.length_l0),
        interval=f"{scope.matched_interval}, paired",
        note=f"Site {site}. {sentence(lengths, p.length_l0)} {scope.note}",
        value_label=f"FVU over the plain SAE's at L0 = {p.length_l0:g}",
        reference=(1, "plain SAE"),
    )


def title(lengths: Lengths, margin: float, l0: float) -> str:
    """What longer training does to the ratio of the two Gated losses."""
    if len(lengths.tokens) < 2:
        return "One length of training shows no trend between the losses"
    titles = {
        "higher": "The two-term loss falls behind the longer it is trained",
        "lower": "The two-term loss catches up the longer it is trained",
        "equal": "Longer training does not part the two Gated losses",
        "unreachable": f"L0 = {l0:g} is not reached at every length",
    }
    word = lengths.trend.compare(1, margin)
    return titles.get(word, "Whether longer training parts the losses stays unclear")


def sentence(lengths: Lengths, l0: float) -> str:
    """FVU of two-term over full at each length in words."""
    parts = []
    for share, tokens in lengths.tokens.items():
        ratio = lengths.over("two_term", "full", share)
        if ratio.defined:
            parts.append(f"{ratio.value:.2f} after {tokens:,} tokens")
    return f"FVU of two-term over full at L0 = {l0:g}: {', '.join(parts) or 'nowhere reached'}."
