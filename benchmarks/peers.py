"""Whole training steps of SAELens, dictionary_learning and sparsify, as their own trainers make them.

Each is the library's loss, backward pass, gradient clipping or decoder constraint and optimiser with its defaults, at
the given shape, in float32. Installed by benchmarks/requirements.txt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.standard import StandardTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from sparsify import SparseCoder, SparseCoderConfig

Step = Callable[[], Any]


def steps(d: int, n: int, x: torch.Tensor, k: int) -> dict[tuple[str, str, str, str], Callable[[], Step]]:
    """(name, arch, loss, step) -> what builds it. k: active latents of the top-k SAEs."""
    standard = StandardTrainingSAE, StandardTrainingSAEConfig
    gated = GatedTrainingSAE, GatedTrainingSAEConfig
    return {
        ("SAELens standard", "sae", "plain", "dense"): lambda: _sae_lens(*standard, d, n, x),
        ("SAELens gated", "gated", "full", "dense"): lambda: _sae_lens(*gated, d, n, x),
        ("dictionary_learning standard", "sae", "plain", "dense"): lambda: _dictionary(StandardTrainer, d, n, x),
        ("dictionary_learning gated", "gated", "full", "dense"): lambda: _dictionary(GatedSAETrainer, d, n, x),
        ("dictionary_learning top-k", "topk", "", "dense"): lambda: _dictionary(TopKTrainer, d, n, x, k=k),
        ("sparsify top-k", "topk", "", "sparse"): lambda: _sparsify(d, n, x, k),
    }


def _sae_lens(kind: type, config: type, d: int, n: int, x: torch.Tensor) -> Step:
    sae = kind(config(d_in=d, d_sae=n, device=str(x.device), dtype="float32"))
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-9)
    idle = torch.zeros(n, device=x.device)

    def step() -> None:
        sae.train()
        made = TrainStepInput(
            sae_in=x, coefficients={"l1": 1.0}, dead_neuron_mask=idle > 1000, n_training_steps=0, is_logging_step=False
        )
        out = sae.training_forward_pass(step_input=made)
        with torch.no_grad():
            fired = out.feature_acts.bool().float().sum(-2).bool()
            idle.add_(1).masked_fill_(fired, 0)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _dictionary(kind: type, d: int, n: int, x: torch.Tensor, **more: Any) -> Step:
    trainer = kind(
        steps=10**6, activation_dim=d, dict_size=n, layer=0, lm_name="none", lr=1e-9, device=str(x.device), **more
    )
    return lambda: trainer.update(0, x)


def _sparsify(d: int, n: int, x: torch.Tensor, k: int) -> Step:
    coder = SparseCoder(d, SparseCoderConfig(num_latents=n, k=k), device=str(x.device), dtype=torch.float32)
    optimizer = torch.optim.Adam(coder.parameters(), lr=1e-9)

    def step() -> None:
        coder.set_decoder_norm_to_unit_norm()
        coder(x).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    return step
