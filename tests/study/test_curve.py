"""Curves of λ on a made workspace: reached by further λ, interpolated, never extrapolated."""

import numpy as np
import pandas as pd
import pytest

from saelib.sae.spec import make_spec
from saelib.study.curve import Curve, curves_over_seeds, matched, reach_l0
from saelib.study.estimate import of_pages

RECIPE = {"n_latents": 32, "tokens": 1024, "batch_size": 64}


def page_sums(fvu):
    sst = np.array([10.0, 20.0, 30.0, 20.0, 10.0, 20.0])
    columns = {"sse": fvu * sst, "sst": sst, "ce_n": [9, 9, 9, 9, 9, 0]}
    losses = {"ce_sae": [3.0, 5.0, 4.0, 5.0, 3.0, 0.0], "ce_id": [2.0, 4.0, 3.0, 3.0, 2.0, 0.0]}
    losses |= {"ce_zero": [6.0, 6.0, 7.0, 8.0, 7.0, 0.0], "ce_mean": [4.0, 6.0, 5.0, 6.0, 5.0, 0.0]}
    return pd.DataFrame(columns | losses)


class PowerLaws:
    """A workspace whose SAEs have L0 = level / λ and FVU = 0.01 λ, without training any."""

    def __init__(self, level=100.0):
        self.level = level
        self.fvu = {}
        self.rounds = []

    def train(self, specs, notebook):
        self.rounds.append(len(specs))
        return pd.DataFrame([self._row(spec) for spec in specs])

    def _row(self, spec):
        lam = spec.train.lam
        run = f"{spec.sae.site}-{spec.train.seed}-{lam:g}"
        self.fvu[run] = 0.01 * lam
        row = {"run_id": run, "lambda": lam, "seed": spec.train.seed, "fvu": 0.01 * lam}
        return row | {"l0_val": self.level / lam, "kl": lam}

    def pages(self, run):
        return page_sums(self.fvu[run])


def make(lam):
    return make_spec("plain", 2, 16, lam=lam, **RECIPE)


def make_of_seed(site, seed, lam):
    return make_spec("plain", site, 16, lam=lam, seed=seed, **RECIPE)


def curve_of(lams, l0):
    return Curve(pd.DataFrame({"lambda": lams, "l0_val": l0}), page_sums)


def test_a_bracket_holds_the_nearest_point_on_either_side():
    curve = curve_of([4.0, 1.0, 2.0, 8.0], [9.0, 50.0, 20.0, 0.0])
    assert curve.bracket(12) == [2.0, 4.0]
    assert curve.bracket(20) == [2.0]  # one that has it is both sides
    assert curve.bracket(5) == []  # a collapsed one is no side
    assert curve.bracket(60) == []


def test_l0_is_reached_by_further_lambda_and_interpolated_never_extrapolated():
    ws = PowerLaws()
    curve = reach_l0(ws, "02_x", make, {(): [8.0, 16.0]}, 20)[()]
    assert ws.rounds == [2, 1]
    assert curve.rows["l0_val"].max() >= 20
    assert curve.at_l0(20) == pytest.approx(0.05)  # log-log, so a power law is exact
    assert curve.at_l0(20, "lambda") == pytest.approx(5.0)
    assert Curve(curve.rows.iloc[:2], ws.pages).at_l0(20) is None


def test_no_more_lambda_are_tried_than_allowed():
    ws = PowerLaws()
    curve = reach_l0(ws, "02_x", make, {(): [1.0]}, 0.01, max_extra=2)[()]
    assert len(curve.rows) == 3
    assert curve.at_l0(0.01) is None
    assert not curve.samples_at_l0(0.01).defined


def test_a_bracket_wider_than_a_factor_two_is_refined_as_often_as_asked_and_no_more():
    ws = PowerLaws()
    assert len(reach_l0(ws, "02_x", make, {(): [1.0, 64.0]}, 12.0)[()].rows) == 2
    once = reach_l0(ws, "02_x", make, {(): [1.0, 64.0]}, 12.0, refine=1)[()]
    assert once.rows["lambda"].tolist() == [1.0, 64.0, 8.0]
    close = reach_l0(ws, "02_x", make, {(): [1.0, 64.0]}, 12.0, refine=9)[()]
    sides = close.rows.set_index("lambda").loc[close.bracket(12.0), "l0_val"]
    assert sides.max() <= 2 * sides.min()
    assert len(close.rows) < 8


def test_later_seeds_begin_where_the_first_one_has_the_target():
    ws = PowerLaws()
    curves = curves_over_seeds(
        ws, "02_x", make_of_seed, {(2,): [1.0, 4.0, 16.0, 64.0]}, [0, 1], 12.0
    )
    assert set(curves) == {(2, 0), (2, 1)}
    assert curves[2, 1].rows["lambda"].tolist() == curves[2, 0].bracket(12.0) == [4.0, 16.0]
    assert set(curves[2, 1].rows["seed"]) == {1}


def test_a_curve_without_saes_reaches_nothing():
    assert not matched([], [], 32).defined


def test_samples_are_interpolated_draw_by_draw():
    curve = [page_sums(fvu) for fvu in (0.4, 0.1)]
    middle = matched(curve, [10, 40], 20, n=20)
    assert middle.draws == pytest.approx(np.full(21, 0.2))  # log-log middle
    linear = matched(curve[:1] * 2, [10, 40], 20, "loss_recovered", n=20)
    assert linear.draws == pytest.approx(of_pages(curve[0], "loss_recovered", n=20).draws)
    assert np.isnan(matched(curve, [10, 40], 41, n=20).draws).all()


def test_an_interval_is_stretched_by_what_interpolation_may_be_off():
    curve = [page_sums(fvu) for fvu in (0.4, 0.1)]
    middle = matched(curve, [10, 40], 20)
    assert middle.stretch == pytest.approx(0.2 * 0.2 * np.log(2) ** 2 / 2)
    assert (middle.lo, middle.hi) == pytest.approx((0.2 - middle.stretch, 0.2 + middle.stretch))
    assert matched(curve, [10, 40], 10).stretch == 0  # on a point
    collapsed = [*curve, page_sums(1.0)]
    assert matched(collapsed, [10, 40, 0], 20).stretch == middle.stretch
    unmeasured = [*curve, page_sums(0.3).assign(ce_n=0)]
    of_loss = matched(unmeasured, [10, 40, 19], 20, "loss_recovered")
    assert of_loss.stretch == pytest.approx(0.1 * np.log(2) ** 2 / 2)


def test_a_curve_s_samples_come_from_the_pages_of_its_runs():
    curve = reach_l0(PowerLaws(), "02_x", make, {(): [2.0, 16.0]}, 20)[()]
    assert curve.samples_at_l0(20).value == pytest.approx(curve.at_l0(20))
