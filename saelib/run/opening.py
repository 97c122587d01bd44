"""Opening a lens: by profile, site and L0, or an SAE's folder with its language model."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from saelib.activations.lm import LM
from saelib.config import ConfigError
from saelib.env import data_dir
from saelib.measure.lens import Lens
from saelib.run.workspace import Workspace
from saelib.sae import load_sae
from saelib.sae.architectures import ARCHITECTURES
from saelib.text.assets import resolve_model

log = logging.getLogger(__name__)


def open_lens(
    source: str | Path,
    *,
    site: int | str | None = None,
    l0: float | int = 32,
    arch: str | None = None,
    model: str | None = None,
) -> Lens:
    """A lens on an SAE: of a profile the one nearest to `l0` at a site, or the one in a folder.

    arch: an architecture or arm, any without it. model: for a folder, the language model (a hub id,
    a folder or a .gguf file).

    Raises:
        ConfigError, FileNotFoundError: there is no such SAE, profile or model; says what is there.
    """
    if (Path(source) / "config.json").exists():
        if model is None:
            raise ConfigError(f"{source}: model is not given; name the SAE's language model")
        return Lens(LM.load(resolve_model(model)), load_sae(Path(source)))
    if not data_dir(str(source)).is_dir():
        raise FileNotFoundError(
            f"{source}: neither an SAE's folder (with config.json) nor a profile in {data_dir('')}"
        )
    ws = Workspace(str(source))
    run = nearest_run(ws.results(), None if site is None else ws.site(site), l0, arch)
    log.info(f"{run['run_id']}: {run['arm']}, site {run['site']}, L0 {run['l0_val']:.3g}")
    return Lens(ws.lm, load_sae(ws.run_folder(str(run["run_id"]))), ws.store)


def nearest_run(
    results: pd.DataFrame, site: int | None, l0: float | int, arch: str | None
) -> pd.Series:
    """The row nearest to an L0 on validation pages, in ratio; of equal ones that of lowest FVU.

    Only SAEs of normalised ordinary tokens: the others are the original experiment's.

    Raises:
        ConfigError: no row fits; says what the table has.
    """
    usual = (results["normalize"] == "center_scale") & (results["tokens_mask"] == "ordinary")
    rows = results[usual & (results["l0_val"] > 0)]
    if arch is not None:
        rows = rows[(rows["arch"] == arch) | (rows["arm"] == arch)]
        if rows.empty:
            accepted = ", ".join(map(repr, dict.fromkeys([*ARCHITECTURES, *results["arm"]])))
            raise ConfigError(f"arch = {arch!r}: no such SAE here; expected one of {accepted}")
    if site is not None:
        sites = sorted(set(rows["site"]))
        rows = rows[rows["site"] == site]
        if rows.empty:
            raise ConfigError(f"site = {site}: no SAE there; expected one of {sites}")
    if rows.empty:
        raise ConfigError("results.csv lists no SAE of normalised ordinary tokens")
    if not l0 > 0:
        raise ConfigError(f"l0 = {l0!r}: expected above 0")
    distance = np.log(rows["l0_val"] / l0).abs().round(6)
    return rows.assign(distance=distance).sort_values(["distance", "fvu"]).iloc[0]
