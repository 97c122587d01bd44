"""SAEs as other libraries lay them out, with random weights, and their equations in plain form."""

import json

import numpy as np
import torch
from safetensors.torch import save_file

from saelib.config import SAEConfig
from saelib.sae import ARCHITECTURES, build_sae

D_IN, N_LATENTS, K = 12, 40, 5


def rows(n=200, seed=2):
    """Rows in model units, away from 0. [n, D_IN]."""
    return 3 * torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed)) + 1


def random_sae(arch, site=6):
    """An SAE of this package with every parameter and its normaliser away from the start."""
    generator = torch.Generator().manual_seed(1)
    options = {"k": K} if ARCHITECTURES[arch].KNOB == "k" else {}
    sae = build_sae(SAEConfig(arch, D_IN, N_LATENTS, site, options=options), generator)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        for name, buffer in sae.named_buffers():
            if name == "threshold":
                buffer.fill_(0.3)
    sae.set_normalizer_(torch.randn(D_IN, generator=generator), 0.5)
    return sae.requires_grad_(False)


def weights(seed=3):
    """W_enc [d, n], W_dec [n, d] of norms about 2, b_enc, b_dec, threshold > 0."""
    g = torch.Generator().manual_seed(seed)
    return {
        "W_enc": 0.4 * torch.randn(D_IN, N_LATENTS, generator=g),
        "W_dec": 0.6 * torch.randn(N_LATENTS, D_IN, generator=g),
        "b_enc": 0.3 * torch.randn(N_LATENTS, generator=g),
        "b_dec": torch.randn(D_IN, generator=g),
        "threshold": 0.1 + torch.rand(N_LATENTS, generator=g),
    }


def top(a, k=K):
    """The k largest of each row, the others 0."""
    values, places = a.topk(k, dim=1)
    return torch.zeros_like(a).scatter(1, places, values)


def write_folder(folder, config_name, config, weights_name, tensors):
    """A JSON file and a safetensors file."""
    (folder / weights_name).parent.mkdir(parents=True, exist_ok=True)
    (folder / config_name).write_text(json.dumps(config))
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / weights_name)
    return folder


def write_gemma_scope(folder, w):
    """params.npz as Gemma Scope has it."""
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: t.numpy() for name, t in w.items()})
    return folder


def agrees(sae, x, f, x_hat):
    """Whether an SAE gives these reconstructions, and as many codes above 0 in each row."""
    ours = sae.reconstruct(x)
    error = float((ours - x_hat).norm() / x_hat.norm())
    same_l0 = torch.equal((sae.encode_raw(x) > 0).sum(1), (f > 0).sum(1))
    return error <= 1e-5 and same_l0
