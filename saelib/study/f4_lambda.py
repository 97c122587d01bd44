"""F4: does reconstruction follow the L1 coefficient?

The plain sweep of λ at several sites; beside it the original recipe, whose one λ is in raw units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saelib.sae.spec import Spec
from saelib.show import tradeoff
from saelib.study import sweep
from saelib.study.estimate import Estimate, undefined
from saelib.study.finding import MIN_PAGES, MIN_SEEDS, Finding, Verdict, enough, figure_path
from saelib.study.finding_params import LambdaParams as Params
from saelib.study.scope import sites_label
from saelib.study.sweep import NOTEBOOK, Sweep

NAME = "F4"
CLAIM = "Reconstruction follows the L1 coefficient."
RULE = (
    "Supported if at every site FVU rises and L0 falls with λ without exception (means over "
    "seeds), and the 95 % intervals of FVU at the smallest and the largest λ are disjoint. "
    "Contradicted if at some site FVU is not higher at the largest λ than at the smallest. "
    f"Undecided otherwise, and with fewer than three λ, {MIN_SEEDS} seeds or {MIN_PAGES} test "
    "pages."
)
SECTION = "3 F4: does reconstruction follow the L1 coefficient?"
FIGURE = "02_by_lambda"
MIN_LAMBDAS = 3


class Trained(NamedTuple):
    """What F4 is read from."""

    sweep: Sweep
    original: pd.DataFrame  # one row per site and seed, trained by the original recipe


def original_specs(ws: Any, p: Params) -> list[Spec]:
    """The original recipe: activations as they are, all tokens, one λ; by site and seed."""
    recipe = p.spec_fields() | {"lam": p.original_lam, "normalize": "none", "tokens_mask": "all"}
    sites = sweep.sites_of(ws, p.sites)
    return [ws.spec("plain", site, seed=seed, **recipe) for site in sites for seed in p.seeds]


def train(ws: Any, p: Params, notebook: str = NOTEBOOK) -> Trained:
    """Train and measure all of F4."""
    swept = sweep.train(ws, p, notebook)
    return Trained(swept, ws.train(original_specs(ws, p), notebook))


# -- the finding -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SiteCurve:
    """FVU and L0 of one site, from the smallest λ to the largest."""

    fvu: Sequence[float]  # means over seeds
    l0: Sequence[float]
    first: Estimate  # FVU at the smallest λ
    last: Estimate  # FVU at the largest λ

    @property
    def monotone(self) -> bool:
        """Whether FVU rises and L0 falls without exception."""
        return spearman(self.fvu) == 1 and spearman(self.l0) == -1

    @property
    def apart(self) -> bool:
        """Whether the intervals of the ends are disjoint, FVU at the largest λ being higher."""
        return self.first.hi < self.last.lo

    @property
    def rises(self) -> bool:
        """Whether FVU is higher at the largest λ than at the smallest; False if undefined."""
        return self.fvu[-1] > self.fvu[0]

    @property
    def falls(self) -> bool:
        """Whether FVU at the largest λ is no higher than at the smallest."""
        return self.fvu[-1] <= self.fvu[0]


def spearman(values: Sequence[float]) -> float:
    """Spearman's rank correlation of values with their order: +1 where each is above the last."""
    ranks = pd.Series(list(values), dtype=float).rank()
    order = pd.Series(np.arange(len(ranks), dtype=float)).rank()
    return round(float(order.corr(ranks)), 6)


def curves(swept: Sweep) -> dict[int, SiteCurve]:
    """What the rule is asked of, by site."""
    ends = min(swept.lambdas), max(swept.lambdas)
    fvu = swept.estimates["fvu"]
    by_site = {}
    for site, rows in swept.means.groupby("site"):
        rising = rows.sort_values("lambda")
        first, last = (fvu[site, lam] for lam in ends)
        by_site[site] = SiteCurve(rising["fvu"].tolist(), rising["l0"].tolist(), first, last)
    return by_site


