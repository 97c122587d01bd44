"""The sparse step in training: when it is taken, that it trains to the same place, and what happens without a compiler.

Its gradients are held to autograd beside the dense step's in `test_kernels.py`.
"""

import pytest
import torch

from saelib import sparse
from saelib.config import ConfigError, SAEConfig, TrainConfig
from saelib.sae import build_sae
from saelib.train import SPARSE_BELOW, Trainer

D, N = 16, 128
needs_compiler = pytest.mark.skipif(not sparse.available(torch.device("cpu")), reason="no C compiler")


def _rows():
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(64, D, generator=generator)
    codes = torch.rand(4000, 64, generator=generator) * (torch.rand(4000, 64, generator=generator) < 0.05)
    x = codes @ directions
    return x / x.pow(2).sum(1).mean().sqrt() * D**0.5


def _trained(loss, step, steps=500, lam=0.5):
    x = _rows()
    cfg = TrainConfig(loss=loss, step=step, tokens=64 * steps, batch_size=64, lam=lam, lr=3e-3)
    sae = build_sae(
        SAEConfig(arch="sae" if loss == "plain" else "gated", d_in=D, n_latents=N), torch.Generator().manual_seed(0)
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
    (dense, kinds, _), (sparse_fvu, sparse_kinds, _) = _trained(loss, "dense"), _trained(loss, "sparse")
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


def test_without_a_compiler_auto_is_dense_and_sparse_is_refused(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    sparse._library.cache_clear()
    try:
        assert not sparse.available(torch.device("cpu"))
        _, kinds, _ = _trained("plain", "auto", steps=200)
        assert not any(kinds)
        with pytest.raises(ConfigError, match=r"step = 'sparse': not on cpu with .* weights or without a C compiler"):
            _trained("plain", "sparse", steps=1)
    finally:
        sparse._library.cache_clear()


def test_the_dense_step_asks_for_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("SAELIB_HOME", str(tmp_path))
    monkeypatch.setattr(sparse, "FLAGS", ("-no-such-flag",))
    sparse._library.cache_clear()
    try:
        _, kinds, _ = _trained("plain", "dense", steps=2)
        assert kinds == [False, False]
    finally:
        sparse._library.cache_clear()


@needs_compiler
def test_weights_that_are_not_float32_take_the_dense_step():
    sae = build_sae(SAEConfig(d_in=D, n_latents=N)).double()
    with pytest.raises(ConfigError, match=r"step = 'sparse': not on cpu with torch\.float64 weights"):
        Trainer(sae, TrainConfig(step="sparse"))
    trainer = Trainer(sae, TrainConfig())
    trainer.density = 0.0
    assert not trainer.takes_sparse_step()


def test_a_compiler_that_fails_is_reported_with_its_message(monkeypatch, tmp_path):
    monkeypatch.setenv("SAELIB_HOME", str(tmp_path))
    monkeypatch.setattr(sparse, "FLAGS", ("-no-such-flag",))
    sparse._library.cache_clear()
    try:
        if sparse.shutil.which("cc"):
            with pytest.raises(RuntimeError, match=r"could not compile .*sparse_step\.c"):
                sparse.available(torch.device("cpu"))
            assert not list((tmp_path / "data" / "kernels").iterdir())
    finally:
        sparse._library.cache_clear()


@needs_compiler
def test_nothing_fires_in_an_empty_batch_of_entries():
    at = sparse.open_entries(-torch.ones(4, 7), torch.zeros(7))
    assert at.crow.tolist() == [0] * 5
    assert at.ccol.tolist() == [0] * 8
    assert len(at.col) == 0


@needs_compiler
def test_entries_are_found_row_by_row_and_latent_by_latent():
    a = torch.tensor([[1.0, -1, 2], [-1, -1, 3], [4, -1, -1]])
    at = sparse.open_entries(a, torch.zeros(3))
    assert at.crow.tolist() == [0, 2, 3, 4]
    assert at.col.tolist() == [0, 2, 2, 0]
    assert at.value.tolist() == [1, 2, 3, 4]
    assert at.ccol.tolist() == [0, 2, 2, 4]
    assert at.row.tolist() == [0, 2, 0, 1]
    assert at.order.tolist() == [0, 3, 1, 2]
