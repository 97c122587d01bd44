"""Figures, titles and captions of `f2_gated`: trade-offs, the comparison at equal L0, shrinkage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saelib.show import compare, depth, tradeoff
from saelib.show.style import LOOKS
from saelib.study.estimate import Estimate
from saelib.study.f2_gated import (
    ARM_WORDS,
    ARMS,
    PAIRS,
    GatedRuns,
    Matched,
    Params,
    mean_ratio,
    ratio_table,
    seed_ratios,
)
from saelib.study.scope import Scope

Ratios = Mapping[tuple[str, str, int], Estimate]


# -- tables ------------------------------------------------------------------------------------


def curve_table(runs: GatedRuns, site: int, l0: float, n_rows: int = 4) -> pd.DataFrame:
    """The SAEs of one site nearest to L0 = `l0`, mean over seeds: at most `n_rows` per arm."""
    columns = ["l0", "fvu", "shrinkage", "loss_recovered", "dead_fraction", "gate_dead"]
    rows = runs.rows[runs.rows["site"] == site]
    means = rows.groupby(["arm", "lambda"])[columns].mean()
    distance = np.log(means["l0"].clip(lower=1e-3) / l0).abs()
    near = distance.groupby("arm").rank(method="first") <= n_rows
    order = {arm: place for place, arm in enumerate(ARMS)}
    return means[near].sort_index(key=lambda keys: keys.map(lambda key: order.get(key, key)))


def matched_table(matched: Matched) -> pd.DataFrame:
    """FVU with its interval, loss recovered, shrinkage and λ at the L0 of the comparison."""
    means = matched.means.sort_index(level=["site", "arm"]).reorder_levels(["site", "arm"])
    fvu = {cell: matched.log_fvu[cell].exp().text(".3f", "unreachable") for cell in matched.log_fvu}
    shown = pd.DataFrame(index=means.index)
    shown["fvu"] = [fvu[arm, site] for site, arm in means.index]
    return shown.join(means[["loss_recovered", "shrinkage", "lambda"]])


# -- trade-offs --------------------------------------------------------------------------------


def trade_off(points: pd.DataFrame, matched: Matched, l0: float, scope: Scope) -> Figure:
    """FVU against L0, one line per arm; points: `curve_points`."""
    fvu = matched.column("fvu")
    below = fvu[["two_term", "full"]].max(axis=1, skipna=False) < fvu["plain"]
    return tradeoff.trade_off(
        points,
        title=trade_off_title(int(below.sum()), len(below), matched.reached, l0),
        interval=scope.interval,
        note=f"At L0 = {l0:g} both Gated curves lie below the plain one at {below.sum()} of "
        f"{len(below)} sites. {scope.note}",
    )


def trade_off_title(n_below: int, n_sites: int, reached: bool, l0: float) -> str:
    """At how many sites both Gated curves lie below the plain one, at the L0 of the comparison."""
    if not reached:
        return f"Not every arm has L0 = {l0:g}; where curves overlap they compare"
    return f"At L0 = {l0:g} both Gated SAEs beat plain at {_so_many(n_below, n_sites)}"


def _so_many(count: int, n_sites: int) -> str:
    """So many of the sites in words."""
    if count == n_sites:
        return "every site"
    return f"{count}/{n_sites} sites" if count else "no site"


def loss_recovered(
    points: pd.DataFrame, matched: Matched, l0: float, ce_tokens: int, scope: Scope
) -> Figure:
    """Loss recovered against L0, one line per arm."""
    recovered = matched.column("loss_recovered")
    ahead = recovered["plain"] < recovered[["two_term", "full"]].min(axis=1, skipna=False)
    over_one = bool((points["loss_recovered"] > 1).any())
    return tradeoff.trade_off(
        points.drop(columns=["lo", "hi"]),
        y="loss_recovered",
        title=loss_recovered_title(ahead, points["loss_recovered"], matched.reached, l0),
        note=loss_recovered_note(ahead, over_one, l0, ce_tokens, scope),
    )


def loss_recovered_title(ahead: pd.Series, values: pd.Series, reached: bool, l0: float) -> str:
    """Whether both Gated SAEs recover more loss at an L0; ahead: by site, values: of all SAEs."""
    if values.isna().all():
        return "Loss recovered is undefined: ablating these tokens costs too little"
    if (values > 1).any():
        return "Some SAEs improve the model's loss: recovery ranks nothing here"
    if not reached:
        return f"Not every arm has L0 = {l0:g}; loss recovered along λ"
    sites = _so_many(int(ahead.sum()), len(ahead))
    return f"At L0 = {l0:g} both Gated SAEs recover more at {sites}"


def loss_recovered_note(
    ahead: pd.Series, over_one: bool, l0: float, ce_tokens: int, scope: Scope
) -> str:
    """The caption's numbers."""
    text = f"At L0 = {l0:g}, by means without intervals, both Gated SAEs are ahead of "
    text += f"plain at {int(ahead.sum())} of {len(ahead)} sites. {ce_tokens:,} test tokens. "
    if over_one:
        text += "Above 1 an SAE lowers the model's loss, which says nothing of reconstruction. "
    return text + scope.note


# -- at equal L0 -------------------------------------------------------------------------------


