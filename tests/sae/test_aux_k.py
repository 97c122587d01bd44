"""AuxK: by hand, against autograd wherever there is such an option, off by default, at work."""

import pytest
import torch
from helpers.streams import MemoryStream, train_one

from saelib.config import ConfigError, SAEConfig
from saelib.sae import ARCHITECTURES, build_sae
from saelib.sae.aux_k import AUX_COEFFICIENT, AuxKOptions, aux_k_loss
from saelib.sae.base import How
from saelib.sae.spec import ARMS, make_spec, run_id

D_IN, N_LATENTS, AUX_K = 12, 40, 7
DEAD = torch.arange(N_LATENTS) >= 25
SOME_DEAD = {
    "none": None,
    "some": DEAD,
    "few": DEAD & (torch.arange(N_LATENTS) > 36),
    "all": ~DEAD | DEAD,
}
# Arms whose architecture has the option.
CASES = [
    (arm, arch) for arm, (arch, _) in ARMS.items() if hasattr(ARCHITECTURES[arch].Options, "aux_k")
]
OFF = [(arm, arch) for arm, arch in CASES if ARCHITECTURES[arch].Options().aux_k == 0]


def sae_of(arch, dtype=torch.float64):
    """An SAE whose parameters are all away from where they start."""
    generator = torch.Generator().manual_seed(0)
    knob = ARCHITECTURES[arch].KNOB
    options = {"aux_k": AUX_K} if knob == "lam" else {"aux_k": AUX_K, knob: 5}
    if arch == "jumprelu":
        options["initial_threshold"] = 0.5  # or some would be below 0, as none is in training
    config = SAEConfig(arch, D_IN, N_LATENTS, options=options)
    sae = build_sae(config, generator).to(dtype)
    with torch.no_grad():
        for parameter in sae.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += 0.2 * noise.to(dtype)
    return sae


def rows(n=24, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, D_IN, generator=generator, dtype=torch.float64).to(dtype)


def eye_sae(**options):
    sae = build_sae(SAEConfig("sae", 2, 2, options=options))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.W_dec.copy_(torch.eye(2))
    return sae


def test_by_hand():
    sae = eye_sae(aux_k=1)
    with torch.no_grad():
        sae.b_enc.copy_(torch.tensor([0.0, -5.0]))
    x = torch.tensor([[3.0, 2.0]])
    how = How("plain", dead=torch.tensor([False, True]))
    # f = (3, 0) misses (0, 2); the dead latent's pre-activation is 2 − 5 = −3: 25
    assert float(aux_k_loss(sae, x, how).detach()) == pytest.approx(25 / 32)
    # above 0 alone it rebuilds nothing of (0, 2)
    assert float(aux_k_loss(sae, x, how, positive=True).detach()) == pytest.approx(4 / 32)
    (g_bias,) = torch.autograd.grad(aux_k_loss(sae, x, how).sum(), sae.b_enc)
    # 2/32 (ê − e) · W_dec = 2/32 (−3 − 2): the step raises the bias until the latent fires
    assert g_bias.tolist() == pytest.approx([0.0, -10 / 32])
    assert AUX_COEFFICIENT == 1 / 32


def test_only_the_largest_take_part():
    sae = build_sae(SAEConfig("sae", 2, 3, options={"aux_k": 1}))
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        sae.W_dec.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]))
        sae.b_enc.copy_(torch.tensor([-9.0, -4.0, 0.0]))
    x = torch.tensor([[3.0, 2.0]])
    how = How("plain", dead=torch.tensor([True, True, False]))
    # f = (0, 0, 2) misses (3, 0); of −6 and −1 the latter is chosen: ê = (−1, 0)
    assert float(aux_k_loss(sae, x, how).detach()) == pytest.approx(16 / 32)


@pytest.mark.parametrize("dead", SOME_DEAD.values(), ids=SOME_DEAD)
@pytest.mark.parametrize(("arm", "arch"), CASES)
def test_dense_gradients_equal_autograd(arm, arch, dead):
    sae, x = sae_of(arch), rows()
    how = How(arm, dead=dead)
    terms = sae.loss_terms(x, 0.3, how)
    terms.total.mean().backward()
    stats, grads = sae.step(x, 0.3, how)
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(stats.aux, terms.aux.sum().detach())
    without, _ = sae.step(x, 0.3, How(arm))
    assert (float(stats.aux) > float(without.aux)) == (dead is not None)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("dead", SOME_DEAD.values(), ids=SOME_DEAD)
