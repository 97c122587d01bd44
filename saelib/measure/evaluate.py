"""Trained SAEs measured on held-out pages: reconstruction of the test rows, and the language model's loss with it.

Reconstruction: every test row of a site is read once for all SAEs. `fvu`, `mse`, `l0`, `l1`, `shrinkage` and the dead
fractions are over ordinary rows, `fvu_all` and `l0_all` over all rows, `fvu_sink` over first and sink rows.

Loss: fixed test contexts, the same for every SAE of a store. The stored stream is continued through the model as it is
(CE_id) and with the positions of one mask, the ordinary rows, replaced: by reconstructions, by zero, by the training
mean. All come from the same stored stream, by the same code, in the same batches, and are summed before the one
ratio: so the identity recovers exactly 1 and zero-ablation exactly 0. CE is over all next-token targets.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saelib.activations.lm import LM
from saelib.activations.moments import row_moments
from saelib.activations.store import CLASSES, Store
from saelib.config import EvalConfig
from saelib.files import write_json
from saelib.measure import metrics
from saelib.measure.metrics import CodeSums, Reconstruction, RowSums
from saelib.sae import sparse
from saelib.sae.base import SAE, GatedSAE

ROW_BATCH = 2048  # rows an SAE sees at once; bounds the codes held to ROW_BATCH × n_latents
MIN_SINK_ROWS = 50  # below this many first and sink rows their FVU is not reported
CE_DRIFT = 1e-3  # nats by which CE_id may differ from the reference's, for other hardware
LOSS_COLUMNS = (
    "ce_id",
    "ce_sae",
    "ce_zero",
    "ce_mean",
    "delta_ce",
    "kl",
    "loss_recovered",
    "loss_recovered_mean",
)

Replacement = Callable[[Tensor], Tensor]  # rows [n, d] in model units -> what stands there instead


@dataclass(frozen=True)
class SiteReference:
    """Clean and ablated losses of one site on the fixed test contexts: what every SAE of the site is compared with."""

    store_id: str
    model_id: str
    dtype: str  # the model computed in
    site: int
    config: dict[str, Any]  # the EvalConfig
    contexts: list[int]  # context numbers, in the order they are run
    n_replaced: int  # positions in the mask
    # page_id, n (targets) and the sums in nats: ce_id, and with the masked positions replaced ce_zero (by zero) and
    # ce_mean (by the mean of the ordinary training rows)
    pages: list[dict[str, Any]]

    @property
    def n_targets(self) -> int:
        """Next-token targets in all contexts."""
        return sum(page["n"] for page in self.pages)

    @property
    def ce_id(self) -> float:
        """Loss a target, in nats, of the stored stream continued unchanged."""
        return _mean_loss(self.pages, "ce_id", "n")


def _mean_loss(pages: Sequence[Mapping[str, Any]], name: str, n: str) -> float:
    """Exactly rounded Σ over pages / targets: the one way every mean loss is formed, so that equal sums stay equal."""
    return math.fsum(page[name] for page in pages) / sum(page[n] for page in pages)


def ce_contexts(store: Store, cfg: EvalConfig) -> list[int]:
    """Test contexts of at most `cfg.ce_tokens` tokens in all (at least one), seeded, round-robin over pages.

    Every page gives one context before any gives a second. Ordered by length, so that batches hold equal lengths.
    """
    rng = np.random.default_rng(cfg.seed)
    by_page: dict[int, list[int]] = {}
    for context in rng.permutation(store.contexts_of("test")).tolist():
        if _length(store, context) > 1:
            by_page.setdefault(
                int(store.tokens["page"][store.context_rows(context).start]), []
            ).append(context)
    rounds = max(map(len, by_page.values()), default=0)
    queue = [
        contexts[i] for i in range(rounds) for contexts in by_page.values() if i < len(contexts)
    ]
    if not queue:
        raise ValueError(
            "the test split has no context of two or more tokens to measure the next-token loss on"
        )
    total = np.cumsum([_length(store, context) for context in queue])
    return sorted(
        queue[: max(1, int((total <= cfg.ce_tokens).sum()))], key=lambda c: (_length(store, c), c)
    )


def _length(store: Store, context: int) -> int:
    rows = store.context_rows(context)
    return rows.stop - rows.start


def _batches(store: Store, contexts: Sequence[int], batch_tokens: int) -> Iterator[np.ndarray]:
    """Row numbers [batch, tokens] of contexts of equal length, at most `batch_tokens` rows (at least one context)."""
    for length, same in groupby(contexts, lambda context: _length(store, context)):
        rows = np.stack([np.arange(r.start, r.stop) for r in map(store.context_rows, same)])
        size = max(1, batch_tokens // length)
        yield from (rows[i : i + size] for i in range(0, len(rows), size))


class ReplacedLosses(NamedTuple):
    """Summed loss of each context, float64 [contexts], in nats."""

    targets: np.ndarray  # int64, next-token targets
    clean: np.ndarray  # the stored stream unchanged
    ce: dict[str, np.ndarray]  # a replacement's loss
    kl: dict[str, np.ndarray]  # KL(clean ‖ replaced)


@torch.inference_mode()
def replaced_losses(
    lm: LM,
    store: Store,
    site: int,
    contexts: Sequence[int],
    batch_tokens: int,
    replacements: Mapping[str, Replacement],
) -> ReplacedLosses:
    """Next-token losses with the ordinary positions of the stored stream replaced, one replacement after another.

    One clean forward a batch, shared; logits of one replacement are held at a time. Replacements see float32 rows as
    stored, on the language model's device.
    """
    ordinary = store.mask("ordinary")
    batches = _batches(store, contexts, batch_tokens)
    parts = [_batch_losses(lm, store, site, rows, ordinary[rows], replacements) for rows in batches]
    ce, kl = (
        {k: np.concatenate([getattr(p, name)[k] for p in parts]) for k in replacements}
        for name in ("ce", "kl")
    )
    targets, clean = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("targets", "clean")
    )
    return ReplacedLosses(targets, clean, ce, kl)


def _batch_losses(
    lm: LM,
    store: Store,
    site: int,
    rows: np.ndarray,
    mask: np.ndarray,
    replacements: Mapping[str, Replacement],
) -> ReplacedLosses:
    """`replaced_losses` of one batch; rows, mask [contexts, tokens]."""
    ids = torch.from_numpy(store.tokens["token_id"][rows].astype(np.int64)).to(lm.device)
    at = torch.from_numpy(mask).to(lm.device)
    stored = store.rows(site, rows.ravel()).view(*rows.shape, -1).to(lm.device)
    stream = stored.to(lm.dtype)
    logits = lm.continue_from(site, stream, ids)
    p = metrics.next_token_probs(logits) if replacements else None
    clean, entropy = metrics.next_token_losses(logits, ids, p)
    out = ReplacedLosses(np.full(len(rows), rows.shape[1] - 1), clean.cpu().numpy(), {}, {})
    for name, replacement in replacements.items():
        patched = stream.clone()
        patched[at] = replacement(stored[at]).to(patched)
        ce, cross_entropy = metrics.next_token_losses(lm.continue_from(site, patched, ids), ids, p)
        out.ce[name], out.kl[name] = ce.cpu().numpy(), (cross_entropy - entropy).cpu().numpy()
    return out


def _page_sums(store: Store, contexts: Sequence[int], values: np.ndarray) -> dict[str, int | float]:
    """Sum of a value a context over each page: page id -> sum."""
    sums: dict[str, int | float] = {}
    for context, value in zip(contexts, values.tolist(), strict=True):
        page = store.page_ids[int(store.tokens["page"][store.context_rows(context).start])]
        sums[page] = sums.get(page, 0) + value
    return sums


def site_reference(
    lm: LM, store: Store, site: int, cfg: EvalConfig, cache: Path | None = None
) -> SiteReference:
    """Losses of the stored stream, of zero- and of mean-ablation at `site`, once for all SAEs.

    `cache` is a JSON file, written atomically, that names the store, model, dtype, site and configuration it belongs
    to: with others it is computed anew and overwritten; a file that is no reference raises `ValueError`.
    """
    _check_model(lm, store)
    key = _key(lm, store, site, cfg)
    if cache is not None and cache.exists():
        known = _read_reference(cache)
        if all(getattr(known, name) == value for name, value in key.items()):
            return known
    reference = SiteReference(**key, **_reference_losses(lm, store, site, cfg))
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_json(cache, asdict(reference))
    return reference


def _key(lm: LM, store: Store, site: int, cfg: EvalConfig) -> dict[str, Any]:
    """What a reference belongs to."""
    dtype = str(lm.dtype).removeprefix("torch.")
    return {
        "store_id": store.store_id,
        "model_id": lm.model_id,
        "dtype": dtype,
        "site": site,
        "config": cfg.to_dict(),
    }


def _read_reference(cache: Path) -> SiteReference:
    try:
        return SiteReference(**json.loads(cache.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{cache} is not a site reference ({error}): remove it to have it computed anew"
        ) from error


def _reference_losses(lm: LM, store: Store, site: int, cfg: EvalConfig) -> dict[str, Any]:
    contexts = ce_contexts(store, cfg)
    mean = row_moments(store, site, np.flatnonzero(store.mask("ordinary", "train")))[0]
    mean = torch.as_tensor(mean, dtype=torch.float32, device=lm.device)
    ablations = {"ce_zero": torch.zeros_like, "ce_mean": lambda rows: mean.expand_as(rows)}
    losses = replaced_losses(lm, store, site, contexts, cfg.batch_tokens, ablations)
    columns = {"n": losses.targets, "ce_id": losses.clean, **losses.ce}
    sums = {name: _page_sums(store, contexts, values) for name, values in columns.items()}
    pages = [{"page_id": page} | {name: sums[name][page] for name in columns} for page in sums["n"]]
    ordinary = store.mask("ordinary")
    n_replaced = sum(int(ordinary[store.context_rows(context)].sum()) for context in contexts)
    return {"contexts": contexts, "n_replaced": n_replaced, "pages": pages}


def _check_model(lm: LM, store: Store) -> None:
    if lm.model_id != store.model_id:
        raise ValueError(
            f"the store holds activations of model {store.model_id!r}, the model given is {lm.model_id!r}"
        )


class Tally(NamedTuple):
    """Sums over a set of rows: of the rows, and of every SAE on them."""

    x: RowSums
    saes: dict[str, Reconstruction]


@torch.inference_mode()
def tally_rows(
    saes: Mapping[str, SAE | GatedSAE],
    store: Store,
    site: int,
    index: np.ndarray,
    group: np.ndarray | None = None,
    shift: Tensor | None = None,
) -> Tally:
    """One pass over the rows `index` of a site for all SAEs; `group` [len(index)] int64 says whose page a row is.

    An SAE is measured on its own device, one that lies on the CPU as a copy on the store's.
    """
    if store.device.type != "cpu":
        saes = {
            name: sae if sae.mean.is_cuda else deepcopy(sae).to(store.device)
            for name, sae in saes.items()
        }
    shift = _shift(store, site, index) if shift is None else shift
    x_sums = RowSums(shift, 1 if group is None else int(group.max(initial=0)) + 1)
    tally = Tally(
        x_sums, {name: Reconstruction(x_sums, sae.config.n_latents) for name, sae in saes.items()}
    )
    start = 0
    for x in store.iter_rows(site, index, ROW_BATCH):
        g = None if group is None else torch.from_numpy(group[start : start + len(x)])
        start += len(x)
        x_sums.update(x, g)
        for name, sae in saes.items():
            _tally_sae(sae, x.to(sae.mean.device), tally.saes[name], g)
    return tally


def _shift(store: Store, site: int, index: np.ndarray) -> Tensor:
    """A vector near the mean, for safe one-pass sums."""
    if not len(index):
        raise ValueError(f"no rows to measure at site {site}: the split and mask leave none")
    return store.rows(site, index[:ROW_BATCH]).double().mean(0)


def _tally_sae(sae: SAE | GatedSAE, x: Tensor, sums: Reconstruction, group: Tensor | None) -> None:
    x_n = sae.normalize(x)
    if sae.W_dec.dtype == torch.float32:
        x_hat, codes = _sparse_pass(sae, x_n)
    else:
        f = sae.encode(x_n)
        x_hat, codes = (
            sae.decode(f),
            CodeSums.of(f, sae.gate_open(x_n) if isinstance(sae, GatedSAE) else None),
        )
    sums.update(x, sae.denormalize(x_hat), codes, group)


def _sparse_pass(sae: SAE | GatedSAE, x_n: Tensor) -> tuple[Tensor, CodeSums]:
    """Reconstruction of normalised rows and the sums of their codes, by the sparse step's operations."""
    params, ops = dict(sae.named_parameters()), sparse.operations(x_n.device)
    at, f, _ = sparse.encode(
        x_n - sae.b_dec, params, "screen" if sparse.screens(x_n.device) else "exact"
    )
    error, _, _ = ops.decode(x_n, sae.W_dec, sae.b_dec, at, f, 1.0)
    row = torch.repeat_interleave(at.crow.diff())
    shape = len(x_n), sae.config.n_latents
    return x_n + error, CodeSums.of_entries(row, at.col.long(), f, shape, isinstance(sae, GatedSAE))


