"""Opening a lens: by profile, site and L0, or an SAE's folder with its language model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from saelib.activations.lm import LM
from saelib.config import ConfigError
from saelib.env import data_dir
from saelib.files import is_there
from saelib.measure.features.identity import SHORT, sae_checksum
from saelib.measure.features.index import FEATURES
from saelib.measure.indexed import Split
from saelib.measure.latents import finite_number
from saelib.measure.lens import Lens, Subject
from saelib.run.workspace import Workspace
from saelib.sae.base import check_store
from saelib.sae.formats import load
from saelib.sae.formats.download import SCHEME
from saelib.show.explore.names import subject_name
from saelib.text.models import resolve_model

log = logging.getLogger(__name__)

RESULTS = "results.csv"  # a profile's folder has it once its first SAE is measured
CLOSE = 0.1  # SAEs whose L0 is within this share of the one asked for are equally near


def open_lens(
    source: str | Path,
    *,
    site: int | str | None = None,
    l0: float | int = 32,
    arch: str | None = None,
    model: str | None = None,
    profile: str | None = None,
    split: Split = "test",
) -> Lens:
    """A lens on an SAE: of a profile the best near `l0` at a site, or the one in a folder.

    source: a profile; or an SAE's folder, of this package or of a known format, or one of the hub's
    ("hf://owner/name/folder"). Of a profile: site, or any without it; arch, an architecture or arm,
    any without it. A folder needs `model` (a hub id, a folder or a .gguf file), or `profile`, whose
    model and test pages it is seen by. split: other pages in the place of test pages. A warning
    says where no SAE has that L0.

    Raises:
        ConfigError, FileNotFoundError, FormatError: there is no such SAE, profile or model, or an
            argument does not apply; says what is there.
    """
    if _is_profile(source):
        if model is not None or profile is not None:
            raise ConfigError(f"{source} is a profile; model and profile are for an SAE's folder")
        return _open_profile(str(source), site, l0, arch, split)
    if str(source).startswith(SCHEME) or is_there(source):
        if arch is not None:
            raise ConfigError(f"arch = {arch!r} chooses among a profile's SAEs; {source} is one")
        return _open_folder(source, site, model, profile, split)
    raise FileNotFoundError(
        f"{source}: neither an SAE's folder nor a finished profile; {_profiles()}"
    )


def _is_profile(source: str | Path) -> bool:
    """Whether it is the name of a folder in data/ that lists its SAEs."""
    name = str(source)
    is_name = bool(name) and Path(name).name == name and name not in (".", "..")
    return is_name and (data_dir(name) / RESULTS).is_file()


def _profiles() -> str:
    """Which profiles there are, in words."""
    names = sorted(path.parent.name for path in data_dir("").glob(f"*/{RESULTS}"))
    if not names:
        return f"{data_dir('')} has none: run `make workbook` first"
    return f"{data_dir('')} has {', '.join(names)}"


def _open_profile(
    name: str, site: int | str | None, l0: float | int, arch: str | None, split: Split
) -> Lens:
    ws = Workspace(name)
    run = nearest_run(ws.results(), None if site is None else ws.site(site), l0, arch)
    lens = _open_run(ws, split, run.to_dict())
    if abs(np.log(run["l0_val"] / l0)) > np.log1p(CLOSE):
        log.warning(f"no SAE there has an L0 near {l0:g}; opened {lens.name}")
    return lens


def _open_folder(
    source: str | Path,
    site: int | str | None,
    model: str | None,
    profile: str | None,
    split: Split,
) -> Lens:
    """An SAE that a profile trained, or one of another make."""
    if (model is None) == (profile is None):
        raise ConfigError(
            f"{source}: name either the SAE's language model (model) or a profile of it (profile)"
        )
    if profile is None:
        lm = LM.load(resolve_model(str(model)))
        return Lens(lm, load(source, site=None if site is None else lm.site(site)))
    ws = Workspace(profile)
    rows = ws.results()
    mine = [ws.run_folder(run).resolve() == Path(source).resolve() for run in rows["run_id"]]
    if any(mine) and site in (None, rows[mine].iloc[0]["site"]):
        return _open_run(ws, split, rows[mine].iloc[0].to_dict())
    sae = load(source, site=None if site is None else ws.site(site))
    check_store(sae, ws.store.d_model, tuple(ws.store.sites))
    folder = ws.folder / FEATURES / sae_checksum(sae)[:SHORT]
    return Lens(ws.lm, sae, ws.store, folder, split=split)


def subjects(ws: Workspace, rows: pd.DataFrame, split: Split = "test") -> list[Subject]:
    """The SAEs of rows of results, to be looked at on a split's pages.

    Those whose folders are gone are left out.
    """
    there = [ws.run(run).is_trained for run in rows["run_id"]]
    facts = rows[there].to_dict("records")
    return [Subject(subject_name(row), row, partial(_open_run, ws, split, row)) for row in facts]


def _open_run(ws: Workspace, split: Split, row: Mapping[str, Any]) -> Lens:
    folder = ws.run_folder(str(row["run_id"]))
    others = subjects(ws, relatives(ws.results(), row), split)
    name = subject_name(row)
    sae = ws.run(str(row["run_id"])).load()
    return Lens(ws.lm, sae, ws.store, folder / FEATURES, others, name, row, split)


RECIPE = (
    *("normalize", "tokens_mask", "n_latents", "tokens_trained", "lr", "schedule", "resample"),
    *("b_dec_init", "batch_size", "warmup"),
)


def relatives(results: pd.DataFrame, row: Mapping[str, Any]) -> pd.DataFrame:
    """Runs of the same recipe that a run's latents are compared with, nearest in L0 of each kind.

    The same arm and λ with other seeds; the same arm at the next lower and higher λ; other arms at
    the site; the same arm at other sites.
    """
    same = (results[list(RECIPE)] == pd.Series({name: row[name] for name in RECIPE})).all(axis=1)
    rows = results[same & (results["l0_val"] > 0) & (results["run_id"] != row["run_id"])]
    rows = rows.assign(distance=np.log(rows["l0_val"] / row["l0_val"]).abs())
    here = rows["site"] == row["site"]
    arm = rows["arm"] == row["arm"]
    seed = rows["seed"] == row["seed"]
    weight = rows["lambda"]
    kinds = [
        rows[here & arm & ~seed & (weight == row["lambda"])].drop_duplicates("seed"),
        rows[here & arm & seed & (weight < row["lambda"])].nlargest(1, "lambda"),
        rows[here & arm & seed & (weight > row["lambda"])].nsmallest(1, "lambda"),
        rows[here & ~arm & seed].sort_values("distance").drop_duplicates("arm"),
        rows[~here & arm & seed].sort_values("distance").drop_duplicates("site"),
    ]
    return pd.concat(kinds).drop(columns="distance").reset_index(drop=True)


def nearest_run(
    results: pd.DataFrame, site: int | None, l0: float | int, arch: str | None
) -> pd.Series:
    """The row of lowest FVU on validation pages among those whose L0 there is near enough.

    Near enough: within a tenth of `l0`, or no row is nearer.

    Only SAEs of normalised ordinary tokens: the others are the original experiment's.

    Raises:
        ConfigError: no row fits; says what the table has.
    """
    usual = (results["normalize"] == "center_scale") & (results["tokens_mask"] == "ordinary")
    rows = results[usual & (results["l0_val"] > 0)]
    if arch is not None:
        rows = rows[(rows["arch"] == arch) | (rows["arm"] == arch)]
        if rows.empty:
            names = dict.fromkeys([*results["arch"], *results["arm"]])
            accepted = ", ".join(map(repr, names))
            raise ConfigError(f"arch = {arch!r}: no such SAE here; expected one of {accepted}")
    if site is not None:
        sites = sorted(set(rows["site"]))
        rows = rows[rows["site"] == site]
        if rows.empty:
            raise ConfigError(f"site = {site}: no SAE there; expected one of {sites}")
    if rows.empty:
        raise ConfigError("results.csv lists no SAE of normalised ordinary tokens")
    if not finite_number(l0, "l0") > 0:
        raise ConfigError(f"l0 = {l0!r}: expected above 0")
    distance = np.log(rows["l0_val"] / l0).abs()
    near = rows[distance <= max(distance.min(), np.log1p(CLOSE))]
    return near.sort_values(["fvu_val", "run_id"]).iloc[0]
