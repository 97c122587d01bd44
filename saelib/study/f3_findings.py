"""What notebook 05 records: F3a to F3f, each with its numbers and sentence, and the abstract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from saelib.study import f3_causes, f3_dictionary, f3_layers
from saelib.study.estimate import Estimate, over_seeds
from saelib.study.f3_causes import Division
from saelib.study.f3_dictionary import Errors
from saelib.study.f3_ladder import ORIGINAL_ALL, Ladder
from saelib.study.f3_layers import Matched
from saelib.study.f3_sites import Compared, Sweep, collapsed_sites, enumerate_sites
from saelib.study.f3_trap import norm_sentence
from saelib.study.finding import Finding, figure_path
from saelib.study.notebooks import LayerParams
from saelib.study.scope import Scope

ORIGINAL_ORDINARY = "original: FVU, ordinary tokens"
LEFT = "FVU of the deepest site"
RECOVERED = "loss recovered at the deepest site, against mean ablation"
REMOVED = "share of the error that pursuit removes, site {site}"


def _worse(compared: Compared) -> str:
    return f"site {compared.deep} is rebuilt worse than {enumerate_sites(compared.shallow)}"


def _ratios(name: str, ratios: Mapping[int, Estimate]) -> dict[str, Estimate]:
    """Named ratios of the deepest site to the others, that to the nearest first."""
    return {f"{name}, deepest site over site {site}": ratios[site] for site in sorted(ratios)[::-1]}


def _ratio_words(ratios: Mapping[int, Estimate]) -> str:
    texts = [f"{x.text()} times site {site}'s" for site, x in ratios.items() if x.defined]
    return "; ".join(texts) or "L0 not reached"


def _tail(scope: Scope) -> str:
    return f"{scope.interval}, plain SAE, {scope.trainings}."


# As reported, and fairly


def as_reported(
    ladder: Ladder, original: pd.DataFrame, trap: pd.DataFrame, p: LayerParams, scope: Scope
) -> Finding:
    """F3a: the original recipe by FVU over all tokens.

    original: its results by site; trap: `f3_trap.class_table`.
    """
    compared = ladder.compared
    deep = compared.deep
    all_tokens = _by_site(ladder, ORIGINAL_ALL)
    collapsed = collapsed_sites(original)
    verdict = f3_layers.decide_worse(
        list(all_tokens.values()), p.margin, scope.n_seeds, scope.n_pages, collapsed
    )
    sentence = (
        f"All-token FVU of site {deep}: {_ratio_words(all_tokens)}. Ordinary tokens: "
        f"{_ratio_words(_by_site(ladder, ORIGINAL_ORDINARY))}. L0 by site: "
        f"{', '.join(f'{l0:.3g}' for l0 in original['l0'])}. {norm_sentence(trap)} {_tail(scope)}"
    )
    if collapsed:
        sentence = f"{collapse_words(collapsed)} {sentence}"
    return Finding(
        name="F3a",
        claim=f3_layers.CLAIM_A.format(worse=_worse(compared)),
        rule=f3_layers.RULE_A.format(margin=p.margin),
        verdict=verdict,
        estimates=_ratios(ORIGINAL_ALL, all_tokens),
        sentence=sentence,
        section="Verdicts on the yardsticks",
        figure=figure_path(p.profile, "05_reconstruction_by_class"),
    )


def collapse_words(sites: Sequence[int]) -> str:
    """Why the original recipe cannot be judged."""
    return (
        f"Not judged: at {enumerate_sites(sites)} the original recipe's SAEs have collapsed, with "
        "under one active latent per token; its L1 coefficient is too large for this model's "
        "stream."
    )


def _by_site(ladder: Ladder, name: str) -> dict[int, Estimate]:
    compared = ladder.compared
    step = ladder.steps[name]
    return dict(zip(compared.shallow, step.ratios(compared), strict=True))


def at_matched_l0(matched: Matched, p: LayerParams, scope: Scope) -> Finding:
    """F3b: the normalised recipe on ordinary tokens at one L0."""
    compared = matched.compared
    l0 = matched.l0_target
    ratios = {site: matched.ratio("plain", site, l0) for site in compared.shallow}
    pca = matched.pca[compared.deep, l0] / matched.pca[compared.near, l0]
    return Finding(
        name="F3b",
        claim=f3_layers.CLAIM_B.format(worse=_worse(compared)),
        rule=f3_layers.RULE_WORSE.format(margin=p.margin),
        verdict=f3_layers.decide_worse(
            list(ratios.values()), p.margin, scope.n_seeds, scope.n_pages
        ),
        estimates=_ratios(f"normalised: FVU at L0 = {l0:g}", ratios),
        sentence=(
            f"FVU of site {compared.deep} at L0 = {l0:g}: {_ratio_words(ratios)}. PCA of that "
            f"rank: {pca:.3g} times site {compared.near}'s. {_tail(scope)}"
        ),
        section="Verdicts on the yardsticks",
        figure=figure_path(p.profile, "05_matched_l0"),
    )


def does_not_train(matched: Matched, sweep: Sweep, p: LayerParams, scope: Scope) -> Finding:
    """F3c: the deepest site's plain SAE at one L0, by variance and by loss."""
    deep = matched.compared.deep
    l0 = matched.l0_target
    left = matched.plain(deep)
    curves = sweep.by_seed("plain", deep)
    recovered = over_seeds([curve.samples_at_l0(l0, "loss_recovered_mean") for curve in curves])
    n_loss = pages_with_loss(sweep, deep)
    verdict = f3_layers.decide_untrained(left, recovered, scope.n_seeds, min(scope.n_pages, n_loss))
    return Finding(
        name="F3c",
        claim=f3_layers.CLAIM_C.format(deep=deep),
        rule=f3_layers.RULE_C.format(l0=l0),
        verdict=verdict,
        estimates={LEFT: left, RECOVERED: recovered},
        sentence=(
            f"At L0 = {l0:g}: FVU {left.text('.2f')}; {loss_words(left, recovered, n_loss)}. "
            f"{_tail(scope)}"
        ),
        section="Verdicts on the yardsticks",
        figure=figure_path(p.profile, "05_trade_off_with_pca"),
    )


