"""Steering: nothing changed is the model itself; what changes is the one latent's part."""

import copy

import pytest
import torch
from helpers.models import D, run_full, tiny_llama

from saelib.config import ConfigError, SAEConfig
from saelib.measure.steering import (
    Change,
    changed_stream,
    continuation,
    divergence,
    next_tokens,
    plain_logits,
    steered_logits,
)
from saelib.sae import build_sae

SITE, LATENT = 2, 5


@pytest.fixture(scope="module")
def lm():
    return tiny_llama()


@pytest.fixture(scope="module", params=["sae", "gated", "topk"])
def sae(request):
    options = {"options": {"k": 8}} if request.param == "topk" else {}
    config = SAEConfig(request.param, D, 64, site=SITE, **options)
    built = build_sae(config, torch.Generator().manual_seed(0)).requires_grad_(False)
    built.set_normalizer_(torch.full((D,), 0.1), 0.5)
    getattr(built, built.bias_names()[0]).fill_(0.05)
    return built


@pytest.fixture(scope="module")
def ids():
    return torch.randint(200, (3, 12), generator=torch.Generator().manual_seed(1))


def test_scaling_by_one_gives_the_model_s_own_logits_bit_for_bit(lm, sae, ids):
    own = run_full(lm, ids)
    assert torch.equal(plain_logits(lm, sae, ids), own)
    assert torch.equal(steered_logits(lm, sae, ids, Change(LATENT, "scale", 1)), own)
    assert torch.equal(steered_logits(lm, sae, ids, Change(LATENT, "add", 0)), own)


@pytest.mark.parametrize(
    ("mode", "value", "wanted"),
    [
        ("add", 3.0, lambda f: f + 3),
        ("scale", 2.0, lambda f: 2 * f),
        ("clamp", 7.0, lambda f: 0 * f + 7),
        ("ablate", 0.0, lambda f: 0 * f),
    ],
)
def test_a_change_moves_the_stream_along_the_decoder_row_by_the_change_of_the_code(
    lm, sae, ids, mode, value, wanted
):
    stream = lm.capture(ids, [SITE])[SITE]
    f = sae.encode_raw(stream.flatten(0, 1)).view(3, 12, -1)
    g = f.clone()
    g[..., LATENT] = wanted(f[..., LATENT])
    # by decoding the changed codes, the SAE's error added back
    naive = sae.decode_raw(g) + (stream - sae.decode_raw(f))
    moved = changed_stream(sae, stream, Change(LATENT, mode, value))
    torch.testing.assert_close(moved, naive, rtol=1e-4, atol=1e-4)


def test_only_the_positions_asked_for_change(lm, sae, ids):
    stream = lm.capture(ids, [SITE])[SITE]
    positions = torch.zeros(3, 12, dtype=torch.bool)
    positions[1, 4] = True
    moved = changed_stream(sae, stream, Change(LATENT, "clamp", 9.0), positions)
    assert (moved != stream).any(-1).nonzero().tolist() == [[1, 4]]


def test_a_latent_or_mode_that_is_not_there_is_refused(lm, sae, ids):
    stream = lm.capture(ids, [SITE])[SITE]
    for latent in (-1, 64):
        with pytest.raises(ValueError, match=rf"latent {latent}: this SAE has the latents 0 to 63"):
            changed_stream(sae, stream, Change(latent))
    with pytest.raises(ConfigError, match=r"value = 1000.*: expected a number of float32"):
        Change(0, "add", 10**400)
    with pytest.raises(ValueError, match="mode = 'boost': expected one of 'add', 'scale'"):
        Change(0, "boost")


@pytest.mark.parametrize("mode", ["add", "scale", "clamp"])
@pytest.mark.parametrize("value", [1e300, 1e30, -1e25])
def test_a_change_too_large_for_the_model_is_refused(lm, sae, ids, mode, value):
    stream = lm.capture(ids, [SITE])[SITE]
    sae = copy.deepcopy(sae)
    getattr(sae, sae.bias_names()[0])[LATENT] = 99.0  # fires, so that a factor moves it too
    with pytest.raises(ConfigError, match=r"value = -?1e\+\d+: "):
        changed_stream(sae, stream, Change(LATENT, mode, value))


def test_a_change_beyond_the_model_s_dtype_is_refused(lm, sae, ids):
    stream = lm.capture(ids, [SITE])[SITE].half()
    with pytest.raises(
        ConfigError, match=r"value = 1e\+07: the model cannot compute with so large"
    ):
        changed_stream(sae, stream, Change(LATENT, "clamp", 1e7))


def test_the_tokens_that_move_most_and_the_divergence_by_hand():
    before = torch.tensor([0.5, 0.25, 0.25]).log()
    after = torch.tensor([0.25, 0.25, 0.5]).log()
    table = next_tokens(before, after, k=2)
    assert sorted(table["token_id"]) == [0, 2]
    row = table.set_index("token_id").loc[2]
    assert (row["before"], row["after"]) == pytest.approx((0.25, 0.5))
    assert divergence(before, after) == pytest.approx(0.25 * torch.tensor(2.0).log().item())
    assert divergence(before, before) == 0


def test_a_continuation_is_the_model_s_greedy_one_and_ends_with_its_context(lm, sae, ids):
    prompt = ids[:1, :4]
    grown = prompt
    for _ in range(5):
        grown = torch.cat([grown, run_full(lm, grown)[:, -1:].argmax(-1)], 1)
    assert continuation(lm, sae, prompt, None, 5) == grown[0, 4:].tolist()
    assert continuation(lm, sae, prompt, Change(LATENT, "scale", 1), 5) == grown[0, 4:].tolist()
    pushed = continuation(lm, sae, prompt, Change(LATENT, "add", 200.0), 5)
    assert pushed != grown[0, 4:].tolist()
    before = lm.max_length
    lm.max_length = 6
    assert len(continuation(lm, sae, prompt, None, 5)) == 2
    lm.max_length = before
