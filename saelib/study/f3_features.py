"""F3g: do fewer latents of a deep site look like one thing?

The experiment said that with depth the items, the decoder's rows, fail. Here an item is looked at:
a latent *looks like one thing* where a short description of it, found on training pages, holds for
at least half of its activation mass on test pages (`measure.features.one_thing`). SAEs are compared
at one L0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int64

from saelib.measure.bootstrap import heaviest_share, page_draws, widening
from saelib.measure.features.neighbours import nearest_by_cosine
from saelib.measure.features.one_thing import (
    PLACES,
    Description,
    Held,
    describe,
    held,
    shuffled,
    source_codes,
)
from saelib.measure.features.sources import StorePages
from saelib.sae import Autoencoder
from saelib.sae.spec import Spec
from saelib.study import f2_gated
from saelib.study.estimate import REPLICATES, Estimate, over_seeds, undefined
from saelib.study.finding import Check, Verdict, enough
from saelib.study.finding_params import FeatureParams as Params
from saelib.study.matched import interpolate_matched_l0, three_digits

NOTEBOOK = "06_features"
ARMS = ("plain", "full")
LEAST_FIRINGS = 10  # of a latent that is judged, on training and on test pages
LEAST_JUDGED = 50  # latents of an SAE, for a share of them
HALF = 0.5  # share of the mass from which on a description holds
NEAR = 0.1  # an SAE whose L0 is within this share of the target is taken as it is
FAR = 0.2  # one that is farther off is left out
TWIN = 0.7  # cosine from which on another SAE has the latent too
CLAIM = "Fewer latents of site {deep} look like one thing than of any shallower site."
RULE = (
    "A latent looks like one thing where three token types, at the firing token, after it or "
    "before it, hold at least half of its activation mass on test pages; place and types are those "
    "that hold most on training pages. Judged are latents that fire at least 10 times on each. "
    "Supported if the share of such latents is lower at the deepest site than at every shallower "
    "one by more than {margin:g}, by whole 95 % intervals, at L0 = {l0:g} (plain SAE); "
    "contradicted if one interval lies above that. Undecided otherwise, where an L0 is not "
    f"reached or fewer than {LEAST_JUDGED} latents are judged, and with fewer than 15 test pages "
    "or three seeds."
)
Cell = tuple[str, int]  # arm, site


# -- what is trained -------------------------------------------------------------------------------


def train(ws: Any, p: Params) -> dict[Cell, list[Spec]]:
    """By arm and site the SAEs at the L0 of the comparison, a spec for each seed.

    They are those of notebook 03 where one is near enough; else one λ more is trained between its
    neighbours. A cell whose curves do not reach the L0 is left out.
    """
    runs = f2_gated.train(ws, p, ARMS)
    cells = {}
    for arm in ARMS:
        for site in runs.sites:
            lam = matched_lambda(pd.concat([c.rows for c in runs.cell(arm, site)]), p.l0_target)
            if lam is not None:
                cells[arm, site] = [
                    f2_gated.gated_spec(ws, p, arm, site, seed, lam) for seed in p.seeds
                ]
    rows = ws.train([spec for specs in cells.values() for spec in specs], NOTEBOOK)
    l0 = rows.groupby(["arm", "site"])["l0_val"].mean()
    return {cell: specs for cell, specs in cells.items() if is_near(l0[cell], p.l0_target, FAR)}


def is_near(l0: float, target: float, share: float) -> bool:
    """Whether an L0 is within a share of the target, in ratio."""
    return bool(l0 > 0 and abs(math.log(l0 / target)) <= math.log1p(share))


def matched_lambda(rows: pd.DataFrame, target: float) -> float | None:
    """The λ that all seeds have with an L0 near the target, or one between its neighbours.

    None where the curve does not reach the target.
    """
    n_seeds = rows["seed"].nunique()
    means = rows.groupby("lambda")["l0_val"].agg(["mean", "size"])
    l0 = means.loc[means["size"] == n_seeds, "mean"]
    l0 = l0[l0 > 0]
    if l0.empty:
        return None
    distance = np.log(l0 / target).abs()
    if is_near(l0[distance.idxmin()], target, NEAR):
        return float(distance.idxmin())
    lam = interpolate_matched_l0(l0.to_numpy(), l0.index.to_numpy(), target)
    return None if lam is None else three_digits(lam)


# -- looking at latents ----------------------------------------------------------------------------


class Looked(NamedTuple):
    """One SAE's latents: descriptions, how far they hold, and how far by chance."""

    description: Description
    held: Held
    by_chance: Float64[np.ndarray, " latents"]  # share held, codes on shuffled tokens
    W_dec: Any  # [n_latents, d_in]

    @property
    def judged(self) -> Bool[np.ndarray, " latents"]:
        """Latents that fire often enough on training and on test pages."""
        enough_there = self.description.n_fired >= LEAST_FIRINGS
        return enough_there & (self.held.n_fired >= LEAST_FIRINGS)

    @property
    def living(self) -> Bool[np.ndarray, " latents"]:
        """Latents that fire on test pages."""
        return self.held.n_fired > 0

    def shares(self) -> Float64[np.ndarray, " latents"]:
        """Share of each latent's mass on test pages that its description holds."""
        return shares_held(self.held)

    def fits(self) -> Bool[np.ndarray, " latents"]:
        """Judged latents that look like one thing."""
        return self.judged & (np.nan_to_num(self.shares()) >= HALF)

    def kinds(self) -> Int64[np.ndarray, " latents"]:
        """An index into `KINDS` of each living latent, -1 of the others."""
        kinds = np.where(self.fits(), self.description.place, KINDS.index("no short description"))
        kinds = np.where(self.judged, kinds, KINDS.index("too rare to judge"))
        return np.where(self.living, kinds, -1)


