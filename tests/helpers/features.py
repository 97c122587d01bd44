"""An SAE on the tiny Llama's store, and the plain computation of what an index holds of it."""

import math

import numpy as np
import torch

from helpers.models import D
from helpers.stores import SITE
from saelib.activations.moments import row_moments
from saelib.activations.store import CLASSES
from saelib.config import SAEConfig
from saelib.sae import build_sae
from saelib.text.pages import SPLITS

N_LATENTS = 48
DEAD = 47  # a latent that never fires


def make_sae(store, arch="sae", seed=0, site=SITE, n_latents=N_LATENTS):
    """An SAE with random weights whose latents fire on none to most tokens, with a normaliser."""
    config = SAEConfig(arch=arch, d_in=D, n_latents=n_latents, site=site)
    sae = build_sae(config, torch.Generator().manual_seed(seed))
    moments = row_moments(store, site, np.flatnonzero(store.mask("ordinary", "train")))
    sae.set_normalizer_(moments.mean.float(), math.sqrt(D / moments.mean_sq_dev))
    with torch.no_grad():
        sae.W_enc *= 5
        sae.b_dec += 0.1
        for name in sae.bias_names():
            if name in ("b_enc", "b_gate"):
                getattr(sae, name).sub_(torch.linspace(0, 2.5, n_latents))
                getattr(sae, name)[-1] = -1e6
    return sae.requires_grad_(False)


class Naive:
    """Codes of a split as one dense matrix, and the tokens beside it.

    f [rows, n_latents] over all rows; g likewise, 0 where a row is not ordinary.
    """

    def __init__(self, sae, store, split="test"):
        self.rows = np.flatnonzero(store.tokens["split"] == SPLITS.index(split))
        self.f = sae.encode_raw(store.rows(sae.config.site, self.rows)).numpy()
        self.ordinary = store.mask("ordinary", split)[self.rows]
        self.first = store.tokens["position"][self.rows] == 0
        self.g = np.where(self.ordinary[:, None], self.f, 0)
        self.token = store.tokens["token_id"][self.rows]
        self.context = store.tokens["context"][self.rows]

    def kinds(self, j):
        """Shares of the firings of a latent on first, sink and ordinary tokens, by class name."""
        fires = self.f[:, j] > 0
        masks = (self.first, ~self.first & ~self.ordinary, self.ordinary)
        return {
            name: (fires & mask).sum() / fires.sum() if fires.any() else math.nan
            for name, mask in zip(CLASSES, masks, strict=True)
        }

    def masses(self, j):
        """Activation mass of each token type, by token id."""
        out = {}
        for token, value in zip(self.token.tolist(), self.g[:, j].tolist(), strict=True):
            if value > 0:
                out[token] = out.get(token, 0.0) + value
        return out

    def peaks(self, j):
        """(value, row) of the peak of each context in which a latent fires, by context."""
        out = {}
        for row, value in enumerate(self.g[:, j].tolist()):
            context = int(self.context[row])
            if value > 0 and value > out.get(context, (0, 0))[0]:
                out[context] = (value, row)
        return out

    def jaccard(self, i, j):
        """Tokens on which both fire over tokens on which either does."""
        a, b = self.g[:, i] > 0, self.g[:, j] > 0
        return (a & b).sum() / max((a | b).sum(), 1)
