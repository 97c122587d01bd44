"""The affine map between model units and the normalised units in which every SAE works."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NormalizedModule(nn.Module):
    """A module with a site's normaliser, scale · (x − mean); until it is set, the identity."""

    def __init__(self, d_in: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(d_in))
        self.register_buffer("scale", torch.ones(()))

    def normalize(self, x: Tensor) -> Tensor:
        """Model units -> normalised units. [batch, d_in].

        Raises:
            ValueError: x has another width than the SAE.
        """
        if x.shape[-1] != len(self.mean):
            raise ValueError(
                f"SAE of width d_in = {len(self.mean)} was given activations of width {x.shape[-1]}"
            )
        return (x - self.mean) * self.scale

    def denormalize(self, x: Tensor) -> Tensor:
        """Normalised units -> model units. [batch, d_in]."""
        return x / self.scale + self.mean

    @torch.no_grad()
    def set_normalizer_(self, mean: Tensor, scale: float) -> None:
        """Set mean [d_in] and scale of the site's normaliser."""
        self.mean.copy_(mean)
        self.scale.fill_(scale)