def matched_l0(matched: Matched, ratios: Ratios, l0: float, scope: Scope) -> Figure:
    """FVU against depth at equal L0, one line per arm."""
    return depth.layer_matched(
        matched.means.reset_index().assign(l0_target=l0),
        title=matched_title(matched, l0),
        interval=scope.matched_interval,
        note=f"{mean_ratio_words(ratios)} {_crosses(matched)}{scope.note}",
    )


def _crosses(matched: Matched) -> str:
    """What a cross is, where there are some."""
    missing = matched.means["fvu"].isna()
    return "Crosses: no λ reaches this L0. " if missing.any() and not missing.all() else ""


def matched_title(matched: Matched, l0: float) -> str:
    """Which arm leaves least at equal L0, by the geometric mean over sites."""
    if not matched.reached:
        return f"Not every arm reaches L0 = {l0:g} at every site"
    least = np.log(matched.column("fvu")).mean().idxmin()
    return f"At L0 = {l0:g} {ARM_WORDS[least]} leaves the least unexplained"


def mean_ratio_words(ratios: Ratios) -> str:
    """Geometric means over sites of FVU over the plain SAE's."""
    means = [(arm, mean_ratio(ratios, (arm, "plain"))) for arm in ("two_term", "full")]
    texts = [
        f"{value:.2f} ({_label(arm)})" if np.isfinite(value) else f"unreached ({_label(arm)})"
        for arm, value in means
    ]
    return f"FVU over the plain SAE's, geometric mean over sites: {', '.join(texts)}."


def ratio(ratios: Ratios, matched: Matched, p: Params, scope: Scope) -> Figure:
    """Ratios of FVU at equal L0: one panel per arm compared with, one colour per arm."""
    table = ratio_table(ratios, p.margin)
    points = _by_panel(table).assign(note=table["compared"])
    sites = list(dict.fromkeys(table["site"]))
    several = scope.n_seeds > 1
    return compare.interval_points(
        points,
        _by_panel(seed_ratios(matched, sites)) if several else None,
        title=ratio_title(table),
        interval=f"{scope.matched_interval}, paired",
        note=f"{ratio_words(table)} {_margin_words(table, p.margin)}{scope.note}",
        value_label=f"ratio of FVU at L0 = {p.l0_target:g}",
        reference=(1, "equal FVU"),
        limits=dict.fromkeys(points["panel"], (1 + p.margin, f"1 + margin = {1 + p.margin:g}")),
    )


def _margin_words(table: pd.DataFrame, margin: float) -> str:
    """What "equal" is, where the word is used."""
    within = f"Equal: interval within {100 * margin:g} % of 1. "
    return within if (table["compared"] == "equal").any() else ""


def _by_panel(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(
        group="site " + table["site"].astype(str),
        hue=table["arm"],
        panel=[f"against {_label(arm)}" for arm in table["against"]],
    )


def ratio_title(table: pd.DataFrame) -> str:
    """How both Gated SAEs compare with the plain one; table: `ratio_table`."""
    outcomes = table.loc[table["against"] == "plain", "compared"]
    if (outcomes == "unreachable").all():
        return "No site has all arms at the L0 of the comparison"
    if (outcomes == "better").all():
        return "Both Gated SAEs beat the plain one at every site"
    if (outcomes == "worse").all():
        return "Both Gated SAEs lose to the plain one at every site"
    better = int((outcomes == "better").sum())
    worse = int((outcomes == "worse").sum())
    return (
        f"Gated against plain: better in {better}, worse in {worse} of {len(outcomes)} comparisons"
    )


def ratio_words(table: pd.DataFrame) -> str:
    """The comparisons of every pair, counted over sites."""
    parts = []
    for arm, against in PAIRS:
        chosen = table[(table["arm"] == arm) & (table["against"] == against)]
        counts = Counter(chosen["compared"])
        counted = ", ".join(f"{word} at {n}" for word, n in counts.items())
        parts.append(f"{_label(arm)} against {_label(against)}: {counted}")
    return f"Sites: {'; '.join(parts)}."


# -- shrinkage ---------------------------------------------------------------------------------


def shrinkage(points: pd.DataFrame, matched: Matched, l0: float, scope: Scope) -> Figure:
    """Shrinkage against L0, one line per arm."""
    values = matched.column("shrinkage")
    return tradeoff.shrinkage(
        points.drop(columns=["lo", "hi"]),
        title=shrinkage_title(values, l0),
        note=f"γ at L0 = {l0:g}, over sites: {shrinkage_words(values)}. Test pages, ordinary "
        f"tokens. {scope.note}",
    )


def shrinkage_title(values: pd.DataFrame, l0: float) -> str:
    """Which arm is nearest to no shrinkage at an L0, by mean |1 − γ|; values: by site and arm."""
    if values.isna().any(axis=None):
        return f"Shrinkage along λ; not every arm has L0 = {l0:g}"
    nearest = (1 - values).abs().mean().idxmin()
    return f"L0 = {l0:g}: {ARM_WORDS[nearest]} comes nearest to no shrinkage"


def shrinkage_words(values: pd.DataFrame) -> str:
    """The range of shrinkage over sites, arm by arm."""
    parts = []
    for arm in ARMS:
        low = values[arm].min()
        high = values[arm].max()
        span = f"{low:.3f} to {high:.3f}" if np.isfinite(low) else "unreached"
        parts.append(f"{span} ({_label(arm)})")
    return ", ".join(parts)


def _label(arm: str) -> str:
    return LOOKS[arm].label
