"""Live rows: training activations straight from the language model, without a disk cache.

A pass over the text takes all contexts of training pages in a seeded permutation, cut into blocks
of about equal size and at most `StreamConfig.buffer_tokens` tokens: the shuffle buffer. A block is
filled by forwards of its contexts, grouped by length, all sites in one forward. Rows that are not
wanted are left out and the others handed out in a seeded permutation. So contexts are mixed over
the whole text, rows over a buffer: with 131,072 tokens and contexts of 128, a batch is drawn from
1,024 contexts. Held-out pages are not among the contexts and never enter. A further pass runs the
model again.

At most two blocks are in memory, so that rows of several sites can be read on either side of a
border: 2 x buffer_tokens x sites x d_model x bytes per value. They lie beside the model where that
takes at most half of what is free there, else in host memory; the rows are the same.

Which token a cursor stands at depends on how many rows each block before gave, so their counts are
kept in a file: an interrupted run goes on at the block it had reached, and only that one is
computed again. Without the file the blocks before are run through once more to count them.
"""

from __future__ import annotations

import json
import logging
import math
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from threading import RLock
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, Integer, Shaped
from torch import Tensor

from saelib.activations.collect import captured
from saelib.activations.lm import LM
from saelib.activations.store import Store
from saelib.config import SINK_FACTOR, ConfigError, StreamConfig, stable_hash
from saelib.files import parsed_json
from saelib.text.contexts import Contexts
from saelib.text.pages import SPLITS

HELD = 2  # blocks in memory
AHEAD = 8  # readers side by side read at most buffer / 8 ahead, so two blocks suffice


log = logging.getLogger(__name__)


class StreamError(RuntimeError):
    """Live rows cannot be given; the message names the file, or site and page."""


class Block(NamedTuple):
    """A shuffle buffer: the rows of some contexts at all sites, and the orders of handing out."""

    rows: Int64[np.ndarray, " rows"]  # numbers of the corpus' tokens
    x: dict[int, Tensor]  # by site [rows, d_model]
    orders: dict[str, np.ndarray]  # by token mask, positions in `rows`


def stored_contexts(contexts: Contexts, cfg: StreamConfig) -> Int64[np.ndarray, " chosen"]:
    """Contexts that are stored although training is live, ascending.

    Held-out ones, and a sample of training ones.
    """
    rng = np.random.default_rng(cfg.seed)
    split = contexts.split[contexts.page]
    chosen = []
    for number, name in enumerate(SPLITS):
        candidates = np.flatnonzero(split == number)
        limit = cfg.held_out_contexts or len(candidates)
        if name == "train":
            limit = cfg.sample_contexts
        chosen.append(rng.permutation(candidates)[:limit])
    return np.sort(np.concatenate(chosen))


