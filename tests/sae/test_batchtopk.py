"""The BatchTopK SAE: the batch's choice by hand, its threshold, gradients, files, refusals."""

from math import comb

import pytest
import torch
from helpers.streams import MemoryStream, train_one
from safetensors.torch import load_file, save_file

from saelib.config import ConfigError, SAEConfig, TrainConfig
from saelib.ranks import Ranks
from saelib.sae import build_sae, load_sae
from saelib.sae.base import How
from saelib.sae.batchtopk import HORIZON, BatchTopKSAE, jumprelu_of_batch
from saelib.sae.sharding import Sharding
from saelib.sae.spec import make_spec, run_id
from saelib.sae.trainer import Trainer

D_IN, N_LATENTS, K = 12, 40, 5


def batchtopk(dtype=torch.float64, **options):
    """A BatchTopK SAE whose parameters are all away from where they start."""
    config = SAEConfig("batchtopk", D_IN, N_LATENTS, options={"k": K, "aux_k": 0} | options)
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


@pytest.fixture
def by_hand():
    sae = build_sae(SAEConfig("batchtopk", 3, 3, options={"k": 1, "aux_k": 0}))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(3))
        sae.W_dec.copy_(torch.eye(3))
        sae.b_enc.copy_(torch.tensor([0.0, 0.5, 0.0]))
        sae.b_dec.copy_(torch.tensor([1.0, 0.0, 0.0]))
    return sae


HAND = torch.tensor([[5.0, 1.0, 2.0], [0.0, -1.0, 0.5]])
# x − b_dec + b_enc = (4, 1.5, 2) and (−1, −.5, .5): of both rows the largest two are 4 and 2


def test_a_batch_s_largest_codes_by_hand(by_hand):
    terms = by_hand.loss_terms(HAND, 0.0, How("batchtopk"))
    # x̂ = (1, 0, 0) + (4, 0, 2) misses (0, 1, 0); (1, 0, 0) misses (−1, −1, .5)
    assert terms.mse.tolist() == [1.0, 2.25]
    stats, grads = by_hand.step(HAND, 0.0, How("batchtopk"))
    assert stats.fired.tolist() == [True, False, True]
    assert stats.l0 == 2
    # 2/2 Σ (x̂ − x) over rows through the decoding, nothing through the encoder: both errors are
    # at right angles to the rows that fired
    assert grads["b_dec"].tolist() == [1.0, 0.0, -0.5]


def test_the_threshold_by_hand(by_hand):
    for smallest in (2.0, 3.0, 5.0):
        by_hand._note_codes_(torch.tensor([9.0, smallest]), 2)
        by_hand.after_step_()
    second = 2 + (HORIZON + 1) / (2 + HORIZON) * (3 - 2)
    third = second + (HORIZON + 1) / (3 + HORIZON) * (5 - second)
    assert float(by_hand.threshold) == pytest.approx(third)
    assert by_hand.n_batches == 3
    by_hand.after_step_()  # without a batch
    assert by_hand.n_batches == 3


def test_a_batch_s_weight_in_the_threshold_rises_as_a_power_of_its_number(by_hand):
    """Batch s of t counts as (s + HORIZON − 1)! / (s − 1)!, that is about s ** HORIZON."""
    for counted in (1, 20, 39, 40):
        by_hand.threshold.zero_()
        by_hand.n_batches.zero_()
        for batch in range(1, 41):
            by_hand._smallest = torch.tensor(float(batch == counted))
            by_hand.after_step_()
        expected = comb(counted + HORIZON - 1, HORIZON) / comb(40 + HORIZON, HORIZON + 1)
        assert float(by_hand.threshold) == pytest.approx(expected, rel=1e-4)


def test_where_too_few_codes_are_above_zero_the_threshold_is_zero(by_hand):
    by_hand.options = by_hand.Options(k=3, aux_k=0)
    by_hand.step(HAND, 0.0, How("batchtopk"))
    by_hand.after_step_()
    assert by_hand.threshold == 0


