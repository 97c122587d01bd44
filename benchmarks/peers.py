"""SAELens, dictionary_learning and sparsify by their own trainers: one step, or a whole training.

    trained       an SAE trained on rows in normalised units: its weights in saelib's names, and its
                  own x -> x̂
    read_into     those weights in saelib's class
    check_read    that the class rebuilds what the library's own code rebuilds
    steps         what makes one training step of each, for `step.py`

A library has a module of its own, `peers_<library>.py`, which says what was taken from where.
Shared by all: training is a few hundred steps, and what a library gives in steps for runs of tens
of thousands is a share of the run here (`share_of_run`). Installed by benchmarks/requirements.txt.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from systems import SYSTEMS, Shape, is_ours
from torch import Tensor

Batches = Callable[[], Tensor]
Rebuild = Callable[[Tensor], Tensor]
Result = tuple[dict[str, Tensor], Rebuild]
Step = Callable[[], Any]
TOLERANCE = 1e-3  # of a row, beside its norm
# Where a code lies within rounding of its threshold it may fall on the other side; such a row
# differs by a whole code. Weights that were misread change every row.
ROWS_THAT_AGREE = 0.97


def module_of(library: str) -> Any:
    """The module of a library's systems; imports the library."""
    return import_module(f"peers_{library.lower().replace('saelens', 'sae_lens')}")


def share_of_run(default: int, steps: int, share: float) -> int:
    """A library's number of steps, or that share of a run for which it is too long. At least 1."""
    return max(1, min(default, int(steps * share)))


def trained(system: str, batches: Batches, shape: Shape, knob: float, lr: float) -> Result:
    """A peer's SAE trained by its own trainer on `shape.steps` batches [batch, d].

    knob: its coefficient of sparsity, its k or its target_l0. Returns its weights in saelib's
    names, in the units of the batches, and its own x -> x̂.
    """
    library, _, kind = system.partition(" ")
    weights, rebuild = module_of(library).trained(kind, batches, shape, knob, lr)
    return {name: value.detach() for name, value in weights.items()}, rebuild


@torch.no_grad()
def read_into(sae: Any, weights: dict[str, Tensor]) -> None:
    """A peer's weights in saelib's class; every parameter is set, and the one threshold.

    Raises:
        ValueError: one is missing.
    """
    wanted = {name for name, _ in sae.named_parameters()}
    wanted |= {name for name, _ in sae.named_buffers() if name == "threshold"}
    missing = sorted(wanted - set(weights))
    if missing:
        raise ValueError(f"{missing[0]} is missing; there are {', '.join(sorted(weights))}")
    for name in wanted:
        getattr(sae, name).copy_(weights[name])


@torch.no_grad()
def check_read(system: str, sae: Any, rebuild: Rebuild, x: Tensor) -> None:
    """That saelib's class rebuilds normalised rows x [batch, d] as the peer's own code does.

    Raises:
        ValueError: more rows differ than rounding explains.
    """
    ours, theirs = sae.decode(sae.encode(x)), rebuild(x)
    error = (ours - theirs).norm(dim=1) / theirs.norm(dim=1).clamp_min(1e-6)
    agree = float((error <= TOLERANCE).float().mean())
    if not agree >= ROWS_THAT_AGREE:
        raise ValueError(f"{system}: read into saelib, {agree:.1%} of rows are rebuilt alike")


def steps(d: int, n: int, x: Tensor, k: int) -> dict[tuple[str, str, str, str], Callable[[], Step]]:
    """(name, arch, loss, step) -> what builds one training step of each peer on rows x [batch, d].

    k: active latents of the systems whose k or target is set; no other depends on L0. Runs are so
    long that every schedule is in its middle, and the learning rate so small that nothing moves.
    """
    shape = Shape(d, n, len(x), 10**6)
    out = {}
    for name, system in SYSTEMS.items():
        if is_ours(name):
            continue
        kind = "sparse" if name.startswith("sparsify") else "dense"
        knob = k if system.rises else 1.0
        out[name, system.arch, system.loss, kind] = _builder(name, shape, x, knob)
    return out


def _builder(system: str, shape: Shape, x: Tensor, knob: float) -> Callable[[], Step]:
    library, _, kind = system.partition(" ")
    return lambda: module_of(library).step(kind, shape, knob, 1e-9, x)
