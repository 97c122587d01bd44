"""Contexts through the frozen model, once, into an activation store: one truncated forward captures all sites.

A batch holds contexts of one length and of one shard, so there is no padding and a shard's values depend on nothing
outside it: that is what makes a resumed store byte-identical to an uninterrupted one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from saelib.config import CollectConfig
from saelib.corpus import Contexts
from saelib.lm import LM
from saelib.store import Store, StoreError, StoreWriter

SPARE = 1.05  # free disk asked for, in units of the need


def collect(
    lm: LM,
    contexts: Contexts,
    sites: Sequence[Any],
    path: str | Path,
    cfg: CollectConfig | None = None,
    progress: bool = True,
) -> Store:
    """Collect the residual streams at `sites` (numbers or "middle") into the folder `path`; returns the open store.

    A finished store of the same model, corpus, sites and config is returned at once, an unfinished one is resumed at
    its first missing shard. `ValueError` for a site the model does not have; `StoreError` for another store in that
    folder, another collector at work there, too small a disk (before any forward), or an activation not finite.
    """
    if not sites:
        raise ValueError("collect: no sites were asked for")
    cfg = cfg or CollectConfig()
    writer = StoreWriter(
        path,
        model_id=lm.model_id,
        corpus_id=contexts.corpus_id,
        sites=sorted({lm.site(site) for site in sites}),
        d_model=lm.d_model,
        dtype=lm.dtype if cfg.dtype == "auto" else cfg.dtype,
        compute_dtype=lm.dtype,
        contexts=contexts,
        config=cfg,
    )
    if not writer.finished():
        with writer:
            _check_disk(writer)
            _write_missing(lm, contexts, writer, cfg.batch_tokens, progress)
            writer.finish()
    return Store.open(path)


def _check_disk(writer: StoreWriter) -> None:
    """Print what is needed and free; `StoreError` where it does not fit."""
    need, free = writer.bytes_missing, shutil.disk_usage(writer.path).free
    print(f"activations: {need / 1e9:.2f} GB to write, {free / 1e9:.1f} GB free")
    if need * SPARE > free:
        raise StoreError(
            f"{writer.path}: needs {need * SPARE / 1e9:.2f} GB of disk ({SPARE} x the data), {free / 1e9:.2f} GB free"
        )


def _write_missing(lm: LM, contexts: Contexts, writer: StoreWriter, batch_tokens: int, progress: bool) -> None:
    missing = writer.missing
    left = sum(map(writer.n_rows, missing))
    silent = not progress or bool(os.environ.get("SAELIB_HEADLESS"))
    with tqdm(
        total=contexts.n_tokens, initial=contexts.n_tokens - left, unit="tok", desc="collect", disable=silent
    ) as bar:
        for shard in missing:
            writer.write_shard(shard, _capture_shard(lm, contexts, writer, shard, batch_tokens))
            bar.update(writer.n_rows(shard))


def _capture_shard(
    lm: LM, contexts: Contexts, writer: StoreWriter, shard: int, batch_tokens: int
) -> dict[int, Tensor]:  # [rows, d_model] in the store's dtype, on the CPU
    n_rows, (first, stop) = writer.n_rows(shard), writer.plan[shard]
    x = {site: torch.empty(n_rows, lm.d_model, dtype=writer.dtype) for site in writer.sites}
    base = contexts.offsets[first]
    for a, b in equal_length_batches(contexts, first, stop, batch_tokens):
        low, high = int(contexts.offsets[a]), int(contexts.offsets[b])
        ids = torch.from_numpy(contexts.ids[low:high].astype(np.int64)).view(b - a, -1)
        for site, stream in lm.capture(ids, writer.sites).items():
            x[site][low - base : high - base] = stream.reshape(high - low, -1)
    return x


def equal_length_batches(contexts: Contexts, first: int, stop: int, batch_tokens: int) -> Iterator[tuple[int, int]]:
    """Contexts [a, b) of one length and at most `batch_tokens` tokens (at least one context), through [first, stop)."""
    lengths = np.diff(contexts.offsets[first : stop + 1])
    a = first
    while a < stop:
        length = lengths[a - first]
        other = np.flatnonzero(lengths[a - first :] != length)
        same = int(other[0]) if len(other) else stop - a
        b = a + min(same, max(1, batch_tokens // int(length)))
        yield a, b
        a = b
