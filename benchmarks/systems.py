"""The systems that are compared: whose trainer, which of saelib's classes holds it, what sets L0.

Names are "<library> <kind>". A peer's SAE is read into the class of `arch`, so that those of one
`arch` are one architecture, whatever objective they were trained with.
"""

from __future__ import annotations

from typing import NamedTuple

OURS = "saelib"
# Learning rates that are tried first; where the best is at an end, further ones follow.
OUR_RATES = (5e-3, 1e-2, 2e-2)
OUR_RATES_OF_K = (3.5e-3, 7e-3, 1.4e-2)
ADAM_RATES = (1e-3, 3e-3, 9e-3)
SIGN_RATES = (1.5e-3, 4.5e-3, 1.35e-2)  # sparsify's own default is 1.3e-2 at 2,304 latents


class Shape(NamedTuple):
    """The size of one training."""

    d: int  # width of the rows
    n: int  # latents
    batch: int  # rows a step
    steps: int


class System(NamedTuple):
    """One way to train an SAE."""

    arch: str  # key of saelib's ARCHITECTURES
    loss: str  # of ours, the objective; of a peer's, the objective of ours that is nearest
    knob: str  # what sets L0: "lam" (L0 falls as it rises), "k" or "target_l0" (L0 rises with it)
    begin: tuple[float, ...]  # first values of the knob; empty: the L0 that are asked for
    rates: tuple[float, ...]  # learning rates

    @property
    def rises(self) -> bool:
        """Whether L0 rises with the knob, which is then a whole number near L0."""
        return self.knob != "lam"


def _selecting(arch: str, rates: tuple[float, ...]) -> System:
    """A system whose k is set."""
    return System(arch, arch, "k", (), rates)


# First values are for L0 16 to 64 at profile default's size. Of dictionary_learning they are in the
# units of rows of norm 1, see `peers_dictionary_learning`.
SYSTEMS = {
    "saelib plain": System("sae", "plain", "lam", (0.8, 3.0), OUR_RATES),
    "saelib full": System("gated", "full", "lam", (1.2, 5.0), OUR_RATES),
    "saelib topk": _selecting("topk", OUR_RATES_OF_K),
    "saelib batchtopk": _selecting("batchtopk", OUR_RATES_OF_K),
    "saelib jumprelu": System("jumprelu", "jumprelu", "lam", (0.6, 3.2), OUR_RATES),
    "saelib jumprelu_tanh": System("jumprelu", "jumprelu_tanh", "lam", (0.3, 1.8), OUR_RATES),
    "saelib matryoshka": _selecting("matryoshka", OUR_RATES_OF_K),
    "saelib p_anneal": System("p_anneal", "p_anneal", "lam", (0.8, 2.3), OUR_RATES),
    "SAELens standard": System("sae", "plain", "lam", (1.5, 5.0), ADAM_RATES),
    "SAELens gated": System("gated", "full", "lam", (1.5, 6.0), ADAM_RATES),
    "SAELens topk": _selecting("topk", ADAM_RATES),
    "SAELens batchtopk": _selecting("batchtopk", ADAM_RATES),
    "SAELens jumprelu": System("jumprelu", "jumprelu", "lam", (0.6, 3.2), ADAM_RATES),
    "SAELens jumprelu_tanh": System("jumprelu", "jumprelu_tanh", "lam", (1.0, 5.0), ADAM_RATES),
    "SAELens matryoshka": _selecting("matryoshka", ADAM_RATES),
    "dictionary_learning standard": System("sae", "plain", "lam", (0.12, 0.33), ADAM_RATES),
    "dictionary_learning gated": System("gated", "full", "lam", (0.12, 0.33), ADAM_RATES),
    "dictionary_learning topk": _selecting("topk", ADAM_RATES),
    "dictionary_learning batchtopk": _selecting("batchtopk", ADAM_RATES),
    "dictionary_learning jumprelu": System("jumprelu", "jumprelu", "target_l0", (), ADAM_RATES),
    "dictionary_learning matryoshka": _selecting("matryoshka", ADAM_RATES),
    "dictionary_learning p_anneal": System("p_anneal", "p_anneal", "lam", (0.02, 0.08), ADAM_RATES),
    "sparsify topk": _selecting("topk", SIGN_RATES),
}


def is_ours(system: str) -> bool:
    """Whether a system is this package's."""
    return system.partition(" ")[0] == OURS


def peers_of(system: str, among: list[str]) -> list[str]:
    """The peers among those systems that have the same architecture."""
    arch = SYSTEMS[system].arch
    return [name for name in among if not is_ours(name) and SYSTEMS[name].arch == arch]
