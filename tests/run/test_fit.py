"""An SAE on a tensor of one's own: the L0 asked for, on rows without sinks, in model units."""

import math

import numpy as np
import pytest
import torch

import saelib
from saelib.activations.moments import tensor_moments
from saelib.activations.rows import TensorRows
from saelib.config import ConfigError
from saelib.run.fit import fit, measured, sinks
from saelib.sae import load_sae

D, N_ROWS, L0 = 16, 6000, 4
RECIPE = {"tokens": 20_480, "n_latents": 48}
MASKED = np.ma.masked_less(np.random.default_rng(0).normal(size=(300, 2)), -2)


def sums_of_directions(n=N_ROWS):
    """Rows of few of 48 directions about a mean, in units of their own."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(48, D, generator=generator)
    is_active = torch.rand(n, 48, generator=generator) < 0.06
    codes = torch.rand(n, 48, generator=generator) * is_active
    return 20 * (codes @ directions + 3)


@pytest.fixture(scope="module")
def rows():
    return sums_of_directions()


PENALISED = ["gated", "sae", "two_term", "p_anneal", "jumprelu", "jumprelu_tanh"]


@pytest.mark.parametrize("arch", [*PENALISED, "topk", "batchtopk", "matryoshka"])
def test_the_sae_has_the_l0_that_was_asked_for_and_rebuilds_rows_in_their_own_units(arch, rows):
    longer = 4 if arch == "jumprelu" else 1  # steps move θ by a bounded way
    recipe = RECIPE | {"tokens": longer * RECIPE["tokens"]}
    fitted = saelib.fit(rows, l0=L0, arch=arch, **recipe)
    assert L0 / 1.1 <= fitted.l0 <= 1.1 * L0
    assert fitted.fvu < 0.8
    l0, fvu = measured(fitted.sae, rows, np.arange(N_ROWS))
    assert l0 == pytest.approx(fitted.l0, rel=0.1)
    assert fvu == pytest.approx(fitted.fvu, rel=0.2)
    assert (fitted.lam > 0) == (arch in PENALISED)
    assert fitted.history["tokens"].iloc[-1] == recipe["tokens"]


def test_the_same_call_gives_the_same_weights_and_another_seed_others(rows):
    saes = [fit(rows, L0, "topk", seed=seed, **RECIPE).sae for seed in (0, 0, 1)]
    assert torch.equal(saes[0].W_dec, saes[1].W_dec)
    assert not torch.equal(saes[0].W_dec, saes[2].W_dec)


def test_sinks_are_left_out_and_told(rows, caplog):
    with_sinks = rows.clone()
    with_sinks[::600] *= 100
    fitted = fit(with_sinks, L0, "topk", **RECIPE)
    assert fitted.n_sinks == 10
    assert "10 of 6,000 rows are sinks (over 5 median norms) and left out" in caplog.text
    assert fitted.fvu == pytest.approx(fit(rows, L0, "topk", **RECIPE).fvu, rel=0.1)
    kept = fit(with_sinks, L0, "topk", sink_factor=0, **RECIPE)
    assert kept.n_sinks == 0


def test_rows_of_over_the_factor_times_the_median_norm_are_sinks():
    x = torch.tensor([[1.0, 0], [0, 2.0], [0, 10.0], [0, 10.1], [2.0, 0]])
    assert sinks(x, 5.0).tolist() == [False, False, False, True, False]
    assert not sinks(x, 0).any()


def test_l0_and_fvu_are_those_of_their_definitions(rows):
    sae = fit(rows, L0, "topk", **RECIPE).sae
    x = rows[:100]
    codes = sae.encode_raw(x)
    x_hat = sae.reconstruct(x)
    error = (x_hat - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    l0 = float((codes > 0).sum() / 100)
    assert measured(sae, rows, np.arange(100)) == pytest.approx((l0, float(error)), 1e-5)
    assert math.isnan(measured(sae, rows, np.arange(1))[1])  # one row has no variance


@pytest.mark.parametrize("mode", ["center_scale", "center", "scale", "none"])
def test_the_normaliser_does_what_its_mode_says(mode, rows):
    mean, scale = tensor_moments(rows, np.arange(N_ROWS), batch=1000).normalizer(mode)
    normalised = scale * (rows - mean)
    assert (normalised.mean(0).abs().max() < 1e-4) == ("center" in mode)
    assert (normalised.pow(2).sum(1).mean() == pytest.approx(D, rel=1e-4)) == ("scale" in mode)


def test_an_array_is_taken_and_the_folder_is_read_back(rows, tmp_path):
    fitted = fit(rows.numpy().astype(np.float16), L0, "topk", site=3, **RECIPE)
    fitted.save(tmp_path / "sae")
    loaded = load_sae(tmp_path / "sae")
    assert loaded.config.site == 3
    assert torch.equal(loaded.reconstruct(rows[:5]), fitted.sae.reconstruct(rows[:5]))


def test_an_l0_out_of_reach_is_told_and_the_nearest_sae_is_given(rows, caplog):
    fitted = fit(rows, 47.5, "sae", **RECIPE)
    assert "l0 = 47.5 was not reached: the nearest SAE has" in caplog.text
    assert 0 < fitted.l0 < 47.5


@pytest.fixture
def trained_k(monkeypatch):
    """The k that are trained, none for long; each SAE's L0 is three quarters of it."""
    tried = []

    def l0_and_fvu(sae, x, index):
        tried.append(sae.options.k)
        return 0.75 * sae.options.k, 0.5

    monkeypatch.setattr("saelib.run.fit.measured", l0_and_fvu)
    return tried


