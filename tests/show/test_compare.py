"""Comparisons: blocks of groups, and how changes lead from a first value to a last."""

import numpy as np
import pandas as pd
import pytest
from helpers.figure_examples import NAMED, effects, lines, table

from saelib.show import compare

CHANGES = pd.DataFrame(
    {
        "group": ["begin", "up", "down", "end"],
        "value": [-0.2, 0.5, -0.1, 0.2],
        "lo": [-0.3, 0.4, -0.2, 0.1],
        "hi": [-0.1, 0.6, 0.0, 0.3],
    }
)


def fall(table: pd.DataFrame = CHANGES, seeds: pd.DataFrame | None = None):
    return compare.waterfall(table, seeds, title="t", value_label="gap", interval="pages")


def test_blocks_head_their_groups_and_leave_the_values_where_they_are():
    rows = {"block": ["codes", "codes", "baselines"], "group": ["a", "b", "c"]}
    table = pd.DataFrame(rows).assign(hue="plain", value=[1.0, 2.0, 3.0])
    ax = compare.interval_points(table, title="t", value_label="v").axes[0]
    labels = ax.get_yticklabels()
    assert [label.get_text() for label in labels] == ["codes", "a", "b", "baselines", "c"]
    bold = [label.get_text() for label in labels if label.get_fontweight() == "bold"]
    assert bold == ["codes", "baselines"]
    (dots,) = ax.lines
    assert dots.get_xdata().tolist() == [1.0, 2.0, 3.0]
    places = ax.get_yticks()
    assert dots.get_ydata().tolist() == pytest.approx([places[1], places[2], places[4]])


def test_each_bar_starts_where_the_one_before_ended():
    ax = fall().axes[0]
    ends = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches]
    expected = [(0, -0.2), (-0.2, 0.3), (0.3, 0.2), (0, 0.2)]
    np.testing.assert_allclose(ends, expected, atol=1e-12)
    assert [text.get_text() for text in ax.texts] == ["−0.20", "+0.50", "−0.10", "0.20"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["begin", "up", "down", "end"]


def test_intervals_of_changes_stand_at_the_ends_of_their_bars():
    ax = fall().axes[0]
    bars = [c.get_segments()[0][:, 0].tolist() for c in ax.collections]
    assert [pytest.approx(x) for x in ([-0.3, -0.1], [0.2, 0.4], [0.1, 0.3], [0.1, 0.3])] == [
        bar for bar in bars if bar[0] != bar[1]
    ]


def test_seeds_stand_at_the_end_of_their_change():
    seeds = pd.DataFrame({"group": ["up"], "value": [0.45]})
    fig = fall(seeds=seeds)
    dots = [line for line in fig.axes[0].lines if line.get_marker() == "o"]
    assert dots[0].get_xdata().tolist() == [pytest.approx(0.25)]
    assert fig.get_supxlabel().startswith("Small open points: seeds.")


def test_changes_that_do_not_add_up_are_refused():
    wrong = CHANGES.assign(value=[-0.2, 0.5, -0.1, 0.3])
    with pytest.raises(ValueError, match=r"add up to 0\.2, the last value is 0\.3"):
        fall(wrong)


def test_a_missing_change_is_named_and_the_totals_still_stand():
    table = CHANGES.assign(value=[-0.2, np.nan, -0.1, 0.2], note="unreachable")
    ax = fall(table.drop(columns=["lo", "hi"])).axes[0]
    assert "unreachable" in [text.get_text() for text in ax.texts]
    assert len(ax.patches) == 3


def test_a_missing_value_is_said_in_words_and_never_drawn_as_zero() -> None:
    ax = compare.interval_points(effects(), value_label="effect", **NAMED).axes[0]
    assert [t.get_text() for t in ax.texts] == ["not applicable"] * 3
    drawn = lines(ax, "plain SAE").get_xdata()
    assert np.isnan(drawn[0])
    assert drawn[1] == -0.2
    assert [t.get_text() for t in ax.get_yticklabels()] == ["normal", "die"]


def test_a_hue_may_be_missing_from_a_panel() -> None:
    rows = table("group hue panel value", ("a", "plain", "left", 1.0), ("a", "full", "left", 2.0))
    rows = pd.concat(
        [rows, table("group hue panel value", ("a", "full", "right", 3.0))], ignore_index=True
    )
    left, right = compare.interval_points(rows, value_label="v", title="t").axes
    assert [line.get_xdata().tolist() for line in left.lines] == [[1.0], [2.0]]
    assert [line.get_xdata().tolist() for line in right.lines] == [[], [3.0]]


def test_interval_bars_reach_from_lo_to_hi() -> None:
    rows = table("group hue value lo hi", ("a", "plain", 1.0, 0.5, 2.0))
    ax = compare.interval_points(rows, value_label="v", title="t", interval="i").axes[0]
    ((low, high),) = ax.collections[0].get_segments()
    assert (low[0], high[0]) == (0.5, 2.0)
