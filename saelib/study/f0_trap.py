"""F0: does an error over all tokens tell how well a layer is rebuilt? A claim of ours.

Four predictors are fitted on training pages and measured on test pages: the mean, one vector for
first and sink tokens, those tokens rebuilt exactly and nothing else, and PCA. The middle two are no
SAEs but oracles: they are told which tokens are first or sink, and give one answer for every other.
"One latent" is the first of them: a decoder of one row whose code is fixed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saelib.activations.store import Store
from saelib.measure.geometry import naive_predictors, predictor_fvu
from saelib.show.compare import interval_points
from saelib.study.estimate import REPLICATES, Estimate, recorded_text
from saelib.study.finding import MIN_PAGES, Finding, Verdict, figure_path
from saelib.study.scope import interval_words

CLAIM = "FVU over all tokens tells how well a layer is rebuilt."
RULE = (
    "One latent is an oracle: told which tokens are first or sink, it gives these one vector, and "
    "all others the mean. At a site the order is inverted where it lies below PCA over all tokens, "
    "and PCA below it over ordinary tokens, both with disjoint 95 % intervals over test pages. "
    "Contradicted if the order is inverted at some site, supported if at none; undecided with "
    "fewer than "
    f"{MIN_PAGES} test pages."
)
SECTION = "The trap"


def errors(store: Store, rank: int) -> pd.DataFrame:
    """FVU of the four predictors: site, predictor, class, pages, fvu, lo, hi, heaviest.

    rank: directions of PCA. ValueError where a split has no rows.
    """
    tables = [
        predictor_fvu(store, site, naive_predictors(store, site, rank)) for site in store.sites
    ]
    return pd.concat(tables, ignore_index=True)


def side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """`errors` to read: one row per site and predictor, "value [lo, hi]" per token class."""
    rows = table.itertuples()
    text = [recorded_text({"value": row.fvu, "lo": row.lo, "hi": row.hi}) for row in rows]
    wide = table.assign(text=text).pivot(
        index=["site", "predictor"], columns="class", values="text"
    )
    order = table.drop_duplicates(["site", "predictor"])
    return wide.loc[list(zip(order["site"], order["predictor"], strict=True))]


def inverted_sites(table: pd.DataFrame) -> list[int]:
    """Sites at which the two errors order one latent and PCA differently, by disjoint intervals."""
    low = table.pivot(index="site", columns=["predictor", "class"], values="lo")
    high = table.pivot(index="site", columns=["predictor", "class"], values="hi")
    wins_over_all = high["one_latent", "all"] < low["pca", "all"]
    loses_over_ordinary = high["pca", "ordinary"] < low["one_latent", "ordinary"]
    return [
        int(site)
        for site in table["site"].unique()
        if wins_over_all[site] and loses_over_ordinary[site]
    ]


def decide(inverted: Sequence[int], n_pages: int) -> Verdict:
    """The verdict of `RULE`. inverted: sites with the order inverted; n_pages: test pages."""
    if n_pages < MIN_PAGES:
        return "undecided"
    return "contradicted" if inverted else "supported"


def shown_site(table: pd.DataFrame, middle: int) -> int:
    """The site that sentences speak of: the middle one, else the first inverted one."""
    inverted = inverted_sites(table)
    return middle if middle in inverted or not inverted else inverted[0]


def share_of_tokens(store: Store) -> float:
    """Share of the test tokens that are first or sink at some site: what the oracles are told."""
    ordinary = store.mask("ordinary", "test").sum()
    return float(1 - ordinary / store.mask("all", "test").sum())


def estimate(table: pd.DataFrame, site: int, predictor: str, tokens: str) -> Estimate:
    """FVU of one predictor, to be stated; its draws are the two ends of its interval."""
    rows = table.set_index(["site", "predictor", "class"])
    row = rows.loc[(site, predictor, tokens)]
    half = REPLICATES // 2
    draws = np.r_[row["fvu"], np.full(half, row["lo"]), np.full(half, row["hi"])]
    return Estimate(draws, heaviest=float(row["heaviest"]))


def _interval(table: pd.DataFrame) -> str:
    """What the intervals are, or why there are none."""
    return interval_words(int(table["pages"].min()), 1)


def title(table: pd.DataFrame) -> str:
    """The figure's message."""
    if inverted_sites(table):
        return "A one-latent oracle wins over all tokens, explains no ordinary one"
    return "At no site are the oracle and PCA clearly ordered oppositely"


