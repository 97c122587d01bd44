"""Trained SAEs measured on held-out pages: reconstruction of test rows, and the loss with it.

Each test row of a site is read once for all SAEs. `fvu`, `mse`, `l0`, `l1`, `shrinkage` and the
dead fractions are over ordinary rows, `fvu_all` and `l0_all` over all rows, `fvu_sink` over first
and sink rows. The loss (`replaced_loss`) is over fixed test contexts, the same for each SAE of a
store (`reference`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64, Integer
from torch import Tensor

from saelib.activations.lm import LM
from saelib.activations.store import CLASSES, Store
from saelib.config import EvalConfig
from saelib.measure import replaced_loss
from saelib.measure.columns import LOSS_COLUMNS, reconstruction_metrics
from saelib.measure.reconstruction import CodeSums, Reconstruction, RowSums
from saelib.measure.reference import SiteReference, mean_loss, page_sums
from saelib.measure.replaced_loss import ReplacedLosses, loss_recovered, replaced_losses
from saelib.sae import Autoencoder, sparse
from saelib.sae.base import check_store

ROW_BATCH = 2048  # rows an SAE sees at once; bounds the codes held to ROW_BATCH × n_latents
MIN_SINK_ROWS = 50  # below this many first and sink rows their FVU is not reported
ABLATIONS = {"loss_recovered": "ce_zero", "loss_recovered_mean": "ce_mean"}


class Tally(NamedTuple):
    """Sums over a set of rows: of the rows, and of each SAE on them."""

    x: RowSums
    saes: dict[str, Reconstruction]


@torch.inference_mode()
def tally_rows(
    saes: Mapping[str, Autoencoder],
    store: Store,
    site: int,
    index: Integer[np.ndarray, " n"],
    group: Int64[np.ndarray, " n"] | None = None,
    shift: Float64[Tensor, " d"] | None = None,
) -> Tally:
    """One pass over the rows `index` of a site for all SAEs; `group` says whose page a row is.

    An SAE is measured on its own device, one that lies on the CPU as a copy on the store's. Raises
    `ValueError` where there are neither rows nor a `shift`.
    """
    if store.device.type != "cpu":
        saes = {name: _on_device(sae, store.device) for name, sae in saes.items()}
    shift = _shift(store, site, index) if shift is None else shift
    x_sums = RowSums(shift, 1 if group is None else int(group.max(initial=0)) + 1)
    sums = {
        name: Reconstruction(x_sums, sae.config.n_latents, float(sae.scale))
        for name, sae in saes.items()
    }
    start = 0
    for x in store.iter_rows(site, index, ROW_BATCH):
        pages = None if group is None else torch.from_numpy(group[start : start + len(x)])
        start += len(x)
        x_sums.update(x, pages)
        for name, sae in saes.items():
            _tally_sae(sae, x.to(sae.mean.device), sums[name], pages)
    return Tally(x_sums, sums)


def _on_device(sae: Autoencoder, device: torch.device) -> Autoencoder:
    """An SAE that lies on a GPU, or a copy there of one on the CPU."""
    return sae if sae.mean.is_cuda else deepcopy(sae).to(device)


def _shift(store: Store, site: int, index: np.ndarray) -> Float64[Tensor, " d"]:
    """A vector near the mean, for safe one-pass sums."""
    if not len(index):
        raise ValueError(f"no rows to measure at site {site}: the split and mask leave none")
    return store.rows(site, index[:ROW_BATCH]).double().mean(0)


def _tally_sae(sae: Autoencoder, x: Tensor, sums: Reconstruction, group: Tensor | None) -> None:
    x_n = sae.normalize(x)
    if sae.W_dec.dtype == torch.float32:
        x_hat, codes = _sparse_pass(sae, x_n)
    else:
        f = sae.encode(x_n)
        x_hat = sae.decode(f)
        codes = CodeSums.of(f, sae.gate_open(x_n) if sae.has_gate else None)
    sums.update(x, sae.denormalize(x_hat), codes, group)


def _sparse_pass(sae: Autoencoder, x_n: Tensor) -> tuple[Tensor, CodeSums]:
    """Reconstruction of normalised rows, and the sums of their codes, by the SAE's own encoder."""
    encoder = "screen" if sparse.screens(x_n.device) else "exact"
    codes, f = sae.encode_sparse(x_n, encoder)
    error, _, _ = sparse.decode(x_n, sae.W_dec, sae.b_dec, codes, f, 1.0)
    row = torch.repeat_interleave(codes.crow.diff())
    shape = (len(x_n), sae.config.n_latents)
    return x_n + error, CodeSums.of_entries(row, codes.col.long(), f, shape, sae.has_gate)


