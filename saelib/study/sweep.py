"""The plain sweep: one plain SAE per site, λ and seed, and what it trades sparsity for.

    train       the SAEs, by `specs`
    Sweep       their rows, estimates over pages and seeds, curves of λ
    table, …    what notebook 02 shows of them, with its checks and its titles

Findings F4 and F1 (`f4_lambda`, `f1_schedules`) are read against this sweep.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from saelib.measure import geometry
from saelib.measure.evaluate import feature_density, quick_metrics
from saelib.measure.features.index import FEATURES
from saelib.measure.lens import Lens
from saelib.sae.spec import Spec
from saelib.show import tradeoff, training
from saelib.show.explore.static import latent_html, moderate_latents
from saelib.study.curve import Curve
from saelib.study.estimate import Estimate, of_pages, over_seeds
from saelib.study.finding import Check, at_least
from saelib.study.finding_params import SweepParams as Params
from saelib.study.scope import Scope, interval_words

NOTEBOOK = "02_train_sae"
ESTIMATED = ("fvu", "loss_recovered")
Cell = tuple[int, float]  # site, λ


def sites_of(ws: Any, sites: Sequence[int | str]) -> list[int]:
    """Site numbers of names such as "middle", each once, rising."""
    return sorted({ws.site(site) for site in sites})


def specs(ws: Any, p: Params) -> dict[Cell, list[Spec]]:
    """What is trained: by site and λ, one spec per seed."""
    cells = itertools.product(sites_of(ws, p.sites), p.lambdas)
    recipe = p.spec_fields()
    return {
        (site, lam): [ws.spec("plain", site, lam=lam, seed=seed, **recipe) for seed in p.seeds]
        for site, lam in cells
    }


def train(ws: Any, p: Params, notebook: str = NOTEBOOK) -> Sweep:
    """Train and measure the sweep; what is there is read."""
    grid = specs(ws, p)
    rows = ws.train([spec for group in grid.values() for spec in group], notebook)
    return Sweep(rows, grid, ws.pages)


@dataclass(frozen=True, eq=False)
class Sweep:
    """A trained sweep: one row of `results.csv` per SAE, its spec, and its sums by test page."""

    rows: pd.DataFrame
    specs: Mapping[Cell, Sequence[Spec]]
    pages: Callable[[str], pd.DataFrame]

    @property
    def sites(self) -> list[int]:
        """Sites, rising."""
        return list(dict.fromkeys(site for site, _ in self.specs))

    @property
    def lambdas(self) -> list[float]:
        """L1 coefficients, as given."""
        return list(dict.fromkeys(lam for _, lam in self.specs))

    @property
    def seeds(self) -> list[int]:
        """Training seeds, as given."""
        return list(dict.fromkeys(self.rows["seed"].tolist()))

    @cached_property
    def means(self) -> pd.DataFrame:
        """One row per site and λ: means over seeds."""
        groups = self.rows.groupby(["site", "lambda"], as_index=False)
        return groups.mean(numeric_only=True).assign(arm="plain")

    @cached_property
    def estimates(self) -> dict[str, dict[Cell, Estimate]]:
        """FVU and loss recovered by site and λ, over test pages and seeds."""
        sums = {cell: self._pages_of(cell) for cell in self.specs}
        return {
            column: {
                cell: over_seeds([of_pages(pages, column) for pages in by_seed])
                for cell, by_seed in sums.items()
            }
            for column in ESTIMATED
        }

    @cached_property
    def n_pages(self) -> int:
        """Test pages."""
        return len(self._first_pages)

    @cached_property
    def n_loss_pages(self) -> int:
        """Test pages with a context whose next-token loss was measured."""
        return int((self._first_pages["ce_n"] > 0).sum())

    @cached_property
    def _first_pages(self) -> pd.DataFrame:
        return self._pages_of(next(iter(self.specs)))[0]

    def _pages_of(self, cell: Cell) -> list[pd.DataFrame]:
        """Sums by test page of a cell's SAEs, one table per seed."""
        site, lam = cell
        of_cell = (self.rows["site"] == site) & (self.rows["lambda"] == lam)
        return [self.pages(run) for run in self.rows.loc[of_cell, "run_id"]]

    def at(self, lam: float) -> pd.DataFrame:
        """Means at one λ, by site, with lo and hi of FVU."""
        return self.with_interval("fvu")[self.means["lambda"] == lam].set_index("site")

    @property
    def finest(self) -> pd.DataFrame:
        """Means at the smallest λ, by site."""
        return self.at(min(self.lambdas))

    @property
    def coarsest(self) -> pd.DataFrame:
        """Means at the largest λ, by site."""
        return self.at(max(self.lambdas))

    def with_interval(self, column: str) -> pd.DataFrame:
        """`means` with lo and hi of an estimated column."""
        order = zip(self.means["site"], self.means["lambda"], strict=True)
        ends = pd.DataFrame([self.estimates[column][cell].row() for cell in order])
        return self.means.join(ends[["lo", "hi"]])

    def curve(self, site: int, seed: int) -> Curve:
        """The curve of λ of one site and seed."""
        own = (self.rows["site"] == site) & (self.rows["seed"] == seed)
        return Curve(self.rows[own], self.pages)

    def scope(self, ws: Any) -> Scope:
        """Model, seeds and pages, for captions."""
        return Scope.of_workspace(ws, self.seeds, self.n_pages)