def decide(by_site: Mapping[int, SiteCurve], n_seeds: int, n_pages: int) -> Verdict:
    """`RULE`."""
    enough_lambdas = all(len(curve.fvu) >= MIN_LAMBDAS for curve in by_site.values())
    if not by_site or not enough_lambdas or not enough(n_seeds, n_pages):
        return "undecided"
    if any(curve.falls for curve in by_site.values()):
        return "contradicted"
    holds = all(curve.monotone and curve.apart for curve in by_site.values())
    return "supported" if holds else "undecided"


def powers(by_site: Mapping[int, SiteCurve], lambdas: Sequence[float]) -> dict[int, Estimate]:
    """FVU as a power of λ between the ends of the sweep, by site.

    Undefined with one λ, and where the smallest is 0.
    """
    least = min(lambdas)
    greatest = max(lambdas)
    if least == 0 or greatest == least:
        return {site: undefined() for site in by_site}
    span = np.log(greatest / least)
    return {site: (curve.last / curve.first).log() / span for site, curve in by_site.items()}


def estimates(by_site: Mapping[int, SiteCurve], lambdas: Sequence[float]) -> dict[str, Estimate]:
    """Named effects: the power of λ by site, then FVU at the ends."""
    named = {f"site {site}, power of λ": power for site, power in powers(by_site, lambdas).items()}
    for site, curve in by_site.items():
        named[f"site {site}, λ = {min(lambdas):g}"] = curve.first
        named[f"site {site}, λ = {max(lambdas):g}"] = curve.last
    return named


def counted(by_site: Mapping[int, SiteCurve]) -> str:
    """At how many sites each part of the rule holds."""
    monotone = sum(curve.monotone for curve in by_site.values())
    apart = sum(curve.apart for curve in by_site.values())
    return (
        f"FVU rises and L0 falls throughout at {monotone} of {len(by_site)} sites; "
        f"extremes apart at {apart}"
    )


def sentence(by_site: Mapping[int, SiteCurve], lambdas: Sequence[float]) -> str:
    """The result in words."""
    rising = [site for site, curve in by_site.items() if curve.rises]
    growth = [power for power in powers(by_site, lambdas).values() if power.defined]
    if not rising:
        return f"FVU does not rise with λ at {sites_label(list(by_site))}."
    where = "every site" if len(rising) == len(by_site) else sites_label(rising)
    higher = f"FVU is higher at the largest λ than at the smallest at {where}"
    if growth:
        words = ", ".join(power.text(".2f") for power in growth)
        higher += f": on average as λ to the power {words} ({sites_label(list(by_site))})"
    return f"{higher}. {counted(by_site)}."


def abstract(verdict: Verdict) -> str:
    """F4's words in the report's abstract."""
    held = {"supported": "follows", "contradicted": "does not follow", "undecided": "may follow"}
    return f"Reconstruction {held[verdict]} the L1 coefficient (F4)."


def title(by_site: Mapping[int, SiteCurve]) -> str:
    """The figure's message."""
    monotone = sum(curve.monotone for curve in by_site.values())
    if monotone == len(by_site):
        return "FVU rises and L0 falls with λ at every site"
    if not monotone:
        return "FVU does not rise throughout with λ at any site"
    return f"FVU rises and L0 falls with λ at {monotone} of {len(by_site)} sites"


def figure(ws: Any, swept: Sweep) -> Figure:
    """FVU and L0 against λ, in normalised units and in the stream's own."""
    by_site = curves(swept)
    growth = powers(by_site, swept.lambdas)
    words = ", ".join(f"{power.value:.2f} (site {site})" for site, power in growth.items())
    note = f"FVU grows on average as λ to the power {words}. ".replace("nan", "undefined")
    note += f"{swept.scope(ws).trainings}, {swept.scope(ws).interval}. "
    note += "The same SAEs in both columns: λ on scaled rows is λ / scale on rows as they are."
    return tradeoff.trade_off_by_lambda(
        in_both_units(ws, swept), title=title(by_site), note=note, n_layers=ws.n_layers
    )


