"""Why a site is hard or easy to rebuild, from the activations alone, and how gates behave over training.

Everything here is a table (or an array) computed from a store in constant memory, with float64 sums. Token classes are
those of the store; `ordinary` means ordinary at every site, so that sites are compared on the same tokens. Rows
ordinary at one site and sinks at another count under `all` only. The d × d sums are formed on `Store.device`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from saelib.activations.moments import row_moments
from saelib.activations.store import CLASSES, Store
from saelib.config import SINK_FACTOR
from saelib.measure.metrics import NEGLIGIBLE, bootstrap_pages, gini

BATCH = 4096  # rows read at once
QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}
Predictor = Callable[
    [Tensor, Tensor], Tensor
]  # (x [n, d] float64, odd [n, 1] bool: not ordinary) -> x̂ [n, d]


class Scatter:
    """Σ1, Σ(x − shift) and Σ(x − shift)(x − shift)ᵀ of rows [n, d], in float64."""

    def __init__(self, shift: Float64[Tensor, " d"]) -> None:
        self.shift, self.n = shift, 0
        self.sum = torch.zeros_like(shift)
        self.outer = shift.new_zeros(len(shift), len(shift))

    def update(self, x: Float[Tensor, "n d"]) -> None:
        y = x.double() - self.shift
        self.n += len(y)
        self.sum += y.sum(0)
        self.outer.addmm_(y.T, y)

    def __add__(self, other: Scatter) -> Scatter:
        """Sums over the rows of both; the shifts must be the same."""
        if not torch.equal(self.shift, other.shift):
            raise ValueError("sums about two different shifts cannot be added")
        both = Scatter(self.shift)
        both.n, both.sum, both.outer = (
            self.n + other.n,
            self.sum + other.sum,
            self.outer + other.outer,
        )
        return both

    @property
    def mean(self) -> Float64[Tensor, " d"]:
        """Mean of the rows."""
        return self.shift + self.sum / self.n

    @property
    def covariance(self) -> Float64[Tensor, "d d"]:
        """E (x − mean)(x − mean)ᵀ."""
        offset = self.sum / self.n
        return self.outer / self.n - torch.outer(offset, offset)

    def about(self, point: Float64[Tensor, " d"]) -> Float64[Tensor, "d d"]:
        """Σ (x − point)(x − point)ᵀ."""
        away = self.mean - point
        return self.n * (self.covariance + torch.outer(away, away))


def scatter_of(store: Store, site: int, index: np.ndarray, shift: Float64[Tensor, " d"]) -> Scatter:
    """`Scatter` of rows `index` of a site, in one pass on the shift's device."""
    out = Scatter(shift)
    for x in store.iter_rows(site, index, BATCH):
        out.update(x.to(shift.device))
    return out


def _first_mean(store: Store, site: int, index: np.ndarray) -> Float64[Tensor, " d"]:
    """Mean of the first rows of `index`: a shift that keeps one-pass sums from cancelling."""
    if not len(index):
        raise ValueError(f"site {site}: the mask leaves no rows to describe")
    return store.rows(site, index[:BATCH]).to(store.device).double().mean(0)


def _classes(store: Store, site: int, chosen: np.ndarray, factor: float) -> dict[str, np.ndarray]:
    """Disjoint masks of the chosen rows: first and sink at this site, ordinary at every site, and the few left over."""
    at_site = store.token_class(site, factor)
    masks = {name: chosen & (at_site == CLASSES.index(name)) for name in ("first", "sink")}
    masks["ordinary"] = chosen & store.mask("ordinary", factor=factor)
    return masks | {"other": chosen & ~np.logical_or.reduce(list(masks.values()))}


def site_profile(
    store: Store, split: str | None = None, factor: float = SINK_FACTOR
) -> pd.DataFrame:
    """One row a site and token class (all, first, sink, ordinary), over a split or (None) all rows.

    count              rows
    norm_*             quantiles of ‖x‖
    norm_share         share of Σ‖x‖² over all tokens of the site
    mean_share         ‖μ‖² / E‖x‖²: how much of the mean square is the mean vector
    gamma              ‖μ‖ / ‖σ‖ with ‖σ‖² = E‖x − μ‖²
    top1_share, top3_share   share of the variance in the 1 and 3 dimensions that have most of it
    participation      (Σλ)² / Σλ² of the covariance's eigenvalues: an effective rank; at most count − 1
    A class without rows has count 0, one without variance no gamma, participation or top share: nan.
    """
    chosen = store.mask("all", split)
    rows = []
    for site in store.sites:
        masks = _classes(store, site, chosen, factor)
        shift = _first_mean(store, site, np.flatnonzero(masks["ordinary"]))
        sums = {
            name: scatter_of(store, site, np.flatnonzero(mask), shift)
            for name, mask in masks.items()
        }
        sums["all"], masks["all"] = sum(sums.values(), Scatter(shift)), chosen
        total = _mean_square(sums["all"]) * sums["all"].n
        for name in ("all", *CLASSES):
            norms = store.norm(site)[masks[name]].astype(np.float64)
            rows.append({"site": site, "class": name} | _profile(sums[name], norms, total))
    return pd.DataFrame(rows)


