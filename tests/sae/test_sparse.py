"""The sparse step: when it is taken, where it trains to, and that C and Triton equal PyTorch.

Its gradients are held to autograd beside the dense step's in `test_dense.py`.
"""

import os
import subprocess
import sys
import threading

import pytest
import torch
from helpers.entries import SHAPES, entries
from helpers.rows import D, N, sparse_rows

from saelib.config import ConfigError, SAEConfig, TrainConfig
from saelib.sae import build_sae, sparse
from saelib.sae.sparse import c as sparse_c
from saelib.sae.sparse import library
from saelib.sae.sparse import plain as sparse_plain
from saelib.sae.sparse import triton as sparse_triton
from saelib.sae.trainer import SCREEN_BELOW, SPARSE_BELOW, Trainer

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(not sparse_c.available(), reason="no C compiler")


def _trained(loss, step, steps=500, lam=0.5):
    x = sparse_rows()
    cfg = TrainConfig(loss=loss, step=step, tokens=64 * steps, batch_size=64, lam=lam, lr=3e-3)
    sae = build_sae(
        SAEConfig(arch="sae" if loss == "plain" else "gated", d_in=D, n_latents=N),
        torch.Generator().manual_seed(0),
    )
    trainer, kinds = Trainer(sae, cfg), []
    order = torch.Generator().manual_seed(1)
    for _ in range(steps):
        kinds.append(trainer.takes_sparse_step())
        trainer.step_(x[torch.randint(len(x), (64,), generator=order)])
    _, x_hat = sae.requires_grad_(False)(x)
    return float((x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()), kinds, trainer


@needs_compiler
@pytest.mark.parametrize("loss", ["plain", "two_term", "full"])
def test_five_hundred_steps_of_either_kind_end_at_the_same_fvu(loss):
    (dense, kinds, _), (sparse_fvu, sparse_kinds, _) = (
        _trained(loss, "dense"),
        _trained(loss, "sparse"),
    )
    assert not any(kinds)
    assert all(sparse_kinds)
    assert dense < 0.5
    assert sparse_fvu == pytest.approx(dense, abs=1e-3)


@needs_compiler
def test_auto_starts_dense_and_goes_sparse_with_the_density_of_the_last_batch():
    _, kinds, trainer = _trained("plain", "auto", lam=5.0)
    assert kinds[0] is False
    assert kinds[-1] is True
    assert trainer.density < SPARSE_BELOW


def test_without_a_compiler_the_sparse_step_runs_in_plain_pytorch(no_compiler):
    assert sparse.operations(CPU) is sparse_plain
    assert not sparse.screens(CPU)
    fvu, kinds, _ = _trained("full", "sparse", steps=200)
    dense, _, _ = _trained("full", "dense", steps=200)
    assert all(kinds)
    assert fvu == pytest.approx(dense, abs=1e-3)


@pytest.fixture
def bad_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "FLAGS", ("-no-such-flag",))
    library.compiled.cache_clear()
    yield
    library.compiled.cache_clear()


def test_the_dense_step_asks_for_no_compiler(bad_compiler):
    assert _trained("plain", "dense", steps=2)[1] == [False, False]


def test_weights_that_are_not_float32_take_the_dense_step():
    sae = build_sae(SAEConfig(d_in=D, n_latents=N)).double()
    with pytest.raises(ConfigError, match=r"step = 'sparse': not with torch\.float64 weights"):
        Trainer(sae, TrainConfig(step="sparse"))
    trainer = Trainer(sae, TrainConfig())
    trainer.density = 0.0
    assert not trainer.takes_sparse_step()


OPERATIONS = [sparse_plain, pytest.param(sparse_c, marks=needs_compiler)]


@pytest.mark.parametrize("ops", OPERATIONS, ids=["plain", "c"])
def test_nothing_fires_in_an_empty_batch_of_entries(ops):
    at = ops.open_entries(-torch.ones(4, 7), torch.eye(7), torch.zeros(7))
    assert at.crow.tolist() == [0] * 5
    assert at.ccol.tolist() == [0] * 8
    assert len(at.col) == 0
    error, squared, g_code = ops.decode(
        torch.ones(4, 7), torch.eye(7), torch.zeros(7), at, torch.empty(0), 2.0
    )
    assert (error.tolist(), float(squared), len(g_code)) == ([[-2.0] * 7] * 4, 28.0, 0)