def shares_held(result: Held) -> Float64[np.ndarray, " latents"]:
    """Share of each latent's mass that its description holds, over all pages."""
    return result.shares(np.ones(result.n_pages))


KINDS = (*PLACES, "no short description", "too rare to judge")


def look(sae: Autoencoder, store: Any, n_tokens: int, seed: int = 0) -> Looked:
    """Describe an SAE's latents on training pages, and hold that against test pages."""
    site = sae.config.site
    train = StorePages(store, site, "train", n_tokens, seed)
    test = StorePages(store, site, "test")
    codes = source_codes(sae, train)
    other = source_codes(sae, test)
    description = describe(codes, train.tokens)
    lost = describe(shuffled(codes, train.tokens, seed), train.tokens)
    by_chance = shares_held(held(shuffled(other, test.tokens, seed + 1), test.tokens, lost))
    fits = held(other, test.tokens, description)
    return Looked(description, fits, by_chance, sae.W_dec.detach().cpu())


def look_at_all(
    ws: Any, p: Params, cells: Mapping[Cell, Sequence[Spec]]
) -> dict[Cell, list[Looked]]:
    """`look` of every SAE, by arm and site, seed by seed."""
    return {
        cell: [look(ws.load(spec), ws.store, p.feature_tokens) for spec in specs]
        for cell, specs in cells.items()
    }


# -- estimates -------------------------------------------------------------------------------------


def share_estimate(looked: Looked, n: int = REPLICATES) -> Estimate:
    """Share of judged latents that look like one thing, test pages drawn anew.

    Descriptions stay those of the training pages; a latent without mass on a draw does not count.
    Draws spread by `widening`, pages weighed by their mass, within 0 and 1. Undefined with fewer
    than `LEAST_JUDGED` judged latents.
    """
    judged = looked.judged
    n_pages = looked.held.n_pages
    if judged.sum() < LEAST_JUDGED:
        return undefined(n)
    weights = np.vstack([np.ones(n_pages), page_draws(n_pages, n)]).T.astype(np.float64)
    total = looked.held.sums("total", weights)[judged]
    inside = looked.held.sums("inside", weights)[judged]
    counts = total > 0
    fits = counts & (inside >= HALF * total)
    draws = fits.sum(0) / counts.sum(0)
    mass = np.bincount(looked.held.page, looked.held.total, n_pages)
    widened = draws[0] + widening(mass) * (draws[1:] - draws[0])
    return Estimate(np.r_[draws[0], np.clip(widened, 0, 1)], heaviest=heaviest_share(mass))


def shares_by_cell(looks: Mapping[Cell, Sequence[Looked]]) -> dict[Cell, Estimate]:
    """`share_estimate` over seeds, by arm and site."""
    return {cell: over_seeds([share_estimate(one) for one in ones]) for cell, ones in looks.items()}


def chance_by_cell(looks: Mapping[Cell, Sequence[Looked]]) -> dict[Cell, float]:
    """The same share for codes on permuted tokens, mean over seeds."""
    return {cell: float(np.mean([_chance(one) for one in ones])) for cell, ones in looks.items()}


def _chance(looked: Looked) -> float:
    judged = looked.judged
    if not judged.any():
        return math.nan
    return float((looked.by_chance[judged] >= HALF).mean())


def differences(shares: Mapping[Cell, Estimate], sites: Sequence[int]) -> dict[int, Estimate]:
    """The deepest site's share less each shallower one's, plain SAE; undefined where one lacks."""
    deep = shares.get(("plain", sites[-1]), undefined())
    return {site: deep - shares.get(("plain", site), undefined()) for site in sites[:-1]}


