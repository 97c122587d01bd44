"""Adam on an SAE's parameters: by hand, and C against torch through all that a run does."""

import pytest
import torch
from helpers.rows import D, N, sparse_rows

from saelib.config import SAEConfig, TrainConfig
from saelib.sae import build_sae
from saelib.sae.checkpoint import load_checkpoint, save_checkpoint
from saelib.sae.sharding import UNSHARDED
from saelib.sae.sparse import adam
from saelib.sae.trainer import Trainer

needs_compiler = pytest.mark.skipif(not adam.available(), reason="no C compiler")
EITHER = pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=needs_compiler)], ids=["torch", "c"]
)


def _trainer(compiled, loss="plain", l1_mode="unit_norm", **changes):
    arch = "sae" if loss == "plain" else "gated"
    config = SAEConfig(arch, D, N, l1_mode=l1_mode)
    sae = build_sae(config, torch.Generator().manual_seed(0))
    cfg = TrainConfig(
        **{"loss": loss, "tokens": 64 * 100, "batch_size": 64, "lr": 3e-3, "lam": 0.5} | changes
    )
    trainer = Trainer(sae, cfg)
    trainer.optimizer.compiled = compiled
    return trainer


def _set_gradients(trainer, value):
    """The same gradient for every element but of W_dec, whose rows have (1, 0, 0 …)."""
    for name, parameter in trainer.sae.named_parameters():
        parameter.grad = torch.full_like(parameter, value)
        if name == "W_dec":
            parameter.grad[:] = torch.eye(parameter.shape[1])[0] * value
        leaf = trainer.leaves[name]
        leaf.grad = parameter.grad if leaf.stride() == parameter.stride() else parameter.grad.T


@EITHER
def test_a_first_step_by_hand(compiled):
    """A first step is lr · sign(g), for a row of (0.6, 0.8) with g = (1, 0) of g − (g·w) w."""
    trainer = _trainer(compiled, warmup=0.0, lr=0.1)
    sae = trainer.sae
    with torch.no_grad():
        sae.W_dec[0] = torch.zeros(D)
        sae.W_dec[0, :2] = torch.tensor([0.6, 0.8])
        sae.W_enc.fill_(1.0)
    _set_gradients(trainer, 1.0)
    trainer.optimizer.step()
    moments = trainer.optimizer.state[trainer.leaves["W_dec"]]
    torch.testing.assert_close(moments["exp_avg"][0, :2], 0.1 * torch.tensor([0.64, -0.48]))
    torch.testing.assert_close(
        moments["exp_avg_sq"][0, :2], 0.001 * torch.tensor([0.64, -0.48]).square()
    )
    assert float(moments["step"]) == 1
    moved = torch.tensor([0.5, 0.9])
    torch.testing.assert_close(sae.W_dec[0, :2], moved / moved.norm())
    torch.testing.assert_close(sae.W_enc, torch.full_like(sae.W_enc, 0.9))
    torch.testing.assert_close(sae.b_dec, torch.full_like(sae.b_dec, -0.1))


@EITHER
def test_a_norm_that_is_no_number_is_not_passed_over(compiled):
    """As torch has it: every weight is NaN then, and training ends."""
    trainer = _trainer(compiled, grad_clip=1.0)
    _set_gradients(trainer, 1.0)
    trainer.leaves["b_dec"].grad[0] = torch.nan
    trainer.optimizer.step()
    assert all(bool(leaf.isnan().all()) for leaf in trainer.leaves.values())


