"""Sparse coding by pursuit: exact where all can be tried, optimal by its conditions elsewhere."""

import itertools
import math

import pytest
import torch

from saelib.measure import pursuit
from saelib.measure.pursuit import (
    _non_negative,
    fista,
    lasso_at_l1,
    learn_atoms,
    nn_omp,
    refit,
)


def unit(*shape, seed=0, dtype=torch.float64):
    atoms = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return atoms / atoms.norm(dim=-1, keepdim=True)


def planted(n=64, d=24, m=40, k=4, seed=1):
    """Rows that are exactly sparse: x, atoms, f."""
    g = torch.Generator().manual_seed(seed)
    atoms = unit(m, d)
    f = torch.zeros(n, m, dtype=torch.float64)
    for row in f:
        row[torch.randperm(m, generator=g)[:k]] = 1 + torch.rand(
            k, generator=g, dtype=torch.float64
        )
    return f @ atoms, atoms, f


def error(x, f, atoms):
    return (x - f @ atoms).square().sum(-1)


def test_omp_by_hand():
    atoms = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, -1.0]])
    x = torch.tensor([[2.0, 0.5], [-1.0, -3.0]])
    one = nn_omp(x, atoms, 1)
    assert one.tolist() == [[2, 0, 0], [0, 0, 3]]  # products 2, 1.6, -0.5 and -1, -3, 3
    two = nn_omp(
        x, atoms, 2
    )  # row 0: 2 = a + 0.6 b, 0.5 = 0.8 b; row 1: what is left, (-1, 0), has no atom
    torch.testing.assert_close(two, torch.tensor([[1.625, 0.625, 0.0], [0.0, 0.0, 3.0]]))
    assert nn_omp(x, atoms, 0).count_nonzero() == 0
    assert nn_omp(x, atoms, torch.tensor([0, 2])).count_nonzero(-1).tolist() == [0, 1]
    with pytest.raises(ValueError, match="k = -1"):
        nn_omp(x, atoms, -1)


def test_omp_finds_what_was_planted_among_orthogonal_atoms():
    atoms = torch.linalg.qr(
        torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )[0]
    f = torch.zeros(5, 16, dtype=torch.float64)
    f[
        torch.arange(5)[:, None], torch.randperm(16, generator=torch.Generator().manual_seed(1))[:3]
    ] = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(nn_omp(f @ atoms, atoms, 3), f)


def test_omp_codes_are_the_best_on_their_support_and_each_round_lowers_the_error():
    x, atoms = (
        torch.randn(700, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64),
        unit(30, 12),
    )
    before = x.square().sum(-1)
    for k in range(1, 9):
        f = nn_omp(x, atoms, k)
        assert (f >= 0).all()
        assert (f.count_nonzero(-1) <= k).all()
        gradient = (x - f @ atoms) @ atoms.T
        assert gradient[f > 0].abs().max() < 1e-9  # nothing to gain on the support
        now = error(x, f, atoms)
        assert (now <= before + 1e-12).all()
        before = now
    per_row = torch.arange(700) % 9
    mixed = nn_omp(x, atoms, per_row)
    for k in (1, 8):
        torch.testing.assert_close(mixed[per_row == k], nn_omp(x, atoms, k)[per_row == k])


def test_omp_is_exact_where_several_atoms_are_given_back_at_once():
    g = torch.Generator().manual_seed(0)
    atoms = (
        torch.randn(40, 6, generator=g, dtype=torch.float64) + 0.5
    )  # coherent: that happens in some rows
    atoms /= atoms.norm(dim=-1, keepdim=True)
    x = torch.randn(600, 6, generator=g, dtype=torch.float64) + 0.5
    alone = torch.cat([nn_omp(row[None], atoms, 6) for row in x])
    gradient = (x - alone @ atoms) @ atoms.T
    assert gradient[alone > 0].abs().max() < 1e-9
    torch.testing.assert_close(
        nn_omp(x, atoms, 6) @ atoms, alone @ atoms
    )  # whatever rows stand beside it


