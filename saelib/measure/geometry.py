"""Why a site is hard or easy to rebuild, from the activations alone.

Everything here is a table (or an array) computed from a store in constant memory, with float64
sums. Token classes are those of the store; `ordinary` means ordinary at every site, so that sites
are compared on the same tokens. Rows that are ordinary at one site and sinks at another count
under `all` only. The d × d sums are formed on `Store.device`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Float64, Integer
from torch import Tensor

from saelib.activations.moments import row_moments
from saelib.activations.store import CLASSES, Store
from saelib.config import SINK_FACTOR
from saelib.measure.bootstrap import bootstrap_pages, heaviest_share
from saelib.measure.reconstruction import NEGLIGIBLE, ratio

BATCH = 4096  # rows read at once
QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}
# (x [n, d] float64, special [n, 1] bool: first or sink at some site) -> x̂ [n, d]
Predictor = Callable[[Tensor, Tensor], Tensor]
Rows = Integer[np.ndarray, " n"]  # row numbers of a site


class CovarianceSums:
    """Σ1, Σ(x − shift) and Σ(x − shift)(x − shift)ᵀ of rows [n, d], in float64."""

    def __init__(self, shift: Float64[Tensor, " d"]) -> None:
        self.shift = shift
        self.n = 0
        self.sum = torch.zeros_like(shift)
        self.outer = shift.new_zeros(len(shift), len(shift))

    def update(self, x: Float[Tensor, "n d"]) -> None:
        """Add rows."""
        y = x.double() - self.shift
        self.n += len(y)
        self.sum += y.sum(0)
        self.outer.addmm_(y.T, y)

    def __add__(self, other: CovarianceSums) -> CovarianceSums:
        """Sums over the rows of both; the shifts must be the same, else `ValueError`."""
        if not torch.equal(self.shift, other.shift):
            raise ValueError("sums about two different shifts cannot be added")
        both = CovarianceSums(self.shift)
        both.n = self.n + other.n
        both.sum = self.sum + other.sum
        both.outer = self.outer + other.outer
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

    @property
    def mean_square(self) -> float:
        """E‖x‖²."""
        return self.about(torch.zeros_like(self.shift)).trace().item() / self.n

    def about(self, point: Float64[Tensor, " d"]) -> Float64[Tensor, "d d"]:
        """Σ (x − point)(x − point)ᵀ."""
        away = self.mean - point
        return self.n * (self.covariance + torch.outer(away, away))


def covariance_sums(
    store: Store, site: int, index: Rows, shift: Float64[Tensor, " d"]
) -> CovarianceSums:
    """`CovarianceSums` of rows `index` of a site, in one pass on the shift's device."""
    sums = CovarianceSums(shift)
    for x in store.iter_rows(site, index, BATCH):
        sums.update(x.to(shift.device))
    return sums


def _first_mean(store: Store, site: int, index: Rows) -> Float64[Tensor, " d"]:
    """Mean of the first rows of `index`: a shift that keeps one-pass sums from cancelling."""
    if not len(index):
        raise ValueError(f"site {site}: the mask leaves no rows to describe")
    return store.rows(site, index[:BATCH]).to(store.device).double().mean(0)


# Norms and variance of token classes


def site_profile(
    store: Store, split: str | None = None, factor: float = SINK_FACTOR
) -> pd.DataFrame:
    """One row per site and token class (all, first, sink, ordinary); `split` None: all rows.

    count              rows
    norm_*             quantiles of ‖x‖
    norm_share         share of Σ‖x‖² over all tokens of the site
    mean_share         ‖μ‖² / E‖x‖²: how much of the mean square is the mean vector
    gamma              ‖μ‖ / ‖σ‖ with ‖σ‖² = E‖x − μ‖²
    top1_share, top3_share   share of the variance in the 1 and 3 dimensions that have most of it
    participation      (Σλ)² / Σλ² of the covariance's eigenvalues: an effective rank of at most
                       count − 1
    A class without rows has count 0, one without variance no gamma, participation or top share,
    one of zeros no mean share: nan. Raises `ValueError` for a site whose activations are all zero.
    """
    chosen = store.mask("all", split)
    rows = []
    for site in store.sites:
        masks = _classes(store, site, chosen, factor)
        shift = _first_mean(store, site, np.flatnonzero(masks["ordinary"]))
        sums = {
            name: covariance_sums(store, site, np.flatnonzero(mask), shift)
            for name, mask in masks.items()
        }
        sums["all"] = sum(sums.values(), CovarianceSums(shift))
        masks["all"] = chosen
        total = sums["all"].mean_square * sums["all"].n
        if total == 0:
            raise ValueError(f"site {site}: all activations are zero, there is nothing to measure")
        for name in ("all", *CLASSES):
            norms = store.norm(site)[masks[name]].astype(np.float64)
            rows.append({"site": site, "class": name} | _profile(sums[name], norms, total))
    return pd.DataFrame(rows)