class LiveBlocks:
    """Blocks of training rows of one language model and text, computed once for all sites.

    `store` holds a sample of the same model's activations: sites, tokens per forward and median
    norms are taken from it. `journal` is the file with the counts. Safe for threads; the model
    works for one of them at a time. Raises `StoreError` for a store of another model, `ConfigError`
    for a buffer below the longest context, `StreamError` for a damaged journal.
    """

    def __init__(
        self,
        lm: LM,
        contexts: Contexts,
        store: Store,
        cfg: StreamConfig,
        journal: Path | None = None,
    ) -> None:
        store.check(model_id=lm.model_id)
        self.lm = lm
        self.contexts = contexts
        self.store = store
        self.cfg = cfg
        self.journal = journal
        self.lengths = np.diff(contexts.offsets)
        self.chosen = np.flatnonzero(contexts.split[contexts.page] == SPLITS.index("train"))
        self.n_tokens = int(self.lengths[self.chosen].sum())
        longest = int(self.lengths[self.chosen].max())
        require_buffer(cfg, longest, f"the longest context, {longest} tokens")
        self.n_blocks = -(-self.n_tokens // (cfg.buffer_tokens - longest + 1))  # of a pass
        free = torch.cuda.mem_get_info(lm.device)[0] if lm.device.type == "cuda" else math.inf
        self.device = lm.device if 2 * self.nbytes <= free else torch.device("cpu")
        self.counts = read_counts(journal)  # ordinary rows of each block
        self._starts: dict[str, list[int]] = {"ordinary": [0], "all": [0]}  # rows before each block
        self._held: dict[int, Block] = {}
        self._lock = RLock()

    @property
    def nbytes(self) -> int:
        """Memory that the buffers take at most."""
        row = len(self.store.sites) * self.store.d_model * self.lm.dtype.itemsize
        return HELD * row * min(self.cfg.buffer_tokens, self.n_tokens)

    @property
    def ahead(self) -> int:
        """Rows that streams trained side by side may read at a time."""
        return self.cfg.buffer_tokens // AHEAD

    def summary(self) -> str:
        """What streaming will do, in a line."""
        return (
            f"live rows: {self.n_tokens:,} training tokens in {len(self.chosen):,} contexts, "
            f"shuffled in {self.n_blocks:,} blocks a pass; "
            f"{self.nbytes / 1e9:.2f} GB of buffers on {self.device}"
        )

    def contexts_of(self, number: int) -> Int64[np.ndarray, " contexts"]:
        """Contexts of a block; blocks are numbered through all passes."""
        epoch, i = divmod(number, self.n_blocks)
        order = np.random.default_rng([self.cfg.seed, epoch]).permutation(self.chosen)
        ends = np.cumsum(self.lengths[order])
        bounds = self.n_tokens * np.array([i, i + 1]) // self.n_blocks
        first, stop = np.searchsorted(ends, bounds, side="right")
        return order[first:stop]

    def block(self, number: int) -> Block:
        """A block, computed where it is not in memory."""
        with self._lock:
            if number not in self._held:
                # The nearest is wanted next, by this reader or by one behind it.
                while len(self._held) >= HELD:
                    del self._held[max(self._held, key=lambda other: abs(other - number))]
                block = self._computed(number)
                self._note(number, len(block.orders["ordinary"]))
                self._held[number] = block
            return self._held[number]

    def _computed(self, number: int) -> Block:
        chosen = self.contexts_of(number)
        n = int(self.lengths[chosen].sum())
        rows = np.empty(n, dtype=np.int64)
        ordinary = np.ones(n, dtype=bool)
        x = {
            site: torch.empty(n, self.lm.d_model, dtype=self.lm.dtype, device=self.device)
            for site in self.store.sites
        }
        start = 0
        for batch_rows, streams in self._forwards(chosen):
            batch = slice(start, start + len(batch_rows))
            start = batch.stop
            rows[batch] = batch_rows
            for site, stream in streams:
                x[site][batch] = stream
                ordinary[batch] &= self._no_sink(site, stream, batch_rows)
        ordinary &= ~np.isin(rows, self.contexts.offsets[chosen])  # position 0
        return Block(rows, x, self._orders(number, ordinary))

    def _forwards(self, chosen: np.ndarray) -> Iterator[tuple[np.ndarray, Iterator]]:
        """The model's forwards of contexts, as the store's were made."""
        config = self.store.manifest["config"]
        sites = self.store.sites
        return captured(
            self.lm, self.contexts, chosen, sites, config["batch_tokens"], config["pad"]
        )

    def _orders(self, number: int, ordinary: np.ndarray) -> dict[str, np.ndarray]:
        """By token mask, the seeded order in which a block's rows are handed out."""
        epoch, i = divmod(number, self.n_blocks)
        # + 1: a seed that ends in 0 is the one without it, which orders the contexts
        seed = [self.cfg.seed, epoch, i + 1]
        masks = {"ordinary": np.flatnonzero(ordinary), "all": np.arange(len(ordinary))}
        return {k: np.random.default_rng(seed).permutation(v) for k, v in masks.items()}

    def _no_sink(self, site: int, x: Tensor, rows: np.ndarray) -> Bool[np.ndarray, " rows"]:
        """The store's rule: a norm of at most `SINK_FACTOR` medians.

        Raises `StreamError` naming site and page where an activation is not finite.
        """
        norm = x.float().norm(dim=1).cpu().numpy()
        for row in rows[~np.isfinite(norm)]:
            context = int(np.searchsorted(self.contexts.offsets, row, side="right")) - 1
            page = self.contexts.page_ids[self.contexts.page[context]]
            raise StreamError(
                f"site {site}, page {page!r}: an activation is not finite as {self.lm.dtype}"
            )
        return norm <= SINK_FACTOR * self.store.median_norm(site)

    def _note(self, number: int, count: int) -> None:
        """Keep a block's count, or hold the block to the one that is kept.

        Raises `StreamError` where they differ.
        """
        kept = self.counts.get(number)
        if kept not in (None, count):
            raise StreamError(
                f"{self.journal}: block {number} gave {kept} rows, now {count}: the model computes "
                "otherwise here; go on with device and libraries as they were, or delete the file "
                "and the unfinished runs"
            )
        self.counts[number] = count
        if self.journal and kept is None:
            self.journal.parent.mkdir(parents=True, exist_ok=True)
            # One short write: whole, whoever else appends.
            with self.journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps([number, count, stable_hash(number, count)]) + "\n")

    def _count(self, number: int, tokens: str) -> int:
        if tokens == "all":
            return int(self.lengths[self.contexts_of(number)].sum())
        if number in self.counts:
            return self.counts[number]
        return len(self.block(number).orders[tokens])

    def find(self, cursor: int, tokens: str) -> tuple[int, int]:
        """The block that holds row `cursor` of a site's rows, and the rows before that block."""
        with self._lock:
            starts = self._starts[tokens]
            while starts[-1] <= cursor:
                starts.append(starts[-1] + self._count(len(starts) - 1, tokens))
            number = bisect_right(starts, cursor) - 1
            return number, starts[number]


