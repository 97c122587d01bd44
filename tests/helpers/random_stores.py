"""A store of 36 random rows a site: eight contexts on four pages of three splits, no model."""

import numpy as np
import torch
from safetensors.torch import load

from saelib.activations.store import Store
from saelib.activations.writer import StoreWriter
from saelib.config import CollectConfig
from saelib.text.contexts import Contexts

D = 6
SITES = (1, 3)
LENGTHS = (2, 4, 4, 4, 5, 5, 6, 6)  # contexts; 36 rows
PAGE_OF = (0, 0, 1, 2, 2, 0, 1, 3)  # their pages
SPLIT_OF = (0, 1, 2, 0)  # the pages' splits: train, val, test, train
N_ROWS = sum(LENGTHS)


def make_contexts(lengths=LENGTHS, page_of=PAGE_OF, split_of=SPLIT_OF, vocab=61, seed=0):
    """Contexts of random tokens: their lengths, their pages, and the pages' splits."""
    ids = np.random.default_rng(seed).integers(0, vocab, sum(lengths))
    names = tuple(f"p{i}" for i in range(len(split_of)))
    return Contexts(
        ids=ids.astype(np.int32),
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        page=np.array(page_of, dtype=np.int32),
        start=np.zeros(len(lengths), dtype=np.int32),
        page_ids=names,
        page_titles=tuple(name.upper() for name in names),
        split=np.array(split_of, dtype=np.int8),
        bos=False,
        report={},
    )


def make_x(seed=0):
    """The rows of each site."""
    generator = torch.Generator().manual_seed(seed)
    return {site: torch.randn(N_ROWS, D, generator=generator) for site in SITES}


def writer_of(path, contexts=None, shard_tokens=8, batch_tokens=64, **changed):
    """A writer of model m@1 and text c, unless changed; by default six shards."""
    contexts = contexts or make_contexts()
    identity = {
        "model_id": "m@1",
        "corpus_id": "c",
        "sites": SITES,
        "d_model": D,
        "dtype": "float32",
        **changed,
    }
    config = CollectConfig(batch_tokens=batch_tokens, shard_tokens=shard_tokens)
    return StoreWriter(path, contexts=contexts, config=config, **identity)


def write(writer, x, shards=None):
    """Write the missing shards, or the given ones, of rows `x`."""
    for shard in writer.missing if shards is None else shards:
        first, stop = (int(writer.contexts.offsets[c]) for c in writer.plan[shard])
        writer.write_shard(shard, {site: rows[first:stop] for site, rows in x.items()})


def make_store(path, x=None, **options):
    """The finished store; `options` are those of `writer_of`."""
    with writer_of(path, **options) as writer:
        write(writer, make_x() if x is None else x)
        writer.finish()
    return Store.open(path)


def held(store, site):
    """What the shards of a site hold, in order."""
    return [load(path.read_bytes()) for path in sorted(store.path.glob(f"site_{site:02d}/*"))]
