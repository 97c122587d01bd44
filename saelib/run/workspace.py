"""A profile's folder, and the two things notebooks do with it: collect, and train what is missing.

What lies there: `collected` says it of model, text and activations, `trained` of SAEs and tables.
An SAE is trained once, whichever notebook asks first, and again where `TRAINING_VERSION` was
raised; a killed run continues from its last checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy

import numpy as np
import pandas as pd
from jaxtyping import Float64

from saelib.config import ConfigError, EvalConfig
from saelib.run.measuring import measure_shared
from saelib.run.results import results_table
from saelib.run.trained import Trained
from saelib.run.training import train_missing
from saelib.sae.history import TrainingDiverged
from saelib.sae.spec import Spec
from saelib.study import intervals
from saelib.study.matched import interpolate_matched_l0, propose_lambda


class Workspace(Trained):
    """Everything a profile has on disk: collected, trained, measured.

    With several ranks each makes the same calls. `over`: each rank trains whole SAEs of the "grid",
    or all train every SAE together, split by rows ("data") or by "latents"; either way rows and
    files are those of one process.
    """

    def measuring(self, evaluation: EvalConfig) -> Workspace:
        """This workspace with other metrics asked for; language model and store are shared, not
        loaded again.
        """
        other = copy(self)
        vars(other).update(evaluation=evaluation, lm=self.lm, store=self.store)
        return other

    def train(self, specs: Sequence[Spec], notebook: str) -> pd.DataFrame:
        """Train and measure what is missing; returns one row per spec, in order, with column `arm`
        beside `COLUMNS`.

        Raises ConfigError for a spec that the store cannot serve, before anything is trained, and
        TrainingDiverged naming the lost runs once all others are trained and measured.
        """
        for spec in specs:
            self._check(spec)
        unique = {self.run_id(spec): spec for spec in specs}
        diverged = train_missing(self, unique, notebook)
        trained = {run: spec for run, spec in unique.items() if self.run(run).is_trained}
        unmeasured = {
            run: spec
            for run, spec in trained.items()
            if not self.run(run).is_measured(self.evaluation)
        }
        measure_shared(self, unmeasured)
        lost = [run for run in unique if run not in trained]
        if lost:
            elsewhere = "given up by another rank"
            raise TrainingDiverged(
                "; ".join(f"{self.run_folder(run)}: {diverged.get(run, elsewhere)}" for run in lost)
            )
        return results_table(self.run(spec).row | {"arm": spec.arm} for spec in specs)

    def _check(self, spec: Spec) -> None:
        """ConfigError for a site that was not collected, or a dead window that does not fit around
        the resamplings.
        """
        cfg = spec.train
        if spec.sae.site not in self.store.sites:
            raise ConfigError(
                f"site = {spec.sae.site}: the store of profile {self.profile!r} "
                f"has {self.store.sites}"
            )
        if not cfg.resample_at:
            return
        if cfg.resample_steps[0] * cfg.batch_size < cfg.dead_window:
            raise ConfigError(
                f"resample_at = {cfg.resample_at}: the first comes before dead_window = "
                f"{cfg.dead_window} tokens have passed, so that nothing could be found dead"
            )
        rest = (cfg.steps - max(cfg.resample_steps)) * cfg.batch_size
        if cfg.dead_window > rest:
            raise ConfigError(
                f"dead_window = {cfg.dead_window}: longer than the {rest} tokens after the last "
                "resampling, so that no revived latent could be found dead again"
            )


# -- matched L0 ------------------------------------------------------------------------------------


def reach_l0(
    workspace: Workspace,
    notebook: str,
    make: Callable[..., Spec],
    lambdas: Mapping[tuple, Sequence[float]],
    target: float | int,
    max_extra: int = 3,
    refine: int = 0,
) -> dict[tuple, pd.DataFrame]:
    """Rows of λ curves, each with up to `max_extra` further λ trained while validation L0 does not
    bracket `target`.

    lambdas: the λ a curve begins with, by its key; `make(*key, lam)` is the spec of one of its
    SAEs. Curves go outwards together, one λ each a round. A bracketed one gets up to `refine` more
    λ between the two points nearest to the target, while their L0 are over a factor 2 apart.
    """
    wanted, rows, spent = {key: list(lams) for key, lams in lambdas.items()}, {}, Counter()
    while wanted:
        cells = [(key, lam) for key, lams in wanted.items() for lam in lams]
        new = workspace.train([make(*key, lam) for key, lam in cells], notebook)
        for key in wanted:
            mine = new[[k == key for k, _ in cells]]
            rows[key] = (
                pd.concat([rows[key], mine], ignore_index=True)
                if key in rows
                else mine.reset_index(drop=True)
            )
        following = {}
        for key in wanted:
            further = propose_lambda(
                zip(rows[key]["lambda"], rows[key]["l0_val"], strict=True), target
            )
            reached = len(bracket(rows[key], target)) > 0
            if further is not None and spent[key, reached] < (refine if reached else max_extra):
                spent[key, reached] += 1
                following[key] = [float(f"{further:.4g}")]
        wanted = following
    return rows


def bracket(rows: pd.DataFrame, target: float | int) -> list[float]:
    """The λ of a curve whose validation L0 are nearest to `target` on either side, ascending; empty
    where it has none.

    A collapsed SAE, L0 = 0, is no side: there is no logarithm to interpolate from.
    """
    alive = rows[rows["l0_val"] > 0].sort_values("l0_val")
    sides = alive[alive["l0_val"] <= target].tail(1), alive[alive["l0_val"] >= target].head(1)
    return sorted({float(side["lambda"].iloc[0]) for side in sides}) if all(map(len, sides)) else []


def seeds_at_l0(
    workspace: Workspace,
    notebook: str,
    make: Callable[..., Spec],
    start: Mapping[tuple, Sequence[float]],
    seeds: Sequence[int],
    target: float | int,
    max_extra: int = 3,
    refine: int = 0,
) -> dict[tuple, pd.DataFrame]:
    """`reach_l0` of every cell of `start` and seed, by (*cell, seed); `make(*cell, seed, lam)`.

    The first seed's curves begin at the λ of `start`, those of the others at the two λ between
    which the first one's has `target`, so that all are interpolated over the same stretch wherever
    that suffices.
    """
    first = {(*cell, seeds[0]): lams for cell, lams in start.items()}
    curves = reach_l0(workspace, notebook, make, first, target, max_extra, refine)
    near = {cell: bracket(curves[*cell, seeds[0]], target) or lams for cell, lams in start.items()}
    others = {(*cell, seed): near[cell] for cell in start for seed in seeds[1:]}
    return curves | reach_l0(workspace, notebook, make, others, target, max_extra, refine)


def samples_at_l0(
    workspace: Workspace, rows: pd.DataFrame, target: float, column: str = "fvu"
) -> Float64[np.ndarray, " draws"]:
    """`intervals.matched` of one curve's rows: `column` at validation L0 = target, before its
    replicates over pages.
    """
    return intervals.matched(
        [workspace.pages(run) for run in rows["run_id"]], rows["l0_val"], target, column
    )


def at_l0(rows: pd.DataFrame, target: float, column: str = "fvu") -> float | None:
    """`column` at validation L0 = target, interpolated along one curve; None where the curve does
    not reach it.

    FVU and λ are interpolated in log-log, any other column linearly over log L0 (DESIGN, "Matched
    L0").
    """
    log_y = column.startswith("fvu") or column == "lambda"
    return interpolate_matched_l0(rows["l0_val"], rows[column], target, log_y=log_y)
