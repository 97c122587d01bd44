"""Pursuit, lasso and learned atoms in C against their twins in plain PyTorch, and by hand."""

import math

import pytest
import torch

from saelib.measure import pursuit, pursuit_c
from saelib.measure.pursuit import fista, lasso_at_l1, learn_atoms, nn_omp, refit
from saelib.measure.pursuit_c import ROWS

FLOATS = torch.empty(1)
needs_compiler = pytest.mark.skipif(not pursuit_c.takes(FLOATS), reason="no C compiler")
# rows, atoms, d: fewer and more atoms than dimensions, one of each, more than a block of atoms
SHAPES = [(40, 30, 48), (300, 70, 16), (7, 1, 5), (5, 9, 1), (30, 1100, 24)]


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(normal(*shape, seed=seed), dim=-1)


def case(n, m, d):
    """Rows of a few atoms and noise; atoms that have something in common."""
    atoms = torch.nn.functional.normalize(unit(m, d) + 0.3 / d**0.5, dim=-1)
    f = (normal(n, m, seed=1) - 1).relu() * (torch.arange(m) % 7 < 3)
    return f @ atoms + 0.3 * normal(n, d, seed=2), atoms


@pytest.fixture
def plain(monkeypatch):
    """Calls a function with the twins alone."""

    def call(function, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(pursuit_c, "takes", lambda *arrays: False)
            return function(*arguments, **options)

    return call


def with_threads(count, function, *arguments):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        return function(*arguments)
    finally:
        torch.set_num_threads(before)


def assert_same_codes(found, wanted):
    assert torch.equal(found > 0, wanted > 0)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize(("n", "m", "d"), SHAPES)
def test_pursuit_finds_its_twins_codes(plain, n, m, d):
    x, atoms = case(n, m, d)
    for k in (0, 1, 4, torch.arange(n) % 6):
        assert_same_codes(nn_omp(x, atoms, k), plain(nn_omp, x, atoms, k))


@needs_compiler
def test_pursuit_gives_atoms_back_as_its_twin_does(plain):
    atoms = torch.nn.functional.normalize(normal(40, 6, seed=3) + 0.5, dim=-1)  # coherent
    x = normal(600, 6, seed=4) + 0.5
    rounds = [plain(nn_omp, x, atoms, k) for k in (3, 4, 5)]
    for k, wanted in zip((3, 4, 5), rounds, strict=True):
        assert_same_codes(nn_omp(x, atoms, k), wanted)
    given_back = ((rounds[0] > 0) & (rounds[2] == 0)).any(-1)
    assert given_back.sum() > 20  # the case is rich


@needs_compiler
def test_pursuit_beyond_the_last_dimension_leaves_nothing_to_gain():
    x, atoms = case(50, 60, 12)
    f = nn_omp(x, atoms, 1000)
    left = x - f @ atoms
    assert (left @ atoms.T).max() < 1e-4
    assert f.count_nonzero(-1).max() <= 12
    assert (f >= 0).all()


@needs_compiler
def test_pursuit_takes_one_of_equal_atoms(plain):
    x, atoms = case(50, 20, 12)
    twice = torch.cat([atoms, atoms])
    found = nn_omp(x, twice, 15)
    assert found[:, 20:].count_nonzero() == 0  # the first of equal ones
    torch.testing.assert_close(found[:, :20], nn_omp(x, atoms, 15))
    assert_same_codes(nn_omp(x, twice, 3), plain(nn_omp, x, twice, 3))


@needs_compiler
def test_an_atom_that_depends_on_those_taken_is_passed_over():
    """The third is chosen after the first two, and lies in their plane as float32 tells planes."""
    near = torch.nn.functional.normalize(torch.tensor([[1.0, -1.0, 1e-3, 0.0]]), dim=-1)
    first, second, _, last = torch.eye(4).split(1)
    x = torch.tensor([[2.0, 1.0, 1.0, 4e-4]])
    f = nn_omp(x, torch.cat([first, second, near, last]), 4)
    torch.testing.assert_close(f, torch.tensor([[2.0, 1.0, 0.0, 4e-4]]))


@needs_compiler
def test_the_first_of_equal_atoms_is_taken_wherever_they_stand():
    atoms = unit(200, 12)
    x = 2 * atoms[[3, 150]]
    f = nn_omp(x, torch.cat([atoms, atoms]), 1)
    assert f.argmax(-1).tolist() == [3, 150]


@needs_compiler
def test_pursuit_of_nothing_and_of_zeros_is_nothing():
    atoms = unit(6, 4)
    assert nn_omp(torch.empty(0, 4), atoms, 2).shape == (0, 6)
    assert nn_omp(torch.zeros(3, 4), atoms, 2).count_nonzero() == 0
    x = torch.stack([torch.zeros(4), atoms[2]])
    torch.testing.assert_close(nn_omp(x, atoms, 3), torch.eye(6)[2] * torch.tensor([[0.0], [1]]))
    no_atom = torch.cat([atoms, torch.zeros(1, 4)])
    assert nn_omp(x, no_atom, 3)[:, 6].count_nonzero() == 0


@needs_compiler
def test_arrays_need_not_be_contiguous(plain):
    x, atoms = case(40, 30, 48)
    f = nn_omp(x, atoms, 6)
    strided = (x.T.contiguous().T, atoms.T.contiguous().T)
    assert torch.equal(nn_omp(*strided, 6), f)
    assert torch.equal(refit(*strided, f.T.contiguous().T), refit(x, atoms, f))


@needs_compiler
@pytest.mark.parametrize(("n", "m", "d"), SHAPES)
def test_refit_finds_its_twins_codes(plain, n, m, d):
    x, atoms = case(n, m, d)
    f = normal(n, m, seed=5).relu() * (normal(n, m, seed=6) > 2)
    f[0] = 0
    found, wanted = refit(x, atoms, f), plain(refit, x, atoms, f)
    assert torch.equal(found > 0, wanted > 0)
    assert torch.all((found - wanted).abs().amax(1) <= rounding(x, atoms, wanted))


def rounding(x, atoms, codes):
    """By how much each row of codes may differ where products of float32 are rounded otherwise.

    Codes solve G_S f = D_S x on their support S. Each of its products, at most ‖x‖ large, has the
    rounding of a sum of d numbers, which G_S⁻¹ enlarges.
    """
    bound = torch.zeros(len(codes))
    for row, f in enumerate(codes):
        active = atoms[f > 0].double()
        if len(active):
            enlarged = 1 / torch.linalg.eigvalsh(active @ active.T)[0]
            products = (active.numel() ** 0.5) * 2**-24 * x[row].norm()  # of a vector of |S| sums
            bound[row] = 2 * enlarged * products  # either solution has it
    return bound


def misses(x, atoms, f, lam):
    """By how much codes miss the conditions of the lasso's minimum, as a share."""
    product = x @ atoms.T
    slope = 2 * (product - f @ (atoms @ atoms.T)) - lam
    worst = torch.where(f > 0, slope.abs(), slope.relu()).amax(-1)
    return (worst / (2 * product.amax(-1)).clamp_min(1e-30)).max()


@needs_compiler
def test_lasso_by_hand():
    atoms = torch.tensor([[0.6, 0.8]])
    x = torch.tensor([[3.0, 4.0], [0.0, 0.1], [-1.0, 0.0]])
    lasso = pursuit_c.Lasso(atoms)
    f = lasso(x, 1.0, torch.zeros(3, 1))
    torch.testing.assert_close(f, torch.tensor([[4.5], [0.0], [0.0]]))  # max(0, x·d - λ / 2)
    assert torch.equal(lasso(x, 1.0, torch.full((3, 1), 7.0)), f)
    # two atoms, d·e = 0.6: f + 0.6 g = 2 - λ / 2, 0.6 f + g = 1.5 - λ / 2 at λ = 1
    two = pursuit_c.Lasso(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
    f = two(torch.tensor([[2.0, 0.375]]), 1.0, torch.zeros(1, 2))
    torch.testing.assert_close(f, torch.tensor([[1.5 - 0.6 * 0.15625, 0.15625]]))


@needs_compiler
@pytest.mark.parametrize("lam", [0.05, 0.5, 3.0])
@pytest.mark.parametrize(("n", "m", "d"), [s for s in SHAPES if s[2] > 1])
def test_lasso_meets_the_conditions_of_the_minimum_and_the_long_run_of_fista(n, m, d, lam):
    x, atoms = case(n, m, d)
    x[0] = 0
    x[1] = -atoms.sum(0)
    zeros = torch.zeros(n, m)
    lasso = pursuit_c.Lasso(atoms)
    f = lasso(x, lam, zeros)
    assert (f >= 0).all()
    assert misses(x, atoms, f, lam) < 2e-5
    assert misses(x, atoms, lasso(x, lam, f + 0.1), lam) < 2e-5

    def objective(f):
        f = f.double()
        return (x - f @ atoms.double()).square().sum(-1) + lam * f.sum(-1)

    long = objective(fista(x.double(), atoms.double(), lam, steps=3000))
    assert (objective(f) <= long * (1 + 1e-5) + 1e-6).all()
    if m < 1000:  # where that long a run arrives
        torch.testing.assert_close(objective(f), long, rtol=1e-5, atol=1e-6)


@needs_compiler
def test_lasso_of_equal_atoms_is_that_of_one_of_them():
    x, atoms = case(50, 20, 12)
    one = pursuit_c.Lasso(atoms)(x, 0.3, torch.zeros(50, 20))
    both = pursuit_c.Lasso(torch.cat([atoms, atoms]))(x, 0.3, torch.zeros(50, 40))
    torch.testing.assert_close(both[:, :20] + both[:, 20:], one, rtol=1e-3, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_lasso_has_the_norm_asked_for(share):
    x, atoms = case(300, 70, 16)
    most = pursuit_c.Lasso(atoms)(x, 1e-3, torch.zeros(300, 70)).sum(-1).mean()
    f = torch.full((300, 70), float(share * most / 70))
    g = lasso_at_l1(x, atoms, f, rows=300)
    assert float(g.sum(-1).mean()) == pytest.approx(float(share * most), rel=0.01)


@pytest.mark.parametrize("curve", [lambda s: 2.0**-s, lambda s: (3 - s) ** 3, lambda s: 3 - s])
@pytest.mark.parametrize("wanted", [0.01, 1.0, 5.0])
def test_few_searches_find_the_penalty(curve, wanted):
    """Where ‖f‖₁ falls with log λ in whatever way."""
    tried = []

    def coder(x, lam, start):
        tried.append(torch.tensor(lam).log().item())
        return torch.full((1, 1), max(0.0, curve(tried[-1])))

    atoms = torch.full((1, 1), 20.0)
    _, codes = pursuit._lambda_at_l1(coder, atoms[:, :1], atoms, wanted)
    assert float(codes) == pytest.approx(wanted, rel=0.01)
    assert len(tried) <= 20


def test_no_codes_have_no_norm():
    x, atoms = case(9, 30, 48)
    assert lasso_at_l1(x, atoms, torch.zeros(9, 30)).count_nonzero() == 0
    with pytest.raises(ValueError, match="lasso_at_l1: no rows to code"):
        lasso_at_l1(x[:0], atoms, torch.zeros(0, 30))


@needs_compiler
@pytest.mark.parametrize(("m", "d", "k"), [(70, 16, 3), (150, 24, 4), (9, 1, 1)])
def test_learned_atoms_are_their_twins(plain, m, d, k):
    x, atoms = case(300, m, d)
    batches = x.split(100)
    start = atoms.clone()
    # an atom that no row uses moves as little as any other
    torch.testing.assert_close(
        learn_atoms(batches, atoms, k), plain(learn_atoms, batches, atoms, k), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(atoms, start)
    no_inertia = learn_atoms(batches[:1], atoms, k, inertia=0)
    wanted = plain(learn_atoms, batches[:1], atoms, k, inertia=0)
    torch.testing.assert_close(no_inertia, wanted, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_results_do_not_depend_on_the_number_of_threads():
    x, atoms = case(300, 70, 16)
    f = nn_omp(x, atoms, 5)

    def all_of_them():
        learned = learn_atoms(x.split(100), atoms, 3)
        return nn_omp(x, atoms, 5), refit(x, atoms, f), lasso_at_l1(x, atoms, f), learned

    one, two = (with_threads(n, all_of_them) for n in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@needs_compiler
@pytest.mark.parametrize("n", [1, 300])
def test_a_row_s_codes_are_those_it_has_alone(n):
    x, atoms = case(300, 70, 16)
    k = torch.arange(300) % 8
    alone = torch.cat([nn_omp(x[i : i + 1], atoms, k[i : i + 1]) for i in range(20)])
    assert_same_codes(nn_omp(x, atoms, k)[:20], alone)


@needs_compiler
def test_what_is_coded_in_c():
    assert pursuit_c.takes(FLOATS, FLOATS)
    assert not pursuit_c.takes(FLOATS, FLOATS.double())
    assert not pursuit_c.takes(FLOATS.to("meta"))


@needs_compiler
def test_float64_rows_are_coded_by_the_twin():
    x, atoms = case(40, 30, 48)
    wide = nn_omp(x.double(), atoms.double(), 4)
    assert wide.dtype == torch.float64
    torch.testing.assert_close(nn_omp(x, atoms, 4), wide.float(), rtol=1e-4, atol=1e-5)


def test_without_a_compiler_rows_are_coded_by_the_twin(no_compiler):
    assert not pursuit_c.takes(FLOATS)
    x, atoms = case(40, 30, 48)
    f = nn_omp(x, atoms, 4)
    assert f.count_nonzero(-1).max() == 4
    torch.testing.assert_close(refit(x, atoms, f), f, rtol=1e-4, atol=1e-5)
    lasso = lasso_at_l1(x, atoms, f)
    assert float(lasso.sum(-1).mean()) == pytest.approx(float(f.sum(-1).mean()), rel=0.03)
    learned = learn_atoms(x.split(20), atoms, 3)
    torch.testing.assert_close(learned.norm(dim=-1), torch.ones(30))


@needs_compiler
def test_a_lack_of_memory_is_said(monkeypatch):
    monkeypatch.setattr(pursuit_c, "call", lambda library, name, *arrays: arrays[-1].fill_(1))
    with pytest.raises(MemoryError, match="pursuit: no memory"):
        nn_omp(unit(3, 4), unit(6, 4), 2)


@pytest.mark.parametrize("n", [0, 1, ROWS - 1, ROWS, ROWS + 1, 3 * ROWS, 7 * ROWS + 5])
def test_rows_go_in_parts_of_nearly_one_size_and_of_at_most_so_many(n):
    parts = list(pursuit_c._parts(n))
    assert [row for part in parts for row in range(n)[part]] == list(range(n))
    sizes = [part.stop - part.start for part in parts]
    assert len(sizes) == math.ceil(n / ROWS)
    assert not sizes or max(sizes) <= ROWS
    assert not sizes or max(sizes) - min(sizes) < len(sizes)


@needs_compiler
def test_the_gram_matrix_is_whole_over_several_parts(monkeypatch):
    monkeypatch.setattr(pursuit_c, "PARTS", 16)
    atoms = unit(70, 9)
    gram = pursuit_c.gram_of(atoms)
    torch.testing.assert_close(gram, atoms @ atoms.T)


@needs_compiler
def test_rows_whose_squares_overflow_have_codes(plain):
    x, atoms = case(20, 30, 16)
    torch.testing.assert_close(nn_omp(x * 1e20, atoms, 3) / 1e20, nn_omp(x, atoms, 3))


@needs_compiler
def test_an_atom_without_a_direction_stays(plain):
    x, atoms = case(50, 12, 8)
    atoms[3] = 0
    for learned in (learn_atoms([x, x], atoms, 3), plain(learn_atoms, [x, x], atoms, 3)):
        assert learned.isfinite().all()
        assert not learned[3].any()
