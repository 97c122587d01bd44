"""F2 and F2f as they are recorded: claims, rules, verdicts, sentences, and the abstract's part.

What is trained and how the effects are computed is the subject of `f2_resampling`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from saelib.study import finding as records
from saelib.study.estimate import Estimate
from saelib.study.f2_resampling import (
    DEFICIT,
    GATED,
    NO_AUXILIARY,
    NO_RESAMPLING,
    NOTEBOOK,
    SETTINGS,
    Effects,
    Params,
    typical,
)
from saelib.study.finding import Finding, Verdict, enough, figure_path, majority
from saelib.study.scope import Scope

ALIVE_SHARE = 0.01  # of the latents revived, from which on a combination says something of it
NAMES = {  # effects -> names of estimates
    DEFICIT: "deficit (FVU of two-term over plain)",
    NO_RESAMPLING["two_term"]: "FVU not resampled over resampled, two-term",
    NO_RESAMPLING["full"]: "FVU not resampled over resampled, full",
}
HARMLESS = {"lower", "equal", "not higher"}

CLAIM = "The Gated SAE is worse than the plain one, because neurons were not resampled."
RULE = (
    "Per setting and site the claim holds where both effects, the deficit of the two-term Gated "
    "SAE and its lack of resampling, are harmful: their paired 95 % intervals lie above 1 + margin "
    "({margin:g}). It fails where either is harmless: its interval lies below that. Supported if "
    "it holds in most, contradicted if it fails in most; else undecided, as it is with fewer than "
    "three seeds or 15 test pages."
)
CLAIM_HELPS = "Where latents die, resampling makes the Gated SAE better."
RULE_HELPS = (
    "Counted are settings, sites and Gated arms in which at least one latent in a hundred was "
    "revived in the run nearest to the L0. Supported if lacking resampling is harmful in most, "
    "contradicted if harmless in most; else undecided, as it is with fewer than three seeds or 15 "
    "test pages, or where no combination had as many revived."
)


def decide(
    pairs: Iterable[tuple[Estimate, Estimate]], margin: float, n_seeds: int, n_pages: int
) -> Verdict:
    """F2 from pairs (deficit, no resampling) of the two-term arm per setting and site (`RULE`)."""
    if not enough(n_seeds, n_pages):
        return "undecided"
    cases = [_both_harmful([x.compare(1, margin) for x in pair]) for pair in pairs]
    return majority(cases, {"holds"}, {"fails"})


def _both_harmful(comparisons: Sequence[str]) -> str:
    if set(comparisons) == {"higher"}:
        return "holds"
    return "fails" if HARMLESS.intersection(comparisons) else "unclear"


def decide_helps(cases: Sequence[Estimate], margin: float, n_seeds: int, n_pages: int) -> Verdict:
    """F2f from the effects of lacking resampling where latents were revived (`RULE_HELPS`)."""
    if not enough(n_seeds, n_pages):
        return "undecided"
    return majority([x.compare(1, margin) for x in cases], {"higher"}, HARMLESS)


def finding(ratios: Effects, p: Params, scope: Scope) -> Finding:
    """F2."""
    names = (DEFICIT, NO_RESAMPLING["two_term"])
    keys = list(dict.fromkeys((setting, site) for setting, site, _ in ratios))
    pairs = [tuple(ratios[*key, name] for name in names) for key in keys]
    return Finding(
        name="F2",
        claim=CLAIM,
        rule=RULE.format(margin=p.margin),
        verdict=decide(pairs, p.margin, scope.n_seeds, scope.n_pages),
        estimates={
            f"{NAMES[name]}, {setting}, site {site}": ratios[setting, site, name]
            for name in names
            for setting, site in keys
        },
        sentence=sentence(ratios, p.l0_target, scope),
        section="Verdict",
        figure=figure_path(p.profile, "04_effect"),
    )


def sentence(ratios: Effects, l0: float, scope: Scope) -> str:
    """Deficit and lack of resampling of the two-term arm in words."""
    return (
        f"FVU at L0 = {l0:g}, two-term not resampled over plain: {_by_setting(ratios, DEFICIT)}. "
        f"Not resampled over resampled: {_by_setting(ratios, NO_RESAMPLING['two_term'])}. "
        f"{scope.interval}, {scope.trainings}."
    )


def _by_setting(ratios: Effects, effect: str) -> str:
    parts = [
        f"{setting}, site {site} {ratio.text('.2f', 'unreachable')}"
        for (setting, site, name), ratio in ratios.items()
        if name == effect
    ]
    return "; ".join(parts)


def finding_helps(
    ratios: Effects, revived: Mapping[tuple[str, str, int], float], p: Params, scope: Scope
) -> Finding:
    """F2f; revived: mean latents revived near the L0, by (setting, arm, site)."""
    active = [
        (setting, site, NO_RESAMPLING[arm])
        for setting in SETTINGS
        for arm in GATED
        for site in dict.fromkeys(site for _, site, _ in ratios)
        if revived[setting, arm, site] >= ALIVE_SHARE * p.n_latents
    ]
    cases = {key: ratios[key] for key in active}
    return Finding(
        name="F2f",
        claim=CLAIM_HELPS,
        rule=RULE_HELPS,
        verdict=decide_helps(list(cases.values()), p.margin, scope.n_seeds, scope.n_pages),
        estimates={
            f"{NAMES[effect]}, {setting}, site {site}": ratio
            for (setting, site, effect), ratio in cases.items()
        },
        sentence=sentence_helps(cases, p.l0_target, scope),
        section="Verdict",
        figure=figure_path(p.profile, "04_effect"),
    )


def sentence_helps(cases: Effects, l0: float, scope: Scope) -> str:
    """The effects of lacking resampling where latents were revived, in words."""
    arms = {name: arm.replace("_", "-") for arm, name in NO_RESAMPLING.items()}
    parts = [
        f"{arms[effect]}, {setting}, site {site} {ratio.text('.2f', 'unreachable')}"
        for (setting, site, effect), ratio in cases.items()
    ]
    if not parts:
        return f"No Gated SAE near L0 = {l0:g} had 1 % of its latents revived: none counts."
    return (
        f"FVU at L0 = {l0:g}, not resampled over resampled, where 1 % or more were revived: "
        f"{'; '.join(parts)}. {scope.interval}, {scope.trainings}."
    )


def abstract(ratios: Effects, verdict: str) -> str | None:
    """What the report's abstract says; None where an L0 is not reached."""
    means = typical(ratios)
    auxiliary = [means[setting, NO_AUXILIARY] for setting in SETTINGS]
    resampling = [means[setting, NO_RESAMPLING["two_term"]] for setting in SETTINGS]
    if not np.isfinite([*auxiliary, *resampling]).all():
        return None
    return (
        f"Of the two suspects: without the auxiliary term its FVU is {auxiliary[0]:.2f} times that "
        f"with it in the normal recipe and {auxiliary[1]:.2f} times with large, unclipped steps; "
        f"without resampling {resampling[0]:.2f} and {resampling[1]:.2f} times (F2: {verdict})."
    )


def record_abstract(profile: str, ratios: Effects, verdict: str) -> None:
    """Record the abstract where every L0 it speaks of is reached."""
    text = abstract(ratios, verdict)
    if text:
        records.record_abstract(profile, NOTEBOOK, text)
