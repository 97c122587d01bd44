"""Tiny Llamas with random weights, and what a test asks of one."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from saelib.activations.lm import LM

D = 32  # width of the residual stream
VOCABULARY = 200
SINK_TOKEN = 7  # its embedding is scaled up, so that it is a massive activation at each site


def llama_config(*, blocks=4, width=D, inner=2 * D, vocabulary=VOCABULARY, **options):
    """A tiny Llama's dimensions, with four heads; `options` are further fields of `LlamaConfig`."""
    return LlamaConfig(
        num_hidden_layers=blocks,
        hidden_size=width,
        intermediate_size=inner,
        vocab_size=vocabulary,
        num_attention_heads=4,
        bos_token_id=None,
        eos_token_id=None,
        **options,
    )


def llama(seed=0, **shape):
    """A Llama with random weights of float32; `shape` is that of `llama_config`."""
    torch.manual_seed(seed)  # transformers draws from the global generator
    return LlamaForCausalLM(llama_config(**shape))


def tiny_llama(seed=0, dtype=torch.float32):
    """A language model that is sure of what it predicts, with a token that is a sink."""
    model = llama(seed)
    with torch.no_grad():
        model.lm_head.weight *= 60  # a confident model
        model.model.embed_tokens.weight[SINK_TOKEN] *= 200
    return LM(model.to(dtype), None, f"tiny-{seed}")


def run_full(lm, ids):
    """The model's own logits [batch, time, vocab]."""
    with torch.inference_mode():
        return lm.model(input_ids=ids, use_cache=False).logits


def count_tokens(lm):
    """A list that grows by the tokens of every forward."""
    seen = []
    lm.model.register_forward_pre_hook(
        lambda _, __, named: seen.append(named["input_ids"].numel()), with_kwargs=True
    )
    return seen
