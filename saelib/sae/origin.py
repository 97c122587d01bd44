"""What a lone SAE folder says of itself: model, text, site, and a checksum of its weights.

`metrics.json` holds it as "origin" from the SAE's measurement on. Folders measured before have the
model and the text in their row alone, and no checksum.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from saelib.config import IN_WORDS
from saelib.files import read_json
from saelib.seal import checked, is_listed, sha256_of


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
    measured = folder / "metrics.json"
    metrics = _mapping(measured) if measured.exists() and is_listed(measured) else {}
    stated = _field(metrics, "origin", dict, measured) or {}
    row = _field(metrics, "row", dict, measured) or {}
    site = _field(config, "site", int, folder / "config.json")
    if site is None:
        raise ValueError(f"{folder / 'config.json'}: site is missing")
    return Origin(
        model=stated.get("model") or row.get("model_id") or "",
        text=stated.get("text") or row.get("corpus_id") or "",
        site=site,
        weights=_field(stated, "weights", str, measured) or "",
    )


def _field(values: dict[str, Any], name: str, kind: type, file: Path) -> Any:
    """A field of that type; None where it is missing."""
    value = values.get(name)
    if value is not None and type(value) is not kind:
        raise ValueError(f"{file}: {name} = {value!r:.80}: expected {IN_WORDS[kind]}")
    return value


def _mapping(file: Path) -> dict[str, Any]:
    values = read_json(checked(file))
    if not isinstance(values, dict):
        raise ValueError(f"{file}: expected a mapping of fields, found {values!r:.80}")
    return values


def check_weights(folder: Path) -> None:
    """Refuse weights that are not those which were measured.

    Raises:
        ValueError: another checksum than the folder states.
    """
    stated = origin(folder).weights
    if stated and stated != (actual := digest(folder)):
        raise ValueError(
            f"{folder / 'weights.safetensors'}: SHA-256 {actual[:12]}…, metrics.json says "
            f"{stated[:12]}…: not the weights that were measured"
        )