@pytest.mark.parametrize(("arm", "arch"), CASES)
def test_float32_gradients_stay_within_1e_5(arm, arch, dead, sparse):
    sae, x = sae_of(arch, torch.float32), rows(dtype=torch.float32)
    terms = sae.loss_terms(x, 0.3, How(arm, dead=dead))
    terms.total.mean().backward()
    stats, grads = sae.step(x, 0.3, How(arm, sparse=sparse, dead=dead))
    for name, parameter in sae.named_parameters():
        assert (grads[name] - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name
        assert grads[name].stride() == parameter.stride()
    torch.testing.assert_close(stats.aux.float(), terms.aux.sum().detach())


@pytest.mark.parametrize("arm", ["plain", "topk"])
def test_entries_found_in_parts_are_those_of_all(monkeypatch, arm):
    """Of whole rows: what takes part never needs all rows at once."""
    sae, x = sae_of(dict(CASES)[arm], torch.float32), rows(dtype=torch.float32)
    how = How(arm, sparse=True, dead=DEAD)
    _, whole = sae.step(x, 0.3, how)
    sizes = []
    monkeypatch.setattr("saelib.sae.aux_k.rows_at_once", lambda n, device: sizes.append(n) or 3)
    _, in_parts = sae.step(x, 0.3, how)
    assert sizes == ([int(DEAD.sum())] if arm == "plain" else [])
    for name, gradient in whole.items():
        torch.testing.assert_close(in_parts[name], gradient)


@pytest.mark.parametrize(("arm", "arch"), CASES)
def test_it_moves_dead_latents_alone(arm, arch):
    """Through encoder and decoder; b_dec only as the encoder's centre."""
    sae = sae_of(arch)
    with_it, without = (
        sae.loss_terms(rows(), 0.3, How(arm, dead=dead)).aux.mean() for dead in (DEAD, None)
    )
    names = dict(sae.named_parameters())
    found = torch.autograd.grad(with_it - without, list(names.values()), materialize_grads=True)
    grads = dict(zip(names, found, strict=True))
    assert (grads["W_dec"][~DEAD].abs() < 1e-12).all()
    assert (grads["W_enc"][:, ~DEAD].abs() < 1e-12).all()
    assert grads["W_dec"][DEAD].abs().sum() > 0
    bias = grads[sae.bias_names()[0]]
    torch.testing.assert_close(grads["b_dec"], -sae.W_enc.detach() @ bias)


@pytest.mark.parametrize(("arm", "arch"), OFF)
def test_off_it_is_not_among_the_options_nor_in_the_run_s_name(arm, arch):
    plain, off, on = (
        make_spec(arm, 2, D_IN, n_latents=N_LATENTS, **s) for s in ({}, {"aux_k": 0}, {"aux_k": 3})
    )
    assert "aux_k" not in plain.sae.options
    assert plain == off
    assert on.sae.options["aux_k"] == 3
    names = [run_id(spec.sae, spec.train, "store") for spec in (plain, off, on)]
    assert names[0] == names[1] != names[2]
    if not plain.sae.options:
        assert "options" not in plain.sae.to_dict()


def test_below_0_it_is_refused():
    with pytest.raises(ConfigError, match=r"AuxKOptions\.aux_k = -1 \(int\): expected 0 \(off\)"):
        make_spec("plain", 2, D_IN, aux_k=-1)
    assert AuxKOptions().to_dict() == {}


@pytest.mark.parametrize("arch", ["sae", "gated"])
def test_ranks_cannot_share_latents_that_are_compared(arch):
    build_sae(SAEConfig(arch, D_IN, N_LATENTS), shard=slice(0, 20))
    with pytest.raises(ConfigError, match="aux_k = 4: AuxK compares the dead latents of all"):
        build_sae(SAEConfig(arch, D_IN, N_LATENTS, options={"aux_k": 4}), shard=slice(0, 20))


@pytest.fixture(scope="module")
def table():
    """Rows that really are sparse sums of 24 directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(24, D_IN, generator=generator)
    fires = torch.rand(2000, 24, generator=generator) < 0.1
    return 3 * (torch.rand(2000, 24, generator=generator) * fires) @ directions


@pytest.mark.parametrize("step", ["dense", "sparse"])
@pytest.mark.parametrize("arm", ["plain", "full"])
def test_it_brings_silenced_latents_back(table, arm, step):
    shares = []
    for aux_k in (0, AUX_K):
        spec = make_spec(
            arm,
            2,
            D_IN,
            aux_k=aux_k,
            n_latents=N_LATENTS,
            lam=0.3,
            dead_window=640,
            step=step,
            tokens=12_800,
            batch_size=32,
            lr=3e-3,
        )
        sae = build_sae(spec.sae, torch.Generator().manual_seed(0))
        with torch.no_grad():
            getattr(sae, sae.bias_names()[0])[:20] = -5.0
        history = train_one(sae, MemoryStream(table, 32), spec.train)
        shares.append(history.table[-1]["dead_fraction"])
    assert shares[0] >= 0.45
    assert shares[1] < 0.5 * shares[0]
