"""Where the squared norm of a residual stream sits: the tables, messages and checks of notebook 01.

Nothing here assumes that there are sinks, that position 0 is a word, or that a token repeats: each
sentence says what was seen, or that it does not apply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from saelib.activations.store import CLASSES, Store
from saelib.config import SINK_FACTOR
from saelib.measure.geometry import spectrum

MASSIVE = 10.0  # a median norm over so many times the ordinary tokens' is called massive
MOST = 0.8  # of all cases, where a sentence says "most"
FEW = 0.2

Check = tuple[bool | np.bool_, str]

# -- norms by depth


def whole_contexts(contexts: Any, n: int) -> torch.Tensor:
    """Token ids [n, ctx_len] of up to n of the longest contexts, evenly spaced over the text."""
    lengths = np.diff(contexts.offsets)
    longest = np.flatnonzero(lengths == lengths.max())
    places = np.linspace(0, len(longest) - 1, min(n, len(longest))).astype(int)
    return torch.tensor(
        np.stack([contexts.tokens(i) for i in longest[places].tolist()]), dtype=torch.long
    )


def norms(streams: Mapping[int, torch.Tensor]) -> dict[int, np.ndarray]:
    """‖x‖ of each captured token: site -> [contexts, positions]."""
    return {site: x.float().norm(dim=-1).cpu().numpy() for site, x in streams.items()}


def by_depth(norm: Mapping[int, np.ndarray]) -> pd.DataFrame:
    """Quantiles of first and of ordinary tokens' norms: site, class, q10, median, q90."""
    rows = []
    for site, values in norm.items():
        later = values[:, 1:].ravel()
        ordinary = later[later <= SINK_FACTOR * np.median(later)]
        for name, chosen in (("first", values[:, 0]), ("ordinary", ordinary)):
            rows.append((site, name, *np.quantile(chosen, [0.1, 0.5, 0.9])))
    return pd.DataFrame(rows, columns=["site", "class", "q10", "median", "q90"])


def medians(depth: pd.DataFrame) -> pd.DataFrame:
    """Median norm by site, one column per class."""
    return depth.pivot(index="site", columns="class", values="median")


def growth(depth: pd.DataFrame, sites: Sequence[int]) -> float:
    """How many times the ordinary median norm at the first of `sites` the last one's is."""
    ordinary = medians(depth)["ordinary"]
    return float(ordinary[sites[-1]] / ordinary[sites[0]])


def massive_sites(depth: pd.DataFrame) -> list[int]:
    """Sites at which the first token's median norm is massive."""
    median = medians(depth)
    return [int(s) for s in median.index[median["first"] > MASSIVE * median["ordinary"]]]


def depth_title(depth: pd.DataFrame, sites: Sequence[int]) -> str:
    """The message of the norms by depth, with the sites between which norms grow."""
    times = growth(depth, sites)
    between = f"(sites {sites[0]} to {sites[-1]})"
    change = f"Ordinary norms grow {times:.0f}-fold {between}"
    if times < 2:
        change = f"Ordinary norms hardly grow {between}"
    first = "first tokens are massive" if massive_sites(depth) else "no massive first token"
    return f"{change}; {first}"


def depth_note(depth: pd.DataFrame, sites: Sequence[int], n_contexts: int, label: str) -> str:
    """The caption under it."""
    massive = massive_sites(depth)
    every = sorted(int(site) for site in depth["site"].unique())
    span = ""
    if massive:
        span = f"First tokens are massive at {len(massive)} of the {len(every)} sites drawn: "
        span += f"the shallowest is {massive[0]}, the deepest {massive[-1]}. "
    stored = ", ".join(map(str, sites))
    return (
        f"Growth of the ordinary median: {growth(depth, sites):.3g}-fold from site {sites[0]} to "
        f"{sites[-1]}, the first and last stored one; {growth(depth, every):.3g}-fold from "
        f"{every[0]} to {every[-1]}. {span}"
        f"{n_contexts} contexts as collected; stored sites: {stored}. {label}."
    )