def _mean_square(s: Scatter) -> float:
    return s.about(torch.zeros_like(s.shift)).trace().item() / s.n


def _profile(s: Scatter, norms: np.ndarray, total: float) -> dict[str, Any]:
    out = {"count": s.n} | {
        f"norm_{k}": np.quantile(norms, q) if s.n else np.nan for k, q in QUANTILES.items()
    }
    if not s.n:
        return out
    cov, square, mean_sq = s.covariance, _mean_square(s), s.mean.square().sum().item()
    variance = cov.trace().item()
    by_dim = cov.diagonal().sort(descending=True).values
    out |= {"norm_share": square * s.n / total, "mean_share": mean_sq / square}
    if variance > NEGLIGIBLE * square:
        out |= {
            "gamma": (mean_sq / variance) ** 0.5,
            "participation": variance**2 / cov.square().sum().item(),
        }
        out |= {f"top{k}_share": by_dim[:k].sum().item() / variance for k in (1, 3)}
    return out


def norm_by_position(store: Store, split: str | None = None) -> pd.DataFrame:
    """Norm against position in the context: site, position, n, median, q10, q90; over a split or (None) everything."""
    chosen = store.mask("all", split)
    return pd.concat(
        [
            _by_position(site, store.tokens["position"][chosen], store.norm(site)[chosen])
            for site in store.sites
        ],
        ignore_index=True,
    )


def norms_by_position(captured: Mapping[int, Tensor]) -> pd.DataFrame:
    """`norm_by_position` of captured streams, site -> [batch, tokens, d]: the same table for a rerun with BOS, say."""
    tables = []
    for site, x in captured.items():
        norms = x.float().norm(dim=-1).cpu().numpy()  # [batch, tokens]
        position = np.broadcast_to(np.arange(norms.shape[1]), norms.shape)
        tables.append(_by_position(site, position.ravel(), norms.ravel()))
    return pd.concat(tables, ignore_index=True)


def _by_position(site: int, position: np.ndarray, norm: np.ndarray) -> pd.DataFrame:
    groups = pd.Series(norm.astype(np.float64)).groupby(position.astype(np.int64))
    columns = {
        "n": groups.size(),
        "median": groups.median(),
        "q10": groups.quantile(0.1),
        "q90": groups.quantile(0.9),
    }
    return (
        pd.DataFrame(columns)
        .rename_axis("position")
        .reset_index()
        .assign(site=site)[["site", "position", *columns]]
    )


def massive_dims(store: Store, site: int, k: int = 5, split: str | None = None) -> pd.DataFrame:
    """The k dimensions with the largest |x|, largest first (massive activations: Sun et al. 2024, arXiv 2402.17762).

    site, dim, max_abs
    over_typical       max_abs / (median norm / √d), the typical size of an entry
    share_all          share of the variance over all tokens, each about its dimension's mean
    share_ordinary     the same over ordinary tokens
    """
    chosen, ordinary = store.mask("all", split), store.mask("ordinary", split)
    every, plain = (_per_dim(store, site, np.flatnonzero(mask)) for mask in (chosen, ordinary))
    top = every["max_abs"].argsort(descending=True, stable=True)[:k]
    typical = store.median_norm(site) / store.d_model**0.5
    columns = {"max_abs": every["max_abs"], "over_typical": every["max_abs"] / typical}
    columns |= {
        "share_all": every["var"] / every["var"].sum(),
        "share_ordinary": plain["var"] / plain["var"].sum(),
    }
    return pd.DataFrame(
        {"site": site, "dim": top.numpy()} | {name: v[top].numpy() for name, v in columns.items()}
    )


def _per_dim(store: Store, site: int, index: np.ndarray) -> dict[str, Float64[Tensor, " d"]]:
    """Variance and largest magnitude of every dimension, in one pass."""
    shift = _first_mean(store, site, index)
    total, square, biggest = (torch.zeros_like(shift) for _ in range(3))
    for x in store.iter_rows(site, index, BATCH):
        y = x.double() - shift
        total += y.sum(0)
        square += y.square().sum(0)
        biggest = torch.maximum(biggest, x.double().abs().amax(0))
    return {"var": square / len(index) - (total / len(index)).square(), "max_abs": biggest}