def in_both_units(ws: Any, swept: Sweep) -> pd.DataFrame:
    """Means of the sweep twice, by `panel`: λ in normalised units and in the stream's own."""
    means = swept.with_interval("fvu")
    scales = {site: ws.normalizer(site, "center_scale", "ordinary")[1] for site in swept.sites}
    raw = means["lambda"] / means["site"].map(scales)
    return pd.concat(
        [
            means.assign(panel="λ in normalised units"),
            means.assign(panel="λ in the stream's own units", **{"lambda": raw}),
        ]
    )


def finding(swept: Sweep, profile: str) -> Finding:
    """F4 as it is recorded."""
    by_site = curves(swept)
    return Finding(
        name=NAME,
        claim=CLAIM,
        rule=RULE,
        verdict=decide(by_site, len(swept.seeds), swept.n_pages),
        estimates=estimates(by_site, swept.lambdas),
        sentence=sentence(by_site, swept.lambdas),
        section=SECTION,
        figure=figure_path(profile, FIGURE),
    )


# -- one λ for all sites, or one L0 ----------------------------------------------------------------


def at_matched_l0(swept: Sweep, l0: float | int) -> pd.Series:
    """FVU at one L0 by site and seed, nan where the curve does not reach it."""
    keys = [(site, seed) for site in swept.sites for seed in sorted(swept.seeds)]
    values = [swept.curve(site, seed).at_l0(l0) for site, seed in keys]
    index = pd.MultiIndex.from_tuples(keys, names=["site", "seed"])
    return pd.Series([np.nan if v is None else v for v in values], index, dtype=float)


def one_lambda_or_one_l0(swept: Sweep, l0: float | int) -> pd.DataFrame:
    """FVU and L0 by site at every λ, and FVU at one L0 in the last row."""
    blocks = {
        label: swept.means.pivot(index="lambda", columns="site", values=column)
        for label, column in (("FVU", "fvu"), ("L0", "l0"))
    }
    joined = pd.concat(blocks, axis=1)
    joined.index = [f"λ = {lam:g}" for lam in joined.index]
    by_site = at_matched_l0(swept, l0).groupby("site").agg(lambda v: v.mean(skipna=False))
    joined.loc[f"L0 = {l0:g}"] = [*by_site, *[l0] * len(by_site)]
    return joined.map("{:.3g}".format).replace("nan", "–")


def reached(swept: Sweep, l0: float | int) -> str:
    """At how many sites the curves of all seeds reach an L0."""
    count = at_matched_l0(swept, l0).notna().groupby("site").all().sum()
    return f"an L0 of {l0:g} lies within the sweep at {count} of {len(swept.sites)} sites"


COLLAPSED_L0 = 1.0  # an SAE with fewer active latents per token has collapsed


def original_means(original: pd.DataFrame) -> pd.DataFrame:
    """The original recipe by site: means over seeds."""
    return original.groupby("site").mean(numeric_only=True)


def original_table(original: pd.DataFrame) -> pd.DataFrame:
    """λ, L0, FVU over all and over ordinary tokens, and loss recovered, by site."""
    columns = ["lambda", "l0", "fvu_all", "fvu", "loss_recovered"]
    means = original_means(original)[columns]
    return means.map("{:.3g}".format).replace("nan", "undefined")


def original_summary(original: pd.DataFrame, swept: Sweep) -> str:
    """What one λ in raw units does to L0, and how far the two FVU lie apart."""
    means = original_means(original)
    gone = [int(site) for site in means.index[means["l0"] < COLLAPSED_L0]]
    flattered = int((means["fvu_all"] < means["fvu"] / 10).sum())
    widest = swept.means.groupby("lambda")["l0"].agg(_fold).max()
    lines = [
        "one raw lambda spreads L0 over sites more than any normalised one: "
        f"{bool(_fold(means['l0']) > widest)}",
        "all-token FVU less than a tenth of the ordinary tokens' "
        f"at {flattered} of {len(means)} sites",
    ]
    if gone:
        lines.append(f"collapsed (fewer than one active latent per token): {sites_label(gone)}")
    return "\n".join(lines)


def _fold(l0: pd.Series) -> float:
    """The largest over the smallest; inf where one is 0."""
    return float(l0.max() / l0.min()) if l0.min() > 0 else float("inf")
