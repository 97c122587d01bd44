"""F2, second half: is the Gated SAE worse because dead latents were not resampled?

Trained is every combination of {plain, two-term, full} with {resampling off, on}, with the normal
recipe and with steps so large that latents may die, at each site. Each is a curve over λ that is
read at L0 = `l0_target`. Who dies and who is revived is the subject of `f2_dead`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from saelib.sae.spec import Spec
from saelib.study.controls import shuffled_decoders
from saelib.study.curve import Curve, curves_over_seeds
from saelib.study.estimate import Estimate, over_seeds
from saelib.study.f2_gated import ARMS
from saelib.study.finding import Check, at_least
from saelib.study.finding_params import ResampleParams as Params
from saelib.study.matched import times
from saelib.study.scope import Scope, sites_label

NOTEBOOK = "04_resampling"
NORMAL = "normal recipe"
LARGE_STEPS = "large steps"
SETTINGS = (NORMAL, LARGE_STEPS)
GATED = ("two_term", "full")

DEFICIT = "deficit"
NO_AUXILIARY = "no auxiliary term"
NO_RESAMPLING = {"two_term": "no resampling (two-term)", "full": "no resampling (full)"}
INTERACTION = "interaction"
EFFECTS = (DEFICIT, NO_AUXILIARY, *NO_RESAMPLING.values(), INTERACTION)


class Combination(NamedTuple):
    """One combination of setting, arm, resampling and site."""

    setting: str
    arm: str
    resampled: bool
    site: int


Run = tuple[str, str, bool, int, int]  # a combination and a seed


# -- what is trained ---------------------------------------------------------------------------


def large_steps(p: Params) -> dict[str, float]:
    """The fields in which the setting of large steps differs from the recipe."""
    changed = {"lr": p.dying_lr, "grad_clip": p.dying_clip, "lam_warmup": p.dying_lam_warmup}
    recipe = p.spec_fields()
    return {name: value for name, value in changed.items() if value != recipe[name]}


def combinations(ws: Any, p: Params) -> list[Combination]:
    """Every combination, in the order of tables."""
    sites = [ws.site(site) for site in p.resample_sites]
    return [
        Combination(setting, arm, resampled, site)
        for setting in SETTINGS
        for arm in ARMS
        for resampled in (False, True)
        for site in sites
    ]


def arm_starts(p: Params) -> dict[tuple[str, str], list[float]]:
    """The λ at which curves begin, by setting and arm, with three digits."""
    lambdas = {NORMAL: p.normal_lambdas, LARGE_STEPS: p.dying_lambdas}
    factor = {"plain": 1.0, "two_term": p.lam_two_term, "full": p.lam_full}
    return {
        (setting, arm): times(lambdas[setting], factor[arm]) for setting in SETTINGS for arm in ARMS
    }


def starts_table(p: Params) -> pd.DataFrame:
    """`arm_starts` for reading: a row per setting, a column per arm."""
    starts = {key: ", ".join(f"{lam:g}" for lam in lams) for key, lams in arm_starts(p).items()}
    return pd.Series(starts).unstack().reindex(index=list(SETTINGS), columns=list(ARMS))


def resampling_spec(
    ws: Any, p: Params, setting: str, arm: str, resampled: bool, site: int, seed: int, lam: float
) -> Spec:
    """One SAE of the experiment."""
    fields = p.spec_fields() | {"resample_rows": p.resample_rows, "dead_window": p.dead_window}
    if setting == LARGE_STEPS:
        fields |= large_steps(p)
    moments = p.resample_at if resampled else []
    return ws.spec(arm, site, lam=lam, **fields, seed=seed, resample_at=moments)


class ResamplingRuns(NamedTuple):
    """Curves over λ by (setting, arm, resampled, site, seed), and what they were trained over."""

    curves: Mapping[Run, Curve]
    combinations: list[Combination]
    seeds: list[int]

    @property
    def sites(self) -> list[int]:
        """Sites, in the order of the parameter."""
        return list(dict.fromkeys(combination.site for combination in self.combinations))

    @property
    def n_pages(self) -> int:
        """Test pages of the measurements."""
        return int(next(iter(self.curves.values())).rows["n_test_pages"].min())

    @property
    def n_saes(self) -> int:
        """SAEs on all curves."""
        return sum(len(curve.rows) for curve in self.curves.values())


def train(ws: Any, p: Params) -> ResamplingRuns:
    """Train every combination until its curve brackets the L0 of the comparison."""

    def spec(setting: str, arm: str, resampled: bool, site: int, seed: int, lam: float) -> Spec:
        return resampling_spec(ws, p, setting, arm, resampled, site, seed, lam)

    lambdas = arm_starts(p)
    cells = combinations(ws, p)
    start = {cell: lambdas[cell.setting, cell.arm] for cell in cells}
    curves = curves_over_seeds(ws, NOTEBOOK, spec, start, p.seeds, p.l0_target, refine=p.refine)
    return ResamplingRuns(curves, cells, list(p.seeds))


def nearest_specs(ws: Any, p: Params, runs: ResamplingRuns) -> dict[Run, Spec]:
    """Of every curve the SAE whose L0 is nearest to that of the comparison."""
    specs = {}
    for key, curve in runs.curves.items():
        distance = np.log(curve.rows["l0_val"].clip(lower=1e-3) / p.l0_target).abs()
        lam = curve.rows.loc[distance.idxmin(), "lambda"]
        specs[key] = resampling_spec(ws, p, *key, lam)
    return specs


# -- estimates ---------------------------------------------------------------------------------


class Matched(NamedTuple):
    """log FVU at the L0 of the comparison, per seed by `Run` and over seeds by `Combination`."""

    per_seed: dict[Run, Estimate]
    log_fvu: dict[Combination, Estimate]


def match(runs: ResamplingRuns, l0: float) -> Matched:
    """Read every curve at validation L0 = `l0`."""
    per_seed = {key: curve.samples_at_l0(l0).log() for key, curve in runs.curves.items()}
    log_fvu = {
        cell: over_seeds([per_seed[*cell, seed] for seed in runs.seeds])
        for cell in runs.combinations
    }
    return Matched(per_seed, log_fvu)


def fvu_table(matched: Matched) -> pd.DataFrame:
    """FVU of every combination: value, lo, hi, setting, arm, resampling, site, shown."""
    rows = []
    for cell, log_fvu in matched.log_fvu.items():
        fvu = log_fvu.exp()
        named = cell._asdict()
        named["resampling"] = "on" if named.pop("resampled") else "off"
        rows.append(fvu.row() | named | {"shown": fvu.text(".3f", "unreachable")})
    columns = ["value", "lo", "hi", "setting", "arm", "resampling", "site", "shown"]
    return pd.DataFrame(rows, columns=columns)


def shown_fvu(table: pd.DataFrame, setting: str) -> pd.DataFrame:
    """`fvu_table` of one setting for reading: a row per site and arm, a column per resampling."""
    rows = table[table["setting"] == setting]
    wide = rows.pivot(index=["site", "arm"], columns="resampling", values="shown")
    order = {arm: place for place, arm in enumerate(ARMS)}
    wide = wide.sort_index(key=lambda keys: keys.map(lambda key: order.get(key, key)))
    return wide.add_prefix("resampling ").rename_axis(columns=setting)


def effects(log_fvu: Mapping[tuple, Estimate], setting: str, site: int) -> dict[str, Estimate]:
    """Logarithms of the five effects of one setting and site, by name in `EFFECTS`.

    log_fvu: by (setting, arm, resampled, site). Each effect is a ratio of FVU at equal L0, above 1
    where what is missing would have helped; the interaction is a ratio of two such ratios.
    """
    plain = log_fvu[setting, "plain", False, site]
    two_term, two_term_resampled = (log_fvu[setting, "two_term", on, site] for on in (False, True))
    full, full_resampled = (log_fvu[setting, "full", on, site] for on in (False, True))
    without = two_term - full
    return {
        DEFICIT: two_term - plain,
        NO_AUXILIARY: without,
        NO_RESAMPLING["two_term"]: two_term - two_term_resampled,
        NO_RESAMPLING["full"]: full - full_resampled,
        INTERACTION: without - (two_term_resampled - full_resampled),
    }


Effects = dict[tuple[str, int, str], Estimate]  # ratios by (setting, site, effect)


def effect_ratios(matched: Matched, runs: ResamplingRuns) -> Effects:
    """The five effects of every setting and site, as ratios of FVU."""
    return {
        (setting, site, name): log_ratio.exp()
        for setting in SETTINGS
        for site in runs.sites
        for name, log_ratio in effects(matched.log_fvu, setting, site).items()
    }


def effect_table(ratios: Effects, margin: float) -> pd.DataFrame:
    """One row per effect: panel (setting), hue (site), group, value, lo, hi, found, note."""
    rows = [
        {"panel": setting, "hue": site, "group": name}
        | ratio.row()
        | {"found": ratio.compare(1, margin), "note": "" if ratio.defined else "unreachable"}
        for (setting, site, name), ratio in ratios.items()
    ]
    return pd.DataFrame(rows).sort_values(["panel"], ascending=False, kind="stable")


def shown_effects(ratios: Effects, margin: float, setting: str) -> pd.DataFrame:
    """The effects of one setting for reading: one row per effect, one column per site."""
    columns = {}
    for (named, site, effect), ratio in ratios.items():
        if named == setting:
            interval = f"{ratio.text('.2f')} " if ratio.defined else ""
            shown = interval + ratio.compare(1, margin)
            columns.setdefault(f"site {site}", {})[effect] = shown
    return pd.DataFrame(columns).rename_axis(columns=setting)


def seed_effects(matched: Matched, runs: ResamplingRuns) -> pd.DataFrame:
    """The effects of single seeds: panel, hue, group, value."""
    rows = []
    for seed in runs.seeds:
        log_fvu = {cell: matched.per_seed[*cell, seed] for cell in runs.combinations}
        for setting in SETTINGS:
            for site in runs.sites:
                for name, ratio in effects(log_fvu, setting, site).items():
                    rows.append((setting, site, name, float(np.exp(ratio.value))))
    return pd.DataFrame(rows, columns=["panel", "hue", "group", "value"])


def typical(ratios: Effects) -> dict[tuple[str, str], float]:
    """Geometric mean of each effect over sites, by (setting, effect); nan where one is missing."""
    values: dict[tuple[str, str], list[float]] = {}
    for (setting, _, name), ratio in ratios.items():
        values.setdefault((setting, name), []).append(ratio.value)
    return {key: float(np.exp(np.mean(np.log(sites)))) for key, sites in values.items()}


def describe(ws: Any, p: Params) -> str:
    """Model, sites, seeds, recipe, and in what the setting of large steps differs, in words."""
    scope = Scope.of_workspace(ws, p.seeds, 0)
    sites = sites_label([ws.site(site) for site in p.resample_sites])
    changed = ", ".join(f"{name} {value:g}" for name, value in large_steps(p).items())
    recipe = ", ".join(f"{name} {value}" for name, value in p.spec_fields().items())
    lines = [f"{scope.model}: {sites}; {scope.trainings}", f"recipe: {recipe}"]
    return "\n".join([*lines, f"large steps: {changed or 'as the recipe'}"])


# -- expectations ------------------------------------------------------------------------------


def schedule_checks(p: Params) -> list[Check]:
    """Whether resampling has the time it needs."""
    after = (1 - max(p.resample_at)) * p.tokens  # training left after the last resampling
    return [
        (
            len(p.resample_at) >= 2 and after >= 0.4 * p.tokens,
            "two resamplings or more, the last with 40 % of training left",
        ),
        (p.dead_window <= after, "a latent revived last still has time to be found dead again"),
    ]


def nearest_controls(ws: Any, specs: Mapping[Run, Spec]) -> pd.DataFrame:
    """Controls of the SAEs nearest to the L0: fvu, shuffled."""
    return shuffled_decoders(ws, specs.values())


def control_checks(controls: pd.DataFrame) -> list[Check]:
    """Whether the SAEs rebuild anything."""
    bound = np.maximum(1, 1.2 * controls["fvu"])
    return [
        (
            bool((controls["fvu"] < 0.85).all()),
            "every SAE near the target L0 leaves under 85 % of the variance of 2,048 test rows",
        ),
        (
            bool((controls["shuffled"] > bound).all()),
            "with a shuffled decoder each is worse than the mean",
        ),
    ]


def match_checks(
    matched: Matched, runs: ResamplingRuns, revived: Mapping[tuple[str, str, int], int], l0: float
) -> list[Check]:
    """Most combinations have that L0; where nothing was revived, resampling changed nothing."""
    idle = [key for key in revived if revived[key] == 0]
    same = [_same_to_the_bit(matched, *pair) for pair in idle]
    reached = np.mean([x.defined for x in matched.log_fvu.values()])
    checks: list[Check] = [
        (bool(reached > 0.8), f"L0 = {l0:g} is reached in over four fifths of the combinations")
    ]
    if idle:
        claim = (
            f"off and on are the same to the last bit in the {len(idle)} of {len(revived)} pairs "
            "where no SAE of the curve, at any λ, had a latent revived"
        )
        checks.append((at_least(len(idle), same, "L0 not reached", "pairs"), claim))
    return checks


def _same_to_the_bit(matched: Matched, setting: str, arm: str, site: int) -> bool | None:
    """Whether log FVU is equal without and with resampling; None where neither has the L0."""
    pair = [matched.log_fvu[Combination(setting, arm, on, site)] for on in (False, True)]
    if not any(log_fvu.defined for log_fvu in pair):
        return None
    return np.array_equal(*(log_fvu.draws for log_fvu in pair), equal_nan=True)
