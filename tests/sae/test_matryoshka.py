"""The Matryoshka SAE: prefixes and errors by hand, gradients, and what it leaves as BatchTopK."""

import pytest
import torch
from helpers.streams import MemoryStream, train_one

from saelib.config import ConfigError, SAEConfig
from saelib.sae import build_sae, load_sae
from saelib.sae.base import How
from saelib.sae.matryoshka import MatryoshkaOptions, prefix_sizes
from saelib.sae.spec import make_spec

D_IN, N_LATENTS, K = 12, 40, 5
DEAD = torch.arange(N_LATENTS) % 3 == 0
PREFIXES = {
    "default": {},
    "one": {"prefixes": (1.0,)},
    "two": {"prefixes": (0.5, 1.0)},
    "counted": {"prefixes": (1, 2, 17, 39, 40)},
}


def matryoshka(dtype=torch.float64, arch="matryoshka", **options):
    """A Matryoshka SAE whose parameters are all away from where they start."""
    config = SAEConfig(arch, D_IN, N_LATENTS, options={"k": K, "aux_k": 7} | options)
    generator = torch.Generator().manual_seed(0)
    sae = build_sae(config, generator).to(dtype)
    with torch.no_grad():
        for parameter in sae.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += 0.2 * noise.to(dtype)
    return sae


def rows(n=24, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, D_IN, generator=generator, dtype=torch.float64).to(dtype)


def test_the_sum_of_the_prefixes_errors_by_hand():
    options = {"k": 2, "aux_k": 0, "prefixes": (1, 3)}
    sae = build_sae(SAEConfig("matryoshka", 3, 3, options=options))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(3))
        sae.W_dec.copy_(torch.eye(3))
        sae.b_dec.copy_(torch.tensor([1.0, 0.0, 0.0]))
    x = torch.tensor([[5.0, 1.0, 2.0]])
    terms = sae.loss_terms(x, 0.0, How("matryoshka"))
    # f = (4, 0, 2): the first latent alone misses (0, 1, 2), all miss (0, 1, 0)
    assert [float(term.detach()) for term in terms] == [1.0, 0.0, 5.0]
    stats, grads = sae.step(x, 0.0, How("matryoshka"))
    assert [float(stats.mse), float(stats.aux)] == [1.0, 5.0]
    # 2 f Σ errors of the prefixes that a latent is in: (0, −2, −2) for the first, (0, −1, 0) else
    assert grads["W_dec"].tolist() == [[0.0, -16.0, -16.0], [0.0, 0.0, 0.0], [0.0, -4.0, 0.0]]


def test_the_sizes_of_prefixes():
    default = MatryoshkaOptions().prefixes
    assert prefix_sizes(default, 65_536) == (2048, 6144, 14_336, 30_720, 65_536)
    assert prefix_sizes(default, 8) == (1, 2, 4, 8)  # two shares that come to one latent are one
    assert prefix_sizes((1,), 8) == (8,)  # a share
    assert prefix_sizes((1, 8), 8) == (1, 8)


