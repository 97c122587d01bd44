"""Hand-made results of each analysis of F3."""

import pandas as pd

from helpers.f3_cases import COMPARED, between
from saelib.study.estimate import constant
from saelib.study.f3_causes import Division
from saelib.study.f3_dictionary import PCA, Errors
from saelib.study.f3_ladder import Yardstick
from saelib.study.f3_layers import Matched
from saelib.study.shapley import coalitions

EFFECTS = {"mask": 0.3, "center": -0.1, "scale": 0.05, "match": 0.5}  # of `division`
LESS = (between(0.4, 0.5), between(0.4, 0.5), between(0.2, 0.3))  # of `errors`


def class_table(share, all_fvu, ordinary_fvu):
    """Three sites alike."""
    columns = {
        "share of tokens": 0.008,
        "share of squared norm": share,
        "class means, all": 0.1,
        "SAE, all": all_fvu,
        "SAE, ordinary": ordinary_fvu,
        "L0": 40.0,
    }
    return pd.DataFrame(columns, index=list(COMPARED.sites))


def step(name, deep, near=None, seeds=(0, 1, 2)):
    """A yardstick that reads 1 (or `near`) at the shallower sites and `deep` at the deepest."""
    per_site = {2: near or constant(1.0), 15: near or constant(1.0), 29: deep}
    return Yardstick(name, {(s, k): per_site[s] for s in COMPARED.sites for k in seeds})


def matched(deep, near=None):
    """Matched FVU of three architectures: `deep` at the deepest site, 0.3 elsewhere."""
    fvu = {}
    for arm in ("plain", "two_term", "full"):
        for l0 in (16.0, 32.0, 64.0):
            fvu |= {(arm, site, l0): near or constant(0.3) for site in COMPARED.shallow}
            fvu[arm, COMPARED.deep, l0] = deep
    pca = {(site, l0): 0.5 for site in COMPARED.sites for l0 in (16.0, 32.0, 64.0)}
    return Matched(fvu, pca, COMPARED, 32.0)


def errors(shares, sites=COMPARED.sites):
    """Encoder FVU 0.4; pursuit removes `shares` of it, by site; three seeds alike."""
    values = {}
    for site, share in zip(sites, shares, strict=True):
        per_codes = {
            "encoder": constant(0.4),
            "refitted": constant(0.35),
            "pursuit": 0.4 * (1 - share),
            "learned items": constant(0.3),
            "random items": constant(0.8),
            "trained 2 × longer": constant(0.2),
            "2 × as many items": constant(0.2),
            PCA: constant(0.6),
        }
        values |= {(site, codes): [value] * 3 for codes, value in per_codes.items()}
    return Errors(values, COMPARED, {2: 0.9, 15: None, 29: 0.9})


def division(effects, first=0.0, seeds=(0,)):
    """A gap of `first`, to which each cause's removal adds its effect, all at the deepest site."""
    log_fvu = {}
    for coalition in coalitions():
        total = first + sum(effects[cause] for cause in coalition)
        for seed in seeds:
            log_fvu[coalition, COMPARED.near, seed] = constant(-1.0)
            log_fvu[coalition, COMPARED.deep, seed] = constant(total - 1.0)
    return Division(log_fvu, tuple(seeds), COMPARED)
