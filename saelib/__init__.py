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

__version__ = "0.1.0"