def test_an_atom_that_points_at_the_error_never_raises_it():
    """The step to the new best codes ends where the first of the old ones would fall below 0."""
    g = torch.Generator().manual_seed(0)
    given_back = []
    for _ in range(40):
        atoms = torch.randn(5, 5, generator=g, dtype=torch.float64) + 0.8  # coherent
        atoms /= atoms.norm(dim=-1, keepdim=True)
        x = torch.randn(100, 5, generator=g, dtype=torch.float64) + 0.8
        old = torch.zeros(100, 5, dtype=torch.float64)
        old[:, :4] = nn_omp(x, atoms[:4], 4)
        points = ((x - old @ atoms) @ atoms[4]) > 1e-3
        x, old = x[points], old[points]
        filled = old > 0
        filled[:, 4] = True
        support = torch.arange(5).expand(len(x), 5)
        new = _non_negative(atoms @ atoms.T, support, filled, old, x @ atoms.T)
        assert (error(x, new, atoms) < error(x, old, atoms)).all()
        given_back += ((old > 0) & (new == 0)).sum(-1).tolist()
    assert max(given_back) > 1  # the case is rich


def test_omp_gives_back_atoms_that_end_at_zero():
    # The first choice lies between two atoms that rebuild x exactly together; once both are there
    # it is worth nothing.
    a, b = torch.tensor([1.0, 0.3, 0.0]), torch.tensor([0.3, 1.0, 0.0])
    atoms = torch.stack([a, b, a + b]).double()
    atoms /= atoms.norm(dim=-1, keepdim=True)
    x = (1.2 * atoms[0] + 0.9 * atoms[1])[None]
    f = nn_omp(x, atoms, 2)
    assert error(x, f, atoms).item() < 1e-20
    duplicate = torch.cat(
        [atoms, atoms]
    )  # equal atoms make no singular system: the second one adds nothing
    assert error(x, nn_omp(x, duplicate, 4), duplicate).item() < 1e-20


def best_of_all(x, atoms, k):
    """Least error over every support of k atoms with codes >= 0, by enumeration."""
    least = x.square().sum().item()
    for size in range(1, k + 1):
        for support in itertools.combinations(range(len(atoms)), size):
            f = torch.linalg.lstsq(atoms[list(support)].T, x[:, None]).solution[:, 0]
            if (f >= 0).all():
                least = min(least, (x - f @ atoms[list(support)]).square().sum().item())
    return least


