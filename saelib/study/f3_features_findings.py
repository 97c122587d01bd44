"""What notebook 06 shows and records of F3g: figures, six latents, the finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saelib.measure.features import FeatureIndex
from saelib.show import features
from saelib.show.explore.records import context_view, reference_activation
from saelib.study import finding
from saelib.study.estimate import Estimate
from saelib.study.f3_features import (
    CLAIM,
    LEAST_FIRINGS,
    LEAST_JUDGED,
    PLACES,
    RULE,
    TWIN,
    Cell,
    Looked,
    decide,
)
from saelib.study.f3_sites import enumerate_sites
from saelib.study.finding import Finding, figure_path
from saelib.study.finding_params import FeatureParams as Params
from saelib.study.scope import Scope

SIX = 6
SIX_FEATURES = "06_six_features"  # table and figure of them
CONTEXTS = 2  # shown of each of them
AROUND = 14  # tokens either side of the peak
LEAST_TYPES = 3.0  # token types that one of the six fires on, so that it is no single word
LETTERS = 3  # of each of its token types
OFTEN = 20  # test firings of one of the six, at least
WORDS = {"token": "fires on", "next": "fires before", "before": "fires after"}
SIX_COLUMNS = (
    *("site", "latent", "description", "density", "share_held", "title", "before", "peak"),
    *("after", "promoted"),
)


# -- figures ---------------------------------------------------------------------------------------


def kinds_figure(kinds: pd.DataFrame, totals: pd.DataFrame, p: Params, scope: Scope) -> Figure:
    """Living latents by what describes them, beside the share of the judged ones."""
    note = (
        f"SAEs at L0 = {p.l0_target:g}. Bars: all living latents, described by three token types "
        "at one place, which hold at least half of the activation mass. Points: of the latents "
        f"that fire at least {LEAST_FIRINGS} times, {scope.interval}. {scope.note}"
    )
    return features.kinds_of_latents(kinds, totals, title=kinds_title(totals), note=note)


def kinds_title(totals: pd.DataFrame) -> str:
    """The plain SAE's shares from the shallowest to the deepest site."""
    plain = totals[(totals["arm"] == "plain") & totals["share"].notna()].sort_values("site")
    if plain.empty:
        return "No plain SAE at that L0 has enough latents to judge"
    shares = ", ".join(f"{100 * share:.0f} %" for share in plain["share"])
    sites = enumerate_sites(plain["site"].tolist())
    word = "sites" if len(plain) > 1 else "site"
    return f"{shares} of judged latents look like one thing, {word} {sites}"


def again_figure(again: pd.DataFrame, p: Params, scope: Scope) -> Figure:
    """Share of latents that other trainings have too."""
    seeds = "" if (again["in"] == "another seed").any() else " With one seed there is no other."
    note = (
        f"The plain SAE's latents, at L0 = {p.l0_target:g}: found again where a decoder row of "
        f"the other SAE has cosine {TWIN:g} or more. The Gated SAE is of the same seed and began "
        f"from the same decoder: only another seed is evidence.{seeds} "
        f"{describable(again)}{scope.note}"
    )
    return features.found_again(again, title=again_title(again), note=note)


def describable(again: pd.DataFrame) -> str:
    """How often latents are found again that look like one thing, and others, by site, in words.

    Empty where no latent was judged.
    """
    kind = _judging(again)
    where = _named(kind)
    means = again[again["in"] == kind].groupby("site")[["of_one_thing", "of_others"]].mean()
    means = means.dropna()
    if means.empty:
        return ""
    texts = [", ".join(f"{100 * share:.0f} %" for share in means[name]) for name in means]
    sites = f"site{'s' * (len(means) > 1)} {enumerate_sites(means.index.tolist())}"
    return (
        f"In {where} ({sites}), of latents that look like one "
        f"thing {texts[0]} are found again, of the other judged ones {texts[1]}. "
    )


def _judging(again: pd.DataFrame) -> str:
    """Another seed where there is one, else what the latents were compared with; "" for nothing."""
    kinds = again.dropna(subset=["share"])["in"].tolist()
    return "another seed" if "another seed" in kinds else next(iter(kinds), "")


def _named(kind: str) -> str:
    return "another seed" if kind == "another seed" else "the same seed's Gated SAE"


