"""A study on a workspace that trains nothing: what is counted, and what is searched for."""

import pandas as pd
import pytest

from saelib.config import ConfigError, EvalConfig
from saelib.run.dry import DryWorkspace
from saelib.run.recorded import RecordedRuns
from saelib.study.curve import reach_l0

RECIPE = {"n_latents": 512, "tokens": 8192, "batch_size": 64}


@pytest.fixture
def ws(tmp_path):
    return DryWorkspace("toy", 12, 64, RecordedRuns.read(tmp_path / "none.csv"))


def sweep(ws, lambdas, notebook="02_x", seeds=(0,)):
    specs = [
        ws.spec("plain", ws.site("middle"), lam=lam, seed=seed, **RECIPE)
        for lam in lambdas
        for seed in seeds
    ]
    return ws.train(specs, notebook)


def test_an_sae_counts_once_for_the_notebook_that_asks_first(ws):
    sweep(ws, [1.0, 2.0], "02_x", (0, 1))
    sweep(ws, [2.0, 4.0], "03_y")
    assert len(ws.ledger.of_notebook("02_x")) == 4
    assert [spec.train.lam for spec in ws.ledger.of_notebook("03_y")] == [4.0]


def test_rows_come_back_in_order_with_an_l0_that_falls_with_lambda(ws):
    rows = sweep(ws, [4.0, 1.0])
    assert rows["lambda"].tolist() == [4.0, 1.0]
    assert rows["l0_val"].is_monotonic_increasing
    assert rows["site"].tolist() == [6, 6]


def test_what_is_measured_with_the_loss_is_told_apart(ws):
    quick = ws.measuring(EvalConfig(ce_tokens=0))
    sweep(quick, [1.0], "02_x")
    assert not ws.ledger.again
    sweep(ws, [1.0], "03_y")
    sweep(ws, [1.0], "04_z")
    (again,) = ws.ledger.again
    assert (again.notebook, again.spec.train.lam) == ("03_y", 1.0)
    assert ws.ledger.references == {6: "03_y"}
    assert len(ws.ledger.trained) == 1


def test_a_search_for_an_l0_runs_as_a_study_runs_it(ws):
    def make(lam):
        return ws.spec("plain", 2, lam=lam, **RECIPE)

    curve = reach_l0(ws, "03_y", make, {(): [0.1, 0.2]}, 12.0)[()]
    assert 2 < len(curve.rows) <= 5
    assert len(ws.ledger.trained) == len(curve.rows)
    assert curve.bracket(12.0) or len(curve.rows) == 5


def test_an_unknown_site_or_arm_is_refused_as_in_a_real_workspace(ws):
    with pytest.raises(ValueError, match="site 40"):
        ws.site(40)
    with pytest.raises(ConfigError, match="arm = 'topq'"):
        ws.spec("topq", 2)


def test_a_plan_has_no_sums_by_page(ws):
    with pytest.raises(RuntimeError, match="decide by rows"):
        ws.pages("0123")


def test_the_table_is_a_frame_even_of_nothing(ws):
    assert isinstance(ws.train([], "02_x"), pd.DataFrame)