def pages_with_loss(sweep: Sweep, site: int) -> int:
    """Test pages on which the plain SAE's next-token loss was measured."""
    curve = sweep.by_seed("plain", site)[0]
    return int((curve.pages(curve.rows["run_id"].iloc[0])["ce_n"] > 0).sum())


def loss_words(left: Estimate, recovered: Estimate, n_pages: int) -> str:
    """Loss recovered in words, also where there is none or more than all of it."""
    if not recovered.defined:
        reason = "mean ablation costs too little loss" if left.defined else "L0 not reached"
        return f"loss recovered against mean ablation is undefined ({reason})"
    words = f"loss recovered against mean ablation {recovered.text('.2f')} (of {n_pages} pages)"
    if recovered.lo > 1:
        words += ", above 1: the model predicts these texts better with the SAE in place"
    return words


def yardsticks(
    ladder: Ladder,
    matched: Matched,
    sweep: Sweep,
    original: pd.DataFrame,
    trap: pd.DataFrame,
    p: LayerParams,
    scope: Scope,
) -> list[Finding]:
    """F3a to F3c."""
    return [
        as_reported(ladder, original, trap, p, scope),
        at_matched_l0(matched, p, scope),
        does_not_train(matched, sweep, p, scope),
    ]


# Causes


def causes(division: Division, trained: f3_causes.Trained, p: LayerParams, scope: Scope) -> Finding:
    """F3f: do four causes make the deepest site look worse than it is? `scope`: of these SAEs."""
    compared = division.compared
    near, deep = compared.pair
    collapsed = f3_causes.collapsed(trained)
    before = division.before
    after = division.after
    steps = {f3_causes.ESTIMATES[name]: x for name, x in division.steps().items()}
    estimates = {"fall of the gap in log FVU, all four removed": before - after} | steps
    return Finding(
        name="F3f",
        claim=f3_causes.CLAIM.format(deep=deep, near=near),
        rule=f3_causes.RULE.format(margin=p.margin),
        verdict=f3_causes.decide(before, after, p.margin, scope.n_seeds, scope.n_pages, collapsed),
        estimates=estimates,
        sentence=f3_causes.sentence(division, collapsed),
        section="Verdict on the causes",
        figure=figure_path(p.profile, "05_causes"),
    )


# Dictionary or encoder


def dictionary(errors: Errors, p: LayerParams, scope: Scope) -> list[Finding]:
    """F3d and F3e; `scope`: of the SAEs whose codes are searched."""
    return [_no_dictionary(errors, p, scope), _encoder_fails(errors, p, scope)]


def _no_dictionary(errors: Errors, p: LayerParams, scope: Scope) -> Finding:
    deep = errors.compared.deep
    ratios = f3_dictionary.over_pca(errors, p)
    sites = sorted(errors.sites, reverse=True)
    estimates = {f"FVU of pursuit, site {site}": errors.fvu(site, "pursuit") for site in sites}
    return Finding(
        name="F3d",
        claim=f3_dictionary.CLAIM_D.format(deep=deep),
        rule=f3_dictionary.RULE_D,
        verdict=f3_dictionary.decide_dictionary(ratios, scope.n_seeds, scope.n_pages),
        estimates=estimates,
        sentence=f3_dictionary.sentence_dictionary(errors, p, scope),
        section="Verdicts on dictionary and encoder",
        figure=figure_path(p.profile, "05_items_or_selection"),
    )


def _encoder_fails(errors: Errors, p: LayerParams, scope: Scope) -> Finding:
    compared = errors.compared
    differences = f3_dictionary.removed_differences(errors)
    removed = errors.removed_by_site()
    shallow = enumerate_sites(compared.shallow)
    return Finding(
        name="F3e",
        claim=f3_dictionary.CLAIM_E.format(deep=compared.deep, shallow=shallow),
        rule=f3_dictionary.RULE_E.format(margin=p.margin),
        verdict=f3_dictionary.decide_encoder(differences, p.margin, scope.n_seeds, scope.n_pages),
        estimates={REMOVED.format(site=s): removed[s] for s in sorted(removed, reverse=True)},
        sentence=f3_dictionary.sentence_encoder(errors, p, scope),
        section="Verdicts on dictionary and encoder",
        figure=figure_path(p.profile, "05_items_or_selection"),
    )


# The abstract


def abstract(division: Division, matched: Matched, errors: Errors) -> str:
    """Two sentences for the report's abstract; empty where one of their numbers is missing."""
    near, deep = division.compared.pair
    fair = matched.ratio("plain", near, matched.l0_target)
    removed = errors.removed_by_site()
    numbers = [division.before.value, division.after.value, fair.value]
    if not (removed and np.isfinite(numbers).all()):
        return ""
    shares = ", ".join(f"{x.value:.0%} at site {site}" for site, x in removed.items())
    return (
        f"Under the original recipe site {deep} has {division.before.exp().text('.2f')} times the "
        f"FVU of site {near} on ordinary tokens; with sinks, mean, scale and sparsity out of the "
        f"way it has {division.after.exp().text('.2f')} times as much, and "
        f"{fair.text('.2f')} times after longer training. With the dictionary fixed, better codes "
        f"would remove at least {shares} of the error: the rest is at most the dictionary's."
    )