def again_title(again: pd.DataFrame) -> str:
    """Mean share at the shallowest and the deepest site, by other seeds where there are."""
    kind = _judging(again)
    if not kind:
        return "No latent was judged"
    means = again[again["in"] == kind].groupby("site")["share"].mean().dropna()
    first, last = means.index[0], means.index[-1]
    where = _named(kind)
    if first == last:
        return f"Found again in {where}: {100 * means[first]:.0f} % at site {first}"
    return (
        f"Found again in {where}: {100 * means[first]:.0f} % at site {first}, "
        f"{100 * means[last]:.0f} % at {last}"
    )


# -- six latents -----------------------------------------------------------------------------------


def chosen_latents(
    looks: Mapping[int, Looked],
    indices: Mapping[int, FeatureIndex],
    tokenizer: Any,
    n: int = SIX,
) -> list[tuple[int, int]]:
    """(site, latent): at each site in turn the most telling latent that looks like one thing.

    Taken in turn are those described by the token itself and those described by a neighbour, by
    share held · ln(1 / density). They fire on at least `OFTEN` test tokens and on `LEAST_TYPES`
    token types, and their description is of words: each type has `LETTERS` letters or more.
    """
    ranked = {site: _ranked(looks[site], indices[site], tokenizer) for site in looks}
    chosen: list[tuple[int, int]] = []
    rounds = max((len(ranks[0]) + len(ranks[1]) for ranks in ranked.values()), default=0)
    for turn in range(rounds):
        for site, ranks in ranked.items():
            queue = ranks[turn % 2] or ranks[1 - turn % 2]
            if queue and len(chosen) < n:
                chosen.append((site, queue.pop(0)))
    return sorted(chosen)


