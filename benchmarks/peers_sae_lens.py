"""SAELens (6.54.12): its `SAETrainer` (Adam, gradient norm clipped at 1, dead latents, AuxK).

Initialisation and settings are each configuration's defaults, on rows of mean norm about √d, which
its documentation calls "expected_average_only_in". From its tutorial and docs/training_saes.md: the
L1 or L0 coefficient rises over the first twentieth of the steps, the learning rate falls over the
last fifth. The settings of "jumprelu_tanh" are those of its example of Anthropic's setup, where the
coefficient rises over the whole run. matryoshka_widths have no default: the shares of the paper,
which saelib and dictionary_learning's example have too.

Given in steps for runs of 30,000 and a share of this run: the learning rate's warm-up (a
twentieth), `dead_feature_window` 1,000 (a tenth), and the memory of BatchTopK's threshold, 100
steps (1/`topk_threshold_lr`; a twentieth).

A trained SAE is measured as what SAELens saves for inference: a BatchTopK or Matryoshka SAE as a
JumpReLU one, a TopK SAE with its decoder's norms folded in.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from peers import Batches, Result, Step, share_of_run
from sae_lens import SAE
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import (
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from systems import Shape

from saelib.sae.matryoshka import MatryoshkaOptions, prefix_sizes

KINDS: dict[str, tuple[type, type]] = {
    "standard": (StandardTrainingSAE, StandardTrainingSAEConfig),
    "gated": (GatedTrainingSAE, GatedTrainingSAEConfig),
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
    "jumprelu": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig),
    "jumprelu_tanh": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig),
    "matryoshka": (MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig),
}
TANH = {
    "jumprelu_sparsity_loss_mode": "tanh",
    "jumprelu_bandwidth": 2.0,
    "jumprelu_init_threshold": 0.1,
    "pre_act_loss_coefficient": 3e-6,
}


def _settings(kind: str, shape: Shape, knob: float) -> dict[str, Any]:
    """What a configuration takes beside its defaults."""
    rise = shape.steps // 20
    if kind in ("standard", "gated"):
        return {"l1_coefficient": knob, "l1_warm_up_steps": rise}
    if kind == "jumprelu":
        return {"l0_coefficient": knob, "l0_warm_up_steps": rise}
    if kind == "jumprelu_tanh":
        return TANH | {"l0_coefficient": knob, "l0_warm_up_steps": shape.steps}
    if kind == "topk":
        return {"k": int(knob)}
    settings = {"k": knob, "topk_threshold_lr": 1 / share_of_run(100, shape.steps, 1 / 20)}
    if kind == "matryoshka":
        settings["matryoshka_widths"] = list(prefix_sizes(MatryoshkaOptions().prefixes, shape.n))
    return settings


def _trainer(
    kind: str, shape: Shape, knob: float, lr: float, device: str, batches: Batches
) -> SAETrainer:
    sae_class, config_class = KINDS[kind]
    fixed = {"d_in": shape.d, "d_sae": shape.n, "device": device, "dtype": "float32"}
    sae = sae_class(config_class(**fixed, **_settings(kind, shape, knob)))
    config = SAETrainerConfig(
        total_training_samples=shape.steps * shape.batch,
        train_batch_size_samples=shape.batch,
        lr=lr,
        lr_end=lr / 10,
        lr_warm_up_steps=shape.steps // 20,
        lr_decay_steps=shape.steps // 5,
        dead_feature_window=share_of_run(1000, shape.steps, 1 / 10),
        device=device,
    )
    return SAETrainer(config, sae, iter(batches, None))


def step(kind: str, shape: Shape, knob: float, lr: float, x: torch.Tensor) -> Step:
    """One training step on x [batch, d]."""
    trainer = _trainer(kind, shape, knob, lr, str(x.device), lambda: x)

    def run() -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    return run


def trained(kind: str, batches: Batches, shape: Shape, knob: float, lr: float) -> Result:
    """A whole training; see `peers.trained`."""
    fitted = _trainer(kind, shape, knob, lr, "cpu", batches).fit()
    saved = _for_inference(fitted)
    weights = dict(saved.state_dict())
    if kind in ("batchtopk", "matryoshka"):  # one number, in each latent's place
        weights["threshold"] = weights["threshold"][0]
    return weights, _dense(saved)


def _for_inference(fitted: Any) -> SAE:
    """What SAELens loads where the SAE is used."""
    with tempfile.TemporaryDirectory() as folder:
        fitted.save_inference_model(folder)
        return SAE.load_from_disk(folder).requires_grad_(False)


def _dense(saved: SAE) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: saved.decode(saved.encode(x))
