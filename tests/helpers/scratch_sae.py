"""A scratch architecture, for tests that any class of the table can be trained and measured."""

import torch

from saelib.sae import Autoencoder
from saelib.sae.losses import LossTerms, squared_error


class HardTanhSAE(Autoencoder):
    """A scratch architecture: it has a `b_enc`, and codes that a ReLU would not give."""

    LOSSES = ("hardtanh",)

    @classmethod
    def bias_names(cls):
        return ("b_enc",)

    def encode(self, x):
        return ((x - self.b_dec) @ self.W_enc + self.b_enc).clamp(0.0, 2.0)

    def loss_terms(self, x, lam, how):
        f = self.encode(x)
        mse = squared_error(x, self.decode(f))
        return LossTerms(mse, lam * f.sum(-1), torch.zeros_like(mse))
