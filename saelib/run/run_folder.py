"""The folder of one trained SAE, `data/<profile>/saes/<run_id>/`, and what can be read from it.

train.json            the configuration, the rows and the code version, written before training
checkpoint*           the state of a training that was interrupted
config.json           what the SAE is; with weights.safetensors beside it the training is finished
history.csv           one row every `log_every` steps
events.json           what each resampling did
snapshots.safetensors states of the gates over training, where asked for
metrics.json          the row of results.csv, sums by test page, and where the SAE comes from
seal.json             the run id, and size and checksum of these files but checkpoints, which have
                      their own; a file that it does not list is not there yet
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from saelib.config import EvalConfig
from saelib.files import (
    read_json,
    remove_leftovers_of_the_dead,
    write_bytes,
    write_json,
    write_text,
)
from saelib.measure.columns import COLUMNS
from saelib.run.identity import code_version, measurement
from saelib.sae import Autoencoder, load_sae
from saelib.sae.base import FILES
from saelib.sae.group import Run
from saelib.sae.history import History, Snapshot
from saelib.sae.origin import SEALED, digest, require_seal
from saelib.sae.spec import Spec, options_text
from saelib.seal import (
    FORMAT,
    Seal,
    SealError,
    checked,
    read_seal,
    seal_files,
    unseal_files,
)

CHECKPOINT = "checkpoint.safetensors"
TRAIN = "train.json"
HISTORY = "history.csv"
EVENTS = "events.json"
SNAPSHOTS = "snapshots.safetensors"
METRICS = "metrics.json"
ALL_FILES = (TRAIN, HISTORY, EVENTS, SNAPSHOTS, *FILES)
SNAPSHOT_TENSORS = ("fire_rate", "open", "b_gate")
SNAPSHOT_NUMBERS = ("step", "tokens")


@dataclass(frozen=True)
class RunFolder:
    """One run's files; what is read is checked against the folder's seal.

    Raises, wherever it reads:
        SealError: a file is damaged, or it is another run's, or the seal is gone; names it and
            what to do.
    """

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
        return (self.path / "config.json").exists() and self._has("config.json")

    def is_measured(self, evaluation: EvalConfig) -> bool:
        """Whether the SAE is measured as `evaluation` asks; one measured with the loss is measured
        without it too.
        """
        recorded = self._metrics.get("evaluation")
        if recorded and not evaluation.ce_tokens:
            recorded = recorded | {"ce_tokens": 0}
        return recorded == measurement(evaluation)

    def is_current(self, rows: str) -> bool:
        """Whether it was trained on these rows (of another store, other rows are ordinary) and by
        this code.
        """
        train = self.origin
        return train.get("store") == rows and train.get("code_version") == code_version()

    @property
    def origin(self) -> dict[str, Any]:
        """What was trained here, on which rows, by which notebook and code; empty before."""
        return self._json(TRAIN)

    @property
    def row(self) -> dict[str, Any] | None:
        """The row of results.csv; None where the run is not measured yet.

        A row written before the table had options takes them from what was trained.
        """
        row = self._metrics.get("row")
        if row is None or row.get("options") is not None:
            return row
        trained = self.origin.get("sae", {})
        options = trained.get("options", {}) if isinstance(trained, dict) else None
        if not isinstance(options, dict):
            raise ValueError(f"{self.path / TRAIN}: sae = {trained!r:.80}: expected a mapping")
        return row | {"options": options_text(options)}

    def load(self) -> Autoencoder:
        """The SAE; see `load_sae` for what it raises."""
        self.seal()
        return load_sae(self.path)

    def seal(self) -> Seal | None:
        """The folder's seal; None before training, and in folders older than seals."""
        seal = read_seal(self.path)
        if seal is None:
            require_seal(self.path)
        if seal and seal.run_id != self.run_id:
            raise SealError(
                f"{self.path}: sealed as run {seal.run_id or '(none)'}: another folder's files; "
                f"delete the folder {self.path} and make it anew"
            )
        return seal

    def _has(self, name: str) -> bool:
        """Whether a file was written to its end."""
        seal = self.seal()
        return name in seal.files if seal else (self.path / name).exists()

    def _json(self, name: str) -> dict[str, Any]:
        """A JSON file of the run; empty where there is none."""
        if not self._has(name):
            return {}
        file = checked(self.path / name)
        values = read_json(file)
        if not isinstance(values, dict):
            raise ValueError(f"{file}: expected a mapping of fields, found {values!r:.80}")
        return values

    @property
    def _metrics(self) -> dict[str, Any]:
        """What was measured; empty where nothing was. Whoever deletes the file has it measured
        again.
        """
        file = self.path / METRICS
        if not file.exists():
            return {}
        metrics = self._json(METRICS)
        for name in ("row", "evaluation"):
            if not isinstance(metrics.get(name), (dict, NoneType)):
                raise ValueError(
                    f"{file}: {name} = {metrics[name]!r:.80}: expected a mapping; delete it, and "
                    "the run is measured again"
                )
        row = metrics.get("row") or {}
        if row.get("run_id", self.run_id) != self.run_id:
            raise SealError(
                f"{file}: of run {row['run_id']}, not of {self.run_id}; delete it, and the run is "
                "measured again"
            )
        return metrics

    # -- what training left ------------------------------------------------------------------------

    @property
    def history(self) -> pd.DataFrame:
        """One row every `log_every` steps."""
        self.seal()
        return pd.read_csv(checked(self.path / HISTORY))

    @property
    def events(self) -> list[dict[str, Any]]:
        """What each resampling did, and how many of the revived latents are alive at the end."""
        self.seal()
        return read_json(checked(self.path / EVENTS))

    @property
    def snapshots(self) -> list[Snapshot]:
        """Gate snapshots over training; empty where none were asked for."""
        if not self._has(SNAPSHOTS):
            return []
        file = checked(self.path / SNAPSHOTS)
        try:
            tensors = load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file}: damaged ({error})") from error
        steps = zip(tensors["step"], tensors["tokens"], strict=True)
        return [
            Snapshot(int(step), int(tokens), *(tensors[name][i] for name in SNAPSHOT_TENSORS))
            for i, (step, tokens) in enumerate(steps)
        ]

    @property
    def pages(self) -> pd.DataFrame:
        """Sums by test page: page_id, n, sse, sst, l0, ce_n, ce_id, ce_sae, ce_zero, ce_mean."""
        metrics = self._metrics
        if "pages" not in metrics:
            raise FileNotFoundError(f"{self.path / METRICS}: the run is not measured yet")
        return pd.DataFrame(metrics["pages"])

    # -- writing -----------------------------------------------------------------------------------

    def begin(self, spec: Spec, notebook: str, rows: str) -> None:
        """Say what is going to be trained here, unless an earlier attempt has said it.

        What such an attempt had half written when it was killed goes.
        """
        remove_leftovers_of_the_dead(self.path)
        file = self.path / TRAIN
        # In a folder older than seals it stays. Where it says SEALED, a kill came before the first
        # seal, and a later one would leave an SAE without any.
        if self._has(TRAIN) and (self.seal() is not None or SEALED not in self.origin):
            checked(file)
            return
        config = {"train": spec.train.to_dict(), "sae": spec.sae.to_dict()}
        origin = {"notebook": notebook, "store": rows, "code_version": code_version()}
        write_json(file, config | origin | {SEALED: FORMAT})
        seal_files(self.path, [TRAIN], self.run_id)

    def save(self, trained: Run, history: History, state: dict[str, torch.Tensor]) -> None:
        """Write a finished training; the seal comes last, and then the checkpoint goes."""
        beside = [TRAIN, HISTORY, EVENTS]
        unseal_files(self.path, set(ALL_FILES) - {TRAIN})
        write_text(self.path / HISTORY, pd.DataFrame(history.table).to_csv(index=False))
        write_json(self.path / EVENTS, [asdict(event) for event in history.events])
        if history.snapshots:
            write_bytes(self.path / SNAPSHOTS, save(_snapshot_tensors(history.snapshots)))
            beside.append(SNAPSHOTS)
        trained.sae.save(self.path, state=state, run_id=self.run_id, beside=beside)
        self.drop_checkpoints()

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
            SEALED: FORMAT,
        }
        if not self.seal():  # of an earlier version: a kill must not leave what says it is sealed
            older = [name for name in ALL_FILES if (self.path / name).exists()]
            seal_files(self.path, older, self.run_id)
        unseal_files(self.path, [METRICS])
        write_json(self.path / METRICS, measured)
        seal_files(self.path, [METRICS], self.run_id)

    def drop_checkpoints(self) -> None:
        """Remove the state that an interrupted training would go on from."""
        for file in self.path.glob(CHECKPOINT.replace(".", "*.")):
            file.unlink()


def run_folders(folder: Path) -> list[RunFolder]:
    """The runs in a profile's `saes`, by name; what else lies there is passed over."""
    return [RunFolder(path) for path in sorted(folder.glob("*")) if os.path.isdir(path)]


def _snapshot_tensors(snapshots: list[Snapshot]) -> dict[str, torch.Tensor]:
    """Snapshots as the tensors of their file, one entry a snapshot."""
    tensors = {
        name: torch.stack([getattr(snapshot, name) for snapshot in snapshots])
        for name in SNAPSHOT_TENSORS
    }
    return tensors | {
        name: torch.tensor([getattr(snapshot, name) for snapshot in snapshots])
        for name in SNAPSHOT_NUMBERS
    }