def massive_tokens(store: Store, site: int, k: int = 20, tokenizer: Any = None) -> pd.DataFrame:
    """The k tokens of largest norm, largest first, with page title, position, class and norm over the site's median.

    Position 0 is left out; `token` is the decoded text, empty without a tokenizer.
    """
    norm, position = store.norm(site), store.tokens["position"]
    candidates = np.flatnonzero(position > 0)
    rows = candidates[np.argsort(-norm[candidates], kind="stable")[:k]]
    ids = store.tokens["token_id"][rows]
    columns = {
        "site": site,
        "row": rows,
        "title": [store.page_titles[p] for p in store.tokens["page"][rows]],
    }
    columns |= {"position": position[rows], "token_id": ids}
    columns |= {"token": [tokenizer.decode([i]) if tokenizer else "" for i in ids.tolist()]}
    columns |= {"norm": norm[rows], "over_median": norm[rows] / store.median_norm(site)}
    return pd.DataFrame(columns | {"class": [CLASSES[c] for c in store.token_class(site)[rows]]})


def _eigen(
    covariance: Float64[Tensor, "d d"],
) -> tuple[Float64[Tensor, " d"], Float64[Tensor, "d d"]]:
    """Eigenvalues, largest first and not below 0, and eigenvectors as columns in the same order."""
    values, vectors = torch.linalg.eigh(covariance)
    return values.flip(0).clamp_min(0), vectors.flip(1)


def spectrum(
    store: Store, site: int, tokens: str = "ordinary", split: str | None = "train"
) -> Float64[np.ndarray, " d"]:
    """Eigenvalues of the covariance of a site's rows, largest first: the variance along each principal direction."""
    index = np.flatnonzero(store.mask(tokens, split))
    scatter = scatter_of(store, site, index, _first_mean(store, site, index))
    return _eigen(scatter.covariance)[0].cpu().numpy()


def pca_fvu(
    store: Store,
    site: int,
    ranks: Iterable[int] | None = None,
    tokens: str = "ordinary",
    split: str = "test",
) -> pd.DataFrame:
    """FVU, on a split, of rank-k PCA fitted on the training rows, for all ranks at once: site, rank, fvu.

    x̂ = μ + V_k V_kᵀ (x − μ), with μ and V_k of the training rows; the denominator is about the split's own mean, so
    that rank 0 has slightly more than 1. ranks None gives 0 .. d; a rank outside raises `ValueError`.
    """
    index = {name: np.flatnonzero(store.mask(tokens, name)) for name in ("train", split)}
    shift = _first_mean(store, site, index["train"])
    train, test = (scatter_of(store, site, index[name], shift) for name in ("train", split))
    vectors = _eigen(train.covariance)[1]
    about = test.about(train.mean)
    energy = ((about @ vectors) * vectors).sum(
        0
    )  # [d] of the split's rows along each training direction
    left = about.trace() - torch.cat([energy.new_zeros(1), energy.cumsum(0)])
    fvu = (left / (test.n * test.covariance.trace())).clamp_min(0).cpu().numpy()  # [d + 1]
    ranks = np.arange(len(fvu)) if ranks is None else np.asarray(list(ranks), dtype=np.int64)
    if ranks.min() < 0 or ranks.max() >= len(fvu):
        raise ValueError(f"ranks {ranks.min()} to {ranks.max()}: expected 0 to d = {len(fvu) - 1}")
    return pd.DataFrame({"site": site, "rank": ranks, "fvu": fvu[ranks]})


def naive_predictors(
    store: Store, site: int, rank: int = 32, factor: float = SINK_FACTOR
) -> dict[str, Predictor]:
    """Four predictors fitted on training rows; the middle two know which rows are sinks and nothing about the others.

    mean         μ, the mean of ordinary rows, for every row
    one_latent   the mean of the odd rows for these, else μ: a dictionary of one latent that fires on odd rows
    sinks_only   x itself for odd rows, else μ
    pca          μ + V Vᵀ (x − μ), V the first `rank` principal directions of ordinary rows
    `odd` is first or sink at any site. Without an odd training row one_latent is the mean; a rank above d is d.
    """
    train, ordinary = (store.mask("all", "train"), store.mask("ordinary", "train", factor))
    odd_rows, rows = np.flatnonzero(train & ~ordinary), np.flatnonzero(ordinary)
    scatter = scatter_of(store, site, rows, _first_mean(store, site, rows))
    mean, v = scatter.mean.cpu(), _eigen(scatter.covariance)[1][:, :rank].cpu()
    odd_mean = row_moments(store, site, odd_rows).mean if len(odd_rows) else mean
    return {
        "mean": lambda x, odd: mean.expand_as(x),
        "one_latent": lambda x, odd: torch.where(odd, odd_mean, mean),
        "sinks_only": lambda x, odd: torch.where(odd, x, mean),
        "pca": lambda x, odd: mean + (x - mean) @ v @ v.T,
    }


