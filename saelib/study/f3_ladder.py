"""F3a to F3c: one gap between sites by six yardsticks, from the report's to FVU at matched L0.

What "the deepest layer does not train" means depends on the yardstick. The original recipe is read
by squared error and by FVU over all tokens and over ordinary ones; the normalised recipe at one λ
and at one L0; PCA at that rank has no training in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saelib.measure.evaluate import tally_rows
from saelib.show import compare
from saelib.study.estimate import Estimate, constant, of_pages, over_seeds, ratio_of_pages
from saelib.study.f3_layers import Matched, decide_worse, mean_of_logs
from saelib.study.f3_sites import Compared, Sweep
from saelib.study.finding import MIN_PAGES, MIN_SEEDS, Verdict, enough
from saelib.study.notebooks import LayerParams
from saelib.study.scope import Scope

ORIGINAL_ALL = "original: FVU, all tokens"
# How the deepest site compares with another, by where the interval of their ratio lies.
PLACES = {
    "higher": "worse than site {site}",
    "lower": "better than site {site}",
    "equal": "like site {site}",
    "not higher": "not worse than site {site}",
    "not lower": "not better than site {site}",
    "unclear": "not to be told from site {site}",
    "unreachable": "site {site}: L0 not reached",
}


@dataclass(frozen=True)
class Yardstick:
    """One measure of how badly each site is rebuilt, by (site, seed)."""

    name: str
    by_seed: Mapping[tuple[int, int], Estimate]
    over_logs: bool = True  # seeds are averaged in logarithms, as at matched L0

    def at_site(self, site: int) -> Estimate:
        """The measure of one site over seeds."""
        per_seed = [x for (where, _), x in self.by_seed.items() if where == site]
        return mean_of_logs(per_seed) if self.over_logs else over_seeds(per_seed)

    def ratio(self, deep: int, site: int) -> Estimate:
        """The deepest site's measure over another's."""
        return self.at_site(deep) / self.at_site(site)

    def ratios(self, compared: Compared) -> list[Estimate]:
        """`ratio` to each shallower site."""
        return [self.ratio(compared.deep, site) for site in compared.shallow]


@dataclass(frozen=True)
class Ladder:
    """Yardsticks in order, from the one of the report to the fairest; PCA is the last."""

    steps: Mapping[str, Yardstick]
    compared: Compared

    def table(self) -> pd.DataFrame:
        """The deepest site over each shallower one: group, hue, value, lo, hi."""
        rows = []
        for name, step in self.steps.items():
            for site in self.compared.shallow:
                ratio = step.ratio(self.compared.deep, site)
                rows.append((name, site, *ratio.row().values()))
        return pd.DataFrame(rows, columns=["group", "hue", "value", "lo", "hi"])

    def text_table(self) -> pd.DataFrame:
        """The same as text, one row a yardstick, one column a shallower site."""
        columns = {}
        for site in self.compared.shallow:
            ratios = {n: s.ratio(self.compared.deep, site) for n, s in self.steps.items()}
            columns[f"/ site {site}"] = {name: ratio.text() for name, ratio in ratios.items()}
        return pd.DataFrame(columns).rename_axis(f"site {self.compared.deep}")

    def seeds(self) -> pd.DataFrame:
        """The ratios of single seeds: group, hue, value; PCA has none."""
        rows = []
        for name, step in list(self.steps.items())[:-1]:
            for site in self.compared.shallow:
                for where, seed in step.by_seed:
                    if where == site:
                        deep = step.by_seed[self.compared.deep, seed]
                        ratio = deep.value / step.by_seed[site, seed].value
                        rows.append((name, site, ratio))
        return pd.DataFrame(rows, columns=["group", "hue", "value"])


def all_token_sums(ws: Any, specs: Mapping, compared: Compared, seeds: Sequence[int]) -> dict:
    """Sums by test page over all test tokens, by (site, seed): sse, sst, n, each [pages]."""
    rows = np.flatnonzero(ws.store.mask("all", "test"))
    group = np.unique(ws.store.tokens["page"][rows], return_inverse=True)[1]
    sums = {}
    for site in compared.sites:
        saes = {str(seed): ws.load(specs[site, seed]) for seed in seeds}
        tally = tally_rows(saes, ws.store, site, rows, group)
        sst = tally.x.scatter().numpy()
        count = tally.x.count.numpy()
        for seed in seeds:
            sums[site, seed] = (tally.saes[str(seed)].sse.numpy(), sst, count)
    return sums


def all_token_checks(store: Any, sums: Mapping, original: pd.DataFrame) -> list[str]:
    """Are the all-token FVU of these sums those that `results.csv` has?"""
    rows = np.flatnonzero(store.mask("all", "test"))
    fvu = _all_token_fvu(sums)
    equal = [
        np.isclose(fvu.at_site(site).value, original.loc[site, "fvu_all"], rtol=1e-4)
        for site in original.index
    ]
    n_pages = len(np.unique(store.tokens["page"][rows]))
    return [
        f"{len(rows):,} test tokens of {n_pages} pages",
        f"all-token FVU as in results.csv: {sum(equal)} of {len(equal)} sites",
    ]


def _all_token_fvu(sums: Mapping) -> Yardstick:
    ratios = {key: ratio_of_pages(sse, sst) for key, (sse, sst, _) in sums.items()}
    return Yardstick(ORIGINAL_ALL, ratios, over_logs=False)


def middle_lambda(lambdas: Sequence[float]) -> float:
    """The middle of a sweep's λ."""
    return sorted(lambdas)[len(lambdas) // 2]


def build_ladder(
    ws: Any, p: LayerParams, sums: Mapping, specs: Mapping, sweep: Sweep, matched: Matched
) -> Ladder:
    """Six yardsticks: three of the original recipe, two of the normalised one, and PCA.

    sums: `all_token_sums`; specs: the original recipe's SAEs by (site, seed).
    """
    compared = matched.compared
    squared = {key: ratio_of_pages(sse, n) for key, (sse, _, n) in sums.items()}
    lam = middle_lambda(p.lambdas)
    one_lam = {key: _normalised(ws, p, *key, lam) for key in specs}
    l0 = p.l0_target
    at_l0 = {key: sweep.curves["plain", *key].samples_at_l0(l0) for key in specs}
    spectrum = {(site, 0): constant(matched.pca[site, l0]) for site in compared.sites}
    steps = [
        Yardstick("original: squared error, all tokens", squared, over_logs=False),
        _all_token_fvu(sums),
        Yardstick("original: FVU, ordinary tokens", _of_specs(ws, specs)),
        Yardstick(f"normalised: FVU at λ = {lam:g}", _of_specs(ws, one_lam)),
        Yardstick(f"normalised: FVU at L0 = {l0:g}", at_l0),
        Yardstick(f"PCA of rank {round(l0)}", spectrum, over_logs=False),
    ]
    return Ladder({step.name: step for step in steps}, compared)


def _normalised(ws: Any, p: LayerParams, site: int, seed: int, lam: float) -> Any:
    return ws.spec("plain", site, lam=lam, seed=seed, **p.spec_fields())


def _of_specs(ws: Any, specs: Mapping) -> dict[tuple[int, int], Estimate]:
    return {key: of_pages(ws.pages(spec)) for key, spec in specs.items()}


def pca_ratio(ladder: Ladder) -> float:
    """FVU of PCA at the deepest site over that at the site before."""
    near, deep = ladder.compared.pair
    return list(ladder.steps.values())[-1].ratio(deep, near).value


def ladder_title(ladder: Ladder) -> str:
    """Whether the yardsticks agree on which of the two deepest sites is rebuilt worse."""
    deep, near = ladder.compared.deep, ladder.compared.near
    steps = list(ladder.steps.values())[:-1]
    ratios = [step.ratio(deep, near).value for step in steps]
    known = [ratio for ratio in ratios if np.isfinite(ratio)]
    each = "each yardstick" if len(known) == len(ratios) else "each known yardstick"
    if min(known) > 1:
        return f"By {each} site {deep} is rebuilt worse than site {near}"
    if max(known) < 1:
        return f"By {each} site {deep} is rebuilt better than site {near}"
    return f"Whether site {deep} looks worse than site {near} depends on the yardstick"


def ladder_figure(
    ladder: Ladder, original: pd.DataFrame, scope: Scope, n_layers: int | None = None
) -> Figure:
    """The deepest site over each shallower one by each yardstick, log axis."""
    note = (
        "Colour: the site compared with. L0 at one raw λ: "
        f"{', '.join(f'{l0:.0f}' for l0 in original['l0'])} by site. "
        f"Plain SAE, {scope.trainings}, {scope.model}. PCA has no interval."
    )
    return compare.interval_points(
        ladder.table(),
        ladder.seeds() if scope.n_seeds > 1 else None,
        title=ladder_title(ladder),
        value_label=f"site {ladder.compared.deep} / shallower site",
        log=True,
        reference=(1, "no gap"),
        interval=f"{scope.interval}, the same at both sites",
        note=note,
        n_layers=n_layers,
    )


def verdicts_by_yardstick(
    ladder: Ladder, margin: float, scope: Scope, collapsed: Iterable[int] = ()
) -> dict[str, Verdict]:
    """`decide_worse` by each yardstick but PCA."""
    verdicts = {}
    for name, step in list(ladder.steps.items())[:-1]:
        without = list(collapsed) if name.startswith("original") else []
        ratios = step.ratios(ladder.compared)
        verdicts[name] = decide_worse(ratios, margin, scope.n_seeds, scope.n_pages, without)
    return verdicts


def yardstick_lines(
    ladder: Ladder, margin: float, scope: Scope, collapsed: Iterable[int] = ()
) -> list[str]:
    """By each yardstick but PCA what the deepest site is beside each shallower one, and verdicts.

    Why there is no verdict stands once, last.
    """
    sites = list(collapsed)
    verdicts = verdicts_by_yardstick(ladder, margin, scope, sites)
    lines = [f"{name}: {_places(ladder, name, margin)}" for name in verdicts]
    if not enough(scope.n_seeds, scope.n_pages):
        size = f"{scope.trainings} and {scope.n_pages} test pages"
        return [*lines, f"undecided by each: {size}; a verdict takes {MIN_SEEDS} and {MIN_PAGES}"]
    lines = [f"{line}: {verdict}" for line, verdict in zip(lines, verdicts.values(), strict=True)]
    if sites:
        lines.append("undecided by the original recipe, whose SAEs have collapsed")
    return lines


def _places(ladder: Ladder, name: str, margin: float) -> str:
    ratios = zip(ladder.compared.shallow, ladder.steps[name].ratios(ladder.compared), strict=True)
    return ", ".join(PLACES[ratio.compare(1, margin)].format(site=site) for site, ratio in ratios)
