"""A store of a tiny Llama's activations: sinks, two lengths of context, pages in three splits."""

import numpy as np
import torch

from helpers.models import SINK_TOKEN, VOCABULARY, D, run_full
from saelib.activations.store import Store
from saelib.activations.writer import StoreWriter, shard_plan
from saelib.config import CollectConfig, EvalConfig
from saelib.text.contexts import Contexts

SITES = (1, 2, 4)
SITE = 2  # the one that is measured
LENGTHS = (12, 16)
CFG = EvalConfig(ce_tokens=400, batch_tokens=64, seed=0)


def own_text(lm, n, length, generator):
    """Contexts the model samples itself, with the sink token strewn in."""
    ids = torch.randint(VOCABULARY, (n, 1), generator=generator)
    for _ in range(length - 1):
        drawn = torch.multinomial(
            run_full(lm, ids)[:, -1].float().softmax(-1), 1, generator=generator
        )
        drawn[torch.rand(n, 1, generator=generator) < 0.06] = SINK_TOKEN
        ids = torch.cat([ids, drawn], 1)
    return ids


def own_texts(lm):
    """96 contexts of each length, one generator for all."""
    generator = torch.Generator().manual_seed(1)
    return [own_text(lm, 96, length, generator) for length in LENGTHS]


def write_store(lm, path, texts=None):
    """48 pages of two contexts of 12 and two of 16 tokens, written by the model unless given.

    Each fourth page is a test page, each sixth a validation page. `texts` holds the token ids of
    the contexts by length, [96, 12] and [96, 16].
    """
    texts = texts or own_texts(lm)
    page = np.tile(np.repeat(np.arange(48, dtype=np.int32), 2), 2)
    split = np.array(
        [2 if p % 4 == 0 else 1 if p % 6 == 1 else 0 for p in range(48)], dtype=np.int8
    )
    contexts = Contexts(
        ids=torch.cat([t.flatten() for t in texts]).numpy().astype(np.int32),
        offsets=np.cumsum([0] + [12] * 96 + [16] * 96),
        page=page,
        start=np.zeros(192, dtype=np.int32),
        page_ids=tuple(f"p{i}" for i in range(48)),
        page_titles=tuple(f"Page {i}" for i in range(48)),
        split=split,
        bos=False,
        report={},
    )
    streams = [lm.capture(t, SITES) for t in texts]
    rows = {site: torch.cat([s[site].reshape(-1, D) for s in streams]) for site in SITES}
    rows[4][torch.from_numpy(contexts.ids == 9)] *= 50  # sinks at site 4 alone
    identity = {
        "model_id": lm.model_id,
        "corpus_id": contexts.corpus_id,
        "sites": SITES,
        "d_model": D,
        "dtype": lm.dtype,
    }
    cfg = CollectConfig(shard_tokens=500)
    with StoreWriter(path, **identity, contexts=contexts, config=cfg) as writer:
        for shard, (first, stop) in enumerate(shard_plan(contexts, cfg.shard_tokens)):
            part = slice(contexts.offsets[first], contexts.offsets[stop])
            writer.write_shard(shard, {site: rows[site][part] for site in SITES})
        writer.finish()
    return Store.open(path)