@pytest.mark.parametrize("ops", OPERATIONS, ids=["plain", "c"])
def test_entries_are_found_row_by_row_and_latent_by_latent(ops):
    a = torch.tensor([[1.0, -1, 2], [-1, -1, 3], [4, -1, -1]])
    at = ops.open_entries(a, torch.eye(3), torch.zeros(3))
    assert at.crow.tolist() == [0, 2, 3, 4]
    assert at.col.tolist() == [0, 2, 2, 0]
    assert at.value.tolist() == [1, 2, 3, 4]
    assert at.ccol.tolist() == [0, 2, 2, 4]
    assert at.row.tolist() == [0, 2, 0, 1]
    assert at.order.tolist() == [0, 3, 1, 2]


IN_PARTS = [(2100, 300, 20), (40, 600, 700)]  # whose columns, or latents, C takes in turn


@needs_compiler
@pytest.mark.parametrize("shape", [*SHAPES, *IN_PARTS], ids=str)
def test_c_does_what_plain_pytorch_does(shape):
    x_c, W, _, at = entries(sparse_plain, *shape)
    _, _, _, of_c = entries(sparse_c, *shape)
    for name in ("crow", "col", "ccol", "row", "order"):
        assert torch.equal(getattr(at, name).long(), getattr(of_c, name).long()), name
    torch.testing.assert_close(at.value, of_c.value)
    f = at.value.abs()
    for plain, c in zip(
        *(ops.decode(x_c, W, x_c[0], at, f, 0.5) for ops in (sparse_plain, sparse_c)), strict=True
    ):
        assert (plain - c).norm() <= 1e-6 * plain.norm()
    plain, c = (ops.weight_gradient(x_c, at, f, len(W)) for ops in (sparse_plain, sparse_c))
    assert (plain - c).norm() <= 1e-6 * plain.norm()
    plain, c = (ops.entry_products(x_c, W, at) for ops in (sparse_plain, sparse_c))
    assert (plain - c).norm() <= 1e-6 * plain.norm()
    assert (plain - at.value).norm() <= 1e-6 * plain.norm()  # that is how they were found


@needs_compiler
@pytest.mark.parametrize("shape", [*SHAPES, *IN_PARTS], ids=str)
def test_the_screen_finds_the_entries_of_float32(shape):
    _, _, _, exact = entries(sparse_c, *shape)
    _, _, _, screened = entries(sparse_c, *shape, encoder="screen")
    assert len(exact.col) > 0
    assert torch.equal(exact.crow, screened.crow)
    assert torch.equal(exact.col, screened.col)
    rounding = max(1e-5, 1e-7 * shape[1])  # of sums whose terms are about 1
    torch.testing.assert_close(exact.value, screened.value, rtol=1e-5, atol=rounding)


@needs_compiler
@pytest.mark.parametrize("size", [1.0, 1e-25])  # squares of the second are 0 in float32
def test_the_screen_loses_nothing_that_bfloat16_would_round_away(size):
    """Each row is open by a thousandth of its size in one latent.

    There bfloat16 is wrong by a few thousandths.
    """
    g = torch.Generator().manual_seed(0)
    x_c, W = torch.randn(256, 64, generator=g), torch.randn(256, 64, generator=g)
    a = x_c @ W.T
    slack = 1e-3 * a.abs().clamp_min(0.1)
    x_c, bias = x_c * size, (slack - a).diagonal() * size
    rounded = (x_c.bfloat16() @ W.bfloat16().T).float().diagonal() + bias
    at = sparse_c.open_entries(x_c, W.T, bias, "screen")
    row = torch.repeat_interleave(at.crow.diff())
    assert (rounded <= 0).sum() > 20  # what a plain bfloat16 encoder would drop
    assert (row == at.col).sum() == 256


@needs_compiler
def test_the_screen_allows_for_a_product_stored_as_bfloat16():
    """1 + 2⁻⁹ is 1 in bfloat16, with x and w exact there; the latent is open by 2⁻¹⁰."""
    x_c, W = torch.ones(1, 2), torch.tensor([[1.0, 2.0**-9], [1.0, 2.0**-11]])
    at = sparse_c.open_entries(x_c, W.T, torch.full((2,), -1 - 2.0**-10), "screen")
    assert at.col.tolist() == [0]
    assert at.value.tolist() == [1 + 2.0**-9]


