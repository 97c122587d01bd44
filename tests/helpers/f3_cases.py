"""Hand-made estimates and parameters for the tests of F3."""

import numpy as np

from saelib.study.estimate import Estimate
from saelib.study.f3_sites import Compared
from saelib.study.notebooks import LayerParams
from saelib.study.scope import Scope

COMPARED = Compared((2, 15, 29))
SCOPE = Scope("a small model", n_pages=20, n_seeds=3)


def between(low, high, value=None):
    """An estimate whose 95 % interval is [low, high]."""
    middle = (low + high) / 2 if value is None else value
    return Estimate(np.r_[middle, np.full(500, float(low)), np.full(500, float(high))])


def params(**changed):
    """Parameters of notebook 05."""
    values = {
        "profile": "smoke",
        "device": "cpu",
        "sites": [2, "middle", -2],
        "n_latents": 16,
        "tokens": 640,
        "batch_size": 64,
        "lr": 1e-3,
        "schedule": "linear",
        "lam_warmup": 0.1,
        "warmup": 0.05,
        "grad_clip": 1.0,
        "lambdas": [0.8, 2.5, 8.0],
        "margin": 0.03,
        "original_lam": 5.0,
        "l0_target": 32.0,
        "refine": 0,
        "seeds": [0],
        "ce_tokens": 0,
        "cause_seeds": [0],
        "cause_tokens": 320,
        "cause_latents": 16,
        "cause_batch": 32,
        "cause_lambdas": [3.0, 6.0],
        "split_seeds": [0],
        "split_tokens": 32,
        "learn_tokens": 64,
        "longer": 2.0,
        "wider": 2.0,
        "shuffled_lambdas": [2.0, 5.0],
        "depth_step": 9,
        "depth_contexts": 2,
        "depth_tokens": 320,
        "depth_lambdas": [2.0, 5.0],
    }
    return LayerParams(**values | changed)
