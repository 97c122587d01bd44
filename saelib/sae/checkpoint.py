"""Checkpoints: everything a `Trainer` is in one safetensors file, for runs that are killed.

A run continued from a checkpoint ends bit-identical to one that was never interrupted. The file
carries a checksum of all that is in it; checkpoints of earlier versions have none and are continued
with a notice.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saelib.config import ConfigError
from saelib.files import parsed_json, replaced_file
from saelib.sae.history import History, Snapshot
from saelib.sae.resample import ResampleEvent
from saelib.sae.trainer import Trainer

SNAPSHOT_TENSORS = ("fire_rate", "open", "b_gate")
STATE = "state"  # the tensor that holds, as JSON, what is no tensor: a file's header has a limit
CHECKSUM = "sha256"

log = logging.getLogger(__name__)


def save_checkpoint(trainer: Trainer, path: Path) -> None:
    """Write a trainer into one file, atomically.

    Where ranks share the latents, each writes a file beside `path` (see `sharding.Sharding`).

    Raises:
        TrainingDiverged: a weight is not finite; nothing is written.
    """
    trainer.require_finite_weights()
    if trainer.sharding.writes():
        _write(trainer, trainer.sharding.file(path, trainer.step))
    trainer.sharding.settle(path, trainer.step)


def _write(trainer: Trainer, path: Path) -> None:
    tensors = {k: v.detach().cpu().contiguous() for k, v in _tensors(trainer).items()}
    state = bytearray(json.dumps(_state(trainer)).encode())
    tensors[STATE] = torch.frombuffer(state, dtype=torch.uint8)
    with replaced_file(path) as temporary:
        save_file(tensors, temporary, metadata={CHECKSUM: _checksum(tensors)})


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and contents."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    tensors = {f"weights.{k}": v for k, v in trainer.sae.state_dict().items()}
    for name, leaf in trainer.leaves.items():
        moments = trainer.optimizer.state[leaf]
        tensors |= {f"adam.{name}.{k}": v for k, v in moments.items()}
    tensors["tokens_since_fired"] = trainer.tokens_since_fired
    tensors["tokens_since_open"] = trainer.tokens_since_open
    tensors["generator"] = trainer.generator.get_state()
    for i, snapshot in enumerate(trainer.history.snapshots):
        tensors |= {f"snapshot.{i}.{k}": getattr(snapshot, k) for k in SNAPSHOT_TENSORS}
    return tensors


def _state(trainer: Trainer) -> dict[str, Any]:
    """What is no tensor, as JSON."""
    schedule = trainer.scheduler.state_dict()
    history = trainer.history
    return {
        "step": trainer.step,
        "train": trainer.cfg.to_dict(),
        "sae": trainer.sae.config.to_dict(),
        "density": trainer.density,
        "table": history.table,
        "events": [asdict(event) for event in history.events],
        "snapshots": [[snapshot.step, snapshot.tokens] for snapshot in history.snapshots],
        "scheduler": {k: v for k, v in schedule.items() if k != "lr_lambdas"},
    }


@torch.no_grad()
def load_checkpoint(trainer: Trainer, path: Path) -> None:
    """Continue from a checkpoint.

    Raises:
        ValueError: the file is damaged.
        ConfigError: it belongs to another run, or ranks have checkpoints of different steps.
    """
    state, tensors = _read(path)
    for name, config in (("train", trainer.cfg), ("sae", trainer.sae.config)):
        if state.get(name) != config.to_dict():
            raise ConfigError(
                f"{path} belongs to another run: its {name} configuration is {state.get(name)}"
            )
    try:
        _require_possible(state, tensors, trainer.cfg.steps)
        _restore(trainer, state, tensors)
    except torch.cuda.OutOfMemoryError:  # a RuntimeError that says nothing of the file
        raise
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        # a part is missing, or of another shape or type
        raise ValueError(_damaged(path, repr(error))) from error
    trainer.sharding.ranks.agree(f"step in {path.name}", trainer.step)


def _require_possible(state: dict[str, Any], tensors: dict[str, Tensor], steps: int) -> None:
    """Raise `ValueError` for what no run of so many steps has, or weights that are not finite."""
    step = state["step"]
    if type(step) is not int or not 0 <= step <= steps:
        raise ValueError(f"step = {step!r:.80}: expected 0 to {steps}")
    if not isinstance(state["table"], list) or not isinstance(state["density"], int | float):
        raise ValueError("its history or density is of another type")
    for name, weight in _below("weights.", tensors).items():
        if not weight.isfinite().all():
            raise ValueError(f"{name} holds values that are not finite")


def _restore(trainer: Trainer, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    trainer.sae.load_state_dict(_below("weights.", tensors))
    for name, leaf in trainer.leaves.items():
        # fused Adam wants its step counter on the parameter's device
        moments = _below(f"adam.{name}.", tensors)
        if any(v.ndim and v.shape != leaf.shape for v in moments.values()):
            raise ValueError(f"Adam's moments of {name} have another shape than it")
        trainer.optimizer.state[leaf] = {k: v.to(leaf.device) for k, v in moments.items()}
    groups = trainer.optimizer.param_groups
    trainer.scheduler.load_state_dict(state["scheduler"] | {"lr_lambdas": [None] * len(groups)})
    for group, lr in zip(groups, trainer.scheduler.get_last_lr(), strict=True):
        group["lr"] = lr
    trainer.tokens_since_fired.copy_(tensors["tokens_since_fired"])
    trainer.tokens_since_open.copy_(tensors["tokens_since_open"])
    trainer.generator.set_state(tensors["generator"])
    trainer.step = state["step"]
    trainer.density = state["density"]
    trainer.history = _history(state, tensors)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A checkpoint's state and tensors, checked.

    Raises:
        ValueError: the file is damaged; names it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a dict)
        if STATE in metadata:
            log.warning(f"{path}: of an earlier version, has no checksum; continued unchecked")
            text = metadata[STATE]
        else:
            _require_checksum(path, tensors, metadata[CHECKSUM])
            text = bytes(tensors.pop(STATE).numpy())
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError(_damaged(path, repr(error))) from error
    return _parsed_state(path, text), tensors


def _parsed_state(path: Path, text: str | bytes) -> dict[str, Any]:
    try:
        state = parsed_json(text)
    except ValueError as error:
        raise ValueError(_damaged(path, repr(error))) from error
    if not isinstance(state, dict):
        raise ValueError(_damaged(path, "its state is no mapping"))
    return state


def check_checkpoint(path: Path) -> None:
    """Read a checkpoint as it would be continued.

    Raises:
        ValueError: it is damaged; names it.
    """
    _read(path)


def _require_checksum(path: Path, tensors: Mapping[str, Tensor], stated: str) -> None:
    actual = _checksum(tensors)
    if actual != stated:
        difference = f"sha256 {actual[:12]} where {stated[:12]} is recorded"
        raise ValueError(_damaged(path, difference))


def _damaged(path: Path, reason: str) -> str:
    return f"{path}: damaged ({reason}); delete it: without it the run starts anew"


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start so, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _history(state: dict[str, Any], tensors: dict[str, Tensor]) -> History:
    snapshots = []
    for i, (step, tokens) in enumerate(state["snapshots"]):
        values = [tensors[f"snapshot.{i}.{k}"] for k in SNAPSHOT_TENSORS]
        snapshots.append(Snapshot(step, tokens, *values))
    events = [ResampleEvent(**event) for event in state["events"]]
    return History(state["table"], events, snapshots, resumed_at=state["step"])
