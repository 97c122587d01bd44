"""Geometry of a site against numpy on a small store whose answers were put into it.

Site 0: ordinary rows with a mean and a decaying spectrum; every context begins with the same
vector, as after BOS.
Site 3: ten times that, position 0 massive in dimension 4, and a few sinks of the same kind later.
"""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.random_stores import LENGTHS as RANDOM_LENGTHS
from helpers.random_stores import N_ROWS as RANDOM_ROWS
from helpers.random_stores import SITES as RANDOM_SITES
from helpers.random_stores import D as RANDOM_WIDTH
from helpers.random_stores import make_store

from saelib.activations.store import Store
from saelib.activations.writer import StoreWriter, shard_plan
from saelib.config import CollectConfig
from saelib.measure import geometry
from saelib.text.contexts import Contexts

D, LENGTH, CONTEXTS = 6, 10, 60
SINKS = [23, 105, 337, 341]  # rows


def contexts():
    rng = np.random.default_rng(0)
    return Contexts(
        ids=rng.integers(0, 50, CONTEXTS * LENGTH).astype(np.int32),
        offsets=np.arange(0, CONTEXTS * LENGTH + 1, LENGTH),
        page=np.repeat(np.arange(20, dtype=np.int32), 3),
        start=np.zeros(CONTEXTS, dtype=np.int32),
        page_ids=tuple(f"p{i}" for i in range(20)),
        page_titles=tuple(f"Page {i}" for i in range(20)),
        split=np.array([0] * 13 + [1] * 2 + [2] * 5, dtype=np.int8),
        bos=True,
        report={},
    )


def streams():
    rng = np.random.default_rng(1)
    spread = np.array([3, 2, 1, 0.5, 0.2, 0.1])
    x = (
        2
        + rng.normal(size=(CONTEXTS * LENGTH, D))
        * spread
        @ np.linalg.qr(rng.normal(size=(D, D)))[0]
    )
    first = np.arange(CONTEXTS * LENGTH) % LENGTH == 0
    deep = 10 * x
    deep[first, 4] += 5000 + 50 * rng.normal(size=CONTEXTS)
    deep[SINKS, 4] += 2000
    x[first] = 3.0
    return {0: x.astype(np.float32), 3: deep.astype(np.float32)}


@pytest.fixture(scope="module")
def x():
    return streams()


@pytest.fixture(scope="module")
def store(x, tmp_path_factory):
    path, what, cfg = (
        tmp_path_factory.mktemp("geometry") / "store",
        contexts(),
        CollectConfig(shard_tokens=170),
    )
    identity = {
        "model_id": "m",
        "corpus_id": what.corpus_id,
        "sites": (0, 3),
        "d_model": D,
        "dtype": torch.float32,
    }
    with StoreWriter(path, **identity, contexts=what, config=cfg) as writer:
        for shard, (first, stop) in enumerate(shard_plan(what, cfg.shard_tokens)):
            part = slice(what.offsets[first], what.offsets[stop])
            writer.write_shard(shard, {site: torch.from_numpy(x[site][part]) for site in (0, 3)})
        writer.finish()
    return Store.open(path)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(geometry, "BATCH", 64)  # so that sums run over several batches


