"""F3a to F3c: is the deepest site rebuilt worse, as reported and once sites are compared fairly?

Here sites are compared at matched L0, beside PCA; `f3_ladder` leads there from the report's
yardstick.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saelib.measure import geometry
from saelib.show import depth, tradeoff
from saelib.study.estimate import Estimate, of_pages, over_seeds, undefined
from saelib.study.f3_sites import MADE_IN, Compared, Sweep, enumerate_sites
from saelib.study.finding import Verdict, enough
from saelib.study.scope import Scope

CLAIM_A = "As reported (raw activations, all tokens, one λ), {worse}."
CLAIM_B = "With sinks, mean, scale and sparsity out of the way, {worse}."
CLAIM_C = "The plain SAE does not train at site {deep}."
RULE_WORSE = (
    "Supported if every ratio of the deepest site's FVU to a shallower site's has its whole 95 % "
    "interval above 1 + {margin:g}; contradicted if one interval lies below. Undecided otherwise, "
    "where an L0 is not reached, and with fewer than 15 test pages or three seeds."
)
RULE_A = RULE_WORSE + " Undecided too where the original recipe's SAEs have collapsed."
RULE_C = (
    "Supported if an interval says that at L0 = {l0:g} the SAE leaves over four fifths of the "
    "variance or recovers less than half of the loss that mean ablation costs; contradicted if "
    "both intervals say the opposite. Undecided otherwise, where the L0 is not reached, and with "
    "fewer than 15 test pages with a measured loss or three seeds."
)
LEFT_OVER = 0.8  # FVU above which an SAE has not trained
RECOVERED = 0.5  # loss recovered, against mean ablation, below which it has not


# The trade-off at each site, beside PCA


def with_intervals(sweep: Sweep, n_seeds: int) -> pd.DataFrame:
    """The sweep's rows with lo and hi of the mean FVU over seeds; nan where a seed lacks this λ."""
    point = ["arm", "site", "lambda"]
    pages = next(iter(sweep.curves.values())).pages
    rows = []
    for key, group in sweep.table.groupby(point):
        estimate = undefined()
        if len(group) == n_seeds:
            estimate = over_seeds([of_pages(pages(run)) for run in group["run_id"]])
        rows.append((*key, estimate.lo, estimate.hi))
    ends = pd.DataFrame(rows, columns=[*point, "lo", "hi"])
    return sweep.table.merge(ends, on=point)


def pca_table(store: Any, compared: Compared) -> pd.DataFrame:
    """FVU of PCA fitted on training rows, for all ranks: site, rank, fvu."""
    return pd.concat([geometry.pca_fvu(store, site) for site in compared.sites], ignore_index=True)


def pca_fvu(pca: pd.DataFrame, site: int, l0: float) -> float:
    """FVU of PCA whose rank is L0, or the largest rank there is."""
    ranks = pca[pca["site"] == site].set_index("rank")["fvu"]
    return ranks[min(round(l0), ranks.index.max())]


def least_over_pca(table: pd.DataFrame, pca: pd.DataFrame, compared: Compared) -> pd.DataFrame:
    """Least FVU of each curve over that of PCA of rank L0, by architecture and site.

    Collapsed codes are left out, and λ that not all seeds have. nan where nothing remains.
    """
    spectrum = {site: rows.set_index("rank")["fvu"] for site, rows in pca.groupby("site")}
    point = ["arm", "site", "lambda"]
    n_seeds = table["seed"].nunique()
    alive = table[table["l0"] >= 1]
    alive = alive[alive.groupby(point)["seed"].transform("size") == n_seeds]
    baseline = [
        np.interp(row.l0, spectrum[row.site].index, spectrum[row.site])
        for row in alive.itertuples()
    ]
    ratio = np.log(alive["fvu"] / baseline).groupby([alive[name] for name in point]).mean()
    least = np.exp(ratio).groupby(["arm", "site"]).min().unstack()
    least = least.reindex(index=list(MADE_IN), columns=list(compared.sites))
    return least.rename_axis(columns="least FVU / FVU of PCA at rank L0, by site")


def below_pca(least: pd.DataFrame) -> list[int]:
    """Sites at which the plain SAE lies below PCA somewhere."""
    return [int(site) for site in least if least.loc["plain", site] < 1]


def trade_off_title(least: pd.DataFrame) -> str:
    """At which sites the plain SAE lies below PCA of rank L0 at some λ."""
    below = below_pca(least)
    if len(below) == len(least.columns):
        return "The plain SAE reaches below PCA of equal rank at each site"
    if not below:
        return "The plain SAE reaches below PCA of equal rank at no site"
    return f"The plain SAE reaches below PCA of equal rank at {_site_words(below)} only"


