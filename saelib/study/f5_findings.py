"""F5a to F5f: what papers claim of the architectures, as far as it can be judged here.

Each claim has its rule, stated before the run, and is decided from ratios of FVU at equal L0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from saelib.study import finding
from saelib.study.estimate import Estimate, undefined
from saelib.study.f5_architectures import (
    ARMS,
    NAMES,
    NOTEBOOK,
    ArchitectureRuns,
    Cell,
    Matched,
    Params,
    best_arm,
    leaders,
    middle_gaps,
)
from saelib.study.f5_items import Items
from saelib.study.finding import Check, Finding, Verdict, at_least, enough, figure_path, majority
from saelib.study.scope import Scope, interval_words, sites_label

ENOUGH = "undecided else, and with fewer than three seeds or 15 test pages."
CLAIM_HALF = "A Gated SAE rebuilds as much as a plain one with half the active latents."
RULE_HALF = (
    "Per site and L0, the ratio is the Gated SAE's FVU at half that L0 over the plain SAE's at it. "
    "Supported if the whole 95 % interval lies below 1 + {margin:g} in most cells, contradicted if "
    "it lies above in most; " + ENOUGH
)
CLAIM_BATCH = "BatchTopK rebuilds more than TopK at equal L0."
CLAIM_LEVEL = "JumpReLU and Gated SAEs rebuild equally much at equal L0."
RULE_LEVEL = (
    "Supported if the whole 95 % interval of JumpReLU's FVU over the Gated SAE's lies within "
    "1 ± {margin:g} in most cells, contradicted if it lies outside in most; " + ENOUGH
)
CLAIM_COST = "Matryoshka's nested dictionaries cost reconstruction, beside BatchTopK."
RULE_COST = (
    "Supported if the whole 95 % interval of Matryoshka's FVU over BatchTopK's lies above "
    "1 + {margin:g} in most cells, contradicted if it lies below that in most; " + ENOUGH
)
RULE_BATCH = (
    "Supported if the whole 95 % interval of BatchTopK's FVU over TopK's lies below 1 − {margin:g} "
    "in most cells, contradicted if it lies above that in most; " + ENOUGH
)
CLAIM_DEPTH = "Another architecture closes the gap that the plain SAE has between sites."
RULE_DEPTH = (
    "The gap is the FVU of the deepest site over that of the site before it, at the middle L0. "
    "Supported if the plain SAE's whole 95 % interval lies above 1 + {margin:g} and some other "
    "architecture's below, contradicted if that of each lies above; undecided else, with one site, "
    "and with fewer than three seeds or 15 test pages."
)
CLAIM_ITEMS = "The architecture that rebuilds most has a better dictionary than the plain SAE."
RULE_ITEMS = (
    "The best architecture is chosen on validation pages. Codes are chosen by pursuit over its "
    "dictionary and over the plain SAE's, as many as the plain SAE's encoder used; the ratio is of "
    "their FVU, per site. Supported if the whole 95 % interval lies below 1 − {margin:g} at most "
    "sites, contradicted if it lies above that at most; undecided else, where the plain SAE is "
    "the best or does not have the L0 at every site, and with fewer than three seeds or 15 test "
    "pages."
)


# -- cases -------------------------------------------------------------------------------------


def half_cases(matched: Matched) -> dict[tuple[int, float], Estimate]:
    """FVU of the Gated SAE at half an L0 over the plain SAE's at it, by (site, L0)."""
    return {
        (site, l0): (
            matched.log_fvu["full", site, l0 / 2] - matched.log_fvu["plain", site, l0]
        ).exp()
        for site, l0 in matched.places
        if l0 / 2 in matched.l0s
    }


def pair_cases(matched: Matched, arm: str, against: str) -> dict[tuple[int, float], Estimate]:
    """FVU of one arm over another's at equal L0, by (site, L0)."""
    return {(site, l0): matched.ratio(arm, against, site, l0) for site, l0 in matched.places}


