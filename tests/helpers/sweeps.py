"""A made plain sweep of two sites whose values tell apart site, λ and seed."""

import numpy as np
import pandas as pd

from saelib.sae.spec import make_spec
from saelib.study import sweep
from saelib.study.finding_params import LambdaParams

SITES = (1, 3)
LAMBDAS = [4.0, 1.0, 16.0]  # in no order
FVU = {1: (0.1, 0.5), 3: (0.02, 1.0)}  # site -> FVU at λ = 1, power of λ
L0 = {1: 32.0, 3: 64.0}  # site -> L0 at λ = 1; it falls as 1 / λ
CE_ID = 2.0
CE_ZERO = {1: 10.0, 3: 6.0}
CE_MEAN = {1: 4.0, 3: 5.0}
BY_SEED = 0.1  # FVU is higher by so much with each seed


def params(**changed):
    """Parameters of the sweep and of the original recipe."""
    values = {"n_latents": 32, "tokens": 1024, "batch_size": 64, "lr": 8e-3, "schedule": "linear"}
    values |= {"lam_warmup": 0.1, "warmup": 0.05, "grad_clip": 1.0, "sites": list(SITES)}
    values |= {"lambdas": LAMBDAS, "seeds": [0, 1, 2], "ce_tokens": 512, "l0_target": 16.0}
    return LambdaParams(**values | {"original_lam": 5.0} | changed)


class MadeRuns:
    """A workspace that trains nothing: FVU and L0 are powers of λ, by site.

    n_pages: test pages; the loss is measured on all but the first. notebooks: who asked.
    """

    n_layers = 12
    identity = {"model": "/somewhere/on/disk/tiny-llama"}  # noqa: RUF012

    def __init__(self, n_pages=16):
        self.n_pages = n_pages
        self.notebooks = []
        self.trained = {}

    def site(self, name):
        return {"middle": 3}.get(name, name)

    def spec(self, arm, site, **fields):
        return make_spec(arm, site, 6, **fields)

    def fvu(self, spec):
        at_one, power = FVU[spec.sae.site]
        return at_one * spec.train.lam**power * (1 + BY_SEED * spec.train.seed)

    def train(self, specs, notebook):
        self.notebooks.append(notebook)
        self.trained |= {repr(spec): spec for spec in specs}
        return pd.DataFrame([self._row(spec) for spec in specs])

    def _row(self, spec):
        site = spec.sae.site
        fvu = self.fvu(spec)
        l0 = L0[site] / spec.train.lam
        named = {"run_id": repr(spec), "arm": spec.arm, "site": site, "seed": spec.train.seed}
        measured = {"lambda": spec.train.lam, "fvu": fvu, "fvu_all": fvu, "l0": l0, "l0_val": l0}
        losses = {"ce_id": CE_ID, "ce_zero": CE_ZERO[site], "ce_mean": CE_MEAN[site]}
        recovered = {"loss_recovered": 1 - fvu, "loss_recovered_mean": 1 - fvu}
        other = {"delta_ce": 0.1, "dead_fraction": 0.0, "shrinkage": 0.9}
        return named | measured | losses | recovered | other

    def pages(self, run):
        spec = self.trained[run]
        site = spec.sae.site
        sst = np.arange(10.0, 10.0 + self.n_pages)
        ce_sae = CE_ZERO[site] - (1 - self.fvu(spec)) * (CE_ZERO[site] - CE_ID)
        per_token = {"ce_id": CE_ID, "ce_zero": CE_ZERO[site], "ce_mean": CE_MEAN[site]}
        n = np.r_[0, np.full(self.n_pages - 1, 8)]
        losses = {name: n * value for name, value in (per_token | {"ce_sae": ce_sae}).items()}
        return pd.DataFrame({"sse": self.fvu(spec) * sst, "sst": sst, "ce_n": n} | losses)


def made_sweep(ws, **changed):
    """The sweep of `params` in such a workspace."""
    return sweep.train(ws, params(**changed))