def summary(ws: Any, sweep: Sweep, p: Params) -> str:
    """How much was trained and measured, in two lines."""
    trainings = sweep.scope(ws).trainings
    grid = f"{len(sweep.sites)} sites x {len(sweep.lambdas)} values of lambda x {trainings}"
    return (
        f"{len(sweep.rows)} SAEs: {grid}, {p.tokens:,} tokens each\n"
        f"measured on {sweep.n_pages} test pages, "
        f"the language model's loss on {sweep.n_loss_pages} of them"
    )


def check_equations(ws: Any, sweep: Sweep) -> str:
    """Evaluate the notebook's equations on stored rows; AssertionError where they differ."""
    site, _ = cell = next(iter(sweep.specs))
    sae = ws.load(sweep.specs[cell][0])
    rows = np.flatnonzero(ws.store.mask("ordinary", "test"))[:256]
    x = sae.normalize(ws.store.rows(site, rows))
    f = torch.relu((x - sae.b_dec) @ sae.W_enc + sae.b_enc)
    norms = sae.W_dec.norm(dim=1)
    assert torch.allclose(sae(x)[0], f, atol=1e-3)
    assert torch.allclose(sae(x)[1], f @ sae.W_dec + sae.b_dec, atol=1e-3)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5)
    shapes = {name: tuple(value.shape) for name, value in sae.named_parameters()}
    return f"{shapes}\ncodes, reconstruction and unit-norm decoder rows are as written"


def latent_contexts(ws: Any, sweep: Sweep, l0: float | int, k: int = 5) -> tuple[str, str]:
    """A latent of the middle site's SAE nearest to an L0: a sentence, and its page as HTML.

    The latent is the alive one whose density is nearest to 0.3 %, neither rare nor dense. The index
    of the SAE's features, which lies beside it, is built where it is missing.
    """
    site = middle_site(ws, sweep.sites)
    lam = nearest_lambda(sweep, site, l0)
    spec = sweep.specs[site, lam][0]
    lens = Lens(ws.lm, ws.load(spec), ws.store, ws.run_folder(spec) / FEATURES)
    usual = moderate_latents(lens.index.table["density"].to_numpy(), 1)
    if not usual:
        return f"Site {site}, λ = {lam:g}: no latent fires on the test pages.", ""
    latent = usual[0]
    share = 100 * lens.index.table["density"].iloc[latent]
    sentence = f"Site {site}, λ = {lam:g}: latent {latent} fires on {share:.2g} % of test tokens."
    return sentence, latent_html(lens.index, latent, ws.lm.tokenizer, k)


def nearest_lambda(sweep: Sweep, site: int, l0: float | int) -> float:
    """The λ whose SAEs of a site have, on average over seeds, the L0 nearest to one."""
    means = sweep.means[sweep.means["site"] == site]
    return float(means.loc[(means["l0"] - l0).abs().idxmin(), "lambda"])


