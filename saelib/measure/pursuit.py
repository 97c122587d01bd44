"""Sparse codes without an encoder: the best for given atoms, and atoms learned with such codes.

Rows x [n, d] are what is to be rebuilt (b_dec already taken off), atoms D [m, d] have unit norm,
codes f [n, m] are ≥ 0 and rebuild x as f D. With W_dec for D they tell what an SAE's encoder costs
from what its dictionary costs.

On the CPU float32 rows are coded in C (`pursuit_c`), others and where there is no compiler in plain
PyTorch: the same codes up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelib.measure import pursuit_c

# Rows whose small systems are solved at once. They are sorted by k, so that few of them solve for
# more atoms than theirs.
ROWS = 128
# An atom whose product with the residual is below this share of ‖x‖ adds nothing but rounding.
TOLERANCE = 1e-6
LEAST_LAMBDA = 1e-3  # `lasso_at_l1` tries none below
LARGEST_STEP = math.log(2)  # by which `lasso_at_l1` lets log λ fall at once
SEARCHES = 30  # λ tried at most
L1_TOLERANCE = 0.01  # share of the wanted mean ‖f‖₁ by which `lasso_at_l1` may miss it
CODED_AT_ONCE = 1024  # rows


def nn_omp(
    x: Float[Tensor, "n d"], atoms: Float[Tensor, "m d"], k: int | Int[Tensor, " n"]
) -> Float[Tensor, "n m"]:
    """Non-negative orthogonal matching pursuit: at most k atoms per row, chosen greedily.

    Each round takes the atom of largest inner product with the residual (Pati et al. 1993;
    non-negative: Bruckstein, Elad and Zibulevsky 2008) and solves least squares under f ≥ 0 on the
    atoms taken so far, exactly; an atom that ends at 0 is given back. k is one whole number, or one
    per row. Raises `ValueError` for a k that cannot be, for rows and atoms of different widths or
    that are not finite, and `RuntimeError` for a compiler that fails.
    """
    _check(x, atoms)
    k = _checked_k(k, len(x)).to(x.device).clamp(max=len(atoms))
    if pursuit_c.takes(x, atoms):
        return pursuit_c.pursue(x, atoms, k, TOLERANCE)
    f = x.new_zeros(len(x), len(atoms))
    gram = (atoms @ atoms.T).double()
    for rows in k.argsort().split(ROWS):
        f[rows] = _omp_rows(x[rows], atoms, gram, k[rows])
    return f


def _check(x: Tensor, atoms: Tensor, f: Tensor | None = None) -> None:
    """ValueError for rows, atoms or codes that do not belong together, or are not finite."""
    if x.shape[-1] != atoms.shape[-1]:
        raise ValueError(
            f"pursuit: rows of width {x.shape[-1]} and atoms of width {atoms.shape[-1]}: expected "
            "one width"
        )
    if f is not None and f.shape != (len(x), len(atoms)):
        raise ValueError(
            f"pursuit: codes of shape {tuple(f.shape)}: expected [{len(x)}, {len(atoms)}], a code "
            "of each row and atom"
        )
    for name, values in (("rows", x), ("atoms", atoms)):
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"pursuit: {name} that are not finite have no codes")


def _checked_k(k: int | Tensor, n_rows: int) -> Tensor:
    """k of each row; ValueError where there are not so many, or one is no whole number from 0."""
    k = torch.as_tensor(k)
    if k.is_floating_point() or k.ndim > 1 or (k.ndim and len(k) != n_rows):
        raise ValueError(
            f"k of shape {tuple(k.shape)}, {k.dtype}: expected a whole number, or one for each of "
            f"{n_rows} rows"
        )
    if k.numel() and int(k.min()) < 0:
        raise ValueError(f"k = {int(k.min())}: expected 0 or more atoms per row")
    return k.expand(n_rows)


def _omp_rows(
    x: Tensor, atoms: Tensor, gram: Tensor, k: Tensor, allowed: Tensor | None = None
) -> Tensor:
    """`nn_omp` of a few rows, among `allowed` [n, m] atoms alone where that is given.

    A row's atoms stand in the slots of `support`, their codes in `values`; a code of 0 marks a free
    slot. `active` numbers the rows that may still take an atom.
    """
    slots = int(k.max()) if len(k) else 0
    support = torch.zeros(len(x), slots, dtype=torch.int64, device=x.device)
    values = torch.zeros(len(x), slots, dtype=torch.float64, device=x.device)
    product = x @ atoms.T
    least = TOLERANCE * x.norm(dim=-1)
    active = (k > 0).nonzero()[:, 0]
    # Each round lowers the error of each row, so that no support comes back; rounds beyond `slots`
    # are for atoms that were given back.
    for _ in range(3 * slots):
        if not len(active):
            break
        i = support[active]
        v = values[active]
        score = _scores(x[active], atoms, i, v)
        if allowed is not None:
            score = score.where(allowed[active], -torch.inf)
        best, atom = score.max(-1)
        gains = best > least[active]
        active = active[gains]
        i, v = _with_atom(gram, product[active], i[gains], v[gains], atom[gains, None])
        support[active] = i
        values[active] = v
        active = active[(v > 0).sum(-1) < k[active]]
    return torch.zeros_like(product).scatter_add(1, support, values.to(x.dtype))


def _scores(x: Tensor, atoms: Tensor, support: Tensor, values: Tensor) -> Tensor:
    """Inner product of each atom with the residual [n, m], -inf for atoms already taken."""
    rebuilt = torch.nn.functional.embedding_bag(
        support, atoms, per_sample_weights=values.to(atoms.dtype), mode="sum"
    )
    taken = torch.where(values > 0, -torch.inf, 0.0).to(x.dtype)
    return ((x - rebuilt) @ atoms.T).scatter_add(1, support, taken)


def _with_atom(
    gram: Tensor, product: Tensor, support: Tensor, values: Tensor, atom: Tensor
) -> tuple[Tensor, Tensor]:
    """Support and values with one more atom [n, 1] in each row's first free slot."""
    slot = (values > 0).long().argmin(-1, keepdim=True)
    support = support.scatter(1, slot, atom)
    filled = (values > 0).scatter(1, slot, True)
    # Slots beyond `width` are free in all rows.
    width = int((filled.any(0).nonzero() + 1).max()) if len(filled) else 0
    wanted = product.gather(1, support).double()
    values[:, :width] = _non_negative(
        gram, support[:, :width], filled[:, :width], values[:, :width], wanted[:, :width]
    )
    return support, values