@EITHER
def test_what_has_no_gradient_in_a_batch_goes_on_by_its_moments(compiled):
    """m = β₁ (1 − β₁) g and v = β₂ (1 − β₂) g², over 1 − β²."""
    trainer = _trainer(compiled, warmup=0.0, lr=0.1)
    _set_gradients(trainer, 1.0)
    trainer.optimizer.step()
    _set_gradients(trainer, 0.0)
    trainer.optimizer.step()
    m, v = 0.9 * 0.1 / (1 - 0.9**2), 0.999 * 0.001 / (1 - 0.999**2)
    expected = torch.full_like(trainer.sae.b_enc, -0.1 - 0.1 * m / v**0.5)
    torch.testing.assert_close(trainer.sae.b_enc.detach(), expected)
    rows = trainer.sae.W_dec.norm(dim=1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


@EITHER
def test_clipping_bounds_the_norm_of_the_projected_gradient(compiled):
    trainer = _trainer(compiled, warmup=0.0, grad_clip=0.5)
    sae = trainer.sae
    _set_gradients(trainer, 1.0)
    across = 1 - sae.W_dec.detach()[:, 0].square()  # ‖g − (g·w) w‖² of a row
    others = sum(p.numel() for name, p in sae.named_parameters() if name != "W_dec")
    norm = float(across.sum() + others) ** 0.5
    trainer.optimizer.step()
    moment = trainer.optimizer.state[trainer.leaves["b_dec"]]["exp_avg"]
    torch.testing.assert_close(moment, torch.full_like(moment, 0.1 * 0.5 / norm))


def _run(trainer, steps, silent=4):
    """Steps on sparse rows, with latents that never fire and a resampling in the middle."""
    x, order = sparse_rows(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        getattr(trainer.sae, trainer.sae.bias_names()[0])[:silent] = -1e3
    for step in range(steps):
        trainer.step_(x[torch.randint(len(x), (64,), generator=order)])
        if step == steps // 2:
            trainer.resample_(x[:256])
    return trainer


def _state(trainer):
    tensors = {name: p.detach() for name, p in trainer.sae.named_parameters()}
    for name, leaf in trainer.leaves.items():
        tensors |= {f"{name}.{k}": v for k, v in trainer.optimizer.state[leaf].items()}
    return tensors


@needs_compiler
@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("l1_mode", ["unit_norm", "norm_weighted"])
def test_c_does_what_torch_does(l1_mode, clip):
    kinds = ({"compiled": False}, {"compiled": True})
    first, second = (
        _state(_run(_trainer(**kind, l1_mode=l1_mode, grad_clip=clip, dead_window=640), 40))
        for kind in kinds
    )
    for name, value in first.items():
        assert (value - second[name]).norm() <= 2e-5 * value.norm(), name


@needs_compiler
def test_weights_do_not_depend_on_the_number_of_threads():
    before = torch.get_num_threads()
    try:
        states = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            trainer = _trainer(True, grad_clip=0.5)
            for value in (1.0, -0.3, 0.0):
                _set_gradients(trainer, value)
                trainer.optimizer.step()
            states.append(_state(trainer))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@needs_compiler
def test_a_checkpoint_of_torch_s_adam_is_continued_in_c(tmp_path):
    path, x = tmp_path / "c.safetensors", sparse_rows()
    whole = _run(_trainer(False, loss="full"), 10)
    save_checkpoint(whole, path)
    again = _trainer(True, loss="full")
    load_checkpoint(again, path)
    for trainer in (whole, again):
        for _ in range(5):
            trainer.step_(x[:64])
    first, second = _state(whole), _state(again)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype, name
        assert (value - second[name]).norm() <= 1e-5 * value.norm(), name


def test_the_norm_of_a_gradient_from_the_squares_of_its_parts():
    assert UNSHARDED.norm({"W_dec": 9.0, "b_dec": 16.0}) == 5


@needs_compiler
def test_c_is_for_float32_on_the_cpu_where_a_sparse_step_may_come():
    config = SAEConfig(d_in=D, n_latents=N)
    assert Trainer(build_sae(config), TrainConfig()).optimizer.compiled
    assert not Trainer(build_sae(config), TrainConfig(step="dense")).optimizer.compiled
    assert not Trainer(build_sae(config).double(), TrainConfig()).optimizer.compiled
