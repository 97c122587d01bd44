"""F3f: what the gap between the two deepest sites is made of, by cause.

Four things lie between the original recipe and the fair comparison: sinks in the training tokens
(mask), the mean vector (center), the site's scale (scale), and sparsity that is not matched
(match). All 16 sets of them, in Shapley's word coalitions, are trained at both sites; Shapley's
value divides the gap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saelib.sae.spec import Spec
from saelib.show import compare
from saelib.study.curve import Curve, curves_over_seeds
from saelib.study.estimate import Estimate, of_pages, over_seeds
from saelib.study.f3_ladder import middle_lambda
from saelib.study.f3_sites import NOTEBOOK, Compared, collapsed_sites, without_loss
from saelib.study.finding import Verdict, enough
from saelib.study.matched import three_digits
from saelib.study.notebooks import LayerParams
from saelib.study.scope import Scope
from saelib.study.shapley import TOGGLES, coalitions, recipe_of, shapley

CLAIM = (
    "Sinks, mean, scale and unmatched sparsity make site {deep} look worse beside site {near} than "
    "it is."
)
RULE = (
    "Supported if removing all four causes shrinks the gap, the log ratio of the two sites' FVU, "
    "by more than {margin:g} (whole 95 % interval); contradicted if it shrinks it by less, or "
    "widens it. Undecided otherwise, where an L0 is not reached, with fewer than 15 test pages or "
    "three seeds, and where the original recipe's SAEs have collapsed."
)
FURTHER = 6  # λ that a curve may get beyond those it begins with
ALL = frozenset(TOGGLES)
NONE: frozenset[str] = frozenset()
LABELS = {
    "mask": "sinks masked",
    "center": "mean taken off",
    "scale": "scaled, site by site",
    "match": "L0 matched",
}
DEEDS = {
    "mask": "masking sinks",
    "center": "taking off the mean",
    "scale": "scaling each site",
    "match": "matching L0",
}
FIRST = "gap, original recipe"
LAST = "gap, all four removed"
ESTIMATES = {  # steps -> names of estimates, to be read alone
    FIRST: "gap in log FVU, original recipe",
    **{label: f"change of the gap in log FVU, {label}" for label in LABELS.values()},
    LAST: "gap in log FVU, all four removed",
}
MISSING = "L0 not reached"

Coalition = frozenset[str]
Key = tuple[Coalition, int, int]  # coalition, site, seed


# What is trained


def cause_spec(
    ws: Any, p: LayerParams, coalition: Coalition, site: int, seed: int, lam: float, **more: Any
) -> Spec:
    """One SAE of the original recipe with the causes of `coalition` removed."""
    fields = p.spec_fields()
    fields |= {"tokens": p.cause_tokens, "batch_size": p.cause_batch}
    fields |= {"n_latents": p.cause_latents, "seed": seed}
    return ws.spec("plain", site, lam=lam, **fields | recipe_of(coalition) | more)


def recipe_lambda(p: LayerParams, coalition: Coalition) -> float:
    """The λ of the recipe itself: the sweep's middle one on scaled rows, else the original's."""
    return middle_lambda(p.lambdas) if "scale" in coalition else p.original_lam


def lambda_in_units(ws: Any, p: LayerParams, coalition: Coalition, site: int, lam: float) -> float:
    """A λ of the normalised recipe in the units that this coalition trains in."""
    spec = cause_spec(ws, p, coalition, site, 0, lam)
    scale = ws.normalizer(site, spec.sae.normalize, spec.train.tokens_mask)[1]
    return three_digits(lam * scale / ws.normalizer(site, "center_scale", "ordinary")[1])


class Trained(NamedTuple):
    """The coalitions' SAEs: at the recipe's λ by key, and along λ for those that match L0."""

    at_recipe: dict[Key, Spec]
    curves: dict[Key, Curve]
    original: pd.DataFrame  # rows of the original recipe's SAEs, one a site and seed


def recipe_specs(ws: Any, p: LayerParams, compared: Compared) -> dict[Key, Spec]:
    """SAEs of the eight coalitions without "match", at the recipe's λ."""
    parts = coalitions(TOGGLES[:3])
    return {
        (coalition, site, seed): cause_spec(
            ws, p, coalition, site, seed, recipe_lambda(p, coalition)
        )
        for coalition, site in product(parts, compared.pair)
        for seed in p.cause_seeds
    }


