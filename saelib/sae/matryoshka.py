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
from saelib.sae.dense import Gradients, SparseCodes
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

    def _decoded_sparse(
        self, x: Tensor, codes: SparseCodes, f: Tensor, room: Gradients | None
    ) -> Decoded:
        """One decoding of all groups: each row of the batch is as many rows as there are groups.

        What a group adds to the reconstruction is summed up from the first group on, which gives
        the prefixes' errors, and these from the last on, which gives each group's gradient.
        """
        operations = sparse.operations(x.device)
        n_groups, no_bias = len(self.groups), torch.zeros_like(self.b_dec)
        grouped = self._grouped(codes, len(x))
        targets = x.new_zeros(len(x), n_groups, x.shape[1])
        targets[:, 0] = x - self.b_dec
        sums, _, _ = operations.decode(targets.flatten(0, 1), self.W_dec, no_bias, grouped, f, 1.0)
        del targets
        errors = sums.view(len(x), n_groups, -1)
        for i in range(1, n_groups):
            errors[:, i] += errors[:, i - 1]
        squares = [torch.linalg.vector_norm(errors[:, i]).square() for i in range(n_groups)]
        for i in reversed(range(n_groups - 1)):
            errors[:, i] += errors[:, i + 1]
        sums *= 2 / len(x)
        return Decoded(
            x_hat=errors[:, -1],
            **_squares(squares),
            W_dec=sparse.decoder_gradient(sums, grouped, f, room),
            b_dec=errors[:, 0].sum(0),
            f=operations.entry_products(sums, self.W_dec, grouped),
        )

    def _grouped(self, codes: SparseCodes, n_rows: int) -> SparseCodes:
        """The same entries, row b's of group g in row b · groups + g."""
        n_groups = len(self.groups)
        sizes = [group.stop - group.start for group in self.groups]
        numbers = torch.arange(n_groups, device=codes.col.device)
        group_of = numbers.repeat_interleave(torch.tensor(sizes, device=codes.col.device))
        row = torch.repeat_interleave(codes.crow.diff()) * n_groups + group_of[codes.col.long()]
        crow = pad(row.bincount(minlength=n_rows * n_groups).cumsum(0), (1, 0))
        by_latent = group_of.repeat_interleave(codes.ccol.diff())
        return codes._replace(crow=crow, row=codes.row * n_groups + by_latent.int())


def _sums_from_the_end(errors: Sequence[Tensor], factor: float) -> list[Tensor]:
    """factor · Σ_{j ≥ i} error_j for each i: a group's latents are in its prefix and all longer."""
    sums = [factor * errors[-1]]
    for error in reversed(errors[:-1]):
        sums.append(torch.add(sums[-1], error, alpha=factor))
    return sums[::-1]


def _squares(squares: Sequence[Tensor]) -> dict[str, Tensor]:
    """The squared error of all latents, and the sum of the smaller prefixes'."""
    return {"mse": squares[-1], "nested": torch.stack(list(squares)).sum() - squares[-1]}