def _non_negative(
    gram: Tensor, support: Tensor, filled: Tensor, values: Tensor, product: Tensor
) -> Tensor:
    """Least squares under f ≥ 0 on each row's support, from feasible values [n, k].

    Lawson and Hanson's inner loop (1974). gram [m, m] float64; support [n, k], `filled` says which
    slots count, product x·atom of each slot.
    """
    values = values.clone()
    active = torch.arange(len(support), device=support.device)
    identity = torch.eye(support.shape[1], dtype=torch.float64, device=support.device)
    while len(active):
        i = support[active]
        chosen = filled[active]
        old = values[active]
        both = chosen[:, :, None] & chosen[:, None]
        system = torch.where(both, gram[i[:, :, None], i[:, None]], identity)
        best = torch.linalg.solve(system, torch.where(chosen, product[active], 0.0))
        low = chosen & (best <= 0)
        # How much of the way from old to best, until a code reaches 0.
        way = torch.where(low, old / (old - best).clamp_min(1e-300), torch.inf)
        share = way.amin(-1, keepdim=True).clamp_max(1)
        kept = chosen & ~(low & (way <= share))
        values[active] = torch.where(kept, old + share * (best - old), 0.0).clamp_min(0)
        filled[active] = kept
        active = active[low.any(-1)]
    return values


