"""Sparse autoencoders on a language model's residual stream.

Names used everywhere, in code, docs, plots and tables:

    x       [batch, d_in]          activations at a site (the model's `hidden_states[site]`)
    pre     [batch, n_latents]     encoder pre-activations
    f       [batch, n_latents]     codes, f >= 0
    x_hat   [batch, d_in]          reconstruction
    W_enc   [d_in, n_latents]      encoder (the Gated SAE's W_gate is its W_enc)
    W_dec   [n_latents, d_in]      decoder, one row a latent
    b_enc, b_dec, r_mag, b_mag, b_gate

Errors are sums over d_in and means over tokens. Lower FVU is better; it is the fraction
*un*explained.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# What stands here for short, and the module that it is from: loaded when it is first asked for.
ENTRANCES = {"fit": ("saelib.run.fit", "fit"), "open": ("saelib.run.opening", "open_lens")}


def __getattr__(name: str) -> Any:
    if name not in ENTRANCES:
        raise AttributeError(f"module 'saelib' has no attribute {name!r}")
    module, attribute = ENTRANCES[name]
    return getattr(importlib.import_module(module), attribute)