@pytest.mark.parametrize("dead", [None, DEAD], ids=["none dead", "some dead"])
@pytest.mark.parametrize("options", PREFIXES.values(), ids=PREFIXES)
def test_dense_gradients_equal_autograd(options, dead):
    sae = matryoshka(**options)
    x = torch.cat([rows(), rows()[:3]])  # repeated rows count twice
    how = How("matryoshka", dead=dead)
    terms = sae.loss_terms(x, 0.0, how)
    terms.total.mean().backward()
    stats, grads = sae.step(x, 0.0, how)
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-9, atol=1e-12)
    for name in ("mse", "aux"):
        torch.testing.assert_close(getattr(stats, name), getattr(terms, name).sum().detach())


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("dead", [None, DEAD], ids=["none dead", "some dead"])
@pytest.mark.parametrize("options", PREFIXES.values(), ids=PREFIXES)
def test_float32_gradients_stay_within_1e_5(options, dead, sparse):
    sae, x = matryoshka(torch.float32, **options), rows(dtype=torch.float32)
    terms = sae.loss_terms(x, 0.0, How("matryoshka", dead=dead))
    terms.total.mean().backward()
    stats, grads = sae.step(x, 0.0, How("matryoshka", sparse=sparse, dead=dead))
    for name, parameter in sae.named_parameters():
        assert (grads[name] - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name
        assert grads[name].stride() == parameter.stride()
    for name in ("mse", "aux"):
        torch.testing.assert_close(
            getattr(stats, name).float(), getattr(terms, name).sum().detach()
        )


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_with_one_prefix_it_is_a_batchtopk_sae(sparse):
    x = rows(dtype=torch.float32)
    one = matryoshka(torch.float32, prefixes=(1.0,))
    batch = matryoshka(torch.float32, "batchtopk")
    (stats, grads), (of_batch, batch_s) = (
        sae.step(x, 0.0, How("", sparse=sparse, dead=DEAD)) for sae in (one, batch)
    )
    torch.testing.assert_close(stats.aux, of_batch.aux)
    for name in grads:
        torch.testing.assert_close(grads[name], batch_s[name])


def test_without_a_compiler_the_sparse_step_is_the_same(monkeypatch):
    from saelib.sae import sparse
    from saelib.sae.sparse import plain

    sae, x = matryoshka(torch.float32), rows(dtype=torch.float32)
    how = How("matryoshka", sparse=True, dead=DEAD)
    _, grads = sae.step(x, 0.0, how)
    monkeypatch.setattr(sparse, "operations", lambda device: plain)
    _, of_plain = sae.step(x, 0.0, how)
    for name in grads:
        torch.testing.assert_close(grads[name], of_plain[name])


@pytest.fixture(scope="module")
def table():
    """Rows that really are sparse sums of 24 directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(24, D_IN, generator=generator)
    fires = torch.rand(2000, 24, generator=generator) < 0.1
    return 3 * (torch.rand(2000, 24, generator=generator) * fires) @ directions


def prefix_fvu(sae, x, m):
    f = sae.encode(x)
    error = f[:, :m] @ sae.W_dec[:m] + sae.b_dec - x
    return float(error.pow(2).sum() / (x - x.mean(0)).pow(2).sum())


@pytest.mark.parametrize("step", ["dense", "sparse"])
def test_its_first_latents_rebuild_more_than_a_batchtopk_s(table, step):
    saes = {}
    for arm in ("matryoshka", "batchtopk"):
        settings = {"k": 4, "aux_k": 7, "n_latents": N_LATENTS, "dead_window": 2560, "step": step}
        settings |= {"tokens": 25_600, "batch_size": 64, "lr": 3e-3, "schedule": "linear"}
        spec = make_spec(arm, 2, D_IN, **settings)
        saes[arm] = build_sae(spec.sae, torch.Generator().manual_seed(0))
        train_one(saes[arm], MemoryStream(table, 64), spec.train)
        saes[arm].requires_grad_(False)
    half = 19  # 15/32 of the latents
    assert prefix_fvu(saes["matryoshka"], table, half) < 0.7 * prefix_fvu(
        saes["batchtopk"], table, half
    )
    assert prefix_fvu(saes["matryoshka"], table, N_LATENTS) < 0.35


def test_the_options_travel_with_the_sae(tmp_path):
    sae = matryoshka(torch.float32, prefixes=(0.5, 1.0)).requires_grad_(False)
    sae.threshold.fill_(0.5)
    sae.save(tmp_path)
    loaded = load_sae(tmp_path)
    assert loaded.options == sae.options
    assert loaded.groups == [slice(0, 20), slice(20, 40)]
    x = rows(dtype=torch.float32)
    assert torch.equal(loaded.encode(x), sae.encode(x))


def test_prefixes_have_a_name_in_the_table_and_shape_that_of_a_run():
    spec = make_spec("matryoshka", 2, 24, n_latents=96, prefixes=(0.25, 1.0))
    assert spec.options == "aux_k=256 k=32 prefixes=0.25,1.0"
    assert (spec.nominal_l0, spec.fixed_l0) == (32, None)


@pytest.mark.parametrize(
    ("prefixes", "sentence"),
    [
        ((), r"MatryoshkaOptions\.prefixes = \(\) \(tuple\): expected rising shares"),
        (
            (0.5, 0.5, 1.0),
            r"MatryoshkaOptions\.prefixes = \(0\.5, 0\.5, 1\.0\) .*: expected rising",
        ),
        ((1.0, 0.5), r"MatryoshkaOptions\.prefixes = .*: expected rising shares of the latents"),
        ((0, 96), r"MatryoshkaOptions\.prefixes = .*: expected rising shares of the latents"),
        ((-0.5, 1.0), r"MatryoshkaOptions\.prefixes = .*: expected rising shares of the latents"),
        ((0.25, 0.5), r"prefixes = \[0\.25, 0\.5\]: expected shares that end with 1, or whole"),
        ((8, 97), r"prefixes = \[8, 97\]: expected shares .* that end with n_latents = 96"),
        ((8, 32), r"prefixes = \[8, 32\]: expected shares .* that end with n_latents = 96"),
        ((0.5, 96), r"prefixes = \[0\.5, 96\]: expected shares that end with 1, or whole numbers"),
    ],
)
def test_prefixes_that_cannot_be_are_refused(prefixes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make_spec("matryoshka", 2, 24, n_latents=96, prefixes=prefixes)