def refit(
    x: Float[Tensor, "n d"], atoms: Float[Tensor, "m d"], f: Float[Tensor, "n m"]
) -> Float[Tensor, "n m"]:
    """The best codes ≥ 0 on the support of f: what is left of its error is not the magnitudes'.

    `nn_omp` over a row's own support, as far as it goes, is Lawson and Hanson's non-negative least
    squares. Raises `ValueError` for rows, atoms or codes that do not belong together, and for rows
    or atoms that are not finite.
    """
    _check(x, atoms, f)
    if pursuit_c.takes(x, atoms, f):
        return pursuit_c.refit(x, atoms, f, TOLERANCE)
    out = torch.zeros_like(f)
    gram = (atoms @ atoms.T).double()
    k = (f > 0).sum(-1)
    for rows in k.argsort().split(ROWS):
        out[rows] = _omp_rows(x[rows], atoms, gram, k[rows], f[rows] > 0)
    return out


def fista(
    x: Float[Tensor, "n d"],
    atoms: Float[Tensor, "m d"],
    lam: float,
    f: Float[Tensor, "n m"] | None = None,
    steps: int = 200,
) -> Float[Tensor, "n m"]:
    """argmin over f ≥ 0 of ‖x − f D‖² + λ‖f‖₁ for each row: Beck and Teboulle (2009), from f or 0.

    Momentum starts again in a row where it points uphill (O'Donoghue and Candès 2015).
    """
    f = x.new_zeros(len(x), len(atoms)) if f is None else f.clone()
    lipschitz = 2 * torch.linalg.matrix_norm(atoms, 2).square()  # of the gradient
    rate = 1 / lipschitz
    ahead = f
    t = x.new_ones(len(x), 1)
    for _ in range(steps):
        gradient = 2 * (ahead @ atoms - x) @ atoms.T + lam
        new = (ahead - rate * gradient).relu()
        uphill = ((ahead - new) * (new - f)).sum(-1, keepdim=True) > 0
        t = torch.where(uphill, 1.0, t)
        t_new = (1 + (1 + 4 * t.square()).sqrt()) / 2
        ahead = new + (t - 1) / t_new * (new - f)
        f = new
        t = t_new
    return f


# Codes of some rows at a λ, found from other codes
Coder = Callable[[Tensor, float, Tensor], Tensor]


def lasso_at_l1(
    x: Float[Tensor, "n d"],
    atoms: Float[Tensor, "m d"],
    f: Float[Tensor, "n m"],
    steps: int = 100,
    rows: int = 256,
) -> Float[Tensor, "n m"]:
    """Lasso codes (see `fista`) with the mean ‖f‖₁ of codes f: λ from `rows` rows, evenly spaced.

    It is met within 1 % on these. Where no λ > 0 reaches it (it is above that of the best codes),
    the codes of the smallest λ tried. They are the minimum in C, by coordinate descent on the atoms
    that are in use (Friedman, Hastie and Tibshirani 2010), and what `fista` reaches in `steps`
    elsewhere. Raises `ValueError` without rows, for rows, atoms or codes that do not belong
    together, and for rows or atoms that are not finite.
    """
    if not len(x):
        raise ValueError("lasso_at_l1: no rows to code")
    _check(x, atoms, f)
    coder = _lasso_coder(x, atoms, steps)
    chosen = torch.linspace(0, len(x) - 1, min(rows, len(x)), device=x.device).round().long()
    lam, codes = _lambda_at_l1(coder, x[chosen], atoms, float(f[chosen].sum(-1).mean()))
    start = x.new_zeros(len(x), len(atoms))
    start[chosen] = codes
    blocks = zip(x.split(CODED_AT_ONCE), start.split(CODED_AT_ONCE), strict=True)
    return torch.cat([coder(block, lam, of_block) for block, of_block in blocks])


def _lasso_coder(x: Tensor, atoms: Tensor, steps: int) -> Coder:
    if pursuit_c.takes(x, atoms):
        return pursuit_c.Lasso(atoms)
    return lambda x, lam, start: fista(x, atoms, lam, start, steps)


