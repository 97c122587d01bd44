"""The peers of the benchmarks, trained by their own trainers, read into this package's classes.

`make interop` runs this in their environment; elsewhere each test is skipped.
"""

import sys
from pathlib import Path

import pytest
import torch

from saelib.config import SAEConfig
from saelib.sae import build_sae

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # as its scripts do; systems.py needs no library
from systems import SYSTEMS, Shape, is_ours  # noqa: E402

D_IN, N_LATENTS, K = 12, 64, 6
SHAPE = Shape(D_IN, N_LATENTS, batch=64, steps=30)
PACKAGES = {
    "SAELens": "sae_lens",
    "dictionary_learning": "dictionary_learning",
    "sparsify": "sparsify",
}
PEERS = [name for name in SYSTEMS if not is_ours(name)]


@pytest.fixture(scope="module")
def peers():
    """benchmarks/peers.py, where the libraries are installed."""
    for package in PACKAGES.values():
        pytest.importorskip(package, reason=f"{package} is not installed here (make interop)")
    import peers

    return peers


@pytest.fixture
def batches():
    """A call that gives the next rows [batch, D_IN]: few of many directions each, and a mean."""
    generator = torch.Generator().manual_seed(5)
    directions = torch.randn(N_LATENTS, D_IN, generator=generator)

    def following():
        shape = (SHAPE.batch, N_LATENTS)
        active = torch.rand(shape, generator=generator) < 0.1
        return torch.rand(shape, generator=generator) * active @ directions + 0.3

    return following


def trained(peers, name, batches):
    """A peer trained for a few steps: its weights, and its own reconstruction."""
    torch.manual_seed(1)
    knob = K if SYSTEMS[name].rises else SYSTEMS[name].begin[0]
    return peers.trained(name, batches, SHAPE, knob, 1e-2)


def empty(name):
    """The SAE of this package into which that peer is read."""
    system = SYSTEMS[name]
    options = {"k": K} if system.knob == "k" else {}
    return build_sae(SAEConfig(system.arch, D_IN, N_LATENTS, 1, options=options))


@pytest.mark.parametrize("name", PEERS)
def test_a_trained_peer_is_rebuilt_here(name, peers, batches):
    """Row by row, and on rows on which some latents fire and others do not."""
    weights, rebuild = trained(peers, name, batches)
    sae = empty(name)
    peers.read_into(sae, weights)
    x = batches()
    peers.check_read(name, sae, rebuild, x)
    with torch.no_grad():
        f, x_hat = sae(x)
        theirs = rebuild(x)
    assert float((x_hat - theirs).norm() / theirs.norm()) <= 1e-5
    assert 0 < (f > 0).float().mean() < 1
    assert float((x - theirs).square().sum() / (x - x.mean(0)).square().sum()) < 1


@pytest.mark.parametrize("name", ["SAELens batchtopk", "dictionary_learning matryoshka"])
def test_one_threshold_of_training_comes_along(name, peers, batches):
    """It is above 0, and without it more codes fire."""
    weights, _ = trained(peers, name, batches)
    sae = empty(name)
    peers.read_into(sae, weights)
    assert sae.threshold.shape == ()
    assert sae.threshold > 0
    x = batches()
    fires = (sae.encode(x) > 0).sum()
    sae.threshold.zero_()
    assert (sae.encode(x) > 0).sum() > fires


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_that_was_misread_is_refused(name, peers, batches):
    weights, rebuild = trained(peers, name, batches)
    sae = empty(name)
    peers.read_into(sae, weights | {"b_dec": weights["b_dec"] + 0.1})
    with pytest.raises(ValueError, match=f"{name}: read into saelib"):
        peers.check_read(name, sae, rebuild, batches())
    del weights["b_dec"]
    with pytest.raises(ValueError, match="b_dec is missing"):
        peers.read_into(sae, weights)


def test_each_peer_has_a_step_that_trains(peers, batches):
    """`step.py` asks for one of each; there nothing moves, since the learning rate is tiny."""
    x = batches()
    made = peers.steps(D_IN, N_LATENTS, x, K)
    assert [name for name, *_ in made] == PEERS
    for build in made.values():
        step = build()
        step()
        step()


def test_the_precision_that_a_trainer_lowers_is_restored(peers, batches):
    before = torch.get_float32_matmul_precision()
    trained(peers, "sparsify topk", batches)
    assert torch.get_float32_matmul_precision() == before
