"""A baseline of F3d: SAEs trained and measured on rows without structure between dimensions.

Each dimension keeps its values and loses what it shares with the others, so that an SAE's FVU here
is what the marginal distributions alone allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelib.measure.dictionary import ShuffledDims, shuffled_dims
from saelib.measure.reconstruction import fvu
from saelib.sae import build_sae
from saelib.sae.group import train as train_sae
from saelib.sae.spec import Spec
from saelib.study.f3_sites import Compared
from saelib.study.matched import interpolate_matched_l0, propose_lambda
from saelib.study.notebooks import LayerParams

FURTHER = 3  # λ tried beyond the given ones while the target L0 is not between two
Point = tuple[float, float]  # L0 on validation rows, FVU on test rows


def ordinary_rows(store: Any, site: int, split: str, n: int) -> tuple[Tensor, np.ndarray]:
    """Up to n ordinary rows of a split in random order [n, d], model units, and pages [n]."""
    rows = np.flatnonzero(store.mask("ordinary", split))
    rows = np.random.default_rng(0).choice(rows, min(n, len(rows)), replace=False)
    return store.rows(site, rows).float(), store.tokens["page"][rows]


def train(ws: Any, p: LayerParams, compared: Compared) -> dict[int, dict[float, Point]]:
    """SAEs trained and measured on rows whose dimensions are shuffled: λ -> point, by site.

    Up to `FURTHER` λ more while the target L0 does not lie between two.
    """
    points = {
        site: {lam: measured_point(ws, p, site, lam) for lam in p.shuffled_lambdas}
        for site in compared.sites
    }
    for site, _ in product(compared.sites, range(FURTHER)):
        pairs = [(lam, l0) for lam, (l0, _) in points[site].items()]
        further = propose_lambda(pairs, p.l0_target, max_ratio=np.inf)
        if further:
            lam = float(f"{further:.4g}")
            points[site][lam] = measured_point(ws, p, site, lam)
    return points


def measured_point(ws: Any, p: LayerParams, site: int, lam: float) -> Point:
    """L0 and FVU of one SAE on shuffled rows."""
    sae = without_structure(ws, ws.spec("plain", site, lam=lam, seed=p.seeds[0], **p.spec_fields()))
    rows = {
        split: shuffled_dims(ordinary_rows(ws.store, site, split, p.split_tokens)[0], 0)
        for split in ("val", "test")
    }
    l0 = float((sae.encode_raw(rows["val"]) > 0).sum(1).float().mean())
    return l0, fvu(rows["test"], sae.reconstruct(rows["test"]))


def without_structure(ws: Any, spec: Spec) -> Any:
    """An SAE trained on the spec's rows with their dimensions shuffled."""
    generator = torch.Generator().manual_seed(spec.train.seed)
    sae = build_sae(spec.sae, generator).to(ws.lm.device)
    sae.set_normalizer_(*ws.normalizer(spec.sae.site, "center_scale", "ordinary"))
    train_sae(sae, ShuffledDims(ws.stream(spec)), spec.train)
    return sae.requires_grad_(False).cpu()


def matched_fvu(
    points: Mapping[int, Mapping[float, Point]], l0_target: float
) -> dict[int, float | None]:
    """FVU at the target L0 by site, None where it is not reached."""
    return {
        site: interpolate_matched_l0(*zip(*by_lambda.values(), strict=True), l0_target)
        for site, by_lambda in points.items()
    }
