"""What a piece of work costs, from its shapes alone: floating-point operations, bytes, and numbers
that are held.

A multiplication and an addition are two operations. Nothing here reads, measures or knows a
machine: `plan` adds these up for a profile, and benchmarks/SCALING.md holds them against what was
measured. d is the model's width, n the number of latents, `active` the latents that fire on a row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}  # bytes a number
TRAINED = 16  # bytes a weight in training: the float32 weight, its gradient, Adam's two moments


class Shape(NamedTuple):
    """Of a language model with Llama's blocks."""

    d_model: int
    n_layers: int
    heads: int
    kv_heads: int
    d_ff: int
    vocab: int
    tied: bool = False  # the head is the embedding


def shape_of(config: Any) -> Shape:
    """The shape in a `transformers` configuration; what a model family leaves out is as in GPT-2: 4
    d, all heads.
    """
    text = config.get_text_config()
    d, heads = text.hidden_size, text.num_attention_heads
    kv, ff = (
        getattr(text, "num_key_value_heads", None) or heads,
        getattr(text, "intermediate_size", None) or 4 * d,
    )
    return Shape(
        d, text.num_hidden_layers, heads, kv, ff, text.vocab_size, bool(config.tie_word_embeddings)
    )


def block_weights(s: Shape) -> int:
    """Weights of a block's linear layers: q and o [d, d], k and v [d, d kv_heads / heads], three
    [d, d_ff].
    """
    return s.d_model * (2 * s.d_model + 2 * s.d_model * s.kv_heads // s.heads + 3 * s.d_ff)


def lm_weights(s: Shape) -> int:
    """All weights but the norms', which are below a thousandth."""
    return s.n_layers * block_weights(s) + s.vocab * s.d_model * (1 if s.tied else 2)


def forward_flops(s: Shape, blocks: float | int, ctx_len: int, head: bool = False) -> float | int:
    """Work of a token: two a weight, and in each block scores and values over (ctx_len + 1) / 2
    tokens on average.
    """
    return (
        blocks * (2 * block_weights(s) + 2 * s.d_model * (ctx_len + 1))
        + head * 2 * s.vocab * s.d_model
    )


def forward_bytes(s: Shape, tokens: int, width: int) -> int:
    """Held at once by a forward: the stream twice, q, k, v and their result, the three of the MLP;
    or, where a loss is measured on 1,024 tokens, the logits as they come and two sets in float32.
    """
    return max(tokens * width * (6 * s.d_model + 3 * s.d_ff), 1024 * s.vocab * (width + 8))


def row_bytes(d: int, dtype: str) -> int:
    """A stored row: d numbers and its norm in float32, in 8 bits its scale too."""
    return d * WIDTH[dtype] + 4 + 4 * (dtype == "int8")


def store_bytes(rows: float | int, sites: int, d: int, dtype: str) -> float | int:
    """A store: a row at each site, and a token id of 4 bytes."""
    return rows * (sites * row_bytes(d, dtype) + 4)


def sae_weights(d: int, n: int, gated: bool = False) -> int:
    """W_enc, W_dec, b_dec, and one bias a latent, or the three of a gate."""
    return 2 * d * n + d + n * (3 if gated else 1)


def step_flops(
    d: int, n: int, batch: int, active: float | int | None = None, full: bool = False
) -> float | int:
    """A training step. Dense (`active` None): five products of 2 n d batch, seven with the
    auxiliary term of `full`.

    Sparse: the encoder's product alone is dense; decoder, code gradients and two weight gradients
    take 2 d for each active code of the batch, the auxiliary term twice more.
    """
    if active is None:
        return (14 if full else 10) * n * d * batch
    return 2 * n * d * batch + (12 if full else 8) * d * batch * active


def at_once(memory: float | int, d: int, n: int, batch: int) -> int:
    """SAEs of n latents that can be trained together in so many bytes; a dense step's three [batch,
    n] come once.
    """
    return max(0, int((memory - 12 * batch * n) // (TRAINED * sae_weights(d, n, gated=True))))
