"""The embedded model with a random SAE of 32,768 latents: what the browser's times are taken on."""

import math
import os
from pathlib import Path

import numpy as np
import torch

from saelib.activations.moments import row_moments
from saelib.config import CollectConfig, CorpusConfig, SAEConfig
from saelib.measure.lens import Lens
from saelib.run.workspace import Workspace
from saelib.sae import build_sae
from saelib.text.models import EMBEDDED, MODELS
from saelib.text.pinned import assets_dir

LATENTS, L0, SITE = 32_768, 32, 15
CELL = """
from saelib.measure.lens import Lens
from saelib.run.workspace import Workspace
from saelib.sae import load_sae
ws = Workspace("large", "cpu")
folder = ws.folder / "saes" / "random"
lens = Lens(ws.lm, load_sae(folder), ws.store, folder / "features")
"""


def embedded_model_is_there():
    """Whether the model was fetched before: a test fetches nothing."""
    return (assets_dir() / MODELS[EMBEDDED].folder).is_dir()


def write_large_lens(home, pages=60):
    """A profile "large" with a store of some pages, the SAE, and its index; `CELL` opens it.

    Returns the number of the index's tokens.
    """
    assets = assets_dir().resolve()
    (Path(home) / "data").mkdir(parents=True)
    (Path(home) / "data" / "assets").symlink_to(assets)
    before = os.environ.get("SAELIB_HOME")
    os.environ["SAELIB_HOME"] = str(home)
    try:
        ws = Workspace("large", "cpu")
        corpus = CorpusConfig(source="embedded", n_docs=pages, contexts_per_page=4)
        ws.collect("embedded", corpus, [SITE], CollectConfig(), "float32")
        sae = random_sae(ws.store, SITE, ws.store.d_model)
        folder = ws.folder / "saes" / "random"
        sae.save(folder)
        return len(Lens(ws.lm, sae, ws.store, folder / "features").index.tokens)
    finally:
        os.environ.pop("SAELIB_HOME") if before is None else os.environ.update(SAELIB_HOME=before)


def random_sae(store, site, d_in):
    """A TopK SAE with random weights: its L0 is k, whatever the weights are."""
    config = SAEConfig("topk", d_in, LATENTS, site, options={"k": L0, "aux_k": 0})
    sae = build_sae(config, torch.Generator().manual_seed(0))
    moments = row_moments(store, site, np.flatnonzero(store.mask("ordinary", "train")))
    sae.set_normalizer_(moments.mean.float(), math.sqrt(d_in / moments.mean_sq_dev))
    return sae.requires_grad_(False)