def test_refit_is_the_non_negative_least_squares_of_its_support():
    x, atoms = (
        torch.randn(20, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64),
        unit(9, 5, seed=4),
    )
    f = torch.rand(20, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    f[f < 0.5] = 0
    new = refit(x, atoms, f)
    assert ((new > 0) <= (f > 0)).all()
    for row in range(len(x)):
        on = f[row] > 0
        if on.any():
            assert error(x, new, atoms)[row].item() == pytest.approx(
                best_of_all(x[row], atoms[on], int(on.sum()))
            )


def test_refit_of_nothing_is_nothing():
    assert (
        refit(torch.ones(3, 4), unit(6, 4, dtype=torch.float32), torch.zeros(3, 6)).count_nonzero()
        == 0
    )


@pytest.mark.parametrize("lam", [0.05, 0.5, 3.0])
def test_fista_meets_the_conditions_of_the_minimum(lam):
    x, atoms = (
        torch.randn(50, 10, generator=torch.Generator().manual_seed(6), dtype=torch.float64),
        unit(25, 10),
    )
    f = fista(x, atoms, lam, steps=3000)
    gradient = 2 * (f @ atoms - x) @ atoms.T + lam
    assert gradient[f > 0].abs().max() < 1e-6
    assert gradient.min() > -1e-6

    def objective(f):
        return (error(x, f, atoms) + lam * f.sum(-1)).mean()

    start = torch.rand(50, 25, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    torch.testing.assert_close(objective(fista(x, atoms, lam, start, steps=3000)), objective(f))
    assert objective(fista(x, atoms, lam, start, steps=30)) < objective(start)


def test_fista_of_one_atom_is_the_soft_threshold():
    atoms = torch.tensor([[0.6, 0.8]])
    f = fista(torch.tensor([[3.0, 4.0], [0.0, 0.1], [-1.0, 0.0]]), atoms, 1.0)
    torch.testing.assert_close(f, torch.tensor([[4.5], [0.0], [0.0]]))  # max(0, x·d - λ / 2)


def test_one_step_of_fista_is_as_long_as_the_curvature_allows():
    """Orthogonal atoms: the curvature is 2 in each direction, and one step of 1 / 2 is exact."""
    x, atoms = torch.tensor([[3.0, 4.0], [0.0, 0.1]]), torch.eye(2)
    want = torch.tensor([[2.5, 3.5], [0.0, 0.0]])
    torch.testing.assert_close(fista(x, atoms, 1.0, steps=1), want)
    longer = 2 * atoms  # curvature 8: 1 / 8 of the gradient, 2 · 2x − λ, which is exact again
    torch.testing.assert_close(fista(x, longer, 1.0, steps=1), (4 * x - 1).relu() / 8)


def test_lasso_at_l1_has_the_codes_norm_and_no_larger_error():
    x, atoms = (
        torch.randn(300, 12, generator=torch.Generator().manual_seed(2)),
        unit(40, 12, dtype=torch.float32),
    )
    f = (x @ atoms.T - 1.0).relu()
    g = lasso_at_l1(x, atoms, f, steps=300)
    assert g.sum(-1).mean().item() == pytest.approx(f.sum(-1).mean().item(), rel=0.03)
    assert error(x, g, atoms).sum() < 0.8 * error(x, f, atoms).sum()
    assert (
        lasso_at_l1(x, atoms, 100 * f).sum() < 50 * f.sum()
    )  # no penalty reaches that: it stays finite


def test_learned_atoms_rebuild_better_and_have_unit_norm():
    x, atoms, _ = planted(n=400)
    start = unit(*atoms.shape, seed=9)
    learned = learn_atoms(list(x.split(100)) * 10, start, 4)
    torch.testing.assert_close(learned.norm(dim=-1), torch.ones(len(learned), dtype=torch.float64))
    held_out, _, _ = planted(n=100, seed=8)
    before, after = (error(held_out, nn_omp(held_out, a, 4), a).sum() for a in (start, learned))
    assert after < 0.6 * before


def test_learned_atoms_by_hand():
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    start = torch.tensor(
        [[0.8, 0.6], [0.0, -1.0]]
    )  # codes 0.8 and 1.6 of the first, none of the second
    torch.testing.assert_close(
        learn_atoms([x], start, 1, inertia=0), torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    )
    # inertia 4: A0 = 4 x 3.2 / 2 = 6.4, A = 6.4 + 3.2, B = 6.4 (0.8, 0.6) + (0.8 + 3.2, 0),
    # B / A = (0.95, 0.4)
    moved = torch.tensor([0.95, 0.4]) / math.hypot(0.95, 0.4)
    torch.testing.assert_close(learn_atoms([x], start, 1), torch.stack([moved, start[1]]))


def test_rows_that_are_not_finite_are_refused():
    bad = torch.tensor([[1.0, float("nan")]])
    with pytest.raises(ValueError, match="rows that are not finite"):
        nn_omp(bad, torch.eye(2), 1)
    with pytest.raises(ValueError, match="atoms that are not finite"):
        nn_omp(torch.ones(1, 2), bad, 1)
    with pytest.raises(ValueError, match="rows that are not finite"):
        refit(bad, torch.eye(2), torch.ones(1, 2))


@pytest.mark.parametrize(
    ("x", "atoms", "f", "sentence"),
    [
        ((5, 3), (6, 4), None, "rows of width 3 and atoms of width 4"),
        ((5, 4), (6, 1), (5, 6), "rows of width 4 and atoms of width 1"),
        ((5, 4), (6, 4), (1, 6), r"codes of shape \(1, 6\): expected \[5, 6\]"),
        ((5, 4), (2, 4), (5, 6), r"codes of shape \(5, 6\): expected \[5, 2\]"),
    ],
)
def test_what_does_not_belong_together_is_refused(x, atoms, f, sentence):
    """Compiled code would read beyond an array's end. (In tests the annotations refuse it too.)"""
    with pytest.raises(ValueError, match=sentence):
        pursuit._check(torch.ones(x), torch.ones(atoms), None if f is None else torch.ones(f))


@pytest.mark.parametrize("k", [torch.tensor([1, 2]), 1.5, torch.ones(5), torch.ones(1, 5).int()])
def test_k_is_a_whole_number_or_one_for_each_row(k):
    with pytest.raises(ValueError, match="expected a whole number, or one for each of 5 rows"):
        pursuit._checked_k(torch.as_tensor(k), 5)


def test_the_checks_are_made(monkeypatch):
    def refuse(*arrays):
        raise ValueError(len(arrays))

    monkeypatch.setattr(pursuit, "_check", refuse)
    x, atoms, f = torch.ones(5, 4), torch.eye(6, 4), torch.ones(5, 6)
    for number, call in ((2, lambda: nn_omp(x, atoms, 1)), (3, lambda: refit(x, atoms, f))):
        with pytest.raises(ValueError, match=str(number)):
            call()
    with pytest.raises(ValueError, match="3"):
        lasso_at_l1(x, atoms, f)
