"""F1: does a cosine learning rate with hard restarts train badly?

Four schedules and one pitfall, each at its own best peak rate, over equal tokens and paired seeds.
Schedules end at different L0 even at equal λ; so each run's FVU is divided by that of the plain
sweep's curve of λ at the run's own L0 (`excess`), and the training objective is shown beside it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saelib.config import ConfigError, EvalConfig
from saelib.measure.bootstrap import seed_interval
from saelib.show import compare
from saelib.show.style import LOOKS
from saelib.study import finding as records
from saelib.study import sweep
from saelib.study.curve import Curve
from saelib.study.estimate import Estimate, geometric_mean, of_pages, over_seeds
from saelib.study.finding import MIN_PAGES, MIN_SEEDS, Finding, Verdict, enough, majority
from saelib.study.finding_params import ScheduleParams as Params
from saelib.study.scope import Scope, sites_label
from saelib.study.sweep import NOTEBOOK, Sweep

NAME = "F1"
CLAIM = "Hard restarts train badly."
RULE = (
    "At a site, hard restarts train badly if they cost more than {percent:g}% in FVU at matched "
    "L0 against each of the other three schedules: the whole 95 % interval of the paired ratio "
    "lies above {limit:g}, three times. They do not if against at least one schedule the whole "
    "interval lies below {limit:g}. Supported if they train badly at most sites, contradicted if "
    "they do not at most sites. A site where a run's L0 lies outside the curve counts for neither. "
    f"Undecided otherwise, and with fewer than {MIN_SEEDS} seeds or {MIN_PAGES} test pages."
)
SECTION = "5 F1: do hard restarts train badly?"
FIGURE = "02_schedules_final"

RESTARTS = "cosine_with_restarts"
STOPPED = "stopped"  # restarts stopped in mid-cycle: shown, not judged
JUDGED = ("constant", "linear", "cosine", RESTARTS)
OTHERS = ("constant", "linear", "cosine")
SITE_WORDS = {
    "badly": "hard restarts train badly",
    "not badly": "hard restarts do not train badly",
    "unclear": "neither can be said",
}
MEASURES = {"matched": "FVU at matched L0", "objective": "training objective"}


class Run(NamedTuple):
    """One SAE of the study."""

    site: int
    schedule: str
    lr: float
    seed: int


class Trained(NamedTuple):
    """The study's runs, and the curves of λ that they are read against."""

    tried: pd.DataFrame  # each judged schedule at each rate, one seed, with `on_val`
    chosen: pd.DataFrame  # each schedule at its best rate, all seeds, with spec, matched, objective
    curves: dict[int, Curve]  # by site, of the sweep's first seed


# -- training --------------------------------------------------------------------------------------


def arms(p: Params) -> dict[str, dict[str, Any]]:
    """Fields of a spec by schedule, the stopped one last."""
    schedules: dict[str, dict[str, Any]] = {name: {"schedule": name} for name in JUDGED}
    schedules[RESTARTS]["n_cycles"] = p.n_cycles
    steps = p.tokens // p.batch_size
    longer = {"stop_at": p.stop_at, "tokens": round(steps / p.stop_at) * p.batch_size}
    schedules[STOPPED] = schedules[RESTARTS] | longer
    return schedules


