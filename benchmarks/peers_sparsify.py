"""sparsify (1.3.3): its `Trainer.fit`, on a model whose one module puts out batches of rows.

All are the defaults of its `TrainConfig`: SignSGD with momentum 0.95, averaged without a schedule
(`schedulefree`), FVU as the loss, decoder rows of unit norm, b_dec at the first batch's mean, no
AuxK (`auxk_alpha` 0). It has no warm-up. Measured is what it saves, the averaged weights.
"""

from __future__ import annotations

import io
import tempfile
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from peers import Batches, Result, Step
from sparsify import SparseCoder, SparseCoderConfig, TrainConfig, Trainer
from systems import Shape
from torch import Tensor, nn

MODULE = "rows"


class RowModel(nn.Module):
    """A model with one module, whose output is the next batch of rows."""

    device = torch.device("cpu")

    def __init__(self, batches: Batches, d: int) -> None:
        super().__init__()
        self.rows = nn.Identity()
        self.batches = batches
        self.d = d

    @property
    def base_model(self) -> RowModel:
        """Where the trainer looks for modules."""
        return self

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """One token, from which the trainer reads the width."""
        return {"input_ids": torch.zeros(1, 1, dtype=torch.long)}

    def forward(self, input_ids: Tensor) -> Tensor:
        """[1, batch] -> [1, batch, d]; takes no batch for the one token of `dummy_inputs`."""
        if input_ids.numel() == 1:
            return self.rows(torch.zeros(1, 1, self.d))
        return self.rows(self.batches()[None])


@contextmanager
def _trainer(shape: Shape, knob: float, lr: float, model: nn.Module, n_batches: int) -> Any:
    """The trainer, its checkpoints in a folder that is removed, and as silent as it can be."""
    coder = SparseCoderConfig(num_latents=shape.n, k=int(knob))
    tokens = [{"input_ids": torch.zeros(shape.batch, dtype=torch.long)}] * n_batches
    precision = torch.get_float32_matmul_precision()  # `fit` lowers it
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        config = TrainConfig(
            sae=coder,
            batch_size=1,
            lr=lr,
            hookpoints=[MODULE],
            log_to_wandb=False,
            save_every=10**9,
            save_dir=folder,
        )
        # it begins with the seed of its configuration
        config.init_seeds = [torch.initial_seed() % 2**31]
        try:
            yield Trainer(config, tokens, model)
        finally:
            torch.set_float32_matmul_precision(precision)


def step(kind: str, shape: Shape, knob: float, lr: float, x: Tensor) -> Step:
    """One training step on x [batch, d]: what `Trainer.fit` does with a batch."""
    model = RowModel(lambda: x, shape.d)
    model.device = x.device
    with _trainer(shape, knob, lr, model, 1) as trainer:
        coder = trainer.saes[MODULE]
        optimizers = trainer.optimizers

    def run() -> None:
        coder.set_decoder_norm_to_unit_norm()
        total_variance = (x - x.mean(0)).pow(2).sum()
        coder(x, y=x, total_variance=total_variance).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return run


def trained(kind: str, batches: Batches, shape: Shape, knob: float, lr: float) -> Result:
    """A whole training; see `peers.trained`."""
    model = RowModel(batches, shape.d)
    with _trainer(shape, knob, lr, model, shape.steps) as trainer:
        trainer.fit()
        saved = Path(trainer.cfg.save_dir) / "unnamed" / MODULE
        coder = SparseCoder.load_from_disk(saved).requires_grad_(False)
    weights = {
        "W_enc": coder.encoder.weight.T,
        "W_dec": coder.W_dec,
        "b_enc": coder.encoder.bias,
        "b_dec": coder.b_dec,
    }
    return weights, lambda x: coder(x).sae_out