def quick_metrics(
    sae: SAE | GatedSAE, store: Store, site: int, split: str = "val"
) -> dict[str, float | None]:
    """`Reconstruction.compute` on the ordinary rows of a split, for choices; undefined values are None."""
    _check_sae("sae", sae, store, site)
    tally = tally_rows({"sae": sae}, store, site, np.flatnonzero(store.mask("ordinary", split)))
    return {
        k: v if math.isfinite(v) else None
        for k, v in tally.saes["sae"].compute(float(sae.scale)).items()
    }


def feature_density(
    sae: SAE | GatedSAE, store: Store, site: int, split: str = "test"
) -> np.ndarray:
    """Share of the split's ordinary rows on which each latent fires, float64 [n_latents]."""
    _check_sae("sae", sae, store, site)
    tally = tally_rows({"sae": sae}, store, site, np.flatnonzero(store.mask("ordinary", split)))
    return tally.saes["sae"].density.numpy()


def _check_sae(name: str, sae: SAE | GatedSAE, store: Store, site: int) -> None:
    sae.check_store(store.d_model, tuple(store.sites))
    if sae.config.site != site:
        raise ValueError(
            f"SAE {name!r} belongs to site {sae.config.site}, it was to be measured at site {site}"
        )


def evaluate(
    saes: Mapping[str, SAE | GatedSAE],
    store: Store,
    site: int,
    lm: LM | None,
    ref: SiteReference | None,
    cfg: EvalConfig,
) -> dict[str, dict[str, Any]]:
    """Every metric column of the results table for each SAE of one site, on test pages.

    Undefined values are None, with the reason in "note"; with `cfg.ce_tokens` = 0 so are `LOSS_COLUMNS`, and lm and
    ref may be. `gate_dead`, the share of gates never open, is None for arch "sae". `dead_fraction` and `gate_dead` are
    over a window of `n_test_tokens` rows. `fvu_val` and `l0_val`, over ordinary validation rows, are for choices.
    "pages" holds each page's sums for page bootstraps: n, sse, sst, l0 over ordinary rows, and ce_n (targets), ce_id,
    ce_sae, ce_zero, ce_mean over the reference's contexts (0 without any).
    """
    if cfg.ce_tokens:
        _check_reference(ref, store, site, lm, cfg)
    for name, sae in saes.items():
        _check_sae(name, sae, store, site)
    losses = None
    if cfg.ce_tokens:
        patches = {
            name: lambda rows, sae=sae: sae.reconstruct(rows.to(sae.mean.device))
            for name, sae in saes.items()
        }
        losses = replaced_losses(lm, store, site, ref.contexts, cfg.batch_tokens, patches)
    rows = _TestRows.of(store, site)
    tallies = rows.tally(saes, store, site)
    val = tally_rows(saes, store, site, np.flatnonzero(store.mask("ordinary", "val")))
    out = {}
    for name, sae in saes.items():
        pages = _pages(name, rows, tallies["ordinary"], losses, store, ref)
        values, note = _reconstruction_columns(name, sae, tallies)
        values |= _loss_columns(pages, losses.kl[name], ref, note) if losses else {}
        values |= {f"{k}_val": v for k, v in val.saes[name].compute().items() if k in ("fvu", "l0")}
        values |= {"n_test_pages": sum(page["n"] > 0 for page in pages)}
        known = _defined(values, note)
        if losses is None:
            known |= dict.fromkeys(LOSS_COLUMNS)
            note["loss"] = "next-token loss: not measured (ce_tokens = 0)"
        out[name] = known | {"note": "; ".join(note.values()), "pages": pages}
    return out


