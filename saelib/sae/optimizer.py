"""Adam on an SAE's parameters, with what decoder rows of unit norm need (Bricken et al. 2023).

A step removes the gradient along each decoder row, clips the gradient's norm, takes Adam's step and
brings the rows back to unit norm. In PyTorch these are passes over all weights, each bound by
memory; in C (`sparse.adam`) they are one, or two with clipping, which needs the norm first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saelib.config import TrainConfig
from saelib.sae.base import Autoencoder
from saelib.sae.sharding import Sharding
from saelib.sae.sparse import adam


class RowAdam(torch.optim.Adam):
    """torch's fused Adam, and its twin in C where `compiled`; the state has torch's names.

    leaves: the SAE's parameters by name, contiguous, sharing their memory. The gradients of both
    must be set before a step. Afterwards they are projected; clipping is left out of them in C.
    """

    def __init__(
        self,
        sae: Autoencoder,
        leaves: dict[str, Tensor],
        cfg: TrainConfig,
        sharding: Sharding,
        compiled: bool = False,
    ) -> None:
        super().__init__(leaves.values(), cfg.lr, (cfg.beta1, cfg.beta2), fused=True)
        self.sae = sae
        self.leaves = leaves
        self.max_norm = cfg.grad_clip
        self.sharding = sharding
        self.compiled = compiled

    @torch.no_grad()
    def step(self) -> None:
        """One step of all parameters."""
        if self.compiled:
            self._step_in_c()
            return
        self.sae.project_decoder_grad_()
        if self.max_norm:
            self.sharding.clip_(self.sae, self.max_norm)
        super().step()
        self.sae.unit_norm_decoder_()

    def _step_in_c(self) -> None:
        gradients = {name: leaf.grad.contiguous() for name, leaf in self.leaves.items()}
        factor = self._clip_factor(gradients) if self.max_norm else 1.0
        (group,) = self.param_groups
        for name, leaf in self.leaves.items():
            state = self._state_of(leaf)
            state["step"] += 1
            adam.step_(
                leaf,
                gradients[name],
                (state["exp_avg"], state["exp_avg_sq"]),
                adam.Rates(group["lr"], *group["betas"], group["eps"], int(state["step"])),
                unit=self._has_unit_rows(name),
                projected=bool(self.max_norm),
                factor=factor,
            )

    def _clip_factor(self, gradients: dict[str, Tensor]) -> float:
        """What clipping multiplies the gradients by, which are projected on the way."""
        squares = {
            name: adam.square_norm(gradient, self.leaves[name], self._has_unit_rows(name))
            for name, gradient in gradients.items()
        }
        factor = self.max_norm / (self.sharding.norm(squares) + 1e-6)  # as torch has it
        return 1.0 if factor > 1 else factor  # a norm that is NaN stays so: training then ends

    def _has_unit_rows(self, name: str) -> bool:
        return name == "W_dec" and self.sae.config.l1_mode == "unit_norm"

    def _state_of(self, leaf: Tensor) -> dict[str, Tensor]:
        """The leaf's state, begun as torch begins it."""
        state = self.state[leaf]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(leaf)
            state["exp_avg_sq"] = torch.zeros_like(leaf)
        return state

    def root_mean_squares(self) -> dict[str, float]:
        """Of Adam's m and of √v, over all weights; a step is lr · m / √v."""
        states = [
            self.state[leaf] for name, leaf in self.leaves.items() if self.sharding.counts(name)
        ]
        size = sum(state["exp_avg"].numel() for state in states)
        m = sum(float(state["exp_avg"].pow(2).sum()) for state in states)
        v = sum(float(state["exp_avg_sq"].sum()) for state in states)
        size, m, v = self.sharding.totals(size, m, v)
        return {"adam_m": (m / size) ** 0.5, "adam_v": (v / size) ** 0.5}
