"""The tests' language model: a Llama of four blocks with random weights."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from saelib.activations.lm import LM

D = 32  # width of the residual stream
SINK_TOKEN = 7  # its embedding is scaled up, so that it is a massive activation at each site


def run_full(lm, ids):
    """The model's own logits [batch, time, vocab]."""
    with torch.inference_mode():
        return lm.model(input_ids=ids, use_cache=False).logits


def tiny_llama(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=D,
        num_hidden_layers=4,
        vocab_size=200,
        intermediate_size=64,
        num_attention_heads=4,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight *= 60  # a confident model
        model.model.embed_tokens.weight[SINK_TOKEN] *= 200
    return LM(model.to(dtype), None, f"tiny-{seed}")
