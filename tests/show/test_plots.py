"""Figures: what is drawn is what the table says, nothing is cut off, colours hold, files are deterministic."""

import functools
import io
import itertools
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from saelib.show import panels, plots, style

SITES, ARMS = (2, 15, 29), ("plain", "two_term", "full")
LONG = "A sentence that says what was found, with its numbers, long enough to need a second line in a narrow figure"


def table(columns: str, *rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=columns.split())


def sweep(seeds: int = 1) -> pd.DataFrame:
    """Arms × sites × λ × seeds; the two-term gate is shut (L0 = 0) at the largest λ."""
    rows = [
        (
            arm,
            site,
            lam,
            seed,
            0.0 if arm == "two_term" and lam == 8 else 100 / lam * (1 + seed),
            0.1 * lam,
        )
        for arm, site, lam, seed in itertools.product(ARMS, SITES, (1.0, 2.0, 8.0), range(seeds))
    ]
    frame = table("arm site lambda seed l0 fvu", *rows)
    return frame.assign(
        lo=frame["fvu"] * 0.9, hi=frame["fvu"] * 1.1, loss_recovered=0.9, shrinkage=0.8
    )


def history() -> pd.DataFrame:
    schedules = ("constant", "linear", "cosine", "cosine_with_restarts")
    runs = itertools.product(schedules, SITES, (0, 1), range(0, 204_800, 20_480))
    frame = table("label site seed tokens", *runs)
    return frame.assign(fvu=0.3 + frame["seed"] / 100, l0=30.0, lr=1e-3)


def gates() -> pd.DataFrame:
    frame = table("arm site tokens", *itertools.product(ARMS[1:], SITES, (1000, 2000, 3000)))
    frame = frame.assign(
        open_fraction=0.05, persistence=[np.nan, 0.5, 0.6] * 6, persistence_chance=0.1, gini=0.7
    )
    return frame.assign(b_gate_q10=-1.0, b_gate_median=-0.5, b_gate_q90=0.0)


def deaths() -> pd.DataFrame:
    runs = itertools.product(ARMS, (False, True), ("normal", "latents die"), SITES, (0, 1000, 2000))
    frame = table("arm resample setting site tokens", *runs).assign(dead_fraction=0.1)
    return frame.assign(resample_event=frame["resample"] & (frame["tokens"] == 1000))


def recipes() -> pd.DataFrame:
    rows = []
    for recipe, site in itertools.product(
        ("original: raw, all tokens", "normalised, ordinary tokens"), SITES
    ):
        sink = np.nan if site == 2 else 1e-5
        rows += [
            (site, recipe, c, v, 490.0)
            for c, v in (("all", 0.0009), ("ordinary", 0.7), ("sink", sink))
        ]
    return table("site recipe class fvu l0", *rows)


def matched() -> pd.DataFrame:
    frame = table("arm site l0_target", *itertools.product(ARMS, SITES, (16, 32))).assign(
        fvu=0.3, pca_fvu=0.6
    )
    frame.loc[(frame["arm"] == "two_term") & (frame["site"] == 29), "fvu"] = np.nan
    return frame.assign(lo=frame["fvu"] - 0.02, hi=frame["fvu"] + 0.02)


def quantities() -> pd.DataFrame:
    frame = table(
        "panel series site", *itertools.product(("norm", "rank"), ("ordinary", "all"), SITES)
    )
    fvu = table("panel series site", *itertools.product(("FVU",), ARMS, SITES)).assign(
        lo=0.3, hi=0.5
    )
    return pd.concat([frame, fvu], ignore_index=True).assign(value=range(1, 22))


def norms() -> pd.DataFrame:
    rows = [(2, "first", 60, 70, 80), (15, "first", 2e4, 2.4e4, 3e4), (15, "sink", 1e4, 2e4, 3e4)]
    return table(
        "site class q10 median q90",
        *rows,
        *[(s, "ordinary", 60 * s, 80 * s, 90 * s) for s in SITES],
    )


def shares() -> pd.DataFrame:
    rows = [(s, "ordinary", 0.99, 0.01 if s == 15 else 0.9) for s in SITES]
    return table(
        "site class share_tokens share_sq_norm",
        *rows,
        (15, "first", 0.01, 0.99),
        (29, "first", 0.01, 0.1),
    )


