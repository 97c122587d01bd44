"""Made estimates, parameters and workspaces for the tests of F2."""

import numpy as np
import pandas as pd

from saelib.run import source_notebooks
from saelib.sae.spec import make_spec
from saelib.study.estimate import REPLICATES, Estimate, undefined
from saelib.study.notebooks import PARAMETERS
from saelib.study.scope import Scope

FULL = Scope("a model", 3, 22)
ONE_SEED = Scope("a model", 1, 22)
UNREACHED = undefined()


def estimate(value, lo, hi):
    """An estimate whose 95 % interval is exactly [lo, hi]."""
    half = REPLICATES // 2
    return Estimate(np.r_[value, np.full(half, lo), np.full(half, hi)])


MARGIN = 0.03
WORSE = estimate(1.06, 1.04, 1.08)
BETTER = estimate(0.92, 0.91, 0.93)
EQUAL = estimate(1.0, 0.99, 1.01)
TOUCHING = estimate(1.05, 1.03, 1.07)  # its interval begins at 1 + margin
UNCLEAR = estimate(1.0, 0.9, 1.1)


def params(notebook, **changed):
    """A notebook's parameters: its literals, some of them changed."""
    path = next(path for path in source_notebooks.sources() if path.stem == notebook)
    return PARAMETERS[notebook].read({**source_notebooks.parameters(path), **changed}, notebook)


class PowerLaws:
    """A workspace whose SAEs have L0 = level / λ and FVU = share · λ^0.2, without training any.

    Levels and shares are by arm; `trained` holds every spec that was asked for.
    """

    n_layers = 30

    def __init__(self, levels=None, shares=None):
        self.levels = {"plain": 80.0, "two_term": 8.0, "full": 100.0} | (levels or {})
        self.shares = {"plain": 0.3, "two_term": 0.4, "full": 0.25} | (shares or {})
        self.identity = {"model": "/somewhere/on/disk/tiny-llama"}
        self.trained = {}

    def site(self, name):
        return {"middle": 15, -2: 29}.get(name, name)

    def spec(self, arm, site, **fields):
        return make_spec(arm, site, 16, **fields)

    def measuring(self, evaluation):
        return self

    def train(self, specs, notebook):
        self.trained |= {self.run_id(spec): spec for spec in specs}
        return pd.DataFrame([self._row(spec) for spec in specs])

    def run_id(self, spec):
        return repr(spec)

    def _row(self, spec):
        lam = spec.train.lam
        l0 = self.levels[spec.arm] / lam
        named = {"run_id": self.run_id(spec), "arm": spec.arm, "site": spec.sae.site}
        measured = {"lambda": lam, "l0": l0, "l0_val": l0, "fvu": self.fvu(spec)}
        other = {"loss_recovered": 0.9, "loss_recovered_mean": 0.8, "shrinkage": 0.95}
        dead = {"dead_fraction": 0.1, "gate_dead": 0.0}
        return named | measured | other | dead | {"n_test_pages": 22, "seed": spec.train.seed}

    def fvu(self, spec):
        return self.shares[spec.arm] * spec.train.lam**0.2 * (1 + 0.01 * spec.train.seed)

    def pages(self, run):
        sst = np.arange(10.0, 32.0)
        return pd.DataFrame({"sse": self.fvu(self.trained[run]) * sst, "sst": sst})
