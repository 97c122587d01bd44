"""Titles and captions of dead latents, survivors and effects: true whatever was measured."""

import numpy as np
import pandas as pd
import pytest
from helpers.f2_cases import EQUAL, FULL, UNCLEAR, UNREACHED, estimate, params
from helpers.f2_resampling_cases import HARMFUL, HARMLESS, Resampled, ratios_of

from saelib.study import f2_dead, f2_resampling, f2_resampling_figures


def shares_of(off, on):
    """Shares dead with large steps, the same numbers in the normal recipe."""
    arms = ["full", "plain", "two_term"]
    index = pd.MultiIndex.from_product(
        [["large steps", "normal recipe"], arms], names=["setting", "arm"]
    )
    return pd.DataFrame({"off": off * 2, "on": on * 2}, index=index)


@pytest.mark.parametrize(
    ("off", "on", "title"),
    [
        ([0.5] * 3, [0.1] * 3, "Resampling leaves fewer dead latents where steps are large"),
        ([0.5] * 3, [0.6] * 3, "Resampling cures no arm of death by large steps"),
        ([0.5] * 3, [0.1, 0.6, 0.6], "Resampling leaves fewer dead in 1 of 3 arms"),
        (
            [0.5] * 3,
            [np.nan, 0.1, 0.6],
            "Resampling leaves fewer dead in 1 of 3 arms; 1 not comparable",
        ),
        ([0.5] * 3, [np.nan] * 3, "Dead latents over training; no arm has that L0 twice"),
    ],
)
def test_the_title_says_whether_resampling_cures_death(off, on, title):
    assert f2_resampling_figures.dead_title(shares_of(off, on)) == title


def test_a_share_that_is_not_reached_is_no_nan_in_the_caption():
    text = f2_resampling_figures.dead_words(shares_of([0.5] * 3, [np.nan] * 3))
    assert "50 % / unreached (plain SAE)" in text
    assert text.endswith("Unreached: no λ tried gives that L0.")
    assert "nan" not in text
    assert "nreached" not in f2_resampling_figures.dead_words(shares_of([0.5] * 3, [0.1] * 3))


def test_the_caption_says_where_the_lines_of_each_panel_end():
    rows = [
        (setting, arm, on, 15, 0, tokens, share)
        for setting, end in {"normal recipe": 0.0, "large steps": 0.2}.items()
        for arm in ("plain", "full")
        for on in ("off", "on")
        for tokens, share in {1000: 0.9, 2000: end + 0.1 * (on == "off" and end > 0)}.items()
    ]
    history = pd.DataFrame(rows, columns=[*f2_dead.KEYS, "tokens", "dead_fraction"])
    text = f2_resampling_figures.line_words(history, 32.0)
    assert "nearest to L0 = 32, ending at 0 % (normal recipe), 20 % to 30 % (large steps)." in text


def test_a_training_shorter_than_the_window_is_said_instead_of_drawn():
    p = params("04_resampling", dead_window=200_000)
    ws = Resampled()
    runs = f2_resampling.train(ws, p)
    deaths = f2_dead.deaths(ws, p, runs, f2_resampling.nearest_specs(ws, p, runs))
    deaths = deaths._replace(history=deaths.history.assign(dead_fraction=np.nan))
    figure = f2_resampling_figures.dead_over_time(deaths, p, FULL)
    assert figure.get_suptitle() == "No latent can be found dead in so short a training"
    assert "these SAEs train on 40,960" in figure.get_supxlabel().replace("\n", " ")
    assert "Nothing to draw" in figure.axes[0].texts[0].get_text()


@pytest.mark.parametrize(
    ("alive", "title"),
    [
        ([0.1, 0.2, 0.3], "With large steps most revived latents die again"),
        ([0.5, 0.9, 0.8], "Most revived latents live on even with large steps"),
        ([0.1, 0.9, np.nan], "Most revived latents live on in 1 of 2 arms"),
        ([np.nan] * 3, "Nothing was revived where steps are large"),
    ],
)
def test_the_title_says_what_becomes_of_the_revived(alive, title):
    shares = pd.Series(alive, index=["full", "plain", "two_term"])
    assert f2_resampling_figures.survivor_title(shares) == title


@pytest.mark.parametrize(
    ("effects", "title"),
    [
        (
            (HARMLESS, HARMFUL, EQUAL),
            "There is no deficit to explain: Gated is not worse than plain",
        ),
        ((HARMFUL, HARMFUL, HARMFUL), "Gated is worse than plain; both missing parts do harm"),
        (
            (HARMFUL, HARMFUL, EQUAL),
            "Gated is worse than plain; the missing auxiliary term does harm",
        ),
        ((HARMFUL, EQUAL, HARMFUL), "Gated is worse than plain; missing resampling does harm"),
        (
            (HARMFUL, EQUAL, EQUAL),
            "Gated is worse than plain; neither suspect explains it everywhere",
        ),
        ((UNCLEAR, EQUAL, EQUAL), "Gated is worse than plain in 0 of 2 comparisons"),
        ((UNREACHED, EQUAL, EQUAL), "No arm can be compared at the L0 asked for"),
    ],
)
def test_the_title_of_the_effects_says_what_there_is_to_explain(effects, title):
    assert f2_resampling_figures.effect_title(ratios_of(*effects), 0.03) == title


def test_an_effect_that_is_not_reached_is_said_in_words():
    text = f2_resampling_figures.effect_words(ratios_of(EQUAL, UNREACHED, estimate(0.7, 0.6, 0.8)))
    assert "unreached and 0.70 (normal recipe)" in text


@pytest.mark.parametrize("l0", [32.0, 1e4])
def test_every_figure_is_drawn_with_a_title_of_at_most_twelve_words(l0):
    p = params("04_resampling", l0_target=l0)
    ws = Resampled()
    runs = f2_resampling.train(ws, p)
    specs = f2_resampling.nearest_specs(ws, p, runs)
    deaths = f2_dead.deaths(ws, p, runs, specs)
    matched = f2_resampling.match(runs, l0)
    ratios = f2_resampling.effect_ratios(matched, runs)
    figures = [
        f2_resampling_figures.dead_over_time(deaths, p, FULL),
        f2_resampling_figures.survivor_bars(deaths, p, FULL),
        f2_resampling_figures.effect(ratios, matched, runs, p, 30, FULL),
    ]
    for figure in figures:
        assert 3 <= len(figure.get_suptitle().split()) <= 12