def masks(split=None):
    rows = np.arange(CONTEXTS * LENGTH)
    first, sink = rows % LENGTH == 0, np.isin(rows, SINKS)
    mine = np.ones_like(first) if split is None else contexts().split[rows // (3 * LENGTH)] == split
    return {
        "all": mine,
        "first": first & mine,
        "sink": sink & mine,
        "ordinary": ~first & ~sink & mine,
    }


def naive_profile(x, everything):
    variance = x.var(0)
    values = np.linalg.eigvalsh(np.cov(x.T, bias=True))
    mean_sq = (x.mean(0) ** 2).sum()
    norms = np.linalg.norm(x, axis=1)
    return {
        "count": len(x),
        "norm_q05": np.quantile(norms, 0.05),
        "norm_median": np.median(norms),
        "norm_max": norms.max(),
        "norm_share": (x**2).sum() / (everything**2).sum(),
        "mean_share": mean_sq / (x**2).sum(1).mean(),
        "gamma": np.sqrt(mean_sq / variance.sum()),
        "top1_share": variance.max() / variance.sum(),
        "top3_share": np.sort(variance)[-3:].sum() / variance.sum(),
        "participation": values.sum() ** 2 / (values**2).sum(),
    }


@pytest.mark.parametrize("split", [None, "test"])
def test_site_profile_agrees_with_numpy_in_every_class(split, x, store):
    table = geometry.site_profile(store, split).set_index(["site", "class"])
    assert list(table.index) == [
        (s, c) for s in (0, 3) for c in ("all", "first", "sink", "ordinary")
    ]
    chosen = masks({"test": 2}.get(split))
    for site, name in [(0, "all"), (0, "ordinary"), (3, "all"), (3, "first"), (3, "ordinary")]:
        a = x[site].astype(np.float64)
        want = naive_profile(a[chosen[name]], a[chosen["all"]])
        assert table.loc[site, name][list(want)].to_dict() == pytest.approx(want, rel=1e-5)


def test_site_profile_shows_what_was_planted(store):
    table = geometry.site_profile(store).set_index(["site", "class"])
    assert table.loc[(3, "first"), "norm_share"] > 0.95
    assert table.loc[(3, "all"), "top1_share"] > 0.95
    assert (
        table.loc[(3, "all"), "participation"] < 1.1 < table.loc[(3, "ordinary"), "participation"]
    )
    assert table.loc[(3, "sink"), "count"] == 4
    # ordinary at every site: the rows that are sinks at site 3 are not ordinary at site 0 either
    assert (
        table.loc[(0, "ordinary"), "count"] == table.loc[(3, "ordinary"), "count"] == 600 - 60 - 4
    )
    assert table.loc[(0, "sink"), "count"] == 0
    assert np.isnan(table.loc[(0, "sink"), "norm_median"])


def test_equal_rows_have_a_norm_but_no_spectrum(store):
    first = geometry.site_profile(store).set_index(["site", "class"]).loc[0, "first"]
    assert first["norm_median"] == pytest.approx(3 * np.sqrt(D))
    assert first["mean_share"] == pytest.approx(1)
    assert first[["gamma", "participation", "top1_share"]].isna().all()


def test_norm_by_position_agrees_with_numpy_and_with_its_twin_on_captured_streams(x, store):
    table = geometry.norm_by_position(store)
    assert list(table.columns) == ["site", "position", "n", "median", "q10", "q90"]
    assert len(table) == 2 * LENGTH
    norms = np.linalg.norm(x[3].astype(np.float64), axis=1).reshape(CONTEXTS, LENGTH)
    for column, q in (("median", 0.5), ("q10", 0.1), ("q90", 0.9)):
        assert table[table.site == 3][column].to_numpy() == pytest.approx(
            np.quantile(norms, q, axis=0), rel=1e-5
        )
    assert (table.n == CONTEXTS).all()
    captured = {site: torch.from_numpy(v).view(CONTEXTS, LENGTH, D) for site, v in x.items()}
    pd.testing.assert_frame_equal(geometry.norms_by_position(captured), table, rtol=1e-5)
    assert (geometry.norm_by_position(store, "test").n == 15).all()


def test_massive_dims_finds_the_planted_dimension_and_its_share(x, store):
    table = geometry.massive_dims(store, 3, k=2)
    a = x[3].astype(np.float64)
    variance, plain = a.var(0), a[masks()["ordinary"]].var(0)
    top = table.iloc[0]
    assert (top["site"], top["dim"]) == (3, 4)
    assert top["max_abs"] == pytest.approx(np.abs(a[:, 4]).max())
    typical = store.median_norm(3) / np.sqrt(D)
    assert top["over_typical"] == pytest.approx(np.abs(a[:, 4]).max() / typical)
    assert top["share_all"] == pytest.approx(variance[4] / variance.sum())
    assert top["share_ordinary"] == pytest.approx(plain[4] / plain.sum())
    assert top["share_all"] > 0.95 > 2 * top["share_ordinary"]
    assert table["max_abs"].is_monotonic_decreasing


def test_massive_tokens_are_the_largest_norms_after_position_zero(x, store):
    table = geometry.massive_tokens(
        store, 3, k=6, tokenizer=SimpleNamespace(decode=lambda ids: f"<{ids[0]}>")
    )
    assert set(table["row"][:4]) == set(SINKS)
    assert table["class"].tolist() == ["sink"] * 4 + ["ordinary"] * 2
    row = table[table["row"] == 337].iloc[0]
    token = contexts().ids[337]
    assert (row["title"], row["position"], row["token_id"], row["token"]) == (
        "Page 11",
        7,
        token,
        f"<{token}>",
    )
    assert row["norm"] == pytest.approx(np.linalg.norm(x[3][337]), rel=1e-6)
    assert row["over_median"] == pytest.approx(row["norm"] / store.median_norm(3), rel=1e-6)
    assert (geometry.massive_tokens(store, 3, k=6)["token"] == "").all()


def test_spectrum_is_that_of_the_training_rows_of_the_mask(x, store):
    for tokens, name in (("ordinary", "ordinary"), ("all", "all")):
        a = x[3].astype(np.float64)[masks(0)[name]]
        want = np.linalg.eigvalsh(np.cov(a.T, bias=True))[::-1]
        assert geometry.spectrum(store, 3, tokens) == pytest.approx(want, rel=1e-6, abs=1e-6)


def test_pca_fvu_agrees_with_projecting_the_test_rows(x, store):
    a = x[0].astype(np.float64)
    train, test = a[masks(0)["ordinary"]], a[masks(2)["ordinary"]]
    vectors = np.linalg.eigh(np.cov(train.T, bias=True))[1][:, ::-1]
    table = geometry.pca_fvu(store, 0)
    assert table["rank"].tolist() == list(range(D + 1))
    total = ((test - test.mean(0)) ** 2).sum()
    for k in range(D + 1):
        centred = test - train.mean(0)
        left = centred - centred @ vectors[:, :k] @ vectors[:, :k].T
        assert table["fvu"][k] == pytest.approx((left**2).sum() / total, rel=1e-6, abs=1e-9)
    assert table["fvu"].is_monotonic_decreasing
    assert 1 < table["fvu"][0] < 1.1  # about the training mean
    assert table["fvu"][D] == pytest.approx(0, abs=1e-9)


def test_pca_is_fitted_on_training_rows_and_measured_on_test_rows(x, store):
    held_out = geometry.pca_fvu(store, 0, [1, 3])
    assert held_out["rank"].tolist() == [1, 3]
    own = geometry.pca_fvu(store, 0, [1, 3], split="train")
    assert (abs(held_out["fvu"] / own["fvu"] - 1) > 1e-3).all()
    a = x[0].astype(np.float64)[masks(0)["ordinary"]]
    values = np.linalg.eigvalsh(np.cov(a.T, bias=True))[::-1]
    assert own["fvu"].tolist() == pytest.approx(
        [1 - values[:k].sum() / values.sum() for k in (1, 3)]
    )
    with pytest.raises(ValueError, match="expected 0 to d = 6"):
        geometry.pca_fvu(store, 0, [7])


def naive_fvus(store, site, **kwargs):
    table = geometry.predictor_fvu(store, site, geometry.naive_predictors(store, site, **kwargs))
    return table.set_index(["predictor", "class"])


def test_naive_predictors_agree_with_numpy_on_test_rows(x, store):
    a = x[3].astype(np.float64)
    fit, test = masks(0), masks(2)
    mean, odd_mean = a[fit["ordinary"]].mean(0), a[fit["first"] | fit["sink"]].mean(0)
    odd = (test["first"] | test["sink"])[test["all"], None]
    rows, plain = a[test["all"]], a[test["ordinary"]]
    total, plain_total = (((b - b.mean(0)) ** 2).sum() for b in (rows, plain))
    got = naive_fvus(store, 3, rank=2)
    for name, guess in {
        "mean": mean,
        "one_latent": np.where(odd, odd_mean, mean),
        "sinks_only": np.where(odd, rows, mean),
    }.items():
        assert got.loc[(name, "all"), "fvu"] == pytest.approx(
            ((rows - guess) ** 2).sum() / total, rel=1e-5
        )
        assert got.loc[(name, "ordinary"), "fvu"] == pytest.approx(
            ((plain - mean) ** 2).sum() / plain_total, rel=1e-5
        )
    assert got.loc[("pca", "ordinary"), "fvu"] == pytest.approx(
        geometry.pca_fvu(store, 3, [2])["fvu"][0]
    )
    assert set(got["pages"]) == {5}
    assert (got["lo"] <= got["fvu"] * (1 + 1e-9)).all()
    assert (got["fvu"] <= got["hi"] * (1 + 1e-9)).all()
    page = store.tokens["page"][test["ordinary"]]
    error = pd.Series(((plain - mean) ** 2).sum(1)).groupby(page).sum()
    total = pd.Series(((plain - plain.mean(0)) ** 2).sum(1)).groupby(page).sum()
    heaviest = max((error / error.sum()).max(), (total / total.sum()).max())
    assert got.loc[("mean", "ordinary"), "heaviest"] == pytest.approx(heaviest)


def test_rebuilding_only_sinks_looks_perfect_over_all_rows_and_is_the_mean_over_ordinary_ones(
    store,
):
    fvu = naive_fvus(store, 3, rank=2)["fvu"].unstack()
    assert fvu.loc["one_latent", "all"] < 0.02
    assert fvu.loc["sinks_only", "all"] < 0.01 * fvu.loc["pca", "all"]
    assert fvu.loc["sinks_only", "ordinary"] == pytest.approx(fvu.loc["mean", "ordinary"])
    assert fvu.loc["pca", "ordinary"] < 0.3


def test_without_odd_training_rows_one_latent_is_the_mean(store, monkeypatch):
    monkeypatch.setattr(store, "mask", lambda tokens, split=None, factor=5.0: masks(2)["ordinary"])
    x, odd = torch.ones(3, D, dtype=torch.float64), torch.tensor([[True], [False], [True]])
    guess = geometry.naive_predictors(store, 3)
    assert torch.equal(guess["one_latent"](x, odd), guess["mean"](x, odd))
    monkeypatch.setattr(
        store, "mask", lambda tokens, split=None, factor=5.0: np.zeros(CONTEXTS * LENGTH, bool)
    )
    with pytest.raises(ValueError, match="site 3: split 'test' has no rows"):
        geometry.predictor_fvu(store, 3, guess)


def test_a_mask_without_rows_is_an_error_that_says_so(store):
    with pytest.raises(ValueError, match="site 0: the mask leaves no rows"):
        geometry._first_mean(store, 0, np.zeros(0, dtype=np.int64))


def test_a_site_whose_activations_are_all_zero_is_named(tmp_path):
    rows = {site: torch.zeros(RANDOM_ROWS, RANDOM_WIDTH) for site in RANDOM_SITES}
    zero = make_store(tmp_path / "s", rows)
    with pytest.raises(ValueError, match="site 1: all activations are zero"):
        geometry.site_profile(zero)


@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_a_class_whose_activations_are_all_zero_has_no_shares_of_its_own(tmp_path, mean):
    x = torch.zeros(RANDOM_ROWS, RANDOM_WIDTH)
    starts = np.cumsum([0, *RANDOM_LENGTHS[:-1]])
    ordinary = np.setdiff1d(np.arange(RANDOM_ROWS), starts)
    x[ordinary, 0] = mean
    x[ordinary, 1] = torch.tensor([1.0, -1.0]).repeat(len(ordinary) // 2)
    profile = geometry.site_profile(make_store(tmp_path / "s", dict.fromkeys(RANDOM_SITES, x)))
    first = profile.set_index(["site", "class"]).loc[(RANDOM_SITES[0], "first")]
    assert first["count"] == len(starts)
    assert first["norm_share"] == pytest.approx(0, abs=1e-12)
    assert first[["mean_share", "gamma", "participation", "top1_share"]].isna().all()
    others = profile.set_index(["site", "class"]).loc[(RANDOM_SITES[0], "ordinary")]
    assert others["mean_share"] == pytest.approx(mean**2 / (mean**2 + 1))
    assert others["top1_share"] == pytest.approx(1)
