"""Figures, titles and captions of `f2_dead` and `f2_resampling`."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saelib.show import compare, training
from saelib.show.style import LOOKS
from saelib.study.f2_dead import KEYS, Deaths, survivors, too_short
from saelib.study.f2_gated import ARMS
from saelib.study.f2_resampling import (
    DEFICIT,
    LARGE_STEPS,
    NO_AUXILIARY,
    NO_RESAMPLING,
    SETTINGS,
    Effects,
    Matched,
    Params,
    ResamplingRuns,
    effect_table,
    seed_effects,
    typical,
)
from saelib.study.scope import Scope

# -- dead latents over training ----------------------------------------------------------------


def dead_over_time(deaths: Deaths, p: Params, scope: Scope) -> Figure:
    """Dead latents over training, one panel per setting; dashed without resampling."""
    columns = [*KEYS, "tokens", "dead_fraction", "resample_event"]
    lines = deaths.history.assign(resample_event=False)
    marks = deaths.events.assign(dead_fraction=np.nan, resample_event=True)
    drawn = pd.concat([lines[columns], marks[columns]], ignore_index=True)
    dead = f"Dead: silent for {p.dead_window:,} training tokens"
    if too_short(p):
        title = "No latent can be found dead in so short a training"
        note = f"{dead}; these SAEs train on {p.tokens:,}. {scope.note}"
        return training.dead_over_time(drawn, title=title, note=note)
    words = f"{line_words(deaths.history, p.l0_target)} {dead_words(deaths.shares)}"
    return training.dead_over_time(
        drawn,
        title=dead_title(deaths.shares),
        note=f"{words} {dead}: none can be before so many. {scope.note}",
    )


def dead_title(shares: pd.DataFrame) -> str:
    """Whether resampling leaves fewer dead where steps are large; shares: `Deaths.shares`."""
    large = shares.loc[LARGE_STEPS].reindex(list(ARMS))
    comparable = large.dropna()
    fewer = int((comparable["on"] < comparable["off"]).sum())
    if comparable.empty:
        return "Dead latents over training; no arm has that L0 twice"
    missing = len(large) - len(comparable)
    if missing:
        message = f"Resampling leaves fewer dead in {fewer} of {len(large)} arms"
        return f"{message}; {missing} not comparable"
    if fewer == len(large):
        return "Resampling leaves fewer dead latents where steps are large"
    if fewer == 0:
        return "Resampling cures no arm of death by large steps"
    return f"Resampling leaves fewer dead in {fewer} of {len(large)} arms"


def line_words(history: pd.DataFrame, l0: float) -> str:
    """What the lines are, and where those of each panel end; history: `Deaths.history`."""
    last = history.sort_values("tokens").groupby(KEYS, sort=False)["dead_fraction"].last()
    ends = last.groupby(["setting", "arm", "resample", "site"]).mean()
    parts = [f"{_span(ends[setting])} ({setting})" for setting in SETTINGS]
    return f"Lines: of each curve the run nearest to L0 = {l0:g}, ending at {', '.join(parts)}."


def dead_words(shares: pd.DataFrame) -> str:
    """Shares of dead latents at the L0 of the comparison; shares: `Deaths.shares`."""
    settings = []
    for setting in SETTINGS:
        parts = []
        for arm in ARMS:
            off, on = (_percent(shares.loc[(setting, arm), column]) for column in ("off", "on"))
            parts.append(f"{off} / {on} ({LOOKS[arm].label})")
        settings.append(f"{setting} {', '.join(parts)}")
    missed = " Unreached: no λ tried gives that L0." if shares.isna().any(axis=None) else ""
    return (
        "At that L0 itself, between two runs, dead without / with resampling, mean over sites and "
        f"seeds: {'; '.join(settings)}.{missed}"
    )


def _span(values: pd.Series) -> str:
    least, most = _percent(values.min()), _percent(values.max())
    return least if least == most else f"{least} to {most}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if np.isfinite(share) else "unreached"


# -- the revived -------------------------------------------------------------------------------


def survivor_bars(deaths: Deaths, p: Params, scope: Scope) -> Figure:
    """Revived latents with large steps and those alive at the end, one panel per arm."""
    events = deaths.events[deaths.events["setting"] == LARGE_STEPS]
    means = events.groupby(["arm", "tokens"], as_index=False)[["revived", "alive_later"]].mean()
    order = means["arm"].map(list(ARMS).index)
    bars = means.assign(event=means["tokens"], order=order).sort_values(["order", "tokens"])
    return training.survivors(
        bars,
        title=survivor_title(survivors(deaths.events)),
        note=f"Alive at the end: {survivor_words(survivors(deaths.events))}. Large steps, mean "
        f"over sites and seeds, runs nearest to L0 = {p.l0_target:g}; event: training tokens. "
        f"Dead: silent for {p.dead_window:,} training tokens. {scope.note}",
    )


def survivor_title(alive: pd.Series) -> str:
    """How many of the revived die again; alive: share alive at the end by arm."""
    revived = alive.dropna()
    if revived.empty:
        return "Nothing was revived where steps are large"
    if (revived < 0.5).all():
        return "With large steps most revived latents die again"
    if (revived >= 0.5).all():
        return "Most revived latents live on even with large steps"
    lasting = int((revived >= 0.5).sum())
    return f"Most revived latents live on in {lasting} of {len(revived)} arms"


def survivor_words(alive: pd.Series) -> str:
    """Shares of the revived alive at the end, arm by arm."""
    parts = [
        f"{100 * alive[arm]:.0f} % ({LOOKS[arm].label})"
        for arm in ARMS
        if arm in alive and np.isfinite(alive[arm])
    ]
    return ", ".join(parts) or "none was revived"


# -- the two suspects --------------------------------------------------------------------------


def effect(
    ratios: Effects, matched: Matched, runs: ResamplingRuns, p: Params, n_layers: int, scope: Scope
) -> Figure:
    """The five effects, one panel per setting, one colour per site."""
    several = scope.n_seeds > 1
    return compare.interval_points(
        effect_table(ratios, p.margin),
        seed_effects(matched, runs) if several else None,
        title=effect_title(ratios, p.margin),
        interval=f"{scope.matched_interval}, paired",
        note=f"{effect_words(ratios)} {scope.note}",
        value_label=f"ratio of FVU at L0 = {p.l0_target:g}",
        reference=(1, "no effect"),
        n_layers=n_layers,
    )


def effect_title(ratios: Effects, margin: float) -> str:
    """What the deficit of the two-term Gated SAE is, and what the suspects do to it."""
    comparisons = {
        name: [x.compare(1, margin) for (_, _, effect), x in ratios.items() if effect == name]
        for name in (DEFICIT, NO_AUXILIARY, NO_RESAMPLING["two_term"])
    }
    if set(comparisons[DEFICIT]) == {"unreachable"}:
        return "No arm can be compared at the L0 asked for"
    if set(comparisons[DEFICIT]) <= {"lower", "equal", "not higher"}:
        return "There is no deficit to explain: Gated is not worse than plain"
    if set(comparisons[DEFICIT]) == {"higher"}:
        return _suspect_title(comparisons)
    harmful = comparisons[DEFICIT].count("higher")
    return f"Gated is worse than plain in {harmful} of {len(comparisons[DEFICIT])} comparisons"


def _suspect_title(comparisons: dict[str, list[str]]) -> str:
    """Which suspect is harmful everywhere, where the deficit is."""
    auxiliary = set(comparisons[NO_AUXILIARY]) == {"higher"}
    resampling = set(comparisons[NO_RESAMPLING["two_term"]]) == {"higher"}
    if auxiliary and resampling:
        return "Gated is worse than plain; both missing parts do harm"
    if auxiliary:
        return "Gated is worse than plain; the missing auxiliary term does harm"
    if resampling:
        return "Gated is worse than plain; missing resampling does harm"
    return "Gated is worse than plain; neither suspect explains it everywhere"


def effect_words(ratios: Effects) -> str:
    """Geometric means over sites of what the two missing parts cost the two-term arm."""
    means = typical(ratios)
    parts = []
    for setting in SETTINGS:
        auxiliary = _ratio(means[setting, NO_AUXILIARY])
        resampling = _ratio(means[setting, NO_RESAMPLING["two_term"]])
        parts.append(f"{auxiliary} and {resampling} ({setting})")
    return (
        "FVU of the two-term Gated SAE over that with the auxiliary term, and over that with "
        f"resampling, geometric mean over sites: {', '.join(parts)}."
    )


def _ratio(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "unreached"
