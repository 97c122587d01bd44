"""F5: every architecture at the same L0, on the same rows.

    train       curves of each architecture over the setting that governs its L0: k is set, the
                coefficients of penalties are searched
    match       what each has at every L0 of the comparison
    ratios      FVU of one architecture over another's
    gaps        FVU of the deepest site over that of the site before it

`f5_items` tells dictionaries from encoders, `f5_findings` has the verdicts, `f5_figures` the
pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from saelib.measure.bootstrap import student_975
from saelib.sae.spec import Spec
from saelib.study.curve import Curve, Propose, curves_over_seeds, proposed_lambda
from saelib.study.estimate import Estimate, of_pages, over_seeds, undefined
from saelib.study.finding_params import ArchitectureParams as Params
from saelib.study.matched import propose_k, times
from saelib.study.scope import Scope, sites_label

NOTEBOOK = "07_architectures"
PENALISED = ("plain", "p_anneal", "full", "jumprelu", "jumprelu_tanh")
SELECTING = ("topk", "batchtopk", "matryoshka")  # k sets their L0
ARMS = (*PENALISED, *SELECTING)
NAMES = {
    "plain": "plain",
    "p_anneal": "p-annealed",
    "full": "Gated",
    "jumprelu": "JumpReLU",
    "jumprelu_tanh": "JumpReLU (tanh)",
    "topk": "TopK",
    "batchtopk": "BatchTopK",
    "matryoshka": "Matryoshka",
}
MEANS = ("loss_recovered", "delta_ce", "kl", "dead_fraction", "shrinkage")  # read at equal L0

Cell = tuple[str, int, float]  # arm, site, L0


# -- what is trained ---------------------------------------------------------------------------


def arm_starts(p: Params) -> dict[str, list[float]]:
    """Where each arm's curve begins: coefficients of its penalty, or k at each L0."""
    starts = {
        "plain": times(p.lambdas, 1.0),
        "p_anneal": times(p.lambdas_p_anneal, 1.0),
        "full": times(p.lambdas, p.lam_full),
        "jumprelu": times(p.lambdas_jumprelu, 1.0),
        "jumprelu_tanh": times(p.lambdas_tanh, 1.0),
    }
    k = sorted({float(max(1, round(l0))) for l0 in p.l0_targets})
    return starts | dict.fromkeys(SELECTING, k)


def starts_table(p: Params) -> pd.DataFrame:
    """`arm_starts` for reading."""
    starts = {NAMES[arm]: ", ".join(f"{x:g}" for x in xs) for arm, xs in arm_starts(p).items()}
    setting = ["k" if arm in SELECTING else "λ" for arm in ARMS]
    return pd.DataFrame(
        {"setting": setting, "begins at": [starts[NAMES[a]] for a in ARMS]}
    ).set_index(pd.Index([NAMES[arm] for arm in ARMS], name="architecture"))


def arm_spec(ws: Any, p: Params, arm: str, site: int, seed: int, setting: float | int) -> Spec:
    """One SAE of the comparison; setting: its coefficient or its k."""
    own = {"k": int(setting), "lr": p.lr_topk} if arm in SELECTING else {"lam": setting}
    return ws.spec(arm, site, **p.spec_fields() | own, seed=seed)


def compared_sites(ws: Any, p: Params) -> list[int]:
    """The sites of parameter `sites`, from shallow to deep."""
    return sorted({ws.site(site) for site in p.sites})


def _in_order(column: pd.Series) -> pd.Series:
    """Arms by their place in `ARMS`, other columns as they are."""
    return column.map(ARMS.index) if column.name == "arm" else column


class ArchitectureRuns(NamedTuple):
    """Curves by (arm, site, seed), and what they were trained over."""

    curves: Mapping[tuple[str, int, int], Curve]
    sites: list[int]
    seeds: list[int]

    def cell(self, arm: str, site: int) -> list[Curve]:
        """The curves of one arm and site, seed by seed."""
        return [self.curves[arm, site, seed] for seed in self.seeds]

    @property
    def rows(self) -> pd.DataFrame:
        """All SAEs, one row each, by site, arm and `knob`, the setting that governs L0."""
        rows = [curve.rows.assign(knob=curve.knob) for curve in self.curves.values()]
        return pd.concat(rows, ignore_index=True).sort_values(
            ["site", "arm", "knob"], ignore_index=True, key=_in_order
        )

    @property
    def n_pages(self) -> int:
        """Test pages of the measurements."""
        return int(self.rows["n_test_pages"].min())


