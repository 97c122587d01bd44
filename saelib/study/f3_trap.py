"""Before F3: why an FVU over all tokens says little where a few tokens hold the squared norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saelib.measure import geometry
from saelib.show import depth
from saelib.study.f3_sites import Compared, Sweep
from saelib.study.notebooks import LayerParams
from saelib.study.scope import Scope

CLASS_COLUMNS = {"all": "fvu_all", "ordinary": "fvu", "sink": "fvu_sink"}
HEAVY = 0.5  # share of the squared norm from which first and sink tokens are called heavy
WORKING_FVU = 0.8  # an SAE below this has learned something; a mean predictor stays near 1
FLATTERED = 2.0  # ordinary FVU over all-token FVU from which the latter is called flattering


def class_table(store: Any, original: pd.DataFrame, compared: Compared) -> pd.DataFrame:
    """What first and sink tokens weigh at each site, and two FVUs of the original recipe.

    By site: share of tokens, share of squared norm (of first and sink tokens), class means, all
    (FVU over all tokens of the predictor that knows a token's class alone), SAE, all, SAE, ordinary
    (FVU of the original recipe's SAE), L0.
    """
    profile = geometry.site_profile(store, "test").set_index(["site", "class"])
    whole = profile.xs("all", level="class")
    special = profile.drop(["all", "ordinary"], level="class").groupby("site")
    special = special[["count", "norm_share"]].sum().reindex(list(compared.sites), fill_value=0)
    table = pd.DataFrame(
        {"share of tokens": special["count"] / whole["count"].loc[list(compared.sites)]}
    )
    table["share of squared norm"] = special["norm_share"]
    table["class means, all"] = _class_mean_fvu(profile)[list(compared.sites)]
    table[["SAE, all", "SAE, ordinary", "L0"]] = original[["fvu_all", "fvu", "l0"]]
    return table


def _class_mean_fvu(profile: pd.DataFrame) -> pd.Series:
    """FVU over all tokens, by site, of the mean of each token's class."""
    classes = profile.drop("all", level="class")
    within = classes["norm_share"] * (1 - classes["mean_share"])
    # A token that is a sink at another site alone is in no class here: nothing of it is explained.
    unclassed = 1 - classes["norm_share"].groupby("site").sum()
    variance = 1 - profile.xs("all", level="class")["mean_share"]
    return (within.groupby("site").sum() + unclassed) / variance


def median_norms(store: Any, compared: Compared) -> np.ndarray:
    """Median norm of ordinary test tokens at each compared site, model units."""
    profile = geometry.site_profile(store, "test").set_index(["site", "class"])
    ordinary = profile.xs("ordinary", level="class")
    return ordinary.loc[list(compared.sites), "norm_median"].to_numpy()


def checks(table: pd.DataFrame) -> list[str]:
    """What the table shows of the trap, a line for each check."""
    heavy = table[table["share of squared norm"] > HEAVY]
    working = heavy["SAE, ordinary"] < WORKING_FVU
    flattered = heavy[working & (heavy["SAE, ordinary"] > FLATTERED * heavy["SAE, all"])]
    lookup = heavy[heavy["class means, all"] < HEAVY]
    if not len(heavy):
        return [f"first and sink tokens hold most of the squared norm at 0 of {len(table)} sites"]
    return [
        "first and sink tokens hold most of the squared norm at "
        f"{len(heavy)} of {len(table)} sites: {[*heavy.index]}",
        f"of these, the class means alone reach an all-token FVU below 0.5 at {len(lookup)}",
        f"and the SAE's all-token FVU is less than half its ordinary FVU at {len(flattered)}",
    ]


def by_class(
    p: LayerParams, original: pd.DataFrame, sweep: Sweep, compared: Compared
) -> pd.DataFrame:
    """FVU of both recipes by site and token class: site, recipe, class, fvu, l0."""
    raw = f"original: raw, all tokens, λ = {p.original_lam:g}"
    normalised = f"normalised, ordinary tokens, L0 = {p.l0_target:g}"
    rows = []
    for site in compared.sites:
        for name, column in CLASS_COLUMNS.items():
            rows.append((site, raw, name, original.loc[site, column], original.loc[site, "l0"]))
    for site in compared.sites:
        for name, column in CLASS_COLUMNS.items():
            fvu = mean_at_l0(sweep, site, p.l0_target, column)
            rows.append((site, normalised, name, fvu, p.l0_target))
    table = pd.DataFrame(rows, columns=["site", "recipe", "class", "fvu", "l0"])
    return table.astype({"fvu": float}).dropna(subset="fvu")


def mean_at_l0(sweep: Sweep, site: int, l0: float, column: str = "fvu") -> float:
    """Mean over seeds of the plain SAE's `column` at validation L0 = l0; nan where not reached."""
    values = [curve.at_l0(l0, column) for curve in sweep.by_seed("plain", site)]
    return np.mean([value or np.nan for value in values])


def title(table: pd.DataFrame) -> str:
    """The figure's message: whether the two FVUs of the original recipe disagree, and where."""
    ratio = table["SAE, ordinary"] / table["SAE, all"]
    worst = ratio.idxmax()
    if ratio[worst] > FLATTERED:
        return f"All-token FVU hides how ordinary tokens are rebuilt at site {worst}"
    return "All-token and ordinary FVU tell much the same at each site"


def caption(rows: pd.DataFrame, table: pd.DataFrame, scope: Scope) -> str:
    """The numbers behind the message, and what is drawn; rows: `by_class`."""
    n_rows = rows["class"].value_counts()
    sinks = " Sink: first and sink tokens" if "sink" in n_rows else ""
    if sinks:
        sinks += "." if n_rows["sink"] == n_rows.max() else ", where there are 50 or more."
    ratio = table["SAE, ordinary"] / table["SAE, all"]
    worst = ratio.idxmax()
    return (
        f"Site {worst}: the original recipe's FVU is {ratio[worst]:.3g} times as large on "
        f"ordinary tokens as on all; {table['share of squared norm'][worst]:.1%} of the squared "
        f"norm sits in {table['share of tokens'][worst]:.2%} of the tokens. Plain SAE, "
        f"{scope.trainings}, {scope.n_pages} test pages, {scope.model}.{sinks}"
    )


def figure(rows: pd.DataFrame, table: pd.DataFrame, scope: Scope) -> Figure:
    """FVU by site and token class, one panel a recipe."""
    return depth.layer_reconstruction(rows, title=title(table), note=caption(rows, table, scope))


def l0_checks(original: pd.DataFrame, norms: np.ndarray, d_model: int) -> list[str]:
    """Does one λ in raw units mean another sparsity at each site?

    norms: median norm of ordinary tokens by site; d_model: dimensions of the stream.
    """
    l0 = original["l0"]
    steps = len(l0) - 1
    larger = (norms[1:] > 1.2 * norms[:-1]).sum()
    denser = (l0.to_numpy()[1:] > 1.2 * l0.to_numpy()[:-1]).sum()
    dense = [site for site in l0.index if l0[site] > d_model / 2]
    return [
        f"median norm more than 1.2 times the shallower site's: {larger} of {steps} steps",
        f"L0 at one raw λ more than 1.2 times the shallower site's: {denser} of {steps} steps",
        f"sites with more active latents than half the dimensions: {dense}",
    ]


def norm_sentence(table: pd.DataFrame) -> str:
    """Where first and sink tokens hold the squared norm, or that they do so nowhere."""
    share = table["share of squared norm"]
    worst = share.idxmax()
    if share[worst] <= HEAVY:
        return f"First and sink tokens hold at most {share[worst]:.1%} of the squared norm."
    return f"First and sink tokens hold {share[worst]:.1%} of the squared norm at site {worst}."