def figure(table: pd.DataFrame, rank: int, share: float, label: str) -> Figure:
    """The four predictors by site, over all and over ordinary tokens. share: `share_of_tokens`."""
    names = {
        "mean": "mean",
        "one_latent": "one latent (oracle)",
        "sinks_only": "sinks only (oracle)",
        "pca": f"PCA, rank {rank}",
    }
    drawn = table.assign(
        group=table["predictor"].map(names),
        hue=table["class"],
        panel="site " + table["site"].astype(str),
    )
    return interval_points(
        drawn.rename(columns={"fvu": "value"}),
        title=title(table),
        interval=_interval(table),
        note=(
            "Oracles are told which tokens are first or sink "
            f"({100 * share:.2g} % of the test tokens). {label}."
        ),
        value_label="FVU, held-out pages (log)",
        log=True,
        reference=(1, "FVU = 1"),
    )


def checks(table: pd.DataFrame, site: int, rank: int) -> list[tuple[bool | np.bool_, str]]:
    """What the trap takes to be one at a site."""
    fvu = table.set_index(["site", "predictor", "class"])["fvu"]
    one = fvu[site, "one_latent", "all"]
    one_ordinary = fvu[site, "one_latent", "ordinary"]
    return [
        (
            one < 0.1,
            f"site {site}: the one-latent oracle leaves under a tenth of all tokens' variance",
        ),
        (
            fvu[site, "sinks_only", "all"] < 0.02,
            "sinks rebuilt exactly and nothing else: less than 2 %",
        ),
        (0.9 < one_ordinary < 1.1, "among ordinary tokens both are the mean predictor"),
        (fvu[site, "pca", "ordinary"] < 0.8, f"PCA of rank {rank} is not"),
        (
            fvu[site, "pca", "all"] > 2 * one,
            "yet over all tokens its FVU is over twice that of the one-latent oracle",
        ),
    ]


def sentence(table: pd.DataFrame, site: int, rank: int) -> str:
    """The result in plain words, its numbers first over all tokens, then over ordinary ones."""
    inverted = inverted_sites(table)
    one = estimate(table, site, "one_latent", "all").text()
    one_ordinary = estimate(table, site, "one_latent", "ordinary").text()
    pca = estimate(table, site, "pca", "all").text()
    pca_ordinary = estimate(table, site, "pca", "ordinary").text()
    sites = ", ".join(map(str, inverted)) or "none"
    return (
        f"At site {site} the one-latent oracle, which gives first and sink tokens one vector, has "
        f"an FVU of {one} over all tokens and PCA of rank {rank} "
        f"{pca}; over ordinary tokens the oracle has {one_ordinary} and PCA {pca_ordinary} "
        f"({_interval(table)}). The order is inverted at sites: {sites}."
    )


def abstract(table: pd.DataFrame, site: int, share: float) -> str:
    """The sentence of the report's abstract; it says what was seen, also where there is no trap."""
    one = estimate(table, site, "one_latent", "all").value
    one_ordinary = estimate(table, site, "one_latent", "ordinary").value
    if inverted_sites(table):
        return (
            f"An error over all tokens says little: at site {site}, {100 * share:.2g} % of the "
            f"tokens decide it. An oracle that gives these one vector, and all others the mean, "
            f"has an FVU of {one:.2g}, and over the others alone {one_ordinary:.2f}. "
            "So every comparison here is over ordinary tokens."
        )
    return (
        "At no site do an error over all tokens and one over ordinary tokens order PCA and an "
        f"oracle of one vector oppositely, by disjoint intervals: at site {site} the oracle, told "
        f"{100 * share:.2g} % of the tokens, has an FVU of {one:.2g}. "
        "Comparisons here are over ordinary tokens all the same."
    )


def finding(table: pd.DataFrame, site: int, rank: int, profile: str) -> Finding:
    """F0 as the notebook records it. site: `shown_site`."""
    effects = {
        "one latent, all tokens": estimate(table, site, "one_latent", "all"),
        f"PCA, rank {rank}, all tokens": estimate(table, site, "pca", "all"),
        "one latent, ordinary tokens": estimate(table, site, "one_latent", "ordinary"),
        f"PCA, rank {rank}, ordinary tokens": estimate(table, site, "pca", "ordinary"),
    }
    return Finding(
        name="F0",
        claim=CLAIM,
        rule=RULE,
        verdict=decide(inverted_sites(table), int(table["pages"].min())),
        estimates=effects,
        sentence=sentence(table, site, rank),
        section=SECTION,
        figure=figure_path(profile, "01_trap"),
    )
