"""A profile's folder, and the two things notebooks do with it: collect, and train what is missing.

What lies there: `collected` says it of model, text and activations, `trained` of SAEs and tables.
An SAE is trained once, whichever notebook asks first, and again where `TRAINING_VERSION` was
raised; a killed run continues from its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import pandas as pd

from saelib.config import ConfigError, EvalConfig
from saelib.run.measuring import measure_shared
from saelib.run.results import results_table
from saelib.run.trained import Trained
from saelib.run.training import train_missing
from saelib.sae.history import TrainingDiverged
from saelib.sae.spec import Spec


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
