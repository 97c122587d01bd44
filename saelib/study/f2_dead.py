"""F2, who dies: dead latents over training, and what becomes of the revived.

A latent is dead when it was silent for the last `dead_window` training tokens. The runs are those
of `f2_resampling`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from saelib.sae.spec import Spec
from saelib.show.style import LOOKS
from saelib.study.estimate import Estimate
from saelib.study.f2_gated import ARMS
from saelib.study.f2_gates import student
from saelib.study.f2_resampling import (
    LARGE_STEPS,
    NORMAL,
    SETTINGS,
    Params,
    ResamplingRuns,
    Run,
    resampling_spec,
)
from saelib.study.finding import Check, Finding, Verdict, at_least, enough, figure_path
from saelib.study.matched import interpolate_matched_l0
from saelib.study.scope import Scope

DYING = 0.1  # share of dead latents from which on an arm counts as one whose latents die
KEYS = ["setting", "arm", "resample", "site", "seed"]
EVENT_COLUMNS = ["n_dead", "n_gate_dead", "revived", "alive_later"]

CLAIM = "Without resampling latents die in this workbook's normal recipe."
RULE = (
    "Supported if some arm without resampling ends with 10 % dead or more by its 95 % Student "
    "interval over seeds (share at the L0 of the comparison, mean over sites), contradicted if "
    "every arm ends with less; else undecided, as it is with fewer than three seeds or 15 test "
    "pages. It speaks for F2 only if that arm is the two-term one, the Gated SAE of the experiment."
)


def too_short(p: Params) -> bool:
    """Whether training is shorter than the silence that makes a latent dead."""
    return p.dead_window > p.tokens


# -- tables ------------------------------------------------------------------------------------


def labels(run: Run) -> dict[str, Any]:
    """A run's setting, arm, resampling ("on", "off"), site and seed, as tables have them."""
    setting, arm, resampled, site, seed = run
    values = (setting, arm, "on" if resampled else "off", site, seed)
    return dict(zip(KEYS, values, strict=True))


def histories(ws: Any, specs: Mapping[Run, Spec]) -> pd.DataFrame:
    """Training histories of the runs nearest to the L0, with `KEYS`."""
    tables = [ws.history(spec).assign(**labels(run)) for run, spec in specs.items()]
    return pd.concat(tables, ignore_index=True)


def resamplings(ws: Any, specs: Mapping[Run, Spec]) -> pd.DataFrame:
    """One row per resampling of those runs: `KEYS`, tokens and `EVENT_COLUMNS`.

    A latent that was revived twice counts at the later event alone, as it does in `alive_later`.
    """
    rows = []
    for run, spec in specs.items():
        for event in without_repeats(ws.events(spec)):
            rows.append(labels(run) | event | {"revived": len(event["revived"])})
    columns = [*KEYS, "tokens", *EVENT_COLUMNS]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)