def depth_checks(depth: pd.DataFrame, sites: Sequence[int], middle: int) -> list[Check]:
    """What the later notebooks rest on."""
    median = medians(depth).loc[middle]
    return [
        (
            growth(depth, sites) > 2,
            f"the ordinary norm more than doubles from site {sites[0]} to site {sites[-1]}",
        ),
        (
            median["first"] > MASSIVE * median["ordinary"],
            f"at site {middle} the first token is > {MASSIVE:g} x ordinary",
        ),
    ]


# -- the word at position 0, or the place


@dataclass(frozen=True)
class FirstWords:
    """Norms of the contexts' first words with nothing before them, and after BOS, at one site."""

    site: int
    alone: np.ndarray  # [contexts]
    after_bos: np.ndarray  # [contexts]
    bos: np.ndarray  # [contexts], of BOS itself
    limit: float  # norm above which a token is a sink

    @property
    def n(self) -> int:
        """Contexts."""
        return len(self.alone)

    @property
    def sinks_alone(self) -> int:
        """First words that are sinks with nothing before them."""
        return int((self.alone > self.limit).sum())

    @property
    def sinks_after_bos(self) -> int:
        """First words that are sinks after BOS."""
        return int((self.after_bos > self.limit).sum())


def with_or_without_bos(ids: torch.Tensor, has_bos: bool, bos_id: int) -> torch.Tensor:
    """The same contexts without their BOS, or with one in front."""
    if has_bos:
        return ids[:, 1:]
    return torch.cat([torch.full_like(ids[:, :1], bos_id), ids], dim=1)


def first_words(
    store: Store,
    site: int,
    collected: Mapping[int, np.ndarray],
    rerun: Mapping[int, np.ndarray],
    has_bos: bool,
) -> FirstWords:
    """Compare the contexts as collected with the same ones run again with or without BOS."""
    alone, led = (rerun, collected) if has_bos else (collected, rerun)
    limit = SINK_FACTOR * store.median_norm(site)
    return FirstWords(site, alone[site][:, 0], led[site][:, 1], led[site][:, 0], limit)


def norms_of_first_words(
    sites: Sequence[int],
    collected: Mapping[int, np.ndarray],
    rerun: Mapping[int, np.ndarray],
    has_bos: bool,
) -> pd.DataFrame:
    """Quantiles of the first word's norm: site, variant, q10, median, q90.

    As collected the word stands at position 0, or at 1 behind the tokenizer's own BOS; run again it
    is the other way round.
    """
    place = int(has_bos)
    variants = {
        "as collected": (collected, place),
        "BOS removed" if has_bos else "BOS prepended": (rerun, 1 - place),
    }
    rows = [
        (site, name, *np.quantile(norm[site][:, position], [0.1, 0.5, 0.9]))
        for name, (norm, position) in variants.items()
        for site in sites
    ]
    return pd.DataFrame(rows, columns=["site", "variant", "q10", "median", "q90"])


def first_words_title(first: FirstWords) -> str:
    """Whether the place or the word makes a sink."""
    if first.sinks_alone <= FEW * first.n:
        return "First words are no sinks, with or without BOS"
    if first.sinks_alone > MOST * first.n and first.sinks_after_bos < FEW * first.n:
        return "The place makes a sink, not the word"
    return "First words are sinks in some contexts only"


def first_words_note(first: FirstWords, has_bos: bool, label: str) -> str:
    """The caption: counts of single contexts, where the dots are medians."""
    variant = "BOS removed" if has_bos else "BOS prepended"
    return (
        f"{first.sinks_alone} of {first.n} first words are sinks at site {first.site} with nothing "
        f"before them, {first.sinks_after_bos} after BOS ({variant}). {label}."
    )


def first_words_checks(first: FirstWords) -> list[Check]:
    """If all hold, it is the place; BOS is a sink by the definition's own limit."""
    return [
        (
            first.sinks_alone > MOST * first.n,
            f"with nothing before them, first words are sinks at site {first.site}",
        ),
        (first.sinks_after_bos < FEW * first.n, "after BOS the same words are not"),
        ((first.bos > first.limit).mean() > MOST, "BOS is a sink in their stead"),
    ]