def middle_site(ws: Any, sites: Sequence[int]) -> int:
    """The model's middle site where it is among `sites`, else the middle one of them."""
    middle = ws.site("middle")
    return middle if middle in sites else sites[len(sites) // 2]


# -- the trade-off ---------------------------------------------------------------------------------


def table(sweep: Sweep) -> pd.DataFrame:
    """One row per λ; at each site FVU and loss recovered with their intervals, and L0."""
    columns = {}
    means = sweep.means.set_index(["site", "lambda"])
    for site in sweep.sites:
        cells = [(site, lam) for lam in sweep.lambdas]
        fvu = [sweep.estimates["fvu"][cell].text() for cell in cells]
        recovered = sweep.estimates["loss_recovered"]
        loss = [recovered[cell].text(missing="undefined") for cell in cells]
        columns[f"site {site}", "L0"] = [f"{means.loc[cell, 'l0']:.3g}" for cell in cells]
        columns[f"site {site}", "FVU"] = fvu
        columns[f"site {site}", "loss recovered"] = loss
    return pd.DataFrame(columns, index=_lambda_labels(sweep.lambdas))


DETAILS = {
    "loss_recovered_mean": "loss recovered, mean ablation",
    "delta_ce": "ΔCE, nats per token",
    "dead_fraction": "dead latents",
    "shrinkage": "shrinkage",
}


def details(sweep: Sweep) -> pd.DataFrame:
    """One row per λ: further columns of `results.csv`, means over seeds, by site."""
    blocks = {
        label: sweep.means.pivot(index="lambda", columns="site", values=column)
        for column, label in DETAILS.items()
    }
    joined = pd.concat(blocks, axis=1).map("{:.3g}".format).replace("nan", "undefined")
    return joined.set_axis(_lambda_labels(joined.index))


def _lambda_labels(lambdas: Sequence[float] | pd.Index) -> list[str]:
    return [f"λ = {lam:g}" for lam in lambdas]


def pca(ws: Any, sites: Sequence[int]) -> pd.DataFrame:
    """FVU of PCA fitted on training rows, for all ranks: site, rank, fvu."""
    return pd.concat([geometry.pca_fvu(ws.store, site) for site in sites])


def sites_below_pca(sweep: Sweep, baseline: pd.DataFrame, d_model: int) -> list[int]:
    """Sites at which some λ leaves less FVU than PCA of rank L0."""
    fvu = baseline.set_index(["site", "rank"])["fvu"]
    below = [
        row.fvu < fvu[row.site, min(round(row.l0), d_model)] for row in sweep.means.itertuples()
    ]
    beats = sweep.means.assign(below=below).groupby("site")["below"].any()
    return [int(site) for site in beats.index[beats]]


def trade_off_title(n_below: int, n_sites: int) -> str:
    """Whether some λ leaves less FVU than PCA."""
    if n_below == n_sites:
        return "The plain SAE reaches below PCA of rank L0 at every site"
    if not n_below:
        return "The plain SAE reaches below PCA of rank L0 at no site"
    return f"The plain SAE reaches below PCA of rank L0 at {n_below}/{n_sites} sites"


def trade_off_figure(ws: Any, sweep: Sweep) -> Figure:
    """FVU against L0 at each site, beside PCA."""
    baseline = pca(ws, sweep.sites)
    n_below = len(sites_below_pca(sweep, baseline, ws.store.d_model))
    scope = sweep.scope(ws)
    low, high = sweep.means["fvu"].min(), sweep.means["fvu"].max()
    return tradeoff.trade_off(
        _drawn(sweep, "fvu"),
        baseline,
        title=trade_off_title(n_below, len(sweep.sites)),
        interval=interval_words(sweep.n_pages, len(sweep.seeds)),
        note=f"FVU {low:.2f} to {high:.2f} over the sweep. {scope.note}",
    )


def _drawn(sweep: Sweep, column: str) -> pd.DataFrame:
    """A row per SAE, with the interval of its cell."""
    ends = sweep.with_interval(column)[["site", "lambda", "lo", "hi"]]
    return sweep.rows.merge(ends)


def mean_vector_recovers(sweep: Sweep) -> pd.Series:
    """Loss recovered, against zero ablation, by the mean vector alone; by site."""
    ends = sweep.finest
    return (ends["ce_zero"] - ends["ce_mean"]) / (ends["ce_zero"] - ends["ce_id"])


def recovered_title(recovered: pd.Series, by_mean: pd.Series) -> str:
    """What loss recovered against zero ablation is worth, by the sweep's and the mean vector's."""
    if not recovered.notna().any():
        return "Loss recovered is undefined: ablation costs nothing here"
    if by_mean.notna().any() and by_mean.min() > 0.5:
        return "Zero ablation flatters: the mean vector alone recovers most loss"
    if recovered.max() > 1:
        return "With some SAEs the model's loss is lower than without"
    return f"At most {100 * recovered.max():.0f} % of the loss is recovered"


def recovered_figure(ws: Any, sweep: Sweep) -> Figure:
    """Loss recovered against L0 at each site."""
    by_mean = mean_vector_recovers(sweep)
    recovered = sweep.means["loss_recovered"]
    vector = ", ".join(f"site {site} {value:.2f}" for site, value in by_mean.items())
    return tradeoff.trade_off(
        _drawn(sweep, "loss_recovered"),
        title=recovered_title(recovered, by_mean),
        y="loss_recovered",
        interval=interval_words(
            sweep.n_loss_pages, len(sweep.seeds), "test pages with a measured loss"
        ),
        note=f"Up to {recovered.max():.2f}. Mean vector: {vector}.".replace("nan", "undefined"),
    )


def checks(sweep: Sweep) -> list[Check]:
    """What must hold of any SAE that has learned."""
    finest, coarsest = sweep.finest, sweep.coarsest
    half = [None if np.isnan(x) else bool(x > 0.5) for x in finest["loss_recovered_mean"]]
    return [
        (
            bool((finest["fvu"] < 0.6).all()),
            "at every site FVU is below 0.6 at the smallest lambda,",
        ),
        (
            at_least(len(half), half, "loss recovered is undefined", "sites"),
            "more than half of what mean ablation costs is recovered,",
        ),
        (
            bool((finest["l0"] > 1.5 * coarsest["l0"]).all()),
            "and L0 is more than 1.5 times that at the largest lambda",
        ),
    ]


def shuffled_check(ws: Any, sweep: Sweep) -> list[tuple[bool, str]]:
    """Codes without their meaning: a decoder whose rows are shuffled must rebuild worse."""
    lam = min(sweep.lambdas)
    shuffled = {site: _shuffled_fvu(ws, sweep.specs[site, lam][0]) for site in sweep.sites}
    worse = all(fvu > 1.5 * sweep.finest.loc[site, "fvu"] for site, fvu in shuffled.items())
    claim = f"with a shuffled decoder each of {len(shuffled)} SAEs has more than 1.5 times the FVU"
    return [(worse, f"{claim} it had")]


def _shuffled_fvu(ws: Any, spec: Spec) -> float:
    sae = ws.load(spec)
    order = torch.randperm(spec.sae.n_latents, generator=torch.Generator().manual_seed(0))
    sae.W_dec.data = sae.W_dec.data[order]
    return quick_metrics(sae, ws.store, spec.sae.site, "test")["fvu"]


# -- how often latents fire ------------------------------------------------------------------------


def densities(ws: Any, sweep: Sweep) -> dict[float, np.ndarray]:
    """Share of ordinary test tokens on which each latent fires, at the middle site, by λ.

    AssertionError where the shares of an SAE do not add up to its L0.
    """
    site = middle_site(ws, sweep.sites)
    shares = {
        lam: feature_density(ws.load(sweep.specs[site, lam][0]), ws.store, site)
        for lam in sweep.lambdas
    }
    of_seed = (sweep.rows["site"] == site) & (sweep.rows["seed"] == sweep.seeds[0])
    l0 = sweep.rows[of_seed].set_index("lambda").loc[sweep.lambdas, "l0"]
    assert np.allclose([share.sum() for share in shares.values()], l0, rtol=1e-3)
    return shares


def density_title(shares: Mapping[float, np.ndarray], site: int) -> str:
    """What a larger λ does to how often latents fire."""
    order = sorted(shares)
    medians = [_median_alive(shares[lam]) for lam in order]
    dead = [float((shares[lam] == 0).mean()) for lam in order]
    rarer = all(np.diff(medians) < 0)
    kills = dead[-1] > dead[0]
    if len(order) > 1 and rarer and kills:
        return f"A larger λ makes latents rarer and kills more (site {site})"
    if len(order) > 1 and rarer:
        return f"A larger λ makes latents rarer (site {site})"
    return f"How often latents fire at each λ (site {site})"


def _median_alive(share: np.ndarray) -> float:
    alive = share[share > 0]
    return float(np.median(alive)) if len(alive) else 0.0


def density_figure(ws: Any, sweep: Sweep) -> Figure:
    """Histogram of densities at the middle site, one outline per λ."""
    site = middle_site(ws, sweep.sites)
    shares = densities(ws, sweep)
    medians = ", ".join(f"{100 * _median_alive(share):.3g} %" for share in shares.values())
    lams = ", ".join(f"{lam:g}" for lam in shares)
    note = f"The median alive latent fires on {medians} of ordinary test tokens at λ = {lams}. "
    note += f"Plain SAEs; dead: fires on none of them. {sweep.scope(ws).model}."
    drawn = {f"λ = {lam:g}": share for lam, share in shares.items()}
    return training.feature_density(drawn, title=density_title(shares, site), note=note)
