"""F5, items against selection: at which setting each architecture is trained once more."""

import pytest
from helpers.f2_cases import PowerLaws, params
from helpers.f5_cases import runs_of

from saelib.study import f5_items
from saelib.study.f5_architectures import ARMS

# L0 = level / λ by seed, or share · k
LEVELS = {"plain": (80.0, 84.0), "full": (96.0, 100.0), "jumprelu": (10.0, 80.0)}
LEVELS |= {"jumprelu_tanh": (80.0, 10.0)}
SHARES = {"topk": (0.95, 0.9), "batchtopk": (0.97, 0.9), "matryoshka": (0.4, 0.5)}


def penalised(level):
    lambdas = [1.0, 2.0, 4.0]
    return {"lambda": lambdas, "l0_val": [level / lam for lam in lambdas]}


def selecting(share):
    k = [16.0, 64.0]
    return {"lambda": [0.0, 0.0], "knob": k, "l0_val": [share * x for x in k]}


@pytest.fixture
def runs():
    """At site 15 all L0 are a tenth higher."""
    curves = {}
    for arm in ARMS:
        for seed in (0, 1):
            if arm in SHARES:
                columns = selecting(SHARES[arm][seed])
            else:
                columns = penalised(LEVELS.get(arm, (80.0, 80.0))[seed])
            curves[arm, 2, seed] = columns
            curves[arm, 15, seed] = columns | {"l0_val": [1.1 * x for x in columns["l0_val"]]}
    return runs_of(curves)


def test_the_setting_of_an_l0_is_the_mean_over_seeds(runs):
    found = f5_items.settings_at_l0(runs, 32.0)
    assert found["plain", 2] == 2.56  # of 80 / 32 and 84 / 32, with three digits
    assert found["full", 2] == 3.06
    assert found["plain", 15] == 2.82
    assert found["topk", 2] == 35.0  # of 32 / 0.95 and 32 / 0.9: a whole k
    assert found["batchtopk", 2] == 34.0


def test_an_architecture_that_one_seed_does_not_bring_to_the_l0_is_left_out(runs):
    found = f5_items.settings_at_l0(runs, 32.0)
    missing = {"jumprelu", "jumprelu_tanh", "matryoshka"}  # one seed of each has it
    assert list(found) == [(arm, site) for arm in ARMS for site in (2, 15) if arm not in missing]


class Recording(PowerLaws):
    """Keeps what it is asked to train, and trains nothing."""

    def train(self, specs, notebook):
        self.asked = (notebook, list(specs))


def test_each_architecture_is_trained_at_its_setting_with_every_seed(runs):
    ws = Recording()
    p = params("07_architectures", lr=1e-3, lr_topk=5e-4)
    specs = f5_items.train(ws, p, runs, 32.0)
    assert list(specs) == list(f5_items.settings_at_l0(runs, 32.0))
    plain = specs["plain", 15]
    assert [(s.arm, s.sae.site, s.train.seed) for s in plain] == [
        ("plain", 15, 0),
        ("plain", 15, 1),
    ]
    assert {(s.train.lam, s.train.lr, s.sae.n_latents) for s in plain} == {
        (2.82, 1e-3, p.n_latents)
    }
    topk = specs["topk", 2]
    assert [(s.arm, s.sae.site, s.train.seed) for s in topk] == [("topk", 2, 0), ("topk", 2, 1)]
    assert {(s.sae.options["k"], s.train.lr) for s in topk} == {(35, 5e-4)}
    notebook, asked = ws.asked
    assert notebook == "07_architectures"
    assert asked == [spec for group in specs.values() for spec in group]
