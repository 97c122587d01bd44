"""The figures under the name that notebooks still use; new code imports its chapter's module."""

from saelib.show.activations import (
    class_shares,
    mean_offset_and_dims,
    norm_by_position,
    norm_of_first_word,
    norm_profile,
    spectra,
)
from saelib.show.compare import interval_points, waterfall
from saelib.show.depth import by_depth, layer_matched, layer_reconstruction
from saelib.show.style import (
    L0_FLOOR,
    LOOKS,
    METRIC_LABELS,
    OTHER_COLORS,
    indexed,
    looks_of,
    save_figure,
    show,
    site_color,
    to_png,
)
from saelib.show.tradeoff import shrinkage, trade_off, trade_off_by_lambda
from saelib.show.training import (
    dead_over_time,
    feature_density,
    gate_over_training,
    learning_curves,
    survivors,
)

__all__ = [
    "L0_FLOOR",
    "LOOKS",
    "METRIC_LABELS",
    "OTHER_COLORS",
    "by_depth",
    "class_shares",
    "dead_over_time",
    "feature_density",
    "gate_over_training",
    "indexed",
    "interval_points",
    "layer_matched",
    "layer_reconstruction",
    "learning_curves",
    "looks_of",
    "mean_offset_and_dims",
    "norm_by_position",
    "norm_of_first_word",
    "norm_profile",
    "save_figure",
    "show",
    "shrinkage",
    "site_color",
    "spectra",
    "survivors",
    "to_png",
    "trade_off",
    "trade_off_by_lambda",
    "waterfall",
]
