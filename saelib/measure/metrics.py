"""What a reconstruction is worth: pure formulas and float64 accumulators, in torch and numpy alone.

    FVU             Σ‖x − x̂‖² / Σ‖x − μ‖²            μ the mean of the same rows; 1 for the mean predictor; low is good
    shrinkage       E‖x̂ − μ‖² / E⟨x − μ, x̂ − μ⟩      1 is none, below 1 the reconstruction is too short
    shrinkage_raw   E‖x̂‖² / E⟨x, x̂⟩                  as in Rajamanoharan et al. 2024 (arXiv 2404.16014), eq. 10
    L0              E‖f‖₀, a latent fires where f > 0
    loss recovered  1 − (CE_sae − CE_id) / (CE_abl − CE_id)

Errors are sums over d_in and means over rows. Sums are float64 and taken about a fixed vector (`shift`) near the mean,
so that one pass is safe where the mean is large. A formula without a value (0 / 0) gives nan, never a number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MIN_ABLATION_NATS = 0.1  # loss recovered is a ratio to what ablation costs; below this it is noise
LOGIT_ROWS = (
    64  # positions whose float32 logits are held at once: they stay in the processor's cache
)
LAMBDA_BOUNDS = (1e-4, 1e4)  # no λ outside is proposed
LAMBDA_STEP, LAMBDA_BEYOND = (
    4.0,
    1.2,
)  # factors in λ: the longest step past a curve's end, and how far past the target
NEGLIGIBLE = 1e-12  # a denominator this small beside the sum it was subtracted from is rounding, not a number

# 97.5 % quantiles of Student's t for 1 .. 30 degrees of freedom
_T_975 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


def _ratio(numerator: float, denominator: float, beside: float) -> float:
    """numerator / denominator, or nan where the denominator is rounding error beside the sums it came from."""
    return numerator / denominator if denominator > NEGLIGIBLE * beside else math.nan


def fvu(x: Tensor, x_hat: Tensor) -> float:
    """Fraction of variance unexplained of rows [n, d] held in memory, about their own mean; nan for constant rows."""
    if x.shape != x_hat.shape:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, x_hat {tuple(x_hat.shape)}: expected the same"
        )
    x, x_hat = x.double(), x_hat.double()
    total = (x - x.mean(0)).square().sum().item()
    return _ratio((x - x_hat).square().sum().item(), total, x.square().sum().item())


class RowSums:
    """Σ1, Σ(x − shift) and Σ‖x − shift‖² of rows, for each of `n_groups` groups (pages), on the CPU in float64."""

    def __init__(self, shift: Tensor, n_groups: int = 1) -> None:
        self.shift = shift.detach().to("cpu", torch.float64)  # [d]
        self.count = torch.zeros(n_groups, dtype=torch.float64)
        self.sum = torch.zeros(n_groups, len(self.shift), dtype=torch.float64)
        self.square = torch.zeros(n_groups, dtype=torch.float64)

    def update(self, x: Tensor, group: Tensor | None = None) -> None:
        """Add rows x [n, d]; `group` [n] int64 says whose they are (all of group 0 where it is None)."""
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
    def mean(self) -> Tensor:
        """Mean of all rows seen [d], nan without any."""
        return self.shift + self.sum.sum(0) / self.count.sum()

    @property
    def mean_square(self) -> float:
        """E‖x‖² of all rows seen."""
        return (
            self.scatter(torch.zeros_like(self.shift)).sum().item() / self.n if self.n else math.nan
        )

    def scatter(self, about: Tensor | None = None) -> Tensor:
        """Σ‖x − about‖² [n_groups], every group about the same vector [d]: the mean of all rows where it is None."""
        offset = (self.mean if about is None else about) - self.shift
        return self.square - 2 * self.sum @ offset + self.count * offset.dot(offset)

    def __add__(self, other: RowSums) -> RowSums:
        """Sums over the rows of both, as one group."""
        if not torch.equal(self.shift, other.shift):
            raise ValueError("sums about two different shifts cannot be added")
        both = RowSums(self.shift)
        for name in ("count", "sum", "square"):
            setattr(
                both,
                name,
                getattr(self, name).sum(0, keepdim=True)
                + getattr(other, name).sum(0, keepdim=True),
            )
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
    def of(cls, f: Tensor, gate: Tensor | None = None) -> CodeSums:
        """f [n, n_latents], gate the same, bool."""
        on = (
            f > 0
        ).float()  # summing float32 ones is exact to 2^24, and several times faster than summing bool
        l1 = torch.linalg.vector_norm(f.float(), 1, dim=-1).double().sum()
        return cls(on.sum(-1), l1, on.sum(0), None if gate is None else gate.any(0))

    @classmethod
    def of_entries(
        cls, row: Tensor, latent: Tensor, f: Tensor, shape: tuple[int, int], gated: bool
    ) -> CodeSums:
        """The same from open entries alone: f ≥ 0 of `row` and `latent`, int64, in codes of shape [n, n_latents]."""
        fires = f > 0
        l0, fired = (
            torch.bincount(i[fires], minlength=n) for i, n in zip((row, latent), shape, strict=True)
        )
        return cls(
            l0,
            f.double().sum(),
            fired,
            torch.bincount(latent, minlength=shape[1]) > 0 if gated else None,
        )


class Reconstruction:
    """Streaming sums of one SAE's errors and codes on the rows that `x_sums` describes.

    `x_sums` is updated by the caller with the same rows, once for all SAEs that see them. Rows and reconstructions are
    in raw units, codes as the SAE gives them (normalised units).
    """

    def __init__(self, x_sums: RowSums, n_latents: int) -> None:
        n_groups, d = x_sums.sum.shape
        self.x = x_sums
        self.sse = torch.zeros(n_groups, dtype=torch.float64)  # Σ‖x − x̂‖²
        self.active = torch.zeros(n_groups, dtype=torch.float64)  # Σ‖f‖₀
        self.l1 = 0.0  # Σ‖f‖₁
        self.hat_sum = torch.zeros(d, dtype=torch.float64)  # Σ(x̂ − shift)
        self.hat_square = 0.0  # Σ‖x̂ − shift‖²
        self.inner = 0.0  # Σ⟨x − shift, x̂ − shift⟩
        self.fired = torch.zeros(n_latents, dtype=torch.int64)  # rows on which a latent fires
        self.opened: Tensor | None = (
            None  # gates open at least once [n_latents], where gates were given
        )

    def update(
        self, x: Tensor, x_hat: Tensor, codes: CodeSums, group: Tensor | None = None
    ) -> None:
        """Add x, x_hat [n, d] and the sums of their codes; `group` [n] as for `RowSums`."""
        if x.shape != x_hat.shape or len(codes.l0) != len(x):
            raise ValueError(
                f"shapes x {tuple(x.shape)}, x_hat {tuple(x_hat.shape)}, codes of {len(codes.l0)} rows"
            )
        shift, group = self.x.shift.to(x.device), _groups(len(x), group)
        y, y_hat = x.double() - shift, x_hat.double() - shift
        self.sse.index_add_(0, group, (y - y_hat).square().sum(-1).cpu())
        self.active.index_add_(0, group, codes.l0.double().cpu())
        self.l1 += float(codes.l1)
        self.hat_sum += y_hat.sum(0).cpu()
        self.hat_square += y_hat.square().sum().item()
        self.inner += (y * y_hat).sum().item()
        self.fired += codes.fired.long().cpu()
        if codes.opened is not None:
            seen = codes.opened.cpu()
            self.opened = seen if self.opened is None else self.opened | seen

    @property
    def density(self) -> Tensor:
        """Share of rows on which each latent fires [n_latents], float64."""
        return self.fired.double() / self.x.n

    def compute(self, scale: float = 1.0) -> dict[str, float]:
        """Means over all rows seen; `scale` is the normaliser's, x_n = scale (x − mean): mse = scale² mse_raw."""
        if not self.x.n:
            raise ValueError("no rows were seen: nothing to compute")
        n, sse = self.x.n, self.sse.sum().item()
        out = {"fvu": _ratio(sse, self.x.scatter().sum().item(), self.x.mean_square * n)}
        out |= {"mse": scale**2 * sse / n, "mse_raw": sse / n}
        out |= {
            "l0": self.active.sum().item() / n,
            "l1": self.l1 / n,
            "l1_raw": self.l1 / n / scale,
        }
        out |= {"shrinkage": self._shrinkage(self.x.mean)}
        out |= {"shrinkage_raw": self._shrinkage(torch.zeros_like(self.x.shift))}
        out |= {"dead_fraction": (self.fired == 0).double().mean().item()}
        out |= {
            "gate_dead": math.nan if self.opened is None else (~self.opened).double().mean().item()
        }
        return out

    def _shrinkage(self, about: Tensor) -> float:
        """E‖x̂ − about‖² / E⟨x − about, x̂ − about⟩; nan where x̂ does not follow x."""
        n, x_sum, offset = self.x.n, self.x.sum.sum(0), about - self.x.shift
        square = (
            self.hat_square - 2 * offset.dot(self.hat_sum).item() + n * offset.dot(offset).item()
        )
        inner = self.inner - offset.dot(self.hat_sum + x_sum).item() + n * offset.dot(offset).item()
        return _ratio(square, inner, self.x.mean_square * n)


