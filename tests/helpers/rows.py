"""Rows that an SAE can take apart: sparse sums of 64 directions, of mean squared norm D."""

import torch

D = 16
N = 128  # latents of the SAEs trained on them


def sparse_rows():
    """The 4,000 rows, the same at each call."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(64, D, generator=generator)
    codes = torch.rand(4000, 64, generator=generator) * (
        torch.rand(4000, 64, generator=generator) < 0.05
    )
    x = codes @ directions
    return x / x.pow(2).sum(1).mean().sqrt() * D**0.5
