"""What a lone SAE folder says of itself: model, text, site, and a checksum of its weights.

`metrics.json` holds it as "origin" from the SAE's measurement on. Folders measured before have the
model and the text in their row alone, and no checksum. That the folder was sealed stands, as
"sealed", in a run's train.json and metrics.json too, so that a lost seal.json is noticed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from saelib.config import IN_WORDS
from saelib.files import read_json
from saelib.seal import SEAL, SealError, checked, is_listed, remedy, sha256_of

SEALED = "sealed"  # the format of the seal that was written beside a run's JSON file


class Origin(NamedTuple):
    """Where an SAE comes from; a field is empty where its folder does not say."""

    model: str  # name and checksum of the language model
    text: str  # hash of the tokenised corpus
    site: int
    weights: str  # SHA-256 of weights.safetensors


def digest(folder: Path) -> str:
    """SHA-256 of weights.safetensors, in hex."""
    return sha256_of(folder / "weights.safetensors")


def origin(folder: Path) -> Origin:
    """What the folder of an SAE says of itself.

    Raises:
        ValueError: a file is damaged, or a field of another type; names it.
        FileNotFoundError: it holds no (finished) SAE.
    """
    config = _mapping(folder / "config.json")
    stated, row = _measured(folder, "origin"), _measured(folder, "row")
    site = _field(config, "site", int, folder / "config.json")
    if site is None:
        raise ValueError(f"{folder / 'config.json'}: site is missing")
    return Origin(
        model=stated.get("model") or row.get("model_id") or "",
        text=stated.get("text") or row.get("corpus_id") or "",
        site=site,
        weights=_field(stated, "weights", str, folder / "metrics.json") or "",
    )


def _field(values: dict[str, Any], name: str, kind: type, file: Path) -> Any:
    """A field of that type; None where it is missing."""
    value = values.get(name)
    if value is not None and type(value) is not kind:
        raise ValueError(f"{file}: {name} = {value!r:.80}: expected {IN_WORDS[kind]}")
    return value


def _measured(folder: Path, name: str) -> dict[str, Any]:
    """A part of metrics.json; empty where it has none."""
    file = folder / "metrics.json"
    metrics = _mapping(file) if file.exists() and is_listed(file) else {}
    return _field(metrics, name, dict, file) or {}


def _mapping(file: Path) -> dict[str, Any]:
    return _fields(checked(file))


def _fields(file: Path) -> dict[str, Any]:
    values = read_json(file)
    if not isinstance(values, dict):
        raise ValueError(f"{file}: expected a mapping of fields, found {values!r:.80}")
    return values


def check_weights(folder: Path) -> None:
    """Refuse weights that are not those which were measured.

    Raises:
        ValueError: another checksum than the folder states.
    """
    stated = _measured(folder, "origin").get("weights")
    if stated and stated != (actual := digest(folder)):
        raise ValueError(
            f"{folder / 'weights.safetensors'}: SHA-256 {actual[:12]}…, metrics.json says "
            f"{stated!s:.12}…: not the weights that were measured"
        )


def require_seal(folder: Path) -> None:
    """Refuse a folder without a seal whose finished SAE was sealed: nothing in it can be checked.

    Of a folder older than seals train.json and metrics.json know none.

    Raises:
        SealError: train.json or metrics.json was written beside a seal.
        ValueError: one of them is damaged; names it.
    """
    if not (folder / "config.json").exists():  # a kill may have come before the first seal
        return
    for name in ("train.json", "metrics.json"):
        if (folder / name).exists() and SEALED in _fields(folder / name):
            raise SealError(
                f"{folder / SEAL}: missing, {name} beside it was sealed; "
                f"{remedy(folder / 'config.json')}"
            )
