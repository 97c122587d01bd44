"""Beside F3f: with all four causes removed, does another choice of the recipe close the gap?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saelib.sae.spec import Spec
from saelib.show import compare
from saelib.study.curve import Curve
from saelib.study.estimate import Estimate, over_seeds
from saelib.study.f3_causes import MISSING, cause_spec, match_curves, recipe_words
from saelib.study.f3_sites import Compared
from saelib.study.notebooks import LayerParams
from saelib.study.scope import Scope
from saelib.study.shapley import TOGGLES


def choices(p: LayerParams) -> dict[str, dict[str, Any]]:
    """What else the recipe could have chosen, the same for both sites."""
    return {
        "as it is": {},
        "twice the latents": {"n_latents": 2 * p.cause_latents},
        "twice the tokens": {"tokens": 2 * p.cause_tokens},
        "b_dec from the mean": {"b_dec_init": "mean"},
        "half the learning rate": {"lr": p.lr / 2},
        "twice the learning rate": {"lr": 2 * p.lr},
    }


def train(ws: Any, p: LayerParams, compared: Compared) -> dict[tuple[str, int, int], Curve]:
    """Curves of λ for each choice at both sites, by (choice, site, seed)."""
    scaled = frozenset(TOGGLES[:3])
    fields = choices(p)

    def make(choice: str, site: int, seed: int, lam: float) -> Spec:
        return cause_spec(ws, p, scaled, site, seed, lam, **fields[choice])

    start = dict.fromkeys(product(fields, compared.pair), p.cause_lambdas)
    return match_curves(ws, p, make, start)


@dataclass(frozen=True)
class Choices:
    """log FVU at matched L0 by (choice, site, seed)."""

    log_fvu: Mapping[tuple[str, int, int], Estimate]
    compared: Compared

    @property
    def names(self) -> list[str]:
        """The choices, the recipe as it is first."""
        return list(dict.fromkeys(name for name, _, _ in self.log_fvu))

    def at_site(self, name: str, site: int) -> Estimate:
        """log FVU of one choice at one site, over seeds."""
        per_seed = [x for key, x in self.log_fvu.items() if key[:2] == (name, site)]
        return over_seeds(per_seed)

    def ratio(self, name: str) -> Estimate:
        """FVU of the deepest site over that of the one before."""
        near, deep = self.compared.pair
        return (self.at_site(name, deep) - self.at_site(name, near)).exp()

    def table(self) -> pd.DataFrame:
        """group, hue, value, lo, hi, and FVU at each of the two sites."""
        rows = [{"group": n, "hue": "plain", **self.ratio(n).row()} for n in self.names]
        frame = pd.DataFrame(rows)
        for site in self.compared.pair:
            values = [self.at_site(name, site).exp().value for name in self.names]
            frame[f"FVU at site {site}"] = values
        return frame

    def text_table(self) -> pd.DataFrame:
        """The ratios as text, beside each site's FVU."""
        frame = self.table().set_index("group")
        ratios = [self.ratio(name).text(".2f", MISSING) for name in frame.index]
        texts = pd.DataFrame({"FVU ratio": ratios}, index=frame.index.rename("choice"))
        for site in self.compared.pair:
            fvu = [self.at_site(name, site).exp() for name in frame.index]
            texts[f"FVU at site {site}"] = [f"{x.value:.3f}" if x.defined else MISSING for x in fvu]
        return texts

    def seed_table(self) -> pd.DataFrame:
        """Ratios of single seeds: group, hue, value."""
        near, deep = self.compared.pair
        seeds = dict.fromkeys(seed for _, _, seed in self.log_fvu)
        rows = []
        for name, seed in product(self.names, seeds):
            gap = self.log_fvu[name, deep, seed].value - self.log_fvu[name, near, seed].value
            rows.append((name, "plain", np.exp(gap)))
        return pd.DataFrame(rows, columns=["group", "hue", "value"])


def compare_fvu(p: LayerParams, curves: Mapping, compared: Compared) -> Choices:
    """FVU at matched L0 of each choice's curves."""
    return Choices(
        {key: curve.samples_at_l0(p.l0_target).log() for key, curve in curves.items()}, compared
    )


def title(result: Choices) -> str:
    """Whether one choice closes the gap between the two sites."""
    near, deep = result.compared.pair
    ratios = {name: result.ratio(name) for name in result.names}
    reached = {name: ratio for name, ratio in ratios.items() if ratio.defined}
    if not reached:
        return "No choice reaches the L0 at which sites are compared"
    closing = [name for name, ratio in reached.items() if ratio.compare(1) != "higher"]
    if "as it is" in closing:
        return f"There is no clear gap between sites {near} and {deep}"
    if not closing:
        return f"No single choice closes the gap between sites {near} and {deep}"
    return f"{len(closing)} of {len(reached)} choices leave no clear gap between sites"


def figure(result: Choices, p: LayerParams, scope: Scope) -> Figure:
    """FVU ratio of the two sites under each choice."""
    near, deep = result.compared.pair
    rows = result.table()
    rows["note"] = np.where(rows["value"].isna(), MISSING, "")
    span = (
        f"Ratios from {rows['value'].min():.2f} to {rows['value'].max():.2f}. "
        if rows["value"].notna().any()
        else ""
    )
    note = f"{span}Plain SAE, L0 = {p.l0_target:g}, {recipe_words(p, scope)}. {scope.model}."
    return compare.interval_points(
        rows,
        result.seed_table() if scope.n_seeds > 1 else None,
        title=title(result),
        interval=scope.matched_interval,
        note=note,
        value_label=f"FVU of site {deep} over site {near}'s",
        reference=(1, "no gap"),
    )