def item_cases(items: Items, arm: str | None, sites: Sequence[int]) -> dict[int, Estimate]:
    """FVU of pursuit over an arm's dictionary over that of the plain SAE's, by site.

    Undefined at a site where one of them does not have the L0.
    """
    if arm is None:
        return {}
    cases = {}
    for site in sites:
        known = items.has(arm, site) and items.has("plain", site)
        cases[site] = items.ratio(arm, "plain", site, "pursuit") if known else undefined()
    return cases


# -- verdicts ----------------------------------------------------------------------------------

BELOW = {"lower", "equal", "not higher"}  # of 1 ± margin: the interval lies below 1 + margin
ABOVE = {"higher", "equal", "not lower"}  # it lies above 1 − margin


def decide_half(cases: Sequence[Estimate], margin: float, n_seeds: int, n_pages: int) -> Verdict:
    """Is the Gated SAE with half the latents no worse? By its ratios (`RULE_HALF`)."""
    return _decide(cases, margin, n_seeds, n_pages, BELOW, {"higher"})


def decide_better(cases: Sequence[Estimate], margin: float, n_seeds: int, n_pages: int) -> Verdict:
    """Does the first leave less than the second, by more than the margin? (`RULE_BATCH`)"""
    return _decide(cases, margin, n_seeds, n_pages, {"lower"}, ABOVE)


def decide_level(cases: Sequence[Estimate], margin: float, n_seeds: int, n_pages: int) -> Verdict:
    """Are the two equal up to the margin? (`RULE_LEVEL`)"""
    return _decide(cases, margin, n_seeds, n_pages, {"equal"}, {"lower", "higher"})


def decide_cost(cases: Sequence[Estimate], margin: float, n_seeds: int, n_pages: int) -> Verdict:
    """Does the first leave more than the second, by more than the margin? (`RULE_COST`)"""
    return _decide(cases, margin, n_seeds, n_pages, {"higher"}, BELOW)


def _decide(
    cases: Sequence[Estimate],
    margin: float,
    n_seeds: int,
    n_pages: int,
    yes: set[str],
    no: set[str],
) -> Verdict:
    if not enough(n_seeds, n_pages) or not cases:
        return "undecided"
    return majority([case.compare(1, margin) for case in cases], yes, no)


def decide_depth(gap: Mapping[str, Estimate], margin: float, n_seeds: int, n_pages: int) -> Verdict:
    """Does one architecture close the plain SAE's gap between sites? gap: by arm (`RULE_DEPTH`)."""
    if not enough(n_seeds, n_pages) or not gap:
        return "undecided"
    words = {arm: x.compare(1, margin) for arm, x in gap.items()}
    if words.pop("plain") != "higher":  # there is no gap to close
        return "undecided"
    if BELOW & set(words.values()):
        return "supported"
    return "contradicted" if set(words.values()) == {"higher"} else "undecided"


def decide_items(
    cases: Sequence[Estimate], best: str | None, margin: float, n_seeds: int, n_pages: int
) -> Verdict:
    """Is the best architecture's dictionary better than the plain SAE's? (`RULE_ITEMS`)"""
    if best in (None, "plain"):
        return "undecided"
    return decide_better(cases, margin, n_seeds, n_pages)


# -- findings ----------------------------------------------------------------------------------


