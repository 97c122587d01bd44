"""F2, first half: plain against Gated SAEs, with and without the auxiliary term, at equal L0.

Trained are curves over λ for three arms at every site. Each curve is read at L0 = `l0_target`, and
the arms are compared by the ratio of their FVU there. The gates over training are the subject of
`f2_gates`, the length of training that of `f2_lengths`, resampling that of `f2_resampling`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from saelib.sae.spec import Spec
from saelib.study import finding
from saelib.study.controls import shuffled_decoders
from saelib.study.curve import Curve, reach_l0
from saelib.study.estimate import Estimate, of_pages, over_seeds, undefined
from saelib.study.finding import (
    Check,
    Finding,
    Verdict,
    at_least,
    enough,
    figure_path,
    majority,
)
from saelib.study.finding_params import GatedParams as Params
from saelib.study.matched import times
from saelib.study.scope import Scope, sites_label

NOTEBOOK = "03_train_gated"
ARMS = ("plain", "two_term", "full")
PAIRS = (("two_term", "plain"), ("full", "plain"), ("two_term", "full"))
NAMES = {("two_term", "plain"): "F2a", ("full", "plain"): "F2b", ("two_term", "full"): "F2c"}
CLAIMS = {
    "F2a": "The Gated SAE with the two-term loss is worse than the plain SAE at matched L0.",
    "F2b": "The Gated SAE with its full loss is worse than the plain SAE at matched L0.",
    "F2c": "Leaving out the auxiliary term makes the Gated SAE worse at matched L0.",
}
RULE = (
    "Per site, the first arm is worse where the paired 95 % interval of its FVU over the second's "
    "lies above 1 + margin ({margin:g}), not worse where it lies below that. Supported if it is "
    "worse at most sites, contradicted if it is not worse at most; else undecided, as it is with "
    "fewer than three seeds or 15 test pages."
)
ARM_WORDS = {
    "plain": "the plain SAE",
    "two_term": "the two-term Gated SAE",
    "full": "the full Gated SAE",
}
COMPARED = {
    "higher": "worse",
    "lower": "better",
    "not higher": "not worse",
    "not lower": "not better",
}
AT_L0 = ("fvu", "loss_recovered", "shrinkage", "lambda")  # columns read at the L0 of the comparison

Cell = tuple[str, int]  # arm, site


# -- what is trained ---------------------------------------------------------------------------


def arm_lambdas(p: Any, arms: Sequence[str] = ARMS) -> dict[str, list[float]]:
    """The λ at which each arm's curve begins; the full loss takes `lam_full` times the plain SAE's.

    Its auxiliary term holds gates open against the L1. The two-term loss has a list of its own,
    since its L0 hardly grows where λ shrinks.
    """
    lambdas = {"plain": times(p.lambdas, 1.0), "full": times(p.lambdas, p.lam_full)}
    if "two_term" in arms:
        lambdas["two_term"] = times(p.lambdas_two_term, 1.0)
    return {arm: lambdas[arm] for arm in arms}


def gated_spec(ws: Any, p: Any, arm: str, site: int, seed: int, lam: float, **changed: Any) -> Spec:
    """One SAE of the comparison; `changed` are fields that differ from the recipe."""
    return ws.spec(arm, site, lam=lam, **p.spec_fields() | {"seed": seed} | changed)


def compared_sites(ws: Any, p: Any) -> list[int]:
    """The sites of parameter `sites`, from shallow to deep."""
    return sorted({ws.site(site) for site in p.sites})


def middle_site(ws: Any, p: Params) -> int:
    """The model's middle site where it is compared, else the middle one of those that are."""
    sites = compared_sites(ws, p)
    middle = ws.site("middle")
    return middle if middle in sites else sites[len(sites) // 2]


def curve_starts(
    ws: Any, p: Any, arms: Sequence[str] = ARMS
) -> dict[tuple[str, int, int], list[float]]:
    """The λ at which every curve begins, by (arm, site, seed)."""
    lambdas = arm_lambdas(p, arms)
    keys = [(arm, site, seed) for arm in arms for site in compared_sites(ws, p) for seed in p.seeds]
    return {key: lambdas[key[0]] for key in keys}


def grid_specs(ws: Any, p: Params) -> list[Spec]:
    """The SAEs at the λ that are given; further ones follow where a curve does not reach the L0."""
    starts = curve_starts(ws, p)
    return [gated_spec(ws, p, *key, lam) for key, lambdas in starts.items() for lam in lambdas]


class GatedRuns(NamedTuple):
    """Curves over λ by (arm, site, seed), and what they were trained over."""

    curves: Mapping[tuple[str, int, int], Curve]
    sites: list[int]
    seeds: list[int]

    def cell(self, arm: str, site: int) -> list[Curve]:
        """The curves of one arm and site, seed by seed."""
        return [self.curves[arm, site, seed] for seed in self.seeds]

    @property
    def rows(self) -> pd.DataFrame:
        """All SAEs, one row each, by site, arm and λ."""
        rows = pd.concat([curve.rows for curve in self.curves.values()], ignore_index=True)
        return rows.sort_values(["site", "arm", "lambda"], ignore_index=True)

    @property
    def n_pages(self) -> int:
        """Test pages of the measurements."""
        return int(self.rows["n_test_pages"].min())


def train(ws: Any, p: Any, arms: Sequence[str] = ARMS) -> GatedRuns:
    """Train every curve until it brackets the L0 of the comparison or has spent its further λ.

    p: this study's parameters, or with fewer arms those of another that has the same SAEs.
    """

    def spec(arm: str, site: int, seed: int, lam: float) -> Spec:
        return gated_spec(ws, p, arm, site, seed, lam)

    starts = curve_starts(ws, p, arms)
    curves = reach_l0(ws, NOTEBOOK, spec, starts, p.l0_target, refine=p.refine)
    return GatedRuns(curves, compared_sites(ws, p), list(p.seeds))


# -- estimates ---------------------------------------------------------------------------------


class Matched(NamedTuple):
    """What every arm and site has at the L0 of the comparison.

    per_seed   log FVU, one estimate per seed
    log_fvu    the same over seeds; undefined where a seed's curve does not reach that L0
    means      table by (arm, site): loss_recovered, shrinkage, lambda, and fvu with lo and hi
    """

    per_seed: dict[Cell, list[Estimate]]
    log_fvu: dict[Cell, Estimate]
    means: pd.DataFrame

    def column(self, name: str) -> pd.DataFrame:
        """One column of `means` with a row per site and a column per arm."""
        return self.means[name].unstack("arm")[list(ARMS)]

    @property
    def reached(self) -> bool:
        """Whether every arm has that L0 at every site."""
        return bool(self.means["fvu"].notna().all())

    @property
    def unreachable(self) -> list[str]:
        """The arms and sites that do not have it, in words."""
        missing = self.means.index[self.means["fvu"].isna()]
        return [f"{arm} at site {site}" for arm, site in missing]


def match(runs: GatedRuns, l0: float) -> Matched:
    """Read every curve at validation L0 = `l0`."""
    cells = [(arm, site) for arm in ARMS for site in runs.sites]
    per_seed = {}
    means = []
    for arm, site in cells:
        curves = runs.cell(arm, site)
        per_seed[arm, site] = [curve.samples_at_l0(l0).log() for curve in curves]
        means.append({name: mean_at_l0(curves, l0, name) for name in AT_L0})
    log_fvu = {cell: over_seeds(estimates) for cell, estimates in per_seed.items()}
    index = pd.MultiIndex.from_tuples(cells, names=["arm", "site"])
    table = pd.DataFrame(means, index=index, columns=list(AT_L0), dtype=float)
    bounds = pd.DataFrame([log_fvu[cell].exp().row() for cell in cells], index=index)
    table[["fvu", "lo", "hi"]] = bounds[["value", "lo", "hi"]]
    return Matched(per_seed, log_fvu, table)


def mean_at_l0(curves: Sequence[Curve], l0: float, column: str) -> float:
    """Mean over seeds of a column at L0 = `l0`; nan where one curve does not reach it."""
    values = [curve.at_l0(l0, column) for curve in curves]
    return float(np.mean([np.nan if value is None else value for value in values]))


def ratios(matched: Matched, sites: Sequence[int]) -> dict[tuple[str, str, int], Estimate]:
    """FVU of one arm over another's at equal L0, by (arm, against, site)."""
    by_pair = {}
    for arm, against in PAIRS:
        for site in sites:
            difference = matched.log_fvu[arm, site] - matched.log_fvu[against, site]
            by_pair[arm, against, site] = difference.exp()
    return by_pair


def seed_ratios(matched: Matched, sites: Sequence[int]) -> pd.DataFrame:
    """The same ratios of single seeds: columns arm, against, site, value."""
    rows = []
    for arm, against in PAIRS:
        for site in sites:
            pairs = zip(matched.per_seed[arm, site], matched.per_seed[against, site], strict=True)
            for one, other in pairs:
                rows.append((arm, against, site, float(np.exp(one.value - other.value))))
    return pd.DataFrame(rows, columns=["arm", "against", "site", "value"])


def ratio_table(estimates: Mapping[tuple[str, str, int], Estimate], margin: float) -> pd.DataFrame:
    """One row per pair of arms and site: arm, against, site, value, lo, hi, compared (in words)."""
    rows = []
    for (arm, against, site), estimate in estimates.items():
        named = {"arm": arm, "against": against, "site": site}
        rows.append(named | estimate.row() | {"compared": compare(estimate, margin)})
    return pd.DataFrame(rows)


def compare(ratio: Estimate, margin: float) -> str:
    """How the first arm of a ratio compares with the second: "worse", "better", "not worse", …"""
    word = ratio.compare(1, margin)
    return COMPARED.get(word, word)


def mean_ratio(estimates: Mapping[tuple[str, str, int], Estimate], pair: tuple[str, str]) -> float:
    """Geometric mean of a pair's ratio over sites; nan where one site is not reached."""
    values = [x.value for (arm, against, _), x in estimates.items() if (arm, against) == pair]
    return float(np.exp(np.mean(np.log(values))))


def curve_points(ws: Any, runs: GatedRuns) -> pd.DataFrame:
    """`runs.rows` with lo and hi of the mean FVU at each λ; nan where a seed lacks that λ."""
    point = ["arm", "site", "lambda"]
    bounds = []
    for key, names in runs.rows.groupby(point)["run_id"]:
        estimates = [of_pages(ws.pages(name)) for name in names]
        complete = len(estimates) == len(runs.seeds)
        row = over_seeds(estimates).row() if complete else undefined().row()
        bounds.append(dict(zip(point, key, strict=True)) | {"lo": row["lo"], "hi": row["hi"]})
    return runs.rows.merge(pd.DataFrame(bounds), on=point)


# -- the verdicts ------------------------------------------------------------------------------


def decide(cases: Sequence[Estimate], margin: float, n_seeds: int, n_pages: int) -> Verdict:
    """Whether the first arm is worse than the second, from its ratio of FVU per site (`RULE`)."""
    if not enough(n_seeds, n_pages):
        return "undecided"
    comparisons = [compare(ratio, margin) for ratio in cases]
    return majority(comparisons, {"worse"}, {"better", "equal", "not worse"})


def sentence(pair: tuple[str, str], cases: Mapping[int, Estimate], l0: float, scope: Scope) -> str:
    """The ratios of one pair of arms in words; `cases` by site."""
    first, second = (ARM_WORDS[arm] for arm in pair)
    values = ", ".join(ratio.text(".2f", "L0 not reached") for ratio in cases.values())
    return (
        f"At L0 = {l0:g} the FVU of {first} over that of {second} is {values} "
        f"({sites_label(list(cases))}; {scope.interval}, {scope.trainings})."
    )


def findings(
    estimates: Mapping[tuple[str, str, int], Estimate], p: Params, scope: Scope
) -> list[Finding]:
    """F2a to F2c: one finding per pair of arms."""
    return [_finding(pair, estimates, p, scope) for pair in PAIRS]


def _finding(
    pair: tuple[str, str],
    estimates: Mapping[tuple[str, str, int], Estimate],
    p: Params,
    scope: Scope,
) -> Finding:
    cases = {
        site: ratio for (arm, against, site), ratio in estimates.items() if (arm, against) == pair
    }
    name = NAMES[pair]
    return Finding(
        name=name,
        claim=CLAIMS[name],
        rule=RULE.format(margin=p.margin),
        verdict=decide(list(cases.values()), p.margin, scope.n_seeds, scope.n_pages),
        estimates={f"site {site}, {_over(pair)}": ratio for site, ratio in cases.items()},
        sentence=sentence(pair, cases, p.l0_target, scope),
        section="Verdict",
        figure=figure_path(p.profile, "03_ratio"),
    )


def _over(pair: tuple[str, str]) -> str:
    """A ratio's name: "two-term over plain"."""
    return " over ".join(arm.replace("_", "-") for arm in pair)


def abstract(estimates: Mapping[tuple[str, str, int], Estimate]) -> str | None:
    """What the report's abstract says; None where an L0 is not reached."""
    two_term = mean_ratio(estimates, ("two_term", "plain"))
    full = mean_ratio(estimates, ("full", "plain"))
    if not np.isfinite([*(mean_ratio(estimates, pair) for pair in PAIRS)]).all():
        return None
    return (
        f"At one L0 the Gated SAE leaves {two_term:.2f} (two-term loss) and {full:.2f} (full "
        "loss) times the plain SAE's FVU."
    )


def record_abstract(profile: str, estimates: Mapping[tuple[str, str, int], Estimate]) -> None:
    """Record the abstract where every L0 it speaks of is reached."""
    text = abstract(estimates)
    if text:
        finding.record_abstract(profile, NOTEBOOK, text)


def describe(ws: Any, p: Params) -> str:
    """Recipe, model, sites, arms and seeds in words."""
    scope = Scope.of_workspace(ws, p.seeds, 0)
    recipe = ", ".join(f"{name} {value}" for name, value in p.spec_fields().items())
    sites = sites_label(compared_sites(ws, p))
    return f"{scope.model}: {sites}; {', '.join(ARMS)}; {scope.trainings}\nrecipe: {recipe}"


# -- expectations ------------------------------------------------------------------------------


def densest_controls(ws: Any, p: Params, runs: GatedRuns) -> pd.DataFrame:
    """Controls of the densest SAE of every arm and site, first seed: arm, site, fvu, shuffled."""
    cells = [(arm, site) for arm in ARMS for site in runs.sites]
    specs = []
    for arm, site in cells:
        rows = runs.curves[arm, site, runs.seeds[0]].rows
        lam = rows.loc[rows["l0_val"].idxmax(), "lambda"]
        specs.append(gated_spec(ws, p, arm, site, runs.seeds[0], lam))
    return pd.DataFrame(cells, columns=["arm", "site"]).join(shuffled_decoders(ws, specs))


def control_checks(controls: pd.DataFrame, rows: pd.DataFrame) -> list[Check]:
    """Whether the SAEs rebuild anything; rows: all SAEs of the comparison."""
    bound = np.maximum(1, 2 * controls["fvu"])
    half = [None if np.isnan(x) else bool(x > 0.5) for x in rows["loss_recovered_mean"]]
    return [
        (
            bool((controls["fvu"] < 0.6).all()),
            f"the densest SAE of each of {len(controls)} arms and sites leaves under 60 % of "
            "the variance",
        ),
        (
            bool((controls["shuffled"] > bound).all()),
            "with a shuffled decoder each is worse than the mean and has twice the FVU it had",
        ),
        (
            at_least(1, half, "loss recovered is undefined", "SAEs"),
            "the best recovers over half of the loss that the mean predictor costs",
        ),
    ]


def matched_checks(matched: Matched, l0: float) -> list[Check]:
    """Expectations of FVU at equal L0."""
    fvu = matched.column("fvu")
    worst = fvu.drop(columns="plain").max(axis=1, skipna=False)
    low = bool((fvu["plain"] < 0.95).all() and (worst < 0.85).all())
    full_less = bool((fvu["full"] < 0.95 * fvu["plain"]).all())
    two_term_near = bool((fvu["two_term"] < 1.1 * fvu["plain"]).all())
    results = [
        (
            low,
            f"at L0 = {l0:g} every SAE rebuilds what the mean cannot: FVU below 0.95 (plain) "
            "and 0.85 (Gated)",
        ),
        (full_less, "the full Gated SAE leaves at least 5 % less than plain everywhere"),
        (two_term_near, "the two-term Gated SAE is nowhere a tenth worse than plain"),
    ]
    return _where_known(results, matched.reached)


def shrinkage_checks(matched: Matched) -> list[Check]:
    """Expectations of shrinkage at equal L0."""
    shrinkage = matched.column("shrinkage")
    away = (1 - shrinkage).abs()
    results = [
        (
            bool((away["full"] < 0.9 * away["plain"]).all()),
            "at every site the full Gated SAE is over a tenth nearer to 1 than the plain one",
        ),
        (
            bool((shrinkage["plain"] < 0.98).all()),
            "the plain SAE shrinks by over 2 % at every site",
        ),
    ]
    return _where_known(results, bool(shrinkage.notna().all(axis=None)))


def _where_known(results: Sequence[tuple[bool, str]], reached: bool) -> list[Check]:
    return [(holds if reached else None, claim) for holds, claim in results]
