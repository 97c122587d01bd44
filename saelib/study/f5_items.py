"""F5, items against selection: is the better architecture's dictionary better, or its encoder?

The SAE of each architecture at one L0 is taken apart as in F3d: its dictionary is held fixed, and
codes are chosen anew by pursuit, as many on each row as the plain SAE's encoder used there, so that
all dictionaries are given equally many. FVU is then a product, FVU under pursuit (what the
dictionary allows) × FVU over FVU under pursuit (what the encoder loses of it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from saelib.measure.dictionary import pursuit_errors
from saelib.measure.evaluate import feature_density
from saelib.sae.spec import Spec
from saelib.study.estimate import Estimate, over_seeds, ratio_of_pages
from saelib.study.f3_shuffled import ordinary_rows
from saelib.study.f5_architectures import (
    ARMS,
    NAMES,
    NOTEBOOK,
    SELECTING,
    ArchitectureRuns,
    Params,
    arm_spec,
)
from saelib.study.matched import three_digits

CODES = ("encoder", "pursuit")
DENSE = 0.1  # a latent that fires on more of the tokens is dense
RARE = 1e-3  # one that fires on fewer is rare

Key = tuple[str, int]  # arm, site


def settings_at_l0(runs: ArchitectureRuns, l0: float) -> dict[Key, float]:
    """The setting at which each arm and site has that L0, mean over seeds; without those that do
    not reach it.
    """
    found = {}
    for arm in ARMS:
        for site in runs.sites:
            values = [curve.at_l0(l0, "knob") for curve in runs.cell(arm, site)]
            if None not in values:
                mean = float(np.mean(values))
                found[arm, site] = float(round(mean)) if arm in SELECTING else three_digits(mean)
    return found


def train(ws: Any, p: Params, runs: ArchitectureRuns, l0: float) -> dict[Key, list[Spec]]:
    """Train an SAE of each arm, site and seed at that L0; what is there is read."""
    specs = {
        (arm, site): [arm_spec(ws, p, arm, site, seed, setting) for seed in runs.seeds]
        for (arm, site), setting in settings_at_l0(runs, l0).items()
    }
    ws.train([spec for group in specs.values() for spec in group], NOTEBOOK)
    return specs


@dataclass(frozen=True)
class Items:
    """FVU by (arm, site, codes), a value for each seed; codes: "encoder" or "pursuit".

    n_pages: test pages that have a row of those searched, at the site with fewest.
    """

    by_seed: Mapping[tuple[str, int, str], list[Estimate]]
    n_pages: int

    @property
    def sites(self) -> list[int]:
        """Sites at which some arm reaches the L0."""
        return sorted({site for _, site, _ in self.by_seed})

    def has(self, arm: str, site: int) -> bool:
        """Whether the arm reaches the L0 at that site."""
        return (arm, site, "encoder") in self.by_seed

    def log_fvu(self, arm: str, site: int, codes: str) -> Estimate:
        """log FVU over seeds."""
        return over_seeds([x.log() for x in self.by_seed[arm, site, codes]])

    def ratio(self, arm: str, against: str, site: int, codes: str) -> Estimate:
        """FVU of one arm over another's, under the same way to choose codes."""
        return (self.log_fvu(arm, site, codes) - self.log_fvu(against, site, codes)).exp()

    def encoder_loss(self, arm: str, site: int) -> Estimate:
        """FVU of the encoder over that of pursuit with the same dictionary."""
        return (self.log_fvu(arm, site, "encoder") - self.log_fvu(arm, site, "pursuit")).exp()

    def rows(self) -> pd.DataFrame:
        """arm, site, codes, value, lo, hi of FVU."""
        rows = [
            {"arm": arm, "site": site, "codes": codes} | self.log_fvu(arm, site, codes).exp().row()
            for arm, site, codes in self.by_seed
        ]
        return pd.DataFrame(rows, columns=["arm", "site", "codes", "value", "lo", "hi"])


def measure(ws: Any, p: Params, trained: Mapping[Key, list[Spec]]) -> Items:
    """FVU of every SAE's test rows under its encoder and under pursuit.

    Of a site where the plain SAE does not reach the L0, each takes its own encoder's counts.
    """
    by_seed: dict[tuple[str, int, str], list[Estimate]] = {}
    n_pages = []
    for (arm, site), specs in trained.items():
        x, page = ordinary_rows(ws.store, site, "test", p.item_tokens)
        n_pages.append(len(np.unique(page)))
        sst = (x - x.mean(0)).double().square().sum(-1).cpu().numpy()
        for spec, counted in zip(specs, trained.get(("plain", site), specs), strict=True):
            errors = pursuit_errors(ws.load(spec), x, ws.load(counted))
            sums = pd.DataFrame(errors | {"sst": sst, "page": page}).groupby("page").sum()
            for codes in CODES:
                estimate = ratio_of_pages(sums[codes], sums["sst"])
                by_seed.setdefault((arm, site, codes), []).append(estimate)
    return Items(by_seed, min(n_pages, default=0))


def table(items: Items) -> pd.DataFrame:
    """FVU as text: a row per site and architecture."""
    rows = {}
    for site in items.sites:
        for arm in ARMS:
            if items.has(arm, site):
                rows[site, NAMES[arm]] = {
                    "encoder": items.log_fvu(arm, site, "encoder").exp().text(".3f"),
                    "pursuit, same dictionary": items.log_fvu(arm, site, "pursuit")
                    .exp()
                    .text(".3f"),
                    "encoder ÷ pursuit": items.encoder_loss(arm, site).text(".2f"),
                }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    if len(frame):
        frame.index.names = ["site", "architecture"]
    return frame


def densities(ws: Any, trained: Mapping[Key, list[Spec]]) -> pd.DataFrame:
    """How often latents fire on test pages, first seed: arm, site, dead, rare, dense, median.

    dead: never; rare, dense: share that fires on fewer than one token in a thousand, or on more
    than one in ten; median: of the shares of tokens on which the others fire.
    """
    rows = []
    for (arm, site), specs in trained.items():
        density = feature_density(ws.load(specs[0]), ws.store, site)
        alive = density[density > 0]
        rows.append(
            {
                "arm": arm,
                "site": site,
                "dead": float((density == 0).mean()),
                "rare": float(((density > 0) & (density < RARE)).mean()),
                "dense": float((density > DENSE).mean()),
                "median": float(np.median(alive)) if len(alive) else np.nan,
            }
        )
    return pd.DataFrame(rows, columns=["arm", "site", "dead", "rare", "dense", "median"])


def density_table(found: pd.DataFrame) -> pd.DataFrame:
    """The same in percent, for reading."""
    shown = found.sort_values("site", kind="stable")  # arms stay in the order of `ARMS`
    shown = shown.assign(architecture=shown["arm"].map(NAMES)).drop(columns="arm")
    shown = shown.set_index(["site", "architecture"])
    shown.columns = ["dead (%)", "rare (%)", "dense (%)", "median density (%)"]
    return (100 * shown).round(2)
