"""Names of `geometry` and `gates` until the notebooks use those; then this goes."""

from saelib.measure.gates import gate_statistics
from saelib.measure.geometry import (
    massive_dims,
    massive_tokens,
    naive_predictors,
    norm_by_position,
    norms_by_position,
    pca_fvu,
    predictor_fvu,
    site_profile,
    spectrum,
)

__all__ = [
    "gate_statistics",
    "massive_dims",
    "massive_tokens",
    "naive_predictors",
    "norm_by_position",
    "norms_by_position",
    "pca_fvu",
    "predictor_fvu",
    "site_profile",
    "spectrum",
]
