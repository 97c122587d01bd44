"""The look of figures: colours hold for colour-blind readers, files are deterministic."""

import io
import itertools
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import PIL.Image
import pytest
from helpers.figure_examples import ARMS, NAMED, SITES, norms, sweep
from matplotlib.colors import to_rgb

from saelib.show import activations, style, tradeoff
from saelib.study import f5_architectures

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
    "arms": (*ARMS, "topk"),
    "architectures": f5_architectures.ARMS,
    "token classes": ("first", "sink", "ordinary", "all"),
    "schedules": ("constant", "linear", "cosine", "cosine_with_restarts", "stopped"),
    "variants": ("as collected", "BOS prepended"),
}


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_of_a_group_stay_apart_for_colour_blind_readers(sight: str) -> None:
    for group in GROUPS.values():
        assert closest(itertools.combinations([style.LOOKS[k].color for k in group], 2), sight) > 20
    architectures = [style.LOOKS[name].color for name in f5_architectures.ARMS]
    assert closest(itertools.combinations(architectures, 2), sight) > 25
    sites = [style.site_color(s, 30) for s in SITES]
    assert closest(itertools.combinations(sites, 2), sight) > 20
    arms = [style.LOOKS[name].color for name in GROUPS["arms"]]
    assert closest(itertools.product(sites, arms), sight) > 10


def test_a_line_of_an_architecture_can_be_seen_on_white() -> None:
    luminance = {}
    for name in f5_architectures.ARMS:
        lightness = seen(style.LOOKS[name].color, "full")[0]
        luminance[name] = ((lightness + 16) / 116) ** 3
    contrast = {name: 1.05 / (y + 0.05) for name, y in luminance.items()}  # as WCAG 2 defines it
    assert min(contrast.values()) > 2, contrast


def test_the_simulation_confuses_red_and_green() -> None:
    pair = [("#C00000", "#407000")]
    assert closest(pair, "full") > 80
    assert closest(pair, "deuteranopia") < 30


def test_sites_darken_with_depth_and_arms_have_their_own_markers() -> None:
    lightness = [seen(style.site_color(s, 30), "full")[0] for s in range(31)]
    assert np.all(np.diff(lightness) < 0)
    assert len({style.LOOKS[name].marker for name in GROUPS["arms"]}) == 4
    assert style.looks_of([2, 29], n_layers=30)[2].color == style.site_color(2, 30)


def test_names_without_a_look_get_distinct_ones_in_order() -> None:
    looks = style.looks_of(["λ = 1", "plain", "λ = 2", True])
    assert looks["plain"] == style.LOOKS["plain"]
    assert [looks[k].color for k in ("λ = 1", "λ = 2", True)] == list(style.OTHER_COLORS[:3])


def test_drawing_changes_no_global_setting() -> None:
    before = dict(mpl.rcParams)
    tradeoff.trade_off(sweep(), **NAMED)
    assert dict(mpl.rcParams) == before


def test_importing_the_figures_sets_nothing() -> None:
    code = "import matplotlib as m; a = dict(m.rcParams); import saelib.show.explore; "
    code += "b = dict(m.rcParams); a.pop('backend'); b.pop('backend'); assert a == b"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_picture_in_256_colours_looks_the_same_and_is_far_smaller() -> None:
    plain = io.BytesIO()
    fig = tradeoff.trade_off(sweep(), **NAMED)
    fig.savefig(plain, format="png", dpi=150)
    small = style.indexed(plain.getvalue())
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
    first = style.save_figure(tradeoff.trade_off(sweep(), **NAMED), "02_trade_off", "smoke")
    assert first == home / "data" / "smoke" / "figures" / "02_trade_off.png"
    content = first.read_bytes()
    style.save_figure(tradeoff.trade_off(sweep(), **NAMED), "02_trade_off", "smoke")
    assert first.read_bytes() == content
    assert [p.name for p in first.parent.iterdir()] == ["02_trade_off.png"]
    fig = tradeoff.trade_off(sweep(), **NAMED)
    assert int.from_bytes(content[16:20]) == round(fig.get_figwidth() * 150)  # IHDR width
    assert b"Software" not in content


def test_show_displays_the_saved_picture_once_and_prints_its_name(
    home: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list = []
    monkeypatch.setattr(style, "display", shown.append)
    style.show(activations.norm_profile(norms(), title="Norms grow"), "01_norms", "smoke")
    assert capsys.readouterr().out == "data/smoke/figures/01_norms.png\n"
    assert [s.data for s in shown] == [(home / "data/smoke/figures/01_norms.png").read_bytes()]
    assert shown[0].alt == "Norms grow"
