"""dictionary_learning (0.1.0): each of its trainers, by `update`, as its `trainSAE` calls it.

Initialisation, Adam, clipping, decoder constraint, AuxK and losses are the trainers' defaults. Rows
are given to it at a mean squared norm of 1 and biases scaled back by `scale_biases`, as `trainSAE`
does with `normalize_activations`, which its demonstration sets; so its coefficients are in those
units, 1/√d of ours. From that demonstration (`demo_config.py`): the learning rate falls from 0.8 of
the steps on; p-annealing is of Σ fᵖ ("Lp^p") to p = 0.2 and begins at twice the sparsity's warm-up;
Matryoshka groups are 1/32, 1/16, 1/8, 1/4 and 17/32 of the latents. Its JumpReLU has a target L0 in
place of a coefficient.

Given in steps or tokens for runs of 100,000 steps and more, and a share of this run: the learning
rate's warm-up (1,000 steps; a twentieth), the sparsity's (2,000; a tenth), the start of p-annealing
(10,000; a fifth), from when on and over how many steps the threshold of BatchTopK is averaged
(1,000 each; a twentieth), and after how many tokens a latent is dead (10 million; a tenth).
"""

from __future__ import annotations

from typing import Any

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.p_anneal import PAnnealTrainer
from dictionary_learning.trainers.standard import StandardTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from peers import Batches, Result, Step, share_of_run
from systems import Shape
from torch import Tensor

from saelib.sae.formats.parts import without_pre_bias

TRAINERS = {
    "standard": StandardTrainer,
    "gated": GatedSAETrainer,
    "topk": TopKTrainer,
    "batchtopk": BatchTopKTrainer,
    "jumprelu": JumpReluTrainer,
    "matryoshka": MatryoshkaBatchTopKTrainer,
    "p_anneal": PAnnealTrainer,
}
GROUPS = [1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32]  # shares of the latents
LAYERS = {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}  # stored as [out, in]
PLAIN = {"b_enc": "encoder.bias", "b_dec": "bias"}
GATED = {"b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag", "b_dec": "decoder_bias"}
OWN = {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
NAMES = {  # ours -> theirs
    "standard": LAYERS | PLAIN,
    "gated": LAYERS | GATED,
    "topk": LAYERS | {"b_enc": "encoder.bias", "b_dec": "b_dec"},
    "batchtopk": LAYERS | {"b_enc": "encoder.bias", "b_dec": "b_dec", "threshold": "threshold"},
    "jumprelu": OWN,
    "matryoshka": OWN,
    "p_anneal": LAYERS | PLAIN,
}


def _settings(kind: str, shape: Shape, knob: float) -> dict[str, Any]:
    """What a trainer takes beside its defaults and what all take."""
    penalty_rises = {"sparsity_warmup_steps": share_of_run(2000, shape.steps, 1 / 10)}
    if kind in ("standard", "gated"):
        return penalty_rises | {"l1_penalty": knob}
    if kind == "jumprelu":
        return penalty_rises | {"target_l0": knob}
    if kind == "p_anneal":
        annealing = {"sparsity_function": "Lp^p", "p_end": 0.2, "seed": None}
        annealing["anneal_start"] = share_of_run(10_000, shape.steps, 1 / 5)
        return penalty_rises | annealing | {"initial_sparsity_penalty": knob}
    settings: dict[str, Any] = {"k": int(knob)}
    averaged = share_of_run(1000, shape.steps, 1 / 20)
    settings |= {"threshold_start_step": averaged, "threshold_beta": 1 - 1 / averaged}
    return settings | {"group_fractions": GROUPS} if kind == "matryoshka" else settings


def _trainer(kind: str, shape: Shape, knob: float, lr: float, device: str) -> Any:
    trainer = TRAINERS[kind](
        steps=shape.steps,
        activation_dim=shape.d,
        dict_size=shape.n,
        layer=0,
        lm_name="none",
        lr=lr,
        device=device,
        warmup_steps=share_of_run(1000, shape.steps, 1 / 20),
        decay_start=shape.steps * 4 // 5,
        **_settings(kind, shape, knob),
    )
    tokens = shape.steps * shape.batch
    trainer.dead_feature_threshold = min(10_000_000, tokens // 10)  # no argument sets it
    return trainer


def step(kind: str, shape: Shape, knob: float, lr: float, x: Tensor) -> Step:
    """One training step on x [batch, d], in the middle of a run."""
    trainer = _trainer(kind, shape, knob, lr, str(x.device))
    rows = x / shape.d**0.5
    at = shape.steps // 2
    if kind == "p_anneal":
        for change in trainer.sparsity_update_steps[:5]:  # to p = 0.64
            trainer.update(int(change), rows)

    def run() -> None:
        nonlocal at
        trainer.update(at, rows)
        at += 1

    return run


def trained(kind: str, batches: Batches, shape: Shape, knob: float, lr: float) -> Result:
    """A whole training; see `peers.trained`."""
    trainer = _trainer(kind, shape, knob, lr, "cpu")
    norm = shape.d**0.5  # of a row with a mean square of 1
    for at in range(shape.steps):
        trainer.update(at, batches() / norm)
    with torch.no_grad():
        trainer.ae.scale_biases(norm)
    return _weights(kind, trainer.ae), trainer.ae


def _weights(kind: str, ae: Any) -> dict[str, Tensor]:
    """Under our names and in our orientation."""
    state = ae.state_dict()
    ours = {name: state[theirs] for name, theirs in NAMES[kind].items()}
    if kind == "jumprelu":  # its encoder takes x, ours x − b_dec
        ours["b_enc"] = without_pre_bias(ours["b_enc"], ours["W_enc"], ours["b_dec"])
    stored_turned = [name for name, theirs in NAMES[kind].items() if theirs in LAYERS.values()]
    return ours | {name: ours[name].T for name in stored_turned}
