"""The largest pre-activations: by hand, with ties, and the same in C as in plain PyTorch."""

import threading

import pytest
import torch
from helpers.entries import SHAPES

from saelib.sae.sparse import c as sparse_c
from saelib.sae.sparse import plain as sparse_plain
from saelib.sae.sparse.selection import largest, largest_of_batch

needs_compiler = pytest.mark.skipif(not sparse_c.available(), reason="no C compiler")
OPERATIONS = [sparse_plain, pytest.param(sparse_c, marks=needs_compiler)]
NAMES = ["plain", "c"]
NAN, INF = float("nan"), float("inf")


def test_the_largest_count_only_above_zero():
    pre = torch.tensor([[0.0, 2.0, -1.0, 1.5], [3.0, 1.0, 2.0, 4.0]])
    assert largest(pre, 3).tolist() == [[False, True, False, True], [True, False, True, True]]
    assert largest(pre, 1).tolist() == [[False, True, False, False], [False, False, False, True]]


def test_below_zero_where_that_is_asked():
    pre = torch.tensor([[-3.0, -1.0, NAN, 0.5], [-INF, -2.0, -5.0, -4.0]])
    chosen = largest(pre, 2, positive=False)
    assert chosen.tolist() == [[False, True, False, True], [False, True, False, True]]
    all_but_none = largest(pre, 4, positive=False)
    assert all_but_none.tolist() == [[True, True, False, True], [False, True, True, True]]