def train(ws: Any, p: LayerParams, compared: Compared) -> Trained:
    """Train eight coalitions at the recipe's λ, and each along λ until `l0_target` is bracketed."""
    specs = recipe_specs(ws, p, compared)
    rows = without_loss(ws).train(list(specs.values()), NOTEBOOK)
    original = rows[[coalition == NONE for coalition, _, _ in specs]]
    start = {
        cell: [lambda_in_units(ws, p, *cell, lam) for lam in p.cause_lambdas]
        for cell in product(coalitions(TOGGLES[:3]), compared.pair)
    }
    curves = match_curves(ws, p, _maker(ws, p), start)
    return Trained(specs, curves, original)


def _maker(ws: Any, p: LayerParams) -> Callable[..., Spec]:
    def make(coalition: Coalition, site: int, seed: int, lam: float) -> Spec:
        return cause_spec(ws, p, coalition, site, seed, lam)

    return make


def match_curves(ws: Any, p: LayerParams, make: Callable[..., Spec], start: Mapping) -> dict:
    """Curves of λ by (*cell, seed), until they bracket `l0_target`; `make(*cell, seed, lam)`."""
    return curves_over_seeds(
        without_loss(ws),
        NOTEBOOK,
        make,
        start,
        p.cause_seeds,
        p.l0_target,
        max_extra=FURTHER,
        refine=p.refine,
    )


# The gap and its shares


@dataclass(frozen=True)
class Division:
    """log FVU of each coalition by (site, seed), and the gap between two sites divided by cause."""

    log_fvu: Mapping[Key, Estimate]
    seeds: tuple[int, ...]
    compared: Compared

    def at_site(self, coalition: Coalition, site: int) -> Estimate:
        """log FVU of one coalition at one site, over seeds."""
        return over_seeds([self.log_fvu[coalition, site, seed] for seed in self.seeds])

    def gap(self, coalition: Coalition) -> Estimate:
        """v(S): log FVU at the deepest site less that at the one before."""
        near, deep = self.compared.pair
        return self.at_site(coalition, deep) - self.at_site(coalition, near)

    @property
    def before(self) -> Estimate:
        """The gap under the original recipe, v(∅)."""
        return self.gap(NONE)

    @property
    def after(self) -> Estimate:
        """The gap with all four causes removed, v(all)."""
        return self.gap(ALL)

    def shares(self) -> dict[str, Estimate]:
        """What each cause's removal adds to the gap, averaged over all orders."""
        return divide({coalition: self.gap(coalition) for coalition in coalitions()})

    def site_shares(self, site: int) -> dict[str, Estimate]:
        """The same division of one site's log FVU."""
        return divide({coalition: self.at_site(coalition, site) for coalition in coalitions()})

    def steps(self) -> dict[str, Estimate]:
        """First gap, the four shares, and the gap that remains, by their labels."""
        shares = {LABELS[cause]: share for cause, share in self.shares().items()}
        ordered = {LABELS[cause]: shares[LABELS[cause]] for cause in TOGGLES}
        return {FIRST: self.before, **ordered, LAST: self.after}

    def of_seed(self, seed: int) -> Division:
        """The division of one seed's SAEs."""
        return Division(self.log_fvu, (seed,), self.compared)

    def unreached(self) -> list[Coalition]:
        """Coalitions whose L0 is not reached at one of the sites."""
        return [coalition for coalition in coalitions() if not self.gap(coalition).defined]


def divide(value: Mapping[Coalition, Estimate]) -> dict[str, Estimate]:
    """Shapley's shares of paired estimates, draw by draw; as differences, stretched by the most."""
    shares = shapley({coalition: estimate.draws for coalition, estimate in value.items()})
    stretch = max(x.stretch for x in value.values())
    heaviest = max(x.heaviest for x in value.values())
    return {cause: Estimate(np.asarray(x), stretch, heaviest) for cause, x in shares.items()}


