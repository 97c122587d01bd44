"""Beside F3: the plain SAE along all depths of the model, a description without a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saelib.config import CollectConfig, CorpusConfig
from saelib.measure.geometry import pca_fvu, site_profile
from saelib.sae.spec import Spec
from saelib.show.depth import by_depth
from saelib.study.curve import Curve, reach_l0
from saelib.study.f3_sites import NOTEBOOK, Compared
from saelib.study.notebooks import LayerParams
from saelib.study.scope import Scope, interval_words

NORM = "median norm ‖x‖ (model units)"
SINK_SHARE = "share of ‖x‖² in first and sink tokens"
OFFSET = "mean offset γ = ‖μ‖ / ‖σ‖"  # as the table has it
OFFSET_PANEL = "mean offset m = ‖μ‖ / ‖σ‖"  # γ is shrinkage in figures
EFFECTIVE_RANK = "participation ratio"
LOSS = "loss recovered"
DELTA_CE = "ΔCE (nats a token)"
SHORT = {  # quantities of the table in titles
    NORM: "median norm",
    SINK_SHARE: "share of squared norm in first and sink tokens",
    OFFSET: "mean offset",
    EFFECTIVE_RANK: "participation ratio",
    "depth": "depth",
}
REBUILT_FVU = 0.95  # below this an SAE rebuilds more than the mean does
RECOVERED = 1 / 3  # of the loss that mean ablation costs


def depth_sites(n_layers: int, step: int, compared: Compared) -> list[int]:
    """Each `step`-th site from 0 on, and the compared ones."""
    return sorted({*range(0, n_layers + 1, step), *compared.sites})


def collect(ws: Any, identity: Mapping[str, Any], p: LayerParams, sites: Sequence[int]) -> Any:
    """Collect activations of these sites from fewer contexts of each page; returns the store.

    ws: a workspace of its own; identity: what the notebook's own store was collected from.
    """
    text = CorpusConfig.from_dict(identity["corpus"] | {"contexts_per_page": p.depth_contexts})
    return ws.collect(identity["model"], text, list(sites), CollectConfig(), identity["dtype"])


def train(ws: Any, p: LayerParams, sites: Sequence[int]) -> dict[int, Curve]:
    """One curve of λ for each site, until `l0_target` is bracketed."""
    fields = p.spec_fields() | {"tokens": p.depth_tokens, "seed": p.seeds[0]}

    def make(site: int, lam: float) -> Spec:
        return ws.spec("plain", site, lam=lam, **fields)

    start = {(site,): p.depth_lambdas for site in sites}
    curves = reach_l0(ws, NOTEBOOK, make, start, p.l0_target)
    return {site: curve for (site,), curve in curves.items()}


@dataclass(frozen=True)
class Depths:
    """What each site hands to the SAE, and how well the SAE rebuilds it at one L0."""

    table: pd.DataFrame  # one row a site
    curves: Mapping[int, Curve]
    l0: float
    tokens: int  # training tokens of each SAE

    @property
    def fvu(self) -> str:
        """The column of FVU at matched L0."""
        return f"FVU at L0 = {self.l0:g}"

    @property
    def pca(self) -> str:
        """The column of PCA's FVU."""
        return f"PCA of rank {round(self.l0)}"

    @property
    def reached(self) -> pd.DataFrame:
        """Sites at which the L0 is reached."""
        return self.table.dropna(subset=[self.fvu])

    def spearman(self) -> pd.Series:
        """Spearman's ρ of each quantity, and of depth, with FVU at matched L0."""
        reached = self.reached
        quantities = reached.drop(columns=[self.fvu, LOSS, DELTA_CE])
        ranks = quantities.assign(depth=reached.index).rank()
        return ranks.corrwith(reached[self.fvu].rank())


def describe(store: Any, p: LayerParams, curves: Mapping[int, Curve]) -> Depths:
    """Geometry of each site, FVU and loss of the SAE at matched L0, and FVU of PCA of that rank."""
    profile = site_profile(store, "test").set_index(["site", "class"])
    ordinary = profile.xs("ordinary", level="class")
    special = profile.drop(["all", "ordinary"], level="class")
    table = pd.DataFrame(
        {
            NORM: ordinary["norm_median"],
            SINK_SHARE: special.groupby("site")["norm_share"].sum(),
        }
    )
    table[OFFSET] = ordinary["gamma"]
    table[EFFECTIVE_RANK] = ordinary["participation"]
    columns = {f"FVU at L0 = {p.l0_target:g}": "fvu", LOSS: "loss_recovered", DELTA_CE: "delta_ce"}
    for name, column in columns.items():
        values = {site: curve.at_l0(p.l0_target, column) for site, curve in curves.items()}
        table[name] = pd.Series(values, dtype=float)
    rank = round(p.l0_target)
    pca = {site: pca_fvu(store, site, [rank])["fvu"].iloc[0] for site in curves}
    table[f"PCA of rank {rank}"] = pd.Series(pca)
    return Depths(table, curves, p.l0_target, p.depth_tokens)


