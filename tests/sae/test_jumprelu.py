"""The JumpReLU SAE: codes, kernel gradients, steps against autograd, training, Gated as one."""

import threading
from itertools import pairwise

import pytest
import torch
from helpers.published import random_sae
from helpers.published import rows as model_rows
from helpers.streams import MemoryStream, train_one
from helpers.threaded_ranks import on_ranks

from saelib.config import ConfigError, SAEConfig, TrainConfig
from saelib.sae import build_sae, load_sae
from saelib.sae.base import How
from saelib.sae.jumprelu import LEAST_THRESHOLD, JumpReLUOptions, JumpReLUSAE, jumprelu_of
from saelib.sae.sharding import SHARED, Sharding
from saelib.sae.sparse import c as sparse_c
from saelib.sae.spec import make_spec, run_id
from saelib.sae.trainer import Trainer

D_IN, N_LATENTS, BANDWIDTH = 12, 40, 0.8
LOSSES = ("jumprelu", "jumprelu_tanh")
DEAD = torch.arange(N_LATENTS) >= 33
needs_compiler = pytest.mark.skipif(not sparse_c.available(), reason="no C compiler")
STEPS = [
    {"sparse": False},
    {"sparse": True},
    pytest.param({"sparse": True, "encoder": "screen"}, marks=needs_compiler),
]
NAMES = ["dense", "sparse", "screened"]


def jumprelu(dtype=torch.float64, seed=0, **options):
    """A JumpReLU SAE whose parameters are all away from where they start, thresholds above 0."""
    options = {"bandwidth": BANDWIDTH, "pre_act": 0.05} | options
    generator = torch.Generator().manual_seed(seed)
    sae = build_sae(SAEConfig("jumprelu", D_IN, N_LATENTS, options=options), generator).to(dtype)
    with torch.no_grad():
        for parameter in sae.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += 0.2 * noise.to(dtype)
        sae.threshold.abs_()
    return sae


def rows(n=24, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, D_IN, generator=generator, dtype=torch.float64).to(dtype)


def test_codes_by_hand():
    sae = build_sae(SAEConfig("jumprelu", d_in=2, n_latents=2)).requires_grad_(False)
    sae.W_enc.copy_(torch.eye(2))
    sae.b_dec.copy_(torch.tensor([1.0, 0.0]))
    sae.b_enc.copy_(torch.tensor([0.5, 0.0]))
    sae.threshold.copy_(torch.tensor([1.0, -2.0]))
    x = torch.tensor([[1.5, -1.0], [2.0, 3.0]])  # z = [1, -1], [1.5, 3]
    assert sae.encode(x).tolist() == [[0, 0], [1.5, 3]]


# -- gradients

# One latent of weights 1 and θ = 1, ε = 0.5: below the band, in it and silent, in it and firing,
# above it. f = 0, 0, 1.1, 2, so x̂ − x = −0.5, −0.9, 0, 0 and ∂/∂f of the mean error is half of it.
BY_HAND = torch.tensor([[0.5], [0.9], [1.1], [2.0]], dtype=torch.float64)


def one_latent():
    options = {"bandwidth": 0.5, "tanh_scale": 2.0, "pre_act": 0.4}
    sae = build_sae(SAEConfig("jumprelu", 1, 1, options=options)).double()
    with torch.no_grad():
        for name in ("W_enc", "W_dec", "threshold"):
            getattr(sae, name).fill_(1.0)
    return sae


def gradients(sae, x, lam, how, written_out):
    """By parameter, of the mean loss: the written-out step's, or autograd's."""
    if written_out:
        return sae.step(x, lam, how)[1]
    terms = sae.loss_terms(x, lam, how)
    names = dict(sae.named_parameters())
    grads = torch.autograd.grad(terms.total.mean(), list(names.values()), materialize_grads=True)
    return dict(zip(names, grads, strict=True))


