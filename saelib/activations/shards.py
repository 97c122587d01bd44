"""The files of an activation store: names, the int8 form, hashes, and the manifest.

    manifest.json       model, corpus, sites, dtype, config; hash and rows of every shard
    tokens.safetensors  token ids, context bounds, page and split: one copy for all sites
    pages.json          page ids and titles
    site_02/shard_00000.safetensors   x [rows, d_model], norm [rows] float32

With dtype "int8" a shard holds x int8 and beside it scale [rows] and center [d_model], both
float32. A row is x · scale + center, read as float32, and no value is further than scale / 2 from
what was computed (127 · scale is the row's greatest distance from the center). `norm` stays that of
the row as computed, so token classes do not change. A massive activation coarsens its row's other
dimensions: such rows are first or sink tokens, which training leaves out.

A row is a token: row r of every site belongs to token r of the contexts. Nothing in a store depends
on time, path, host or number of writers.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from saelib.config import LARGEST, stable_hash
from saelib.files import parsed_json, read_json, write_bytes

FORMAT = 1
DTYPES = ("float32", "float16", "bfloat16", "int8", "float64")  # of stored rows
CENTER_ROWS = 1024  # first rows of a shard, whose median an int8 shard is centred at
MANIFEST = "manifest.json"
PROGRESS = "progress.jsonl"  # a line for each shard of an unfinished store
RANK_PROGRESS = "progress.rank_{}.jsonl"  # the same, by a rank that does not hold the lock
TOKENS = "tokens.safetensors"
PAGES = "pages.json"
ANEW = "delete it and collect again"
REPAIR = "delete it and collect again: only what is missing is redone"


class StoreError(RuntimeError):
    """A store is damaged, unfinished, busy, or not the one asked for; names the file or field."""


def shard_name(site: int, shard: int) -> str:
    """File of a shard, relative to the store."""
    return f"site_{site:02d}/shard_{shard:05d}.safetensors"


def torch_dtype(name: str | torch.dtype) -> torch.dtype:
    """The dtype of a name such as "bfloat16"."""
    return name if isinstance(name, torch.dtype) else getattr(torch, name)


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def quantised(rows: Shaped[Tensor, "n d_model"]) -> dict[str, Tensor]:
    """Rows as x · scale + center: int8 [n, d_model], float32 [n], float32 [d_model].

    The center is a median, which no order of summation changes and no massive activation moves.
    Without it the few dimensions that are large in every token would coarsen all others. Halves are
    rounded to even. A row that is the center has scale 1.
    """
    center = rows[:CENTER_ROWS].float().median(0).values
    offset = rows - center  # float32, whatever the rows are
    scale = torch.linalg.vector_norm(offset, torch.inf, dim=1) / 127
    scale[scale < torch.finfo(torch.float32).tiny] = 1.0
    x = offset.div_(scale[:, None]).round_().to(torch.int8)
    return {"x": x, "scale": scale, "center": center}


# ---- what the manifest says about a file


def write_recorded(path: Path, data: bytes) -> dict[str, Any]:
    """Write a file whole or not at all; returns the manifest's entry for it."""
    write_bytes(path, data)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def check_sizes(folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """`StoreError` where one of the files is missing or has another size than its entry says."""
    prefix = str(folder)  # a store has hundreds of files, and a `Path` costs more than its size
    for name, entry in entries.items():
        _check_size(f"{prefix}/{name}", entry)


def _check_size(path: str, entry: Mapping[str, Any]) -> None:
    try:
        size = os.stat(path).st_size
    except FileNotFoundError:
        raise StoreError(
            f"{path}: missing; collect again: only what is missing is redone"
        ) from None
    if size != entry["bytes"]:
        raise StoreError(
            f"{path}: truncated or changed, {size} bytes where {entry['bytes']} are recorded; "
            f"{REPAIR}"
        )


def check_hash(path: Path, entry: Mapping[str, Any]) -> None:
    """`StoreError` where the file's content is not what its entry says."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != entry["sha256"]:
        raise StoreError(
            f"{path}: damaged, sha256 {sha256[:12]} where {entry['sha256'][:12]} is recorded; "
            f"{REPAIR}"
        )


# ---- the manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished store.

    Raises `StoreError` where there is none, where it is not JSON, or where it was edited: its
    content must hash to its `store_id`.
    """
    path = folder / MANIFEST
    if not path.is_file():
        unfinished = (folder / PROGRESS).is_file()
        state = "is unfinished: collect again to resume it" if unfinished else "is no store"
        raise StoreError(f"{folder} {state} (no {MANIFEST})")
    try:
        manifest = read_json(path)
    except ValueError as error:
        raise StoreError(f"{error}; delete it and collect again") from error
    if not isinstance(manifest, dict):
        raise StoreError(f"{path}: found {manifest!r:.80} for a mapping; {ANEW}")
    refuse_difference(folder, manifest, {"format": FORMAT})
    content_hash = stable_hash({k: v for k, v in manifest.items() if k != "store_id"})
    if content_hash != manifest.get("store_id"):
        raise StoreError(
            f"{path}: content hashes to {content_hash}, "
            f"its store_id says {manifest.get('store_id')!r}"
        )
    _check_fields(path, manifest)
    return manifest


def _check_fields(path: Path, manifest: Mapping[str, Any]) -> None:
    """`StoreError` naming the first field that no writer leaves so, though the hash is right.

    Files are those that the store's sites and shards have, so that none lies outside the folder.
    """
    for field, (accepts, expected) in FIELDS.items():
        if field not in manifest or not accepts(manifest[field]):
            raise _wrong(path, field, manifest.get(field), expected)
    sites, shards = manifest["sites"], manifest["shards"]
    for number, shard in enumerate(shards):
        names = [shard_name(site, number) for site in sites]
        if not (_is_shard(shard) and shard["shard"] == number and set(shard["files"]) == {*names}):
            expected = f"shard {number}, its rows, and bytes and sha256 of {', '.join(names)}"
            raise _wrong(path, f"shards[{number}]", shard, expected)
    n_rows = sum(shard["rows"] for shard in shards)
    if manifest["n_rows"] != n_rows:
        raise _wrong(path, "n_rows", manifest["n_rows"], f"{n_rows}, the rows of its shards")
    medians = manifest["median_norm"]
    if set(medians) != set(map(str, sites)) or not all(map(_is_norm, medians.values())):
        raise _wrong(path, "median_norm", medians, "a number of each site")


def _wrong(path: Path, field: str, value: Any, expected: str) -> StoreError:
    return StoreError(
        f"{path}: {field} = {value!r:.80}: expected {expected}; delete it and collect again"
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _is_norm(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max


def _is_entry(value: Any) -> bool:
    """Whether it is what `write_recorded` says of a file."""
    if not isinstance(value, dict) or not _is_count(value.get("bytes")):
        return False
    return isinstance(value.get("sha256"), str)


def _is_shard(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if not (_is_count(value.get("rows")) and _is_count(value.get("shard"))):
        return False
    files = value.get("files")
    return isinstance(files, dict) and all(map(_is_entry, files.values()))


def _are_tables(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {TOKENS, PAGES}:
        return False
    return all(map(_is_entry, value.values()))


# What a manifest has: field -> whether a value can stand there, and what is expected.
FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model_id": (lambda value: isinstance(value, str), "a model's name and hash"),
    "corpus_id": (lambda value: isinstance(value, str), "a text's hash"),
    "dtype": (lambda value: value in DTYPES, f"one of {', '.join(DTYPES)}"),
    "sites": (lambda value: isinstance(value, list) and all(map(_is_count, value)), "site numbers"),
    "d_model": (_is_count, "a width"),
    "n_rows": (_is_count, "a number of rows"),
    "files": (_are_tables, f"bytes and sha256 of {TOKENS} and {PAGES}"),
    "shards": (lambda value: isinstance(value, list) and value != [], "a list with an element"),
    "median_norm": (lambda value: isinstance(value, dict), "a number of each site"),
}


def read_progress(path: Path) -> list[dict[str, Any]]:
    """The identity of an unfinished store and its shards; a last line cut by a kill is dropped.

    Raises `StoreError` naming the line that is no entry of such a record.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except UnicodeDecodeError as error:
        raise StoreError(f"{path}: not UTF-8 ({error}); {ANEW}") from error
    if not lines:
        lines = [""]  # in an empty file the identity is missing, which is no JSON
    entries = [_parsed(line, path, number) for number, line in enumerate(lines, 1)]
    sites = entries[0].get("sites")
    if not (isinstance(sites, list) and all(map(_is_count, sites))):
        raise StoreError(f"{path} line 1: sites = {sites!r:.80}: expected site numbers; {ANEW}")
    for number, shard in enumerate(entries[1:], 2):
        names = {shard_name(site, shard["shard"]) for site in sites} if _is_shard(shard) else {}
        if set(shard.get("files", ())) != names or not names:
            raise StoreError(f"{path} line {number}: no shard of this store; {ANEW}")
    return entries


def _parsed(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        entry = parsed_json(line)
    except ValueError as error:
        raise StoreError(f"{path} line {number}: not JSON ({error}); {ANEW}") from error
    if not isinstance(entry, dict):
        raise StoreError(f"{path} line {number}: found {entry!r:.80}, no entry; {ANEW}")
    return entry


def refuse_difference(folder: Path, present: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """`StoreError` naming the first field in which the store is not the one that is wanted."""
    for field, value in wanted.items():
        if isinstance(value, dict) and isinstance(present.get(field, {}), dict):
            refuse_difference(folder, present.get(field, {}), value)
        elif present.get(field) != value:
            raise StoreError(
                f"{folder} holds activations with {field} = {present.get(field)!r}, not {value!r}: "
                "take another folder, or delete this one"
            )
