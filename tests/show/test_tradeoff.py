"""Trade-offs: what is drawn is what the table says."""

import numpy as np
import pandas as pd
import pytest
from helpers.figure_examples import PCA, SITES, labels, lines, sweep, table

from saelib.show import tradeoff


def test_bars_of_a_trade_off_stand_at_the_mean_over_seeds():
    rows = table(
        "arm site lambda seed l0 fvu lo hi",
        *[("plain", 2, 1.0, s, l0, 0.4, 0.3, 0.5) for s, l0 in ((0, 10), (1, 40))],
    )
    (bars,) = [
        c
        for c in tradeoff.trade_off(rows, title="t", interval="pages").axes[0].collections
        if len(c.get_segments())
    ]
    assert [s.tolist() for s in bars.get_segments()] == [
        [[pytest.approx(20), 0.3], [pytest.approx(20), 0.5]]
    ]


def test_one_curve_in_two_units_has_one_x_axis_each():
    one = table("arm site lambda l0 fvu", *[("plain", 2, lam, 10, 0.4) for lam in (1.0, 2.0)])
    both = pd.concat(
        [one.assign(panel="normalised"), one.assign(panel="raw", **{"lambda": [100.0, 200.0]})]
    )
    axes = tradeoff.trade_off_by_lambda(both, title="t").axes
    assert [ax.get_title(loc="left") for ax in axes[:2]] == ["normalised", "raw"]
    assert axes[1].get_xlim()[0] > axes[0].get_xlim()[1]


def test_the_trade_off_line_goes_through_the_seeds_geometric_means() -> None:
    points = (
        (1.0, 40, 0.1),
        (1.0, 10, 0.4),
        (1.5, 8, 0.9),
        (2.0, 5, 0.5),
        (2.0, 5, 0.5),
    )  # 1.5: one seed alone
    rows = table("arm site lambda l0 fvu", *(("plain", 2, *point) for point in points))
    fig = tradeoff.trade_off(rows, title="t")
    line = lines(fig.axes[0], "plain SAE")
    np.testing.assert_allclose(line.get_xydata(), [[20, 0.2], [5, 0.5]])  # √(40·10), √(0.1·0.4)
    assert [len(one.get_xdata()) for one in fig.axes[0].lines[:2]] == [
        2,
        5,
    ]  # the mean, then every seed
    assert fig.axes[0].get_xscale() == fig.axes[0].get_yscale() == "log"


def test_a_shut_gate_is_drawn_at_the_edge_and_named() -> None:
    fig = tradeoff.trade_off(sweep().drop(columns=["lo", "hi"]), PCA, title="t")
    mark = lines(fig.axes[0], "collapsed: L0 ≤ 0.5")
    np.testing.assert_allclose(mark.get_xydata(), [[0.5, 0.8]])
    assert {"collapsed: L0 ≤ 0.5", "mean predictor (FVU = 1)", "PCA of rank k = L0"} <= set(
        labels(fig)
    )


def test_the_mean_predictor_stands_at_one_and_pca_stays_in_sight() -> None:
    pca = table("site rank fvu", (2, 0, 1.01), (2, 1, 0.9), (2, 500, 1e-9))
    fig = tradeoff.trade_off(sweep().drop(columns=["lo", "hi"]).query("site == 2"), pca, title="t")
    assert set(lines(fig.axes[0], "mean predictor (FVU = 1)").get_ydata()) == {1}
    np.testing.assert_allclose(lines(fig.axes[0], "PCA of rank k = L0").get_xydata(), [[1, 0.9]])


def test_the_chosen_run_is_ringed() -> None:
    rows = sweep().drop(columns=["lo", "hi"])
    fig = tradeoff.trade_off(rows, title="t", highlight=rows.index[4])
    drawn = [(i, line) for i, ax in enumerate(fig.axes) for line in ax.lines]
    rings = [(i, line.get_xydata()) for i, line in drawn if line.get_label() == "chosen"]
    ((panel, at),) = rings
    assert panel == SITES.index(rows.loc[4, "site"])
    np.testing.assert_allclose(at, [rows.loc[4, ["l0", "fvu"]].astype(float)])
