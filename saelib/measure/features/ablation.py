"""What the next-token loss pays when one latent is taken out of the stream.

In contexts in which latent j fires, every ordinary row x of the SAE's site becomes

    x − f_j(x) W_dec[j] / s

(s: the SAE's scale, so that the term is in the model's units). What the SAE misses stays in place,
so that nothing but the latent's own part is removed. Losses are those of `replaced_loss`, from the
stored stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int64, Integer

from saelib.activations.lm import LM
from saelib.activations.store import Store
from saelib.measure.features.build import entries
from saelib.measure.features.contexts import priorities
from saelib.measure.latents import latent_number
from saelib.measure.replaced_loss import context_length, next_token_losses, replaced_losses
from saelib.sae import Autoencoder
from saelib.sae.base import check_store
from saelib.text.pages import SPLITS

ROWS = 2048  # encoded at once


def ablation_losses(
    sae: Autoencoder,
    lm: LM,
    store: Store,
    latents: Sequence[int],
    n: int,
    *,
    split: str = "test",
    batch_tokens: int = 4096,
    seed: int = 0,
) -> pd.DataFrame:
    """A line for each latent, over n of the split's contexts in which it fires, drawn by a hash.

    n_contexts        fewer than n where it fires in fewer; 0 for a dead one, whose losses are nan
    n_targets         next-token targets in them
    n_fired           ordinary tokens in them on which it fires
    ce_clean          nats per target, stored stream as it is
    ce_ablated        without the latent
    delta_ce          ce_ablated − ce_clean
    delta_per_firing  the contexts' whole cost over n_fired, in nats

    Contexts of several latents share forwards.

    Raises:
        ValueError: SAE, model and store do not belong together, a latent is out of range, or n is
            below 1.
    """
    _check(sae, lm, store, latents, n)
    chosen = _chosen_contexts(sae, store, latents, n, split, seed)
    clean = _clean_losses(sae, lm, store, chosen.context, batch_tokens)
    ablated = _ablated_losses(sae, lm, store, chosen, batch_tokens)
    lengths = [context_length(store, int(context)) for context in chosen.context]
    pairs = pd.DataFrame({"latent": chosen.latent, "n_fired": chosen.fired})
    pairs["n_contexts"] = 1
    pairs["n_targets"] = np.array(lengths, dtype=np.int64) - 1
    pairs["ce_clean"] = clean
    pairs["ce_ablated"] = ablated
    return _per_target(pairs.groupby("latent").sum().reindex(list(latents)))


def _check(sae: Autoencoder, lm: LM, store: Store, latents: Sequence[int], n: int) -> None:
    check_store(sae, store.d_model, tuple(store.sites))
    if lm.model_id != store.model_id:
        raise ValueError(f"model {lm.model_id} is not that of the store, {store.model_id}")
    for latent in latents:
        latent_number(latent, sae.config.n_latents)
    if n < 1:
        raise ValueError(f"n = {n}: expected at least 1 context a latent")


def _per_target(sums: pd.DataFrame) -> pd.DataFrame:
    """Means of what was summed over a latent's contexts."""
    counts = sums[["n_contexts", "n_targets", "n_fired"]].fillna(0).astype("int64")
    losses = sums[["ce_clean", "ce_ablated"]].div(sums["n_targets"], axis=0)
    table = counts.join(losses)
    cost = sums["ce_ablated"] - sums["ce_clean"]
    table["delta_ce"] = table["ce_ablated"] - table["ce_clean"]
    table["delta_per_firing"] = cost / sums["n_fired"]
    return table.rename_axis("latent")


class _Chosen(NamedTuple):
    """Pairs of a latent and a context in which it fires, contexts of one length together."""

    latent: Int64[np.ndarray, " pairs"]
    context: Int64[np.ndarray, " pairs"]
    fired: Int64[np.ndarray, " pairs"]