def divide_gap(ws: Any, p: LayerParams, trained: Trained, compared: Compared) -> Division:
    """log FVU on ordinary test tokens of all 16 coalitions at both sites."""
    log_fvu = {}
    pages = without_loss(ws).pages
    for coalition, site, seed in product(coalitions(), compared.pair, p.cause_seeds):
        key = (coalition - {"match"}, site, seed)
        if "match" in coalition:
            fvu = trained.curves[key].samples_at_l0(p.l0_target)
        else:
            fvu = of_pages(pages(trained.at_recipe[key]))
        log_fvu[coalition, site, seed] = fvu.log()
    return Division(log_fvu, tuple(p.cause_seeds), compared)


def reach_line(p: LayerParams, trained: Trained) -> str:
    """How many of the curves reach the L0 at which they are compared."""
    reached = sum(len(curve.bracket(p.l0_target)) > 0 for curve in trained.curves.values())
    seeds = len(p.cause_seeds)
    return (
        f"{len(coalitions(TOGGLES[:3]))} recipes × 2 sites × {seeds} seed{'s' * (seeds > 1)}: "
        f"{reached} of {len(trained.curves)} curves of λ reach L0 = {p.l0_target:g}"
    )


def table(division: Division) -> pd.DataFrame:
    """The steps of the gap: group, hue, value, lo, hi."""
    rows = [{"group": n, "hue": "plain", **x.row()} for n, x in division.steps().items()]
    return pd.DataFrame(rows)


def text_table(division: Division) -> pd.DataFrame:
    """The steps as text, and the same division of each site's log FVU."""
    steps = division.steps()
    columns = {"between the sites": {name: x.text("+.2f", MISSING) for name, x in steps.items()}}
    for site in division.compared.pair:
        shares = division.site_shares(site)
        first = division.at_site(NONE, site)
        last = division.at_site(ALL, site)
        of_site = [first, *(shares[cause] for cause in TOGGLES), last]
        values = [f"{x.value:+.2f}" if x.defined else MISSING for x in of_site]
        columns[f"at site {site}"] = dict(zip(steps, values, strict=True))
    return pd.DataFrame(columns)


def seed_table(division: Division) -> pd.DataFrame:
    """The steps of single seeds: group, hue, value."""
    rows = []
    for seed in division.seeds:
        for name, estimate in division.of_seed(seed).steps().items():
            rows.append((name, "plain", estimate.value))
    return pd.DataFrame(rows, columns=["group", "hue", "value"])


def checks(division: Division) -> list[str]:
    """Is the gap known for each set of causes, do the shares add up, is there a gap to divide?"""
    before, after = division.before, division.after
    n_sets = len(coalitions())
    known = n_sets - len(division.unreached())
    total = sum(share.value for share in division.shares().values())
    error = abs(before.value + total - after.value)
    adds_up = bool(error < 1e-9) if known == n_sets else "cannot be checked"
    return [
        f"the gap is known for {known} of {n_sets} sets of causes (for the others, L0 not reached)"
        if known < n_sets
        else f"the gap is known for all {n_sets} sets of causes",
        f"the four changes add up: {adds_up}",
        f"under the original recipe, on ordinary tokens, there is {_gap_words(before)}",
    ]


def _gap_words(gap: Estimate) -> str:
    """Whether there is something to divide, by the gap's interval."""
    if gap.defined and not np.isfinite(gap.lo):
        return "a gap without an interval: it cannot be told from none"
    if gap.lo > 0 or gap.hi < 0:
        return "a gap to divide"
    return "no gap to divide: its interval includes 0"


# The figure


