"""Figures of depth: gaps, unreachable targets, an axis per quantity."""

import numpy as np
import pytest
from helpers.figure_examples import NAMED, lines, matched, norms, quantities

from saelib.show import activations, depth


def test_a_missing_site_is_a_gap_and_an_unreachable_cell_a_cross() -> None:
    fig = depth.layer_matched(matched(), **NAMED)
    line = lines(fig.axes[0], "Gated, two-term loss")
    assert np.isnan(line.get_ydata()).tolist() == [False, False, True]
    assert lines(fig.axes[0], "unreachable: Gated, two-term loss").get_xdata()[0] == pytest.approx(
        29, abs=0.1
    )
    profile = activations.norm_profile(norms(), title="t").axes[0]
    assert np.isnan(lines(profile, "sink tokens").get_ydata()).tolist() == [True, False, True]


def test_each_quantity_by_depth_has_its_own_panel_series_and_axis() -> None:
    norm, rank, fvu = depth.by_depth(quantities(), log=["norm"], **NAMED).axes
    assert [ax.get_title(loc="left") for ax in (norm, rank, fvu)] == ["norm", "rank", "FVU"]
    assert [(ax.get_yscale(), ax.get_ylim()[0] == 0) for ax in (norm, rank)] == [
        ("log", False),
        ("linear", True),
    ]
    assert lines(rank, "all tokens").get_ydata().tolist() == [10, 11, 12]
    assert [line.get_label() for line in fvu.lines] == [
        "plain SAE",
        "Gated, two-term loss",
        "Gated, full loss",
    ]