def log_every(p: Params) -> int:
    """Steps between rows of the history: forty rows or more."""
    return max(1, p.tokens // p.batch_size // 40)


def studied_sites(ws: Any, p: Params) -> list[int]:
    """Where schedules are studied; ConfigError where the sweep has no curve there."""
    studied = sweep.sites_of(ws, p.schedule_sites)
    swept = sweep.sites_of(ws, p.sites)
    if not set(studied) <= set(swept):
        raise ConfigError(
            f"schedule_sites are sites {studied}: expected some of {swept}, "
            "whose λ curves they are read against"
        )
    return studied


def train(ws: Any, p: Params, notebook: str = NOTEBOOK) -> Trained:
    """Train and measure all of F1: choose each schedule's rate by one seed, then train all."""
    studied = studied_sites(ws, p)
    swept = sweep.train(ws, p, notebook)
    curves = {site: swept.curve(site, p.seeds[0]) for site in studied}
    tried = _train_runs(ws.measuring(EvalConfig(ce_tokens=0)), p, trials(studied, p), notebook)
    # an L0 outside the curve is not comparable
    tried["on_val"] = excess(tried, curves, "fvu_val").fillna(np.inf)
    chosen = _train_runs(ws, p, at_best_rates(tried, p.schedule_seeds), notebook)
    chosen["matched"] = excess(chosen, curves, "fvu")
    chosen["objective"] = chosen["mse"] + chosen["lambda"] * chosen["l1"]
    return Trained(tried, chosen, curves)


def trials(sites: Sequence[int], p: Params) -> list[Run]:
    """Each judged schedule at each peak rate, with the first seed."""
    grid = itertools.product(sites, JUDGED, p.schedule_lrs, p.schedule_seeds[:1])
    return [Run(*cell) for cell in grid]


def at_best_rates(tried: pd.DataFrame, seeds: Sequence[int]) -> list[Run]:
    """Each schedule at its rate with the least excess on validation pages, for all seeds.

    The stopped arm takes the rate of the restarts.
    """
    least = tried.groupby(["site", "schedule"], sort=False)["on_val"].idxmin()
    best = tried.loc[least, ["site", "schedule", "lr"]]
    stopped = best[best["schedule"] == RESTARTS].assign(schedule=STOPPED)
    best = pd.concat([best, stopped]).sort_values("site", kind="stable")
    rows = best.itertuples(index=False)
    return [Run(row.site, row.schedule, row.lr, seed) for row in rows for seed in seeds]


def _train_runs(ws: Any, p: Params, runs: Sequence[Run], notebook: str) -> pd.DataFrame:
    """Rows of `results.csv` for these runs, with columns spec and schedule."""
    fields = arms(p)
    base = p.spec_fields() | {"lam": p.schedule_lam, "log_every": log_every(p)}
    specs = [
        ws.spec("plain", run.site, **base | fields[run.schedule] | {"lr": run.lr, "seed": run.seed})
        for run in runs
    ]
    names = [run.schedule for run in runs]
    return ws.train(specs, notebook).assign(spec=specs, schedule=names)


def excess(rows: pd.DataFrame, curves: Mapping[int, Curve], column: str) -> pd.Series:
    """`column` over the curve's at each run's own validation L0; nan outside the curve."""
    on_curve = [curves[row.site].at_l0(row.l0_val, column) for row in rows.itertuples()]
    return rows[column] / [np.nan if value is None else value for value in on_curve]


# -- estimates and verdict -------------------------------------------------------------------------


def ratios(trained: Trained, pages: Any) -> dict[tuple[int, str], Estimate]:
    """FVU of hard restarts over another schedule's, at matched L0: by site and schedule.

    pages: run id -> sums by test page. Paired over pages and seeds.
    """
    logs = _log_excess(trained, pages)
    sites = list(dict.fromkeys(trained.chosen["site"]))
    seeds = list(dict.fromkeys(trained.chosen["seed"]))
    by_cell = {}
    for site, other in itertools.product(sites, (*OTHERS, STOPPED)):
        differences = [logs[site, RESTARTS, seed] - logs[site, other, seed] for seed in seeds]
        by_cell[site, other] = over_seeds(differences).exp()
    return by_cell


def _log_excess(trained: Trained, pages: Any) -> dict[tuple[int, str, int], Estimate]:
    """log FVU over the curve's at the run's own L0, by site, schedule and seed."""
    return {
        (run.site, run.schedule, run.seed): (
            of_pages(pages(run.run_id)) / trained.curves[run.site].samples_at_l0(run.l0_val)
        ).log()
        for run in trained.chosen.itertuples()
    }


def judge_site(against: Mapping[str, Estimate], margin: float) -> str:
    """Judge one site "badly", "not badly" or "unclear", by the ratios to the other schedules."""
    words = [against[other].compare(1 + margin) for other in OTHERS]
    if all(word == "higher" for word in words):
        return "badly"
    if "unreachable" not in words and "lower" in words:
        return "not badly"
    return "unclear"


def decide(
    by_cell: Mapping[tuple[int, str], Estimate], margin: float, n_seeds: int, n_pages: int
) -> Verdict:
    """`RULE`, of ratios by site and schedule."""
    if not enough(n_seeds, n_pages):
        return "undecided"
    sites = dict.fromkeys(site for site, _ in by_cell)
    judged = [
        judge_site({other: by_cell[site, other] for other in OTHERS}, margin) for site in sites
    ]
    return majority(judged, {"badly"}, {"not badly"})


def over_sites(by_cell: Mapping[tuple[int, str], Estimate]) -> dict[str, Estimate]:
    """Geometric mean over sites of the ratio to each schedule; undefined where one site's is."""
    sites = list(dict.fromkeys(site for site, _ in by_cell))
    return {other: geometric_mean([by_cell[site, other] for site in sites]) for other in OTHERS}


def estimates(by_cell: Mapping[tuple[int, str], Estimate], first: int) -> dict[str, Estimate]:
    """Named effects, those of site `first` before the others."""
    order = sorted(by_cell, key=lambda cell: (cell[0] != first, cell[0]))
    return {
        f"site {site}, hard restarts over {LOOKS[other].label}": by_cell[site, other]
        for site, other in order
        if other in OTHERS
    }


# -- words -----------------------------------------------------------------------------------------


def title(against: Mapping[str, Estimate]) -> str:
    """The figure's message, from ratios over sites by schedule."""
    verbs = {"higher": "lose to", "lower": "beat"}
    groups: dict[str, list[str]] = {"lose to": [], "beat": [], "tie with": []}
    for other, ratio in against.items():
        if ratio.defined:
            groups[verbs.get(ratio.compare(1), "tie with")].append(LOOKS[other].label)
    parts = [f"{verb} {_joined(names)}" for verb, names in groups.items() if names]
    if not parts:
        return "No schedule's L0 lies on the λ curve"
    return "Hard restarts " + ", ".join(parts)


def _joined(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def sentence(
    by_cell: Mapping[tuple[int, str], Estimate], rates: Sequence[float], scope: Scope
) -> str:
    """The result in words."""
    against = over_sites(by_cell)
    sites = list(dict.fromkeys(site for site, _ in by_cell))
    defined = {other: ratio for other, ratio in against.items() if ratio.defined}
    if not defined:
        return (
            "FVU of hard restarts cannot be compared: at "
            f"{sites_label(sites)} the L0 of a run lies outside the curve of λ."
        )
    words = "; ".join(
        f"{ratio.text('.3f')} times that of {LOOKS[other].label}"
        for other, ratio in defined.items()
    )
    where = f"mean over {sites_label(sites)}" if len(sites) > 1 else f"at {sites_label(sites)}"
    several = f"each at its best of the peak rates {', '.join(f'{rate:g}' for rate in rates)}"
    return (
        f"FVU of hard restarts at matched L0, {where}: {words}; "
        f"{several if len(rates) > 1 else f'all at the peak rate {rates[0]:g}'}. "
        f"{scope.interval}, paired, {scope.trainings}."
    )


def abstract(
    by_cell: Mapping[tuple[int, str], Estimate], rates: Sequence[float], verdict: Verdict
) -> str:
    """F1's words in the report's abstract: the schedule that restarts lose most against."""
    against = over_sites(by_cell)
    if not all(ratio.defined for ratio in against.values()):
        return f"Cosine restarts (F1: {verdict}) end at an L0 outside the curve of λ."
    best = max(against, key=lambda other: against[other].value)
    sites = list(dict.fromkeys(site for site, _ in by_cell))
    where = "mean over sites" if len(sites) > 1 else f"at {sites_label(sites)}"
    several = len(rates) > 1
    rate = "each at its own best rate" if several else f"all at the rate {rates[0]:g}"
    return (
        f"Cosine restarts (F1: {verdict}) leave {against[best].value:.2f} times the FVU of a "
        f"{LOOKS[best].label} schedule, against the λ curve at the L0 of either, {where}, "
        f"{rate}."
    )


def rule(p: Params) -> str:
    """`RULE` with this run's margin."""
    return RULE.format(percent=100 * p.margin, limit=1 + p.margin)


def tried_summary(trained: Trained, p: Params) -> str:
    """How many rates were tried, and how many cannot be compared."""
    outside = int(np.isinf(trained.tried["on_val"]).sum())
    sites = sorted(dict.fromkeys(trained.chosen["site"].tolist()))
    rates = len(p.schedule_lrs)
    seeds = len(p.schedule_seeds)
    return (
        f"{sites_label(sites)}: {len(JUDGED)} schedules, {rates} peak rate{'s' * (rates > 1)} "
        f"each; then {seeds} seed{'s' * (seeds > 1)} at the best, and the stopped arm\n"
        f"{outside} of {len(trained.tried)} trials end at an L0 outside the curve of λ "
        "and cannot be compared"
    )


def table(trained: Trained) -> pd.DataFrame:
    """Means over seeds by schedule, at the middle one of the studied sites."""
    site = middle_site(trained)
    columns = ["lr", "fvu", "l0", "matched", "objective", "loss_recovered", "dead_fraction"]
    rows = trained.chosen[trained.chosen["site"] == site]
    means = rows.groupby("schedule", sort=False)[columns].mean()
    labels = [LOOKS[name].label.replace("\n", " ") for name in means.index]
    shown = means.map("{:.3g}".format).replace("nan", "–")
    return shown.set_axis(pd.Index(labels, name=f"site {site}"))


def middle_site(trained: Trained) -> int:
    sites = sorted(dict.fromkeys(trained.chosen["site"].tolist()))
    return sites[len(sites) // 2]


# -- figures ---------------------------------------------------------------------------------------


def gaps(chosen: pd.DataFrame) -> pd.DataFrame:
    """Hard restarts over each other schedule, by seed: panel, group, hue (site), log gap, value."""
    others = [name for name in (*JUDGED, STOPPED) if name != RESTARTS]
    logs = {
        measure: chosen.pivot(index=["site", "seed"], columns="schedule", values=measure).map(
            np.log
        )
        for measure in MEASURES
    }
    apart = pd.concat(
        {measure: t[others].rsub(t[RESTARTS], axis=0) for measure, t in logs.items()},
        names=["measure"],
    )
    long = apart.melt(ignore_index=False, var_name="group", value_name="gap").reset_index()
    return long.assign(
        hue=long["site"], panel=long["measure"].map(MEASURES), value=np.exp(long["gap"])
    )


def points(per_seed: pd.DataFrame, by_cell: Mapping[tuple[int, str], Estimate]) -> pd.DataFrame:
    """Value and interval by panel, group (schedule) and hue (site).

    FVU at matched L0 from `ratios`; the objective from seeds alone, with Student's interval.
    """
    grouped = per_seed.groupby(["panel", "group", "hue"], sort=False)["gap"]
    # a seed outside the curve leaves the cell empty
    value = grouped.agg(lambda gap: gap.mean(skipna=False))
    lo = grouped.agg(lambda gap: seed_interval(gap)[0])
    hi = grouped.agg(lambda gap: seed_interval(gap)[1])
    table = np.exp(pd.DataFrame({"value": value, "lo": lo, "hi": hi})).reset_index()
    matched = table["panel"] == MEASURES["matched"]
    for i, row in table[matched].iterrows():
        ratio = by_cell[row["hue"], row["group"]]
        table.loc[i, ["value", "lo", "hi"]] = list(ratio.row().values())
    return table


def figure(
    ws: Any, trained: Trained, by_cell: Mapping[tuple[int, str], Estimate], p: Params, scope: Scope
) -> Figure:
    """Hard restarts over each other schedule: FVU at matched L0, and the training objective."""
    per_seed = gaps(trained.chosen)
    objective = "; of the objective over seeds alone" * (scope.n_seeds > 1)
    against = over_sites(by_cell)
    extra = ", ".join(
        f"{100 * (ratio.value - 1):+.1f} % against {LOOKS[other].label}"
        for other, ratio in against.items()
        if ratio.defined
    )
    sites = list(dict.fromkeys(site for site, _ in by_cell))
    where = f"mean over {sites_label(sites)}" if len(sites) > 1 else sites_label(sites)
    note = f"FVU at matched L0, {where}: {extra or 'outside the curve'}. "
    note += "Right of 1: hard restarts are worse than the schedule named."
    return compare.interval_points(
        points(per_seed, by_cell),
        per_seed if scope.n_seeds > 1 else None,
        title=title(against),
        interval=f"{scope.matched_interval}, paired{objective}",
        note=note,
        share_x=False,
        value_label="hard restarts / this schedule",
        reference=(1, "equal"),
        limits={MEASURES["matched"]: (1 + p.margin, f"1 + margin = {1 + p.margin:g}")},
        n_layers=ws.n_layers,
    )


def scope_of(ws: Any, p: Params, swept: Sweep) -> Scope:
    """Model, seeds of the schedule study, and pages."""
    return Scope.of_workspace(ws, p.schedule_seeds, swept.n_pages)


def finding(
    by_cell: Mapping[tuple[int, str], Estimate], p: Params, scope: Scope, profile: str
) -> Finding:
    """F1 as it is recorded; the headline estimate is of the middle studied site."""
    sites = sorted(dict.fromkeys(site for site, _ in by_cell))
    return Finding(
        name=NAME,
        claim=CLAIM,
        rule=rule(p),
        verdict=decide(by_cell, p.margin, scope.n_seeds, scope.n_pages),
        estimates=estimates(by_cell, sites[len(sites) // 2]),
        sentence=sentence(by_cell, p.schedule_lrs, scope),
        section=SECTION,
        figure=records.figure_path(profile, FIGURE),
    )


def judged_sites(by_cell: Mapping[tuple[int, str], Estimate], margin: float) -> str:
    """How the rule reads each site, one line per site."""
    lines = []
    for site in dict.fromkeys(site for site, _ in by_cell):
        word = judge_site({other: by_cell[site, other] for other in OTHERS}, margin)
        lines.append(f"site {site}: {SITE_WORDS[word]}")
    return "\n".join(lines)
