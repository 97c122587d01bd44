"""F2, the gates over training: "once a gate opens, the gate becomes biased".

At one site every arm is trained once more at its λ for the L0 of the comparison, with snapshots of
its gates on the same validation rows. The plain SAE, whose "gate" is f > 0, says what any SAE does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from saelib.measure.bootstrap import seed_interval
from saelib.measure.gates import gate_statistics
from saelib.sae.history import Snapshot
from saelib.sae.spec import Spec
from saelib.show import training
from saelib.show.style import LOOKS
from saelib.study.estimate import REPLICATES, Estimate
from saelib.study.f2_gated import (
    ARMS,
    NOTEBOOK,
    GatedRuns,
    arm_lambdas,
    gated_spec,
    mean_at_l0,
    middle_site,
)
from saelib.study.f2_gated import (
    train as train_curves,
)
from saelib.study.finding import MIN_SEEDS, Check, Finding, Verdict, at_least, figure_path
from saelib.study.finding_params import GatesParams as Params
from saelib.study.matched import three_digits
from saelib.study.scope import Scope

CLAIM = "Once a gate opens it becomes biased."
EXCESS = 0.05  # persistence or Gini above the plain SAE's from which on gates count as biased
RULE = (
    "Supported if in the two-term Gated SAE persistence beyond chance (mean over training) and the "
    f"final Gini both exceed the plain SAE's by {EXCESS:g}: the 95 % Student intervals of the "
    "paired differences over seeds lie above that. Contradicted if one of them lies below. Else "
    "undecided, as it is with fewer than three seeds, or where an arm is watched at another L0 "
    "since its curve does not reach this one."
)
ENDS = (
    "open_fraction",
    "never_open",
    "persistence",
    "persistence_chance",
    "beyond_chance",
    "gini",
    "b_gate_median",
)


# -- what is trained ---------------------------------------------------------------------------


class Watched(NamedTuple):
    """SAEs whose gates are watched: specs by (arm, seed), their λ, and their rows of results.

    off_target: arms whose curve does not reach the L0 of the comparison, watched at its first λ.
    """

    specs: dict[tuple[str, int], Spec]
    lambdas: dict[str, float]
    off_target: list[str]
    rows: pd.DataFrame
    site: int


def train(ws: Any, p: Params, runs: GatedRuns | None = None) -> Watched:
    """Train every arm and seed with `snapshots` snapshots at its λ for L0 = `l0_target`.

    runs: the curves that λ is read from, made where they are not given.
    """
    runs = runs or train_curves(ws, p)
    site = middle_site(ws, p)
    reached = {arm: mean_at_l0(runs.cell(arm, site), p.l0_target, "lambda") for arm in ARMS}
    given = arm_lambdas(p)
    lambdas = {arm: three_digits(lam) if lam > 0 else given[arm][0] for arm, lam in reached.items()}
    specs = {
        (arm, seed): gated_spec(ws, p, arm, site, seed, lambdas[arm], snapshots=p.snapshots)
        for arm in ARMS
        for seed in p.seeds
    }
    rows = ws.train(list(specs.values()), NOTEBOOK)
    off_target = [arm for arm, lam in reached.items() if not lam > 0]
    return Watched(specs, lambdas, off_target, rows, site)


# -- estimates ---------------------------------------------------------------------------------


class Gates(NamedTuple):
    """What snapshots say.

    table     `gate_statistics` of every arm and seed, with beyond_chance = (p − c) / (1 − c)
    by_run    by (arm, seed): beyond_chance, its mean over training; gini and the rest, at the end
    biases    gate biases over training by seed of the two-term arm [snapshots, n_latents]
    """

    table: pd.DataFrame
    by_run: pd.DataFrame
    biases: list[torch.Tensor]
    n_rows: int  # validation rows on which gates are watched


def watch(ws: Any, watched: Watched) -> Gates:
    """Statistics of the snapshots of every watched SAE."""
    snapshots = {key: ws.snapshots(spec) for key, spec in watched.specs.items()}
    biases = [
        torch.stack([snap.b_gate for snap in snaps])
        for (arm, _), snaps in snapshots.items()
        if arm == "two_term"
    ]
    n_rows = len(next(iter(snapshots.values()))[0].open)
    table = statistics(snapshots)
    return Gates(table, by_run(table), biases, n_rows)


def statistics(snapshots: Mapping[tuple[str, int], Sequence[Snapshot]]) -> pd.DataFrame:
    """`gate_statistics` of snapshots by (arm, seed), with columns arm, seed and beyond_chance."""
    tables = [
        gate_statistics(snaps).assign(arm=arm, seed=seed)
        for (arm, seed), snaps in snapshots.items()
    ]
    table = pd.concat(tables, ignore_index=True)
    above_chance = table["persistence"] - table["persistence_chance"]
    return table.assign(beyond_chance=above_chance / (1 - table["persistence_chance"]))


def by_run(table: pd.DataFrame) -> pd.DataFrame:
    """By (arm, seed) the last snapshot, with beyond_chance as its mean over training."""
    runs = table.groupby(["arm", "seed"])
    return runs.last().assign(beyond_chance=runs["beyond_chance"].mean())


def by_arm(gates: Gates) -> pd.DataFrame:
    """Means over seeds, one row per arm."""
    return gates.by_run.groupby("arm").mean().loc[list(ARMS)]


def end_table(gates: Gates, watched: Watched) -> pd.DataFrame:
    """How the arms end: gate statistics, L0 and FVU, one row per arm."""
    measured = watched.rows.groupby("arm")[["l0", "fvu"]].mean()
    return by_arm(gates)[list(ENDS)].join(measured)


def excess(gates: Gates) -> dict[str, Estimate]:
    """Persistence beyond chance and Gini of the two-term gates less the plain SAE's."""
    names = {"persistence": "beyond_chance", "Gini": "gini"}
    return {
        f"{name}, two-term less plain": student(
            gates.by_run.loc["two_term", column] - gates.by_run.loc["plain", column]
        )
        for name, column in names.items()
    }


