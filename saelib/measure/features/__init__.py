"""The features of an SAE: an index of all its latents on disk, ablation, and twins in other SAEs.

`build_index` writes it, `FeatureIndex.open` reads it; `columns` says what its table holds.
"""

from saelib.measure.features.ablation import ablation_losses
from saelib.measure.features.build import build_index
from saelib.measure.features.index import FeatureIndex
from saelib.measure.features.options import IndexOptions
from saelib.measure.features.sources import OwnText
from saelib.measure.features.twins import matches, twins

__all__ = [
    "FeatureIndex",
    "IndexOptions",
    "OwnText",
    "ablation_losses",
    "build_index",
    "matches",
    "twins",
]
