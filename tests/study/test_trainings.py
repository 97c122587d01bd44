"""What notebooks 02 to 07 train, asked of a workspace that trains nothing."""

import pandas as pd
import pytest
from helpers.f2_cases import params

from saelib.run.dry import DryWorkspace
from saelib.run.recorded import RecordedRuns
from saelib.study import trainings
from saelib.study.curve import Curve
from saelib.study.f2_gated import GatedRuns
from saelib.study.f5_architectures import PENALISED

NOTEBOOKS = (
    "02_train_sae",
    "03_train_gated",
    "04_resampling",
    "05_layer_analysis",
    "06_features",
    "07_architectures",
)
SITES = {2, 15, 29}
L0 = 32.0


def dry():
    """A workspace of 30 layers whose SAEs have the L0 of a power law of λ."""
    return DryWorkspace("toy", 30, 576, RecordedRuns.read())


def l0_of(spec):
    return dry().recorded.row(spec)["l0_val"]


@pytest.fixture(scope="module")
def ledgers():
    """What is asked of the workspace, and of the one of all depths."""
    ws, deep = dry(), dry()
    trainings.train_all(ws, deep, {name: params(name, seeds=[3]) for name in NOTEBOOKS})
    return ws.ledger, deep.ledger


def of(ledgers, notebook, **fields):
    """The specs that a notebook is the first to ask for, with these settings of training."""
    specs = ledgers[0].of_notebook(notebook)
    return [s for s in specs if all(getattr(s.train, k) == v for k, v in fields.items())]


def sites(specs):
    return {spec.sae.site for spec in specs}


def test_every_notebook_trains_something(ledgers):
    asked = {each.notebook for each in ledgers[0].trained.values()}
    assert asked == set(NOTEBOOKS)


def test_notebook_02_trains_the_sweep_the_original_recipe_and_the_schedules(ledgers):
    sweep = of(ledgers, "02_train_sae", schedule="linear", tokens_mask="ordinary", log_every=10)
    found = sorted((s.sae.site, s.train.lam) for s in sweep)
    assert found == [(site, lam) for site in sorted(SITES) for lam in (0.8, 2.5, 8.0)]
    assert {s.train.seed for s in sweep} == {3}
    original = of(ledgers, "02_train_sae", tokens_mask="all")
    assert {(s.sae.normalize, s.train.lam) for s in original} == {("none", 5.0)}
    assert sites(original) == SITES
    for schedule in ("constant", "cosine", "cosine_with_restarts"):
        assert sites(of(ledgers, "02_train_sae", schedule=schedule)) == {15}


def test_notebook_03_trains_three_arms_their_gates_and_other_lengths(ledgers):
    arms = {"plain", "two_term", "full"}
    specs = of(ledgers, "03_train_gated")
    assert sites(s for s in specs if s.arm == "full") == SITES
    for fields in ({"snapshots": 8}, {"tokens": 20480}):
        found = {(s.arm, s.sae.site) for s in of(ledgers, "03_train_gated", **fields)}
        assert found == {(arm, 15) for arm in arms}


def test_notebook_04_trains_with_and_without_resampling(ledgers):
    moments = {s.train.resample_at for s in of(ledgers, "04_resampling")}
    assert moments == {(), (0.25, 0.5)}


def test_notebook_05_trains_causes_and_choices_at_two_sites_and_dictionaries_at_all(ledgers):
    specs = of(ledgers, "05_layer_analysis")
    causes = of(ledgers, "05_layer_analysis", tokens=10240, b_dec_init="zero")
    assert sites(s for s in causes if s.sae.n_latents == 384) == {15, 29}
    assert {s.sae.normalize for s in causes} > {"none"}
    assert sites(of(ledgers, "05_layer_analysis", b_dec_init="mean")) == {15, 29}
    wider = [s for s in specs if s.sae.n_latents == 2 * 768]
    longer = of(ledgers, "05_layer_analysis", tokens=2 * 40960)
    assert sites(wider) == sites(longer) == SITES
    assert [l0_of(s) for s in wider] == pytest.approx([L0] * len(wider), rel=0.01)


def test_all_depths_are_trained_in_their_own_workspace(ledgers):
    ws, deep = ledgers
    asked = [each.spec for each in deep.trained.values()]
    assert {each.notebook for each in deep.trained.values()} == {"05_layer_analysis"}
    assert sites(asked) == {0, 9, 18, 27} | SITES
    assert {s.train.tokens for s in asked} == {20480}
    assert sites(each.spec for each in ws.trained.values()) == SITES


def test_notebook_06_trains_plain_and_gated_saes_at_the_l0(ledgers):
    specs = of(ledgers, "06_features")
    assert {s.arm for s in specs} == {"plain", "full"}
    assert sites(specs) == SITES


# -- one notebook alone


def test_items_are_told_from_selection_at_the_middle_l0():
    ws = dry()
    p = params("07_architectures", l0_targets=[16.0, 32.0, 64.0], sites=[2], refine=0)
    trainings.architectures(ws, p)
    specs = ws.ledger.of_notebook("07_architectures")
    for arm in PENALISED:
        asked = [round(l0_of(s), 1) for s in specs if s.arm == arm]
        assert [l0 for l0 in asked if 31.8 < l0 < 32.2], arm


def curve(level):
    """L0 = level / λ at three λ."""
    lambdas = [0.8, 2.5, 8.0]
    rows = pd.DataFrame({"lambda": lambdas, "l0_val": [level / lam for lam in lambdas]})
    return Curve(rows, pages=lambda run: None)


def test_dictionaries_of_05_are_trained_where_every_plain_sae_of_03_has_the_l0():
    levels = {("plain", 2): (80.0, 84.0), ("plain", 15): (80.0, 20.0), ("plain", 29): (96.0, 96.0)}
    levels |= {("full", site): (160.0, 160.0) for site in SITES}
    curves = {
        (*cell, seed): curve(of_seeds[seed]) for cell, of_seeds in levels.items() for seed in (0, 1)
    }
    ws = dry()
    runs = GatedRuns(curves, sorted(SITES), [0, 1])
    trainings.layer_analysis(ws, dry(), params("05_layer_analysis"), runs)
    specs = ws.ledger.of_notebook("05_layer_analysis")
    wider = {(s.sae.site, s.train.lam) for s in specs if s.sae.n_latents == 2 * 768}
    assert wider == {(2, 2.56), (29, 3.0)}  # of 80 / 32 and 84 / 32; one seed of 15 lacks it


def test_the_curves_of_03_are_handed_on_to_05():
    runs = trainings.train_gated(dry(), params("03_train_gated", seeds=[0, 1]))
    assert set(runs.curves) == {
        (arm, site, seed)
        for arm in ("plain", "two_term", "full")
        for site in SITES
        for seed in (0, 1)
    }


@pytest.mark.parametrize(
    ("notebook", "arms"),
    [("02_train_sae", {"plain"}), ("03_train_gated", {"plain", "two_term", "full"})],
)
def test_what_02_and_03_train_first_are_their_grids_of_lambda(notebook, arms):
    p = params(notebook, seeds=[0, 1])
    specs = trainings.first_specs(dry(), notebook, p)
    plain = {(s.sae.site, s.train.lam, s.train.seed) for s in specs if s.arm == "plain"}
    assert plain == {
        (site, lam, seed) for site in SITES for lam in (0.8, 2.5, 8.0) for seed in (0, 1)
    }
    assert {s.arm for s in specs} == arms
    assert len(specs) == len(arms) * len(plain)
