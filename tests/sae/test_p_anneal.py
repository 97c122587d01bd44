"""The p-annealed SAE: the penalty by hand, its size over training, steps against autograd, runs."""

from itertools import pairwise

import pytest
import torch
from helpers.streams import MemoryStream, train_one

from saelib.config import ConfigError, SAEConfig
from saelib.sae import build_sae, load_sae
from saelib.sae.base import How
from saelib.sae.p_anneal import SMOOTHING, PAnnealOptions, PAnnealSAE, smoothed_power
from saelib.sae.sparse import c as sparse_c
from saelib.sae.spec import make_spec, run_id

D_IN, N_LATENTS = 12, 40
PROGRESS = [0.0, 0.5, 0.99]
needs_compiler = pytest.mark.skipif(not sparse_c.available(), reason="no C compiler")
STEPS = [
    {"sparse": False},
    {"sparse": True},
    pytest.param({"sparse": True, "encoder": "screen"}, marks=needs_compiler),
]
NAMES = ["dense", "sparse", "screened"]


def annealed(dtype=torch.float64, arch="p_anneal", **options):
    """An SAE whose parameters are all away from where they start."""
    generator = torch.Generator().manual_seed(0)
    sae = build_sae(SAEConfig(arch, D_IN, N_LATENTS, options=options), generator).to(dtype)
    with torch.no_grad():
        for parameter in sae.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += 0.2 * noise.to(dtype)
    return sae


def rows(n=24, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, D_IN, generator=generator, dtype=torch.float64).to(dtype)


def test_p_is_1_until_the_start_and_falls_linearly_from_there():
    sae = annealed(p_end=0.2, anneal_start=0.5)
    assert [sae.exponent(share) for share in (0.0, 0.5)] == [1.0, 1.0]
    assert sae.exponent(0.75) == pytest.approx(0.6)
    assert sae.exponent(1.0) == pytest.approx(0.2)


def test_the_power_by_hand():
    f = torch.tensor([0.0, 0.15, 0.99], dtype=torch.float64)
    # (0.01)^½ = 0.1, (0.16)^½ = 0.4, 1^½ = 1
    assert smoothed_power(f, 0.5).tolist() == pytest.approx([0.0, 0.3, 0.9])
    assert smoothed_power(f, 1.0).tolist() == pytest.approx(f.tolist())


def test_loss_and_gradient_by_hand():
    """Codes 0.15 and 0.99 of two rows: r = 1.14 / 1.2 = 0.95 at p = ½."""
    sae = build_sae(SAEConfig("p_anneal", 1, 1, options={"p_end": 0.5})).double()
    with torch.no_grad():
        sae.W_enc.fill_(1.0)
        sae.W_dec.fill_(1.0)
    x = torch.tensor([[0.15], [0.99]], dtype=torch.float64)
    how = How("p_anneal", progress=1.0)
    terms = sae.loss_terms(x, 2.0, how)
    assert terms.l1.tolist() == pytest.approx([2 * 0.95 * 0.3, 2 * 0.95 * 0.9])
    _, grads = sae.step(x, 2.0, how)
    # λ r p (f + δ)^(−½) over two rows: 2 · 0.95 · ½ · (1 / 0.4 + 1) / 2
    assert grads["b_enc"].item() == pytest.approx(0.95 * 3.5 / 2)


@pytest.mark.parametrize("progress", PROGRESS)
def test_the_penalty_s_size_is_that_of_l1_at_every_p(progress):
    sae, x = annealed(), rows()
    terms = sae.loss_terms(x, 0.3, How("p_anneal", progress=progress))
    assert float(terms.l1.detach().sum()) == pytest.approx(
        0.3 * float(sae.encode(x).detach().sum())
    )


def test_at_p_1_it_is_the_plain_sae_s_step():
    sae, x = annealed(), rows()
    plain = build_sae(SAEConfig("sae", D_IN, N_LATENTS)).double()
    plain.load_state_dict(sae.state_dict())
    expected_stats, expected = plain.step(x, 0.3, How("plain"))
    stats, grads = sae.step(x, 0.3, How("p_anneal", progress=0.1))
    for name, gradient in expected.items():
        torch.testing.assert_close(grads[name], gradient)
    torch.testing.assert_close(stats.l1, expected_stats.l1)


def test_small_codes_are_pressed_harder_as_p_falls():
    """The slope of the penalty at a code of 0.05, over that at 2."""
    f = torch.tensor([0.05, 2.0], dtype=torch.float64, requires_grad=True)
    ratios = []
    for p in (1.0, 0.6, 0.2):
        (slope,) = torch.autograd.grad(smoothed_power(f, p).sum(), f)
        ratios.append(float(slope[0] / slope[1]))
    assert ratios[0] == pytest.approx(1.0)
    assert ratios[0] < ratios[1] < ratios[2]
    bound = 0.2 * SMOOTHING**-0.8
    zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (steepest,) = torch.autograd.grad(smoothed_power(zero, 0.2).sum(), zero)
    assert float(steepest) == pytest.approx(bound)