def findings(
    runs: ArchitectureRuns, matched: Matched, items: Items, p: Params, scope: Scope
) -> list[Finding]:
    """F5a to F5f."""
    size = (p.margin, scope.n_seeds, scope.n_pages)
    half = half_cases(matched)
    told = (matched, p, scope)
    best = best_arm(runs, matched.middle_l0)
    of_items = item_cases(items, best, matched.sites)
    sized = (p.margin, scope.n_seeds, items.n_pages)
    gap = middle_gaps(matched)
    return [
        _finding(
            "F5a",
            CLAIM_HALF,
            RULE_HALF,
            decide_half(list(half.values()), *size),
            _named(half, "Gated at half the L0 over plain"),
            half_sentence(half, scope),
            p,
        ),
        _pair_finding("F5b", CLAIM_BATCH, RULE_BATCH, decide_better, ("batchtopk", "topk"), *told),
        _pair_finding("F5c", CLAIM_LEVEL, RULE_LEVEL, decide_level, ("jumprelu", "full"), *told),
        _pair_finding(
            "F5d", CLAIM_COST, RULE_COST, decide_cost, ("matryoshka", "batchtopk"), *told
        ),
        _finding(
            "F5e",
            CLAIM_DEPTH,
            RULE_DEPTH,
            decide_depth(gap, *size),
            {f"deepest over the site before, {NAMES[arm]}": x for arm, x in gap.items()},
            depth_sentence(gap, matched, scope),
            p,
            "07_gap",
        ),
        _finding(
            "F5f",
            CLAIM_ITEMS,
            RULE_ITEMS,
            decide_items(list(of_items.values()), best, *sized),
            {
                f"site {site}, {NAMES[str(best)]} over plain, pursuit": x
                for site, x in of_items.items()
            },
            items_sentence(items, best, matched, scope),
            p,
            "07_items",
        ),
    ]


def _pair_finding(
    name: str,
    claim: str,
    rule: str,
    decide: Callable[..., Verdict],
    arms: tuple[str, str],
    matched: Matched,
    p: Params,
    scope: Scope,
) -> Finding:
    """A claim on two arms at equal L0."""
    cases = pair_cases(matched, *arms)
    first, second = (NAMES[arm] for arm in arms)
    verdict = decide(list(cases.values()), p.margin, scope.n_seeds, scope.n_pages)
    estimates = _named(cases, f"{first} over {second}")
    sentence = pair_sentence(first, second, cases, scope)
    return _finding(name, claim, rule, verdict, estimates, sentence, p)


def _finding(
    name: str,
    claim: str,
    rule: str,
    verdict: Verdict,
    estimates: Mapping[str, Estimate],
    sentence: str,
    p: Params,
    figure: str = "07_ratio",
) -> Finding:
    return Finding(
        name=name,
        claim=claim,
        rule=rule.format(margin=p.margin),
        verdict=verdict,
        estimates=estimates,
        sentence=sentence,
        section="Verdicts",
        figure=figure_path(p.profile, figure),
    )


def _named(cases: Mapping[tuple[int, float], Estimate], what: str) -> dict[str, Estimate]:
    return {f"site {site}, L0 {l0:g}, {what}": x for (site, l0), x in cases.items()}


def half_sentence(cases: Mapping[tuple[int, float], Estimate], scope: Scope) -> str:
    """The ratios of F5a in words."""
    if not cases:
        return "No L0 of the comparison is half of another, so this cannot be judged here."
    return (
        f"FVU of the Gated SAE at half the L0 over that of the plain SAE: {_cell_words(cases)} "
        f"({scope.interval}, {scope.trainings})."
    )


def pair_sentence(
    arm: str, against: str, cases: Mapping[tuple[int, float], Estimate], scope: Scope
) -> str:
    """The ratios of a pair in words."""
    return (
        f"FVU of {arm} over that of {against} at equal L0: {_cell_words(cases)} "
        f"({scope.interval}, {scope.trainings})."
    )


def _cell_words(cases: Mapping[tuple[int, float], Estimate]) -> str:
    """ "site 2: L0 16 0.98 [0.97, 0.99], L0 32 …; site 15: …" """
    by_site: dict[int, list[str]] = {}
    for (site, l0), x in cases.items():
        by_site.setdefault(site, []).append(f"L0 {l0:g} {x.text('.2f', 'not reached')}")
    return "; ".join(f"site {site}: {', '.join(texts)}" for site, texts in by_site.items())


def depth_sentence(gap: Mapping[str, Estimate], matched: Matched, scope: Scope) -> str:
    """The gap between the two deepest sites with each architecture."""
    if not gap:
        return f"One site ({sites_label(matched.sites)}) has no gap to another."
    near, deep = matched.sites[-2:]
    texts = ", ".join(f"{NAMES[arm]} {x.text('.2f', 'not reached')}" for arm, x in gap.items())
    return (
        f"FVU of site {deep} over that of site {near} at L0 = {matched.middle_l0:g}: {texts} "
        f"({scope.interval}, {scope.trainings})."
    )