def test_of_equal_values_the_first_are_taken():
    pre = torch.tensor([[1.0, 2.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    assert largest(pre, 2).tolist() == [[True, True, False, False], [True, True, False, False]]
    of_batch = largest_of_batch(pre, 4)
    assert of_batch.tolist() == [[False, True, False, False], [True, True, True, False]]
    seven = largest_of_batch(pre, 7)
    assert seven.tolist() == [[True, True, True, False], [True, True, True, True]]


def test_a_row_without_competition_takes_part_in_the_batch_s():
    pre = torch.tensor([[5.0, 4.0, 3.0], [1.0, -1.0, 2.0]])
    assert largest_of_batch(pre, 4).tolist() == [[True, True, True], [False, False, True]]
    assert largest_of_batch(pre, 6).tolist() == [[True, True, True], [True, False, True]]


def problem(rows, d, n):
    g = torch.Generator().manual_seed(rows)
    x_c, W = torch.randn(rows, d, generator=g), torch.randn(n, d, generator=g)
    return x_c, W, torch.randn(n, generator=g)


@needs_compiler
@pytest.mark.parametrize("shape", [*SHAPES, (40, 30, 700)], ids=str)
@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("whole", [False, True], ids=["rows", "batch"])
def test_c_finds_what_plain_pytorch_does(shape, share, whole):
    x_c, W, bias = problem(*shape)
    name = "batch_top_entries" if whole else "top_entries"
    k = max(1, round(share * shape[2])) * (shape[0] if whole else 1)
    plain, c = (getattr(ops, name)(x_c, W.T, bias, k) for ops in (sparse_plain, sparse_c))
    for field in plain._fields:
        assert torch.equal(getattr(plain, field), getattr(c, field)), field
    assert 0 < len(c.col) <= k * (1 if whole else shape[0])


@needs_compiler
@pytest.mark.parametrize("encoder", ["exact", "screen"])
def test_a_batch_of_no_rows_has_no_entries(monkeypatch, encoder):
    """In a thread that has not called before, too."""
    monkeypatch.setattr(sparse_c, "_KEPT", threading.local())
    x_c, W, bias = problem(0, 7, 9)
    for codes in (
        sparse_c.top_entries(x_c, W.T, bias, 3, encoder),
        sparse_c.batch_top_entries(x_c, W.T, bias, 0, encoder),
        sparse_c.open_entries(x_c, W.T, bias, encoder),
    ):
        assert (codes.crow.tolist(), len(codes.col)) == ([0], 0)


@needs_compiler
def test_other_dtypes_are_refused():
    x_c, W, bias = (tensor.double() for tensor in problem(4, 7, 9))
    for call in (sparse_c.top_entries, sparse_c.batch_top_entries):
        with pytest.raises(TypeError, match=r"torch.float64: expected torch.float32"):
            call(x_c, W.T, bias, 3)
    with pytest.raises(TypeError, match=r"torch.float64: expected torch.float32"):
        sparse_c.open_entries(x_c, W.T, bias)


@needs_compiler
@pytest.mark.parametrize("encoder", ["exact", "screen"])
@pytest.mark.parametrize("whole", [False, True], ids=["rows", "batch"])
def test_a_product_in_parts_gives_the_same(monkeypatch, encoder, whole):
    """A batch's bound needs all parts, so that each is computed a second time."""
    x_c, W, bias = problem(33, 30, 200)
    name, k = ("batch_top_entries", 8 * 33) if whole else ("top_entries", 8)
    at_once = getattr(sparse_c, name)(x_c, W.T, bias, k, encoder)
    sizes, multiply = [], sparse_c._Product.multiply
    monkeypatch.setattr(sparse_c, "rows_at_once", lambda n, device: 10)
    monkeypatch.setattr(sparse_c, "HELD_AT_ONCE", 10 * 200)
    monkeypatch.setattr(
        sparse_c._Product,
        "multiply",
        lambda self, place: multiply(self, place) or sizes.append(len(self.a)),
    )
    in_parts = getattr(sparse_c, name)(x_c, W.T, bias, k, encoder)
    assert sizes == [10, 10, 10, 3] * (2 if whole else 1)
    for field in ("crow", "col", "ccol", "row", "order"):
        assert torch.equal(getattr(at_once, field), getattr(in_parts, field)), field
    torch.testing.assert_close(at_once.value, in_parts.value)


@pytest.mark.parametrize("ops", OPERATIONS, ids=NAMES)
@pytest.mark.parametrize("k", [1, 5, 31, 32, 33, 64, 200])
def test_ties_infinities_and_nan(ops, k):
    """Values of few kinds, so that almost every choice is among equals."""
    g = torch.Generator().manual_seed(k)
    kinds = torch.tensor([-INF, -1.0, -0.0, 0.0, 1e-45, 0.5, 1.0, 2.0, 2.0, INF, NAN])
    a = kinds[torch.randint(len(kinds), (16, 200), generator=g)]
    a[0] = 1.0
    a[1] = -1.0
    a[2] = NAN
    for row in a:  # as the bias: a product with infinity could be NaN
        codes = ops.top_entries(torch.ones(1, 1), torch.zeros(1, 200), row, k)
        order = [i for i in row.argsort(descending=True, stable=True).tolist() if row[i] > 0]
        assert codes.col.tolist() == sorted(order[:k])


@pytest.mark.parametrize("ops", OPERATIONS, ids=NAMES)
def test_nothing_fires_where_nothing_is_above_zero(ops):
    for codes in (
        ops.top_entries(-torch.ones(4, 7), torch.eye(7), torch.zeros(7), 3),
        ops.batch_top_entries(-torch.ones(4, 7), torch.eye(7), torch.zeros(7), 9),
    ):
        assert codes.crow.tolist() == [0] * 5
        assert codes.ccol.tolist() == [0] * 8
        assert len(codes.col) == 0


@pytest.mark.parametrize("ops", OPERATIONS, ids=NAMES)
def test_none_are_asked_for(ops):
    x_c, W, bias = problem(4, 7, 9)
    assert len(ops.batch_top_entries(x_c, W.T, bias, 0).col) == 0
    assert len(ops.top_entries(x_c, W.T, bias, 0).col) == 0


@pytest.mark.parametrize("ops", OPERATIONS, ids=NAMES)
def test_ties_of_a_batch_go_row_by_row(ops):
    codes = ops.batch_top_entries(torch.ones(3, 1), torch.ones(1, 4), torch.zeros(4), 6)
    assert codes.crow.tolist() == [0, 4, 6, 6]
    assert codes.col.tolist() == [0, 1, 2, 3, 0, 1]


@needs_compiler
@pytest.mark.parametrize("shape", [(64, 100, 200), (128, 64, 1000)], ids=str)
@pytest.mark.parametrize("whole", [False, True], ids=["rows", "batch"])
def test_the_screen_finds_the_largest_of_float32(shape, whole):
    x_c, W, bias = problem(*shape)
    bias = bias - 0.5 * shape[1] ** 0.5
    name, k = ("batch_top_entries", 8 * shape[0]) if whole else ("top_entries", 8)
    exact, screened = (
        getattr(sparse_c, name)(x_c, W.T, bias, k, encoder) for encoder in ("exact", "screen")
    )
    assert torch.equal(exact.crow, screened.crow)
    assert torch.equal(exact.col, screened.col)
    assert torch.equal(exact.order, screened.order)
    torch.testing.assert_close(exact.value, screened.value)
    rounded = sparse_plain.top_entries(x_c, W.T, bias, 8, "bfloat16")
    assert whole or not torch.equal(exact.col, rounded.col)  # bfloat16 alone chooses others


@needs_compiler
def test_the_choice_does_not_depend_on_the_number_of_threads():
    x_c, W, bias = problem(64, 100, 200)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(sparse_c.batch_top_entries(x_c, W.T, bias, 500))
    finally:
        torch.set_num_threads(before)
    for field in found[0]._fields:
        if field != "value":  # the product's own rounding may
            assert torch.equal(getattr(found[0], field), getattr(found[1], field)), field