@dataclass
class _Bracket:
    """A log λ that is too large, one that is too small, and by how much their ‖f‖₁ miss."""

    high: float
    short: float
    low: float | None = None
    excess: float = 0.0
    step: float = LARGEST_STEP  # down from `high`, as long as nothing is too small
    last: float = 0.0

    def between(self) -> float:
        """The next to try: a step down until one is too small, then by interpolation."""
        if self.low is None:
            return max(self.high - self.step, math.log(LEAST_LAMBDA))
        return self.high - (self.high - self.low) * self.short / (self.short + self.excess)

    def narrow(self, log_lambda: float, over: float) -> None:
        """Move the end on the side of `over`; the other counts half where it stays once more."""
        is_again = over * self.last > 0
        self.last = over
        if over > 0:
            self.short /= 2 if is_again else 1
            self.low = log_lambda
            self.excess = over
            return
        self.excess /= 2 if is_again else 1
        gained = self.short + over
        slope = (self.high - log_lambda) / gained if gained > 0 else math.inf
        self.step = min(slope * -over, LARGEST_STEP)
        self.high = log_lambda
        self.short = -over


def _lambda_at_l1(coder: Coder, x: Tensor, atoms: Tensor, l1: float) -> tuple[float, Tensor]:
    """λ at which the codes of x have a mean ‖f‖₁ of `l1`, and these codes.

    log λ falls by the secant's steps from where all codes are 0; once one was too small, it is
    found by regula falsi in its Illinois form (Dowell and Jarratt 1971). Each search begins at the
    last λ's codes, which are near.
    """
    codes = x.new_zeros(len(x), len(atoms))
    highest = max(2 * LEAST_LAMBDA, float(2 * (x @ atoms.T).amax()))
    bracket = _Bracket(math.log(highest), l1)
    for _ in range(SEARCHES):
        log_lambda = bracket.between()
        codes = coder(x, math.exp(log_lambda), codes)
        over = float(codes.sum(-1).mean()) - l1
        is_least = log_lambda == math.log(LEAST_LAMBDA) and over < 0
        if is_least or abs(over) <= L1_TOLERANCE * l1:
            break
        bracket.narrow(log_lambda, over)
    return math.exp(log_lambda), codes


def learn_atoms(
    batches: Iterable[Float[Tensor, "n d"]],
    atoms: Float[Tensor, "m d"],
    k: int,
    inertia: float | int = 4.0,
) -> Float[Tensor, "m d"]:
    """Atoms of unit norm learned with `nn_omp` codes of k per row, batch after batch, from `atoms`.

    Online dictionary learning (Mairal et al. 2010, algorithms 1 and 2): Σ fᵀf and Σ fᵀx over all
    batches so far, then one pass of block coordinate descent over the atoms. The sums begin as if
    the given atoms had coded `inertia` batches by themselves (their A₀ and B₀): an atom that few
    rows of a batch use is not refitted to these alone.
    """
    atoms = atoms.clone(memory_format=torch.contiguous_format)
    gram = None
    for x in batches:
        f = nn_omp(x, atoms, k)
        if gram is None:
            diagonal = inertia * float(f.square().sum()) / len(atoms)
            gram = diagonal * torch.eye(len(atoms), dtype=x.dtype, device=x.device)
            cross = diagonal * atoms
        in_c = pursuit_c.takes(x, atoms)
        learn_from = pursuit_c.learn_from if in_c else _learn_from
        learn_from(x, f, atoms, gram, cross)
    return atoms


def _learn_from(x: Tensor, f: Tensor, atoms: Tensor, gram: Tensor, cross: Tensor) -> None:
    """Add rows and their codes to the sums, and move the atoms, each in turn; all in place."""
    gram += f.T @ f
    cross += f.T @ x
    for j in gram.diagonal().nonzero().flatten().tolist():
        new = atoms[j] + (cross[j] - gram[j] @ atoms) / gram[j, j]
        size = new.norm()
        if size > 0:  # an atom of 0 has no direction
            atoms[j] = new / size
