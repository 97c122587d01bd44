"""Sweeps of λ that nobody trained: each run's FVU stands in its id."""

import numpy as np
import pandas as pd

from helpers.f3_cases import COMPARED
from saelib.study.curve import Curve
from saelib.study.f3_sites import MADE_IN, Sweep

SST = np.arange(10.0, 30.0)  # of twenty test pages


def pages(run):
    """Twenty test pages whose FVU is the last word of the run's id, on each of them."""
    sums = {"page_id": range(20), "n": SST, "sse": float(run.split()[-1]) * SST, "sst": SST}
    return pd.DataFrame(sums)


class Quick(Curve):
    """A curve that is interpolated for twenty draws of pages, where a thousand take long."""

    def samples_at_l0(self, l0, column="fvu", n=20):
        return super().samples_at_l0(l0, column, n)


def line(arm, site, seed, lam, l0, fvu):
    """One SAE's row of results: over all tokens a tenth of its FVU, on sinks a hundredth."""
    named = {"arm": arm, "site": site, "seed": seed, "lambda": lam, "l0": l0, "l0_val": l0}
    named["run_id"] = f"{arm} {site} {seed} {lam:g} {fvu!r}"
    return named | {"fvu": fvu, "fvu_all": fvu / 10, "fvu_sink": fvu / 100}


def sweep_of(fvu_at, seeds=(0, 1, 2), sites=COMPARED.sites, arms=tuple(MADE_IN)):
    """Curves through L0 64 and 16 that have FVU `fvu_at(arm, site, seed)` at L0 32.

    In logarithms they are straight: half of it at L0 64, twice as much at L0 16.
    """
    keys = [(arm, site, seed) for arm in arms for site in sites for seed in seeds]
    lines = {}
    for key in keys:
        fvu = float(fvu_at(*key))
        lines[key] = [line(*key, 1.0, 64.0, fvu / 2), line(*key, 2.0, 16.0, fvu * 2)]
    curves = {key: Quick(pd.DataFrame(rows), pages) for key, rows in lines.items()}
    return Sweep(pd.DataFrame([row for rows in lines.values() for row in rows]), curves)


def missing_at_32(sweep, key):
    """The sweep with one curve that ends at L0 40."""
    short = Quick(sweep.curves[key].rows.assign(l0_val=[64.0, 40.0]), pages)
    return sweep._replace(curves=sweep.curves | {key: short})
