"""What every figure keeps: nothing is cut off, titles and units stand, tables are checked."""

import itertools

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from helpers.figure_examples import FIGURES, LONG, figure, matched, norms, sweep
from matplotlib.backends.backend_agg import FigureCanvasAgg

from saelib.show import activations, depth, panels, tradeoff


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_off_or_covered(name: str) -> None:
    fig = figure(name)
    renderer = FigureCanvasAgg(fig).get_renderer()
    fig.draw(renderer)
    whole, tight = fig.bbox, fig.get_tightbbox(renderer).transformed(fig.dpi_scale_trans)
    assert (tight.x0, tight.y0) >= (-1, -1)
    assert tight.x1 <= whole.x1 + 1
    assert tight.y1 <= whole.y1 + 1
    title, caption = (
        (t.get_window_extent(renderer) for t in fig.texts[:2])
        if len(fig.texts) > 1
        else (None, None)
    )
    boxes = [ax.get_tightbbox(renderer) for ax in fig.axes if ax.axison]
    boxes += [legend.get_window_extent(renderer) for legend in fig.legends]
    for a, b in itertools.combinations([*boxes, title, caption], 2):
        overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(overlap) <= 3, (name, a, b)  # pixels, of 150 an inch


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_titled_labelled_and_readable(name: str) -> None:
    fig = figure(name)
    assert fig.get_suptitle().replace("\n", " ") == LONG
    assert "21 test pages." in fig.get_supxlabel()
    for ax in fig.axes:
        assert ax.get_ylabel() or fig.axes[0].get_ylabel() or ax.get_yticklabels()
        sizes = [
            t.get_fontsize()
            for t in (*ax.get_xticklabels(), *ax.get_yticklabels(), *ax.texts, ax.xaxis.label)
        ]
        assert min(sizes) >= 8.5
    assert any(ax.get_xlabel() for ax in fig.axes)


def names_of(figsize: tuple[float, float], *args: object) -> list[str]:
    """The names on a site axis in a figure of this size."""
    ax = plt.figure(figsize=figsize).add_subplot()
    panels.site_axis(ax, *args)
    assert list(ax.get_xticks()) == args[0]
    plt.close(ax.figure)
    return [tick.get_text() for tick in ax.get_xticklabels()]


def test_a_site_without_room_for_its_name_has_it_a_line_lower_or_not_at_all() -> None:
    assert names_of((6, 4), [0, 2, 15, 29, 30]) == ["0", "2", "15", "29", "\n30"]
    assert names_of((2.8, 2), [0, 9, 27, 29]) == ["0", "9", "27", "\n29"]
    assert names_of((6, 4), [0, 2, 15, 27, 29]) == ["0", "2", "15", "27", "29"]
    assert names_of((2.8, 2), [0, 28, 29, 30]) == ["0", "28", "\n29", ""]


def test_a_name_of_two_lines_is_left_out_where_it_has_no_room() -> None:
    labels = ["0\nL0 12", "28\nL0 300", "30\nL0 310"]
    assert names_of((4, 3), [0, 28, 30], labels) == ["0\nL0 12", "28\nL0 300", ""]


@pytest.mark.parametrize("draw", [tradeoff.trade_off, depth.layer_matched])
def test_an_interval_without_a_name_is_refused(draw: object) -> None:
    frame = sweep() if draw is tradeoff.trade_off else matched()
    with pytest.raises(ValueError, match="lo and hi are drawn: say what they are"):
        draw(frame, title="t")


def test_a_missing_column_and_two_rows_at_one_site_are_refused_by_name() -> None:
    with pytest.raises(
        ValueError,
        match="shrinkage: column 'shrinkage' is missing; it needs arm, site, l0, shrinkage",
    ):
        tradeoff.shrinkage(sweep().drop(columns="shrinkage"), title="t")
    with pytest.raises(ValueError, match="several rows of 'first token of a context' at one site"):
        activations.norm_profile(pd.concat([norms(), norms()]), title="t")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0009, "0.0009"),
        (24000, "24,000"),
        (1e6, "$10^{6}$"),
        (2e-5, r"$2\cdot10^{-5}$"),
        (-0.3, "−0.3"),
        (0, "0"),
    ],
)
def test_ticks_are_plain_numbers(value: float, text: str) -> None:
    assert panels.tick_text(value) == text


def test_a_line_never_ends_between_a_number_and_its_percent_sign() -> None:
    fig = plt.figure(figsize=(3, 2))
    text = " ".join(f"{share} % of {'x' * (1 + share % 7)}" for share in range(40))
    lines = panels.wrapped(fig, text, 10.0).splitlines()
    assert len(lines) > 5
    assert not [line for line in lines if line.startswith("%")]
    assert " ".join(lines) == text