def predictor_fvu(
    store: Store,
    site: int,
    predictors: Mapping[str, Predictor],
    split: str = "test",
    factor: float = SINK_FACTOR,
) -> pd.DataFrame:
    """FVU of predictors on all and on ordinary rows of a split: site, predictor, class, pages, fvu, lo, hi.

    Each class's denominator is about its own mean; lo, hi is the 95 % bootstrap over pages.
    """
    odd, out = ~store.mask("ordinary", factor=factor), []
    for name in ("all", "ordinary"):
        index = np.flatnonzero(store.mask(name, split, factor))
        if not len(index):
            raise ValueError(
                f"site {site}: split {split!r} has no rows ({name} tokens) to measure on"
            )
        center = row_moments(store, site, index).mean
        errors = _square_errors(
            store, site, index, odd, {"sst": lambda x, odd, c=center: c.expand_as(x), **predictors}
        )
        pages = errors.groupby(store.tokens["page"][index]).sum()
        for key in predictors:
            lo, hi = bootstrap_pages(pages[key], pages["sst"])
            row = {"site": site, "predictor": key, "class": name, "pages": len(pages)}
            out.append(row | {"fvu": pages[key].sum() / pages["sst"].sum(), "lo": lo, "hi": hi})
    return pd.DataFrame(out)


def _square_errors(
    store: Store, site: int, index: np.ndarray, odd: np.ndarray, predictors: Mapping[str, Predictor]
) -> pd.DataFrame:
    """‖x − x̂‖² of rows `index`, one column a predictor."""
    parts = []
    for start in range(0, len(index), BATCH):
        rows = index[start : start + BATCH]
        x, is_odd = store.rows(site, rows).double(), torch.from_numpy(odd[rows])[:, None]
        parts.append(
            {name: (x - p(x, is_odd)).square().sum(1).numpy() for name, p in predictors.items()}
        )
    return pd.concat([pd.DataFrame(part) for part in parts], ignore_index=True)


def gate_statistics(snapshots: Iterable[Any]) -> pd.DataFrame:
    """How gates behave over training, one row a snapshot.

    A snapshot (mapping or object) has step, tokens, fire_rate [n_latents] (share of rows on which a latent fires), open
    [probe rows, n_latents] bool on the same rows every time, and b_gate [n_latents].

    open_fraction        share of open (row, latent) entries
    never_open           share of latents whose gate is open on no probe row
    persistence          P(open now | open at the snapshot before), over (row, latent) entries; nan for the first
    persistence_chance   the same were a latent's rows now independent of its rows before: Σ p q / Σ p over latents,
                         p and q a latent's open share before and now. Latents that open often keep doing so under it:
                         what persists beyond it is the choice of rows.
    gini                 of fire_rate: concentration of firing
    b_gate_q10, _median, _q90
    """
    rows, before = [], None
    for snapshot in snapshots:
        s = snapshot if isinstance(snapshot, Mapping) else vars(snapshot)
        now = np.asarray(s["open"], dtype=bool)
        if before is not None and before.shape != now.shape:
            raise ValueError(
                f"snapshot at step {s['step']}: open is {now.shape}, the one before {before.shape}"
            )
        row = {
            "step": s["step"],
            "tokens": s["tokens"],
            "open_fraction": now.mean(),
            "never_open": 1 - now.any(0).mean(),
        }
        row |= _persistence(before, now) | {
            "gini": gini(np.asarray(s["fire_rate"], dtype=np.float64))
        }
        quantiles = np.quantile(np.asarray(s["b_gate"], dtype=np.float64), [0.1, 0.5, 0.9])
        rows.append(
            row | dict(zip(("b_gate_q10", "b_gate_median", "b_gate_q90"), quantiles, strict=True))
        )
        before = now
    return pd.DataFrame(rows)


def _persistence(before: np.ndarray | None, now: np.ndarray) -> dict[str, float]:
    if before is None or not before.any():
        return {"persistence": np.nan, "persistence_chance": np.nan}
    p, q = before.mean(0), now.mean(0)
    return {"persistence": now[before].mean(), "persistence_chance": p @ q / p.sum()}
