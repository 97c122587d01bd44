"""Random codes' open entries, for any of the modules that do the sparse step."""

import torch

SHAPES = [(5, 3, 7), (33, 40, 64), (64, 100, 200), (17, 16, 129)]  # fill no vector


def entries(ops, rows, d, n, encoder="exact"):
    """Rows, decoder, bias, and the entries that the module `ops` finds open."""
    g = torch.Generator().manual_seed(rows)
    x_c, W = torch.randn(rows, d, generator=g), torch.randn(n, d, generator=g)
    bias = -torch.rand(n, generator=g) * d**0.5
    return x_c, W, bias, ops.open_entries(x_c, W.T, bias, encoder)
