"""A profile's trained SAEs on disk, and the results table rebuilt from them.

    data/<profile>/saes/<run_id>/  what training and measuring left (see `run_folder`)
    data/<profile>/results.csv     one row per trained SAE, sorted by run_id; timings.csv beside it

A run is named by the hash of its configuration, of the rows and of `TRAINING_VERSION`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from saelib.config import EvalConfig
from saelib.ranks import SINGLE_PROCESS, Ranks
from saelib.run.collected import Collected
from saelib.run.edited import edited_rows, unknown_rows
from saelib.run.results import holds, is_sealed, read_results, write_results
from saelib.run.run_folder import RunFolder, run_folders
from saelib.run.turns import turn
from saelib.sae import Autoencoder
from saelib.sae.history import Snapshot
from saelib.sae.spec import Spec, make_spec, run_id

log = logging.getLogger(__name__)


class Trained(Collected):
    """A profile's SAEs: their names, folders and tables, and how further ones are to be trained.

    `evaluation`: how they are measured. `over`: what several ranks share out (see `Workspace`).
    """

    def __init__(
        self,
        profile: str,
        device: str = "auto",
        evaluation: EvalConfig | None = None,
        ranks: Ranks = SINGLE_PROCESS,
        over: Literal["grid", "data", "latents"] = "grid",
    ) -> None:
        super().__init__(profile, device, ranks)
        self.over = over
        self.evaluation = evaluation or EvalConfig()
        self.checkpoint_every = 200  # steps
        # Upper bound on SAEs trained at once on the CPU; on a GPU as many as fit, unless it is 1.
        self.together = 1 if over == "latents" else 8

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

    # -- what is there -----------------------------------------------------------------------------

    def results(self) -> pd.DataFrame:
        """`results.csv` as a table, with column `arm`; see `read_results` for what it raises.

        Raises ValueError where a row is not what its run's folder says. A warning says where
        measured runs have no row.
        """
        path = self.folder / "results.csv"
        table = read_results(path)
        for fault in edited_rows(path):
            raise ValueError(fault)
        for notice in filter(None, (self.runs_without_row(path), unknown_rows(path))):
            log.warning("%s", notice)
        return table

    def runs_without_row(self, path: Path) -> str:
        """In a sentence, how many measured runs a table lacks; empty where it lacks none."""
        if not (self.folder / "store" / "manifest.json").exists():
            return ""
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        there = {line.partition(",")[0] for line in text.splitlines()}
        absent = [row["run_id"] for row in self.measured_rows() if row["run_id"] not in there]
        if not absent:
            return ""
        return f"{path}: lacks {len(absent)} runs that are measured; notebook 02 adds them"

    def write_results(self) -> Path:
        """Rebuild `results.csv` from the `metrics.json` of this store's runs, sorted by run_id."""
        path = self.folder / "results.csv"
        whole = holds(path, self.measured_rows()) and is_sealed(path)
        if not whole:  # else a finished profile may be read-only
            with turn(self.folder, path.name):  # or an older list of runs could be written last
                write_results(path, self.measured_rows())
        return path

    def measured_rows(self) -> list[dict[str, Any]]:
        """The rows of this store's measured runs, by this code's version, sorted by run_id."""
        runs = run_folders(self.folder / "saes")
        rows = [run.row for run in runs if run.is_current(self.rows_id)]
        return [row for row in rows if row]

    def load(self, spec: Spec) -> Autoencoder:
        """A trained SAE."""
        return self.run(spec).load()

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
