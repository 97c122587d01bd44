"""F2d: gates watched over training, their excess over the plain SAE's, and every verdict."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.f2_cases import FULL, ONE_SEED, PowerLaws, estimate, params

from saelib.sae.history import Snapshot
from saelib.study import f2_gated, f2_gates

ABOVE = estimate(0.1, 0.06, 0.14)
BELOW = estimate(-0.1, -0.14, -0.06)
TOUCHING = estimate(0.1, 0.05, 0.15)


@pytest.mark.parametrize(
    ("persistence", "gini", "verdict"),
    [
        (ABOVE, ABOVE, "supported"),
        (ABOVE, BELOW, "contradicted"),
        (BELOW, BELOW, "contradicted"),
        (ABOVE, TOUCHING, "undecided"),
        (estimate(0.05, 0.0, 0.05), ABOVE, "undecided"),
        (f2_gates.student([0.1]), ABOVE, "undecided"),
    ],
)
def test_gates_are_biased_where_both_persistence_and_gini_exceed(persistence, gini, verdict):
    assert f2_gates.decide({"persistence": persistence, "Gini": gini}, 3, True) == verdict


@pytest.mark.parametrize(("n_seeds", "on_target"), [(2, True), (3, False)])
def test_two_seeds_or_an_arm_at_another_l0_leave_it_undecided(n_seeds, on_target):
    differences = {"persistence": ABOVE, "Gini": ABOVE}
    assert f2_gates.decide(differences, n_seeds, on_target) == "undecided"


def test_a_student_interval_is_exact_and_missing_below_two_seeds():
    three = f2_gates.student([1.0, 2.0, 3.0])
    half = 4.303 / 3**0.5
    assert three.value == 2.0
    assert three.lo == pytest.approx(2 - half, abs=1e-3)
    assert three.hi == pytest.approx(2 + half, abs=1e-3)
    assert f2_gates.student([0.5]).text("+.2f") == "+0.50 (no interval)"


def test_arms_are_watched_at_their_lambda_for_the_l0_with_three_digits():
    ws = PowerLaws()
    p = params("03_train_gated")
    watched = f2_gates.train(ws, p)
    assert watched.lambdas == {"plain": 2.5, "two_term": 0.25, "full": 3.12}
    assert watched.off_target == []
    assert all(spec.train.snapshots == p.snapshots for spec in watched.specs.values())
    assert {spec.sae.site for spec in watched.specs.values()} == {15}


def test_an_arm_that_never_has_the_l0_is_watched_at_its_first_lambda():
    p = params("03_train_gated", l0_target=1e5)
    watched = f2_gates.train(PowerLaws(), p)
    assert watched.off_target == list(f2_gated.ARMS)
    assert watched.lambdas["two_term"] == 0.05


def snapshots(rows, rates, bias):
    """Two snapshots with the same open gates: everything persists."""
    gates = torch.tensor(rows, dtype=torch.bool)
    return [
        Snapshot(step, 64 * step, torch.tensor(rates), gates, torch.full((gates.shape[1],), bias))
        for step in (1, 2)
    ]


@pytest.fixture
def gates():
    even = snapshots([[1, 0], [0, 1]], [0.5, 0.5], -1.0)
    uneven = snapshots([[1, 0], [1, 0]], [1.0, 0.0], -2.0)
    by_arm = {"plain": even, "two_term": uneven, "full": even}
    states = {(arm, seed): snaps for arm, snaps in by_arm.items() for seed in (0, 1)}
    table = f2_gates.statistics(states)
    biases = [torch.stack([snap.b_gate for snap in uneven])]
    return f2_gates.Gates(table, f2_gates.by_run(table), biases, 2)


def test_persistence_beyond_chance_is_one_where_gates_never_change(gates):
    assert f2_gates.by_arm(gates)["beyond_chance"]["plain"] == 1.0
    assert f2_gates.by_arm(gates)["gini"]["two_term"] > f2_gates.by_arm(gates)["gini"]["plain"]


def test_checks_see_a_bias_that_rises(gates):
    assert [holds for holds, _ in f2_gates.checks(gates)][:2] == [True, True]
    # the two-term gates are open always or never: nothing is beyond chance
    assert f2_gates.checks(gates)[2][0] == "it is undefined in 1 of 3 arms"
    known = gates._replace(by_run=gates.by_run.fillna(0.5))
    assert f2_gates.checks(known)[2][0] is True
    assert f2_gates.rises(torch.tensor([[0.1, -0.1]]))
    assert not f2_gates.rises(torch.tensor([[0.0, -0.1], [-0.1, -0.1]]))


@pytest.mark.parametrize(
    ("persistence", "gini", "title"),
    [
        (ABOVE, ABOVE, "Two-term gates persist more and concentrate more than plain ones"),
        (BELOW, ABOVE, "Two-term gates persist less and concentrate more than plain ones"),
        (
            ABOVE,
            estimate(0.1, -0.1, 0.3),
            "Two-term gates persist more than plain ones; concentration does not clearly differ",
        ),
        (
            estimate(0.1, -0.1, 0.3),
            estimate(-0.1, -0.3, 0.1),
            "Two-term gates do not clearly differ from plain ones",
        ),
        (
            estimate(0.1, np.nan, np.nan),
            estimate(-0.1, np.nan, np.nan),
            "Two-term gates persist more and concentrate less than plain ones",
        ),
        (
            estimate(np.nan, np.nan, np.nan),
            ABOVE,
            "Gates over training: some arm never opens a gate",
        ),
    ],
)
def test_the_title_says_how_two_term_gates_differ(persistence, gini, title):
    assert f2_gates.title({"persistence": persistence, "Gini": gini}) == title


def test_without_a_difference_nothing_is_decided():
    assert f2_gates.decide({}, 3, on_target=True) == "undecided"


def test_the_finding_says_its_numbers_and_is_undecided_with_one_seed(gates):
    p = params("03_train_gated")
    rows = pd.DataFrame({"arm": list(f2_gated.ARMS), "l0": 32.0, "fvu": 0.3})
    watched = f2_gates.Watched({}, {"plain": 2.5}, [], rows, 15)
    result = f2_gates.finding(gates, watched, p, ONE_SEED)
    assert result.verdict == "undecided"
    assert "Gated, two-term loss" in result.sentence
    assert next(iter(result.estimates)) == "persistence, two-term less plain"
    assert len(f2_gates.figure(gates, watched, FULL).get_suptitle().split()) <= 12


class Snapshots:
    """A workspace that has these snapshots of its SAEs, by spec."""

    def __init__(self, kept):
        self.kept = kept

    def snapshots(self, spec):
        return self.kept[spec]


def test_each_arm_and_seed_is_watched_by_its_own_snapshots():
    opened = {"plain": [[1, 0], [0, 1], [1, 0]], "full": [[1, 1], [1, 1], [1, 1]]}
    opened["two_term"] = [[1, 0], [1, 0], [0, 0]]
    kept, specs = {}, {}
    for i, arm in enumerate(f2_gated.ARMS):
        for seed in (0, 1):
            spec = PowerLaws().spec(arm, 15, lam=1.0, seed=seed)
            specs[arm, seed] = spec
            kept[spec] = snapshots(opened[arm], [0.5, 0.25 * seed], -1.0 - i - 0.5 * seed)
    watched = f2_gates.Watched(specs, {}, [], pd.DataFrame(), 15)
    found = f2_gates.watch(Snapshots(kept), watched)
    assert found.n_rows == 3
    share = {"plain": 3 / 6, "two_term": 2 / 6, "full": 1.0}
    assert list(found.by_run.index) == sorted(specs)
    for (arm, seed), row in found.by_run.iterrows():
        assert row["open_fraction"] == pytest.approx(share[arm])
        bias = -1.0 - f2_gated.ARMS.index(arm) - 0.5 * seed
        assert row["b_gate_median"] == bias
    assert [biases.tolist() for biases in found.biases] == [
        [[-2.0, -2.0]] * 2,  # of the two-term arm, snapshot by snapshot
        [[-2.5, -2.5]] * 2,
    ]


def test_arms_end_with_the_means_over_seeds_of_their_last_snapshot_and_their_l0():
    ends = dict.fromkeys(f2_gates.ENDS, 0.5)
    by_run = pd.DataFrame(
        [
            {"arm": arm, "seed": seed} | ends | {"gini": 0.1 * i + 0.2 * seed}
            for i, arm in enumerate(sorted(f2_gated.ARMS))
            for seed in (0, 1)
        ]
    ).set_index(["arm", "seed"])
    rows = pd.DataFrame(
        {
            "arm": ["two_term", "two_term", "plain", "plain", "full", "full"],
            "l0": [20.0, 22.0, 31.0, 33.0, 40.0, 42.0],
            "fvu": [0.4, 0.5, 0.3, 0.3, 0.2, 0.1],
        }
    )
    gates = f2_gates.Gates(pd.DataFrame(), by_run, [], 2)
    table = f2_gates.end_table(gates, f2_gates.Watched({}, {}, [], rows, 15))
    assert list(table.index) == list(f2_gated.ARMS)
    assert list(table.columns) == [*f2_gates.ENDS, "l0", "fvu"]
    assert table["gini"].to_dict() == pytest.approx({"full": 0.1, "plain": 0.2, "two_term": 0.3})
    assert table["l0"].to_dict() == {"plain": 32.0, "two_term": 21.0, "full": 41.0}
    expected = {"plain": 0.3, "two_term": 0.45, "full": 0.15}
    assert table["fvu"].to_dict() == pytest.approx(expected)