class LiveRows:
    """Endless batches of one site, as `rows.ShuffledRows` gives them.

    A batch is (x [batch_size, d_model], rows [batch_size]); it may straddle blocks and passes.
    `cursor`, the rows consumed, is the whole state. All SAEs see one order.
    """

    def __init__(self, blocks: LiveBlocks, site: int, tokens: str, batch_size: int) -> None:
        require_buffer(blocks.cfg, AHEAD * batch_size, f"{AHEAD} batches of {batch_size} rows")
        self.blocks = blocks
        self.site = site
        self.tokens = tokens
        self.device = blocks.device
        self.batch_size = batch_size
        self.cursor = 0

    def seek(self, cursor: int) -> None:
        """Go to where `cursor` rows have been consumed."""
        self.cursor = cursor

    def __next__(self) -> tuple[Shaped[Tensor, "batch d_model"], Integer[np.ndarray, " batch"]]:
        x: list[Tensor] = []
        rows: list[np.ndarray] = []
        missing = self.batch_size
        while missing:
            number, start = self.blocks.find(self.cursor, self.tokens)
            block = self.blocks.block(number)
            positions = block.orders[self.tokens][self.cursor - start :][:missing]
            x.append(self._gather(block, positions))
            rows.append(block.rows[positions])
            self.cursor += len(positions)
            missing -= len(positions)
        return torch.cat(x), np.concatenate(rows)

    def sample(
        self, n: int, generator: torch.Generator, cursor: int
    ) -> Float32[Tensor, "n d_model"]:
        """Up to n rows of the block that holds row `cursor`, whatever has been read ahead."""
        block = self.blocks.block(self.blocks.find(cursor, self.tokens)[0])
        order = block.orders[self.tokens]
        chosen = torch.randperm(len(order), generator=generator)[:n].sort().values
        return self._gather(block, order[chosen.numpy()]).float()

    def _gather(self, block: Block, positions: np.ndarray) -> Tensor:
        x = block.x[self.site]
        return x[torch.from_numpy(positions).to(x.device)]


def require_buffer(cfg: StreamConfig, tokens: int, what: str) -> None:
    """`ConfigError` where the buffer has not that many tokens."""
    if cfg.buffer_tokens < tokens:
        raise ConfigError(
            f"StreamConfig.buffer_tokens = {cfg.buffer_tokens}: expected at least {what}"
        )


def read_counts(journal: Path | None) -> dict[int, int]:
    """Rows by block, from a file of lines [block, rows, hash of both]; empty without a file.

    Raises:
        StreamError: a line is none such, or two differ on a block; names the file.
    """
    counts: dict[int, int] = {}
    if not journal or not journal.exists():
        return counts
    try:
        lines = journal.read_text(encoding="utf-8").splitlines()
        entries = [parsed_json(line) for line in lines]
        for number, count, *stated in entries:
            if stated not in ([], [stable_hash(number, count)]):
                raise ValueError(f"block {number}: not what its hash says")
            if counts.setdefault(number, count) != count:
                raise ValueError(f"block {number} has two counts")
        if any(len(entry) == 2 for entry in entries):
            log.warning(f"{journal}: of an earlier version, has no hashes; read unchecked")
        return counts
    except (ValueError, TypeError) as error:
        raise StreamError(
            f"{journal}: damaged ({error}); delete it: the blocks are counted again"
        ) from error
