"""The TopK SAE: codes by hand, gradients against autograd, AuxK, refusals, and a whole training."""

import pytest
import torch
from helpers.streams import MemoryStream, train_one

from saelib.config import ConfigError, SAEConfig, TrainConfig
from saelib.sae import build_sae, load_sae
from saelib.sae.base import How
from saelib.sae.spec import make_spec, run_id
from saelib.sae.topk import TopKOptions, TopKSAE
from saelib.sae.trainer import Trainer

D_IN, N_LATENTS, K, AUX_K = 12, 40, 5, 7
DEAD = torch.arange(N_LATENTS) >= 25
SOME_DEAD = {"none dead": None, "some dead": DEAD, "all dead": torch.ones_like(DEAD)}


def topk(k=K, aux_k=AUX_K, dtype=torch.float64, **config):
    """A TopK SAE whose parameters are all away from where they start."""
    config = SAEConfig("topk", D_IN, N_LATENTS, options={"k": k, "aux_k": aux_k}, **config)
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


def test_codes_by_hand():
    sae = build_sae(SAEConfig("topk", 3, 3, options={"k": 2}))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(3))
        sae.b_enc.copy_(torch.tensor([0.0, 0.5, 0.0]))
        sae.b_dec.copy_(torch.tensor([1.0, 0.0, 0.0]))
    x = torch.tensor([[5.0, 1.0, 2.0], [0.0, -1.0, 0.5]])
    # x − b_dec + b_enc = (4, 1.5, 2): the two largest; (−1, −.5, .5): only one is above 0
    assert sae.encode(x).tolist() == [[4.0, 0.0, 2.0], [0.0, 0.0, 0.5]]


def test_auxiliary_loss_by_hand():
    sae = build_sae(SAEConfig("topk", 2, 2, options={"k": 1, "aux_k": 1}))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.W_dec.copy_(torch.eye(2))
    x = torch.tensor([[3.0, 2.0]])
    terms = sae.loss_terms(x, 0.0, How("topk", dead=torch.tensor([False, True])))
    # f = (3, 0) misses (0, 2); z = (0, 2) rebuilds it whole
    assert [float(term.detach()) for term in terms] == [4.0, 0.0, 0.0]
    terms = sae.loss_terms(x, 0.0, How("topk", dead=torch.tensor([True, False])))
    # z = (3, 0) against (0, 2): 9 + 4
    assert float(terms.aux.detach()) == pytest.approx(13 / 32)


@pytest.mark.parametrize("k", [1, K, N_LATENTS])
def test_at_most_k_latents_fire_per_token(k):
    f = topk(k).encode(rows())
    assert ((f > 0).sum(1) <= k).all()
    assert (f > 0).sum(1).max() == min(k, (topk(N_LATENTS).encode(rows()) > 0).sum(1).max())


@pytest.mark.parametrize("dead", SOME_DEAD.values(), ids=SOME_DEAD)
@pytest.mark.parametrize("k", [1, K, N_LATENTS])
def test_dense_gradients_equal_autograd(k, dead):
    sae = topk(k)
    x = torch.cat([rows(), rows()[:3]])  # repeated rows count twice
    terms = sae.loss_terms(x, 0.0, How("topk", dead=dead))
    terms.total.mean().backward()
    stats, grads = sae.step(x, 0.0, How("topk", dead=dead))
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-9, atol=1e-12)
    for name in ("mse", "l1", "aux"):
        torch.testing.assert_close(getattr(stats, name), getattr(terms, name).sum().detach())
    assert (float(stats.aux) > 0) == (dead is not None)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("dead", SOME_DEAD.values(), ids=SOME_DEAD)
