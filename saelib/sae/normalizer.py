"""The affine map between model units and the normalised units in which every SAE works."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class NormalizedModule(nn.Module, ABC):
    """Encoder and decoder with a site's normaliser, scale · (x − mean); the identity until set."""

    def __init__(self, d_in: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(d_in))
        self.register_buffer("scale", torch.ones(()))

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Codes f of normalised x. [batch, d_in] -> [batch, n_latents]."""

    @abstractmethod
    def decode(self, f: Tensor) -> Tensor:
        """x̂ in normalised units. [batch, n_latents] -> [batch, d_in]."""

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

    def encode_raw(self, x: Tensor) -> Tensor:
        """Codes of activations in model units; the codes themselves stay in normalised units."""
        return self.encode(self.normalize(x))

    def decode_raw(self, f: Tensor) -> Tensor:
        """x̂ in model units from codes in normalised units."""
        return self.denormalize(self.decode(f))

    def reconstruct(self, x: Tensor) -> Tensor:
        """x̂ of x, both in model units. [batch, d_in] -> [batch, d_in]."""
        return self.decode_raw(self.encode_raw(x))

    @torch.no_grad()
    def set_normalizer_(self, mean: Tensor, scale: float) -> None:
        """Set mean [d_in] and scale of the site's normaliser."""
        self.mean.copy_(mean)
        self.scale.fill_(scale)