def quick_metrics(
    sae: Autoencoder, store: Store, site: int, split: str = "val"
) -> dict[str, float | None]:
    """`reconstruction_metrics` on the ordinary rows of a split, for choices; undefined is None.

    Raises `ValueError` where the SAE is of another site or width.
    """
    values = reconstruction_metrics(_on_ordinary_rows(sae, store, site, split))
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def feature_density(
    sae: Autoencoder, store: Store, site: int, split: str = "test"
) -> Float64[np.ndarray, " n_latents"]:
    """Share of the split's ordinary rows on which each latent fires."""
    return _on_ordinary_rows(sae, store, site, split).density.numpy()


def _on_ordinary_rows(sae: Autoencoder, store: Store, site: int, split: str) -> Reconstruction:
    _check_sae("sae", sae, store, site)
    rows = np.flatnonzero(store.mask("ordinary", split))
    return tally_rows({"sae": sae}, store, site, rows).saes["sae"]


def _check_sae(name: str, sae: Autoencoder, store: Store, site: int) -> None:
    check_store(sae, store.d_model, tuple(store.sites))
    if sae.config.site != site:
        raise ValueError(
            f"SAE {name!r} belongs to site {sae.config.site}, it was to be measured at site {site}"
        )


def evaluate(
    saes: Mapping[str, Autoencoder],
    store: Store,
    site: int,
    lm: LM | None,
    ref: SiteReference | None,
    cfg: EvalConfig,
) -> dict[str, dict[str, Any]]:
    """Each measured column of the results table for each SAE of one site, on test pages.

    Undefined values are None, with the reason in "note"; with `cfg.ce_tokens` = 0 so are
    `LOSS_COLUMNS`, and lm and ref may be. `gate_dead`, the share of gates never open, is None
    without gates. `dead_fraction` and `gate_dead` are over a window of `n_test_tokens` rows.
    `fvu_val` and `l0_val`, over ordinary validation rows, are for choices. "pages" holds each
    page's sums for page bootstraps: n, sse, sst, l0 over ordinary rows, and ce_n (targets), ce_id,
    ce_sae, ce_zero, ce_mean over the reference's contexts (0 without any).

    Raises `ValueError` where SAEs, store, model, reference and configuration do not belong
    together, naming what differs, or where CE_id is not the reference's.
    """
    if cfg.ce_tokens:
        _check_reference(ref, store, site, lm, cfg)
    for name, sae in saes.items():
        _check_sae(name, sae, store, site)
    losses = _losses_with(saes, store, site, lm, ref, cfg) if cfg.ce_tokens else None
    rows = _TestRows.at_site(store, site)
    tallies = rows.tally(saes, store, site)
    val = tally_rows(saes, store, site, np.flatnonzero(store.mask("ordinary", "val")))
    out = {}
    for name in saes:
        pages = _pages(name, rows, tallies["ordinary"], losses, store, ref)
        values, note = _reconstruction_columns(name, tallies)
        if losses:
            values |= _loss_columns(pages, losses.kl[name], ref, note)
        values["fvu_val"] = val.saes[name].fvu()
        values["l0_val"] = val.saes[name].l0()
        values["n_test_pages"] = sum(page["n"] > 0 for page in pages)
        row = _defined(values, note)
        if losses is None:
            row |= dict.fromkeys(LOSS_COLUMNS)
            note["loss"] = "next-token loss: not measured (ce_tokens = 0)"
        out[name] = row | {"note": "; ".join(note.values()), "pages": pages}
    return out


def _check_reference(
    ref: SiteReference | None, store: Store, site: int, lm: LM | None, cfg: EvalConfig
) -> None:
    if lm is None or ref is None:
        raise ValueError(
            f"ce_tokens = {cfg.ce_tokens}: a language model and a reference are needed "
            "to measure a loss"
        )
    ref.check(lm, store, site, cfg)


def _losses_with(
    saes: Mapping[str, Autoencoder],
    store: Store,
    site: int,
    lm: LM,
    ref: SiteReference,
    cfg: EvalConfig,
) -> ReplacedLosses:
    """Losses of the reference's contexts with each SAE's reconstructions in place."""
    patches = {
        name: lambda rows, sae=sae: sae.reconstruct(rows.to(sae.mean.device))
        for name, sae in saes.items()
    }
    return replaced_losses(lm, store, site, ref.contexts, cfg.batch_tokens, patches)