def items_sentence(items: Items, best: str | None, matched: Matched, scope: Scope) -> str:
    """What the best architecture owes to its dictionary, and what to its encoder."""
    l0 = f"L0 = {matched.middle_l0:g}"
    if best is None:
        return f"The plain SAE does not have {l0} at every site, so nothing is compared with it."
    if best == "plain":
        return f"No architecture leaves less than the plain SAE at {l0} on validation pages."
    sites = [s for s in items.sites if items.has(best, s) and items.has("plain", s)]
    if not sites:
        return f"{NAMES[best]} and the plain SAE do not both reach {l0} at any site."
    texts = [
        f"site {site} {items.ratio(best, 'plain', site, 'encoder').text('.2f')} with the encoders, "
        f"{items.ratio(best, 'plain', site, 'pursuit').text('.2f')} under pursuit"
        for site in sites
    ]
    return (
        f"Near {l0} the FVU of {NAMES[best]}, which leaves least on validation pages, over that of "
        f"the plain SAE: {'; '.join(texts)} "
        f"({interval_words(items.n_pages, scope.n_seeds)}, {scope.trainings})."
    )


def abstract(matched: Matched) -> str | None:
    """What the report's abstract says: who leaves least on test pages, beside the plain SAE.

    None where the plain SAE is among those who do, or does not have the L0 at every site.
    """
    l0 = matched.middle_l0
    arms = leaders(matched)
    compared = [
        arm for arm in ARMS if all(matched.log_fvu[arm, s, l0].defined for s in matched.sites)
    ]
    if not arms or "plain" in arms or "plain" not in compared:
        return None
    leave = "leaves" if len(arms) == 1 else "leave"
    return (
        f"Of {len(compared)} kinds of SAE at L0 {l0:g}, {' and '.join(NAMES[a] for a in arms)} "
        f"{leave} least on test pages: {' and '.join(_shares(matched, a) for a in arms)} times "
        f"the plain SAE's FVU ({sites_label(matched.sites)})."
    )


def _shares(matched: Matched, arm: str) -> str:
    """An arm's FVU over the plain SAE's at the middle L0, site by site."""
    values = (matched.ratio(arm, "plain", site, matched.middle_l0) for site in matched.sites)
    return ", ".join(f"{x.value:.2f}" for x in values)


def record_abstract(profile: str, matched: Matched) -> None:
    """Record the abstract where there is one."""
    text = abstract(matched)
    if text:
        finding.record_abstract(profile, NOTEBOOK, text)


# -- expectations ------------------------------------------------------------------------------


def checks(matched: Matched, ratios: Mapping[Cell, Estimate]) -> list[Check]:
    """What was expected before the run; a failure is a result."""
    l0 = matched.middle_l0
    of_l0 = {(arm, site): x for (arm, site, at), x in ratios.items() if at == l0}
    return [
        (
            _most(of_l0, "full", 1.0),
            f"at L0 {l0:g} the Gated SAE leaves less than the plain one at most sites",
        ),
        (
            _most(of_l0, "p_anneal", 1.0),
            f"at L0 {l0:g} the p-annealed SAE leaves less than the plain one at most sites",
        ),
        (
            _most(of_l0, "batchtopk", 1.0),
            f"at L0 {l0:g} BatchTopK leaves less than the plain SAE at most sites",
        ),
    ]


def _most(of_l0: Mapping[tuple[str, int], Estimate], arm: str, limit: float) -> Any:
    """Whether the ratio is below a limit at most sites, as far as L0 are reached."""
    cases = [
        bool(x.value < limit) if x.defined else None for (a, _), x in of_l0.items() if a == arm
    ]
    return at_least(len(cases) // 2 + 1, cases, "L0 not reached", "sites")
