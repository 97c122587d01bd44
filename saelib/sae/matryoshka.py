"""The Matryoshka SAE (Bussmann, Nabeshima, Karvonen, Nanda 2025, arXiv 2503.17547).

f as the BatchTopK SAE has it
x̂_m = f_{<m} W_dec,<m + b_dec: what the first m latents rebuild
L = Σ_m ‖x − x̂_m‖², over rising prefixes m of the latents, and AuxK for the error of all latents

The first latents have to rebuild x alone, and so stay general; later ones add detail. The objective
is the sum over prefixes, as in the paper, not the mean: the last prefix is all latents, so that the
term `mse` is the error that other architectures have, and the smaller prefixes' stand in `aux`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from saelib.config import ConfigError, SAEConfig
from saelib.sae import sparse
from saelib.sae.batchtopk import BatchTopKOptions, BatchTopKSAE
from saelib.sae.dense import SparseCodes
from saelib.sae.losses import squared_error
from saelib.sae.topk import Decoded


@dataclass(frozen=True)
class MatryoshkaOptions(BatchTopKOptions):
    """The options of a Matryoshka SAE."""

    # Rising shares of the latents, the last 1, or rising numbers of them, the last all. These are
    # the paper's: 2,048, 6,144, 14,336, 30,720 and all of 65,536.
    prefixes: tuple[float | int, ...] = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0)

    def check(self) -> None:
        super().check()
        rising = all(a < b for a, b in pairwise((0, *self.prefixes)))
        accepted = "rising shares of the latents, the last 1, or rising numbers of them"
        self._require(bool(self.prefixes) and rising, "prefixes", accepted)


def prefix_sizes(prefixes: Sequence[float | int], n_latents: int) -> tuple[int, ...]:
    """The numbers of latents; shares that come to the same number, at least 1, count once.

    Raises:
        ConfigError: more latents than there are, a number that is not whole, or the last prefix
            is not all latents.
    """
    are_shares = prefixes[-1] <= 1
    sizes = [max(1, round(p * n_latents)) if are_shares else p for p in prefixes]
    if sizes[-1] != n_latents or not all(size == int(size) for size in sizes):
        raise ConfigError(
            f"MatryoshkaOptions.prefixes = {list(prefixes)}: expected shares that end with 1, or "
            f"whole numbers that end with n_latents = {n_latents}"
        )
    return tuple(dict.fromkeys(map(int, sizes)))


class MatryoshkaSAE(BatchTopKSAE):
    """A BatchTopK SAE, each prefix of whose latents rebuilds x."""

    LOSSES = ("matryoshka",)
    Options = MatryoshkaOptions

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        sizes = prefix_sizes(self.options.prefixes, self.config.n_latents)
        # What each prefix adds to the one before: groups of latents.
        self.groups = [slice(first, last) for first, last in pairwise((0, *sizes))]

    @classmethod
    def checked(cls, config: SAEConfig) -> SAEConfig:
        config = super().checked(config)
        prefix_sizes(config.options["prefixes"], config.n_latents)
        return config

    def _squared_errors(self, x: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        x_hat = self.b_dec.expand_as(x)
        errors = []
        for group in self.groups:
            x_hat = x_hat + f[:, group] @ self.W_dec[group]
            errors.append(squared_error(x, x_hat))
        return errors[-1], torch.stack(errors).sum(0) - errors[-1]

    def _decoded(self, x: Tensor, f: Tensor) -> Decoded:
        error = self.b_dec - x
        errors = []
        for group in self.groups:
            error = torch.addmm(error, f[:, group], self.W_dec[group])
            errors.append(error)
        sums = _sums_from_the_end(errors, 2 / len(x))
        parts = list(zip(self.groups, sums, strict=True))
        return Decoded(
            x_hat=sums[-1],
            **_squares([error.pow(2).sum() for error in errors]),
            W_dec=torch.cat([f[:, group].T @ total for group, total in parts]),
            b_dec=sums[0].sum(0),
            f=torch.cat([total @ self.W_dec[group].T for group, total in parts], 1),
        )

    def _decoded_sparse(self, x: Tensor, codes: SparseCodes, f: Tensor) -> Decoded:
        operations = sparse.operations(x.device)
        no_bias = torch.zeros_like(self.b_dec)
        inside = [(codes.col >= g.start) & (codes.col < g.stop) for g in self.groups]
        rows_of = [_row_by_row(codes, entries) for entries in inside]
        missed, bias = x, self.b_dec
        errors, squares = [], []
        for entries, own in zip(inside, rows_of, strict=True):
            error, squared, _ = operations.decode(missed, self.W_dec, bias, own, f[entries], 1.0)
            errors.append(error)
            squares.append(squared)
            missed, bias = -error, no_bias
        sums = _sums_from_the_end(errors, 2 / len(x))
        g_f, g_W_dec = torch.empty_like(f), []
        for group, entries, own, total in zip(self.groups, inside, rows_of, sums, strict=True):
            silent = torch.zeros_like(f[entries])  # the decoding is `total` alone
            _, _, g_f[entries] = operations.decode(-total, self.W_dec, no_bias, own, silent, 1.0)
            latents = _latent_by_latent(codes, group)
            size = group.stop - group.start
            g_W_dec.append(operations.weight_gradient(total, latents, f, size))
        return Decoded(
            x_hat=sums[-1],
            **_squares(squares),
            W_dec=torch.cat(g_W_dec),
            b_dec=sums[0].sum(0),
            f=g_f,
        )


def _sums_from_the_end(errors: Sequence[Tensor], factor: float) -> list[Tensor]:
    """factor · Σ_{j ≥ i} error_j for each i: a group's latents are in its prefix and all longer."""
    sums = [factor * errors[-1]]
    for error in reversed(errors[:-1]):
        sums.append(torch.add(sums[-1], error, alpha=factor))
    return sums[::-1]


def _squares(squares: Sequence[Tensor]) -> dict[str, Tensor]:
    """The squared error of all latents, and the sum of the smaller prefixes'."""
    return {"mse": squares[-1], "nested": torch.stack(list(squares)).sum() - squares[-1]}


def _row_by_row(codes: SparseCodes, entries: Tensor) -> SparseCodes:
    """Some of the entries (bool [entries]), as `decode` walks them."""
    starts = pad(entries.cumsum(0), (1, 0))
    return codes._replace(crow=starts[codes.crow], col=codes.col[entries])


def _latent_by_latent(codes: SparseCodes, group: slice) -> SparseCodes:
    """The entries of a group of latents, as `weight_gradient` walks them."""
    starts = codes.ccol[group.start : group.stop + 1]
    part = slice(int(starts[0]), int(starts[-1]))
    return codes._replace(ccol=starts - starts[0], row=codes.row[part], order=codes.order[part])
