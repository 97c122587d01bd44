"""Sparse codes without an encoder: the best for given atoms, and atoms learned with such codes.

Rows x [n, d] are what is to be rebuilt (b_dec already taken off), atoms D [m, d] have unit norm,
codes f [n, m] are ≥ 0 and rebuild x as f D. With W_dec for D they tell what an SAE's encoder costs
from what its dictionary costs.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Rows whose small systems are solved at once. They are sorted by k, so that few of them solve for
# more atoms than theirs.
ROWS = 128
# An atom whose product with the residual is below this share of ‖x‖ adds nothing but rounding.
TOLERANCE = 1e-6
LEAST_LAMBDA = 1e-3  # `fista_at_l1` tries none below
BISECTIONS = 16
L1_TOLERANCE = 0.01  # share of the wanted mean ‖f‖₁ by which `fista_at_l1` may miss it
CODED_AT_ONCE = 1024  # rows


def nn_omp(
    x: Float[Tensor, "n d"], atoms: Float[Tensor, "m d"], k: int | Int[Tensor, " n"]
) -> Float[Tensor, "n m"]:
    """Non-negative orthogonal matching pursuit: at most k atoms per row, chosen greedily.

    Each round takes the atom of largest inner product with the residual (Pati et al. 1993;
    non-negative: Bruckstein, Elad and Zibulevsky 2008) and solves least squares under f ≥ 0 on the
    atoms taken so far, exactly; an atom that ends at 0 is given back. k is one number, or one per
    row. Raises `ValueError` for k below 0 and for rows or atoms that are not finite.
    """
    k = torch.as_tensor(k, device=x.device).expand(len(x)).clamp(max=len(atoms))
    _require_finite(x, atoms)
    if len(k) and int(k.min()) < 0:
        raise ValueError(f"k = {int(k.min())}: expected 0 or more atoms per row")
    f = x.new_zeros(len(x), len(atoms))
    gram = (atoms @ atoms.T).double()
    for rows in k.argsort().split(ROWS):
        f[rows] = _omp_rows(x[rows], atoms, gram, k[rows])
    return f


def _require_finite(x: Tensor, atoms: Tensor) -> None:
    for name, values in (("rows", x), ("atoms", atoms)):
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"pursuit: {name} that are not finite have no codes")


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
    squares. Raises `ValueError` for rows or atoms that are not finite.
    """
    _require_finite(x, atoms)
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


def fista_at_l1(
    x: Float[Tensor, "n d"],
    atoms: Float[Tensor, "m d"],
    f: Float[Tensor, "n m"],
    steps: int = 100,
    rows: int = 256,
) -> Float[Tensor, "n m"]:
    """`fista` codes with the mean ‖f‖₁ of codes f: λ by bisection on `rows` rows, evenly spaced.

    It is met within 1 % on these. Where no λ > 0 reaches it (it is above that of the best codes),
    the codes of the smallest λ tried. Raises `ValueError` without rows.
    """
    if not len(x):
        raise ValueError("fista_at_l1: no rows to code")
    chosen = torch.linspace(0, len(x) - 1, min(rows, len(x)), device=x.device).round().long()
    lam = _lambda_at_l1(x[chosen], atoms, float(f[chosen].sum(-1).mean()), steps // 2)
    return torch.cat([fista(block, atoms, lam, steps=steps) for block in x.split(CODED_AT_ONCE)])


def _lambda_at_l1(x: Tensor, atoms: Tensor, l1: float, steps: int) -> float:
    """λ at which `fista` codes of x have a mean ‖f‖₁ of `l1`, by bisection in log λ."""
    low = LEAST_LAMBDA
    high = max(2 * LEAST_LAMBDA, float(2 * (x @ atoms.T).amax()))  # where all codes are 0
    lam = high
    codes = None
    for _ in range(BISECTIONS):
        lam = (low * high) ** 0.5
        codes = fista(x, atoms, lam, codes, steps)  # from the last λ's codes, which are near
        reached = float(codes.sum(-1).mean())
        if abs(reached - l1) <= L1_TOLERANCE * l1:
            break
        if reached > l1:
            low = lam
        else:
            high = lam
    return lam


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
    atoms = atoms.clone()
    gram = None
    for x in batches:
        f = nn_omp(x, atoms, k)
        if gram is None:
            identity = torch.eye(len(atoms), dtype=x.dtype, device=x.device)
            gram = inertia * float(f.square().sum()) / len(atoms) * identity
            cross = gram @ atoms
        gram += f.T @ f
        cross += f.T @ x
        for j in gram.diagonal().nonzero().flatten().tolist():
            new = atoms[j] + (cross[j] - gram[j] @ atoms) / gram[j, j]
            atoms[j] = new / new.norm()
    return atoms
