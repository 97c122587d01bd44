"""All that the notebooks train, in their order, by the studies' own functions.

Run on a workspace that trains nothing, it is the count that a plan rests on: there is no second
list of what is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saelib.sae.spec import Spec
from saelib.study import (
    f1_schedules,
    f2_gated,
    f2_gates,
    f2_lengths,
    f2_resampling,
    f3_causes,
    f3_choices,
    f3_depth,
    f3_dictionary,
    f3_features,
    f4_lambda,
    f5_architectures,
    f5_items,
    sweep,
)
from saelib.study.f3_sites import compared_sites
from saelib.study.params import Params


def train_sae(ws: Any, p: Any) -> None:
    """Notebook 02."""
    f4_lambda.train(ws, p)
    f1_schedules.train(ws, p)


def train_gated(ws: Any, p: Any) -> f2_gated.GatedRuns:
    """Notebook 03; returns the curves that 05 compares."""
    runs = f2_gated.train(ws, p)
    f2_gates.train(ws, p, runs)
    f2_lengths.train(ws, p, runs)
    return runs


def layer_analysis(ws: Any, all_depths: Any, p: Any, runs: f2_gated.GatedRuns) -> None:
    """Notebook 05; `all_depths` is the workspace of its section on all depths."""
    compared = compared_sites(ws, p.sites)
    f3_causes.train(ws, p, compared)
    f3_choices.train(ws, p, compared)
    plain = {(site, seed): runs.curves["plain", site, seed] for site, seed in _cells(runs)}
    f3_dictionary.train(ws, p, plain)
    f3_depth.train(all_depths, p, f3_depth.depth_sites(ws.n_layers, p.depth_step, compared))


def architectures(ws: Any, p: Any) -> None:
    """Notebook 07."""
    runs = f5_architectures.train(ws, p)
    middle = p.l0_targets[len(p.l0_targets) // 2]
    f5_items.train(ws, p, runs, middle)


def _cells(runs: f2_gated.GatedRuns) -> list[tuple[int, int]]:
    return [(site, seed) for site in runs.sites for seed in runs.seeds]


def train_all(ws: Any, all_depths: Any, params: Mapping[str, Params]) -> None:
    """Everything that notebooks 02 to 07 train, with the parameters of each."""
    train_sae(ws, params["02_train_sae"])
    runs = train_gated(ws, params["03_train_gated"])
    f2_resampling.train(ws, params["04_resampling"])
    layer_analysis(ws, all_depths, params["05_layer_analysis"], runs)
    f3_features.train(ws, params["06_features"])
    architectures(ws, params["07_architectures"])


def first_specs(ws: Any, notebook: str, p: Any) -> list[Spec]:
    """What notebook 02 or 03 trains first: grids of λ that need no result before."""
    if notebook == f2_gated.NOTEBOOK:
        return f2_gated.grid_specs(ws, p)
    return [spec for of_cell in sweep.specs(ws, p).values() for spec in of_cell]
