"""Each metric against hand arithmetic and a naive computation; each test fails for a slip."""

import math

import numpy as np
import pytest
import torch

from saelib.measure.columns import reconstruction_metrics as computed
from saelib.measure.reconstruction import CodeSums, Reconstruction, RowSums, fvu


def rows(n=300, d=8, n_latents=12, offset=50.0, seed=0):
    """Rows with a mean far from 0, an imperfect reconstruction, and codes with latent 0 silent."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g) + offset
    x_hat = offset + 0.7 * (x - offset) + 0.1 * torch.randn(n, d, generator=g)
    f = torch.relu(torch.randn(n, n_latents, generator=g))
    f[:, 0] = 0
    return x, x_hat, f


def reconstruct(x, x_hat, f, group=None, n_groups=1, gate=None, batch=37, shift=None, scale=1.0):
    sums = RowSums(x[:10].mean(0) if shift is None else shift, n_groups)
    out = Reconstruction(sums, f.shape[1], scale)
    for i in range(0, len(x), batch):
        part = slice(i, i + batch)
        g = None if group is None else group[part]
        sums.update(x[part], g)
        out.update(
            x[part], x_hat[part], CodeSums.of(f[part], None if gate is None else gate[part]), g
        )
    return out


def test_fvu_by_hand():
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0]])  # mean (1, 0), Σ‖x − μ‖² = 1 + 1
    x_hat = torch.tensor([[0.0, 0.5], [2.0, 0.5]])  # Σ‖x − x̂‖² = 0.25 + 0.25
    assert fvu(x, x_hat) == pytest.approx(0.25)
    assert reconstruct(x, x_hat, torch.ones(2, 1)).fvu() == pytest.approx(0.25)


@pytest.mark.parametrize("offset", [0.0, 5.0, 1e4])
def test_the_mean_predictor_has_fvu_one_whatever_the_mean(offset):
    x, _, f = rows(offset=offset)
    x_hat = x.double().mean(0).expand_as(x)
    assert fvu(x, x_hat) == pytest.approx(1, abs=1e-6)
    assert reconstruct(x, x_hat, f).fvu() == pytest.approx(1, abs=1e-6)


def test_fvu_about_zero_would_be_another_number():
    x, x_hat, f = rows()
    about_zero = ((x - x_hat).square().sum() / x.square().sum()).item()
    assert reconstruct(x, x_hat, f).fvu() > 100 * about_zero


def test_every_sum_agrees_with_a_naive_computation():
    x, x_hat, f = rows()
    got = computed(reconstruct(x, x_hat, f, scale=0.25))
    a, b, c = (t.double().numpy() for t in (x, x_hat, f))
    mu = a.mean(0)
    naive = {
        "fvu": ((a - b) ** 2).sum() / ((a - mu) ** 2).sum(),
        "mse": (((0.25 * a - 0.25 * b) ** 2).sum(1)).mean(),
        "mse_raw": ((a - b) ** 2).sum(1).mean(),
        "l0": (c > 0).sum(1).mean(),
        "l1": np.abs(c).sum(1).mean(),
        "shrinkage": ((b - mu) ** 2).sum() / ((a - mu) * (b - mu)).sum(),
        "shrinkage_raw": (b**2).sum() / (a * b).sum(),
        "dead_fraction": 1 / 12,
    }
    assert {k: got[k] for k in naive} == pytest.approx(naive, rel=1e-7)
    assert set(got) >= {*naive, "gate_dead"}


def test_shrinkage_by_hand_is_the_factor_a_reconstruction_is_too_short_by():
    x, _, f = rows(offset=3.0)
    mean = x.double().mean(0)
    out = computed(reconstruct(x, mean + 0.6 * (x - mean), f))
    assert out["shrinkage"] == pytest.approx(0.6)
    assert reconstruct(x, 0.6 * x.double(), f).shrinkage_raw() == pytest.approx(0.6)
    assert out["shrinkage_raw"] > 0.9  # the mean hides it


@pytest.mark.parametrize("where", [0.0, 30.0, -300.0])
def test_results_do_not_depend_on_shift_or_batches(where):
    x, x_hat, f = rows()
    want = computed(reconstruct(x, x_hat, f))
    got = computed(reconstruct(x, x_hat, f, shift=torch.full((8,), where), batch=300))
    assert got == pytest.approx(want, rel=1e-7, nan_ok=True)


def test_one_pass_survives_a_mean_far_larger_than_the_spread():
    x, _, f = (t.double() for t in rows(offset=0.0))
    x_hat = 0.5 * x
    want = fvu(x, x_hat)
    far = torch.full((8,), 1e6, dtype=torch.float64)
    assert reconstruct(x + far, x_hat + far, f).fvu() == pytest.approx(want, rel=1e-6)


def test_groups_split_the_sums_and_add_up():
    x, x_hat, f = rows()
    group = torch.arange(300) % 3
    grouped, whole = reconstruct(x, x_hat, f, group, 3), reconstruct(x, x_hat, f)
    mu = x.double().mean(0)
    for i in range(3):
        mine = group == i
        assert grouped.sse[i].item() == pytest.approx(
            (x - x_hat)[mine].double().square().sum().item()
        )
        assert grouped.x.scatter()[i].item() == pytest.approx(
            (x[mine].double() - mu).square().sum().item()
        )
        assert grouped.active[i] == (f[mine] > 0).sum()
    assert grouped.x.count.tolist() == [100, 100, 100]
    assert computed(grouped) == pytest.approx(computed(whole), nan_ok=True)


def test_row_sums_of_two_sets_add_to_those_of_both():
    x, _, _ = rows()
    parts = [RowSums(x[0]), RowSums(x[0], 2)]
    parts[0].update(x[:100])
    parts[1].update(x[100:], torch.arange(200) % 2)
    both = parts[0] + parts[1]
    assert both.n == 300
    assert both.mean.numpy() == pytest.approx(x.double().mean(0).numpy())
    assert both.scatter().item() == pytest.approx(
        (x.double() - x.double().mean(0)).square().sum().item()
    )
    with pytest.raises(ValueError, match="different shifts"):
        parts[0] + RowSums(x[1])


def test_a_latent_is_dead_and_a_gate_closed_only_if_so_on_every_row():
    x, x_hat, _ = rows(n=4)
    f = torch.tensor([[0.0, 1, 0], [0, 0, 0], [0, 2, 0], [0, 0, 0]])
    gate = torch.tensor(
        [[0, 1, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    ).bool()  # latent 2 opens without magnitude
    sums = reconstruct(x, x_hat, f, gate=gate, batch=2)
    assert sums.density.tolist() == [0, 0.5, 0]
    assert sums.dead_fraction() == pytest.approx(2 / 3)
    assert sums.gate_dead() == pytest.approx(1 / 3)
    assert math.isnan(reconstruct(x, x_hat, f).gate_dead())


def test_what_is_undefined_is_nan_and_not_a_number():
    x, x_hat, f = rows()
    assert math.isnan(fvu(torch.ones(5, 3), torch.zeros(5, 3)))
    silent = computed(reconstruct(x, x.double().mean(0).expand_as(x), 0 * f))
    assert math.isnan(silent["shrinkage"])
    with pytest.raises(ValueError, match="no rows"):
        computed(Reconstruction(RowSums(x[0]), 12))
    with pytest.raises(ValueError, match="shape"):
        fvu(x, x_hat[:1])