def student(values: Sequence[float] | pd.Series) -> Estimate:
    """Mean over seeds with its 95 % Student interval; without an interval below two seeds.

    Replicates stand at the two ends of the interval, so that it is exact; they pair with nothing.
    """
    seeds = np.asarray(values, dtype=np.float64)
    low, high = seed_interval(seeds)
    half = REPLICATES // 2
    return Estimate(np.r_[seeds.mean(), np.full(half, low), np.full(half, high)])


# -- the verdict -------------------------------------------------------------------------------


def decide(differences: Mapping[str, Estimate], n_seeds: int, on_target: bool) -> Verdict:
    """Whether open gates are biased (`RULE`), from the excess of persistence and of Gini."""
    if not differences or n_seeds < MIN_SEEDS or not on_target:
        return "undecided"
    if all(x.lo > EXCESS for x in differences.values()):
        return "supported"
    if any(x.hi < EXCESS for x in differences.values()):
        return "contradicted"
    return "undecided"


def finding(gates: Gates, watched: Watched, p: Params, scope: Scope) -> Finding:
    """F2d."""
    differences = excess(gates)
    return Finding(
        name="F2d",
        claim=CLAIM,
        rule=RULE,
        verdict=decide(differences, scope.n_seeds, not watched.off_target),
        estimates=differences,
        sentence=sentence(gates, watched, scope),
        section="Verdict",
        figure=figure_path(p.profile, "03_gate_over_training"),
    )


