"""Writing an activation store shard by shard, resumably, by one process or several.

Shards hold whole contexts and appear atomically. `progress.jsonl` records each while the store is
unfinished, so a killed writer loses one shard. An interrupted and resumed store is byte-identical
to one written at once. Ranks that write beside the lock's holder record their shards in
`progress.rank_3.jsonl`, for the holder of this lock or the next one to merge.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from torch import Tensor

from saelib.activations.shards import (
    FORMAT,
    MANIFEST,
    PAGES,
    PROGRESS,
    RANK_PROGRESS,
    TOKENS,
    StoreError,
    check_hash,
    check_sizes,
    dtype_name,
    quantised,
    read_manifest,
    read_progress,
    refuse_difference,
    shard_name,
    torch_dtype,
    write_recorded,
)
from saelib.activations.store import Store, training_median_norm
from saelib.config import CollectConfig, stable_hash
from saelib.files import LockedError, locked, remove_leftovers, write_json, write_text
from saelib.text.contexts import Contexts

TOKEN_FIELDS = ("ids", "offsets", "page", "start", "split")  # of `Contexts`, in the token table
TOKEN_BYTES = 4  # on disk, in the token table

log = logging.getLogger("saelib")


def shard_plan(contexts: Contexts, shard_tokens: int) -> list[tuple[int, int]]:
    """Contexts [first, stop) of every shard: whole contexts, at most `shard_tokens` rows.

    A shard holds at least one context, however long.
    """
    plan: list[tuple[int, int]] = []
    first = 0
    while first < contexts.n_contexts:
        limit = contexts.offsets[first] + shard_tokens
        stop = int(np.searchsorted(contexts.offsets, limit, side="right")) - 1
        stop = max(stop, first + 1)
        plan.append((first, stop))
        first = stop
    return plan


class StoreWriter:
    """Writes a store shard by shard, or what is missing of one; a context manager with a lock.

    Entering raises `StoreError` where another writer holds the folder, where what lies there is of
    another model, corpus or config (naming the field), or where a recorded shard is damaged. With
    `wait` it says who holds the folder and waits, and leaves a finished store as it is.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        model_id: str,
        corpus_id: str,
        sites: Sequence[int],
        d_model: int,
        dtype: str | torch.dtype,
        contexts: Contexts,
        config: CollectConfig,
        compute_dtype: str | torch.dtype | None = None,
        wait: bool = False,
    ) -> None:
        self.path = Path(path)
        self.contexts = contexts
        self.sites = tuple(sites)
        self.dtype = torch_dtype(dtype)
        compute = torch_dtype(compute_dtype or dtype)
        if compute == torch.int8:
            raise ValueError(
                "dtype = 'int8': the compute_dtype of the rows is needed, e.g. 'bfloat16'"
            )
        # of rows on their way to the disk
        self.row_dtype = compute if self.dtype == torch.int8 else self.dtype
        self.plan = shard_plan(contexts, config.shard_tokens)
        self.identity = {
            "format": FORMAT,
            "model_id": model_id,
            "corpus_id": corpus_id,
            "sites": list(self.sites),
            "d_model": d_model,
            "dtype": dtype_name(self.dtype),
            # Weights of one content hash still give other activations in another arithmetic.
            "compute_dtype": dtype_name(compute),
            **_content_fields(contexts, config),
        }
        self._written: dict[int, dict[str, Any]] = {}  # manifest entries by shard
        self._progress = self.path / PROGRESS
        self._wait = wait

    def finished(self) -> bool:
        """Whether this very store lies there complete; needs no lock.

        Raises `StoreError` where it is another one.
        """
        if not (self.path / MANIFEST).is_file() or (self.path / PROGRESS).is_file():
            return False
        manifest = read_manifest(self.path)
        refuse_difference(self.path, manifest, self.identity)
        names = [*manifest["files"]]
        for entry in manifest["shards"]:
            names.extend(entry["files"])
        return all((self.path / name).is_file() for name in names)

    def __enter__(self) -> StoreWriter:
        self.path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path / ".lock", self._wait, self._say_who_writes))
            except LockedError as error:
                raise StoreError(f"{self.path} is being written by {error.holder}") from None
            if not (self._wait and self.finished()):  # by another writer, just now
                self._resume()
            self._stack = stack.pop_all()
        return self

    def _say_who_writes(self, holder: str) -> None:
        log.warning("%s is being written by %s: waiting for it", self.path, holder)

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    # -- what is there already

    def _resume(self) -> None:
        """Take over what is recorded, present and sound; from here on the store is unfinished."""
        remove_leftovers(self.path)
        for entry in (*self._recorded_shards(), *self._rank_shards()):
            if all((self.path / name).is_file() for name in entry["files"]):
                self._written[entry["shard"]] = entry
        for entry in self._written.values():
            check_sizes(self.path, entry["files"])
            for name, file in entry["files"].items():
                check_hash(self.path / name, file)
        lines = [self.identity, *(self._written[shard] for shard in sorted(self._written))]
        write_text(self.path / PROGRESS, "".join(map(_json_line, lines)))
        self._delete_rank_progress()
        (self.path / MANIFEST).unlink(missing_ok=True)

    def _recorded_shards(self) -> list[dict[str, Any]]:
        """Shards of the unfinished or the finished store in the folder."""
        if (self.path / PROGRESS).is_file():
            return self._read_progress(self.path / PROGRESS)
        if (self.path / MANIFEST).is_file():
            manifest = read_manifest(self.path)
            refuse_difference(self.path, manifest, self.identity)
            return manifest["shards"]
        return []

    def _rank_shards(self) -> list[dict[str, Any]]:
        """Shards recorded by other ranks."""
        return [
            entry for path in self._rank_progress_files() for entry in self._read_progress(path)
        ]

    def _read_progress(self, path: Path) -> list[dict[str, Any]]:
        """Shards in a record of this very store; a last line cut short by a kill is dropped.

        Raises `StoreError` for another store's record, and for a line that is not JSON.
        """
        identity, *shards = read_progress(path)
        refuse_difference(self.path, identity, self.identity)
        return shards

    def _rank_progress_files(self) -> list[Path]:
        return sorted(self.path.glob(RANK_PROGRESS.format("*")))

    def _delete_rank_progress(self) -> None:
        for path in self._rank_progress_files():
            path.unlink()

    def join(self, rank: int) -> None:
        """Write some of what is missing beside the writer that holds the lock and has entered."""
        entries = self._read_progress(self.path / PROGRESS)
        self._written = {entry["shard"]: entry for entry in entries}
        self._progress = self.path / RANK_PROGRESS.format(rank)
        write_text(self._progress, _json_line(self.identity))

    # -- writing

    @property
    def missing(self) -> list[int]:
        """Shards still to write, in order."""
        return [shard for shard in range(len(self.plan)) if shard not in self._written]

    def n_rows(self, shard: int) -> int:
        """Rows of a shard at each site."""
        first, stop = self.plan[shard]
        return int(self.contexts.offsets[stop] - self.contexts.offsets[first])

    @property
    def bytes_missing(self) -> int:
        """Bytes that the missing shards and the token table will take, file headers apart."""
        beside = 8 if self.dtype == torch.int8 else 4  # norm, and scale
        row = len(self.sites) * (self.identity["d_model"] * self.dtype.itemsize + beside)
        return row * sum(map(self.n_rows, self.missing)) + TOKEN_BYTES * self.contexts.n_tokens

    def write_shard(self, shard: int, x: Mapping[int, Tensor]) -> None:
        """Write shard `shard` of every site, x[site] [rows, d_model], and record it.

        Raises `StoreError` naming site, context and position where a value is not finite, and
        `ValueError` for a wrong shape.
        """
        files = {}
        for site in self.sites:
            name = shard_name(site, shard)
            data = self._shard_bytes(shard, site, x[site])
            files[name] = write_recorded(self.path / name, data)
        entry = {"shard": shard, "rows": self.n_rows(shard), "files": files}
        self._written[shard] = entry
        with self._progress.open("a", encoding="utf-8") as progress:
            progress.write(_json_line(entry))

    def _shard_bytes(self, shard: int, site: int, x: Tensor) -> bytes:
        expected = [self.n_rows(shard), self.identity["d_model"]]
        if list(x.shape) != expected:
            raise ValueError(
                f"shard {shard}, site {site}: x is {list(x.shape)}, expected {expected}"
            )
        rows = x.to("cpu", self.row_dtype).contiguous()
        norm = rows.float().norm(dim=1)
        self._refuse_non_finite(shard, site, norm)
        stored = quantised(rows) if self.dtype == torch.int8 else {"x": rows}
        return safetensors.torch.save({**stored, "norm": norm})

    def _refuse_non_finite(self, shard: int, site: int, norm: Tensor) -> None:
        # A norm is finite only where each value is; faster than asking each of them.
        infinite = ~torch.isfinite(norm)
        if infinite.any():
            offsets = self.contexts.offsets
            row = int(offsets[self.plan[shard][0]]) + int(infinite.nonzero()[0, 0])
            context = int(np.searchsorted(offsets, row, side="right")) - 1
            page = self.contexts.page_ids[self.contexts.page[context]]
            raise StoreError(
                f"site {site}, context {context} (page {page!r}), "
                f"position {row - offsets[context]}: the activation, computed as "
                f"{self.identity['compute_dtype']}, is not finite as {dtype_name(self.row_dtype)}"
            )

    def finish(self) -> None:
        """Write token table and manifest once all shards are there; then the store is finished.

        Raises `StoreError` where a shard is missing, or where no training row follows position 0.
        """
        self._written |= {entry["shard"]: entry for entry in self._rank_shards()}
        if self.missing:
            raise StoreError(
                f"{self.path}: shard {self.missing[0]} of {len(self.plan)} is not written yet"
            )
        manifest = {**self.identity, "files": self._write_tokens()}
        manifest["shards"] = [self._written[shard] for shard in range(len(self.plan))]
        store = Store(self.path, manifest, verify=False)
        manifest["median_norm"] = {
            str(site): training_median_norm(store, site) for site in self.sites
        }
        manifest["store_id"] = stable_hash(manifest)
        write_json(self.path / MANIFEST, manifest)
        self._delete_rank_progress()
        (self.path / PROGRESS).unlink()

    def _write_tokens(self) -> dict[str, Any]:
        arrays = {}
        for name in TOKEN_FIELDS:
            arrays[name] = np.ascontiguousarray(getattr(self.contexts, name))
        pages = {"ids": list(self.contexts.page_ids), "titles": list(self.contexts.page_titles)}
        return {
            TOKENS: write_recorded(self.path / TOKENS, safetensors.numpy.save(arrays)),
            PAGES: write_recorded(self.path / PAGES, json.dumps(pages).encode()),
        }


def _content_fields(contexts: Contexts, config: CollectConfig) -> dict[str, Any]:
    """What the identity says of the settings and the text."""
    return {
        "config": {
            "batch_tokens": config.batch_tokens,
            "shard_tokens": config.shard_tokens,
            "pad": config.pad,
        },
        "bos": bool(contexts.bos),
        "n_rows": int(contexts.n_tokens),
        "n_contexts": int(contexts.n_contexts),
        "n_pages": len(contexts.page_ids),
    }


def _json_line(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True) + "\n"