def _classes(
    store: Store, site: int, chosen: Bool[np.ndarray, " rows"], factor: float
) -> dict[str, np.ndarray]:
    """Disjoint masks of the chosen rows: first and sink here, ordinary at every site, the rest."""
    here = store.token_class(site, factor)
    masks = {name: chosen & (here == CLASSES.index(name)) for name in ("first", "sink")}
    masks["ordinary"] = chosen & store.mask("ordinary", factor=factor)
    return masks | {"other": chosen & ~np.logical_or.reduce(list(masks.values()))}


def _profile(sums: CovarianceSums, norms: np.ndarray, total: float) -> dict[str, Any]:
    """One row of `site_profile`; `total` is Σ‖x‖² over all tokens of the site."""
    row: dict[str, Any] = {"count": sums.n}
    for name, q in QUANTILES.items():
        row[f"norm_{name}"] = np.quantile(norms, q) if sums.n else np.nan
    if not sums.n:
        return row
    covariance = sums.covariance
    square = sums.mean_square
    mean_square = sums.mean.square().sum().item()
    variance = covariance.trace().item()
    row["norm_share"] = square * sums.n / total
    behind = max(square, sums.shift.square().sum().item())
    row["mean_share"] = ratio(mean_square, square, behind)
    if not variance > NEGLIGIBLE * behind:  # none, or nan
        return row
    by_dim = covariance.diagonal().sort(descending=True).values
    row["gamma"] = (mean_square / variance) ** 0.5
    row["participation"] = variance**2 / covariance.square().sum().item()
    for k in (1, 3):
        row[f"top{k}_share"] = by_dim[:k].sum().item() / variance
    return row


def norm_by_position(store: Store, split: str | None = None) -> pd.DataFrame:
    """Norm against position in the context: site, position, n, median, q10, q90.

    Over a split, or (None) over all rows.
    """
    chosen = store.mask("all", split)
    position = store.tokens["position"][chosen]
    tables = [_by_position(site, position, store.norm(site)[chosen]) for site in store.sites]
    return pd.concat(tables, ignore_index=True)


def norms_by_position(captured: Mapping[int, Float[Tensor, "batch time d"]]) -> pd.DataFrame:
    """`norm_by_position` of captured activations by site: one table for, say, a rerun with BOS."""
    tables = []
    for site, x in captured.items():
        norms = x.float().norm(dim=-1).cpu().numpy()  # [batch, time]
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
    table = pd.DataFrame(columns).rename_axis("position").reset_index().assign(site=site)
    return table[["site", "position", *columns]]


# Massive activations


def massive_dims(store: Store, site: int, k: int = 5, split: str | None = None) -> pd.DataFrame:
    """The k dimensions with the largest |x|, largest first.

    Massive activations: Sun et al. 2024, arXiv 2402.17762.

    site, dim, max_abs
    over_typical       max_abs / (median norm / √d), the typical size of an entry
    share_all          share of the variance over all tokens, each about its dimension's mean
    share_ordinary     the same over ordinary tokens
    """
    over_all = _per_dim(store, site, np.flatnonzero(store.mask("all", split)))
    ordinary = _per_dim(store, site, np.flatnonzero(store.mask("ordinary", split)))
    top = over_all["max_abs"].argsort(descending=True, stable=True)[:k]
    typical = store.median_norm(site) / store.d_model**0.5
    columns = {
        "max_abs": over_all["max_abs"],
        "over_typical": over_all["max_abs"] / typical,
        "share_all": over_all["var"] / over_all["var"].sum(),
        "share_ordinary": ordinary["var"] / ordinary["var"].sum(),
    }
    shown = {name: values[top].numpy() for name, values in columns.items()}
    return pd.DataFrame({"site": site, "dim": top.numpy()} | shown)