def title(division: Division) -> str:
    """What the four causes do to the gap, and which of them does most of it."""
    deep, near = division.compared.deep, division.compared.near
    shares = division.shares()
    if not all(share.defined for share in shares.values()):
        return "The four steps cannot be told apart: L0 is not reached"
    most = DEEDS[max(TOGGLES, key=lambda cause: abs(shares[cause].value))]
    before = division.before.compare(0)
    after = division.after.compare(0)
    if (before, after) == ("lower", "higher"):
        return f"Site {deep} turns from better to worse, mostly by {most}"
    if (before, after) == ("higher", "lower"):
        return f"Site {deep} turns from worse to better, mostly by {most}"
    if before == after == "higher":
        return f"Site {deep} stays worse than site {near}; {most} moves most"
    return f"Of four causes {most} moves the gap most"


def caption(division: Division, p: LayerParams, scope: Scope) -> str:
    """The gap before and after, and what the SAEs are."""
    deep, near = division.compared.deep, division.compared.near
    return (
        f"Site {deep} has {division.before.exp().text('.2f')} times site {near}'s FVU under the "
        f"original recipe, {division.after.exp().text('.2f')} times with all four removed. 0.1 is "
        f"11 % more FVU. Ordinary test tokens, {recipe_words(p, scope)}. {scope.model}."
    )


def recipe_words(p: LayerParams, scope: Scope) -> str:
    """Seeds, latents and training tokens of these SAEs."""
    return f"{scope.trainings}, {p.cause_latents:,} latents, {p.cause_tokens:,} training tokens"


def figure(division: Division, p: LayerParams, scope: Scope) -> Figure:
    """The first gap, four changes, and the gap that remains."""
    near, deep = division.compared.pair
    rows = table(division)
    rows["note"] = np.where(rows["value"].isna(), MISSING, "")
    # bars lead from the first gap to the last only where every change is known
    whole = rows["value"].notna().all()
    draw = compare.waterfall if whole else compare.interval_points
    order = "Each change starts where the bar above ends. " if whole else ""
    return draw(
        rows,
        seed_table(division) if scope.n_seeds > 1 else None,
        title=title(division),
        interval=scope.matched_interval,
        note=order + caption(division, p, scope),
        value_label=f"log FVU, site {deep} less site {near}",
        reference=(0, "no gap"),
    )


# The verdict


def decide(
    before: Estimate,
    after: Estimate,
    margin: float,
    n_seeds: int,
    n_pages: int,
    collapsed: Iterable[int] = (),
) -> Verdict:
    """Do the four causes make the deepest site look worse than it is?

    before, after: the gap under the original recipe and with all four removed, log ratios of FVU.
    collapsed: sites at which the original recipe's SAEs have collapsed.
    """
    if not enough(n_seeds, n_pages) or list(collapsed):
        return "undecided"
    removed = (before - after).compare(margin)
    words: dict[str, Verdict] = {"higher": "supported", "lower": "contradicted"}
    return words.get(removed, "undecided")


def collapsed(trained: Trained) -> list[int]:
    """Sites at which the original recipe's SAEs have next to no active latents."""
    return collapsed_sites(trained.original.groupby("site").mean(numeric_only=True))


def step_words(division: Division) -> str:
    """The four steps between the two gaps, or that the gap cannot be divided."""
    unreached = len(division.unreached())
    if unreached:
        return f"undivided, as {unreached} of {len(coalitions())} sets of causes miss the L0"
    shares = division.shares()
    return "; ".join(f"{LABELS[cause]} {shares[cause].text('+.2f')}" for cause in TOGGLES)


def sentence(division: Division, collapsed_at: Sequence[int] = ()) -> str:
    """The gap and its four steps in plain words."""
    near, deep = division.compared.pair
    first, last = (gap.text("+.2f") for gap in (division.before, division.after))
    words = (
        f"log FVU of site {deep} less that of site {near}, ordinary tokens: {first} under the "
        f"original recipe; {step_words(division)}; {last} with all four removed, a ratio of "
        f"{division.after.exp().text('.2f')}."
    )
    if collapsed_at:
        words += (
            f" The original recipe's SAEs at {', '.join(map(str, collapsed_at))} have collapsed "
            "(under one active latent per token), so that its gap says nothing."
        )
    return words
