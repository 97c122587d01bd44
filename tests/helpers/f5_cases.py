"""Made results of F5: architectures at equal L0, and dictionaries under their encoder and pursuit.

At the L0 of 16 and 64 the FVU is another than at 32, the middle one, so that none stands for it.
"""

from itertools import product

import pandas as pd

from helpers.f2_cases import UNREACHED
from saelib.study.curve import Curve
from saelib.study.estimate import constant
from saelib.study.f5_architectures import ARMS, ArchitectureRuns, Matched
from saelib.study.f5_items import Items

SITES = (2, 15, 29)
L0S = (16.0, 32.0, 64.0)
LEFT = constant(0.5)  # the FVU of what is not given
ELSEWHERE = {16.0: constant(0.9), 64.0: constant(0.1)}


def matched_of(fvu, sites=SITES, l0s=L0S):
    """Architectures of which one seed was trained; fvu: by (arm, site) at L0 32."""
    log_fvu = {}
    for arm, site, l0 in product(ARMS, sites, l0s):
        found = fvu.get((arm, site), LEFT) if l0 == 32 else ELSEWHERE[l0]
        log_fvu[arm, site, l0] = found.log()
    per_seed = {cell: [x] for cell, x in log_fvu.items()}
    return Matched(per_seed, log_fvu, dict.fromkeys(log_fvu, UNREACHED), pd.DataFrame())


def gaps_of(gaps, sites=SITES):
    """Architectures whose FVU at the deepest site is `gaps` times that at the one before it.

    Of an arm that is not given there is no gap; each leaves more than the first site has, and
    another share at the one before.
    """
    near, deep = sites[-2:]
    fvu = {}
    for i, arm in enumerate(ARMS):
        fvu[arm, near] = (1.2 + 0.1 * i) * LEFT
        fvu[arm, deep] = fvu[arm, near] * gaps.get(arm, 1.0)
    return matched_of(fvu, sites)


def ratios_of(ratios, sites=SITES):
    """FVU over the plain SAE's at each site by arm; at other L0 than 32 every arm leaves less."""
    cells = product(ARMS[1:], sites, L0S)
    less = constant(0.5)
    return {
        (arm, site, l0): ratios.get(arm, constant(1.0)) if l0 == 32 else less
        for arm, site, l0 in cells
    }


def items_of(values, n_pages=22):
    """FVU by (arm, site): (under the encoder, under pursuit); one seed."""
    return Items(
        {
            (*cell, codes): [x]
            for cell, pair in values.items()
            for codes, x in zip(("encoder", "pursuit"), pair, strict=True)
        },
        n_pages,
    )


def runs_of(curves, sites=(2, 15), seeds=(0, 1)):
    """Runs of these curves; curves: by (arm, site, seed), columns of a table by name."""
    made = {
        key: Curve(pd.DataFrame(columns), pages=lambda run: None) for key, columns in curves.items()
    }
    return ArchitectureRuns(made, list(sites), list(seeds))
