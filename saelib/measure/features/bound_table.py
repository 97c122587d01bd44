"""A table on disk that says what it belongs to, and whether it is whole.

The first line is a comment with JSON: what the table is bound to, and the sha256 of all that
follows, which is plain CSV.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

import pandas as pd

from saelib.config import stable_hash
from saelib.files import parsed_json, write_text


def write_bound(path: Path, table: pd.DataFrame, binding: Mapping[str, str | int]) -> None:
    """Write a table with its index, whole or not at all."""
    body = table.to_csv()
    head = dict(binding) | {"sha256": _digest(body), "hash": stable_hash(dict(binding))}
    write_text(path, f"# {json.dumps(head, sort_keys=True)}\n{body}")


def read_bound(path: Path, binding: Mapping[str, str | int]) -> pd.DataFrame | None:
    """The table, its first column as index; None where there is no file.

    Raises:
        ValueError: it is damaged, or bound to something else; names the file.
    """
    if not path.exists():
        return None
    head, _, body = path.read_bytes().decode(errors="replace").partition("\n")
    try:
        bound = parsed_json(head.removeprefix("# "))
        whole = bound.pop("sha256") == _digest(body)
        stated = bound.pop("hash", None)  # earlier versions have none
        whole &= stated in (None, stable_hash(bound))
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged (first line); delete it and it is computed anew") from (
            error
        )
    if not whole:
        raise ValueError(f"{path}: damaged (checksum); delete it and it is computed anew")
    for name, value in binding.items():
        if bound.get(name) != value:
            raise ValueError(
                f"{path} is of {name} = {bound.get(name)!r}, not {value!r}; delete it and it is "
                "computed anew"
            )
    return pd.read_csv(StringIO(body), index_col=0)


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
