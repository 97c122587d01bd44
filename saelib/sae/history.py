"""What a training run leaves beside the weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from saelib.sae.resample import ResampleEvent


class TrainingDiverged(RuntimeError):
    """The loss stopped being finite; the message names the step and the configuration."""


@dataclass
class Snapshot:
    """State of the gates at one moment, on fixed probe rows."""

    step: int
    tokens: int
    fire_rate: Tensor  # [n_latents], share of probe rows on which the latent fires
    open: Tensor  # bool [probe rows, n_latents]
    b_gate: Tensor  # [n_latents]; b_enc where the architecture has no gate


@dataclass
class History:
    """Table of the losses, resamplings, and gate snapshots of one run."""

    table: list[dict[str, float]] = field(default_factory=list)  # one row every `log_every` steps
    events: list[ResampleEvent] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    resumed_at: int = 0