def _chosen_contexts(
    sae: Autoencoder, store: Store, latents: Sequence[int], n: int, split: str, seed: int
) -> _Chosen:
    rows = store.mask("ordinary", split) & (store.tokens["split"] == SPLITS.index(split))
    counts = _firings(sae, store, np.flatnonzero(rows), np.unique(latents))
    latent, context = (column.astype(np.int64) for column in counts[["latent", "context"]].T.values)
    order = np.lexsort((priorities(seed, latent, context), latent))
    kept = counts.iloc[order].groupby("latent").head(n)
    lengths = [context_length(store, context) for context in kept["context"]]
    kept = kept.assign(length=lengths).sort_values(["length", "context", "latent"])
    return _Chosen(*(kept[name].to_numpy() for name in ("latent", "context", "fired")))


def _firings(
    sae: Autoencoder, store: Store, index: Integer[np.ndarray, " n"], latents: np.ndarray
) -> pd.DataFrame:
    """Firings of some latents by context: latent, context, fired."""
    parts = []
    for start in range(0, len(index), ROWS):
        part = index[start : start + ROWS]
        rows, latent, _ = entries(sae, store.rows(sae.config.site, part))
        wanted = np.isin(latent, latents)
        contexts = store.tokens["context"][part[rows[wanted]]].astype(np.int64)
        parts.append(pd.DataFrame({"latent": latent[wanted], "context": contexts}))
    fired = pd.concat(parts or [pd.DataFrame({"latent": [], "context": []}, dtype=np.int64)])
    return fired.groupby(["latent", "context"]).size().reset_index(name="fired")


def _clean_losses(
    sae: Autoencoder, lm: LM, store: Store, context: np.ndarray, batch_tokens: int
) -> Float64[np.ndarray, " pairs"]:
    """Summed loss of each pair's context, each context run once."""
    if not len(context):
        return np.zeros(0)
    once = pd.unique(context)
    losses = replaced_losses(lm, store, sae.config.site, once.tolist(), batch_tokens, {})
    return pd.Series(losses.clean, index=once)[context].to_numpy()


@torch.inference_mode()
def _ablated_losses(
    sae: Autoencoder, lm: LM, store: Store, chosen: _Chosen, batch_tokens: int
) -> Float64[np.ndarray, " pairs"]:
    """Summed loss of each pair's context without its latent."""
    ordinary = store.mask("ordinary")
    losses = []
    for rows, latent in _batches(store, chosen, batch_tokens):
        ids = torch.from_numpy(store.tokens["token_id"][rows].astype(np.int64)).to(lm.device)
        x = store.rows(sae.config.site, rows.ravel()).to(sae.mean.device)
        which = torch.from_numpy(np.repeat(latent, rows.shape[1])).to(x.device)
        f = sae.encode_raw(x).gather(1, which[:, None])
        stream = x.view(*rows.shape, -1).to(lm.device, lm.dtype)
        without = (x - f * sae.W_dec[which] / sae.scale).view(*rows.shape, -1)
        mask = torch.from_numpy(ordinary[rows]).to(lm.device)
        stream[mask] = without.to(stream)[mask]
        logits = lm.continue_from(sae.config.site, stream, ids)
        losses.append(next_token_losses(logits, ids)[0].cpu().numpy())
    return np.concatenate(losses) if losses else np.zeros(0)


def _batches(
    store: Store, chosen: _Chosen, batch_tokens: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows [batch, time], latent of each context) of pairs whose contexts have one length."""
    pairs = range(len(chosen.latent))
    for length, same in groupby(pairs, lambda i: context_length(store, int(chosen.context[i]))):
        places = list(same)
        size = max(1, batch_tokens // length)
        for start in range(0, len(places), size):
            part = places[start : start + size]
            spans = [store.context_rows(int(chosen.context[i])) for i in part]
            rows = np.stack([np.arange(span.start, span.stop) for span in spans])
            yield rows, chosen.latent[part]