def panel_table(depths: Depths) -> pd.DataFrame:
    """What is drawn: site, value, panel, series, lo, hi."""
    sae_columns = [depths.fvu, LOSS, DELTA_CE]
    panels = []
    for name in depths.table:
        if name != depths.pca:
            series = "plain" if name in sae_columns else "ordinary"
            panels.append(_panel(depths.table[name], name, series))
    panels.append(_panel(depths.table[depths.pca], depths.fvu, "pca"))
    ends = pd.DataFrame(
        [
            {"site": site, **curve.samples_at_l0(depths.l0).row()}
            for site, curve in depths.curves.items()
        ]
    )
    ends = ends[["site", "lo", "hi"]].assign(panel=depths.fvu, series="plain")
    return pd.concat(panels).merge(ends, how="left")


def _panel(values: pd.Series, panel: str, series: str) -> pd.DataFrame:
    head = OFFSET_PANEL if panel == OFFSET else panel
    return values.rename("value").reset_index().assign(panel=head, series=series)


def title(depths: Depths) -> str:
    """Where the SAE rebuilds best and worst."""
    fvu = depths.reached[depths.fvu]
    if not len(fvu):
        return f"L0 = {depths.l0:g} is reached at no site"
    if len(fvu) == 1:
        return f"L0 = {depths.l0:g} is reached at site {fvu.index[0]} alone"
    return f"FVU at equal L0: least at site {fvu.idxmin()}, most at site {fvu.idxmax()}"


def correlate_words(depths: Depths) -> str:
    """Which quantities order sites most like FVU, to the digits shown; PCA's FVU left out."""
    rho = depths.spearman().drop(depths.pca).dropna().round(2)
    if not len(rho):
        return "Too few sites reach the L0 to order them. "
    first = rho[rho.abs() == rho.abs().max()]
    words = [f"{SHORT[name]} ({value:+.2f})" for name, value in first.items()]
    named = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]} alike"
    return f"Of what is drawn, PCA apart, FVU goes most with {named}, by Spearman's ρ. "


def figure(depths: Depths, scope: Scope) -> Figure:
    """Each quantity against depth, in its own panel."""
    note = (
        f"{correlate_words(depths)}Plain SAE, one seed, {depths.tokens:,} training tokens. "
        f"Spearman over {len(depths.reached)} sites, a description. {scope.model}."
    )
    return by_depth(
        panel_table(depths),
        title=title(depths),
        log=[NORM],
        interval=interval_words(scope.n_pages, 1),
        note=note,
    )


def text_table(depths: Depths, rows: int = 11) -> pd.DataFrame:
    """At most `rows` sites, evenly spread, and Spearman's ρ with FVU; the CSV has all sites."""
    keep = np.linspace(0, len(depths.table) - 1, min(rows, len(depths.table)))
    table = depths.table.iloc[np.unique(keep.round().astype(int))]
    texts = table.map(lambda value: f"{value:.3g}" if np.isfinite(value) else "")
    rho = depths.spearman().reindex(table.columns)
    texts.loc["Spearman's ρ"] = [f"{x:+.2f}" if np.isfinite(x) else "" for x in rho]
    return texts.rename(columns=SHORT)


def checks(depths: Depths) -> list[str]:
    """At how many sites the L0 is reached, and how many SAEs rebuild more than the mean does."""
    reached = depths.reached
    values = {
        site: depths.curves[site].at_l0(depths.l0, "loss_recovered_mean") for site in reached.index
    }
    recovered = pd.Series(values, dtype=float).dropna()
    undefined = len(reached) - len(recovered)
    return [
        f"L0 = {depths.l0:g} is reached at {len(reached)} of {len(depths.table)} sites",
        "rebuilt better than by the mean at "
        f"{(reached[depths.fvu] < REBUILT_FVU).sum()} of {len(reached)}",
        "over a third of the loss that mean ablation costs is recovered at "
        f"{(recovered > RECOVERED).sum()} of {len(recovered)}"
        + (f" (undefined at {undefined})" if undefined else ""),
    ]