def decide(changes: Mapping[int, Estimate], margin: float, n_seeds: int, n_pages: int) -> Verdict:
    """F3g, on the deepest site's share less each shallower one's."""
    if not enough(n_seeds, n_pages) or not changes:
        return "undecided"
    places = [estimate.compare(-margin) for estimate in changes.values()]
    if all(place == "lower" for place in places):
        return "supported"
    return "contradicted" if "higher" in places and "unreachable" not in places else "undecided"


# -- twins -----------------------------------------------------------------------------------------


class Shared(NamedTuple):
    """Shares of judged latents that another SAE has too; nan where there are none."""

    share: float  # of all
    of_one_thing: float  # of those that look like one thing
    of_others: float


def shared_latents(one: Looked, other: Looked) -> Shared:
    """Shares of latents whose decoder row has cosine `TWIN` or more with a row of the other SAE.

    Latents that the other SAE never fires on test pages do not count as found again.
    """
    judged = one.judged
    if not judged.any() or not other.living.any():
        return Shared(math.nan, math.nan, math.nan)
    near = nearest_by_cosine(one.W_dec[judged], other.W_dec[other.living], 1, same=False)
    again = near.value[:, 0] >= TWIN
    fits = one.fits()[judged]
    return Shared(float(again.mean()), _mean(again[fits]), _mean(again[~fits]))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def found_again(looks: Mapping[Cell, Sequence[Looked]], sites: Sequence[int]) -> pd.DataFrame:
    """By site, shares of the plain SAE's latents that other trainings have too.

    Columns site, in, and those of `Shared`. in: "another seed" (a row for each ordered pair of
    seeds), or "the Gated SAE" (of each seed).
    """
    rows = []
    for site in sites:
        plain = looks.get(("plain", site), [])
        pairs = [(a, b) for a in range(len(plain)) for b in range(len(plain)) if a != b]
        rows += [(site, "another seed", *shared_latents(plain[a], plain[b])) for a, b in pairs]
        gated = looks.get(("full", site), [])
        both = zip(plain, gated, strict=False)
        rows += [(site, "the Gated SAE", *shared_latents(a, b)) for a, b in both]
    return pd.DataFrame(rows, columns=["site", "in", *Shared._fields])


def random_cosine(looks: Mapping[Cell, Sequence[Looked]], seed: int = 0) -> str:
    """The best cosine of random directions with as many others as an SAE has latents, in words."""
    every = [one for ones in looks.values() for one in ones]
    if not every:
        return "no SAE has the L0 of the comparison"
    n_latents, width = every[0].W_dec.shape
    rows = torch.randn(2, n_latents, width, generator=torch.Generator().manual_seed(seed))
    best = nearest_by_cosine(rows[0], rows[1], 1, same=False).value[:, 0]
    return f"at most {best.max():.2f}, in the mean {best.mean():.2f} ({n_latents:,} of each)"


# -- tables ----------------------------------------------------------------------------------------


def kind_shares(looks: Mapping[Cell, Sequence[Looked]]) -> pd.DataFrame:
    """Shares of living latents by arm, site and kind (`KINDS`), means over seeds."""
    rows = []
    for (arm, site), ones in looks.items():
        each = [
            np.bincount(o.kinds()[o.living], minlength=len(KINDS)) / o.living.sum() for o in ones
        ]
        rows += [
            (arm, site, kind, float(v)) for kind, v in zip(KINDS, np.mean(each, 0), strict=True)
        ]
    return pd.DataFrame(rows, columns=["arm", "site", "kind", "share"])


def table(
    shares: Mapping[Cell, Estimate], chance: Mapping[Cell, float], looks: Mapping[Cell, Any]
) -> pd.DataFrame:
    """arm, site, share with lo and hi, chance, judged and living latents (means over seeds)."""
    rows = []
    for (arm, site), estimate in shares.items():
        ones = looks[arm, site]
        judged = np.mean([one.judged.sum() for one in ones])
        living = np.mean([one.living.sum() for one in ones])
        rows.append((arm, site, *estimate.row().values(), chance[arm, site], judged, living))
    names = ["arm", "site", "share", "lo", "hi", "by_chance", "judged", "living"]
    return pd.DataFrame(rows, columns=names)


def checks(totals: pd.DataFrame, rows: pd.DataFrame, p: Params) -> list[Check]:
    """Is the criterion no accident, are SAEs compared at one L0, are most latents judged?"""
    known = totals.dropna(subset=["share"])
    lower = bool((known["by_chance"] < known["share"] / 10).all())
    off = np.log(rows["l0_val"] / p.l0_target).abs().max() if len(rows) else math.inf
    judged = totals["judged"] / totals["living"]
    return [
        (
            lower if len(known) else "too few latents are judged",
            "shuffled tokens give under a tenth of it",
        ),
        (bool(off <= math.log1p(FAR)), f"each L0 is within {100 * FAR:.0f} % of {p.l0_target:g}"),
        (bool((judged > HALF).all()), "more than half of the living latents are judged"),
    ]
