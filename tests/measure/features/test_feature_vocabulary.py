"""Promoted and suppressed tokens against a naive computation, for several kinds of final norm."""

import pytest
import torch
from helpers.features import make_sae
from helpers.models import VOCABULARY, D
from transformers import GemmaConfig, GemmaForCausalLM, GPT2Config, GPT2LMHeadModel

from saelib.activations.lm import LM
from saelib.measure.features import IndexOptions, build_index
from saelib.measure.features.vocabulary import LogitLens, final_norm


def shaken(model, name):
    """The model with a final norm whose weight is not one."""
    norm = model.get_submodule(name)
    with torch.no_grad():
        norm.weight += torch.randn(D, generator=torch.Generator().manual_seed(1))
    return LM(model), norm


def gemma():
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "hidden_size": D, "intermediate_size": D, "head_dim": 8}
    config = GemmaConfig(
        vocab_size=90, num_attention_heads=4, num_key_value_heads=4, pad_token_id=0, **shape
    )
    return shaken(GemmaForCausalLM(config), "model.norm")


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=90, n_embd=D, n_layer=2, n_head=4, n_positions=16)
    return shaken(GPT2LMHeadModel(config), "transformer.ln_f")


def test_vocabulary_lists_equal_a_naive_computation(lm, store, tmp_path):
    sae = make_sae(store)
    with torch.no_grad():
        weight = lm.model.model.norm.weight
        weight.copy_(torch.rand(D, generator=torch.Generator().manual_seed(3)) + 0.5)
    try:
        options = IndexOptions(vocabulary=6)
        index = build_index(sae, store, None, tmp_path / "bare", options=options)
        lens = LogitLens(lm).vocabulary(sae.W_dec / sae.scale, 6)
    finally:
        gamma = weight.clone()
        with torch.no_grad():
            weight.fill_(1)
    head = lm.model.lm_head.weight
    for j in range(index.n_latents):
        v = sae.W_dec[j] / sae.scale * gamma
        logits = torch.stack([v @ head[token] for token in range(VOCABULARY)])
        logits -= logits.mean()
        order = logits.argsort(descending=True)
        assert lens.promoted[j].tolist() == order[:6].tolist()
        assert lens.suppressed[j].tolist() == order.flip(0)[:6].tolist()
        torch.testing.assert_close(lens.promoted_logits[j], logits[order[:6]], rtol=1e-4, atol=1e-5)


def test_the_index_holds_them(lm, store, tmp_path):
    sae = make_sae(store)
    index = build_index(sae, store, lm, tmp_path / "i", options=IndexOptions(vocabulary=6))
    lens = LogitLens(lm).vocabulary(sae.W_dec / sae.scale, 6)
    record = index.latent(5)
    assert [scored.number for scored in record.promoted] == lens.promoted[5].tolist()
    assert [scored.value for scored in record.suppressed] == pytest.approx(
        lens.suppressed_logits[5].tolist()
    )
    assert index.table["promoted_id"].tolist() == lens.promoted[:, 0].tolist()
    assert index.table["suppressed_id"].tolist() == lens.suppressed[:, 0].tolist()


def test_a_norm_that_stores_its_weight_less_one_is_understood():
    lm, norm = gemma()
    lens = LogitLens(lm)
    assert final_norm(lm) is norm
    torch.testing.assert_close(lens.gamma, 1 + norm.weight, rtol=1e-5, atol=1e-6)
    assert not lens.centres


def test_a_norm_that_takes_the_mean_off_does_so_to_directions_too():
    lm, norm = gpt2()
    lens = LogitLens(lm)
    assert final_norm(lm) is norm
    torch.testing.assert_close(lens.gamma, norm.weight.detach(), rtol=1e-5, atol=1e-6)
    assert lens.centres
    torch.testing.assert_close(lens.logits(torch.ones(1, D)), torch.zeros(1, 90), atol=1e-6, rtol=0)


@pytest.mark.parametrize("make", [gemma, gpt2])
def test_a_small_step_of_the_stream_moves_the_logits_so(make):
    lm, norm = make()
    lens = LogitLens(lm)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(D, generator=generator, dtype=torch.float64)
    x -= x.mean()
    v = torch.randn(D, generator=generator, dtype=torch.float64)
    v -= v @ x / (x @ x) * x  # across the stream: its size, by which the norm divides, stays
    norm = norm.double()
    head = lm.model.get_output_embeddings().weight.double()
    step = 1e-4
    moved = (norm(x + step * v) - norm(x)) @ head.T / step * x.square().mean().sqrt()
    moved -= moved.mean()
    torch.testing.assert_close(
        lens.logits(v[None].float())[0].double(), moved, rtol=1e-2, atol=1e-3
    )