def sentence(gates: Gates, watched: Watched, scope: Scope) -> str:
    """Persistence and Gini of every arm, and the two-term arm's excess over plain."""
    l0 = watched.rows.groupby("arm")["l0"].mean()
    arms = by_arm(gates)
    parts = [
        f"{LOOKS[arm].label} {arms['beyond_chance'][arm]:.2f} and {arms['gini'][arm]:.2f} "
        f"(L0 {l0[arm]:.0f})"
        for arm in ARMS
    ]
    differences = " and ".join(x.text("+.2f") for x in excess(gates).values())
    return (
        f"Persistence beyond chance and Gini of firing at site {watched.site}: {'; '.join(parts)}. "
        f"Two-term less plain: {differences} (95 % Student interval over seeds, {scope.trainings})."
    )


# -- figure and expectations -------------------------------------------------------------------


def figure(gates: Gates, watched: Watched, scope: Scope) -> Figure:
    """Open share, persistence, Gini and bias of the gates over training, mean over seeds."""
    means = gates.table.drop(columns="seed").groupby(["arm", "step"], sort=False).mean()
    return training.gate_over_training(
        means.reset_index(),
        title=title(excess(gates)),
        note=note(gates, watched, scope),
    )


def title(differences: Mapping[str, Estimate]) -> str:
    """Whether two-term gates persist and concentrate more than the plain SAE's.

    An interval over seeds that holds 0 says that they do not clearly differ; one seed speaks for
    itself.
    """
    persistence, gini = differences.values()
    if not (persistence.defined and gini.defined):
        return "Gates over training: some arm never opens a gate"
    verbs = {"persist": direction(persistence), "concentrate": direction(gini)}
    clear = [f"{verb} {word}" for verb, word in verbs.items() if word]
    if not clear:
        return "Two-term gates do not clearly differ from plain ones"
    message = f"Two-term gates {' and '.join(clear)} than plain ones"
    unclear = {"persist": "persistence", "concentrate": "concentration"}
    rest = [unclear[verb] for verb, word in verbs.items() if not word]
    return f"{message}; {rest[0]} does not clearly differ" if rest else message


def direction(difference: Estimate) -> str:
    """ "more" or "less" where the interval, or a value without one, lies above or below 0.

    Empty where the interval holds 0.
    """
    row = difference.row()
    ends = (row["lo"], row["hi"]) if np.isfinite(row["lo"]) else (row["value"], row["value"])
    if min(ends) > 0:
        return "more"
    return "less" if max(ends) < 0 else ""


def note(gates: Gates, watched: Watched, scope: Scope) -> str:
    """The caption: site, λ, final bias and Gini."""
    arms = by_arm(gates)
    ends = [
        f"{LOOKS[arm].label} {arms['b_gate_median'][arm]:.2f} and {arms['gini'][arm]:.2f}"
        for arm in ARMS
    ]
    lambdas = ", ".join(f"{lam:g} ({LOOKS[arm].label})" for arm, lam in watched.lambdas.items())
    return (
        f"Site {watched.site}; plain: b_enc. Median bias and Gini at the end: {'; '.join(ends)}. "
        f"λ = {lambdas}. Mean over {scope.note}"
    )


def checks(gates: Gates) -> list[Check]:
    """Expectations of the gates."""
    arms = by_arm(gates)
    beyond = [None if np.isnan(x) else bool(x > 0.2) for x in arms["beyond_chance"]]
    return [
        (
            not any(rises(biases) for biases in gates.biases),
            "with two terms no gate bias rises between snapshots: the L1 can only lower it",
        ),
        (
            bool((arms["b_gate_median"] < 0).all()),
            "in every arm the median bias ends below 0: most latents need evidence to open",
        ),
        (
            at_least(len(beyond), beyond, "it is undefined"),
            "in every arm gates persist by over 0.2 beyond chance: the choice of rows is learned, "
            "not only the rate",
        ),
    ]


def rises(biases: torch.Tensor) -> bool:
    """Whether a gate bias [snapshots, n_latents], 0 before training, ever rises."""
    start = torch.zeros(1, biases.shape[1], dtype=biases.dtype)
    return bool((torch.cat([start, biases]).diff(dim=0) > 0).any())
