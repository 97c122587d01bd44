"""A figure with nothing to draw, or with values that an axis cannot show, says so in words."""

import io
import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from saelib.show import activations, compare, depth, panels, tradeoff, training


def texts(fig: Figure) -> list[str]:
    """Every word inside the panels, line breaks apart."""
    return [text.get_text().replace("\n", " ") for ax in fig.axes for text in ax.texts]


def drawn(fig: Figure) -> Figure:
    """The figure after it was drawn without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fig.savefig(io.BytesIO(), format="png")
    return fig


def sweep(**columns: object) -> pd.DataFrame:
    """The plain SAE at two sites and two λ."""
    rows = [("plain", site, lam, 20 / lam, 0.3, 0.9) for site in (2, 3) for lam in (1.0, 2.0)]
    table = pd.DataFrame(rows, columns=["arm", "site", "lambda", "l0", "fvu", "loss_recovered"])
    return table.assign(**columns)


def test_an_empty_figure_gives_title_reason_and_note():
    fig = drawn(panels.empty_figure("No latent died", "no latent was resampled", "Two seeds."))
    assert fig.get_suptitle() == "No latent died"
    assert texts(fig) == ["Nothing to draw: no latent was resampled."]
    assert fig.get_supxlabel() == "Two seeds."


def test_a_table_without_rows_says_so_under_its_title():
    table = pd.DataFrame(columns=["arm", "event", "revived", "alive_later"])
    fig = drawn(training.survivors(table, title="Nothing was revived", note="One seed."))
    assert fig.get_suptitle() == "Nothing was revived"
    assert texts(fig) == ["Nothing to draw: this run has no row of the table behind this figure."]


def test_loss_recovered_that_is_undefined_everywhere_is_said():
    table = sweep(loss_recovered=np.nan)
    fig = drawn(tradeoff.trade_off(table, title="t", y="loss_recovered", note="n"))
    assert texts(fig) == ["Nothing to draw: loss recovered is undefined for every SAE."]


def test_loss_recovered_that_is_undefined_at_one_site_is_said_in_its_panel():
    table = sweep(loss_recovered=[np.nan, np.nan, 1.2, 1.1])
    fig = drawn(tradeoff.trade_off(table, title="t", y="loss_recovered"))
    assert texts(fig) == ["loss recovered undefined here"]
    assert fig.axes[1].get_xscale() == "log"
    assert fig.axes[1].get_ylim()[1] > 1.2  # above 1 is not cut off


def test_codes_that_are_all_empty_stand_at_the_edge():
    fig = drawn(tradeoff.trade_off(sweep(l0=0.0), title="t"))
    label = "collapsed: L0 ≤ 0.5"
    assert label in [line.get_label() for line in fig.axes[0].lines]


@pytest.mark.parametrize("draw", [tradeoff.trade_off_by_lambda, tradeoff.shrinkage])
def test_undefined_values_over_lambda_or_l0_are_said(draw: object):
    table = sweep(fvu=np.nan, l0=np.nan, shrinkage=np.nan)
    assert "undefined for every SAE" in texts(drawn(draw(table, title="t")))[0]


def test_an_l0_that_nothing_reaches_is_named():
    rows = [(site, "plain", target, np.nan) for site in (2, 3) for target in (16, 32)]
    table = pd.DataFrame(rows, columns=["site", "arm", "l0_target", "fvu"])
    fig = drawn(depth.layer_matched(table, title="t"))
    assert texts(fig) == ["Nothing to draw: no λ reaches L0 = 16, 32 at any site."]


def test_classes_without_a_value_anywhere_are_said():
    rows = pd.DataFrame({"site": [2], "recipe": ["r"], "class": ["sink"], "fvu": [np.nan]})
    fig = drawn(depth.layer_reconstruction(rows, title="t"))
    assert texts(fig) == ["Nothing to draw: the FVU is undefined at every site."]


def test_an_axis_without_a_positive_value_stays_linear():
    table = pd.DataFrame({"tokens": [1, 2], "label": "linear", "l0": 0.0})
    assert drawn(training.learning_curves(table, title="t")).axes[0].get_yscale() == "linear"


def test_a_measure_without_a_value_is_left_out_or_named_at_the_site_that_lacks_it():
    table = pd.DataFrame({"tokens": [1, 1], "label": "linear", "site": [2, 3], "l0": 1.0})
    table = table.assign(fvu=[np.nan, 0.5], dead_fraction=np.nan)
    fig = drawn(training.learning_curves(table, title="t"))
    assert len(fig.axes) == 4  # FVU and L0 at two sites, no row for dead latents
    assert texts(fig) == ["undefined here"]
    none = drawn(training.learning_curves(table.drop(columns=["l0"]).assign(fvu=np.nan), title="t"))
    assert texts(none) == ["Nothing to draw: every measure is undefined throughout."]


def test_ratios_that_nothing_reaches_are_named_on_a_logarithmic_axis():
    rows = {"group": ["a", "b"], "hue": "plain", "value": np.nan, "note": "unreachable"}
    fig = drawn(compare.interval_points(pd.DataFrame(rows), title="t", value_label="v", log=True))
    assert texts(fig) == ["unreachable", "unreachable"]
    assert fig.axes[0].get_xscale() == "linear"


@pytest.mark.parametrize("lows", [None, [1.0, -0.6]])
def test_a_value_below_zero_is_on_the_axis_with_the_zero_drawn(lows: list | None):
    values = [1.5, -0.4] if lows is None else [1.5, 0.1]
    table = pd.DataFrame({"panel": "ΔCE (nats)", "series": "plain", "site": [2, 3]})
    table = table.assign(value=values)
    if lows is not None:
        table = table.assign(lo=lows, hi=2.0)
    fig = drawn(depth.by_depth(table, title="t", interval="pages"))
    assert fig.axes[0].get_ylim()[0] < min(values + (lows or []))
    assert [0, 0] in [list(line.get_ydata()) for line in fig.axes[0].lines]


def test_density_of_dead_latents_alone_counts_them():
    fig = drawn(training.feature_density({"plain": np.zeros(4)}, title="t"))
    assert fig.legends[0].get_texts()[0].get_text() == "plain SAE\n4 of 4 dead (100 %)"


def test_the_first_word_has_one_dot_per_site_and_variant():
    rows = [(s, v, 9.0, 10.0 * s, 99.0) for s in (2, 9) for v in ("as collected", "BOS prepended")]
    table = pd.DataFrame(rows, columns=["site", "variant", "q10", "median", "q90"])
    ax = drawn(activations.norm_of_first_word(table, title="t")).axes[0]
    assert [line.get_ydata().tolist() for line in ax.lines] == [[20, 90], [20, 90]]
    assert {line.get_linestyle() for line in ax.lines} == {"None"}