def _per_dim(store: Store, site: int, index: Rows) -> dict[str, Float64[Tensor, " d"]]:
    """Variance and largest magnitude of each dimension, in one pass."""
    shift = _first_mean(store, site, index)
    total = torch.zeros_like(shift)
    square = torch.zeros_like(shift)
    largest = torch.zeros_like(shift)
    for x in store.iter_rows(site, index, BATCH):
        y = x.double() - shift
        total += y.sum(0)
        square += y.square().sum(0)
        largest = torch.maximum(largest, x.double().abs().amax(0))
    variance = square / len(index) - (total / len(index)).square()
    return {"var": variance, "max_abs": largest}


def massive_tokens(store: Store, site: int, k: int = 20, tokenizer: Any = None) -> pd.DataFrame:
    """The k tokens of largest norm, largest first, with page title, position, class, norm / median.

    Position 0 is left out; `token` is the decoded text, empty without a tokenizer.
    """
    norm = store.norm(site)
    position = store.tokens["position"]
    candidates = np.flatnonzero(position > 0)
    rows = candidates[np.argsort(-norm[candidates], kind="stable")[:k]]
    ids = store.tokens["token_id"][rows]
    columns = {
        "site": site,
        "row": rows,
        "title": [store.page_titles[page] for page in store.tokens["page"][rows]],
        "position": position[rows],
        "token_id": ids,
        "token": [tokenizer.decode([i]) if tokenizer else "" for i in ids.tolist()],
        "norm": norm[rows],
        "over_median": norm[rows] / store.median_norm(site),
        "class": [CLASSES[c] for c in store.token_class(site)[rows]],
    }
    return pd.DataFrame(columns)


# Principal components, and predictors without a dictionary


def _eigen(
    covariance: Float64[Tensor, "d d"],
) -> tuple[Float64[Tensor, " d"], Float64[Tensor, "d d"]]:
    """Eigenvalues, largest first and not below 0, and eigenvectors as columns in the same order."""
    values, vectors = torch.linalg.eigh(covariance)
    return values.flip(0).clamp_min(0), vectors.flip(1)


def spectrum(
    store: Store, site: int, tokens: str = "ordinary", split: str | None = "train"
) -> Float64[np.ndarray, " d"]:
    """Eigenvalues of the covariance of a site's rows, largest first.

    They are the variance along each principal direction.
    """
    index = np.flatnonzero(store.mask(tokens, split))
    sums = covariance_sums(store, site, index, _first_mean(store, site, index))
    return _eigen(sums.covariance)[0].cpu().numpy()


def pca_fvu(
    store: Store,
    site: int,
    ranks: Iterable[int] | None = None,
    tokens: str = "ordinary",
    split: str = "test",
) -> pd.DataFrame:
    """FVU on a split of rank-k PCA fitted on the training rows, for all ranks at once.

    Columns site, rank, fvu. x̂ = μ + V_k V_kᵀ (x − μ), with μ and V_k of the training rows; the
    denominator is about the split's own mean, so that rank 0 has slightly more than 1. ranks None
    gives 0 .. d. Raises `ValueError` for a rank outside.
    """
    index = {name: np.flatnonzero(store.mask(tokens, name)) for name in ("train", split)}
    shift = _first_mean(store, site, index["train"])
    train = covariance_sums(store, site, index["train"], shift)
    test = covariance_sums(store, site, index[split], shift)
    fvu = _fvu_by_rank(train, test)
    if ranks is None:
        ranks = range(len(fvu))
    ranks = np.asarray(list(ranks), dtype=np.int64)
    if ranks.min() < 0 or ranks.max() >= len(fvu):
        raise ValueError(f"ranks {ranks.min()} to {ranks.max()}: expected 0 to d = {len(fvu) - 1}")
    return pd.DataFrame({"site": site, "rank": ranks, "fvu": fvu[ranks]})


