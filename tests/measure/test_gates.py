"""Gate statistics and the Gini coefficient, against hand arithmetic."""

import math

import numpy as np
import pytest
import torch

from saelib.measure.gates import gate_statistics, gini
from saelib.sae.history import Snapshot


def test_gini_by_hand():
    assert gini([1, 1, 1, 1]) == pytest.approx(0)
    assert gini([0, 0, 0, 5]) == pytest.approx(0.75)
    assert gini([3, 1]) == pytest.approx(0.25)  # Σ|a − b| / (2 n² mean) = 4 / (2 · 4 · 2)
    v = np.random.default_rng(0).exponential(size=50)
    naive = np.abs(v[:, None] - v).sum() / (2 * 50**2 * v.mean())
    assert gini(torch.from_numpy(v)) == pytest.approx(naive)
    assert math.isnan(gini([0, 0]))
    with pytest.raises(ValueError, match="below 0"):
        gini([-1, 1])


def snapshot(step, gates, rate=(1.0, 0.0), bias=(0.0, -1.0)):
    gates = torch.tensor(gates).bool()
    return Snapshot(step, 100 * step, torch.tensor(rate), gates, torch.tensor(bias))


def test_gate_statistics_by_hand():
    before = snapshot(1, [[1, 0], [1, 0], [0, 1], [0, 0]])  # p = 1/2, 1/4
    now = snapshot(
        2, [[1, 0], [0, 0], [1, 0], [0, 0]], rate=(0.5, 0.5), bias=(-1.0, -3.0)
    )  # q = 1/2, 0
    table = gate_statistics([before, now])
    assert table["step"].tolist() == [1, 2]
    assert table["tokens"].tolist() == [100, 200]
    assert table["open_fraction"].tolist() == pytest.approx([3 / 8, 2 / 8])
    assert table["never_open"].tolist() == [0, 0.5]
    assert np.isnan(table["persistence"][0])
    assert table["persistence"][1] == pytest.approx(1 / 3)  # of three open entries, one still is
    assert table["persistence_chance"][1] == pytest.approx((1 / 2 * 1 / 2 + 1 / 4 * 0) / (3 / 4))
    assert table["gini"].tolist() == pytest.approx([0.5, 0])
    assert table["b_gate_median"].tolist() == pytest.approx([-0.5, -2])
    assert table["b_gate_q10"][1] == pytest.approx(-2.8)


def test_persistence_meets_its_chance_level_for_independent_rows_and_is_one_for_frozen_gates():
    g = torch.Generator().manual_seed(0)
    rates = torch.tensor([0.9, 0.5, 0.1, 0.02])
    draws = [torch.rand(20_000, 4, generator=g) < rates for _ in range(2)]
    fields = {"tokens": 0, "fire_rate": rates, "b_gate": rates}
    free = gate_statistics([{"step": i, "open": d} | fields for i, d in enumerate(draws)]).iloc[1]
    assert free["persistence"] == pytest.approx(free["persistence_chance"], abs=0.01)
    assert (
        free["persistence_chance"] > 0.6 > free["open_fraction"]
    )  # the level keeps that some latents open often
    frozen = gate_statistics([{"step": i, "open": draws[0]} | fields for i in range(2)]).iloc[1]
    assert frozen["persistence"] == 1


def test_gate_snapshots_must_share_their_probe_rows_and_may_be_all_closed():
    with pytest.raises(ValueError, match=r"step 2: open is \(1, 2\), the one before \(2, 2\)"):
        gate_statistics([snapshot(1, [[1, 0], [1, 0]]), snapshot(2, [[1, 0]])])
    closed = gate_statistics([snapshot(i, [[0, 0], [0, 0]]) for i in (1, 2)])
    assert closed["persistence"].isna().all()
    assert (closed["never_open"] == 1).all()