# -- repeats


@dataclass(frozen=True)
class Repeats:
    """Sinks after position 0 at one site, and tokens that have only their own kind before them."""

    site: int
    sink: np.ndarray  # bool [rows]
    repeat: np.ndarray  # bool [rows]
    relative_norm: np.ndarray  # [rows], over the norm of the context's first token


def repeats(store: Store, site: int) -> Repeats:
    """Find both in a store's rows."""
    position = store.tokens["position"]
    token = store.tokens["token_id"]
    first_row = np.arange(store.n_rows) - position
    changes = np.cumsum(token != token[first_row])
    repeat = (position > 0) & (changes == changes[first_row])
    sink = store.token_class(site) == CLASSES.index("sink")
    return Repeats(site, sink, repeat, store.norm(site) / store.norm(site)[first_row])


def repeats_sentence(tokens: Repeats) -> str:
    """How many there are."""
    if not tokens.sink.any():
        return f"There are no sinks after position 0 at site {tokens.site}."
    both = (tokens.sink & tokens.repeat).sum()
    return (
        f"{tokens.sink.sum()} sinks after position 0 at site {tokens.site}; "
        f"{both} repeat their first token"
    )


def repeats_checks(tokens: Repeats) -> list[Check]:
    """The guess, checked; empty where no token repeats its first one: nothing is claimed."""
    if not tokens.repeat.any():
        return []
    both = (tokens.sink & tokens.repeat).sum()
    ordinary_repeats = (tokens.repeat & ~tokens.sink).sum()
    close = abs(tokens.relative_norm[tokens.repeat] - 1) < 0.05
    return [
        (
            tokens.sink[tokens.repeat].mean() > MOST,
            "repeats of a sink at position 0 are sinks themselves",
        ),
        (close.mean() > MOST, "and have the norm of their first token"),
        (both > 0.5 * tokens.sink.sum(), "they are most of the sinks after position 0"),
        (ordinary_repeats < FEW * tokens.repeat.sum(), "hardly any repeat is ordinary"),
    ]


# -- what a handful of tokens does to every average


def class_shares(profile: pd.DataFrame) -> pd.DataFrame:
    """`site_profile` with each class's share of the tokens and of the squared norm."""
    count = profile.set_index(["site", "class"])["count"]
    total = profile["site"].map(count.xs("all", level="class"))
    shares = profile.assign(
        share_tokens=profile["count"] / total, share_sq_norm=profile["norm_share"]
    )
    return shares[shares["class"] != "all"]


def special_shares(shares: pd.DataFrame) -> pd.DataFrame:
    """Share of tokens and of squared norm that first and sink tokens have, by site."""
    special = shares[shares["class"] != "ordinary"]
    return special.groupby("site")[["share_tokens", "share_sq_norm"]].sum()


def shares_title(shares: pd.DataFrame, site: int) -> str:
    """Whether few tokens hold most of the squared norm at a site."""
    tokens, norm = special_shares(shares).loc[site]
    if norm > 0.5 and tokens < 0.1:
        return f"Few tokens hold most of the squared norm at site {site}"
    return f"Ordinary tokens hold most of the squared norm at site {site}"


def shares_note(shares: pd.DataFrame, site: int, label: str) -> str:
    """The caption with both shares."""
    tokens, norm = special_shares(shares).loc[site]
    return (
        f"First and sink tokens at site {site}: {100 * tokens:.2g} % of the tokens, "
        f"{100 * norm:.3g} % of the squared norm. Ordinary: at every site; what lacks to 100 % is "
        f"ordinary here and a sink elsewhere. {label}."
    )


def shares_checks(shares: pd.DataFrame, site: int, first_site: int) -> list[Check]:
    """Few tokens, most of the norm, and more than near the input."""
    special = special_shares(shares)
    tokens, norm = special.loc[site]
    return [
        (tokens < 0.02, f"first and sink tokens are fewer than 2 % at site {site}"),
        (norm > 0.5, f"and hold over half of the squared norm at site {site}"),
        (
            norm > 2 * special["share_sq_norm"][first_site],
            f"at least twice their share at site {first_site}",
        ),
    ]