@pytest.mark.parametrize("progress", PROGRESS)
@pytest.mark.parametrize(
    "bias", [-100.0, -0.5, 0.0, 5.0], ids=["none fire", "few fire", "half", "nearly all"]
)
def test_dense_gradients_equal_autograd(bias, progress):
    sae = annealed()
    with torch.no_grad():
        sae.b_enc += bias
    x = torch.cat([rows(), rows()[:3]])  # repeated rows count twice
    how = How("p_anneal", progress=progress)
    terms = sae.loss_terms(x, 0.3, how)
    terms.total.mean().backward()
    stats, grads = sae.step(x, 0.3, how)
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-9, atol=1e-12)
    for name in ("mse", "l1", "aux"):
        torch.testing.assert_close(getattr(stats, name), getattr(terms, name).sum().detach())


@pytest.mark.parametrize("how", STEPS, ids=NAMES)
@pytest.mark.parametrize("progress", PROGRESS)
@pytest.mark.parametrize("bias", [-100.0, -0.5, 5.0], ids=["none fire", "few fire", "nearly all"])
def test_float32_gradients_stay_within_1e_5(bias, progress, how):
    sae = annealed(torch.float32)
    with torch.no_grad():
        sae.b_enc += bias
    x = rows(dtype=torch.float32)
    how = How("p_anneal", progress=progress, **how)
    terms = sae.loss_terms(x, 0.3, how)
    terms.total.mean().backward()
    stats, grads = sae.step(x, 0.3, how)
    for name, parameter in sae.named_parameters():
        assert (grads[name] - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name
        assert grads[name].stride() == parameter.stride()
    for name in ("mse", "l1"):
        torch.testing.assert_close(
            getattr(stats, name).float(), getattr(terms, name).sum().detach()
        )
    fires = sae.encode(x) > 0
    assert torch.equal(stats.fired, fires.any(0))
    assert stats.l0 == stats.n_open == fires.sum()


@pytest.fixture(scope="module")
def table():
    """Rows that really are sparse sums of 24 directions, of mean square 1 per dimension."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(24, D_IN, generator=generator)
    fires = torch.rand(2000, 24, generator=generator) < 0.1
    x = (torch.rand(2000, 24, generator=generator) * fires) @ directions
    return x / x.pow(2).mean().sqrt()


def trained(table, arm="p_anneal", checkpoint=None, on_log=None, **changes):
    settings = {"n_latents": N_LATENTS, "dead_window": 640, "lam": 0.3, "lr": 1e-2}
    settings |= {
        "tokens": 12_800,
        "batch_size": 64,
        "schedule": "linear",
        "step": "dense",
    } | changes
    spec = make_spec(arm, 2, D_IN, **settings)
    sae = build_sae(spec.sae, torch.Generator().manual_seed(0))
    stream = MemoryStream(table, 64)
    history = train_one(
        sae, stream, spec.train, checkpoint=checkpoint, checkpoint_every=20, on_log=on_log
    )
    return sae.requires_grad_(False), history


@pytest.mark.parametrize("step", ["dense", "sparse"])
def test_training_ends_sparser_than_with_l1_at_the_same_lambda(table, step):
    sae, history = trained(table, step=step)
    _, plain = trained(table, "plain", step=step)
    fvu = (sae.reconstruct(table) - table).pow(2).sum() / (table - table.mean(0)).pow(2).sum()
    assert fvu < 0.2
    assert history.table[-1]["l0"] < plain.table[-1]["l0"]


def test_l0_falls_as_lambda_rises(table):
    l0 = [trained(table, lam=lam)[1].table[-1]["l0"] for lam in (0.05, 0.4, 3.2)]
    assert all(larger > 1.1 * smaller > 0 for larger, smaller in pairwise(l0))


def test_a_run_continued_from_a_checkpoint_is_bit_identical(table, tmp_path):
    settings = {"resample_at": (0.3,), "tokens": 6400, "lam": 1.0, "step": "auto"}
    whole, history = trained(table, **settings)

    class Killed(Exception):
        pass

    def kill(row):
        if row["step"] > 60:
            raise Killed

    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Killed):
        trained(table, checkpoint=path, on_log=kill, **settings)
    resumed, again = trained(table, checkpoint=path, **settings)
    assert again.resumed_at == 60
    assert again.table == history.table
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_the_options_travel_with_the_sae_and_shape_its_name(tmp_path):
    sae = annealed(torch.float32, p_end=0.5).requires_grad_(False)
    sae.save(tmp_path)
    loaded = load_sae(tmp_path)
    assert isinstance(loaded, PAnnealSAE)
    assert loaded.options == PAnnealOptions(p_end=0.5)
    specs = [make_spec("p_anneal", 2, 24, n_latents=96, **s) for s in ({}, {"p_end": 0.5})]
    names = {run_id(spec.sae, spec.train, "store") for spec in specs}
    assert len(names) == 2
    assert specs[0].fixed_l0 is None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"p_end": 0.0},
            r"PAnnealOptions\.p_end = 0\.0 \(float\): expected an exponent in \(0, 1\]",
        ),
        ({"p_end": 1.5}, r"p_end = 1\.5 .*: expected an exponent in \(0, 1\]"),
        ({"anneal_start": 1.0}, r"anneal_start = 1\.0 .*: expected a share in \[0, 1\)"),
        ({"anneal_start": -0.1}, r"anneal_start = -0\.1 .*: expected a share in \[0, 1\)"),
        ({"l1_mode": "norm_weighted"}, r"l1_mode = 'norm_weighted': expected 'unit_norm' to train"),
        ({"bandwidth": 1.0}, r"unknown field 'bandwidth'"),
    ],
)
def test_a_bad_setting_is_refused_with_a_sentence(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make_spec("p_anneal", 2, 24, n_latents=96, **settings)