@needs_compiler
def test_the_screen_allows_for_what_is_lost_in_adding_up(monkeypatch):
    """Terms of ±2²⁴ that cancel, with small ones between them, each row in an order of its own.

    All numbers are exact in bfloat16. Held to a screen that has every latent looked at again.
    """
    g = torch.Generator().manual_seed(0)
    terms = torch.cat([torch.ones(44) * 2.0**12, -torch.ones(44) * 2.0**12, torch.ones(8)])
    x_c = torch.stack([terms[torch.randperm(96, generator=g)] for _ in range(64)])
    W = torch.where(x_c.abs() > 1, 2.0**12, 1.0)  # latent i has the large terms of row i
    bias = torch.full((64,), -0.5)

    def columns_found():
        return sparse_c.open_entries(x_c, W.T, bias, "screen").col.tolist()

    found = columns_found()
    monkeypatch.setattr(sparse_c, "SUM_ERROR", 1e9)
    assert found == columns_found()
    monkeypatch.setattr(sparse_c, "SUM_ERROR", 0.0)
    assert len(columns_found()) < len(found)  # so that the bound is needed


@needs_compiler
@pytest.mark.parametrize("size", [1e-25, 1e-10, 1e10, 1e19, 1e30], ids=str)
def test_the_screen_holds_at_any_size_that_float32_has(size):
    x_c, W, bias, _ = entries(sparse_c, 64, 100, 200)
    x_c, bias = x_c * size, bias * size
    exact, screened = (
        sparse_c.open_entries(x_c, W.T, bias, encoder) for encoder in ("exact", "screen")
    )
    assert len(exact.col) > 100
    assert torch.equal(exact.crow, screened.crow)
    assert torch.equal(exact.col, screened.col)


@needs_compiler
@pytest.mark.parametrize(
    ("of_x", "of_w", "sums", "rounding", "slack"),
    [
        ((2.0, 0.0), (3.0, 0.0), 0.5, 0.0, 3.0),  # adding up: 0.5 · 2 · 3
        ((2.0, 1.0), (3.0, 0.0), 0.0, 0.0, 3.0),  # x rounded: 1 · 3
        ((2.0, 0.0), (3.0, 1.0), 0.0, 0.0, 2.0),  # w rounded: 2 · 1
        (
            (2.0, 1.0),
            (3.0, 1.0),
            0.0,
            0.0,
            6.0,
        ),  # both: 1 · 3 + (2 + 1) · 1, ‖x'‖ being up to ‖x‖ + ‖x − x'‖
        ((2.0, 0.0), (3.0, 0.0), 0.0, 0.25, 1.0),  # the product rounded: 0.25 · 4
    ],
)
def test_each_term_of_the_bound_by_hand(of_x, of_w, sums, rounding, slack):
    """The product is −4: a latent is looked at again where its bias is above 4 − slack."""
    a, bias = torch.tensor([[-4.0, -4.0]]).bfloat16(), torch.tensor([3.99, 4.01]) - slack
    x, w = (torch.tensor([[v] * n for v in pair]) for pair, n in ((of_x, 1), (of_w, 2)))
    bits, counts = sparse_c._bits(1, 2)
    sparse_c._call("screen_bf16", a, bias, 1, 2, *x, *w, sums, rounding, bits, counts)
    assert (bits.item(), counts.item()) == (2, 1)


@needs_compiler
def test_a_product_that_is_not_a_number_is_looked_at_again():
    a, none = torch.tensor([[float("nan"), -1.0]]).bfloat16(), torch.zeros(2)
    bits, counts = sparse_c._bits(1, 2)
    sparse_c._call("screen_bf16", a, none, 1, 2, none, none, none, none, 0.0, 0.0, bits, counts)
    assert bits.item() == 1


@needs_compiler
def test_a_bfloat16_encoder_is_not_exact_and_says_so_by_name():
    x_c, W, bias, exact = entries(sparse_c, 64, 100, 200)
    for ops in (sparse_plain, sparse_c):
        rounded = ops.open_entries(x_c, W.T, bias, "bfloat16")
        want = (x_c.bfloat16() @ W.T.bfloat16()).float()
        assert torch.equal(
            rounded.value, want[torch.repeat_interleave(rounded.crow.diff()), rounded.col.long()]
        )
    assert not torch.equal(rounded.value[: len(exact.value)], exact.value[: len(rounded.value)])