@pytest.mark.parametrize("arch", ["batchtopk", "matryoshka"])
def test_k_is_searched_where_held_out_rows_have_another_l0(arch, rows, trained_k, caplog):
    fitted = fit(rows, 12, arch, **RECIPE | {"tokens": 512})
    assert list(dict.fromkeys(trained_k)) == [12, 17]  # 12 · 12 / 9 · 1.02, rounded up
    assert fitted.l0 == 12.75
    assert fitted.sae.options.k == 17
    assert "not reached" not in caplog.text


def test_the_search_for_k_ends_with_its_budget_or_between_two_whole_numbers(rows, monkeypatch):
    tried = []

    def l0_and_fvu(sae, x, index):
        tried.append(sae.options.k)
        return (1.0 if sae.options.k < 21 else 45.0), 0.5

    monkeypatch.setattr("saelib.run.fit.measured", l0_and_fvu)
    fitted = fit(rows, 12, "batchtopk", **RECIPE | {"tokens": 512})
    assert len(set(tried)) == 6
    assert fitted.l0 == 45.0  # nearer in ratio


def test_an_exact_k_is_not_searched(rows, trained_k, caplog):
    fit(rows, 12, "topk", **RECIPE | {"tokens": 512})
    assert set(trained_k) == {12}
    assert "l0 = 12 was not reached: the nearest SAE has 9" in caplog.text


def test_an_l0_between_two_k_is_asked_of_a_batchtopk_sae(rows):
    fitted = fit(rows, 4.4, "batchtopk", **RECIPE)
    assert 4 <= fitted.l0 <= 4.84


@pytest.mark.parametrize(
    ("x", "settings", "sentence"),
    [
        (torch.zeros(300), {}, r"x: shape \(300,\), torch.float32: expected floating-point rows"),
        (torch.zeros(300, 2, dtype=torch.long), {}, "torch.int64: expected floating-point rows"),
        (torch.randn(255, 2), {}, "x: 255 rows: expected at least 256"),
        (torch.full((300, 2), torch.inf), {}, "x: 300 rows hold values that are not finite"),
        (torch.ones(300, 2), {}, "x: all rows are equal"),
        (torch.randn(300, 2), {"l0": 0}, "l0 = 0: expected above 0, at most n_latents = 8"),
        (torch.randn(300, 2), {"l0": 9}, "l0 = 9: expected above 0, at most n_latents = 8"),
        (torch.randn(300, 2), {"l0": 2.5, "arch": "topk"}, "l0 = 2.5: expected a whole number"),
        (torch.randn(300, 2), {"arch": "gatd"}, "arch = 'gatd': expected one of 'sae', 'gated'"),
        (torch.randn(300, 2), {"l0": 2, "lam": 1.0}, "lam = 1.0: l0 decides it"),
        (torch.randn(300, 2), {"l0": 2, "widht": 1}, "unknown field 'widht'"),
        (torch.randn(300, 2), {"l0": 10**400}, "l0 = 1000.*: expected a number"),
        (torch.randn(300, 2), {"l0": 2, "d_in": 3}, "d_in = 3: x decides it"),
        (torch.randn(300, 2), {"seed": -1}, "seed = -1: expected 0 to 9223372036854775807"),
        (torch.randn(300, 2), {"seed": 2**70}, "seed = 1180591620717411303424: expected 0 to"),
        (torch.randn(300, 2), {"sink_factor": math.nan}, "sink_factor = nan: expected a number"),
        (torch.randn(300, 2), {"sink_factor": -1}, r"sink_factor = -1: expected 0 \(keeps all row"),
        (torch.randn(300, 2), {"sink_factor": 0.5}, "sink_factor = 0.5: expected 0 .* at least 1"),
        (np.array([["a"]]), {}, r"x: ndarray: expected floating-point rows \[n, d_in\]"),
        (torch.randn(300, 2).to_sparse(), {}, "x: torch.sparse_coo on cpu: expected a dense"),
        (torch.empty(300, 2, device="meta"), {}, "x: torch.strided on meta: expected a dense"),
        (MASKED, {}, "x: an array with masked values: expected one without"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(x, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        fit(x, **settings)


def test_a_device_that_is_none_is_refused(rows):
    with pytest.raises(ValueError, match="device 'zz': expected 'auto', 'cpu', 'cuda'"):
        fit(rows, L0, device="zz")


def test_batches_of_a_tensor_go_through_every_row_once_an_epoch():
    x = torch.arange(10.0)[:, None]
    stream = TensorRows(x, np.arange(10), 4, seed=0)
    batches = [next(stream) for _ in range(5)]
    seen = torch.cat([batch for batch, _ in batches]).flatten()
    assert sorted(seen.tolist()) == sorted(2 * list(range(10)))
    assert all(torch.equal(batch[:, 0], torch.from_numpy(rows).float()) for batch, rows in batches)
    stream.seek(8)
    assert np.array_equal(next(stream)[1], batches[2][1])
    drawn = stream.sample(3, torch.Generator().manual_seed(1), 0)
    assert drawn.shape == (3, 1)
    with pytest.raises(ValueError, match="no rows"):
        TensorRows(x, np.arange(0), 4, 0)


def test_the_package_gives_its_entrances_and_nothing_else():
    assert saelib.fit is fit
    with pytest.raises(AttributeError, match="module 'saelib' has no attribute 'fitt'"):
        saelib.fitt  # noqa: B018