def effects() -> pd.DataFrame:
    note = "not applicable"
    rows = [("normal", a, np.nan, np.nan, np.nan, note) for a in ARMS] + [
        ("die", a, -0.2, -0.3, 0.1, "") for a in ARMS
    ]
    return table("group hue value lo hi note", *rows)


POSITIONS = table(
    "site variant position",
    *itertools.product(SITES, ("as collected", "BOS prepended"), range(128)),
)
SPECTRA = table(
    "site variant rank", *itertools.product(range(31), ("all", "ordinary"), (1, 10, 100))
)
PCA = table("site rank fvu", *[(s, r, r**-0.2) for s in SITES for r in (1, 10, 100)])
SURVIVORS = [("plain", 51200, 400, 100), ("plain", 102400, 0, 0), ("full", 51200, 9, 9)]
WITH = {"title": LONG, "note": "21 test pages."}
NAMED = {**WITH, "interval": "95 % bootstrap over pages"}

FIGURES = {
    "norm_profile": lambda: plots.norm_profile(norms(), **WITH),
    "norm_by_position": lambda: plots.norm_by_position(
        POSITIONS.assign(q10=70.0, median=80.0, q90=24e3), **WITH
    ),
    "class_shares": lambda: plots.class_shares(shares(), **WITH),
    "mean_offset_and_dims": lambda: plots.mean_offset_and_dims(
        table(
            "site offset_share top_dim_share_all top_dim_share_ordinary",
            (2, 0.5, 0.1, 0.1),
            (15, 0.4, 0.9, np.nan),
        ),
        **WITH,
    ),
    "spectra": lambda: plots.spectra(
        SPECTRA.assign(cumulative=SPECTRA["rank"] / 100), **WITH, n_layers=30
    ),
    "trade_off": lambda: plots.trade_off(sweep(3), PCA, **NAMED, highlight=4),
    "trade_off of loss": lambda: plots.trade_off(
        sweep().drop(columns=["lo", "hi"]), y="loss_recovered", **WITH
    ),
    "trade_off_by_lambda": lambda: plots.trade_off_by_lambda(sweep(2), **WITH, n_layers=30),
    "trade_off_by_lambda in two units": lambda: plots.trade_off_by_lambda(
        pd.concat(
            [
                sweep().query("arm == 'plain'").assign(panel=words)
                for words in ("normalised units", "raw units")
            ]
        ),
        **WITH,
        n_layers=30,
    ),
    "shrinkage": lambda: plots.shrinkage(sweep().drop(columns=["lo", "hi", "lambda"]), **WITH),
    "learning_curves": lambda: plots.learning_curves(history(), **WITH),
    "one learning curve": lambda: plots.learning_curves(
        history().query("site == 2 and seed == 0"), **WITH
    ),
    "gate_over_training": lambda: plots.gate_over_training(gates(), **WITH),
    "gate of one site": lambda: plots.gate_over_training(gates().query("site == 2"), **WITH),
    "dead_over_time": lambda: plots.dead_over_time(deaths(), **WITH),
    "survivors": lambda: plots.survivors(
        table("arm event revived alive_later", *SURVIVORS), **WITH
    ),
    "feature_density": lambda: plots.feature_density(
        {"plain": np.array([0.0, 1e-3]), "mine": np.zeros(3)}, **WITH
    ),
    "interval_points": lambda: plots.interval_points(
        effects(), value_label="effect", reference=(0, "none"), **NAMED
    ),
    "layer_reconstruction": lambda: plots.layer_reconstruction(recipes(), **WITH),
    "layer_matched": lambda: plots.layer_matched(matched(), **NAMED),
    "layer_matched at one site": lambda: plots.layer_matched(
        matched().query("site == 2 and l0_target == 16"), **NAMED
    ),
    "by_depth": lambda: plots.by_depth(quantities(), log=["norm"], **NAMED),
}


@functools.cache
def figure(name: str) -> Figure:
    return FIGURES[name]()