def test_codes_above_the_threshold_fire_each_row_for_itself(by_hand):
    by_hand.threshold.fill_(1.5)
    assert by_hand.encode(HAND).tolist() == [[4.0, 0.0, 2.0], [0.0, 0.0, 0.0]]
    by_hand.threshold.fill_(0.4)
    assert by_hand.encode(HAND).tolist() == [[4.0, 1.5, 2.0], [0.0, 0.0, 0.5]]
    assert torch.equal(by_hand.encode(HAND[1:]), by_hand.encode(HAND)[1:])


@pytest.mark.parametrize("step", ["dense", "sparse"])
def test_a_step_s_threshold_is_the_smallest_code_that_it_kept(step):
    sae, x = batchtopk(torch.float32), rows(dtype=torch.float32)
    sae.step(x, 0.0, How("batchtopk", sparse=step == "sparse"))
    sae.after_step_()
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    largest = pre.flatten().topk(K * len(x)).values
    assert float(sae.threshold) == pytest.approx(float(largest[-1]))
    # all but that code itself, which may be a rounding above
    assert (sae.encode(x) > 0).sum() in (K * len(x) - 1, K * len(x))


@pytest.mark.parametrize("k", [1, K, N_LATENTS])
def test_dense_gradients_equal_autograd(k):
    sae = batchtopk(k=k)
    x = torch.cat([rows(), rows()[:3]])  # repeated rows count twice
    terms = sae.loss_terms(x, 0.0, How("batchtopk"))
    terms.total.mean().backward()
    stats, grads = sae.step(x, 0.0, How("batchtopk"))
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(stats.mse, terms.mse.sum().detach())
    assert stats.l0 <= k * len(x)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("k", [1, K, N_LATENTS])