def _check_reference(
    ref: SiteReference | None, store: Store, site: int, lm: LM | None, cfg: EvalConfig
) -> None:
    if lm is None or ref is None:
        raise ValueError(
            f"ce_tokens = {cfg.ce_tokens}: a language model and a reference are needed to measure a loss"
        )
    _check_model(lm, store)
    for name, value in _key(lm, store, site, cfg).items():
        if getattr(ref, name) != value:
            raise ValueError(
                f"the reference's {name} is {getattr(ref, name)!r}, the evaluation's is {value!r}"
            )


class _TestRows(NamedTuple):
    """The test rows of a site, in disjoint sets, and the pages they come from."""

    sets: dict[
        str, np.ndarray
    ]  # "ordinary"; "sink": first or sink at this site; "other": sink at another site only
    pages: np.ndarray  # page numbers in ascending order
    group: np.ndarray  # of each ordinary row, its page's place in `pages`

    @classmethod
    def of(cls, store: Store, site: int) -> _TestRows:
        every, ordinary = store.mask("all", "test"), store.mask("ordinary", "test")
        special = store.token_class(site) != CLASSES.index("ordinary")
        masks = {
            "ordinary": ordinary,
            "sink": every & special,
            "other": every & ~special & ~ordinary,
        }
        sets = {name: np.flatnonzero(mask) for name, mask in masks.items()}
        pages = np.unique(store.tokens["page"][every])
        group = np.searchsorted(pages, store.tokens["page"][sets["ordinary"]])
        return cls(sets, pages, group)

    def tally(
        self, saes: Mapping[str, SAE | GatedSAE], store: Store, site: int
    ) -> dict[str, Tally]:
        """Sums over each set, about one shift; together each test row is read once."""
        shift = _shift(store, site, self.sets["ordinary"])
        groups = {"ordinary": self.group}
        return {
            k: tally_rows(saes, store, site, index, groups.get(k), shift)
            for k, index in self.sets.items()
        }


