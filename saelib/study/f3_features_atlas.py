"""The indices that notebook 06 looks through, and an atlas for each site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from saelib.env import ATLAS
from saelib.measure.features import FeatureIndex, matches
from saelib.measure.features.index import FEATURES
from saelib.measure.lens import Lens
from saelib.sae.spec import Spec
from saelib.show.explore.atlas import write_atlas
from saelib.show.explore.names import subject_name
from saelib.study.f3_features import Cell
from saelib.study.scope import Scope


class Indexed(NamedTuple):
    """An SAE whose features are indexed."""

    name: str
    facts: Mapping[str, Any]  # its row of results
    index: FeatureIndex


def plain_indices(ws: Any, cells: Mapping[Cell, Sequence[Spec]]) -> dict[int, list[Indexed]]:
    """Indices of the plain SAEs by site, seed by seed; what is missing is built."""
    results = ws.results().set_index("run_id", drop=False)
    plain = {site: specs for (arm, site), specs in sorted(cells.items()) if arm == "plain"}
    return {site: [_indexed(ws, spec, results) for spec in specs] for site, specs in plain.items()}


def _indexed(ws: Any, spec: Spec, results: pd.DataFrame) -> Indexed:
    row = results.loc[ws.run_id(spec)].to_dict()
    lens = Lens(ws.lm, ws.load(spec), ws.store, ws.run_folder(spec) / FEATURES)
    return Indexed(subject_name(row), row, lens.index)


def first_indices(indexed: Mapping[int, Sequence[Indexed]]) -> dict[int, FeatureIndex]:
    """The first seed's index of each site."""
    return {site: ones[0].index for site, ones in indexed.items()}


def summary(indexed: Mapping[int, Sequence[Indexed]]) -> str:
    """How many indices there are, of what size."""
    every = [one for ones in indexed.values() for one in ones]
    if not every:
        return "no plain SAE has the L0 of the comparison"
    one = every[0].index
    return (
        f"{len(every)} indices of {one.n_latents:,} latents each, on "
        f"{one.manifest['n_ordinary']:,} ordinary test tokens"
    )


def write_atlases(ws: Any, indexed: Mapping[int, Sequence[Indexed]], scope: Scope) -> list[Path]:
    """Write an atlas of the first seed's SAE at each site; twins are other seeds and other sites.

    Each page links to those of the other sites.
    """
    firsts = {site: ones[0] for site, ones in indexed.items()}
    files = {one.name: atlas_file(site) for site, one in firsts.items()}
    written = []
    for site, one in firsts.items():
        others = [*indexed[site][1:], *(other for s, other in firsts.items() if s != site)]
        path = write_atlas(
            ws.folder / ATLAS / atlas_file(site),
            one.index,
            ws.lm.tokenizer,
            f"{one.name} · {scope.model}",
            {name: one.facts[name] for name in ("l0", "fvu", "loss_recovered")},
            twins={other.name: matches(one.index, other.index) for other in others},
            pages=files,
            links=[(atlas_file(s), f"site {s}") for s in firsts if s != site],
        )
        written.append(path)
    return written


def atlas_file(site: int) -> str:
    """Name of a site's atlas, below the folder `ATLAS`."""
    return f"site_{site:02d}.html"
