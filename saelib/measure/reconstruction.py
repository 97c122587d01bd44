"""What a reconstruction is worth: pure formulas and float64 accumulators, in torch alone.

    FVU             Σ‖x − x̂‖² / Σ‖x − μ‖²            μ the mean of the same rows; 1 for the mean
                                                     predictor; low is good
    shrinkage       E‖x̂ − μ‖² / E⟨x − μ, x̂ − μ⟩      1 is none, below 1 the reconstruction is short
    shrinkage_raw   E‖x̂‖² / E⟨x, x̂⟩                  as in Rajamanoharan et al. 2024
                                                     (arXiv 2404.16014), eq. 10
    L0              E‖f‖₀, a latent fires where f > 0

Errors are sums over d_in and means over rows. Sums are float64 and taken about a fixed vector
(`shift`) near the mean, so that one pass is safe where the mean is large. A formula without a value
(0 / 0) gives nan, never a number.

A metric is a method of `Reconstruction`, or a function of one, that `columns.py` names in its
table.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

# A denominator this small beside the sum it was subtracted from is rounding, not a number.
NEGLIGIBLE = 1e-12


def ratio(numerator: float, denominator: float, beside: float) -> float:
    """numerator / denominator; nan where the denominator is rounding beside the sums behind it."""
    return numerator / denominator if denominator > NEGLIGIBLE * beside else math.nan


def fvu(x: Tensor, x_hat: Tensor) -> float:
    """Fraction of variance unexplained of rows [n, d] in memory, about their own mean.

    nan for constant rows. Raises `ValueError` where the shapes differ.
    """
    if x.shape != x_hat.shape:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, x_hat {tuple(x_hat.shape)}: expected the same"
        )
    x = x.double()
    x_hat = x_hat.double()
    total = (x - x.mean(0)).square().sum().item()
    return ratio((x - x_hat).square().sum().item(), total, x.square().sum().item())


class RowSums:
    """Σ1, Σ(x − shift) and Σ‖x − shift‖² of rows, for each of `n_groups` groups (pages).

    On the CPU, in float64.
    """

    def __init__(self, shift: Float[Tensor, " d"], n_groups: int = 1) -> None:
        self.shift = shift.detach().to("cpu", torch.float64)
        self.count = torch.zeros(n_groups, dtype=torch.float64)
        self.sum = torch.zeros(n_groups, len(self.shift), dtype=torch.float64)
        self.square = torch.zeros(n_groups, dtype=torch.float64)

    def update(self, x: Float[Tensor, "n d"], group: Int64[Tensor, " n"] | None = None) -> None:
        """Add rows; `group` says whose each is (all are group 0's where it is None)."""
        y = x.detach().to("cpu", torch.float64) - self.shift
        group = _groups(len(y), group)
        self.count.index_add_(0, group, torch.ones(len(y), dtype=torch.float64))
        self.sum.index_add_(0, group, y)
        self.square.index_add_(0, group, y.square().sum(-1))

    @property
    def n(self) -> int:
        """Rows seen."""
        return int(self.count.sum())

    @property
    def mean(self) -> Float64[Tensor, " d"]:
        """Mean of all rows seen, nan without any."""
        return self.shift + self.sum.sum(0) / self.count.sum()

    @property
    def mean_square(self) -> float:
        """E‖x‖² of all rows seen."""
        if not self.n:
            return math.nan
        return self.scatter(torch.zeros_like(self.shift)).sum().item() / self.n

    def scatter(self, about: Float64[Tensor, " d"] | None = None) -> Float64[Tensor, " n_groups"]:
        """Σ‖x − about‖² of each group, all about one vector (None: the mean of all rows)."""
        offset = (self.mean if about is None else about) - self.shift
        return self.square - 2 * self.sum @ offset + self.count * offset.dot(offset)

    def __add__(self, other: RowSums) -> RowSums:
        """Sums over the rows of both, as one group; `ValueError` where the shifts differ."""
        if not torch.equal(self.shift, other.shift):
            raise ValueError("sums about two different shifts cannot be added")
        both = RowSums(self.shift)
        for name in ("count", "sum", "square"):
            ours = getattr(self, name).sum(0, keepdim=True)
            theirs = getattr(other, name).sum(0, keepdim=True)
            setattr(both, name, ours + theirs)
        return both


def _groups(n: int, group: Tensor | None) -> Tensor:
    return torch.zeros(n, dtype=torch.int64) if group is None else group.to("cpu", torch.int64)


class CodeSums(NamedTuple):
    """What a batch of codes adds up to."""

    l0: Tensor  # ‖f‖₀ of each row [n]
    l1: Tensor  # Σ‖f‖₁, a scalar
    fired: Tensor  # rows on which a latent fires [n_latents]
    opened: Tensor | None = None  # bool, whether its gate was open on some row [n_latents]

    @classmethod
    def of(
        cls, f: Float[Tensor, "n n_latents"], gate: Bool[Tensor, "n n_latents"] | None = None
    ) -> CodeSums:
        """Sums of dense codes; `gate` says which gates are open."""
        fires = (f > 0).float()  # exact to 2^24, and several times faster to sum than bool
        l1 = torch.linalg.vector_norm(f.float(), 1, dim=-1).double().sum()
        return cls(fires.sum(-1), l1, fires.sum(0), None if gate is None else gate.any(0))

    @classmethod
    def of_entries(
        cls,
        row: Int64[Tensor, " entries"],
        latent: Int64[Tensor, " entries"],
        f: Float[Tensor, " entries"],
        shape: tuple[int, int],
        gated: bool,
    ) -> CodeSums:
        """The same from open entries alone: f ≥ 0 of `row` and `latent`; n, n_latents = shape."""
        n, n_latents = shape
        fires = f > 0
        l0 = torch.bincount(row[fires], minlength=n)
        fired = torch.bincount(latent[fires], minlength=n_latents)
        opened = torch.bincount(latent, minlength=n_latents) > 0 if gated else None
        return cls(l0, f.double().sum(), fired, opened)


class Reconstruction:
    """Streaming sums of one SAE's errors and codes on the rows that `x_sums` describes.

    The caller updates `x_sums` with the same rows, once for all SAEs that see them. Rows and
    reconstructions are in model units, codes as the SAE gives them (normalised units); `scale` is
    the normaliser's, x_n = scale (x − mean). Metrics are over all rows seen.
    """

    def __init__(self, x_sums: RowSums, n_latents: int, scale: float = 1.0) -> None:
        n_groups, d = x_sums.sum.shape
        self.x = x_sums
        self.scale = scale
        self.sse = torch.zeros(n_groups, dtype=torch.float64)  # Σ‖x − x̂‖²
        self.active = torch.zeros(n_groups, dtype=torch.float64)  # Σ‖f‖₀
        self.sum_l1 = 0.0  # Σ‖f‖₁
        self.hat_sum = torch.zeros(d, dtype=torch.float64)  # Σ(x̂ − shift)
        self.hat_square = 0.0  # Σ‖x̂ − shift‖²
        self.inner = 0.0  # Σ⟨x − shift, x̂ − shift⟩
        self.fired = torch.zeros(n_latents, dtype=torch.int64)  # rows on which a latent fires
        self.opened: Tensor | None = None  # gates open at least once [n_latents], if there are any

    def update(
        self,
        x: Float[Tensor, "n d"],
        x_hat: Float[Tensor, "..."],
        codes: CodeSums,
        group: Int64[Tensor, " n"] | None = None,
    ) -> None:
        """Add x, x_hat [n, d] and the sums of their codes; `group` as for `RowSums`.

        Raises `ValueError` where their shapes differ.
        """
        if x.shape != x_hat.shape or len(codes.l0) != len(x):
            raise ValueError(
                f"shapes x {tuple(x.shape)}, x_hat {tuple(x_hat.shape)}, "
                f"codes of {len(codes.l0)} rows"
            )
        shift = self.x.shift.to(x.device)
        group = _groups(len(x), group)
        y = x.double() - shift
        y_hat = x_hat.double() - shift
        self.sse.index_add_(0, group, (y - y_hat).square().sum(-1).cpu())
        self.active.index_add_(0, group, codes.l0.double().cpu())
        self.sum_l1 += float(codes.l1)
        self.hat_sum += y_hat.sum(0).cpu()
        self.hat_square += y_hat.square().sum().item()
        self.inner += (y * y_hat).sum().item()
        self.fired += codes.fired.long().cpu()
        if codes.opened is not None:
            opened = codes.opened.cpu()
            self.opened = opened if self.opened is None else self.opened | opened

    @property
    def density(self) -> Float64[Tensor, " n_latents"]:
        """Share of rows on which each latent fires."""
        return self.fired.double() / self.x.n

    # Metrics, each a column of the table

    def fvu(self) -> float:
        """Fraction of variance unexplained."""
        n = self.x.n
        total = self.x.scatter().sum().item()
        return ratio(self.sse.sum().item(), total, self.x.mean_square * n)

    def mse(self) -> float:
        """E‖x − x̂‖² in normalised units."""
        return self.scale**2 * self.sse.sum().item() / self.x.n

    def mse_raw(self) -> float:
        """E‖x − x̂‖² in model units."""
        return self.sse.sum().item() / self.x.n

    def l0(self) -> float:
        """E‖f‖₀."""
        return self.active.sum().item() / self.x.n

    def l1(self) -> float:
        """E‖f‖₁ in normalised units."""
        return self.sum_l1 / self.x.n

    def shrinkage(self) -> float:
        """E‖x̂ − μ‖² / E⟨x − μ, x̂ − μ⟩."""
        return self._shrinkage(self.x.mean)

    def shrinkage_raw(self) -> float:
        """E‖x̂‖² / E⟨x, x̂⟩, as the paper has it."""
        return self._shrinkage(torch.zeros_like(self.x.shift))

    def dead_fraction(self) -> float:
        """Share of latents that fire on no row."""
        return (self.fired == 0).double().mean().item()

    def gate_dead(self) -> float:
        """Share of gates open on no row; nan without gates."""
        return math.nan if self.opened is None else (~self.opened).double().mean().item()

    def _shrinkage(self, about: Float64[Tensor, " d"]) -> float:
        """E‖x̂ − about‖² / E⟨x − about, x̂ − about⟩; nan where x̂ does not follow x."""
        n = self.x.n
        offset = about - self.x.shift
        both = self.hat_sum + self.x.sum.sum(0)
        away = n * offset.dot(offset).item()
        square = self.hat_square - 2 * offset.dot(self.hat_sum).item() + away
        inner = self.inner - offset.dot(both).item() + away
        return ratio(square, inner, self.x.mean_square * n)
