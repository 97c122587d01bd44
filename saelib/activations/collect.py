"""Contexts through the frozen model, once, into an activation store.

One truncated forward captures all sites. A batch holds contexts of one length and of one shard, so
there is no padding and a shard's values depend on nothing outside it: that is what makes a resumed
store byte-identical to an uninterrupted one. With `CollectConfig.pad` lengths mix, padded on the
right: causal attention keeps the padding out of all that is stored, but the products have other
shapes, so rows equal those of an unpadded run only up to the rounding of the model's dtype.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from saelib.activations.lm import LM
from saelib.activations.shards import StoreError
from saelib.activations.store import Store
from saelib.activations.writer import StoreWriter
from saelib.config import CollectConfig
from saelib.env import headless
from saelib.ranks import SINGLE_PROCESS, Ranks
from saelib.text.contexts import Contexts

SPARE = 1.05  # free disk asked for, in units of the need


def collect(
    lm: LM,
    contexts: Contexts,
    sites: Sequence[Any],
    path: str | Path,
    cfg: CollectConfig | None = None,
    progress: bool = True,
    ranks: Ranks = SINGLE_PROCESS,
) -> Store:
    """Collect the residual streams at `sites` (numbers or "middle") into the folder `path`.

    Returns the open store. A finished store of the same model, corpus, sites and config is returned
    at once, an unfinished one is resumed at its first missing shard. Raises `ValueError` for a site
    the model does not have; `StoreError` for another store in that folder, too small a disk (before
    any forward), or an activation not finite. Where another collector is at work there, this one
    says so and waits.

    Ranks share the missing shards; rank 0 holds the folder's lock and finishes the store, whose
    content does not depend on their number. What a lost rank had recorded stays.
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
        wait=True,
    )
    ranks.agree("model, text, sites or settings", writer.identity)
    if not ranks.first(int(writer.finished())):
        with nullcontext() if ranks.rank else writer:
            # not so where another process did it while rank 0 waited for the lock
            if not ranks.first(int(not ranks.rank and writer.finished())):
                _write_store(lm, contexts, writer, cfg, progress, ranks)
        ranks.wait()
    return Store.open(path)


def _write_store(
    lm: LM,
    contexts: Contexts,
    writer: StoreWriter,
    cfg: CollectConfig,
    progress: bool,
    ranks: Ranks,
) -> None:
    """Write what is missing, each rank its share, and finish the store."""
    if not ranks.rank:
        _check_disk(writer)
    ranks.wait()
    if ranks.rank:
        writer.join(ranks.rank)
    ranks.wait()  # before a shard is added, so that all share out the same list
    _write_missing(lm, contexts, writer, cfg, progress and not ranks.rank, ranks)
    ranks.wait()
    if not ranks.rank:
        writer.finish()


def _check_disk(writer: StoreWriter) -> None:
    """Print what is needed and free; `StoreError` where it does not fit."""
    need = writer.bytes_missing
    free = shutil.disk_usage(writer.path).free
    print(f"activations: {need / 1e9:.2f} GB to write, {free / 1e9:.1f} GB free")
    if need * SPARE > free:
        raise StoreError(
            f"{writer.path}: needs {need * SPARE / 1e9:.2f} GB of disk ({SPARE} x the data), "
            f"{free / 1e9:.2f} GB free"
        )


def _write_missing(
    lm: LM,
    contexts: Contexts,
    writer: StoreWriter,
    cfg: CollectConfig,
    progress: bool,
    ranks: Ranks,
) -> None:
    """Write this rank's share of the missing shards."""
    missing = writer.missing[ranks.rank :: ranks.size]
    n_tokens = contexts.n_tokens
    bar = tqdm(
        total=n_tokens,
        initial=n_tokens - sum(map(writer.n_rows, missing)),
        unit="tok",
        desc="collect",
        disable=not progress or headless(),
    )
    with bar:
        for shard in missing:
            x = _capture_shard(lm, contexts, writer, shard, cfg.batch_tokens, cfg.pad)
            writer.write_shard(shard, x)
            bar.update(writer.n_rows(shard))


def _capture_shard(
    lm: LM, contexts: Contexts, writer: StoreWriter, shard: int, batch_tokens: int, pad: bool
) -> dict[int, Tensor]:
    """Rows of a shard by site, [rows, d_model] in `writer.row_dtype`, on the CPU."""
    n_rows = writer.n_rows(shard)
    first, stop = writer.plan[shard]
    x = {site: torch.empty(n_rows, lm.d_model, dtype=writer.row_dtype) for site in writer.sites}
    chosen = np.arange(first, stop)
    for rows, streams in captured(lm, contexts, chosen, writer.sites, batch_tokens, pad):
        local = torch.from_numpy(rows - contexts.offsets[first])
        for site, stream in streams:
            x[site][local] = stream.to("cpu", writer.row_dtype)
    return x


def captured(
    lm: LM,
    contexts: Contexts,
    chosen: np.ndarray,
    sites: Sequence[int],
    batch_tokens: int,
    pad: bool = False,
) -> Iterator[tuple[np.ndarray, Iterator[tuple[int, Tensor]]]]:
    """Forwards of the contexts `chosen`, each as (rows, (site, x [rows, d_model]) of all sites).

    `rows` are numbers of the corpus' tokens; padding is left out; x is as the model has it.
    """
    starts = contexts.offsets[chosen]
    lengths = contexts.offsets[chosen + 1] - starts
    for batch in length_batches(lengths, batch_tokens, pad):
        columns = np.arange(lengths[batch[-1]])
        real = columns < lengths[batch, None]  # [contexts, tokens]; False is padding
        rows = (starts[batch, None] + columns)[real]
        ids = np.zeros(real.shape, dtype=np.int64)
        ids[real] = contexts.ids[rows]
        streams = lm.capture(torch.from_numpy(ids), sites)
        keep = torch.from_numpy(real)
        yield rows, ((site, stream[keep]) for site, stream in streams.items())


def length_batches(
    lengths: np.ndarray, batch_tokens: int, pad: bool = False
) -> Iterator[np.ndarray]:
    """Numbers of contexts in batches of at most `batch_tokens` tokens, padding included.

    A batch holds at least one context. Shortest first, in file order among equals; of one length
    unless `pad`, and then the last of a batch is its longest.
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        ascending = lengths[order[start:]]
        padded_tokens = ascending * np.arange(1, len(ascending) + 1)
        fits = (padded_tokens <= batch_tokens) & (pad | (ascending == ascending[0]))
        size = max(1, int(fits.sum()))  # both conditions hold up to some context and not after it
        yield order[start : start + size]
        start += size