def test_float32_gradients_stay_within_1e_5(sparse, dead):
    sae = topk(dtype=torch.float32)
    x = rows(dtype=torch.float32)
    terms = sae.loss_terms(x, 0.0, How("topk", dead=dead))
    terms.total.mean().backward()
    stats, grads = sae.step(x, 0.0, How("topk", sparse=sparse, dead=dead))
    for name, parameter in sae.named_parameters():
        assert (grads[name] - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name
        assert grads[name].stride() == parameter.stride()
    for name in ("mse", "aux"):
        torch.testing.assert_close(
            getattr(stats, name).float(), getattr(terms, name).sum().detach()
        )
    f = sae.encode(x)
    assert torch.equal(stats.fired, (f > 0).any(0))
    assert stats.l0 == stats.n_open == (f > 0).sum()


def test_the_auxiliary_loss_moves_dead_latents_alone():
    """Through encoder and decoder; b_dec only as the encoder's centre."""
    sae = topk()
    aux = sae.loss_terms(rows(), 0.0, How("topk", dead=DEAD)).aux.mean()
    grads = dict(
        zip(
            dict(sae.named_parameters()),
            torch.autograd.grad(aux, list(sae.parameters())),
            strict=True,
        )
    )
    assert (grads["W_dec"][~DEAD] == 0).all()
    assert (grads["W_enc"][:, ~DEAD] == 0).all()
    assert grads["W_dec"][DEAD].abs().sum() > 0
    torch.testing.assert_close(grads["b_dec"], -sae.W_enc.detach() @ grads["b_enc"])


@pytest.fixture(scope="module")
def table():
    """Rows that really are sparse sums of 24 directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(24, D_IN, generator=generator)
    fires = torch.rand(2000, 24, generator=generator) < 0.1
    return 3 * (torch.rand(2000, 24, generator=generator) * fires) @ directions


def trained(table, silent=0, aux_k=AUX_K, **changes):
    settings = {"k": 4, "aux_k": aux_k, "n_latents": N_LATENTS, "dead_window": 640}
    settings |= {"tokens": 12_800, "batch_size": 32, "lr": 3e-3} | changes
    spec = make_spec("topk", 2, D_IN, **settings)
    sae = build_sae(spec.sae, torch.Generator().manual_seed(0))
    with torch.no_grad():
        # alive by their inputs, dead by the competition of the others
        sae.b_enc[:silent] = -2.0
    history = train_one(sae, MemoryStream(table, 32), spec.train)
    return sae.requires_grad_(False), history


@pytest.mark.parametrize("step", ["dense", "sparse"])
def test_training_rebuilds_sparse_data_with_k_latents(table, step):
    sae, history = trained(table, step=step)
    fvu = (sae.reconstruct(table) - table).pow(2).sum() / (table - table.mean(0)).pow(2).sum()
    assert fvu < 0.15
    assert history.table[-1]["l0"] <= 4
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(N_LATENTS))


def test_auxk_brings_dead_latents_back(table):
    _, without = trained(table, silent=20, aux_k=0)
    _, with_aux = trained(table, silent=20)
    assert without.table[-1]["dead_fraction"] >= 0.2
    assert with_aux.table[-1]["dead_fraction"] < 0.5 * without.table[-1]["dead_fraction"]
    assert max(row["aux"] for row in with_aux.table) > 0
    assert max(row["aux"] for row in without.table) == 0


def test_the_options_travel_with_the_sae(tmp_path):
    sae = topk(dtype=torch.float32).requires_grad_(False)
    sae.save(tmp_path)
    loaded = load_sae(tmp_path)
    assert isinstance(loaded, TopKSAE)
    assert loaded.options == TopKOptions(k=K, aux_k=AUX_K)
    assert loaded.config.to_dict()["options"] == {"k": K, "aux_k": AUX_K}
    x = rows(dtype=torch.float32)
    assert torch.equal(loaded.encode(x), sae.encode(x))


def test_k_is_the_knob_and_shapes_the_name_of_a_run():
    specs = [make_spec("topk", 2, 24, n_latents=96, **s) for s in ({}, {"k": 32}, {"k": 8})]
    assert [spec.fixed_l0 for spec in specs] == [32, 32, 8]
    assert [spec.nominal_l0 for spec in specs] == [32, 32, 8]
    assert specs[2].options == "aux_k=256 k=8"
    assert specs[0].train.lam == 0
    names = [run_id(spec.sae, spec.train, "store") for spec in specs]
    assert names[0] == names[1] != names[2]
    bare = SAEConfig("topk", 24, 96, site=2)
    assert run_id(bare, specs[0].train, "store") == names[0]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"k": 0}, r"TopKOptions\.k = 0 \(int\): expected at least 1"),
        ({"k": 97}, r"TopKOptions\.k = 97: expected at most n_latents = 96"),
        ({"aux_k": -1}, r"TopKOptions\.aux_k = -1 \(int\): expected 0 \(off\) or more"),
        ({"lam": 1.0}, r"lam: arm 'topk' has no L1 penalty; set 'k'"),
        ({"l1_mode": "norm_weighted"}, r"l1_mode = 'norm_weighted': expected 'unit_norm'"),
        (
            {"resample_at": (0.5,)},
            r"TrainConfig\.resample_at = \[0\.5\]: expected none to train arch 'topk', of which",
        ),
        ({"options": {"depth": 3}}, r"TopKOptions: unknown key 'depth'; accepted: k, aux_k"),
    ],
)
def test_a_bad_setting_is_refused_with_a_sentence(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make_spec("topk", 2, 24, n_latents=96, **settings)


def test_its_first_step_is_sparse_since_k_says_how_many_fire():
    cfg = TrainConfig(loss="topk")
    for k, is_sparse in ((N_LATENTS // 8, True), (N_LATENTS // 2, False)):
        trainer = Trainer(topk(k, dtype=torch.float32), cfg)
        assert trainer.density == k / N_LATENTS
        assert trainer.takes_sparse_step() == is_sparse


def test_ranks_cannot_share_its_latents_nor_another_loss_train_it():
    config = SAEConfig("topk", D_IN, N_LATENTS)
    with pytest.raises(ConfigError, match="arch = 'topk': ranks cannot share its latents"):
        build_sae(config, shard=slice(0, 20))
    with pytest.raises(ConfigError, match="loss = 'plain' does not fit a TopKSAE"):
        Trainer(build_sae(config), TrainConfig())