def offsets(profile: pd.DataFrame) -> pd.DataFrame:
    """By site: the mean's share of the mean square, and the largest dimension's of the variance."""
    by_class = profile.set_index(["site", "class"])
    ordinary = by_class.xs("ordinary", level="class")
    columns = {
        "offset_share": ordinary["mean_share"],
        "top_dim_share_ordinary": ordinary["top1_share"],
        "top_dim_share_all": by_class.xs("all", level="class")["top1_share"],
    }
    return pd.DataFrame(columns).reset_index()


def offsets_title(offset: pd.DataFrame, site: int) -> str:
    """Whether one dimension rules, and whether it still does without first and sink tokens."""
    row = offset.set_index("site").loc[site]
    if row["top_dim_share_all"] < 0.5:
        return f"No dimension has most of the variance at site {site}"
    if row["top_dim_share_ordinary"] < 0.5:
        return "One dimension rules the variance only where sinks are counted"
    return "One dimension rules the variance, with and without sinks"


def offsets_note(offset: pd.DataFrame, site: int, label: str) -> str:
    """The caption with both shares."""
    row = offset.set_index("site").loc[site]
    return (
        f"Largest dimension at site {site}: {100 * row['top_dim_share_all']:.0f} % of the variance "
        f"of all tokens; of ordinary tokens' {100 * row['top_dim_share_ordinary']:.2g} %. "
        f"All splits. {label}."
    )


def offsets_checks(offset: pd.DataFrame, site: int) -> list[Check]:
    """One dimension over all tokens, none over ordinary ones, and a mean worth taking off."""
    row = offset.set_index("site").loc[site]
    return [
        (
            row["top_dim_share_all"] > 0.8,
            f"at site {site} one dimension has most of the variance of all tokens",
        ),
        (
            row["top_dim_share_ordinary"] < 0.2,
            "and no dimension has as much as a fifth over ordinary tokens",
        ),
        (
            (offset["offset_share"] > 0.25).all(),
            "at every site over a quarter of the ordinary mean square is the mean vector",
        ),
    ]


# -- spectrum


def spectra(store: Store) -> tuple[pd.DataFrame, dict[tuple[int, str], float]]:
    """Cumulative variance by rank, and the effective rank by (site, token class)."""
    tables = []
    rank = {}
    for site in store.sites:
        for name in ("all", "ordinary"):
            eigenvalues = spectrum(store, site, name)
            rank[site, name] = float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())
            cumulative = eigenvalues.cumsum() / eigenvalues.sum()
            columns = {"rank": np.arange(1, len(eigenvalues) + 1), "cumulative": cumulative}
            tables.append(pd.DataFrame(columns).assign(site=site, variant=name))
    return pd.concat(tables, ignore_index=True), rank


def spectra_title(rank: Mapping[tuple[int, str], float], site: int) -> str:
    """Whether sinks hide how many directions ordinary tokens have."""
    if rank[site, "all"] < rank[site, "ordinary"] / 2:
        return f"Sinks hide the rank of ordinary tokens at site {site}"
    return f"The effective rank at site {site} is the same without sinks"


def spectra_note(rank: Mapping[tuple[int, str], float], site: int, label: str) -> str:
    """The caption with both ranks."""
    return (
        f"Effective rank at site {site}: {rank[site, 'all']:.1f} over all tokens, "
        f"{rank[site, 'ordinary']:.0f} over ordinary ones. Training rows. {label}."
    )


def spectra_checks(
    rank: Mapping[tuple[int, str], float], pca: pd.DataFrame, site: int, pca_rank: int
) -> list[Check]:
    """One direction over all tokens, many over ordinary ones, and few of them worth something."""
    at_rank = pca.loc[pca["rank"] == pca_rank, "fvu"]
    return [
        (
            rank[site, "all"] < 2 < 20 < rank[site, "ordinary"],
            f"site {site}: one direction over all tokens, many over ordinary",
        ),
        ((at_rank < 0.85).all(), f"rank {pca_rank} leaves under 85 % of the variance"),
    ]
