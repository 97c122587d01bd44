"""Curves over training, deaths and densities: what is drawn is what the table says."""

import numpy as np
from helpers.figure_examples import SURVIVORS, WITH, deaths, labels, lines, table

from saelib.show import training


def test_the_thick_learning_curve_is_the_mean_where_all_seeds_are_there() -> None:
    rows = table(
        "tokens label seed fvu", (0, "linear", 0, 1.0), (0, "linear", 1, 0.5), (9, "linear", 0, 0.4)
    )
    ax = training.learning_curves(rows, title="t").axes[0]
    np.testing.assert_allclose(lines(ax, "linear decay").get_xydata(), [[0, 0.75]])
    assert len(ax.lines) == 3


def test_resampling_is_the_line_style_and_its_moment_a_hairline() -> None:
    ax = training.dead_over_time(deaths(), **WITH).axes[0]
    assert lines(ax, "plain SAE, resampling").get_linestyle() == "-"
    assert lines(ax, "plain SAE, no resampling").get_linestyle() == "--"
    assert set(lines(ax, "a resampling").get_xdata()) == {1000}


def test_dead_latents_are_counted_not_binned() -> None:
    fig = training.feature_density({"plain": np.array([0.0, 0.0, 0.01, 0.1])}, title="t")
    assert labels(fig) == ["plain SAE\n2 of 4 dead (50 %)"]
    assert fig.axes[0].patches[0].get_data().values.sum() == 2


def test_survivors_say_their_share_and_none_where_nothing_died() -> None:
    fig = training.survivors(table("arm event revived alive_later", *SURVIVORS), title="t")
    assert [t.get_text() for t in fig.axes[0].texts] == ["25 %", "none\ndead"]