def test_bars_of_a_trade_off_stand_at_the_mean_over_seeds():
    rows = table(
        "arm site lambda seed l0 fvu lo hi",
        *[("plain", 2, 1.0, s, l0, 0.4, 0.3, 0.5) for s, l0 in ((0, 10), (1, 40))],
    )
    (bars,) = [
        c
        for c in plots.trade_off(rows, title="t", interval="pages").axes[0].collections
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
    axes = plots.trade_off_by_lambda(both, title="t").axes
    assert [ax.get_title(loc="left") for ax in axes[:2]] == ["normalised", "raw"]
    assert axes[1].get_xlim()[0] > axes[0].get_xlim()[1]


def labels(fig: Figure) -> list[str]:
    return [t.get_text() for t in fig.legends[0].get_texts()]


def lines(ax: mpl.axes.Axes, label: str) -> mpl.lines.Line2D:
    """The one line with this legend label."""
    (line,) = [line for line in ax.lines if line.get_label() == label]
    return line


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


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
SIGHT = {
    "full": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
}
SRGB_TO_XYZ = [
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.072175],
    [0.0193339, 0.119192, 0.9503041],
]


def seen(color: object, sight: str) -> np.ndarray:
    """CIE L*a*b* of a colour as seen."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = (
        np.array(SRGB_TO_XYZ)
        @ np.clip(np.array(SIGHT[sight]) @ linear, 0, 1)
        / [0.95047, 1, 1.08883]
    )
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def closest(pairs: object, sight: str) -> float:
    return min(float(np.linalg.norm(seen(a, sight) - seen(b, sight))) for a, b in pairs)


GROUPS = {
    "arms": ARMS,
    "token classes": ("first", "sink", "ordinary", "all"),
    "schedules": ("constant", "linear", "cosine", "cosine_with_restarts", "stopped"),
    "variants": ("as collected", "BOS prepended"),
}


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_of_a_group_stay_apart_for_colour_blind_readers(sight: str) -> None:
    for group in GROUPS.values():
        assert closest(itertools.combinations([plots.LOOKS[k].color for k in group], 2), sight) > 20
    sites = [plots.site_color(s, 30) for s in SITES]
    assert closest(itertools.combinations(sites, 2), sight) > 20
    assert closest(itertools.product(sites, [plots.LOOKS[a].color for a in ARMS]), sight) > 10


def test_the_simulation_confuses_red_and_green() -> None:
    pair = [("#C00000", "#407000")]
    assert closest(pair, "full") > 80
    assert closest(pair, "deuteranopia") < 30


def test_sites_darken_with_depth_and_arms_have_their_own_markers() -> None:
    lightness = [seen(plots.site_color(s, 30), "full")[0] for s in range(31)]
    assert np.all(np.diff(lightness) < 0)
    assert len({plots.LOOKS[a].marker for a in ARMS}) == 3
    assert plots.looks_of([2, 29], n_layers=30)[2].color == plots.site_color(2, 30)


def test_names_without_a_look_get_distinct_ones_in_order() -> None:
    looks = plots.looks_of(["λ = 1", "plain", "λ = 2", True])
    assert looks["plain"] == plots.LOOKS["plain"]
    assert [looks[k].color for k in ("λ = 1", "λ = 2", True)] == list(plots.OTHER_COLORS[:3])


def test_the_trade_off_line_goes_through_the_seeds_geometric_means() -> None:
    points = (
        (1.0, 40, 0.1),
        (1.0, 10, 0.4),
        (1.5, 8, 0.9),
        (2.0, 5, 0.5),
        (2.0, 5, 0.5),
    )  # 1.5: one seed alone
    rows = table("arm site lambda l0 fvu", *(("plain", 2, *point) for point in points))
    fig = plots.trade_off(rows, title="t")
    line = lines(fig.axes[0], "plain SAE")
    np.testing.assert_allclose(line.get_xydata(), [[20, 0.2], [5, 0.5]])  # √(40·10), √(0.1·0.4)
    assert [len(one.get_xdata()) for one in fig.axes[0].lines[:2]] == [
        2,
        5,
    ]  # the mean, then every seed
    assert fig.axes[0].get_xscale() == fig.axes[0].get_yscale() == "log"


def test_a_shut_gate_is_drawn_at_the_edge_and_named() -> None:
    fig = plots.trade_off(sweep().drop(columns=["lo", "hi"]), PCA, title="t")
    mark = lines(fig.axes[0], "collapsed: L0 ≤ 0.5")
    np.testing.assert_allclose(mark.get_xydata(), [[0.5, 0.8]])
    assert {"collapsed: L0 ≤ 0.5", "mean predictor (FVU = 1)", "PCA of rank k = L0"} <= set(
        labels(fig)
    )


def test_the_mean_predictor_stands_at_one_and_pca_stays_in_sight() -> None:
    pca = table("site rank fvu", (2, 0, 1.01), (2, 1, 0.9), (2, 500, 1e-9))
    fig = plots.trade_off(sweep().drop(columns=["lo", "hi"]).query("site == 2"), pca, title="t")
    assert set(lines(fig.axes[0], "mean predictor (FVU = 1)").get_ydata()) == {1}
    np.testing.assert_allclose(lines(fig.axes[0], "PCA of rank k = L0").get_xydata(), [[1, 0.9]])


def test_the_chosen_run_is_ringed() -> None:
    rows = sweep().drop(columns=["lo", "hi"])
    fig = plots.trade_off(rows, title="t", highlight=rows.index[4])
    drawn = [(i, line) for i, ax in enumerate(fig.axes) for line in ax.lines]
    rings = [(i, line.get_xydata()) for i, line in drawn if line.get_label() == "chosen"]
    ((panel, at),) = rings
    assert panel == SITES.index(rows.loc[4, "site"])
    np.testing.assert_allclose(at, [rows.loc[4, ["l0", "fvu"]].astype(float)])


def test_a_missing_site_is_a_gap_and_an_unreachable_cell_a_cross() -> None:
    fig = plots.layer_matched(matched(), **NAMED)
    line = lines(fig.axes[0], "Gated, two-term loss")
    assert np.isnan(line.get_ydata()).tolist() == [False, False, True]
    assert lines(fig.axes[0], "unreachable: Gated, two-term loss").get_xdata()[0] == pytest.approx(
        29, abs=0.1
    )
    profile = plots.norm_profile(norms(), title="t").axes[0]
    assert np.isnan(lines(profile, "sink tokens").get_ydata()).tolist() == [True, False, True]


def test_a_site_too_near_the_last_named_one_keeps_its_tick_and_loses_its_name() -> None:
    ax = plt.figure().add_subplot()
    panels.site_axis(ax, [0, 2, 15, 29, 30])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "2", "15", "29", ""]
    assert list(ax.get_xticks()) == [0, 2, 15, 29, 30]
    plt.close(ax.figure)


def test_each_quantity_by_depth_has_its_own_panel_series_and_axis() -> None:
    norm, rank, fvu = plots.by_depth(quantities(), log=["norm"], **NAMED).axes
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


def test_a_missing_value_is_said_in_words_and_never_drawn_as_zero() -> None:
    ax = plots.interval_points(effects(), value_label="effect", **NAMED).axes[0]
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
    left, right = plots.interval_points(rows, value_label="v", title="t").axes
    assert [line.get_xdata().tolist() for line in left.lines] == [[1.0], [2.0]]
    assert [line.get_xdata().tolist() for line in right.lines] == [[], [3.0]]


def test_interval_bars_reach_from_lo_to_hi() -> None:
    rows = table("group hue value lo hi", ("a", "plain", 1.0, 0.5, 2.0))
    ax = plots.interval_points(rows, value_label="v", title="t", interval="i").axes[0]
    ((low, high),) = ax.collections[0].get_segments()
    assert (low[0], high[0]) == (0.5, 2.0)


@pytest.mark.parametrize("draw", [plots.trade_off, plots.layer_matched])
def test_an_interval_without_a_name_is_refused(draw: object) -> None:
    frame = sweep() if draw is plots.trade_off else matched()
    with pytest.raises(ValueError, match="lo and hi are drawn: say what they are"):
        draw(frame, title="t")


def test_a_missing_column_and_two_rows_at_one_site_are_refused_by_name() -> None:
    with pytest.raises(
        ValueError,
        match="shrinkage: column 'shrinkage' is missing; it needs arm, site, l0, shrinkage",
    ):
        plots.shrinkage(sweep().drop(columns="shrinkage"), title="t")
    with pytest.raises(ValueError, match="several rows of 'first token of a context' at one site"):
        plots.norm_profile(pd.concat([norms(), norms()]), title="t")


def test_the_thick_learning_curve_is_the_mean_where_all_seeds_are_there() -> None:
    rows = table(
        "tokens label seed fvu", (0, "linear", 0, 1.0), (0, "linear", 1, 0.5), (9, "linear", 0, 0.4)
    )
    ax = plots.learning_curves(rows, title="t").axes[0]
    np.testing.assert_allclose(lines(ax, "linear decay").get_xydata(), [[0, 0.75]])
    assert len(ax.lines) == 3


def test_resampling_is_the_line_style_and_its_moment_a_hairline() -> None:
    ax = plots.dead_over_time(deaths(), **WITH).axes[0]
    assert lines(ax, "plain SAE, resampling").get_linestyle() == "-"
    assert lines(ax, "plain SAE, no resampling").get_linestyle() == "--"
    assert set(lines(ax, "a resampling").get_xdata()) == {1000}


def test_dead_latents_are_counted_not_binned() -> None:
    fig = plots.feature_density({"plain": np.array([0.0, 0.0, 0.01, 0.1])}, title="t")
    assert labels(fig) == ["plain SAE\n2 of 4 dead (50 %)"]
    assert fig.axes[0].patches[0].get_data().values.sum() == 2


def test_survivors_say_their_share_and_none_where_nothing_died() -> None:
    fig = plots.survivors(table("arm event revived alive_later", *SURVIVORS), title="t")
    assert [t.get_text() for t in fig.axes[0].texts] == ["25 %", "none\ndead"]


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


def test_drawing_changes_no_global_setting() -> None:
    before = dict(mpl.rcParams)
    plots.trade_off(sweep(), **NAMED)
    assert dict(mpl.rcParams) == before


def test_the_module_needs_no_torch_and_sets_nothing_at_import() -> None:
    code = "import matplotlib as m; a = dict(m.rcParams); import saelib.show.plots, sys; "
    code += "assert 'torch' not in sys.modules; b = dict(m.rcParams); a.pop('backend'); b.pop('backend'); assert a == b"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_picture_in_256_colours_looks_the_same_and_is_far_smaller() -> None:
    plain = io.BytesIO()
    fig = plots.trade_off(sweep(), **NAMED)
    fig.savefig(plain, format="png", dpi=150)
    small = plots.indexed(plain.getvalue())
    assert len(small) < len(plain.getvalue()) / 2
    before, after = (
        np.asarray(PIL.Image.open(io.BytesIO(b)).convert("RGB")).astype(int)
        for b in (plain.getvalue(), small)
    )
    assert before.shape == after.shape
    apart = np.abs(before - after).max(axis=-1)
    assert np.quantile(apart, 0.999) <= 12  # of 255: edges of letters and thin lines
    assert (after[0, 0] == 255).all()


def test_saving_twice_gives_the_same_bytes_at_150_dpi_and_nothing_else(home: Path) -> None:
    first = plots.save_figure(plots.trade_off(sweep(), **NAMED), "02_trade_off", "smoke")
    assert first == home / "figures" / "smoke" / "02_trade_off.png"
    content = first.read_bytes()
    plots.save_figure(plots.trade_off(sweep(), **NAMED), "02_trade_off", "smoke")
    assert first.read_bytes() == content
    assert [p.name for p in first.parent.iterdir()] == ["02_trade_off.png"]
    fig = plots.trade_off(sweep(), **NAMED)
    assert int.from_bytes(content[16:20]) == round(fig.get_figwidth() * 150)  # IHDR width
    assert b"Software" not in content


def test_show_displays_the_saved_picture_once_and_prints_its_name(
    home: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list = []
    monkeypatch.setattr(style, "display", shown.append)
    plots.show(plots.norm_profile(norms(), title="Norms grow"), "01_norms", "smoke")
    assert capsys.readouterr().out == "figures/smoke/01_norms.png\n"
    assert [s.data for s in shown] == [(home / "figures/smoke/01_norms.png").read_bytes()]
    assert shown[0].alt == "Norms grow"
