"""Activation store: sharded safetensors on disk, written once, verified and memory-mapped on read.

    manifest.json       what the store is (model, corpus, sites, dtype, config) and the hash and rows of every shard
    tokens.safetensors  token ids, context bounds, page and split: one copy for all sites
    pages.json          page ids and titles
    site_02/shard_00000.safetensors   x [rows, d_model], norm [rows] float32

With dtype "int8" a shard holds x int8 and beside it scale [rows] and center [d_model], both float32: a row is
x · scale + center, read as float32, and no value is further than scale / 2 from what was computed (127 · scale is the
row's greatest distance from the center). `norm` stays that of the row as computed, so token classes do not change.
A massive activation coarsens its row's other dimensions: such rows are first or sink tokens, which training leaves out.

A row is a token: row r of every site belongs to token r of the contexts. Shards hold whole contexts and appear
atomically; `progress.jsonl` records each while the store is unfinished, so a killed writer loses one shard. Nothing
depends on time, path, host or number of writers: an interrupted and resumed store is byte-identical to one written at
once. Ranks that write beside the lock's holder record theirs in `progress.rank_3.jsonl`, for it or the next to merge.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from jaxtyping import Bool, Float32, Float64, Int8, Integer, Shaped
from safetensors import safe_open
from torch import Tensor

from saelib.config import SINK_FACTOR, CollectConfig, stable_hash

FORMAT = 1
CENTER_ROWS = 1024  # first rows of a shard, whose median an int8 shard is centred at
SPLITS = ("train", "val", "test")  # position = stored int8
CLASSES = ("first", "sink", "ordinary")  # position = value of `Store.token_class`
MANIFEST, PROGRESS, TOKENS, PAGES = (
    "manifest.json",
    "progress.jsonl",
    "tokens.safetensors",
    "pages.json",
)
BESIDE = "progress.rank_*.jsonl"
REPAIR = "delete it and collect again: only what is missing is redone"


class StoreError(RuntimeError):
    """A store is damaged, unfinished, busy, or not the one asked for; the message names file or field."""


def shard_name(site: int, shard: int) -> str:
    """File of a shard, relative to the store."""
    return f"site_{site:02d}/shard_{shard:05d}.safetensors"


def _write(path: Path, data: bytes) -> dict[str, Any]:
    """Write a file whole or not at all; what the manifest says about it. Power loss is left to the hash to find."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(
        path.name + ".tmp"
    )  # one writer at a time, so a leftover is overwritten
    temporary.write_bytes(data)
    os.replace(temporary, path)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _check_size(path: Path, entry: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise StoreError(f"{path}: missing; collect again: only what is missing is redone")
    have = path.stat().st_size
    if have != entry["bytes"]:
        raise StoreError(
            f"{path}: truncated or changed, {have} bytes where {entry['bytes']} are recorded; {REPAIR}"
        )


def _check_hash(path: Path, entry: Mapping[str, Any]) -> None:
    with path.open("rb") as f:
        have = hashlib.file_digest(f, "sha256").hexdigest()
    if have != entry["sha256"]:
        raise StoreError(
            f"{path}: damaged, sha256 {have[:12]} where {entry['sha256'][:12]} is recorded; {REPAIR}"
        )


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise StoreError(f"{where}: not JSON ({error.msg}); delete it and collect again") from error


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, held to its own `store_id` so that an edited one is refused."""
    path = folder / MANIFEST
    if not path.is_file():
        state = (
            "is unfinished: collect again to resume it"
            if (folder / PROGRESS).is_file()
            else "is no store"
        )
        raise StoreError(f"{folder} {state} (no {MANIFEST})")
    manifest = _json(path.read_text(), str(path))
    _refuse_difference(folder, manifest, {"format": FORMAT})
    have = stable_hash({k: v for k, v in manifest.items() if k != "store_id"})
    if have != manifest.get("store_id"):
        raise StoreError(
            f"{path}: content hashes to {have}, its store_id says {manifest.get('store_id')!r}"
        )
    return manifest


def _refuse_difference(folder: Path, have: Mapping[str, Any], want: Mapping[str, Any]) -> None:
    for field, value in want.items():
        if isinstance(value, dict):
            _refuse_difference(folder, have.get(field, {}), value)
        elif have.get(field) != value:
            difference = f"{field} = {have.get(field)!r}, not {value!r}"
            raise StoreError(
                f"{folder} holds activations with {difference}: take another folder, or delete this one"
            )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's advisory lock, which the kernel drops with its holder however that ends."""
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise StoreError(
                f"{folder} is being written by {file.read() or 'another process'}"
            ) from None
        file.truncate(0)
        file.write(f"pid {os.getpid()} on host {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _dtype(name: str | torch.dtype) -> torch.dtype:
    return name if isinstance(name, torch.dtype) else getattr(torch, name)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def quantised(rows: Shaped[Tensor, "n d_model"]) -> dict[str, Tensor]:
    """Rows as x · scale + center: int8 [n, d_model], rounded half to even; float32 [n]; float32 [d_model].

    The center is a median, which no order of summation changes and no massive activation moves. Without it the few
    dimensions that are large in every token would coarsen all others. A row that is the center has scale 1.
    """
    center = rows[:CENTER_ROWS].float().median(0).values
    off = rows - center  # float32, whatever the rows are
    scale = torch.linalg.vector_norm(off, torch.inf, dim=1) / 127
    scale[scale < torch.finfo(torch.float32).tiny] = 1.0
    return {"x": off.div_(scale[:, None]).round_().to(torch.int8), "scale": scale, "center": center}


def shard_plan(contexts: Any, shard_tokens: int) -> list[tuple[int, int]]:
    """Contexts [first, stop) of every shard: whole contexts, at most `shard_tokens` rows, at least one context."""
    plan, first = [], 0
    while first < contexts.n_contexts:
        fits = (
            np.searchsorted(contexts.offsets, contexts.offsets[first] + shard_tokens, side="right")
            - 1
        )
        plan.append((first, max(int(fits), first + 1)))
        first = plan[-1][1]
    return plan


class StoreWriter:
    """Writes a store shard by shard, or what is missing of one; a context manager that holds the folder's lock.

    `contexts` is a `saelib.text.corpus.Contexts`. Entering raises `StoreError` where another writer holds the folder,
    where what lies there is of another model, corpus or config (naming the field), or a recorded shard is damaged.
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
        contexts: Any,
        config: CollectConfig,
        compute_dtype: str | torch.dtype | None = None,
    ) -> None:
        self.path, self.contexts, self.sites = Path(path), contexts, tuple(sites)
        self.dtype, compute = _dtype(dtype), _dtype(compute_dtype or dtype)
        if compute == torch.int8:
            raise ValueError(
                "dtype = 'int8': the compute_dtype of the rows is needed, e.g. 'bfloat16'"
            )
        self.row_dtype = (
            compute if self.dtype == torch.int8 else self.dtype
        )  # of rows on their way to the disk
        self.plan = shard_plan(contexts, config.shard_tokens)
        self.identity = {
            "format": FORMAT,
            "model_id": model_id,
            "corpus_id": corpus_id,
            "sites": list(self.sites),
            "d_model": d_model,
            "dtype": _name(self.dtype),
            # Weights of one content hash still give other activations in another arithmetic.
            "compute_dtype": _name(compute),
            "config": {
                name: getattr(config, name) for name in ("batch_tokens", "shard_tokens", "pad")
            },
            "bos": bool(contexts.bos),
            "n_rows": int(contexts.n_tokens),
            "n_contexts": int(contexts.n_contexts),
            "n_pages": len(contexts.page_ids),
        }
        self._done: dict[int, dict[str, Any]] = {}
        self._progress = self.path / PROGRESS

    def finished(self) -> bool:
        """Whether this very store lies there complete; needs no lock. `StoreError` where it is another one."""
        if not (self.path / MANIFEST).is_file() or (self.path / PROGRESS).is_file():
            return False
        manifest = _read_manifest(self.path)
        _refuse_difference(self.path, manifest, self.identity)
        names = [
            *manifest["files"],
            *(name for shard in manifest["shards"] for name in shard["files"]),
        ]
        return all((self.path / name).is_file() for name in names)

    def __enter__(self) -> StoreWriter:
        self.path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(_locked(self.path))
            self._resume()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _resume(self) -> None:
        """Take over what is recorded, present and sound; from here on the store counts as unfinished."""
        shards = []
        if (self.path / PROGRESS).is_file():
            shards = self._recorded(self.path / PROGRESS)
        elif (self.path / MANIFEST).is_file():
            manifest = _read_manifest(self.path)
            _refuse_difference(self.path, manifest, self.identity)
            shards = manifest["shards"]
        for entry in (*shards, *self._beside()):
            if all((self.path / name).is_file() for name in entry["files"]):
                self._done[entry["shard"]] = entry
        for entry in self._done.values():
            for name, file in entry["files"].items():
                _check_size(self.path / name, file)
                _check_hash(self.path / name, file)
        lines = [self.identity, *(self._done[i] for i in sorted(self._done))]
        _write(
            self.path / PROGRESS,
            "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines).encode(),
        )
        self._forget_beside()
        (self.path / MANIFEST).unlink(missing_ok=True)

    def join(self, rank: int) -> None:
        """Write some of what is missing beside the writer that holds the lock and has entered."""
        self._done = {entry["shard"]: entry for entry in self._recorded(self.path / PROGRESS)}
        self._progress = self.path / f"progress.rank_{rank}.jsonl"
        _write(self._progress, (json.dumps(self.identity, sort_keys=True) + "\n").encode())

    def _recorded(self, path: Path) -> list[dict[str, Any]]:
        """Shards in a record of this very store, unfinished; a last line cut short by a kill is dropped."""
        lines = path.read_text().split("\n")[:-1] or [
            ""
        ]  # of an empty file the first is missing, no JSON
        identity, *shards = [_json(line, f"{path} line {n}") for n, line in enumerate(lines, 1)]
        _refuse_difference(self.path, identity, self.identity)
        return shards

    def _beside(self) -> list[dict[str, Any]]:
        """Shards recorded by other ranks."""
        return [entry for path in sorted(self.path.glob(BESIDE)) for entry in self._recorded(path)]

    def _forget_beside(self) -> None:
        for path in self.path.glob(BESIDE):
            path.unlink()

    @property
    def missing(self) -> list[int]:
        """Shards still to write, in order."""
        return [shard for shard in range(len(self.plan)) if shard not in self._done]

    def n_rows(self, shard: int) -> int:
        first, stop = self.plan[shard]
        return int(self.contexts.offsets[stop] - self.contexts.offsets[first])

    @property
    def bytes_missing(self) -> int:
        """Disk that the missing shards and the token table will take, headers and centers of the files apart."""
        beside = 8 if self.dtype == torch.int8 else 4  # norm, and scale
        row = len(self.sites) * (self.identity["d_model"] * self.dtype.itemsize + beside)
        return row * sum(map(self.n_rows, self.missing)) + 4 * self.contexts.n_tokens

    def write_shard(self, shard: int, x: Mapping[int, Tensor]) -> None:
        """Write shard `shard` of every site, x[site] [rows, d_model], and record it.

        `StoreError` naming site, context and position where a value is not finite, `ValueError` for a wrong shape.
        """
        files = {}
        for site in self.sites:
            want = (self.n_rows(shard), self.identity["d_model"])
            if tuple(x[site].shape) != want:
                raise ValueError(
                    f"shard {shard}, site {site}: x is {list(x[site].shape)}, expected {list(want)}"
                )
            rows = x[site].to("cpu", self.row_dtype).contiguous()
            norm = rows.float().norm(dim=1)
            self._refuse_non_finite(shard, site, norm)
            kept = quantised(rows) if self.dtype == torch.int8 else {"x": rows}
            data = safetensors.torch.save({**kept, "norm": norm})
            files[shard_name(site, shard)] = _write(self.path / shard_name(site, shard), data)
        self._done[shard] = {"shard": shard, "rows": self.n_rows(shard), "files": files}
        with self._progress.open("a") as progress:
            progress.write(json.dumps(self._done[shard], sort_keys=True) + "\n")

    def _refuse_non_finite(self, shard: int, site: int, norm: Tensor) -> None:
        bad = ~torch.isfinite(
            norm
        )  # as soon as one value of the row is not; faster than asking each
        if bad.any():
            offsets = self.contexts.offsets
            row = int(offsets[self.plan[shard][0]]) + int(bad.nonzero()[0, 0])
            context = int(np.searchsorted(offsets, row, side="right")) - 1
            page = self.contexts.page_ids[self.contexts.page[context]]
            raise StoreError(
                f"site {site}, context {context} (page {page!r}), position {row - offsets[context]}: the activation, "
                f"computed as {self.identity['compute_dtype']}, is not finite as {_name(self.row_dtype)}"
            )

    def finish(self) -> None:
        """Write token table and manifest once all shards are there; afterwards the store is finished."""
        self._done |= {entry["shard"]: entry for entry in self._beside()}
        if self.missing:
            raise StoreError(
                f"{self.path}: shard {self.missing[0]} of {len(self.plan)} is not written yet"
            )
        manifest = {**self.identity, "files": self._write_tokens()}
        manifest["shards"] = [self._done[i] for i in range(len(self.plan))]
        store = Store(self.path, manifest, verify=False)
        manifest["median_norm"] = {str(site): _median_norm(store, site) for site in self.sites}
        manifest["store_id"] = stable_hash(manifest)
        _write(
            self.path / MANIFEST, (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
        )
        self._forget_beside()
        (self.path / PROGRESS).unlink()

    def _write_tokens(self) -> dict[str, Any]:
        arrays = {
            name: getattr(self.contexts, name)
            for name in ("ids", "offsets", "page", "start", "split")
        }
        pages = {"ids": list(self.contexts.page_ids), "titles": list(self.contexts.page_titles)}
        tokens = safetensors.numpy.save(
            {name: np.ascontiguousarray(a) for name, a in arrays.items()}
        )
        return {
            TOKENS: _write(self.path / TOKENS, tokens),
            PAGES: _write(self.path / PAGES, json.dumps(pages).encode()),
        }


def _median_norm(store: Store, site: int) -> float:
    """Median norm over training rows after position 0, the measure of a sink (DESIGN 3, token classes)."""
    chosen = store.mask("all", "train") & (store.tokens["position"] > 0)
    if not chosen.any():
        raise StoreError(
            f"{store.path}: no training row after position 0, so site {site} has no median norm"
        )
    return float(np.median(store.norm(site)[chosen]))


class Store:
    """A finished store, read only. Rows are gathered from memory-mapped shards and returned as float32."""

    def __init__(self, path: Path, manifest: dict[str, Any], verify: bool) -> None:
        self.path, self.manifest, self.verify = path, manifest, verify
        self.store_id: str = manifest.get(
            "store_id", ""
        )  # hash of the manifest, so of every shard's content too
        self.model_id: str = manifest["model_id"]
        self.corpus_id: str = manifest["corpus_id"]
        self.sites: tuple[int, ...] = tuple(manifest["sites"])
        self.d_model: int = manifest["d_model"]
        self.n_rows: int = manifest["n_rows"]
        self.device = torch.device(
            "cpu"
        )  # where sums over rows are formed, and SAEs that lie on the CPU are measured
        self._starts = np.cumsum([0, *(shard["rows"] for shard in manifest["shards"])])
        self._mapped: dict[tuple[int, int], dict[str, Tensor]] = {}
        for name, entry in manifest["files"].items():
            _check_size(path / name, entry)
            if verify:
                _check_hash(path / name, entry)
        for shard in manifest["shards"]:
            for name, entry in shard["files"].items():
                _check_size(path / name, entry)

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> Store:
        """Open a finished store; `StoreError` naming the file where one is missing, damaged or changed.

        Every size is checked at once. With `verify`, each shard's sha256 is checked the first time it is read
        (about 0.6 s a GB), so a damaged row is never returned.
        """
        return cls(Path(path), _read_manifest(Path(path)), verify)

    def check(self, **want: Any) -> None:
        """Refuse a store that is not the one asked for, e.g. `store.check(model_id=lm.model_id)`."""
        _refuse_difference(self.path, self.manifest, want)

    @cached_property
    def _table(self) -> dict[str, np.ndarray]:
        return safetensors.numpy.load_file(self.path / TOKENS)

    @cached_property
    def _pages(self) -> dict[str, tuple[str, ...]]:
        return {
            name: tuple(values)
            for name, values in json.loads((self.path / PAGES).read_text()).items()
        }

    @property
    def page_ids(self) -> tuple[str, ...]:
        return self._pages["ids"]

    @property
    def page_titles(self) -> tuple[str, ...]:
        return self._pages["titles"]

    @cached_property
    def tokens(self) -> dict[str, np.ndarray]:
        """One value a row: token_id, position (in its context), page, context int32, split int8 (see `SPLITS`)."""
        offsets, page = self._table["offsets"], self._table["page"]
        context = np.repeat(np.arange(len(page), dtype=np.int32), np.diff(offsets))
        position = np.arange(self.n_rows, dtype=np.int32) - np.repeat(
            offsets[:-1].astype(np.int32), np.diff(offsets)
        )
        columns = {
            "token_id": self._table["ids"],
            "position": position,
            "page": page[context],
            "context": context,
        }
        return {**columns, "split": self._table["split"][columns["page"]]}

    def context_rows(self, context: int) -> slice:
        """Rows of a context."""
        return slice(*map(int, self._table["offsets"][context : context + 2]))

    def contexts_of(
        self, split: Literal["train", "val", "test"]
    ) -> Integer[np.ndarray, " contexts"]:
        """Numbers of the contexts whose page is in a split."""
        return np.flatnonzero(self._table["split"][self._table["page"]] == SPLITS.index(split))

    def _require_site(self, site: int) -> None:
        if site not in self.sites:
            raise StoreError(
                f"{self.path} holds sites {', '.join(map(str, self.sites))}, not {site}"
            )

    def _shard(self, site: int, shard: int) -> dict[str, Tensor]:
        """A shard's tensors, memory-mapped; verified the first time."""
        if (site, shard) not in self._mapped:
            path = self.path / shard_name(site, shard)
            if self.verify:
                _check_hash(path, self.manifest["shards"][shard]["files"][shard_name(site, shard)])
            with safe_open(path, "pt") as file:
                self._mapped[site, shard] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return self._mapped[site, shard]

    def rows(self, site: int, index: Integer[np.ndarray, " n"]) -> Float32[Tensor, "n d_model"]:
        """Rows `index` of a site, in any order, repeats allowed; `IndexError` for a row the store does not have."""
        ascending, back = np.unique(index, return_inverse=True)
        return self.stored_rows(site, ascending)[torch.from_numpy(back)].float()

    def stored_rows(
        self, site: int, index: Integer[np.ndarray, " n"]
    ) -> Shaped[Tensor, "n d_model"]:
        """Rows `index`, in ascending order, in the dtype they are stored in, of int8 as float32.

        One copy, by the calling thread alone: training reads ahead with it while the other cores work.
        """
        self._require_site(site)
        if len(index) and not (index[0] >= 0 and index[-1] < self.n_rows):
            raise IndexError(
                f"{self.path}: row {index[0]} to {index[-1]} asked for, has 0 to {self.n_rows - 1}"
            )
        cuts = np.searchsorted(index, self._starts)
        dtype = _dtype(self.manifest["dtype"])
        found = torch.empty(
            len(index), self.d_model, dtype=torch.float32 if dtype == torch.int8 else dtype
        )
        for shard in np.flatnonzero(np.diff(cuts)):
            part = slice(cuts[shard], cuts[shard + 1])
            local = index[part] - self._starts[shard]
            held = self._shard(site, int(shard))
            if dtype == torch.int8:
                x, scale = (held[name].numpy().take(local, axis=0) for name in ("x", "scale"))
                out = np.multiply(x, scale[:, None], out=found[part].numpy())
                out += held["center"].numpy()
            else:
                _bits(held["x"]).take(local, axis=0, out=_bits(found[part]), mode="clip")
        return found

    def iter_rows(
        self, site: int, index: Integer[np.ndarray, " n"], batch: int
    ) -> Iterator[Float32[Tensor, "batch d_model"]]:
        """Rows `index` of a site in order, at most `batch` at a time."""
        for start in range(0, len(index), batch):
            yield self.rows(site, index[start : start + batch])

    def norm(self, site: int) -> Float32[np.ndarray, " rows"]:
        """Euclidean norm of every row as it was computed, float32."""
        self._require_site(site)
        norms = [
            self._shard(site, shard)["norm"].numpy()
            for shard in range(len(self.manifest["shards"]))
        ]
        return np.concatenate(norms)

    def median_norm(self, site: int) -> float:
        """Median norm over training rows after position 0."""
        self._require_site(site)
        return self.manifest["median_norm"][str(site)]

    def token_class(self, site: int, factor: float = SINK_FACTOR) -> Int8[np.ndarray, " rows"]:
        """Class of every row at a site: index into `CLASSES` (DESIGN 3, token classes)."""
        sink = self.norm(site) > factor * self.median_norm(site)
        classes = np.where(sink, np.int8(1), np.int8(2))
        classes[self.tokens["position"] == 0] = 0
        return classes

    def mask(
        self,
        tokens: Literal["ordinary", "all"] = "ordinary",
        split: Literal["train", "val", "test"] | None = None,
        factor: float = SINK_FACTOR,
    ) -> Bool[np.ndarray, " rows"]:
        """Rows of a split (None: of all); "ordinary" keeps those ordinary at every site of the store."""
        if tokens not in ("ordinary", "all"):
            raise ValueError(f"tokens = {tokens!r}: expected 'ordinary' or 'all'")
        chosen = np.ones(self.n_rows, dtype=bool)
        if split is not None:
            chosen &= self.tokens["split"] == SPLITS.index(split)
        if tokens == "ordinary":
            for site in self.sites:
                chosen &= self.token_class(site, factor) == CLASSES.index("ordinary")
        return chosen


def _bits(x: Tensor) -> np.ndarray:
    """The tensor's memory as whole numbers of its width: numpy has no bfloat16."""
    return x.view({2: torch.int16, 4: torch.int32}[x.element_size()]).numpy()


class ShuffledRows:
    """Endless seeded batches of rows `index` of a site; each epoch is a new permutation of (seed, epoch).

    Yields (x [batch_size, d_model] as `Store.stored_rows` gives them, rows [batch_size]), rows ascending; a batch may
    straddle epochs.
    `cursor`, the rows consumed, is the whole state: the stream from a cursor is the same however it was reached.
    """

    def __init__(
        self, store: Store, site: int, index: Integer[np.ndarray, " n"], batch_size: int, seed: int
    ) -> None:
        if not len(index):
            raise ValueError(f"site {site}: no rows to draw batches from")
        self.store, self.site, self.index, self.device = store, site, index, store.device
        self.batch_size, self.seed, self.cursor = batch_size, seed, 0
        self._epoch, self._order = -1, index

    def sample(
        self, n: int, generator: torch.Generator, cursor: int
    ) -> Float32[Tensor, "n d_model"]:
        """Up to n rows drawn from all of the stream, wherever it stands."""
        chosen = torch.randperm(len(self.index), generator=generator)[:n].sort().values
        return self.store.rows(self.site, self.index[chosen.numpy()])

    def seek(self, cursor: int) -> None:
        """Go to where `cursor` rows have been consumed."""
        self.cursor = cursor

    def next_rows(self) -> Integer[np.ndarray, " batch"]:
        """Row numbers of the next batch, ascending; moves the cursor."""
        parts, left = [], self.batch_size
        while left:
            epoch, start = divmod(self.cursor, len(self.index))
            if epoch != self._epoch:
                self._epoch, self._order = (
                    epoch,
                    np.random.default_rng([self.seed, epoch]).permutation(self.index),
                )
            parts.append(self._order[start : start + left])
            self.cursor += len(parts[-1])
            left -= len(parts[-1])
        return np.sort(np.concatenate(parts))

    def __next__(self) -> tuple[Shaped[Tensor, "batch d_model"], Integer[np.ndarray, " batch"]]:
        rows = self.next_rows()
        return self.store.stored_rows(self.site, rows), rows


class Moments(NamedTuple):
    """First and second moments of rows; errors and squares are sums over d_model, means over rows."""

    mean: Float64[Tensor, " d_model"]
    mean_sq_dev: float  # E||x - mean||^2
    mean_sq: float  # E||x||^2


def row_moments(
    store: Store, site: int, index: Integer[np.ndarray, " n"], batch: int = 4096
) -> Moments:
    """Moments of rows `index` of a site in one float64 pass, shifted by the first batch's mean against cancellation."""
    if not len(index):
        raise ValueError(f"site {site}: no rows to take moments of")
    shift = store.rows(site, index[:batch]).double().mean(0)
    total, total_sq_dev, total_sq = torch.zeros_like(shift), 0.0, 0.0
    for x in store.iter_rows(site, index, batch):
        deviation = x.double() - shift
        total += deviation.sum(0)
        total_sq_dev += float(deviation.square().sum())
        total_sq += float(x.double().square().sum())
    offset = total / len(index)
    return Moments(
        shift + offset, total_sq_dev / len(index) - float(offset @ offset), total_sq / len(index)
    )
