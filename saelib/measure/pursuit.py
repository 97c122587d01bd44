"""Sparse codes without an encoder: the best that given atoms allow, and atoms learned with such codes.

Rows x [n, d] are what is to be rebuilt (b_dec already taken off), atoms D [m, d] have unit norm, codes f [n, m] are ≥ 0
and rebuild x as f D. With W_dec for D they tell what an SAE's encoder costs from what its dictionary costs.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

ROWS = 128  # rows whose small systems are solved at once; they are sorted by k, so that few solve for more than theirs
TOLERANCE = 1e-6  # an atom whose product with the residual is below this share of ‖x‖ adds nothing but rounding


def nn_omp(
    x: Float[Tensor, "n d"], atoms: Float[Tensor, "m d"], k: int | Int[Tensor, " n"]
) -> Float[Tensor, "n m"]:
    """Non-negative orthogonal matching pursuit: at most k atoms a row, chosen greedily, their codes the best for these.

    Each round takes the atom of largest inner product with the residual (Pati et al. 1993; non-negative: Bruckstein,
    Elad and Zibulevsky 2008) and solves least squares under f ≥ 0 on the atoms taken so far, exactly; an atom that
    ends at 0 is given back. k is one number or one a row.
    """
    k = torch.as_tensor(k, device=x.device).expand(len(x)).clamp(max=len(atoms))
    _require_finite(x, atoms)
    if len(k) and int(k.min()) < 0:
        raise ValueError(f"k = {int(k.min())}: expected 0 or more atoms a row")
    f = x.new_zeros(len(x), len(atoms))
    gram = (atoms @ atoms.T).double()
    for rows in k.argsort().split(ROWS):
        f[rows] = _omp_part(x[rows], atoms, gram, k[rows])
    return f


def _require_finite(x: Tensor, atoms: Tensor) -> None:
    for name, values in (("rows", x), ("atoms", atoms)):
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"pursuit: {name} that are not finite have no codes")


def _omp_part(
    x: Tensor, atoms: Tensor, gram: Tensor, k: Tensor, allowed: Tensor | None = None
) -> Tensor:
    """`nn_omp` of a few rows, among `allowed` [n, m] atoms alone where that is given."""
    slots = int(k.max()) if len(k) else 0
    support = torch.zeros(len(x), slots, dtype=torch.int64, device=x.device)
    values = torch.zeros(len(x), slots, dtype=torch.float64, device=x.device)  # 0 is a free slot
    product, least, going = x @ atoms.T, TOLERANCE * x.norm(dim=-1), (k > 0).nonzero()[:, 0]
    # Every round lowers the error of each row, so that no support comes back; rounds beyond `slots` are for atoms that
    # were given back.
    for _ in range(3 * slots):
        if not len(going):
            break
        i, v = support[going], values[going]
        residual = x[going] - torch.nn.functional.embedding_bag(
            i, atoms, per_sample_weights=v.to(atoms.dtype), mode="sum"
        )
        score = (residual @ atoms.T).scatter_add(
            1, i, torch.where(v > 0, -torch.inf, 0.0).to(x.dtype)
        )
        best, atom = (score if allowed is None else score.where(allowed[going], -torch.inf)).max(-1)
        gains = best > least[going]
        going, i, v, atom = going[gains], i[gains], v[gains], atom[gains, None]
        slot = (v > 0).long().argmin(-1, keepdim=True)  # the first that is free
        i, on = i.scatter(1, slot, atom), (v > 0).scatter(1, slot, True)
        width = (
            int((on.any(0).nonzero() + 1).max()) if len(on) else 0
        )  # slots beyond are free in every row
        b = product[going].gather(1, i).double()
        v[:, :width] = _non_negative(gram, i[:, :width], on[:, :width], v[:, :width], b[:, :width])
        support[going], values[going] = i, v
        going = going[(v > 0).sum(-1) < k[going]]
    return torch.zeros_like(product).scatter_add(1, support, values.to(x.dtype))


def _non_negative(
    gram: Tensor, support: Tensor, on: Tensor, values: Tensor, product: Tensor
) -> Tensor:
    """Least squares under f ≥ 0 on each row's support, from feasible values: Lawson and Hanson's inner loop (1974).

    gram [m, m] float64; support [n, k], `on` says which slots count, product x·atom of each slot. -> values [n, k].
    """
    values, going = values.clone(), torch.arange(len(support), device=support.device)
    diagonal = torch.eye(support.shape[1], dtype=torch.float64, device=support.device)
    while len(going):
        i, chosen, old = support[going], on[going], values[going]
        a = torch.where(
            chosen[:, :, None] & chosen[:, None], gram[i[:, :, None], i[:, None]], diagonal
        )
        best = torch.linalg.solve(a, torch.where(chosen, product[going], 0.0))
        low = chosen & (best <= 0)
        ratio = torch.where(
            low, old / (old - best).clamp_min(1e-300), torch.inf
        )  # of the way, until it reaches 0
        share = ratio.amin(-1, keepdim=True).clamp_max(1)
        kept = chosen & ~(low & (ratio <= share))
        values[going] = torch.where(kept, old + share * (best - old), 0.0).clamp_min(0)
        on[going] = kept
        going = going[low.any(-1)]
    return values


def refit(
    x: Float[Tensor, "n d"], atoms: Float[Tensor, "m d"], f: Float[Tensor, "n m"]
) -> Float[Tensor, "n m"]:
    """The best codes ≥ 0 on the support of f: what is left of its error is not the magnitudes'.

    `nn_omp` over a row's own support, as far as it goes, is Lawson and Hanson's non-negative least squares.
    """
    _require_finite(x, atoms)
    out, gram, k = torch.zeros_like(f), (atoms @ atoms.T).double(), (f > 0).sum(-1)
    for rows in k.argsort().split(ROWS):
        out[rows] = _omp_part(x[rows], atoms, gram, k[rows], f[rows] > 0)
    return out


def fista(
    x: Float[Tensor, "n d"],
    atoms: Float[Tensor, "m d"],
    lam: float,
    f: Float[Tensor, "n m"] | None = None,
    steps: int = 200,
) -> Float[Tensor, "n m"]:
    """argmin over f ≥ 0 of ‖x − f D‖² + λ‖f‖₁ a row: Beck and Teboulle (2009), from f or from 0.

    Momentum starts again in a row where it points uphill (O'Donoghue and Candès 2015).
    """
    f = x.new_zeros(len(x), len(atoms)) if f is None else f.clone()
    rate = 1 / (
        2 * torch.linalg.matrix_norm(atoms, 2).square()
    )  # 1 / Lipschitz constant of the gradient
    ahead, t = f, x.new_ones(len(x), 1)
    for _ in range(steps):
        gradient = 2 * (ahead @ atoms - x) @ atoms.T + lam
        new = (ahead - rate * gradient).relu()
        t = torch.where(((ahead - new) * (new - f)).sum(-1, keepdim=True) > 0, 1.0, t)
        t_new = (1 + (1 + 4 * t.square()).sqrt()) / 2
        ahead, f, t = new + (t - 1) / t_new * (new - f), new, t_new
    return f


def fista_at_l1(
    x: Float[Tensor, "n d"],
    atoms: Float[Tensor, "m d"],
    f: Float[Tensor, "n m"],
    steps: int = 100,
    rows: int = 256,
) -> Float[Tensor, "n m"]:
    """`fista` codes with the mean ‖f‖₁ of codes f: λ by bisection on `rows` rows, evenly spaced, within 1 % on these.

    Where no λ > 0 reaches it (it is above that of the best codes), the codes of the smallest λ tried.
    """
    if not len(x):
        raise ValueError("fista_at_l1: no rows to code")
    chosen = torch.linspace(0, len(x) - 1, min(rows, len(x)), device=x.device).round().long()
    some, l1 = x[chosen], float(f[chosen].sum(-1).mean())
    low, high = 1e-3, max(2e-3, float(2 * (some @ atoms.T).amax()))  # at `high` every code is 0
    lam, warm = high, None
    for _ in range(16):
        lam = (low * high) ** 0.5
        warm = fista(some, atoms, lam, warm, steps // 2)  # from the last λ's codes, which are near
        found = float(warm.sum(-1).mean())
        if abs(found - l1) <= 0.01 * l1:
            break
        low, high = (lam, high) if found > l1 else (low, lam)
    return torch.cat([fista(part, atoms, lam, steps=steps) for part in x.split(1024)])


def learn_atoms(
    batches: Iterable[Float[Tensor, "n d"]],
    atoms: Float[Tensor, "m d"],
    k: int,
    inertia: float | int = 4.0,
) -> Float[Tensor, "m d"]:
    """Atoms of unit norm learned with `nn_omp` codes of k a row, one batch after the other, starting from `atoms`.

    Online dictionary learning (Mairal et al. 2010, algorithms 1 and 2): Σ fᵀf and Σ fᵀx over all batches so far, then
    one pass of block coordinate descent over the atoms. The sums begin as if the given atoms had coded `inertia`
    batches by themselves (their A₀ and B₀): an atom that few rows of a batch use is not refitted to these alone.
    """
    atoms, gram = atoms.clone(), None
    for x in batches:
        f = nn_omp(x, atoms, k)
        if gram is None:
            gram = (
                inertia
                * float(f.square().sum())
                / len(atoms)
                * torch.eye(len(atoms), dtype=x.dtype, device=x.device)
            )
            cross = gram @ atoms
        gram += f.T @ f
        cross += f.T @ x
        for j in gram.diagonal().nonzero().flatten().tolist():
            new = atoms[j] + (cross[j] - gram[j] @ atoms) / gram[j, j]
            atoms[j] = new / new.norm()
    return atoms
