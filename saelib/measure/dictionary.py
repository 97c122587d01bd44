"""What of an SAE's error is its dictionary's, and what its encoder's: other codes, other atoms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelib.measure.pursuit import lasso_at_l1, learn_atoms, nn_omp, refit
from saelib.sae import Autoencoder

LEARN_ROWS = 1024  # training rows per batch when atoms are learned


@torch.no_grad()
def code_errors(
    sae: Autoencoder,
    x: Float[Tensor, "n d"],
    train: Float[Tensor, "m d"],
    others: Mapping[str, Autoencoder] | None = None,
    seed: int = 0,
) -> dict[str, Float[np.ndarray, " n"]]:
    """‖x − x̂‖² of each row (model units) under codes and dictionaries other than an SAE's own.

    `train` are training rows. The keys:

    encoder          the SAE as it is
    refitted         the best codes ≥ 0 on the latents that the encoder chose: what its magnitudes
                     cost
    lasso            the SAE's dictionary under the lasso at the encoder's mean ‖f‖₁
    pursuit          the SAE's dictionary, as many latents on each row as the encoder used, chosen
                     by `nn_omp`
    learned items    pursuit over atoms that were learned with pursuit on `train`, from the SAE's
                     own
    random items     pursuit over random directions

    and by the name of each of `others`, other SAEs of the site: pursuit over its dictionary, with
    the first SAE's number of latents on each row. Raises `ValueError` for a decoder not of unit
    norm.
    """
    others = others or {}
    for one in (sae, *others.values()):
        _check_unit_norm(one)
    target = sae.normalize(x) - sae.b_dec
    codes = sae.encode_raw(x)
    rebuilt = _rebuilt(sae, target, codes, _learned_atoms(sae, train, codes), seed)
    errors = {name: (target - y) / sae.scale for name, y in rebuilt.items()}
    used = _count(codes)
    for name, other in others.items():
        about = other.normalize(x) - other.b_dec
        errors[name] = (about - _pursued(about, other.W_dec, used)) / other.scale
    return {name: e.double().square().sum(-1).cpu().numpy() for name, e in errors.items()}


@torch.no_grad()
def pursuit_errors(
    sae: Autoencoder, x: Float[Tensor, "n d"], counted: Autoencoder
) -> dict[str, Float[np.ndarray, " n"]]:
    """`code_errors` of "encoder" and "pursuit" alone, which cost least.

    Pursuit takes as many latents on each row as the encoder of `counted` uses there, so that the
    dictionaries of several SAEs are compared with equally many. Raises `ValueError` for a decoder
    not of unit norm.
    """
    _check_unit_norm(sae)
    target = sae.normalize(x) - sae.b_dec
    used = _count(counted.encode_raw(x))
    rebuilt = {
        "encoder": sae.encode_raw(x) @ sae.W_dec,
        "pursuit": _pursued(target, sae.W_dec, used),
    }
    return {
        name: ((target - y) / sae.scale).double().square().sum(-1).cpu().numpy()
        for name, y in rebuilt.items()
    }


def _check_unit_norm(sae: Autoencoder) -> None:
    if sae.config.l1_mode != "unit_norm":
        raise ValueError(
            f"l1_mode = {sae.config.l1_mode!r}: codes are compared under a unit-norm decoder alone"
        )


def _count(codes: Tensor) -> Tensor:
    """Latents that fire on each row [n]."""
    return (codes > 0).sum(-1)


def _learned_atoms(sae: Autoencoder, train: Tensor, codes: Tensor) -> Tensor:
    """Atoms learned on training rows, with as many per row as the codes have on average."""
    batches = (sae.normalize(train) - sae.b_dec).split(LEARN_ROWS)
    return learn_atoms(batches, sae.W_dec, max(1, round(float(_count(codes).float().mean()))))


def _rebuilt(
    sae: Autoencoder, target: Tensor, codes: Tensor, learned: Tensor, seed: int
) -> dict[str, Tensor]:
    """The rows [n, d] that each choice of codes and atoms rebuilds, normalised and about b_dec."""
    atoms = sae.W_dec
    used = _count(codes)
    random = random_atoms(len(atoms), sae.config.d_in, seed).to(atoms)
    return {
        "encoder": codes @ atoms,
        "refitted": refit(target, atoms, codes) @ atoms,
        "lasso": lasso_at_l1(target, atoms, codes) @ atoms,
        "pursuit": _pursued(target, atoms, used),
        "learned items": _pursued(target, learned, used),
        "random items": _pursued(target, random, used),
    }


def random_atoms(n: int, width: int, seed: int) -> Float[Tensor, "n width"]:
    """Unit vectors of random direction."""
    drawn = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm(dim=-1, keepdim=True)


def _pursued(target: Tensor, atoms: Tensor, used: Tensor) -> Tensor:
    """Rows rebuilt by pursuit, with `used` [n] atoms on each."""
    return nn_omp(target, atoms, used) @ atoms


def shuffled_dims(x: Float[Tensor, "n d"], seed: int) -> Float[Tensor, "n d"]:
    """Rows whose dimensions are permuted independently.

    Each dimension keeps its values, and loses what it shares with the others.
    """
    generator = torch.Generator(x.device).manual_seed(seed)
    return x.gather(0, torch.rand(x.shape, generator=generator, device=x.device).argsort(0))


class ShuffledDims:
    """A source of rows (`store.ShuffledRows`) with `shuffled_dims` applied to each batch.

    What an SAE finds in it is not in the activations' structure. The same batch is shuffled the
    same way whenever it is read.
    """

    def __init__(self, stream: Any, seed: int = 0) -> None:
        self.stream = stream
        self.seed = seed

    def __next__(self) -> tuple[Tensor, np.ndarray]:
        cursor = self.stream.cursor
        x, rows = next(self.stream)
        return shuffled_dims(x.to(self.stream.device), self.seed + cursor), rows

    def seek(self, cursor: int) -> None:
        """Continue at the row with this number."""
        self.stream.seek(cursor)

    def sample(self, n: int, generator: torch.Generator, cursor: int) -> Tensor:
        """Up to n rows of the source, shuffled among themselves."""
        return shuffled_dims(self.stream.sample(n, generator, cursor), self.seed)
