"""What a profile was collected from, what its rows are called, and the versions its results state.

`data/<profile>/workspace.json` names model, text and streaming. A profile goes on with what it was
collected from and refuses anything else, so that no table mixes two models or two texts.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saelib import __version__
from saelib.config import ConfigError, EvalConfig, stable_hash
from saelib.files import read_json, write_json
from saelib.versions import MEASURING_VERSION, STREAMING_VERSION, TRAINING_VERSION

IDENTITY_FILE = "workspace.json"
SEALED = "hash"  # of the other fields of the file
STORE = "store_id"  # of the finished store
ROWS_OF = (
    "rows_of"  # ids of the model and the contexts that are collected, known before the store's
)
FINGERPRINT = "fingerprint"  # of the model that was collected with
REMEDY = "delete it and run notebook 01 again"
FIXED = ("model", "dtype", "corpus", "stream")  # a profile's folder holds one of each

log = logging.getLogger(__name__)


def code_version() -> str:
    """The versions of the package and of its training arithmetic, as the results table has them."""
    return f"{__version__}+training.{TRAINING_VERSION}"


def measurement(evaluation: EvalConfig) -> dict[str, Any]:
    """What a measurement depends on beside the SAE and the store."""
    return evaluation.to_dict() | {"version": MEASURING_VERSION}


def read_identity(folder: Path, profile: str) -> dict[str, Any]:
    """Model, text and streaming of a profile, as they were written.

    A file of an earlier version, without a hash, opens with a notice.

    Raises:
        FileNotFoundError: nothing was collected; says what to run.
        ValueError: the file is damaged; names it.
    """
    path = folder / IDENTITY_FILE
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: run notebook 01_collect with profile {profile!r} first"
        )
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: damaged, found {content!r:.80} for a mapping; {REMEDY}")
    stated = content.pop(SEALED, None)
    if stated is None:
        log.warning("%s: of an earlier version, has no hash; opened unchecked", path)
    elif stated != stable_hash(content):
        raise ValueError(f"{path}: damaged, its content is not what its hash says; {REMEDY}")
    for name, kind in (("model", str), ("dtype", str), ("corpus", dict)):
        if stated is not None and not isinstance(content.get(name), kind):
            raise ValueError(f"{path}: {name} = {content.get(name)!r:.80}: damaged; {REMEDY}")
    if stated is not None and not {"source", "ctx_len"} <= set(content["corpus"]):
        raise ValueError(f"{path}: corpus = {content['corpus']!r:.80}: no description; {REMEDY}")
    return content


def write_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Keep what a profile is collected from, unless it is there already."""
    path = folder / IDENTITY_FILE
    if path.exists():
        recorded = _read(path)
        is_fixed = not os.access(folder, os.W_OK)  # as a finished profile may be
        if recorded == identity or (is_fixed and _is_part(recorded, identity)):
            return
    write_json(path, {**identity, SEALED: stable_hash(dict(identity))})


def _is_part(recorded: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether all that is on record is so; an earlier version recorded less."""
    return all(identity.get(name) == value for name, value in recorded.items())


def require_same_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raise ConfigError where `folder` has another model, text or buffer than `identity`."""
    path = folder / IDENTITY_FILE
    if not path.exists():
        return
    recorded = _read(path)
    for name in FIXED:
        if recorded.get(name) != identity.get(name):
            raise ConfigError(
                f"{path}: {name} is {recorded.get(name)}, now asked for {identity.get(name)}; "
                f"remove {folder} or give the profile another name"
            )


def require_same_store(
    folder: Path, recorded: Mapping[str, Any], manifest: Mapping[str, Any]
) -> None:
    """Raise ValueError where a profile's file is not of the store beside it, by its manifest.

    Of a collection that was killed before the file named its store, by model and contexts. Files of
    earlier versions name neither, and are believed.
    """
    if FINGERPRINT not in recorded:
        return
    kept = {STORE: recorded[STORE]} if STORE in recorded else recorded.get(ROWS_OF, {})
    if not isinstance(kept, dict):
        raise ValueError(f"{folder / IDENTITY_FILE}: {ROWS_OF} = {kept!r:.80}: damaged; {REMEDY}")
    if not kept or any(manifest.get(name) != value for name, value in kept.items()):
        ours = ", ".join(map(str, kept.values())) or "(none)"
        raise ValueError(
            f"{folder / IDENTITY_FILE} is of store {ours}, its store's manifest.json of "
            f"{manifest[STORE]}: they are not of one collection; run notebook 01 again"
        )


def rows_id(store_id: str, identity: Mapping[str, Any]) -> str:
    """Name of the rows that SAEs train on.

    The store's id; of live rows a hash of it, the whole text, and how they are streamed.
    """
    if "stream" not in identity:
        return store_id
    streamed = identity["stream"], identity["corpus_id"]
    return stable_hash(store_id, *streamed, STREAMING_VERSION)
