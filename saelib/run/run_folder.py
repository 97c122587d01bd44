"""The folder of one trained SAE, `data/<profile>/saes/<run_id>/`, and what can be read from it.

train.json            the configuration, the rows and the code version, written before training
checkpoint*           the state of a training that was interrupted
config.json           what the SAE is; with weights.safetensors beside it the training is finished
history.csv           one row every `log_every` steps
events.json           what each resampling did
snapshots.safetensors states of the gates over training, where asked for
metrics.json          the row of results.csv, sums by test page, and where the SAE comes from
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save

from saelib.config import EvalConfig
from saelib.files import read_json, remove_leftovers_of_the_dead, write_bytes, write_json
from saelib.measure.columns import COLUMNS
from saelib.run.identity import code_version, measurement
from saelib.sae.group import Run
from saelib.sae.history import History, Snapshot
from saelib.sae.origin import digest
from saelib.sae.spec import Spec, options_text

CHECKPOINT = "checkpoint.safetensors"
SNAPSHOT_TENSORS = ("fire_rate", "open", "b_gate")
SNAPSHOT_NUMBERS = ("step", "tokens")


@dataclass(frozen=True)
class RunFolder:
    """One run's files."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def checkpoint(self) -> Path:
        return self.path / CHECKPOINT

    @property
    def is_trained(self) -> bool:
        """Whether the SAE lies there, whole."""
        return (self.path / "config.json").exists()

    def is_measured(self, evaluation: EvalConfig) -> bool:
        """Whether the SAE is measured as `evaluation` asks; one measured with the loss is measured
        without it too.
        """
        recorded = self._json("metrics.json").get("evaluation")
        if recorded and not evaluation.ce_tokens:
            recorded = recorded | {"ce_tokens": 0}
        return recorded == measurement(evaluation)

    def is_current(self, rows: str) -> bool:
        """Whether it was trained on these rows (of another store, other rows are ordinary) and by
        this code.
        """
        train = self._json("train.json")
        return train.get("store") == rows and train.get("code_version") == code_version()

    @property
    def row(self) -> dict[str, Any] | None:
        """The row of results.csv; None where the run is not measured yet.

        A row written before the table had options takes them from what was trained.
        """
        row = self._json("metrics.json").get("row")
        if row is None or row.get("options") is not None:
            return row
        trained = self._json("train.json").get("sae", {})
        return row | {"options": options_text(trained.get("options", {}))}

    def _json(self, name: str) -> dict[str, Any]:
        """A JSON file of the run; empty where there is none."""
        file = self.path / name
        return read_json(file) if file.exists() else {}

    # -- what training left ------------------------------------------------------------------------

    @property
    def history(self) -> pd.DataFrame:
        """One row every `log_every` steps."""
        return pd.read_csv(self.path / "history.csv")

    @property
    def events(self) -> list[dict[str, Any]]:
        """What each resampling did, and how many of the revived latents are alive at the end."""
        return read_json(self.path / "events.json")

    @property
    def snapshots(self) -> list[Snapshot]:
        """Gate snapshots over training; empty where none were asked for."""
        file = self.path / "snapshots.safetensors"
        if not file.exists():
            return []
        tensors = load_file(file)
        steps = zip(tensors["step"], tensors["tokens"], strict=True)
        return [
            Snapshot(int(step), int(tokens), *(tensors[name][i] for name in SNAPSHOT_TENSORS))
            for i, (step, tokens) in enumerate(steps)
        ]

    @property
    def pages(self) -> pd.DataFrame:
        """Sums by test page: page_id, n, sse, sst, l0, ce_n, ce_id, ce_sae, ce_zero, ce_mean."""
        return pd.DataFrame(read_json(self.path / "metrics.json")["pages"])

    # -- writing -----------------------------------------------------------------------------------

    def begin(self, spec: Spec, notebook: str, rows: str) -> None:
        """Say what is going to be trained here, unless an earlier attempt has said it.

        What such an attempt had half written when it was killed goes.
        """
        remove_leftovers_of_the_dead(self.path)
        file = self.path / "train.json"
        if file.exists():
            return
        config = {"train": spec.train.to_dict(), "sae": spec.sae.to_dict()}
        origin = {"notebook": notebook, "store": rows, "code_version": code_version()}
        write_json(file, config | origin)

    def save(self, trained: Run, history: History, state: dict[str, torch.Tensor]) -> None:
        """Write a finished training; config.json comes last, and then the checkpoint goes."""
        pd.DataFrame(history.table).to_csv(self.path / "history.csv", index=False)
        write_json(self.path / "events.json", [asdict(event) for event in history.events])
        if history.snapshots:
            self._write_snapshots(history.snapshots)
        trained.sae.save(self.path, state=state)
        self.drop_checkpoints()

    def _write_snapshots(self, snapshots: list[Snapshot]) -> None:
        tensors = {
            name: torch.stack([getattr(snapshot, name) for snapshot in snapshots])
            for name in SNAPSHOT_TENSORS
        }
        tensors |= {
            name: torch.tensor([getattr(snapshot, name) for snapshot in snapshots])
            for name in SNAPSHOT_NUMBERS
        }
        write_bytes(self.path / "snapshots.safetensors", save(tensors))

    def write_metrics(
        self, evaluation: EvalConfig, row: Mapping[str, Any], pages: list[dict[str, Any]]
    ) -> None:
        """Keep a measurement: the row of results.csv and the sums by test page."""
        self.drop_checkpoints()  # a kill may have come between the SAE and their removal
        origin = {
            "model": row.get("model_id"),
            "text": row.get("corpus_id"),
            "site": row.get("site"),
            "weights": digest(self.path),
        }
        measured = {
            "origin": origin,
            "evaluation": measurement(evaluation),
            "row": {column: row.get(column) for column in COLUMNS},
            "pages": pages,
        }
        write_json(self.path / "metrics.json", measured)

    def drop_checkpoints(self) -> None:
        """Remove the state that an interrupted training would go on from."""
        for file in self.path.glob(CHECKPOINT.replace(".", "*.")):
            file.unlink()
