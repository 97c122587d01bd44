"""Controls of a dictionary: as it is, and with shuffled decoder rows."""

import numpy as np
import pytest
import torch

from saelib.sae.spec import make_spec
from saelib.study.controls import shuffled_decoders, shuffled_order


class Identity:
    """An SAE of four latents that rebuilds x by one latent per dimension."""

    def __init__(self):
        self.W_dec = torch.eye(4)

    def reconstruct(self, x):
        return x @ self.W_dec


class OneStore:
    """A workspace with one store of four rows and one SAE."""

    @property
    def store(self):
        return self

    def mask(self, tokens, split):
        assert (tokens, split) == ("ordinary", "test")
        return np.ones(4, dtype=bool)

    def rows(self, site, index):
        return torch.eye(4)[index]

    def load(self, spec):
        return Identity()


SPEC = make_spec("plain", 2, 4, lam=1.0, n_latents=4, tokens=64, batch_size=64)


def test_a_perfect_dictionary_fails_with_shuffled_decoder_rows():
    table = shuffled_decoders(OneStore(), [SPEC, SPEC])
    assert list(table.columns) == ["fvu", "shuffled"]
    assert table["fvu"].tolist() == pytest.approx([0.0, 0.0])
    assert (table["shuffled"] > 1).all()


def test_the_order_is_the_same_every_time():
    assert shuffled_order(8).tolist() == shuffled_order(8).tolist()
    assert sorted(shuffled_order(8).tolist()) == list(range(8))
