"""What the parts of F3 share: the compared sites, the SAEs they read, and a caption's basis."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from saelib.config import ConfigError, EvalConfig
from saelib.measure.bootstrap import effective_pages
from saelib.sae.spec import Spec
from saelib.study.curve import Curve
from saelib.study.notebooks import LayerParams
from saelib.study.scope import Scope

NOTEBOOK = "05_layer_analysis"
MADE_IN = {"plain": "02_train_sae", "two_term": "03_train_gated", "full": "03_train_gated"}
COLLAPSED_L0 = 1.0  # active latents per token below which a code says nothing of its site


@dataclass(frozen=True)
class Compared:
    """Sites of one model in ascending order: the deepest is compared with each shallower one."""

    sites: tuple[int, ...]

    @property
    def deep(self) -> int:
        """The deepest site."""
        return self.sites[-1]

    @property
    def shallow(self) -> tuple[int, ...]:
        """All sites but the deepest."""
        return self.sites[:-1]

    @property
    def near(self) -> int:
        """The site before the deepest."""
        return self.sites[-2]

    @property
    def pair(self) -> tuple[int, int]:
        """The two deepest sites, (near, deep)."""
        return self.near, self.deep


def compared_sites(ws: Any, names: Sequence[int | str]) -> Compared:
    """The sites that `names` mean in this model; `ConfigError` where they are fewer than two."""
    sites = tuple(sorted({ws.site(name) for name in names}))
    if len(sites) < 2:
        raise ConfigError(f"sites = {list(names)}: one site, and two or more are compared")
    return Compared(sites)


def without_loss(ws: Any) -> Any:
    """The same workspace for SAEs whose next-token loss is not asked for."""
    return ws.measuring(EvalConfig(ce_tokens=0))


def enumerate_sites(sites: Sequence[int]) -> str:
    """ "2", "2 and 15", "2, 9 and 15"."""
    names = [str(site) for site in sites]
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


# The original recipe: raw activations, every token, one λ


def original_specs(ws: Any, p: LayerParams, compared: Compared) -> dict[tuple[int, int], Spec]:
    """SAEs of the original recipe by (site, seed); notebook 02 trains them."""
    fields = {"lam": p.original_lam, "normalize": "none", "tokens_mask": "all"}
    fields |= p.spec_fields()
    return {
        (site, seed): ws.spec("plain", site, seed=seed, **fields)
        for site in compared.sites
        for seed in p.seeds
    }


def original_rows(ws: Any, specs: Mapping[tuple[int, int], Spec]) -> pd.DataFrame:
    """Results of the original recipe by site, means over seeds.

    Raises `FileNotFoundError` where an SAE has not been trained.
    """
    results = ws.results().set_index("run_id")
    runs = [ws.run_id(spec) for spec in specs.values()]
    absent = set(runs) - set(results.index)
    if absent:
        raise FileNotFoundError(
            f"{len(absent)} SAEs of the original recipe are missing: "
            f"run 02_train_sae with {ws.profile!r}"
        )
    return results.loc[runs].groupby("site").mean(numeric_only=True)


def collapsed_sites(rows: pd.DataFrame) -> list[int]:
    """Sites whose SAEs have fewer than `COLLAPSED_L0` active latents per token."""
    return [int(site) for site, l0 in rows["l0"].items() if l0 < COLLAPSED_L0]


# The normalised recipe: the sweeps of notebooks 02 and 03


class Sweep(NamedTuple):
    """SAEs of one recipe along λ: all rows, and a curve for each (architecture, site, seed)."""

    table: pd.DataFrame
    curves: dict[tuple[str, int, int], Curve]

    def by_seed(self, arm: str, site: int) -> list[Curve]:
        """One architecture's curves at one site, a curve for each seed."""
        return [
            curve for (name, where, _), curve in self.curves.items() if (name, where) == (arm, site)
        ]


def swept_curves(ws: Any, p: LayerParams, compared: Compared, listed: Collection[str]) -> Sweep:
    """Curves of λ that notebooks 02 and 03 trained with this recipe; `listed`: their run ids.

    Raises `FileNotFoundError` where a curve has fewer than two points.
    """
    results = ws.results()
    wanted = results["run_id"].isin(listed) & results["site"].isin(compared.sites)
    wanted &= results["seed"].isin(p.seeds) & results["arm"].isin(list(MADE_IN))
    rows = results[wanted]
    names = zip(rows["arm"], rows["site"], rows["lambda"], rows["seed"], strict=True)
    expected = [_run_id(ws, p, *values) for values in names]
    rows = rows[rows["run_id"] == expected]
    rows = rows.sort_values(["site", "seed", "lambda"])
    table = pd.concat([rows[rows["arm"] == arm] for arm in MADE_IN], ignore_index=True)
    grouped = table.groupby(["arm", "site", "seed"], sort=False)
    curves = {key: Curve(group, ws.pages) for key, group in grouped}
    _require_curves(ws, p, compared, curves)
    return Sweep(table, curves)


def _run_id(ws: Any, p: LayerParams, arm: str, site: int, lam: float, seed: int) -> str:
    """The id that an SAE of the notebook's recipe has at this λ and seed."""
    return ws.run_id(ws.spec(arm, site, lam=lam, seed=seed, **p.spec_fields()))


def _require_curves(ws: Any, p: LayerParams, compared: Compared, curves: Mapping) -> None:
    for arm, notebook in MADE_IN.items():
        keys = [(arm, site, seed) for site in compared.sites for seed in p.seeds]
        short = sorted({key[1] for key in keys if key not in curves or len(curves[key].rows) < 2})
        if short:
            raise FileNotFoundError(
                f"sites {short} lack SAEs of {arm!r}: run {notebook} with profile {ws.profile!r}"
            )


def scope_of(ws: Any, p: LayerParams, sweep: Sweep) -> Scope:
    """What the estimates of a sweep rest on."""
    return Scope.of_workspace(ws, p.seeds, int(sweep.table["n_test_pages"].min()))


def page_lists(sweep: Sweep) -> set[tuple]:
    """The distinct lists of test pages on which the SAEs were measured: one, where all agree."""
    curves = sweep.curves.values()
    return {tuple(c.pages(run)["page_id"]) for c in curves for run in c.rows["run_id"]}


def sweep_line(sweep: Sweep, compared: Compared, scope: Scope) -> str:
    """How many curves there are, and of what."""
    fewest = min(len(curve.rows) for curve in sweep.curves.values())
    return (
        f"{len(sweep.curves)} curves, {len(MADE_IN)} architectures at {len(compared.sites)} "
        f"sites, {scope.trainings}, {fewest} λ or more each"
    )


def test_line(store: Any, sweep: Sweep, original: pd.DataFrame, scope: Scope) -> str:
    """On how many tokens and pages everything is measured; long pages count for more."""
    rows = int(store.mask("ordinary", "test").sum())
    first = next(iter(sweep.curves.values()))
    equal = effective_pages(first.pages(first.rows["run_id"].iloc[0])["n"])
    return (
        f"the original recipe at {len(original)} sites; {rows:,} ordinary tokens of "
        f"{scope.n_pages} test pages (by their unequal lengths as many as {equal:.0f} equal ones)"
    )