def _ranked(looked: Looked, index: FeatureIndex, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Latents that fit, best first: by the token itself, and by a neighbour."""
    shares = looked.shares()
    table = index.table
    fits = (
        looked.fits()
        & (table["n_types"] >= LEAST_TYPES).to_numpy()
        & (table["n_fired"] >= OFTEN).to_numpy()
    )
    fits &= [
        fit and _is_of_words(types, tokenizer)
        for fit, types in zip(fits, looked.description.types, strict=True)
    ]
    rarity = -np.log(table["density"].clip(lower=1e-9).to_numpy())
    order = np.argsort(-np.nan_to_num(shares) * rarity, kind="stable")
    by_token = looked.description.place == list(PLACES).index("token")
    return (
        [int(latent) for latent in order if fits[latent] and by_token[latent]],
        [int(latent) for latent in order if fits[latent] and not by_token[latent]],
    )


def _is_of_words(types: np.ndarray, tokenizer: Any) -> bool:
    """Whether each token type of a description has `LETTERS` letters or more."""
    texts = [tokenizer.decode([token]) if token >= 0 else "" for token in types.tolist()]
    return all(sum(map(str.isalpha, text)) >= LETTERS for text in texts)


def in_words(looked: Looked, latent: int, tokenizer: Any) -> str:
    """ "fires on ‘1945’, ‘1939’, ‘1918’": the description of a latent."""
    place = list(PLACES)[looked.description.place[latent]]
    types = [token for token in looked.description.types[latent].tolist() if token >= -1]
    return f"{WORDS[place]} {', '.join(_quoted(token, tokenizer) for token in types)}"


def _quoted(token: int, tokenizer: Any) -> str:
    if token < 0:
        return "the context's end"
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return f"‘{text.strip() or text}’".replace("\n", "↵")


def six_figure(
    chosen: Sequence[tuple[int, int]],
    looks: Mapping[int, Looked],
    indices: Mapping[int, FeatureIndex],
    tokenizer: Any,
    scope: Scope,
) -> Figure:
    """The chosen latents as text, two contexts each."""
    shown = []
    reference = {}
    for site, latent in chosen:
        card = _card(site, latent, looks[site], indices[site], tokenizer)
        shown.append(card)
        reference[card.heading] = reference_activation(indices[site])
    sites = enumerate_sites(sorted({site for site, _ in chosen}))
    title = f"{len(shown)} latents that look like one thing" + (f", sites {sites}" if sites else "")
    note = (
        "Plain SAEs. Chosen by rule, not by eye: at each site those of largest share held · "
        "ln(1 / density) that are described by words, by the token itself and by a neighbour in "
        f"turn, and fire on {LEAST_TYPES:g} token types or more. Full colour: the median of the "
        f"SAE's latents' largest activations. {scope.model}."
    )
    return features.cards(shown, reference, title=title, note=note)


def _card(
    site: int, latent: int, looked: Looked, index: FeatureIndex, tokenizer: Any
) -> features.Card:
    line = index.table.loc[latent]
    facts = f"fires on {100 * line['density']:.2g} % of tokens; description holds "
    facts += f"{100 * looked.shares()[latent]:.0f} % of its activation"
    if line["promoted"]:
        facts += f"; promotes ‘{line['promoted'].strip()}’"
    contexts = [_around(view) for view in _views(index, latent, tokenizer)]
    heading = f"site {site}, latent {latent}: {in_words(looked, latent, tokenizer)}"
    return features.Card(heading, facts, contexts)


def _views(index: FeatureIndex, latent: int, tokenizer: Any) -> list[dict[str, Any]]:
    """The strongest contexts, pages before contexts: two of one page come last."""
    views = [context_view(window, tokenizer) for window in index.contexts(latent, "top")]
    firsts = {view["title"]: n for n, view in reversed(list(enumerate(views)))}
    order = sorted(range(len(views)), key=lambda n: (firsts[views[n]["title"]] != n, n))
    return [views[n] for n in order[:CONTEXTS]]


def _around(view: Mapping[str, Any]) -> tuple[list[str], list[float | None], int]:
    first = max(0, view["peak"] - AROUND)
    stop = view["peak"] + AROUND + 1
    return view["tokens"][first:stop], view["activations"][first:stop], view["peak"] - first


def six_table(
    chosen: Sequence[tuple[int, int]],
    looks: Mapping[int, Looked],
    indices: Mapping[int, FeatureIndex],
    tokenizer: Any,
) -> pd.DataFrame:
    """The chosen latents, one row each, for the report's first page: `SIX_COLUMNS`."""
    rows = []
    for site, latent in chosen:
        line = indices[site].table.loc[latent]
        view = _views(indices[site], latent, tokenizer)[0]
        tokens, _, peak = _around(view)
        texts = ("".join(tokens[:peak]), tokens[peak], "".join(tokens[peak + 1 :]))
        share = float(looks[site].shares()[latent])
        words = in_words(looks[site], latent, tokenizer)
        numbers = (float(line["density"]), share)
        rows.append((site, latent, words, *numbers, view["title"], *texts, line["promoted"]))
    return pd.DataFrame(rows, columns=list(SIX_COLUMNS))


# -- the finding -----------------------------------------------------------------------------------


def rule(p: Params) -> str:
    """The rule of F3g with its numbers."""
    return RULE.format(margin=p.feature_margin, l0=p.l0_target)


def one_thing(
    shares: Mapping[Cell, Estimate],
    changes: Mapping[int, Estimate],
    chance: Mapping[Cell, float],
    p: Params,
    scope: Scope,
    deep: int,
) -> Finding:
    """F3g as it is recorded."""
    named = {
        f"share at site {deep} less that at {site}": change for site, change in changes.items()
    }
    plain = {site: share for (arm, site), share in sorted(shares.items()) if arm == "plain"}
    few = f"fewer than {LEAST_JUDGED} latents judged"
    words = "; ".join(f"site {site} {share.text('.2f', few)}" for site, share in plain.items())
    lost = [chance["plain", site] for site in plain if plain[site].defined]
    sentence = (
        f"Share of the plain SAE's judged latents that look like one thing at L0 = "
        f"{p.l0_target:g}: {words or 'no site has that L0'}. "
        f"{f'On shuffled tokens at most {max(lost):.2g}. ' if lost else ''}"
        f"{scope.trainings}, {scope.n_pages} test pages."
    )
    return Finding(
        name="F3g",
        claim=CLAIM.format(deep=deep),
        rule=rule(p),
        verdict=decide(changes, p.feature_margin, scope.n_seeds, scope.n_pages),
        estimates=named,
        sentence=sentence,
        section="Do fewer latents of a deep site look like one thing?",
        figure=figure_path(p.profile, "06_one_thing"),
    )


def record_six(profile: str, table: pd.DataFrame) -> Path:
    """Keep the six latents for the report."""
    return finding.record_table(profile, SIX_FEATURES, table)
