"""A profile's folder: its activations, its trained SAEs, and the results table rebuilt from them.

    data/<profile>/saes/<run_id>/      what training and measuring left (see `run_folder`)
data/<profile>/results.csv         one row per trained SAE, sorted by run_id; timings.csv beside it

`collected` says what else lies there. A run is named by the hash of its configuration, of the rows
and of `TRAINING_VERSION`, so that it is trained once, whichever notebook asks first, and again
where that version was raised; a killed run continues from its last checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64

from saelib.config import ConfigError, EvalConfig, run_id
from saelib.measure import metrics
from saelib.ranks import ONE, Ranks
from saelib.run.collected import Collected
from saelib.run.measuring import measure_shared
from saelib.run.results import read_results, results_table, write_results
from saelib.run.run_folder import RunFolder
from saelib.run.training import train_missing
from saelib.sae.base import SAE, GatedSAE, load_sae
from saelib.sae.spec import Spec, make_spec
from saelib.sae.trainer import Snapshot, TrainingDiverged
from saelib.study import intervals


class Workspace(Collected):
    """Everything a profile has on disk, and the two things notebooks do with it: collect, and train
    what is missing.

    With several ranks each makes the same calls. `over`: each rank trains whole SAEs of the "grid",
    or all train every SAE together, split by rows ("data") or by "latents"; either way rows and
    files are those of one process.
    """

    def __init__(
        self,
        profile: str,
        device: str = "auto",
        evaluation: EvalConfig | None = None,
        ranks: Ranks = ONE,
        over: Literal["grid", "data", "latents"] = "grid",
    ) -> None:
        super().__init__(profile, device, ranks)
        self.over = over
        self.evaluation = evaluation or EvalConfig()
        self.checkpoint_every = 200  # steps
        # Upper bound on SAEs trained at once on the CPU; on a GPU as many as fit, unless it is 1.
        self.together = 1 if over == "latents" else 8

    def measuring(self, evaluation: EvalConfig) -> Workspace:
        """This workspace with other metrics asked for; language model and store are shared, not
        loaded again.
        """
        other = copy(self)
        vars(other).update(evaluation=evaluation, lm=self.lm, store=self.store)
        return other

    def spec(self, arm: str, site: int, **settings: Any) -> Spec:
        """`make_spec` at this store's width."""
        return make_spec(arm, site, self.store.d_model, **settings)

    def run_id(self, spec: Spec) -> str:
        """Name of a spec's run on these activations."""
        return run_id(spec.sae, spec.train, self.rows_id)

    def run(self, run: Spec | str) -> RunFolder:
        """Files of a spec's run, or of the run of that name."""
        name = run if isinstance(run, str) else self.run_id(run)
        return RunFolder(self.folder / "saes" / name)

    def run_folder(self, run: Spec | str) -> Path:
        """Where the SAE, history and metrics of a spec, or of the run of that name, lie."""
        return self.run(run).path

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

    # -- what is there -----------------------------------------------------------------------------

    def results(self) -> pd.DataFrame:
        """`results.csv` as a table, with column `arm`; see `read_results` for what it raises."""
        return read_results(self.folder / "results.csv")

    def write_results(self) -> Path:
        """Rebuild `results.csv` from the `metrics.json` of this store's runs, sorted by run_id."""
        runs = sorted(folder.name for folder in (self.folder / "saes").glob("*"))
        rows = [self.run(run).row for run in runs if self.run(run).is_current(self.rows_id)]
        path = self.folder / "results.csv"
        write_results(path, [row for row in rows if row])
        return path

    def load(self, spec: Spec) -> SAE | GatedSAE:
        """A trained SAE."""
        return load_sae(self.run_folder(spec))

    def history(self, spec: Spec) -> pd.DataFrame:
        """Training history: one row every `log_every` steps."""
        return self.run(spec).history

    def events(self, spec: Spec) -> list[dict[str, Any]]:
        """What each resampling did, and how many of the revived latents are alive at the end."""
        return self.run(spec).events

    def snapshots(self, spec: Spec) -> list[Snapshot]:
        """Gate snapshots over training."""
        return self.run(spec).snapshots

    def pages(self, run: Spec | str) -> pd.DataFrame:
        """Sums by test page, for bootstraps: page_id, n, sse, sst, l0, ce_n, ce_id, ce_sae,
        ce_zero, ce_mean.
        """
        return self.run(run).pages


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
            further = metrics.propose_lambda(
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
    return metrics.interpolate_matched_l0(rows["l0_val"], rows[column], target, log_y=log_y)
