"""Whole training steps of SAELens, dictionary_learning and sparsify, by their own trainers.

Each is the library's loss, backward pass, gradient clipping or decoder constraint and optimiser
with its defaults, at the given shape, in float32. Installed by benchmarks/requirements.txt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.standard import StandardTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from sparsify import SparseCoder, SparseCoderConfig

Step = Callable[[], Any]
Rebuild = Callable[[torch.Tensor], torch.Tensor]
BIASES = {"standard": ("b_enc",), "gated": ("b_gate", "b_mag", "r_mag")}


def steps(
    d: int, n: int, x: torch.Tensor, k: int
) -> dict[tuple[str, str, str, str], Callable[[], Step]]:
    """(name, arch, loss, step) -> what builds it. k: active latents of the top-k SAEs."""
    standard = StandardTrainingSAE, StandardTrainingSAEConfig
    gated = GatedTrainingSAE, GatedTrainingSAEConfig
    return {
        ("SAELens standard", "sae", "plain", "dense"): lambda: _sae_lens(*standard, d, n, x),
        ("SAELens gated", "gated", "full", "dense"): lambda: _sae_lens(*gated, d, n, x),
        ("dictionary_learning standard", "sae", "plain", "dense"): lambda: _dictionary(
            StandardTrainer, d, n, x
        ),
        ("dictionary_learning gated", "gated", "full", "dense"): lambda: _dictionary(
            GatedSAETrainer, d, n, x
        ),
        ("dictionary_learning top-k", "topk", "", "dense"): lambda: _dictionary(
            TopKTrainer, d, n, x, k=k
        ),
        ("sparsify top-k", "topk", "", "sparse"): lambda: _sparsify(d, n, x, k),
    }


def _sae_lens(kind: type, config: type, d: int, n: int, x: torch.Tensor) -> Step:
    sae = kind(config(d_in=d, d_sae=n, device=str(x.device), dtype="float32"))
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-9)
    idle = torch.zeros(n, device=x.device)

    def step() -> None:
        sae.train()
        made = TrainStepInput(
            sae_in=x,
            coefficients={"l1": 1.0},
            dead_neuron_mask=idle > 1000,
            n_training_steps=0,
            is_logging_step=False,
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
        steps=10**6,
        activation_dim=d,
        dict_size=n,
        layer=0,
        lm_name="none",
        lr=1e-9,
        device=str(x.device),
        **more,
    )
    return lambda: trainer.update(0, x)


def _sparsify(d: int, n: int, x: torch.Tensor, k: int) -> Step:
    coder = SparseCoder(
        d, SparseCoderConfig(num_latents=n, k=k), device=str(x.device), dtype=torch.float32
    )
    optimizer = torch.optim.Adam(coder.parameters(), lr=1e-9)

    def step() -> None:
        coder.set_decoder_norm_to_unit_norm()
        coder(x).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    return step


def trained(
    system: str,
    batches: Callable[[], torch.Tensor],
    d: int,
    n: int,
    steps: int,
    batch: int,
    lam: float,
    lr: float,
) -> tuple[dict[str, torch.Tensor], Rebuild]:
    """A peer's SAE trained on `batches()` by its own trainer.

    Returns its weights in saelib's names, and its own x -> x̂.

    Adam, clipping, decoder constraint and initialisation are the library's defaults. Schedules are
    the shares of a run that its own example takes: SAELens' tutorial a twentieth of the steps for
    the L1 coefficient to rise and the last fifth for the rate to fall; dictionary_learning's
    demonstration the last fifth too. Their warm-ups are given in steps, for far longer runs; here
    they are a twentieth of this one (learning rate) and, of the latter's L1, a tenth.
    """
    kind, _, name = system.partition(" ")
    if kind == "SAELens":
        return _sae_lens_trained(name, batches, d, n, steps, batch, lam, lr)
    trainer = {"standard": StandardTrainer, "gated": GatedSAETrainer}[name](
        steps=steps,
        activation_dim=d,
        dict_size=n,
        layer=0,
        lm_name="none",
        lr=lr,
        l1_penalty=lam,
        device="cpu",
        warmup_steps=min(1000, steps // 20),
        sparsity_warmup_steps=min(2000, steps // 10),
        decay_start=steps * 4 // 5,
    )
    for step in range(steps):
        trainer.update(step, batches())
    ae = trainer.ae
    shared = {"W_enc": ae.encoder.weight.T, "W_dec": ae.decoder.weight.T}
    if name == "standard":
        return shared | {"b_enc": ae.encoder.bias, "b_dec": ae.bias}, ae
    return shared | {
        "b_gate": ae.gate_bias,
        "b_mag": ae.mag_bias,
        "r_mag": ae.r_mag,
        "b_dec": ae.decoder_bias,
    }, ae


def _sae_lens_trained(
    name: str,
    batches: Callable[[], torch.Tensor],
    d: int,
    n: int,
    steps: int,
    batch: int,
    lam: float,
    lr: float,
) -> tuple[dict[str, torch.Tensor], Rebuild]:
    kinds = {"standard": (StandardTrainingSAE, StandardTrainingSAEConfig)}
    kind, config = kinds.get(name, (GatedTrainingSAE, GatedTrainingSAEConfig))
    l1 = {"l1_coefficient": lam, "l1_warm_up_steps": steps // 20}
    sae = kind(config(d_in=d, d_sae=n, device="cpu", dtype="float32", **l1))
    rate = {
        "lr": lr,
        "lr_end": lr / 10,
        "lr_warm_up_steps": steps // 20,
        "lr_decay_steps": steps // 5,
    }
    cfg = SAETrainerConfig(
        total_training_samples=steps * batch, train_batch_size_samples=batch, **rate
    )
    fitted = SAETrainer(cfg, sae, iter(batches, None)).fit()
    return {
        k: v
        for k, v in fitted.state_dict().items()
        if k in ("W_enc", "W_dec", "b_dec", *BIASES[name])
    }, fitted