@pytest.mark.parametrize("written_out", [False, True], ids=["autograd", "step"])
def test_kernel_gradients_of_the_count_by_hand(written_out):
    grads = gradients(one_latent(), BY_HAND, 0.3, How("jumprelu"), written_out)
    # −(θ/ε) Σ_band ∂/∂f − (λ/ε) · 2 rows of 4 in the band: −2 (−0.45 + 0) − 0.6 · 2/4
    assert grads["threshold"].item() == pytest.approx(0.9 - 0.3)
    # both that fire are rebuilt exactly, and the count passes z nothing
    assert grads["b_enc"].item() == pytest.approx(0.0)


def test_the_term_of_dead_latents_takes_some_rows_at_a_time(monkeypatch):
    sae, x = jumprelu(torch.float32), rows(dtype=torch.float32)
    dead = torch.arange(N_LATENTS) >= 25
    how = How("jumprelu_tanh", sparse=True, dead=dead)
    whole, grads = sae.step(x, 0.3, how)
    sizes = []
    monkeypatch.setattr("saelib.sae.jumprelu.rows_at_once", lambda n, device: sizes.append(n) or 5)
    parts, in_parts = sae.step(x, 0.3, how)
    assert sizes == [int(dead.sum())]
    torch.testing.assert_close(parts.aux, whole.aux)
    for name, gradient in grads.items():
        torch.testing.assert_close(in_parts[name], gradient)


@pytest.mark.parametrize("written_out", [False, True], ids=["autograd", "step"])
def test_kernel_gradients_of_the_tanh_by_hand(written_out):
    grads = gradients(one_latent(), BY_HAND, 0.3, How("jumprelu_tanh"), written_out)
    slope = 2 * (1 - torch.tensor([0.0, 0.0, 2.2, 4.0]).double().tanh() ** 2) * 0.3 / 4
    in_band = -0.45 + slope[1] + slope[2]
    assert grads["threshold"].item() == pytest.approx(float(-2 * in_band))
    assert grads["b_enc"].item() == pytest.approx(float(slope[2] + slope[3]))


@pytest.mark.parametrize("written_out", [False, True], ids=["autograd", "step"])
def test_the_term_of_dead_latents_by_hand(written_out):
    """0.4 · (1 − 0.5 + 1 − 0.9) over 4 rows: two rows lift z and lower θ by 0.4 / 4 each."""
    sae = one_latent()
    dead = How("jumprelu_tanh", dead=torch.tensor([True]))
    assert float(sae.loss_terms(BY_HAND, 0.0, dead).aux.detach().sum()) == pytest.approx(0.24)
    alive = How("jumprelu_tanh", dead=torch.tensor([False]))
    with_term, without = (gradients(sae, BY_HAND, 0.0, how, written_out) for how in (dead, alive))
    change = {name: (with_term[name] - without[name]).item() for name in with_term}
    assert change["threshold"] == pytest.approx(0.2)
    assert change["b_enc"] == pytest.approx(-0.2)
    assert change["W_enc"] == pytest.approx(-0.1 * (0.5 + 0.9))
    assert change["b_dec"] == pytest.approx(0.2)
    assert change["W_dec"] == pytest.approx(0.0)


def test_at_the_balance_the_threshold_is_the_root_of_lambda():
    """One direction, rows spread evenly about θ: half of those in the band fire."""
    sae = one_latent()
    x = torch.linspace(0.75, 1.25, 2001, dtype=torch.float64)[:, None]
    grads = {
        lam: gradients(sae, x, lam, How("jumprelu"), False)["threshold"].item()
        for lam in (0.8, 1.0, 1.25)
    }
    # silent rows miss 0.875 on average, the middle of [θ − ε/2, θ], not yet θ
    assert grads[0.8] > 0 > grads[1.0] > grads[1.25]


