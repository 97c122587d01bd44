"""The language model's next-token loss with its residual stream replaced at one site.

    loss recovered  1 − (CE_sae − CE_id) / (CE_abl − CE_id)

The stored activations are continued through the model as they are (CE_id) and with the positions of
one mask, the ordinary rows, replaced: by reconstructions, by zero, by the training mean. All come
from the same stored activations, by the same code, in the same batches, and are summed before the
one ratio: so the identity recovers exactly 1 and zero-ablation exactly 0. CE is over all next-token
targets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, Integer
from torch import Tensor

from saelib.activations.lm import LM
from saelib.activations.store import Store

MIN_ABLATION_NATS = 0.1  # loss recovered is a ratio to what ablation costs; below this it is noise
LOGIT_ROWS = 64  # positions whose float32 logits are held at once: they stay in the cache

Replacement = Callable[[Tensor], Tensor]  # rows [n, d] in model units -> what stands there instead


def next_token_probs(
    logits: Float[Tensor, "batch time vocab"],
) -> Float32[Tensor, "batch targets vocab"]:
    """Probabilities of each next token; targets = time − 1."""
    p = torch.softmax(logits[:, :-1].float(), dim=-1)
    # On processors without AVX-512, softmax's own sum is off by 3e-6.
    return p.div_(p.sum(-1, keepdim=True))


def next_token_losses(
    logits: Float[Tensor, "batch time vocab"],
    input_ids: Int64[Tensor, "batch time"],
    p: Float32[Tensor, "batch targets vocab"] | None = None,
) -> tuple[Float64[Tensor, " batch"], Float64[Tensor, " batch"]]:
    """Cross-entropy of each context with its next tokens, and with the distributions p, in nats.

    targets = time − 1; the second is 0 without p. KL(p ‖ q) is q's less p's own, to about 1e-5 nats
    per context. Float32 logits exist for a few positions at a time, which is several times faster
    than for all.
    """
    sums = torch.zeros(2, len(logits), dtype=torch.float64, device=logits.device)
    targets = logits.shape[1] - 1
    for i, start in itertools.product(range(len(logits)), range(0, targets, LOGIT_ROWS)):
        stop = min(start + LOGIT_ROWS, targets)
        scores = logits[i, start:stop].to(torch.float32, copy=True)
        scores -= scores.amax(-1, keepdim=True)
        log_sum = torch.logsumexp(scores, -1)
        target = input_ids[i, start + 1 : stop + 1, None]
        sums[0, i] += (log_sum - scores.gather(-1, target).squeeze(-1)).double().sum()
        if p is not None:
            sums[1, i] += (log_sum - torch.linalg.vecdot(p[i, start:stop], scores)).double().sum()
    return sums[0], sums[1]


def loss_recovered(ce_sae: float, ce_id: float, ce_abl: float) -> float:
    """1 for the identity, 0 for ablation; nan if ablation costs at most 0.1 nat.

    1 − (CE_sae − CE_id) / (CE_abl − CE_id).
    """
    cost = ce_abl - ce_id
    return 1 - (ce_sae - ce_id) / cost if cost > MIN_ABLATION_NATS else math.nan


class ReplacedLosses(NamedTuple):
    """Summed loss of each context [contexts], in nats."""

    targets: np.ndarray  # int64, next-token targets
    clean: np.ndarray  # float64, of the stored activations unchanged
    ce: dict[str, np.ndarray]  # float64, of each replacement
    kl: dict[str, np.ndarray]  # float64, KL(clean ‖ replaced)


@torch.inference_mode()
def replaced_losses(
    lm: LM,
    store: Store,
    site: int,
    contexts: Sequence[int],
    batch_tokens: int,
    replacements: Mapping[str, Replacement],
) -> ReplacedLosses:
    """Next-token losses with a site's ordinary positions replaced, one replacement at a time.

    One clean forward per batch is shared; logits of one replacement are held at a time.
    Replacements see float32 rows as stored, on the language model's device.
    """
    ordinary = store.mask("ordinary")
    batches = [
        _batch_losses(lm, store, site, rows, ordinary[rows], replacements)
        for rows in _batches(store, contexts, batch_tokens)
    ]
    return ReplacedLosses(
        targets=np.concatenate([batch.targets for batch in batches]),
        clean=np.concatenate([batch.clean for batch in batches]),
        ce={name: np.concatenate([batch.ce[name] for batch in batches]) for name in replacements},
        kl={name: np.concatenate([batch.kl[name] for batch in batches]) for name in replacements},
    )


def context_length(store: Store, context: int) -> int:
    """Tokens of a context."""
    rows = store.context_rows(context)
    return rows.stop - rows.start


def _batches(store: Store, contexts: Sequence[int], batch_tokens: int) -> Iterator[np.ndarray]:
    """Row numbers [batch, time] of contexts of equal length, at most `batch_tokens` rows.

    A batch holds at least one context.
    """
    for length, same in groupby(contexts, lambda context: context_length(store, context)):
        rows = np.stack([np.arange(r.start, r.stop) for r in map(store.context_rows, same)])
        size = max(1, batch_tokens // length)
        yield from (rows[i : i + size] for i in range(0, len(rows), size))


def _batch_losses(
    lm: LM,
    store: Store,
    site: int,
    rows: Integer[np.ndarray, "batch time"],
    mask: Bool[np.ndarray, "batch time"],
    replacements: Mapping[str, Replacement],
) -> ReplacedLosses:
    """`replaced_losses` of one batch."""
    ids = torch.from_numpy(store.tokens["token_id"][rows].astype(np.int64)).to(lm.device)
    replaced = torch.from_numpy(mask).to(lm.device)
    stored = store.rows(site, rows.ravel()).view(*rows.shape, -1).to(lm.device)
    resid = stored.to(lm.dtype)
    logits = lm.continue_from(site, resid, ids)
    p = next_token_probs(logits) if replacements else None
    clean, entropy = next_token_losses(logits, ids, p)
    losses = ReplacedLosses(np.full(len(rows), rows.shape[1] - 1), clean.cpu().numpy(), {}, {})
    for name, replacement in replacements.items():
        patched = resid.clone()
        patched[replaced] = replacement(stored[replaced]).to(patched)
        ce, cross_entropy = next_token_losses(lm.continue_from(site, patched, ids), ids, p)
        losses.ce[name] = ce.cpu().numpy()
        losses.kl[name] = (cross_entropy - entropy).cpu().numpy()
    return losses