def test_float32_gradients_stay_within_1e_5(sparse, k):
    sae, x = batchtopk(torch.float32, k=k), rows(dtype=torch.float32)
    terms = sae.loss_terms(x, 0.0, How("batchtopk"))
    terms.total.mean().backward()
    stats, grads = sae.step(x, 0.0, How("batchtopk", sparse=sparse))
    for name, parameter in sae.named_parameters():
        assert (grads[name] - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name
        assert grads[name].stride() == parameter.stride()
    torch.testing.assert_close(stats.mse.float(), terms.mse.sum().detach())


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_the_order_of_a_batch_s_rows_does_not_matter(sparse):
    sae, x = batchtopk(torch.float32), rows(dtype=torch.float32)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    (stats, grads), (of_shuffled, shuffled) = (
        sae.step(part, 0.0, How("batchtopk", sparse=sparse)) for part in (x, x[order])
    )
    assert torch.equal(stats.fired, of_shuffled.fired)
    for name in grads:
        torch.testing.assert_close(grads[name], shuffled[name])


def sums_of_directions(n, seed):
    """Rows that really are sparse sums of 24 directions."""
    directions = torch.randn(24, D_IN, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    fires = torch.rand(n, 24, generator=generator) < 0.1
    return 3 * (torch.rand(n, 24, generator=generator) * fires) @ directions


def spec_of(**changes):
    settings = {"k": 4, "n_latents": N_LATENTS, "dead_window": 2560, "tokens": 204_800}
    settings |= {"batch_size": 512, "lr": 3e-3, "aux_k": 7} | changes
    return make_spec("batchtopk", 2, D_IN, **settings)


def trained(checkpoint=None, on_log=None, **changes):
    spec = spec_of(**changes)
    sae = build_sae(spec.sae, torch.Generator().manual_seed(0))
    stream = MemoryStream(sums_of_directions(20_000, 1), spec.train.batch_size)
    history = train_one(
        sae, stream, spec.train, checkpoint=checkpoint, checkpoint_every=50, on_log=on_log
    )
    return sae.requires_grad_(False), history


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_on_rows_held_out_l0_is_that_of_training(schedule):
    sae, history = trained(schedule=schedule)
    held_out = sums_of_directions(20_000, 2)
    l0 = float((sae.encode(held_out) > 0).sum(1).float().mean())
    assert history.table[-1]["l0"] == 4
    assert l0 == pytest.approx(4, rel=0.02)
    fvu = (sae.reconstruct(held_out) - held_out).pow(2).sum() / held_out.var(0).sum() / 20_000
    assert fvu < 0.2


class Killed(Exception):
    pass


@pytest.mark.parametrize("step", ["dense", "sparse"])
def test_a_killed_run_ends_as_one_that_was_not(tmp_path, step):
    short = {"step": step, "tokens": 6400, "batch_size": 64}
    whole, _ = trained(**short)

    def kill(row):
        if row["step"] == 70:
            raise Killed

    with pytest.raises(Killed):
        trained(tmp_path / "run", kill, **short)
    resumed, history = trained(tmp_path / "run", **short)
    assert history.resumed_at == 50
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert float(whole.threshold) > 0


def test_the_threshold_travels_with_the_sae(tmp_path):
    sae, _ = trained(tokens=6400, batch_size=64)
    sae.save(tmp_path)
    loaded = load_sae(tmp_path)
    assert isinstance(loaded, BatchTopKSAE)
    assert torch.equal(loaded.threshold, sae.threshold)
    assert float(loaded.threshold) > 0
    x = sums_of_directions(50, 3)
    assert torch.equal(loaded.encode(x), sae.encode(x))


def test_a_file_without_the_threshold_is_refused(tmp_path):
    batchtopk(torch.float32).save(tmp_path)
    (tmp_path / "seal.json").unlink()
    file = tmp_path / "weights.safetensors"
    tensors = load_file(file)
    del tensors["threshold"]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"threshold is missing, which arch 'batchtopk' needs; it"):
        load_sae(tmp_path)


def test_folding_moves_the_threshold_into_model_units():
    sae = batchtopk().requires_grad_(False)
    sae.threshold.fill_(0.3)
    sae.set_normalizer_(torch.randn(D_IN, generator=torch.Generator().manual_seed(3)), 0.5)
    x = 3 * rows()
    torch.testing.assert_close(sae.folded().encode(x), sae.encode_raw(x) / 0.5)
    assert float(sae.folded().threshold) == pytest.approx(0.6)


def test_it_equals_a_jumprelu_sae():
    sae = batchtopk().requires_grad_(False)
    sae.threshold.fill_(0.3)
    equal = jumprelu_of_batch(sae)
    torch.testing.assert_close(equal.encode(rows()), sae.encode(rows()))
    assert (sae.encode(rows()) > 0).any()


def test_k_is_the_knob_and_shapes_the_name_of_a_run():
    specs = [make_spec("batchtopk", 2, 24, n_latents=96, **s) for s in ({}, {"k": 32}, {"k": 8})]
    assert [spec.nominal_l0 for spec in specs] == [32, 32, 8]
    assert specs[0].fixed_l0 is None  # a threshold chooses the codes of rows outside training
    names = [run_id(spec.sae, spec.train, "store") for spec in specs]
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"k": 0}, r"BatchTopKOptions\.k = 0 \(int\): expected at least 1"),
        ({"k": 97}, r"BatchTopKOptions\.k = 97: expected at most n_latents = 96"),
        ({"aux_k": -1}, r"BatchTopKOptions\.aux_k = -1 \(int\): expected 0 \(off\) or more"),
        ({"lam": 1.0}, r"lam: arm 'batchtopk' has no L1 penalty; set 'k'"),
        ({"l1_mode": "norm_weighted"}, r"expected 'unit_norm', since arch 'batchtopk' has no L1"),
        ({"resample_at": (0.5,)}, r"resample_at = \[0\.5\]: expected none to train arch 'batcht"),
    ],
)
def test_a_bad_setting_is_refused_with_a_sentence(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make_spec("batchtopk", 2, 24, n_latents=96, **settings)


def test_ranks_can_share_neither_its_latents_nor_a_batch():
    with pytest.raises(ConfigError, match="arch = 'batchtopk': ranks cannot share its latents"):
        build_sae(SAEConfig("batchtopk", D_IN, N_LATENTS), shard=slice(0, 20))
    two = Sharding(Ranks(0, 2))
    with pytest.raises(ConfigError, match=r"ranks cannot share the rows of a batch \('data'\)"):
        Trainer(batchtopk(torch.float32), TrainConfig(loss="batchtopk"), sharding=two)
