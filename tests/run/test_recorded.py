"""What is recorded of an SAE, or predicted: looked up by what was trained, else along its curve."""

import math
from pathlib import Path

import pandas as pd
import pytest

from saelib.measure.columns import COLUMNS
from saelib.run.recorded import RecordedRuns, described, interpolated, predicted
from saelib.sae.spec import make_spec

RECORDED = Path(__file__).resolve().parents[2] / "data" / "recorded"
RECIPE = {
    "n_latents": 2304,
    "tokens": 102_400,
    "batch_size": 512,
    "lr": 1e-2,
    "schedule": "linear",
    "lam_warmup": 0.1,
    "grad_clip": 1.0,
}


@pytest.fixture(scope="module")
def runs():
    return RecordedRuns.read(RECORDED / "default" / "results.csv")


@pytest.mark.parametrize(("site", "lam"), [(2, 0.5), (15, 1.3), (29, 3.4)])
def test_an_sae_that_was_recorded_comes_back_as_it_was(runs, site, lam):
    row = runs.row(make_spec("plain", site, 576, lam=lam, **RECIPE))
    table = runs.table
    same = table[(table["site"] == site) & (table["lambda"] == lam) & (table["loss"] == "plain")]
    assert row["l0_val"] in set(same["l0_val"])
    assert row["run_id"] in set(same["run_id"])


def test_between_two_recorded_lambda_l0_lies_between_theirs(runs):
    l0 = [
        runs.row(make_spec("plain", 15, 576, lam=lam, **RECIPE))["l0_val"] for lam in (1.3, 2, 3.4)
    ]
    assert l0[0] > l0[1] > l0[2]


def test_another_seed_has_the_curve_of_the_recorded_one(runs):
    rows = [runs.row(make_spec("plain", 15, 576, lam=1.3, seed=seed, **RECIPE)) for seed in (0, 7)]
    assert rows[1]["l0_val"] == pytest.approx(rows[0]["l0_val"])
    assert rows[1]["seed"] == 7


def test_a_curve_of_two_points_goes_on_straight_in_logarithms():
    curve = pd.DataFrame({"lambda": [1.0, 4.0], "l0_val": [64.0, 16.0], "fvu": [0.2, 0.4]})
    assert interpolated(curve, 2.0)["l0_val"] == pytest.approx(32)
    assert interpolated(curve, 8.0)["l0_val"] == pytest.approx(8)
    assert interpolated(curve, 2.0)["fvu"] == pytest.approx(math.sqrt(0.08))


def test_a_curve_whose_saes_all_collapsed_stays_collapsed():
    curve = pd.DataFrame({"lambda": [1.0, 4.0], "l0_val": [0.0, 0.0], "fvu": [1.0, 1.0]})
    assert interpolated(curve, 2.0)["l0_val"] == 0


def test_without_a_record_l0_falls_with_lambda_and_grows_with_the_width(tmp_path):
    runs = RecordedRuns.read(tmp_path / "results.csv")
    small, large = (runs.row(make_spec("plain", 2, 64, lam=lam)) for lam in (1.0, 4.0))
    assert small["l0_val"] > large["l0_val"] > 1
    wide = predicted(make_spec("plain", 2, 4096, lam=4.0, n_latents=16384))
    assert wide["l0_val"] > large["l0_val"]
    assert set(COLUMNS) <= set(small)


def test_the_scale_of_a_site_follows_from_its_errors_in_both_units(runs):
    row = runs.table[runs.table["normalize"] == "center_scale"].iloc[0]
    scale = runs.scale(int(row["site"]), "center_scale", "ordinary")
    assert scale**2 * row["mse_raw"] == pytest.approx(row["mse"], rel=1e-6)
    assert runs.scale(7, "center_scale", "ordinary") is None


def test_a_curve_with_lambda_zero_is_planned():
    curve = pd.DataFrame(
        {"lambda": [0.0, 1.0, 4.0], "l0_val": [90.0, 64.0, 16.0], "fvu": [0.1, 0.2, 0.4]}
    )
    assert interpolated(curve, 2.0)["l0_val"] == pytest.approx(32.0)
    assert interpolated(curve, 0.0)["l0_val"] > 64.0


def test_one_k_is_not_taken_for_another():
    few, many = (make_spec("topk", 2, 64, n_latents=128, k=k) for k in (4, 16))
    row = described(few) | {"l0_val": 4.0, "note": "recorded"}
    runs = RecordedRuns(pd.DataFrame([row]))
    assert runs.row(few)["note"] == "recorded"
    assert runs.row(many).get("note") != "recorded"
    assert runs.row(many)["l0_val"] == 16
    another = make_spec("topk", 2, 64, n_latents=128, k=4, seed=1)
    assert runs.row(another)["l0_val"] == 4


@pytest.mark.parametrize(("arm", "l0"), [("topk", 4.0), ("batchtopk", 3.75)])
def test_another_seed_has_k_or_the_l0_that_was_measured_at_it(arm, l0):
    first, another = (make_spec(arm, 2, 64, n_latents=128, k=4, seed=seed) for seed in (0, 1))
    runs = RecordedRuns(pd.DataFrame([described(first) | {"l0_val": 3.75, "fvu": 0.2}]))
    assert runs.row(another)["l0_val"] == l0
    assert predicted(another)["l0_val"] == 4  # of which nothing is recorded
