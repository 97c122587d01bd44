"""The JumpReLU SAE: its codes, that every Gated SAE equals one, and that it is not trained."""

import pytest
import torch
from helpers.published import D_IN, random_sae, rows

from saelib.config import ConfigError, SAEConfig, TrainConfig
from saelib.sae import build_sae
from saelib.sae.base import How
from saelib.sae.jumprelu import jumprelu_of
from saelib.sae.spec import ARMS, make_spec, run_id
from saelib.sae.trainer import Trainer


def test_codes_by_hand():
    sae = build_sae(SAEConfig("jumprelu", d_in=2, n_latents=2)).requires_grad_(False)
    sae.W_enc.copy_(torch.eye(2))
    sae.b_dec.copy_(torch.tensor([1.0, 0.0]))
    sae.b_enc.copy_(torch.tensor([0.5, 0.0]))
    sae.threshold.copy_(torch.tensor([1.0, -2.0]))
    x = torch.tensor([[1.5, -1.0], [2.0, 3.0]])  # a = [1, -1], [1.5, 3]
    assert sae.encode(x).tolist() == [[0, 0], [1.5, 3]]


def test_it_is_not_trained():
    config = SAEConfig("jumprelu", D_IN, 8)
    with pytest.raises(ConfigError, match="arch 'jumprelu' cannot be trained; it can be opened"):
        run_id(config, TrainConfig(), "store")
    with pytest.raises(ConfigError, match="a JumpReLUSAE cannot be trained; it can be"):
        Trainer(build_sae(config), TrainConfig())
    with pytest.raises(ConfigError, match="can be opened and measured, but not trained; train"):
        build_sae(config).step(torch.randn(4, D_IN), 1.0, How("plain"))
    assert "jumprelu" not in ARMS
    with pytest.raises(ConfigError, match="arm = 'jumprelu': expected one of plain"):
        make_spec("jumprelu", 0, D_IN)


def test_a_gated_sae_equals_a_jumprelu_one():
    sae = random_sae("gated")
    equal = jumprelu_of(sae)
    x = rows(2000)
    f = sae.encode_raw(x)
    torch.testing.assert_close(equal.encode_raw(x), f, rtol=1e-5, atol=1e-5)
    assert torch.equal(equal.encode_raw(x) > 0, f > 0)
    closed = (sae.b_mag - sae.r_mag.exp() * sae.b_gate) > 0  # the gate decides before the magnitude
    assert closed.any()
    assert (~closed).any()
    assert (equal.threshold >= 0).all()


def test_gated_and_jumprelu_by_hand():
    sae = random_sae("gated")
    for name, value in {"b_gate": -1.0, "b_mag": 0.5, "r_mag": 0.0}.items():
        getattr(sae, name).fill_(value)
    sae.W_enc.zero_()
    sae.W_enc[0, 0] = 1
    sae.b_dec.zero_()
    sae.set_normalizer_(torch.zeros(D_IN), 1.0)
    equal = jumprelu_of(sae)
    assert float(equal.threshold[0]) == 1.5  # a > 1 is a + 0.5 > 1.5
    x = torch.zeros(3, D_IN)
    x[:, 0] = torch.tensor([0.9, 1.1, -5.0])
    assert equal.encode(x)[:, 0].tolist() == pytest.approx([0, 1.6, 0])