def train(ws: Any, p: Params) -> ArchitectureRuns:
    """Train every curve until it has each L0 of the comparison or has spent its settings."""
    sites = compared_sites(ws, p)
    starts = arm_starts(p)
    curves: dict[Any, Curve] = {}
    for arms, propose in _searches(p):
        cells = {(arm, site): starts[arm] for arm in arms for site in sites}
        curves |= curves_over_seeds(
            ws,
            NOTEBOOK,
            partial(arm_spec, ws, p),
            cells,
            p.seeds,
            p.l0_targets,
            refine=p.refine,
            propose=propose,
        )
    return ArchitectureRuns(curves, sites, list(p.seeds))


def _searches(p: Params) -> list[tuple[tuple[str, ...], Propose]]:
    """The arms whose settings are searched alike, and how."""
    return [
        (PENALISED, proposed_lambda),
        (SELECTING, partial(propose_k, n_latents=p.n_latents)),
    ]


# -- at equal L0 -------------------------------------------------------------------------------


class Matched(NamedTuple):
    """What every arm has at each site and L0.

    per_seed   log FVU, one estimate a seed
    log_fvu    the same over seeds; undefined where a seed's curve does not reach that L0
    recovered  loss recovered over seeds
    means      table by (arm, site, L0) of `MEANS` with their Student intervals over seeds, ± `_pm`
    """

    per_seed: dict[Cell, list[Estimate]]
    log_fvu: dict[Cell, Estimate]
    recovered: dict[Cell, Estimate]
    means: pd.DataFrame

    @property
    def cells(self) -> list[Cell]:
        """Every arm, site and L0."""
        return list(self.log_fvu)

    @property
    def places(self) -> list[tuple[int, float]]:
        """Every site and L0."""
        return list(dict.fromkeys((site, l0) for _, site, l0 in self.log_fvu))

    @property
    def l0s(self) -> list[float]:
        """The L0 of the comparison, rising."""
        return sorted({l0 for _, _, l0 in self.log_fvu})

    @property
    def sites(self) -> list[int]:
        """The sites, from shallow to deep."""
        return sorted({site for _, site, _ in self.log_fvu})

    @property
    def middle_l0(self) -> float:
        """The L0 at which one number stands for an architecture: the middle one of those given."""
        return self.l0s[len(self.l0s) // 2]

    @property
    def unreachable(self) -> list[str]:
        """The cells that are missing, in words."""
        return [
            f"{NAMES[arm]} at site {site}, L0 {l0:g}"
            for (arm, site, l0), x in self.log_fvu.items()
            if not x.defined
        ]

    def fvu(self, arm: str, site: int, l0: float) -> Estimate:
        """FVU over seeds (geometric mean)."""
        return self.log_fvu[arm, site, l0].exp()

    def ratio(self, arm: str, against: str, site: int, l0: float) -> Estimate:
        """FVU of one arm over another's at the same site and L0."""
        return (self.log_fvu[arm, site, l0] - self.log_fvu[against, site, l0]).exp()


def match(runs: ArchitectureRuns, l0s: Sequence[float]) -> Matched:
    """Read every curve at each validation L0."""
    per_seed = {}
    recovered = {}
    means = {}
    for arm in ARMS:
        for site in runs.sites:
            curves = runs.cell(arm, site)
            for l0 in l0s:
                cell = (arm, site, float(l0))
                per_seed[cell] = [curve.samples_at_l0(l0).log() for curve in curves]
                lost = [curve.samples_at_l0(l0, "loss_recovered") for curve in curves]
                recovered[cell] = over_seeds(lost)
                means[cell] = _means(curves, l0)
    index = pd.MultiIndex.from_tuples(list(means), names=["arm", "site", "l0"])
    table = pd.DataFrame(list(means.values()), index=index, dtype=float)
    log_fvu = {cell: over_seeds(estimates) for cell, estimates in per_seed.items()}
    return Matched(per_seed, log_fvu, recovered, table)


def _means(curves: Sequence[Curve], l0: float) -> dict[str, float]:
    """Means over seeds at one L0, and how far their 95 % Student intervals reach."""
    row = {}
    for name in MEANS:
        values = [curve.at_l0(l0, name) for curve in curves]
        known = np.array([np.nan if value is None else value for value in values])
        row[name] = float(known.mean())
        row[f"{name}_pm"] = half_interval(known)
    return row


def half_interval(values: np.ndarray) -> float:
    """Half the 95 % Student interval of a mean over seeds; nan of one seed."""
    n = len(values)
    if n < 2:
        return float("nan")
    return float(student_975(n - 1) * values.std(ddof=1) / n**0.5)


def ratios(matched: Matched, against: str = "plain") -> dict[Cell, Estimate]:
    """FVU of every other arm over that of `against`, by (arm, site, L0)."""
    return {
        (arm, site, l0): matched.ratio(arm, against, site, l0)
        for arm, site, l0 in matched.cells
        if arm != against
    }


def seed_ratios(matched: Matched, against: str = "plain") -> pd.DataFrame:
    """The same ratios of single seeds: arm, site, l0, value."""
    rows = []
    for arm, site, l0 in ratios(matched, against):
        pairs = zip(
            matched.per_seed[arm, site, l0], matched.per_seed[against, site, l0], strict=True
        )
        rows += [(arm, site, l0, float(np.exp(x.value - y.value))) for x, y in pairs]
    return pd.DataFrame(rows, columns=["arm", "site", "l0", "value"])


def gaps(matched: Matched) -> dict[tuple[str, float], Estimate]:
    """FVU of the deepest site over that of the site before it, by (arm, L0); none of one site."""
    if len(matched.sites) < 2:
        return {}
    near, deep = matched.sites[-2:]
    return {
        (arm, l0): (matched.log_fvu[arm, deep, l0] - matched.log_fvu[arm, near, l0]).exp()
        for arm in ARMS
        for l0 in matched.l0s
    }


def middle_gaps(matched: Matched) -> dict[str, Estimate]:
    """`gaps` at the middle L0, by arm."""
    return {arm: x for (arm, l0), x in gaps(matched).items() if l0 == matched.middle_l0}


def leaders(matched: Matched) -> list[str]:
    """The arm that leaves least on test pages at the middle L0, by the geometric mean over sites.

    With the second where the two are not apart: where the first does not leave less at most sites,
    by whole intervals. Of the arms that have that L0 at every site; empty without any.
    """
    l0 = matched.middle_l0
    means = {
        arm: float(np.mean([matched.log_fvu[arm, site, l0].value for site in matched.sites]))
        for arm in ARMS
    }
    ranked = sorted((arm for arm in ARMS if np.isfinite(means[arm])), key=lambda arm: means[arm])
    first, second = ranked[:1], ranked[1:2]
    return first if second and _are_apart(matched, *first, *second) else first + second


def _are_apart(matched: Matched, best: str, second: str) -> bool:
    l0 = matched.middle_l0
    words = [matched.ratio(best, second, site, l0).compare(1) for site in matched.sites]
    return 2 * sum(word == "lower" for word in words) > len(words)


def best_arm(runs: ArchitectureRuns, l0: float) -> str | None:
    """The arm that leaves least at one L0 on validation pages, by the geometric mean over sites.

    Of those that have that L0 at every site; None where the plain SAE, with which it is compared,
    has not.
    """
    means = {arm: _validation_fvu(runs, arm, l0) for arm in ARMS}
    known = {arm: value for arm, value in means.items() if np.isfinite(value)}
    return min(known, key=lambda arm: known[arm]) if "plain" in known else None


def _validation_fvu(runs: ArchitectureRuns, arm: str, l0: float) -> float:
    """Mean log FVU on validation pages over sites and seeds; nan where a curve does not reach."""
    values = [curve.at_l0(l0, "fvu_val") for site in runs.sites for curve in runs.cell(arm, site)]
    return float(np.mean([np.nan if value is None else np.log(value) for value in values]))


# -- tables ------------------------------------------------------------------------------------


def curve_points(ws: Any, runs: ArchitectureRuns) -> pd.DataFrame:
    """`runs.rows`, with the setting in `lambda`, and lo and hi of the mean FVU over seeds at it.

    nan where a seed lacks that setting.
    """
    rows = runs.rows.assign(**{"lambda": runs.rows["knob"]})
    point = ["arm", "site", "lambda"]
    bounds = []
    for key, names in rows.groupby(point)["run_id"]:
        estimates = [of_pages(ws.pages(name)) for name in names]
        whole = len(estimates) == len(runs.seeds)
        row = over_seeds(estimates).row() if whole else undefined().row()
        bounds.append(dict(zip(point, key, strict=True)) | {"lo": row["lo"], "hi": row["hi"]})
    return rows.merge(pd.DataFrame(bounds), on=point)


def matched_rows(matched: Matched) -> pd.DataFrame:
    """arm, site, l0_target, fvu, lo, hi, recovered and its lo and hi, and the means."""
    rows = []
    for arm, site, l0 in matched.cells:
        fvu = matched.fvu(arm, site, l0).row()
        lost = matched.recovered[arm, site, l0].row()
        named = {"arm": arm, "site": site, "l0_target": l0, "fvu": fvu["value"]}
        named |= {"lo": fvu["lo"], "hi": fvu["hi"]}
        rows.append(named | {f"recovered_{name}": value for name, value in lost.items()})
    means = matched.means.reset_index(drop=True)
    return pd.concat([pd.DataFrame(rows), means], axis=1)


def matched_table(matched: Matched, l0: float) -> pd.DataFrame:
    """What a reader compares at one L0: a row per site and architecture, intervals in words."""
    rows = {}
    for site in matched.sites:
        for arm in ARMS:
            means = matched.means.loc[arm, site, l0]
            rows[site, NAMES[arm]] = {
                "FVU": matched.fvu(arm, site, l0).text(".3f", "unreachable"),
                "loss recovered": matched.recovered[arm, site, l0].text(".3f", "undefined"),
                "ΔCE (nats)": _plus_minus(means, "delta_ce", ".3f"),
                "KL (nats)": _plus_minus(means, "kl", ".3f"),
                "dead (%)": _plus_minus(means * 100, "dead_fraction", ".1f"),
                "shrinkage": _plus_minus(means, "shrinkage", ".3f"),
            }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.names = ["site", "architecture"]
    return table


def _plus_minus(means: pd.Series, name: str, form: str) -> str:
    """ "0.031 ± 0.004", without the second where there is one seed."""
    value, reach = float(means[name]), float(means[f"{name}_pm"])
    if not np.isfinite(value):
        return "undefined"
    return f"{value:{form}}" + (f" ± {reach:{form}}" if np.isfinite(reach) else "")


def describe(ws: Any, p: Params) -> str:
    """Recipe, model, sites, L0 and seeds in words."""
    scope = Scope.of_workspace(ws, p.seeds, 0)
    settings = p.spec_fields() | {"lr_topk": p.lr_topk}
    recipe = ", ".join(f"{name} {value}" for name, value in settings.items())
    l0s = ", ".join(f"{l0:g}" for l0 in p.l0_targets)
    sites = sites_label(compared_sites(ws, p))
    return f"{scope.model}: {sites}; L0 {l0s}; {scope.trainings}\nrecipe: {recipe}"


def reached_words(matched: Matched) -> str:
    """How many cells are reached, and which are not."""
    missing = matched.unreachable
    text = f"{len(matched.cells) - len(missing)} of {len(matched.cells)} cells reached"
    return f"{text}; unreachable: {'; '.join(missing)}" if missing else text


def defined(cases: Iterable[Estimate]) -> list[Estimate]:
    """Those that have a value."""
    return [x for x in cases if x.defined]
