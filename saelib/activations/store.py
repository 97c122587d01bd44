"""A finished activation store, read only, memory-mapped and verified; `shards` has the format."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.numpy
import torch
from jaxtyping import Bool, Float32, Int8, Integer, Shaped
from safetensors import safe_open
from torch import Tensor

from saelib.activations.shards import (
    MANIFEST,
    PAGES,
    TOKENS,
    StoreError,
    check_hash,
    check_sizes,
    dtype_name,
    read_manifest,
    refuse_difference,
    shard_name,
    torch_dtype,
)
from saelib.config import SINK_FACTOR
from saelib.files import read_json
from saelib.text.pages import SPLITS

CLASSES = ("first", "sink", "ordinary")  # position = value of `Store.token_class`


class Store:
    """A finished store. Rows are gathered from memory-mapped shards and returned as float32."""

    def __init__(self, path: Path, manifest: dict[str, Any], verify: bool) -> None:
        self.path = path
        self.manifest = manifest
        self.verify = verify
        # hash of the manifest, so of every shard's content too
        self.store_id: str = manifest.get("store_id", "")
        self.model_id: str = manifest["model_id"]
        self.corpus_id: str = manifest["corpus_id"]
        self.sites: tuple[int, ...] = tuple(manifest["sites"])
        self.d_model: int = manifest["d_model"]
        self.n_rows: int = manifest["n_rows"]
        # where sums over rows are formed, and SAEs that lie on the CPU are measured
        self.device = torch.device("cpu")
        self._starts = np.cumsum([0, *(shard["rows"] for shard in manifest["shards"])])
        self._mapped: dict[tuple[int, int], dict[str, Tensor]] = {}
        self._median_checked: set[int] = set()  # sites
        check_sizes(path, manifest["files"])
        if verify:
            for name, entry in manifest["files"].items():
                check_hash(path / name, entry)
        for shard in manifest["shards"]:
            check_sizes(path, shard["files"])

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> Store:
        """Open a finished store.

        Every size is checked at once. With `verify`, each shard's sha256 is checked the first time
        it is read (about 0.6 s per GB), so a damaged row is never returned. Raises `StoreError`
        naming the file where one is missing, damaged or changed.
        """
        return cls(Path(path), read_manifest(Path(path)), verify)

    def check(self, **wanted: Any) -> None:
        """`StoreError` for a store that is not the one asked for: `check(model_id=lm.model_id)`."""
        refuse_difference(self.path, self.manifest, wanted)

    # -- tokens and pages

    @cached_property
    def _table(self) -> dict[str, np.ndarray]:
        return safetensors.numpy.load_file(self.path / TOKENS)

    @cached_property
    def _pages(self) -> dict[str, tuple[str, ...]]:
        pages = read_json(self.path / PAGES)
        return {name: tuple(values) for name, values in pages.items()}

    @property
    def page_ids(self) -> tuple[str, ...]:
        """Ids of the pages that have a context, in reading order."""
        return self._pages["ids"]

    @property
    def page_titles(self) -> tuple[str, ...]:
        """Titles of the pages, in the order of `page_ids`."""
        return self._pages["titles"]

    @cached_property
    def tokens(self) -> dict[str, np.ndarray]:
        """Columns with a value per row, by name.

        token_id, position (in its context), page and context are int32; split is int8, an index
        into `SPLITS`.
        """
        offsets = self._table["offsets"]
        lengths = np.diff(offsets)
        context = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        position = np.arange(self.n_rows, dtype=np.int32)
        position -= np.repeat(offsets[:-1].astype(np.int32), lengths)
        page = self._table["page"][context]
        return {
            "token_id": self._table["ids"],
            "position": position,
            "page": page,
            "context": context,
            "split": self._table["split"][page],
        }

    def context_rows(self, context: int) -> slice:
        """Rows of a context."""
        first, stop = self._table["offsets"][context : context + 2]
        return slice(int(first), int(stop))

    def contexts_of(
        self, split: Literal["train", "val", "test"]
    ) -> Integer[np.ndarray, " contexts"]:
        """Numbers of the contexts whose page is in a split."""
        return np.flatnonzero(self._table["split"][self._table["page"]] == SPLITS.index(split))

    # -- rows

    def _require_site(self, site: int) -> None:
        if site not in self.sites:
            present = ", ".join(map(str, self.sites))
            raise StoreError(f"{self.path} holds sites {present}, not {site}")

    def _shard(self, site: int, shard: int) -> dict[str, Tensor]:
        """A shard's tensors, memory-mapped; verified the first time."""
        if (site, shard) not in self._mapped:
            name = shard_name(site, shard)
            path = self.path / name
            if self.verify:
                check_hash(path, self.manifest["shards"][shard]["files"][name])
            with safe_open(path, "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            _check_shard(path, self.manifest, shard, tensors)
            self._mapped[site, shard] = tensors
        return self._mapped[site, shard]

    def rows(self, site: int, index: Integer[np.ndarray, " n"]) -> Float32[Tensor, "n d_model"]:
        """Rows `index` of a site, in any order, repeats allowed.

        Raises `IndexError` for a row, `StoreError` for a site that the store does not have.
        """
        ascending, back = np.unique(index, return_inverse=True)
        return self.stored_rows(site, ascending)[torch.from_numpy(back)].float()

    def stored_rows(
        self, site: int, index: Integer[np.ndarray, " n"]
    ) -> Shaped[Tensor, "n d_model"]:
        """Rows `index`, ascending, in the dtype they are stored in (of int8: as float32).

        One copy, by the calling thread alone: training reads ahead with it while the other cores
        work. Raises as `rows` does.
        """
        self._require_site(site)
        if len(index) and not (index[0] >= 0 and index[-1] < self.n_rows):
            raise IndexError(
                f"{self.path}: row {index[0]} to {index[-1]} asked for, has 0 to {self.n_rows - 1}"
            )
        cuts = np.searchsorted(index, self._starts)
        dtype = torch_dtype(self.manifest["dtype"])
        out_dtype = torch.float32 if dtype == torch.int8 else dtype
        out = torch.empty(len(index), self.d_model, dtype=out_dtype)
        for shard in np.flatnonzero(np.diff(cuts)):
            rows = slice(cuts[shard], cuts[shard + 1])
            _gather(self._shard(site, int(shard)), index[rows] - self._starts[shard], out[rows])
        return out

    def iter_rows(
        self, site: int, index: Integer[np.ndarray, " n"], batch: int
    ) -> Iterator[Float32[Tensor, "batch d_model"]]:
        """Rows `index` of a site in order, at most `batch` at a time."""
        for start in range(0, len(index), batch):
            yield self.rows(site, index[start : start + batch])

    # -- norms and token classes

    def norm(self, site: int) -> Float32[np.ndarray, " rows"]:
        """Euclidean norm of every row as it was computed, float32."""
        self._require_site(site)
        shards = range(len(self.manifest["shards"]))
        return np.concatenate([self._shard(site, shard)["norm"].numpy() for shard in shards])

    def median_norm(self, site: int) -> float:
        """Median norm over training rows after position 0."""
        self._require_site(site)
        return self.manifest["median_norm"][str(site)]

    def token_class(self, site: int, factor: float = SINK_FACTOR) -> Int8[np.ndarray, " rows"]:
        """Class of every row at a site, an index into `CLASSES`.

        "first" is position 0; "sink" has a norm over `factor` training medians; the others are
        "ordinary".
        """
        norms = self.norm(site)
        if site not in self._median_checked:
            _check_median(self, site, norms)
            self._median_checked.add(site)
        return token_classes(norms, self.tokens["position"], self.median_norm(site), factor)

    def mask(
        self,
        tokens: Literal["ordinary", "all"] = "ordinary",
        split: Literal["train", "val", "test"] | None = None,
        factor: float = SINK_FACTOR,
    ) -> Bool[np.ndarray, " rows"]:
        """Rows of a split (None: of all); "ordinary" keeps those ordinary at every stored site.

        Raises `ValueError` for another `tokens`.
        """
        if tokens not in ("ordinary", "all"):
            raise ValueError(f"tokens = {tokens!r}: expected 'ordinary' or 'all'")
        chosen = np.ones(self.n_rows, dtype=bool)
        if split is not None:
            chosen &= self.tokens["split"] == SPLITS.index(split)
        if tokens == "ordinary":
            for site in self.sites:
                chosen &= self.token_class(site, factor) == CLASSES.index("ordinary")
        return chosen


def training_median_norm(store: Store, site: int) -> float:
    """Median norm over training rows after position 0, the measure of a sink.

    Raises `StoreError` where there is no such row.
    """
    chosen = _later_training_rows(store)
    if not chosen.any():
        raise StoreError(
            f"{store.path}: no training row after position 0, so site {site} has no median norm"
        )
    return float(np.median(store.norm(site)[chosen]))


def _check_shard(
    path: Path, manifest: dict[str, Any], shard: int, tensors: dict[str, Tensor]
) -> None:
    """`StoreError` for a shard of another dtype, width or length than the manifest says."""
    stated = (manifest["dtype"], [manifest["shards"][shard]["rows"], manifest["d_model"]])
    x = tensors["x"]
    if (dtype_name(x.dtype), list(x.shape)) != stated:
        raise StoreError(
            f"{path}: x is {dtype_name(x.dtype)} {list(x.shape)} where the manifest says "
            f"{stated[0]} {stated[1]}; delete the manifest and collect again"
        )


def _check_median(store: Store, site: int, norms: Float32[np.ndarray, " rows"]) -> None:
    """`StoreError` where the manifest's median is not that of the norms: masks hang on it."""
    stated = store.manifest["median_norm"][str(site)]
    later = _later_training_rows(store)
    beyond = (_count(later, norms < stated), _count(later, norms > stated))
    if 2 * max(beyond) > np.count_nonzero(later):
        raise StoreError(
            f"{store.path / MANIFEST}: median_norm of site {site} = {stated!r}: no median of its "
            f"rows, of which {beyond[0]} are below it and {beyond[1]} above; delete it and "
            "collect again"
        )


def _later_training_rows(store: Store) -> Bool[np.ndarray, " rows"]:
    """Rows of training pages after position 0."""
    chosen = store.mask("all", "train")
    chosen &= store.tokens["position"] > 0
    return chosen


def _count(chosen: Bool[np.ndarray, " rows"], rows: Bool[np.ndarray, " rows"]) -> int:
    """How many rows are in both; `rows` is written into, for want of memory."""
    rows &= chosen
    return int(np.count_nonzero(rows))


def _gather(shard: dict[str, Tensor], index: Integer[np.ndarray, " n"], out: Tensor) -> None:
    """Copy rows `index` of a shard's tensors to `out`; of int8, x · scale + center."""
    if shard["x"].dtype == torch.int8:
        x = shard["x"].numpy().take(index, axis=0)
        scale = shard["scale"].numpy().take(index, axis=0)
        values = np.multiply(x, scale[:, None], out=out.numpy())
        values += shard["center"].numpy()
    else:
        _bits(shard["x"]).take(index, axis=0, out=_bits(out), mode="clip")


def _bits(x: Tensor) -> np.ndarray:
    """The tensor's memory as whole numbers of its width: numpy has no bfloat16."""
    return x.view({2: torch.int16, 4: torch.int32}[x.element_size()]).numpy()


def token_classes(
    norms: Float32[np.ndarray, " rows"],
    position: Integer[np.ndarray, " rows"],
    median: float | int,
    factor: float | int = SINK_FACTOR,
) -> Int8[np.ndarray, " rows"]:
    """Class of each row, an index into `CLASSES`: "sink" has a norm over `factor` medians."""
    classes = np.where(norms > factor * median, np.int8(1), np.int8(2))
    classes[position == 0] = 0
    return classes