def without_repeats(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Events in which a latent is listed at the last one that revived it."""
    kept = []
    later: set[int] = set()
    for event in reversed(events):
        revived = [latent for latent in event["revived"] if latent not in later]
        kept.append({**event, "revived": revived})
        later |= set(event["revived"])
    return kept[::-1]


def dead_at_l0(ws: Any, p: Params, runs: ResamplingRuns) -> pd.Series:
    """Share of latents dead at the end at the L0 of the comparison, by `KEYS`; nan: not reached."""
    rows = []
    for run, curve in runs.curves.items():
        ends = []
        for lam in curve.rows["lambda"]:
            history = ws.history(resampling_spec(ws, p, *run, lam))
            ends.append(history["dead_fraction"].iloc[-1])
        dead = interpolate_matched_l0(curve.rows["l0_val"], ends, p.l0_target, log_y=False)
        rows.append(labels(run) | {"dead": dead})
    return pd.DataFrame(rows).astype({"dead": float}).set_index(KEYS)["dead"]


def revived_on_curves(ws: Any, p: Params, runs: ResamplingRuns) -> dict[tuple[str, str, int], int]:
    """Latents revived over all seeds and λ, by (setting, arm, site)."""
    counts = {
        (setting, arm, site): 0 for setting in SETTINGS for arm in ARMS for site in runs.sites
    }
    for run, curve in runs.curves.items():
        setting, arm, resampled, site, _ = run
        if not resampled:
            continue
        for lam in curve.rows["lambda"]:
            events = ws.events(resampling_spec(ws, p, *run, lam))
            counts[setting, arm, site] += sum(len(event["revived"]) for event in events)
    return counts


def revived_near_l0(events: pd.DataFrame) -> dict[tuple[str, str, int], float]:
    """Latents revived in the runs nearest to the L0, mean over seeds, by (setting, arm, site)."""
    per_seed = events.groupby(["setting", "arm", "site", "seed"])["revived"].sum()
    return per_seed.groupby(level=[0, 1, 2]).mean().to_dict()


class Deaths(NamedTuple):
    """Dead latents over training, at resamplings, and at the L0 of the comparison."""

    history: pd.DataFrame
    events: pd.DataFrame
    dead: pd.Series

    @property
    def shares(self) -> pd.DataFrame:
        """Share dead, mean over sites and seeds, by (setting, arm), columns "off" and "on"."""
        groups = self.dead.groupby(["setting", "arm", "resample"])
        return groups.agg(_mean_where_reached).unstack()


def deaths(ws: Any, p: Params, runs: ResamplingRuns, specs: Mapping[Run, Spec]) -> Deaths:
    """Read histories and events of the runs; specs: those nearest to the L0."""
    return Deaths(histories(ws, specs), resamplings(ws, specs), dead_at_l0(ws, p, runs))


def _mean_where_reached(values: pd.Series) -> float:
    return values.mean(skipna=False)


def event_table(events: pd.DataFrame) -> pd.DataFrame:
    """Per setting, arm and moment of training: dead, gates never open, revived, alive at the end.

    Mean over sites and seeds.
    """
    return events.groupby(["setting", "arm", "tokens"], sort=False)[EVENT_COLUMNS].mean()


def survivors(events: pd.DataFrame) -> pd.Series:
    """Share of the revived alive at the end, large steps, by arm; nan where none was revived."""
    counts = _with_large_steps(events).groupby("arm")[["revived", "alive_later"]].sum()
    return counts["alive_later"] / counts["revived"].where(counts["revived"] > 0)


def _with_large_steps(events: pd.DataFrame) -> pd.DataFrame:
    return events[events["setting"] == LARGE_STEPS]


# -- the verdict -------------------------------------------------------------------------------


def dead_without(dead: pd.Series) -> dict[tuple[str, str], Estimate]:
    """Share dead without resampling by (setting, arm): mean over sites, interval over seeds."""
    off = dead.xs("off", level="resample")
    per_seed = off.groupby(["setting", "arm", "seed"]).agg(_mean_where_reached).unstack()
    return {
        (setting, arm): _within_bounds(student(per_seed.loc[(setting, arm)]))
        for setting in SETTINGS
        for arm in ARMS
    }


def _within_bounds(share: Estimate) -> Estimate:
    """A share whose interval ends at 0 and 1."""
    return Estimate(np.clip(share.draws, 0, 1))


def decide(shares: Sequence[Estimate], n_seeds: int, n_pages: int) -> Verdict:
    """Whether latents die (`RULE`), from the share dead of every arm."""
    if not shares or not enough(n_seeds, n_pages):
        return "undecided"
    if any(share.lo >= DYING for share in shares):
        return "supported"
    if all(share.hi < DYING for share in shares):
        return "contradicted"
    return "undecided"


def finding(dead: pd.Series, p: Params, scope: Scope) -> Finding:
    """F2e."""
    shares = dead_without(dead)
    normal = [shares[NORMAL, arm] for arm in ARMS]
    return Finding(
        name="F2e",
        claim=CLAIM,
        rule=RULE,
        verdict=decide(normal, scope.n_seeds, scope.n_pages),
        estimates={
            f"share dead, {LOOKS[arm].label}, {setting}": share
            for (setting, arm), share in shares.items()
        },
        sentence=sentence(shares, p, scope),
        section="Verdict",
        figure=figure_path(p.profile, "04_dead_over_time"),
    )


def sentence(shares: Mapping[tuple[str, str], Estimate], p: Params, scope: Scope) -> str:
    """Shares of dead latents without resampling in words."""
    if too_short(p):
        return (
            f"No latent can be found dead: training has {p.tokens:,} tokens, and a dead one is "
            f"silent for {p.dead_window:,}."
        )
    settings = []
    for setting in SETTINGS:
        parts = [f"{LOOKS[arm].label} {percent(shares[setting, arm])}" for arm in ARMS]
        settings.append(f"{setting}: {', '.join(parts)}")
    interval = ", 95 % Student interval over seeds" if scope.n_seeds > 1 else ""
    return (
        f"Dead at the end without resampling at L0 = {p.l0_target:g}, mean over sites{interval}: "
        f"{'; '.join(settings)}. {scope.trainings}."
    )


def percent(share: Estimate) -> str:
    """A share in words: "12.2 % [11.7, 12.7]"."""
    if not share.defined:
        return "unreached"
    text = (100 * share).text(".1f")
    value, _, interval = text.partition(" ")
    return f"{value} % {interval}"


# -- expectations ------------------------------------------------------------------------------


def death_checks(shares: pd.DataFrame, p: Params) -> list[Check]:
    """Expectations of who dies; shares: `Deaths.shares`."""
    large = shares.loc[LARGE_STEPS]
    off, on = large["off"], large["on"]
    normal = shares["off"][NORMAL]
    reason = "training is shorter than the window" if too_short(p) else "L0 not reached"
    return [
        (
            at_least(1, _known(off > DYING, off), reason),
            "with large steps over 10 % of some arm's latents are dead without resampling",
        ),
        (
            at_least(2, _known(off > 2 * normal, off, normal), reason),
            "in two arms or more over twice as many as normally",
        ),
        (
            at_least(2, _known(on < 0.6 * off, off, on), reason),
            "two arms or more end with far fewer dead if resampled",
        ),
    ]


def _known(holds: pd.Series, *shares: pd.Series) -> list[bool | None]:
    """Whether it holds of each arm; None where one of the shares it rests on is not known."""
    known = pd.concat(shares, axis=1).notna().all(axis=1)
    return [bool(holds[arm]) if known[arm] else None for arm in holds.index]


def survivor_checks(events: pd.DataFrame, n_latents: int) -> list[Check]:
    """Expectations of what becomes of the revived."""
    large = _with_large_steps(events)
    per_run = large.groupby(["arm", "site", "seed"])["revived"].sum().groupby("arm").mean()
    alive = survivors(events)
    return [
        (
            bool(per_run.max() > 0.05 * n_latents),
            "with large steps over 5 % of some arm's latents are revived",
        ),
        (
            at_least(2, _known(alive > 0.4, alive), "nothing was revived"),
            "in two arms or more over 40 % of the revived are alive at the end",
        ),
    ]
