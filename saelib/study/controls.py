"""Controls of any dictionary: the mean predictor, and the SAE with shuffled decoder rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch

from saelib.measure.reconstruction import fvu
from saelib.sae.spec import Spec

CONTROL_ROWS = 2048  # ordinary test rows


def shuffled_decoders(ws: Any, specs: Iterable[Spec]) -> pd.DataFrame:
    """FVU of trained SAEs on held-out rows, as they are and with shuffled decoder rows.

    Columns fvu, shuffled; one row per spec, in order. The mean predictor has FVU 1 by definition.
    """
    index = np.flatnonzero(ws.store.mask("ordinary", "test"))[:CONTROL_ROWS]
    rows = []
    for spec in specs:
        x = ws.store.rows(spec.sae.site, index)
        sae = ws.load(spec)
        whole = fvu(x, sae.reconstruct(x))
        sae.W_dec.copy_(sae.W_dec[shuffled_order(len(sae.W_dec))])
        rows.append({"fvu": whole, "shuffled": fvu(x, sae.reconstruct(x))})
    return pd.DataFrame(rows, columns=["fvu", "shuffled"], dtype=float)


def shuffled_order(n_latents: int) -> torch.Tensor:
    """A fixed permutation of latents."""
    return torch.randperm(n_latents, generator=torch.Generator().manual_seed(0))