def gini(values: Iterable) -> float:
    """Gini coefficient of values ≥ 0: 0 when all are equal, (n − 1) / n when one holds all, nan when all are 0."""
    v = np.sort(np.asarray(values, dtype=np.float64))
    if v.size == 0 or v[0] < 0:
        raise ValueError(
            f"gini takes at least one value, none below 0; got {v.size} values, least {v[:1]}"
        )
    ranks = np.arange(1, v.size + 1)
    return float((2 * ranks - v.size - 1) @ v / (v.size * v.sum())) if v.sum() else math.nan


def next_token_probs(logits: Tensor) -> Tensor:
    """Probabilities of every next token, float32 [batch, tokens − 1, vocab], from logits [batch, tokens, vocab]."""
    p = torch.softmax(logits[:, :-1].float(), dim=-1)
    return p.div_(
        p.sum(-1, keepdim=True)
    )  # on processors without AVX-512, softmax's own sum is off by 3e-6


def next_token_losses(
    logits: Tensor, input_ids: Tensor, p: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each context with its next tokens, and with the distributions p, in nats: float64 [batch] each.

    logits [batch, tokens, vocab], p [batch, tokens − 1, vocab]; the second is 0 without p. KL(p ‖ q) is q's less p's
    own, to about 1e-5 nats a context. Float32 logits exist for a few positions at a time, which is several times faster
    than for all.
    """
    sums = torch.zeros(2, len(logits), dtype=torch.float64, device=logits.device)
    for i, start in itertools.product(
        range(len(logits)), range(0, logits.shape[1] - 1, LOGIT_ROWS)
    ):
        rows = slice(start, min(start + LOGIT_ROWS, logits.shape[1] - 1))
        part = logits[i, rows].to(torch.float32, copy=True)
        part -= part.amax(-1, keepdim=True)
        log_sum, target = (
            torch.logsumexp(part, -1),
            input_ids[i, rows.start + 1 : rows.stop + 1, None],
        )
        sums[0, i] += (log_sum - part.gather(-1, target).squeeze(-1)).double().sum()
        if p is not None:
            sums[1, i] += (log_sum - torch.linalg.vecdot(p[i, rows], part)).double().sum()
    return sums[0], sums[1]


def loss_recovered(ce_sae: float, ce_id: float, ce_abl: float) -> float:
    """1 − (CE_sae − CE_id) / (CE_abl − CE_id): 1 for the identity, 0 for ablation; nan if ablation costs ≤ 0.1 nat."""
    cost = ce_abl - ce_id
    return 1 - (ce_sae - ce_id) / cost if cost > MIN_ABLATION_NATS else math.nan


def interpolate_matched_l0(
    l0: Iterable, y: Iterable, target: float | int, log_y: bool = True
) -> float | None:
    """y at L0 = target, piecewise linear in log L0 and log y (y itself with log_y=False); None outside the points.

    Meant for y = FVU. Points with L0 = 0, y not finite, or y ≤ 0 under log_y are left out; equal L0 are averaged.
    """
    l0, y = np.asarray(l0, dtype=np.float64), np.asarray(y, dtype=np.float64)
    keep = (l0 > 0) & np.isfinite(l0) & np.isfinite(y) & ((y > 0) | (not log_y))
    if not keep.any() or not l0[keep].min() <= target <= l0[keep].max():
        return None
    x, where = np.unique(l0[keep], return_inverse=True)
    y = np.log(y[keep]) if log_y else y[keep]
    y = np.bincount(where, weights=y) / np.bincount(where)
    value = np.interp(math.log(target), np.log(x), y)
    return float(np.exp(value) if log_y else value)


def propose_lambda(
    pairs: Iterable, target: float | int, max_ratio: float | int = 2.0
) -> float | None:
    """The next λ to train so that L0 = target lies between two trained points; None where there is none to try.

    pairs of (λ > 0, L0). Where the target is bracketed: the middle, in log λ, of the two points nearest in L0, or None
    when their L0, both above 0, are within a factor `max_ratio` (with inf, always) or their λ within 1 %. Where it is
    not: outwards from the end of the curve, by `_outwards`, held to `LAMBDA_BOUNDS`, or None when that bound was tried.
    """
    pairs = sorted((float(lam), float(l0)) for lam, l0 in pairs if lam > 0 and math.isfinite(l0))
    if not pairs:
        raise ValueError("propose_lambda needs at least one pair of λ > 0 and a finite L0")
    above = min(
        ((l0, -lam) for lam, l0 in pairs if l0 >= target), default=None
    )  # of equal L0 the λ nearest the gap
    below = max(((l0, -lam) for lam, l0 in pairs if l0 <= target), default=None)
    lowest, highest = LAMBDA_BOUNDS
    if above is None:  # too sparse everywhere
        least = pairs[0][0]
        return max(least / _outwards(pairs, target), lowest) if least > lowest else None
    if below is None:
        greatest = pairs[-1][0]
        return (
            min(greatest * _outwards(pairs[::-1], target), highest) if greatest < highest else None
        )
    close = below[0] > 0 and above[0] <= max_ratio * below[0]
    low, high = sorted((-above[1], -below[1]))
    return None if close or high <= 1.01 * low else math.sqrt(low * high)


def _outwards(pairs: Sequence[tuple[float, float]], target: float | int) -> float:
    """The factor in λ by which to go past the end `pairs[0]` of a curve of (λ, L0).

    To where the line through the last two points, log L0 over log λ, has `target`, and by `LAMBDA_BEYOND` further; at
    most `LAMBDA_STEP`, which is also the answer where there is no such line.
    """
    (lam, l0), (lam_1, l0_1) = pairs[0], pairs[min(1, len(pairs) - 1)]
    if lam == lam_1 or min(l0, l0_1) <= 0 or (l0 - l0_1) * (lam - lam_1) >= 0:
        return LAMBDA_STEP
    slope = math.log(l0 / l0_1) / math.log(lam / lam_1)
    away = min(
        abs(math.log(target / l0) / slope), math.log(LAMBDA_STEP)
    )  # a slope near 0 leads beyond any float
    return min(LAMBDA_BEYOND * math.exp(away), LAMBDA_STEP)


def page_replicates(num: Iterable, den: Iterable, n: int = 1000, seed: int = 0) -> np.ndarray:
    """Σnum / Σden over pages drawn with replacement, `n` times: float64 [n].

    num and den hold one value a page. The same seed and number of pages draw the same pages, so that the replicates of
    two SAEs on the same pages are paired. All nan below two pages, which say nothing of a spread.
    """
    num, den = np.asarray(num, dtype=np.float64), np.asarray(den, dtype=np.float64)
    if num.shape != den.shape or num.ndim != 1:
        raise ValueError(
            f"num has shape {num.shape}, den {den.shape}: expected one value a page in both"
        )
    if len(num) < 2:
        return np.full(n, np.nan)
    times = np.random.default_rng(seed).multinomial(
        len(num), np.full(len(num), 1 / len(num)), size=n
    )  # [n, pages]
    with np.errstate(divide="ignore", invalid="ignore"):
        return (times @ num) / (times @ den)


def bootstrap_pages(
    num: Iterable, den: Iterable, n: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of Σnum / Σden under resampling of pages; (nan, nan) below two pages.

    FVU: num = sse, den = sst. Loss recovered: num = ce_zero − ce_sae, den = ce_zero − ce_id.
    """
    return interval_of(page_replicates(num, den, n, seed))


def interval_of(replicates: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of those that have a value (drawn pages may have no variance); nan if none has."""
    known = replicates[np.isfinite(replicates)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (math.nan, math.nan)
    return float(low), float(high)


def student_975(df: int) -> float:
    """97.5 % quantile of Student's t with `df` degrees of freedom, 1 or more."""
    return _T_975[df - 1] if df <= len(_T_975) else 1.96


def seed_interval(values: Iterable) -> tuple[float, float]:
    """95 % Student-t interval of the mean over seeds: mean ± t s / √n; (nan, nan) below two values."""
    v = np.asarray(values, dtype=np.float64)
    if v.size < 2:
        return math.nan, math.nan
    half = student_975(v.size - 1) * v.std(ddof=1) / math.sqrt(v.size)
    return float(v.mean() - half), float(v.mean() + half)