def _reconstruction_columns(
    name: str, sae: SAE | GatedSAE, tallies: dict[str, Tally]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Metrics of one SAE on test rows, and the reasons for those that have no value."""
    ordinary, sink = tallies["ordinary"], tallies["sink"]
    every = ordinary.x + sink.x + tallies["other"].x
    sse, active = (
        sum(getattr(t.saes[name], key).sum().item() for t in tallies.values())
        for key in ("sse", "active")
    )
    out = ordinary.saes[name].compute(float(sae.scale)) | {
        "n_test_tokens": ordinary.x.n,
        "fvu_sink": math.nan,
    }
    out |= {"fvu_all": sse / every.scatter().sum().item(), "l0_all": active / every.n}
    if sink.x.n < MIN_SINK_ROWS:
        return out, {
            "fvu_sink": f"fvu_sink: {sink.x.n} first and sink rows, fewer than {MIN_SINK_ROWS}"
        }
    out["fvu_sink"] = sink.saes[name].sse.sum().item() / sink.x.scatter(every.mean).sum().item()
    return out, {}


def _loss_columns(
    pages: list[dict[str, Any]], kl: np.ndarray, ref: SiteReference, note: dict[str, str]
) -> dict[str, float]:
    ce = {
        name: _mean_loss(pages, name, "ce_n") for name in ("ce_id", "ce_sae", "ce_zero", "ce_mean")
    }
    if abs(ce["ce_id"] - ref.ce_id) > CE_DRIFT:
        raise ValueError(
            f"CE_id is {ce['ce_id']:.6f} nats, the reference has {ref.ce_id:.6f}: compute it anew"
        )
    out = ce | {"delta_ce": ce["ce_sae"] - ce["ce_id"], "kl": math.fsum(kl) / ref.n_targets}
    for column, ablation in (("loss_recovered", "ce_zero"), ("loss_recovered_mean", "ce_mean")):
        out[column] = metrics.loss_recovered(ce["ce_sae"], ce["ce_id"], ce[ablation])
        cost = ce[ablation] - ce["ce_id"]
        if cost <= metrics.MIN_ABLATION_NATS:
            note[column] = (
                f"{column}: {ablation} - ce_id = {cost:.4f} nats, at most {metrics.MIN_ABLATION_NATS}"
            )
    return out


def _pages(
    name: str,
    rows: _TestRows,
    tally: Tally,
    losses: ReplacedLosses | None,
    store: Store,
    ref: SiteReference | None,
) -> list[dict[str, Any]]:
    """Sums of one SAE over each test page."""
    ce_sae, ce_id, reference = {}, {}, {}
    if losses and ref:
        ce_sae, ce_id = (
            _page_sums(store, ref.contexts, values) for values in (losses.ce[name], losses.clean)
        )
        reference = {page["page_id"]: page for page in ref.pages}
    sst, sums = tally.x.scatter(), tally.saes[name]
    out = []
    for i, page in enumerate(store.page_ids[p] for p in rows.pages):
        entry = {
            "page_id": page,
            "n": int(tally.x.count[i]),
            "sse": sums.sse[i].item(),
            "sst": sst[i].item(),
        }
        known = reference.get(page, {"n": 0, "ce_zero": 0.0, "ce_mean": 0.0})
        entry |= {"l0": sums.active[i].item(), "ce_n": known["n"], "ce_id": ce_id.get(page, 0.0)}
        entry |= {
            "ce_sae": ce_sae.get(page, 0.0),
            "ce_zero": known["ce_zero"],
            "ce_mean": known["ce_mean"],
        }
        out.append(entry)
    return out


def _defined(values: dict[str, Any], note: dict[str, str]) -> dict[str, Any]:
    """None for what is not finite, each with a reason in `note`; gate_dead is simply empty where there is no gate."""
    for name, value in values.items():
        if not math.isfinite(value) and name != "gate_dead":
            note.setdefault(name, f"{name}: undefined ({value})")
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