class _TestRows(NamedTuple):
    """The test rows of a site, in disjoint sets, and the pages they come from.

    The sets are "ordinary"; "sink", first or sink at this site; "other", sink at another site only.
    """

    sets: dict[str, np.ndarray]
    pages: np.ndarray  # page numbers in ascending order
    group: np.ndarray  # of each ordinary row, its page's place in `pages`

    @classmethod
    def at_site(cls, store: Store, site: int) -> _TestRows:
        chosen = store.mask("all", "test")
        ordinary = store.mask("ordinary", "test")
        special = store.token_class(site) != CLASSES.index("ordinary")
        masks = {
            "ordinary": ordinary,
            "sink": chosen & special,
            "other": chosen & ~special & ~ordinary,
        }
        sets = {name: np.flatnonzero(mask) for name, mask in masks.items()}
        pages = np.unique(store.tokens["page"][chosen])
        group = np.searchsorted(pages, store.tokens["page"][sets["ordinary"]])
        return cls(sets, pages, group)

    def tally(self, saes: Mapping[str, Autoencoder], store: Store, site: int) -> dict[str, Tally]:
        """Sums over each set, about one shift; together each test row is read once."""
        shift = _shift(store, site, self.sets["ordinary"])
        groups = {"ordinary": self.group}
        return {
            name: tally_rows(saes, store, site, index, groups.get(name), shift)
            for name, index in self.sets.items()
        }


def _reconstruction_columns(
    name: str, tallies: dict[str, Tally]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Metrics of one SAE on test rows, and the reasons for those that have no value."""
    ordinary = tallies["ordinary"]
    sink = tallies["sink"]
    all_rows = ordinary.x + sink.x + tallies["other"].x
    sse = sum(tally.saes[name].sse.sum().item() for tally in tallies.values())
    active = sum(tally.saes[name].active.sum().item() for tally in tallies.values())
    values = reconstruction_metrics(ordinary.saes[name]) | {
        "n_test_tokens": ordinary.x.n,
        "fvu_sink": math.nan,
        "fvu_all": sse / all_rows.scatter().sum().item(),
        "l0_all": active / all_rows.n,
    }
    if sink.x.n < MIN_SINK_ROWS:
        reason = f"fvu_sink: {sink.x.n} first and sink rows, fewer than {MIN_SINK_ROWS}"
        return values, {"fvu_sink": reason}
    total = sink.x.scatter(all_rows.mean).sum().item()
    values["fvu_sink"] = sink.saes[name].sse.sum().item() / total
    return values, {}


def _loss_columns(
    pages: list[dict[str, Any]], kl: np.ndarray, ref: SiteReference, note: dict[str, str]
) -> dict[str, float]:
    """Columns of the loss from one SAE's page sums; why one is undefined goes to `note`."""
    ce = {
        name: mean_loss(pages, name, "ce_n") for name in ("ce_id", "ce_sae", "ce_zero", "ce_mean")
    }
    ref.check_drift(ce["ce_id"])
    values = dict(ce)
    values["delta_ce"] = ce["ce_sae"] - ce["ce_id"]
    values["kl"] = math.fsum(kl) / ref.n_targets
    for column, ablation in ABLATIONS.items():
        values[column] = loss_recovered(ce["ce_sae"], ce["ce_id"], ce[ablation])
        cost = ce[ablation] - ce["ce_id"]
        least = replaced_loss.MIN_ABLATION_NATS
        if cost <= least:
            note[column] = f"{column}: {ablation} - ce_id = {cost:.4f} nats, at most {least}"
    return values


def _pages(
    name: str,
    rows: _TestRows,
    tally: Tally,
    losses: ReplacedLosses | None,
    store: Store,
    ref: SiteReference | None,
) -> list[dict[str, Any]]:
    """Sums of one SAE over each test page."""
    ce_sae: dict[str, Any] = {}
    ce_id: dict[str, Any] = {}
    reference: dict[str, Any] = {}
    if losses and ref:
        ce_sae = page_sums(store, ref.contexts, losses.ce[name])
        ce_id = page_sums(store, ref.contexts, losses.clean)
        reference = {page["page_id"]: page for page in ref.pages}
    sst = tally.x.scatter()
    sums = tally.saes[name]
    pages = []
    for i, page in enumerate(store.page_ids[number] for number in rows.pages):
        ablated = reference.get(page, {"n": 0, "ce_zero": 0.0, "ce_mean": 0.0})
        entry = {
            "page_id": page,
            "n": int(tally.x.count[i]),
            "sse": sums.sse[i].item(),
            "sst": sst[i].item(),
            "l0": sums.active[i].item(),
            "ce_n": ablated["n"],
            "ce_id": ce_id.get(page, 0.0),
            "ce_sae": ce_sae.get(page, 0.0),
            "ce_zero": ablated["ce_zero"],
            "ce_mean": ablated["ce_mean"],
        }
        pages.append(entry)
    return pages


def _defined(values: dict[str, Any], note: dict[str, str]) -> dict[str, Any]:
    """None for what is not finite, each with a reason in `note`; no gate needs no reason."""
    for name, value in values.items():
        if not math.isfinite(value) and name != "gate_dead":
            note.setdefault(name, f"{name}: undefined ({value})")
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