def _site_words(sites: Sequence[int]) -> str:
    return f"site{'s' * (len(sites) > 1)} {enumerate_sites(sites)}"


def trade_off_figure(
    table: pd.DataFrame, pca: pd.DataFrame, least: pd.DataFrame, scope: Scope
) -> Figure:
    """FVU against L0 at each site, for each architecture and for PCA."""
    gated = least.drop(index="plain").min()
    note = (
        f"A Gated SAE lies below PCA of rank L0 at {(gated < 1).sum()} of {len(gated)} sites. "
        f"Ordinary tokens, {scope.trainings}, {scope.model}."
    )
    return tradeoff.trade_off(
        table, pca, title=trade_off_title(least), interval=scope.interval, note=note
    )


def trade_off_checks(sweep: Sweep, compared: Compared, least: pd.DataFrame) -> list[str]:
    """Does FVU rise with λ, does each site train at the smallest λ, where is PCA beaten?"""
    n_seeds = sweep.table["seed"].nunique()
    plain = sweep.table[sweep.table["arm"] == "plain"]
    plain = plain[plain.groupby(["site", "lambda"])["seed"].transform("size") == n_seeds]
    means = plain.groupby(["site", "lambda"]).mean(numeric_only=True).reset_index()
    by_site = [means[means["site"] == site].sort_values("lambda") for site in compared.sites]
    rising = sum(_rises(rows["fvu"]) for rows in by_site)
    finest = [rows.iloc[0] for rows in by_site if len(rows)]
    known = [
        row for row in finest if row["fvu"] >= LEFT_OVER or pd.notna(row["loss_recovered_mean"])
    ]
    training = sum(_trains(row) for row in known)
    below = below_pca(least)
    n_sites = len(compared.sites)
    undefined_at = len(finest) - len(known)
    missing = f" (loss recovered undefined at {undefined_at})" if undefined_at else ""
    lines = [
        f"FVU rises with λ at every step, over 1.2-fold in all: {rising} of {n_sites} sites",
        "at the smallest λ, FVU < 0.8 and loss recovered from mean ablation > 0.5: "
        f"{training} of {len(known)} sites{missing}",
    ]
    for site in compared.sites:
        place = "somewhere" if site in below else "nowhere"
        lines.append(f"site {site}: the plain curve lies {place} below PCA of rank k = L0")
    return lines


def _rises(fvu: pd.Series) -> bool:
    return bool(fvu.is_monotonic_increasing and fvu.max() > 1.2 * fvu.min())


def _trains(row: pd.Series) -> bool:
    return bool(row["fvu"] < LEFT_OVER and row["loss_recovered_mean"] > RECOVERED)


# FVU at matched L0


@dataclass(frozen=True)
class Matched:
    """FVU at matched L0 by (architecture, site, L0), and PCA's of that rank by (site, L0)."""

    fvu: Mapping[tuple[str, int, float], Estimate]
    pca: Mapping[tuple[int, float], float]
    compared: Compared
    l0_target: float

    @property
    def targets(self) -> tuple[float, float, float]:
        """Half the L0, the L0, twice the L0."""
        return matched_targets(self.l0_target)

    def plain(self, site: int) -> Estimate:
        """The plain SAE's FVU at the L0 at which sites are compared."""
        return self.fvu["plain", site, self.l0_target]

    def ratio(self, arm: str, site: int, l0: float) -> Estimate:
        """The deepest site's FVU over that of a shallower one."""
        return self.fvu[arm, self.compared.deep, l0] / self.fvu[arm, site, l0]

    def ratios(self) -> dict[tuple[str, int, float], Estimate]:
        """`ratio` of all architectures, shallower sites and L0."""
        return {
            (arm, site, l0): self.ratio(arm, site, l0)
            for arm in MADE_IN
            for site in self.compared.shallow
            for l0 in self.targets
        }

    def table(self) -> pd.DataFrame:
        """arm, site, l0_target, pca_fvu, fvu, lo, hi."""
        rows = []
        for (arm, site, l0), estimate in self.fvu.items():
            rows.append((arm, site, l0, self.pca[site, l0], *estimate.row().values()))
        names = ["arm", "site", "l0_target", "pca_fvu", "fvu", "lo", "hi"]
        return pd.DataFrame(rows, columns=names)

    def ratio_table(self) -> pd.DataFrame:
        """The ratios as text, one row an architecture and shallower site, one column an L0."""
        texts = {key: estimate.text() for key, estimate in self.ratios().items()}
        names = ["arm", f"site {self.compared.deep} against", "L0"]
        return pd.Series(texts).rename_axis(names).unstack()


