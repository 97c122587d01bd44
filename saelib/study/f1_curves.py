"""F1's training curves: what the learning rate's restarts do to FVU, Adam's m and dead latents.

The curves are shown, not judged: at equal λ the schedules end at different L0.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saelib.show import training
from saelib.study.f1_schedules import RESTARTS, STOPPED, Trained
from saelib.study.finding_params import ScheduleParams as Params

SHOWN = ("lr", "fvu", "l0")
ALL_SHOWN = ("lr", "loss", "fvu", "l0", "dead_fraction", "adam_m", "adam_v")


class Jumps(NamedTuple):
    """What follows a restart, one value per site, arm and restart: means over seeds."""

    fvu: pd.Series  # largest FVU up to the next restart or the end, over the last before this one
    cosine: pd.Series  # the same of plain cosine over the same tokens
    adam_m: pd.Series  # Adam's m at the first point after the restart, over the last before it
    dead: pd.Series  # largest share of dead latents up to the next restart, less the last before

    @property
    def rising(self) -> int:
        """Restarts after which FVU rises above the last value before."""
        return int((self.fvu > 1).sum())


def histories(ws: Any, trained: Trained) -> pd.DataFrame:
    """Training curves of the chosen runs: `history.csv` with label, seed, site and dead_window.

    No latent can be found dead before `dead_window` tokens: its share is nan up to there.
    """
    curves = []
    for run in trained.chosen.itertuples():
        window = run.spec.train.dead_window
        curve = ws.history(run.spec).assign(label=run.schedule, seed=run.seed, site=run.site)
        curve["dead_fraction"] = curve["dead_fraction"].where(curve["tokens"] >= window)
        curves.append(curve.assign(dead_window=window))
    return pd.concat(curves, ignore_index=True)


def jumps(curves: pd.DataFrame, warm_tokens: float | int) -> Jumps:
    """Compare the cycle that follows each restart with the last point before it.

    curves: `histories`; warm_tokens: training tokens of the warm-up, whose rise is no restart.
    """
    runs = curves.sort_values("tokens").groupby(["site", "label", "seed"], sort=False)
    by_run = dict(iter(runs))
    rows = []
    for (site, arm, seed), run in by_run.items():
        if arm not in (RESTARTS, STOPPED):
            continue
        cosine = by_run.get((site, "cosine", seed), run.iloc[:0])
        for number, cycle in enumerate(_cycles(run, cosine, warm_tokens)):
            rows.append({"site": site, "arm": arm, "restart": number} | cycle)
    names = ["site", "arm", "restart"]
    fields = list(Jumps._fields)
    means = pd.DataFrame(rows, columns=names + fields).groupby(names, sort=False)[fields].mean()
    return Jumps(*(means[name].astype(float) for name in fields))


def _cycles(
    run: pd.DataFrame, cosine: pd.DataFrame, warm_tokens: float | int
) -> list[dict[str, float]]:
    """The fields of `Jumps` at each restart of one run; both runs in the order of their tokens."""
    restarts = (run["lr"].diff() > 0) & (run["tokens"] > 1.5 * warm_tokens)
    cycles = [cycle for _, cycle in run.groupby(restarts.cumsum())]
    rows = []
    for before, after in itertools.pairwise(cycles):
        last = before.iloc[-1]
        meanwhile = cosine["tokens"].between(last["tokens"], after["tokens"].max())
        plain = cosine.loc[meanwhile, "fvu"]
        row = {
            "fvu": after["fvu"].max() / last["fvu"],
            "cosine": plain.iloc[1:].max() / plain.iloc[0] if len(plain) > 1 else np.nan,
            "adam_m": after["adam_m"].iloc[0] / last["adam_m"],
            "dead": after["dead_fraction"].max() - last["dead_fraction"],
        }
        rows.append(row)
    return rows


def title(jump: Jumps) -> str:
    """What follows a restart."""
    n_restarts = len(jump.fvu)
    if not n_restarts:
        return "No restart is seen in the training curves"
    if jump.rising == n_restarts:
        return "After every restart the training FVU rises"
    if not jump.rising:
        return "After no restart does the training FVU rise"
    return f"After {jump.rising} of {n_restarts} restarts the training FVU rises"


def note(jump: Jumps, shown: Sequence[str], dead_window: int) -> str:
    """Numbers after a restart, of the measures `shown`, and how to read the curves."""
    parts = [_jump_words(jump, shown)] if len(jump.fvu) else []
    parts.append("Each point: training batches since the one before.")
    parts.append("Equal λ: the arms end at different L0.")
    if "dead_fraction" in shown:
        parts.append(f"Dead: silent for the last {dead_window:,} training tokens.")
    if "adam_m" in shown:
        parts.append("Adam's m and √v: root mean square over all weights; a restart keeps them.")
    return " ".join(parts)


def _jump_words(jump: Jumps, shown: Sequence[str]) -> str:
    """Means over restarts, each with what it is."""
    words = "Between a restart and the next, or the end, the largest FVU is "
    words += f"{jump.fvu.mean():.2f} times the last before the restart"
    if jump.cosine.notna().any():
        words += f" (plain cosine, same tokens: {jump.cosine.mean():.2f})"
    if "dead_fraction" in shown and jump.dead.notna().any():
        words += ", and the largest share of dead latents the last before it "
        words += f"{100 * jump.dead.mean():+.1f} points"
    if "adam_m" in shown:
        words += "; Adam's m at the first point after a restart is "
        words += f"{jump.adam_m.mean():.2f} times the last before it"
    return f"{words} (means over restarts)."


def figure(curves: pd.DataFrame, p: Params, site: int | None = None) -> Figure:
    """Learning rate, FVU and L0 over training at one site; without `site`, everything."""
    drawn = curves if site is None else curves[curves["site"] == site]
    jump = jumps(drawn, p.warmup * p.tokens)
    measures = ALL_SHOWN if site is None else SHOWN
    defined = [name for name in measures if name in drawn and drawn[name].notna().any()]
    return training.learning_curves(
        drawn,
        title=title(jump),
        note=note(jump, defined, int(drawn["dead_window"].max())),
        metrics=defined,
    )