def _fvu_by_rank(train: CovarianceSums, test: CovarianceSums) -> Float64[np.ndarray, " d_plus_1"]:
    """FVU of `test` under PCA of ranks 0 .. d fitted on `train`."""
    vectors = _eigen(train.covariance)[1]
    about = test.about(train.mean)
    energy = ((about @ vectors) * vectors).sum(0)  # [d] along each training direction
    left = about.trace() - torch.cat([energy.new_zeros(1), energy.cumsum(0)])
    return (left / (test.n * test.covariance.trace())).clamp_min(0).cpu().numpy()


def naive_predictors(
    store: Store, site: int, rank: int = 32, factor: float = SINK_FACTOR
) -> dict[str, Predictor]:
    """Four predictors fitted on training rows; two of them know which rows are special, no more.

    mean         μ, the mean of ordinary rows, for each row
    one_latent   the mean of the special rows for these, else μ: an oracle, told which rows are
                 special; a decoder of one row whose code is fixed
    sinks_only   x itself for special rows, else μ
    pca          μ + V Vᵀ (x − μ), V the first `rank` principal directions of ordinary rows
    A row is special if it is first or sink at any site. Without a special training row one_latent
    is the mean; a rank above d is d.
    """
    train = store.mask("all", "train")
    ordinary = store.mask("ordinary", "train", factor)
    rows = np.flatnonzero(ordinary)
    special_rows = np.flatnonzero(train & ~ordinary)
    sums = covariance_sums(store, site, rows, _first_mean(store, site, rows))
    mean = sums.mean.cpu()
    v = _eigen(sums.covariance)[1][:, :rank].cpu()
    special_mean = row_moments(store, site, special_rows).mean if len(special_rows) else mean
    return {
        "mean": lambda x, special: mean.expand_as(x),
        "one_latent": lambda x, special: torch.where(special, special_mean, mean),
        "sinks_only": lambda x, special: torch.where(special, x, mean),
        "pca": lambda x, special: mean + (x - mean) @ v @ v.T,
    }


def predictor_fvu(
    store: Store,
    site: int,
    predictors: Mapping[str, Predictor],
    split: str = "test",
    factor: float = SINK_FACTOR,
) -> pd.DataFrame:
    """FVU of predictors on all and on ordinary rows of a split.

    Columns site, predictor, class, pages, fvu, lo, hi, heaviest. Each class's denominator is about
    its own mean; lo, hi is the 95 % bootstrap over pages; heaviest the largest share that one page
    has of the error or of the denominator. Raises `ValueError` where a class has no rows.
    """
    special = ~store.mask("ordinary", factor=factor)
    rows = []
    for name in ("all", "ordinary"):
        index = np.flatnonzero(store.mask(name, split, factor))
        if not len(index):
            raise ValueError(
                f"site {site}: split {split!r} has no rows ({name} tokens) to measure on"
            )
        center = row_moments(store, site, index).mean
        total = {"sst": lambda x, special, center=center: center.expand_as(x)}
        errors = _square_errors(store, site, index, special, total | dict(predictors))
        pages = errors.groupby(store.tokens["page"][index]).sum()
        for predictor in predictors:
            lo, hi = bootstrap_pages(pages[predictor], pages["sst"])
            row = {"site": site, "predictor": predictor, "class": name, "pages": len(pages)}
            fvu = pages[predictor].sum() / pages["sst"].sum()
            heaviest = max(heaviest_share(pages[name]) for name in (predictor, "sst"))
            rows.append(row | {"fvu": fvu, "lo": lo, "hi": hi, "heaviest": heaviest})
    return pd.DataFrame(rows)


def _square_errors(
    store: Store,
    site: int,
    index: Rows,
    special: Bool[np.ndarray, " rows"],
    predictors: Mapping[str, Predictor],
) -> pd.DataFrame:
    """‖x − x̂‖² of rows `index`, one column per predictor."""
    tables = []
    for start in range(0, len(index), BATCH):
        rows = index[start : start + BATCH]
        x = store.rows(site, rows).double()
        is_special = torch.from_numpy(special[rows])[:, None]
        errors = {
            name: (x - predict(x, is_special)).square().sum(1).numpy()
            for name, predict in predictors.items()
        }
        tables.append(pd.DataFrame(errors))
    return pd.concat(tables, ignore_index=True)