def matched_targets(l0_target: float) -> tuple[float, float, float]:
    """The L0 at which sites are compared: half the target, the target, twice the target."""
    return l0_target / 2, l0_target, l0_target * 2


def match_sites(sweep: Sweep, pca: pd.DataFrame, compared: Compared, l0_target: float) -> Matched:
    """FVU of each architecture at each site, interpolated at three L0, over seeds."""
    fvu = {}
    ranks = {}
    for arm in MADE_IN:
        for site in compared.sites:
            for l0 in matched_targets(l0_target):
                curves = sweep.by_seed(arm, site)
                fvu[arm, site, l0] = mean_of_logs([c.samples_at_l0(l0) for c in curves])
                ranks[site, l0] = pca_fvu(pca, site, l0)
    return Matched(fvu, ranks, compared, l0_target)


def mean_of_logs(per_seed: Sequence[Estimate]) -> Estimate:
    """Geometric mean over seeds, with the seeds' spread in its replicates."""
    return over_seeds([estimate.log() for estimate in per_seed]).exp()


def matched_title(matched: Matched) -> str:
    """How the deepest site compares with the one before it at equal L0."""
    deep, near = matched.compared.deep, matched.compared.near
    ratio = matched.ratio("plain", near, matched.l0_target)
    if not ratio.defined:
        return f"L0 = {matched.l0_target:g} is not reached at each site"
    word = {"higher": "worse than", "lower": "better than"}.get(ratio.compare(1))
    if word:
        return f"At equal L0 site {deep} is rebuilt {word} site {near}"
    return f"At equal L0 sites {near} and {deep} cannot be told apart"


def matched_figure(matched: Matched, scope: Scope) -> Figure:
    """FVU by site at three L0, one line an architecture, PCA in grey."""
    compared = matched.compared
    ratio = matched.ratio("plain", compared.near, matched.l0_target)
    note = (
        f"Plain SAE at L0 = {matched.l0_target:g}: site {compared.deep} has {ratio.text('.2f')} "
        f"times the FVU of site {compared.near}. "
        if ratio.defined
        else ""
    )
    note += f"Ordinary tokens, {scope.trainings}, {scope.model}."
    return depth.layer_matched(
        matched.table(), title=matched_title(matched), interval=scope.matched_interval, note=note
    )


def matched_checks(matched: Matched) -> list[str]:
    """In how many comparisons the deepest site is worse, and for how many architectures clearly."""
    ratios = matched.ratios()
    reached = [ratio for ratio in ratios.values() if ratio.defined]
    above = [ratio for ratio in reached if ratio.lo > 1]
    first, deep = matched.compared.sites[0], matched.compared.deep
    at_l0 = [ratios[arm, first, matched.l0_target] for arm in MADE_IN]
    known = [ratio.value for ratio in at_l0 if ratio.defined]
    wide = [ratio for ratio in known if ratio > 1.2]
    return [
        f"site {deep} against a shallower one: {len(reached)} of {len(ratios)} comparisons reached",
        f"the whole interval above 1: {len(above)} of {len(reached)}",
        f"FVU over 1.2 times site {first}'s at L0 = {matched.l0_target:g}: "
        f"{len(wide)} of {len(known)} architectures that reach it",
    ]


# Verdicts


def decide_worse(
    ratios: Sequence[Estimate],
    margin: float,
    n_seeds: int,
    n_pages: int,
    collapsed: Iterable[int] = (),
) -> Verdict:
    """Is the deepest site rebuilt worse than each shallower one? One counterexample is enough.

    ratios: the deepest site's FVU over each shallower site's; collapsed: sites whose SAEs have.
    """
    if not enough(n_seeds, n_pages) or list(collapsed):
        return "undecided"
    lowest = np.min([ratio.lo for ratio in ratios])
    least_high = np.min([ratio.hi for ratio in ratios])
    if lowest > 1 + margin:
        return "supported"
    return "contradicted" if least_high < 1 + margin else "undecided"


def decide_untrained(left: Estimate, recovered: Estimate, n_seeds: int, n_pages: int) -> Verdict:
    """Does the deepest site's SAE fail to train?

    left: its FVU; recovered: its loss recovered against mean ablation, both at matched L0.
    """
    if not enough(n_seeds, n_pages):
        return "undecided"
    variance = left.compare(LEFT_OVER)
    loss = recovered.compare(RECOVERED)
    if variance == "higher" or loss == "lower":
        return "supported"
    return "contradicted" if (variance, loss) == ("lower", "higher") else "undecided"