@pytest.mark.parametrize("dead", [None, DEAD], ids=["none dead", "some dead"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "bias", [-100.0, -0.5, 0.0, 5.0], ids=["none fire", "few fire", "half", "nearly all"]
)
def test_dense_gradients_equal_autograd(loss, bias, dead):
    sae = jumprelu()
    with torch.no_grad():
        sae.b_enc += bias
    x = torch.cat([rows(), rows()[:3]])  # repeated rows count twice
    how = How(loss, dead=dead)
    terms = sae.loss_terms(x, 0.3, how)
    stats, grads = sae.step(x, 0.3, how)
    for name, expected in gradients(sae, x, 0.3, how, False).items():
        torch.testing.assert_close(
            grads[name], expected, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )
    for name in ("mse", "l1", "aux"):
        torch.testing.assert_close(getattr(stats, name), getattr(terms, name).sum().detach())
    has_term = loss == "jumprelu_tanh" and dead is not None and bias < 5  # all z are above θ there
    assert (float(stats.aux) > 0) == has_term


@pytest.mark.parametrize("how", STEPS, ids=NAMES)
@pytest.mark.parametrize("dead", [None, DEAD], ids=["none dead", "some dead"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bias", [-100.0, -0.5, 5.0], ids=["none fire", "few fire", "nearly all"])
def test_float32_gradients_stay_within_1e_5(loss, bias, dead, how):
    sae = jumprelu(torch.float32)
    with torch.no_grad():
        sae.b_enc += bias
    x = rows(dtype=torch.float32)
    how = How(loss, dead=dead, **how)
    terms = sae.loss_terms(x, 0.3, how)
    stats, grads = sae.step(x, 0.3, how)
    for name, expected in gradients(sae, x, 0.3, how, False).items():
        assert (grads[name] - expected).norm() <= 1e-5 * expected.norm(), name
        assert grads[name].stride() == getattr(sae, name).stride()
    for name in ("mse", "l1", "aux"):
        torch.testing.assert_close(
            getattr(stats, name).float(), getattr(terms, name).sum().detach()
        )


@pytest.mark.parametrize("how", STEPS, ids=NAMES)
@pytest.mark.parametrize("loss", LOSSES)
def test_step_counts_what_fired_and_what_a_sparse_step_takes(loss, how):
    sae = jumprelu(torch.float32)
    x = rows(dtype=torch.float32)
    stats, _ = sae.step(x, 0.3, How(loss, **how))
    z = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    fires = sae.encode(x) > 0
    assert torch.equal(stats.fired, fires.any(0))
    assert torch.equal(stats.opened, fires.any(0))
    assert stats.l0 == fires.sum()
    assert stats.n_open == (z > sae.threshold - BANDWIDTH / 2).sum() > stats.l0


def of_shard(state, shard):
    """A shard's tensors of an SAE's."""
    by_latent = {k: v[shard] for k, v in state.items() if k not in (*SHARED, "W_enc")}
    return {**state, **by_latent, "W_enc": state["W_enc"][:, shard]}


def test_ranks_that_share_the_latents_take_the_step_of_one():
    sae = jumprelu(torch.float32)
    x = rows(dtype=torch.float32)
    barrier = threading.Barrier(2)
    partials = {}

    def job(ranks, _):
        shared = Sharding(latents=ranks, n_latents=N_LATENTS)
        shard = shared.shard

        def all_reduce(partial):
            partials[ranks.rank] = partial.clone()
            barrier.wait(20)
            total = partials[0] + partials[1]
            barrier.wait(20)
            return partial.copy_(total)

        part = JumpReLUSAE(sae.config, torch.Generator().manual_seed(0), shard)
        part.load_state_dict(of_shard(sae.state_dict(), shard))
        how = How("jumprelu_tanh", sparse=True, all_reduce=all_reduce, dead=DEAD[shard])
        return shard, part.step(x, 0.3, how)

    whole_stats, whole = sae.step(x, 0.3, How("jumprelu_tanh", sparse=True, dead=DEAD))
    results = on_ranks(2, job)
    for shard, (stats, grads) in results:
        torch.testing.assert_close(stats.mse, whole_stats.mse)
        torch.testing.assert_close(stats.aux, whole_stats.aux)
        torch.testing.assert_close(grads["threshold"], whole["threshold"][shard])
        torch.testing.assert_close(grads["W_enc"], whole["W_enc"][:, shard])
        torch.testing.assert_close(grads["b_dec"], whole["b_dec"])
    assert sum(stats.l1 for _, (stats, _) in results) == pytest.approx(float(whole_stats.l1))


# -- training


@pytest.fixture(scope="module")
def table():
    """Rows that really are sparse sums of 24 directions, of mean square 1 per dimension."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(24, D_IN, generator=generator)
    fires = torch.rand(2000, 24, generator=generator) < 0.1
    x = (torch.rand(2000, 24, generator=generator) * fires) @ directions
    return x / x.pow(2).mean().sqrt()


def trained(table, loss="jumprelu", checkpoint=None, on_log=None, start=None, **changes):
    settings = {"n_latents": N_LATENTS, "dead_window": 640, "lam": 0.5, "lr": 1e-2}
    # the table's rows are not normalised, but larger
    settings |= {"bandwidth": 0.5, "initial_threshold": 0.5, "tanh_scale": 4.0}
    settings |= {
        "tokens": 12_800,
        "batch_size": 64,
        "schedule": "linear",
        "step": "dense",
    } | changes
    spec = make_spec(loss, 2, D_IN, **settings)
    sae = build_sae(spec.sae, torch.Generator().manual_seed(0))
    if start:
        start(sae)
    stream = MemoryStream(table, 64)
    history = train_one(
        sae, stream, spec.train, checkpoint=checkpoint, checkpoint_every=20, on_log=on_log
    )
    return sae.requires_grad_(False), history


@pytest.mark.parametrize("step", ["dense", "sparse"])
@pytest.mark.parametrize("loss", LOSSES)
def test_training_rebuilds_sparse_data_and_moves_thresholds(table, loss, step):
    sae, history = trained(table, loss, step=step)
    fvu = (sae.reconstruct(table) - table).pow(2).sum() / (table - table.mean(0)).pow(2).sum()
    assert fvu < 0.2
    assert history.table[-1]["l0"] < 6
    assert (sae.threshold - 0.5).abs().max() > 0.1
    assert sae.threshold.min() >= LEAST_THRESHOLD
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(N_LATENTS))


@pytest.mark.parametrize("loss", LOSSES)
def test_l0_falls_smoothly_as_lambda_rises(table, loss):
    l0 = [trained(table, loss, lam=lam)[1].table[-1]["l0"] for lam in (0.05, 0.4, 3.2)]
    assert all(larger > 1.1 * smaller > 0 for larger, smaller in pairwise(l0))


def test_a_threshold_goes_thrice_as_far_as_the_optimiser_takes_it_and_not_below_its_least():
    sae = jumprelu(torch.float32)
    with torch.no_grad():
        sae.threshold[:2] = torch.tensor([2.0, 0.1])
        sae.step(rows(dtype=torch.float32), 0.3, How("jumprelu"))
        sae.threshold[:2] += torch.tensor([0.25, -0.05])
    untouched = sae.threshold[2:].clone()
    sae.after_step_()
    assert sae.threshold[:2].tolist() == pytest.approx([2.75, LEAST_THRESHOLD])
    assert torch.equal(sae.threshold[2:], untouched.clamp_min(LEAST_THRESHOLD))


def test_a_threshold_stays_above_0_in_training():
    """Without a penalty the error alone draws it down."""
    cfg = TrainConfig(loss="jumprelu", lam=0.0, tokens=64 * 100, batch_size=64, lr=5e-2)
    sae = build_sae(SAEConfig("jumprelu", D_IN, N_LATENTS), torch.Generator().manual_seed(0))
    trainer = Trainer(sae, cfg)
    for _ in range(100):
        trainer.step_(rows(64, torch.float32))
        assert sae.threshold.min() >= LEAST_THRESHOLD
    assert sae.threshold.min() < 0.1


@pytest.mark.parametrize("step", ["dense", "sparse"])
@pytest.mark.parametrize("loss", LOSSES)
def test_an_sae_with_thresholds_below_0_is_trained_on_as_what_it_encodes(table, loss, step, caplog):
    """As one of another library may have them; a step would let its negative codes through."""

    def start_at(threshold):
        def start(sae):
            with torch.no_grad():
                sae.threshold[:9] = threshold

        return start

    changes = {"tokens": 640, "step": step}
    below, history = trained(table, loss, start=start_at(-0.5), **changes)
    assert "threshold: 9 of 40 are below 0, which says the same as 0" in caplog.text
    same, expected = trained(table, loss, start=start_at(LEAST_THRESHOLD), **changes)
    assert history.table == expected.table
    for name, value in same.state_dict().items():
        assert torch.equal(below.state_dict()[name], value), name


def test_thresholds_of_0_or_more_start_as_they_are(table, caplog):
    options = {"initial_threshold": 0.0, "tokens": 64}
    trained(table, "jumprelu", **options)
    assert "below 0" not in caplog.text


def silence(sae, b_enc=-30.0):
    """Leave ten latents that fire, fewer than the rows have directions."""
    with torch.no_grad():
        sae.b_enc[:30] = b_enc


def silence_a_little(sae):
    silence(sae, -1.0)


def test_a_resampled_latent_gets_the_threshold_of_the_start(table):
    sae = build_sae(SAEConfig("jumprelu", D_IN, N_LATENTS, options={"initial_threshold": 0.3}))
    trainer = Trainer(sae, TrainConfig(loss="jumprelu", tokens=6400, batch_size=64))
    trainer.step_(table[:64])
    trainer.tokens_since_fired[4] = 10**6
    with torch.no_grad():
        sae.threshold.fill_(2.0)
    trainer.resample_(table[:64])
    assert sae.threshold[3:6].tolist() == pytest.approx([2.0, 0.3, 2.0])


@pytest.mark.parametrize("loss", LOSSES)
def test_resampling_brings_dead_latents_back(table, loss):
    settings = {"start": silence, "lam": 0.2, "pre_act": 0.0}
    _, without = trained(table, loss, **settings)
    _, resampled = trained(table, loss, resample_at=(0.25,), **settings)
    assert set(range(30)) <= set(resampled.events[0].revived)
    assert resampled.events[0].alive_later >= 3
    assert resampled.table[-1]["fvu"] < 0.8 * without.table[-1]["fvu"]


def test_dead_latents_are_lifted_back_without_resampling(table):
    settings = {"start": silence_a_little, "lam": 0.2}
    _, without = trained(table, "jumprelu_tanh", pre_act=0.0, **settings)
    _, with_term = trained(table, "jumprelu_tanh", **settings)
    shares = [history.table[-1]["dead_fraction"] for history in (without, with_term)]
    assert shares[1] < 0.7 * shares[0]
    assert with_term.table[-1]["fvu"] < 0.8 * without.table[-1]["fvu"]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_continued_from_a_checkpoint_is_bit_identical(table, tmp_path, loss):
    settings = {"resample_at": (0.3,), "start": silence, "tokens": 6400, "step": "auto"}
    whole, history = trained(table, loss, **settings)

    class Killed(Exception):
        pass

    def kill(row):
        if row["step"] > 60:
            raise Killed

    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Killed):
        trained(table, loss, path, kill, **settings)
    resumed, again = trained(table, loss, path, **settings)
    assert again.resumed_at == 60
    assert again.table == history.table
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


# -- configuration


def test_an_sae_of_another_library_keeps_its_identity(tmp_path):
    """It has no options; those of training that stand at their default are left out."""
    config = build_sae(SAEConfig("jumprelu", 24, 96)).config
    assert "options" not in config.to_dict()
    assert build_sae(SAEConfig("jumprelu", 24, 96)).options == JumpReLUOptions().of_width(24)
    sae = jumprelu(torch.float32).requires_grad_(False)
    sae.save(tmp_path)
    loaded = load_sae(tmp_path)
    assert loaded.options == JumpReLUOptions(bandwidth=BANDWIDTH, pre_act=0.05).of_width(D_IN)
    assert torch.equal(loaded.threshold, sae.threshold)


def test_defaults_grow_with_the_root_of_the_width():
    """As codes do, where rows have a mean square of 1 per dimension; c f stays the same."""
    wide, narrow = (build_sae(SAEConfig("jumprelu", d, 8)).options for d in (576, 144))
    assert (wide.bandwidth, wide.initial_threshold, wide.tanh_scale) == (0.5, 0.5, 4.0)
    assert (narrow.bandwidth, narrow.initial_threshold, narrow.tanh_scale) == (0.25, 0.25, 8.0)
    assert build_sae(SAEConfig("jumprelu", 576, 8)).threshold.unique().tolist() == [0.5]
    own = build_sae(SAEConfig("jumprelu", 144, 8, options={"bandwidth": 0.4})).options
    assert (own.bandwidth, own.initial_threshold) == (0.4, 0.25)


def test_bandwidth_and_loss_shape_the_name_of_a_run():
    specs = [
        make_spec(loss, 2, 24, n_latents=96, **options)
        for loss, options in (
            ("jumprelu", {}),
            ("jumprelu", {"bandwidth": None}),
            ("jumprelu", {"bandwidth": 0.25}),
            ("jumprelu_tanh", {}),
        )
    ]
    names = [run_id(spec.sae, spec.train, "store") for spec in specs]
    assert names[0] == names[1]
    assert len(set(names)) == 3
    assert specs[2].options == "bandwidth=0.25"
    assert specs[0].fixed_l0 is None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"bandwidth": 0.0}, r"JumpReLUOptions\.bandwidth = 0\.0 \(float\): expected a width > 0"),
        ({"bandwidth": -1.0}, r"bandwidth = -1\.0"),
        ({"initial_threshold": -0.1}, r"initial_threshold = -0\.1 .*: expected a threshold of 0"),
        ({"tanh_scale": 0.0}, r"tanh_scale = 0\.0 .*: expected a factor > 0"),
        ({"pre_act": -1e-6}, r"pre_act = -1e-06 .*: expected 0 \(off\) or more"),
        ({"l1_mode": "norm_weighted"}, r"l1_mode = 'norm_weighted': expected 'unit_norm' to train"),
        ({"k": 3}, r"unknown field 'k'"),
    ],
)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_bad_setting_is_refused_with_a_sentence(loss, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make_spec(loss, 2, 24, n_latents=96, **settings)


# -- a Gated SAE


def test_a_gated_sae_equals_a_jumprelu_one():
    sae = random_sae("gated")
    equal = jumprelu_of(sae)
    x = model_rows(2000)
    f = sae.encode_raw(x)
    torch.testing.assert_close(equal.encode_raw(x), f, rtol=1e-5, atol=1e-5)
    assert torch.equal(equal.encode_raw(x) > 0, f > 0)
    closed = (sae.b_mag - sae.r_mag.exp() * sae.b_gate) > 0  # the gate decides before the magnitude
    assert closed.any()
    assert (~closed).any()
    assert (equal.threshold >= 0).all()


def test_a_gated_sae_equals_a_jumprelu_one_to_1e_6_in_float64():
    sae = random_sae("gated").double()
    x = model_rows(2000).double()
    torch.testing.assert_close(
        jumprelu_of(sae).encode_raw(x), sae.encode_raw(x), rtol=1e-6, atol=1e-6
    )


def test_gated_and_jumprelu_by_hand():
    sae = random_sae("gated")
    d_in = sae.config.d_in
    for name, value in {"b_gate": -1.0, "b_mag": 0.5, "r_mag": 0.0}.items():
        getattr(sae, name).fill_(value)
    sae.W_enc.zero_()
    sae.W_enc[0, 0] = 1
    sae.b_dec.zero_()
    sae.set_normalizer_(torch.zeros(d_in), 1.0)
    equal = jumprelu_of(sae)
    assert float(equal.threshold[0]) == 1.5  # a > 1 is a + 0.5 > 1.5
    x = torch.zeros(3, d_in)
    x[:, 0] = torch.tensor([0.9, 1.1, -5.0])
    assert equal.encode(x)[:, 0].tolist() == pytest.approx([0, 1.6, 0])