@needs_compiler
def test_entries_found_in_chunks_of_rows_are_those_of_all(monkeypatch):
    """In inference mode too, whose tensors cannot be written again outside it."""
    exact, screened = (entries(sparse_c, 33, 40, 64, way)[3] for way in ("exact", "screen"))
    monkeypatch.setattr(sparse_c, "rows_at_once", lambda n, device: 10)
    monkeypatch.setattr(sparse_c, "HELD_AT_ONCE", 10 * 64)
    monkeypatch.setattr(sparse_c, "_KEPT", threading.local())
    with torch.inference_mode():
        entries(sparse_c, 33, 40, 64, "screen")
    for way, whole in (("exact", exact), ("screen", screened)):
        chunked = entries(sparse_c, 33, 40, 64, way)[3]
        for name in ("crow", "col", "ccol", "row", "order"):
            assert torch.equal(getattr(chunked, name), getattr(whole, name)), name
        torch.testing.assert_close(chunked.value, whole.value)


@needs_compiler
def test_what_a_row_gives_does_not_depend_on_the_others():
    """Not to the last bit; 700 latents do not fit the cache at once."""
    x, W, bias, at = entries(sparse_c, 40, 600, 700)
    error, _, g_code = sparse_c.decode(x, W, bias[:600], at, at.value, 1.0)
    alone = sparse_c.open_entries(x[7:8], W.T, bias)
    last, _, g_last = sparse_c.decode(
        x[7:8], W, bias[:600], alone, at.value[at.crow[7] : at.crow[8]], 1.0
    )
    assert torch.equal(last[0], error[7])
    assert torch.equal(g_last, g_code[at.crow[7] : at.crow[8]])


@needs_compiler
def test_codes_decoded_together_are_those_of_each_alone():
    x, W, bias, at = entries(sparse_c, 33, 40, 64)
    sets = [at.value, at.value.square(), torch.ones_like(at.value)]
    together = sparse.decode_each(x, W, bias[:40], at, sets, 0.5)
    for results, f in zip(together, sets, strict=True):
        alone = sparse_plain.decode(x, W, bias[:40], at, f, 0.5)
        for a, b in zip(results, alone, strict=True):
            assert (a - b).norm() <= 1e-6 * b.norm()


@pytest.mark.parametrize("ops", OPERATIONS, ids=["plain", "c"])
def test_values_are_summed_latent_by_latent_in_double(ops):
    a = torch.tensor([[1.0, -1, 2], [-1, -1, 3], [-1, -1, 4]])
    at = ops.open_entries(a, torch.eye(3), torch.zeros(3))
    assert ops.sum_by_latent(at, torch.tensor([5.0, 1.0, 2.0**25, -(2.0**25)])).tolist() == [
        5,
        0,
        1,
    ]
    assert sparse.latents_with_entries(at).tolist() == [True, False, True]


@pytest.mark.parametrize("ops", OPERATIONS, ids=["plain", "c"])
def test_a_gradient_may_be_written_over_another(ops):
    x, _, _, at = entries(ops, 33, 40, 64)
    fresh = ops.weight_gradient(x, at, at.value, 64)
    room = torch.full((64, 40), torch.nan)
    assert torch.equal(ops.weight_gradient(x, at, at.value, 64, room), fresh)


@needs_compiler
def test_training_screens_only_where_few_codes_are_active():
    _, _, trainer = _trained("plain", "auto", steps=1, lam=5.0)
    trainer._screen_here = True
    for density, encoder in (
        (0.5, "exact"),
        (SPARSE_BELOW / 1.01, "exact"),
        (SCREEN_BELOW / 2, "screen"),
    ):
        trainer.density = density
        assert trainer.encoder() == encoder


TRITON_TWIN = """
import torch
from helpers.entries import SHAPES, entries
from saelib.sae.sparse import plain as sparse_plain
from saelib.sae.sparse import triton as sparse_triton

device = "cuda" if torch.cuda.is_available() else "cpu"
for shape in SHAPES:
    x_c, W, _, at = entries(sparse_plain, *shape)
    x_c, W, f = x_c.to(device), W.to(device), at.value.abs().to(device)
    at = type(at)(*(t.to(device) for t in at))
    pairs = zip(*(ops.decode(x_c, W, x_c[0], at, f, 0.5) for ops in (sparse_plain, sparse_triton)))
    gradients = [ops.weight_gradient(x_c, at, f, len(W)) for ops in (sparse_plain, sparse_triton)]
    for plain, triton in [*pairs, gradients]:
        assert (plain - triton).norm() <= 1e-6 * plain.norm()
print("equal")
"""


@pytest.mark.skipif(not sparse_triton.available(), reason="Triton is not installed")
def test_triton_does_what_plain_pytorch_does():
    """On a GPU where there is one, else in Triton's interpreter."""
    env = os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    done = subprocess.run(
        [sys.executable, "-c", TRITON_TWIN], env=env, capture_output=True, text=True
    )
    assert done.stdout.strip() == "equal", done.stderr
