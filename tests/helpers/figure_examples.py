"""Small tables and the figures drawn from them, for the tests of `saelib.show`."""

import functools
import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saelib.show import activations, compare, depth, tradeoff, training

SITES, ARMS = (2, 15, 29), ("plain", "two_term", "full")


LONG = (
    "A sentence that says what was found, with its numbers, long enough to need a second line "
    "in a narrow figure"
)


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
    "norm_profile": lambda: activations.norm_profile(norms(), **WITH),
    "norm_by_position": lambda: activations.norm_by_position(
        POSITIONS.assign(q10=70.0, median=80.0, q90=24e3), **WITH
    ),
    "class_shares": lambda: activations.class_shares(shares(), **WITH),
    "mean_offset_and_dims": lambda: activations.mean_offset_and_dims(
        table(
            "site offset_share top_dim_share_all top_dim_share_ordinary",
            (2, 0.5, 0.1, 0.1),
            (15, 0.4, 0.9, np.nan),
        ),
        **WITH,
    ),
    "spectra": lambda: activations.spectra(
        SPECTRA.assign(cumulative=SPECTRA["rank"] / 100), **WITH, n_layers=30
    ),
    "trade_off": lambda: tradeoff.trade_off(sweep(3), PCA, **NAMED, highlight=4),
    "trade_off of loss": lambda: tradeoff.trade_off(
        sweep().drop(columns=["lo", "hi"]), y="loss_recovered", **WITH
    ),
    "trade_off_by_lambda": lambda: tradeoff.trade_off_by_lambda(sweep(2), **WITH, n_layers=30),
    "trade_off_by_lambda in two units": lambda: tradeoff.trade_off_by_lambda(
        pd.concat(
            [
                sweep().query("arm == 'plain'").assign(panel=words)
                for words in ("normalised units", "raw units")
            ]
        ),
        **WITH,
        n_layers=30,
    ),
    "shrinkage": lambda: tradeoff.shrinkage(sweep().drop(columns=["lo", "hi", "lambda"]), **WITH),
    "learning_curves": lambda: training.learning_curves(history(), **WITH),
    "one learning curve": lambda: training.learning_curves(
        history().query("site == 2 and seed == 0"), **WITH
    ),
    "gate_over_training": lambda: training.gate_over_training(gates(), **WITH),
    "gate of one site": lambda: training.gate_over_training(gates().query("site == 2"), **WITH),
    "dead_over_time": lambda: training.dead_over_time(deaths(), **WITH),
    "survivors": lambda: training.survivors(
        table("arm event revived alive_later", *SURVIVORS), **WITH
    ),
    "feature_density": lambda: training.feature_density(
        {"plain": np.array([0.0, 1e-3]), "mine": np.zeros(3)}, **WITH
    ),
    "interval_points": lambda: compare.interval_points(
        effects(), value_label="effect", reference=(0, "none"), **NAMED
    ),
    "layer_reconstruction": lambda: depth.layer_reconstruction(recipes(), **WITH),
    "layer_matched": lambda: depth.layer_matched(matched(), **NAMED),
    "layer_matched at one site": lambda: depth.layer_matched(
        matched().query("site == 2 and l0_target == 16"), **NAMED
    ),
    "by_depth": lambda: depth.by_depth(quantities(), log=["norm"], **NAMED),
}


@functools.cache
def figure(name: str) -> Figure:
    return FIGURES[name]()


def labels(fig: Figure) -> list[str]:
    return [t.get_text() for t in fig.legends[0].get_texts()]


def lines(ax: mpl.axes.Axes, label: str) -> mpl.lines.Line2D:
    """The one line with this legend label."""
    (line,) = [line for line in ax.lines if line.get_label() == label]
    return line
