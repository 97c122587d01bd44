"""What the studies measure of trained SAEs, on a tiny workspace, against the plain computation."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.f2_cases import params
from helpers.f3_cases import params as layer_params
from helpers.workspaces import RECIPE, workspace_alone

from saelib.measure.pursuit import nn_omp
from saelib.study import f3_depth, f3_dictionary, f3_features, f3_ladder, f5_items
from saelib.study.curve import Curve
from saelib.study.f3_shuffled import ordinary_rows
from saelib.study.f3_sites import Compared

ROWS = 150  # of those on which codes are searched
SITES = Compared((1, 2, 3))
L0 = 8.0
OF_06 = params("06_features", feature_tokens=10**6)
OF_07 = params("07_architectures", item_tokens=ROWS)


@pytest.fixture(scope="module")
def ws(tmp_path_factory):
    yield from workspace_alone(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def plain(ws):
    """Two seeds at each site."""
    specs = {
        site: [ws.spec("plain", site, lam=0.5, seed=seed, **RECIPE) for seed in (0, 1)]
        for site in SITES.sites
    }
    ws.train([spec for group in specs.values() for spec in group], "02_train_sae")
    return specs


@pytest.fixture(scope="module")
def selecting(ws):
    """SAEs that keep the eight largest codes, two seeds at the deepest site."""
    specs = [ws.spec("topk", 3, k=8, seed=seed, **RECIPE) for seed in (0, 1)]
    ws.train(specs, "07_architectures")
    return specs


def ratio(errors, x):
    """Summed errors over the rows' scatter about their mean."""
    return float(errors.double().sum() / (x - x.mean(0)).double().square().sum())


def error(x, rebuilt):
    return (x - rebuilt).square().sum(-1)


# -- items against selection (F5)


def test_every_dictionary_is_searched_with_as_many_codes_as_the_plain_sae_used(
    ws, plain, selecting
):
    items = f5_items.measure(ws, OF_07, {("plain", 3): plain[3], ("topk", 3): selecting})
    assert set(items.by_seed) == {
        (arm, 3, codes) for arm in ("plain", "topk") for codes in ("encoder", "pursuit")
    }
    x, page = ordinary_rows(ws.store, 3, "test", ROWS)
    assert items.n_pages == len(np.unique(page)) > 1
    for arm, specs in (("plain", plain[3]), ("topk", selecting)):
        for seed, spec in enumerate(specs):
            sae = ws.load(spec)
            used = (ws.load(plain[3][seed]).encode_raw(x) > 0).sum(-1)
            codes = nn_omp(sae.normalize(x) - sae.b_dec, sae.W_dec, used)
            of_encoder = ratio(error(x, sae.reconstruct(x)), x)
            of_pursuit = ratio(error(x, sae.decode_raw(codes)), x)
            found = {c: items.by_seed[arm, 3, c][seed].value for c in ("encoder", "pursuit")}
            expected = {"encoder": of_encoder, "pursuit": of_pursuit}
            assert found == pytest.approx(expected, rel=1e-3)


def test_where_the_plain_sae_lacks_each_takes_its_own_counts(ws, selecting):
    items = f5_items.measure(ws, OF_07, {("topk", 3): selecting})
    x, _ = ordinary_rows(ws.store, 3, "test", ROWS)
    sae = ws.load(selecting[1])
    codes = nn_omp(sae.normalize(x) - sae.b_dec, sae.W_dec, (sae.encode_raw(x) > 0).sum(-1))
    expected = ratio(error(x, sae.decode_raw(codes)), x)
    assert items.by_seed["topk", 3, "pursuit"][1].value == pytest.approx(expected, rel=1e-3)
    assert f5_items.measure(ws, OF_07, {}).n_pages == 0


def test_densities_are_shares_of_latents_by_how_often_they_fire(ws, plain, monkeypatch):
    monkeypatch.setattr(f5_items, "RARE", 0.3)  # 64 latents of so few training rows are all dense
    monkeypatch.setattr(f5_items, "DENSE", 0.45)
    (row,) = f5_items.densities(ws, {("plain", 2): plain[2]}).to_dict("records")
    rows = np.flatnonzero(ws.store.mask("ordinary", "test"))
    fires = ws.load(plain[2][0]).encode_raw(ws.store.rows(2, rows)) > 0
    density = fires.double().mean(0).numpy()
    alive = density[density > 0]
    assert row == {
        "arm": "plain",
        "site": 2,
        "dead": pytest.approx((density == 0).mean()),
        "rare": pytest.approx(((density > 0) & (density < 0.3)).mean()),
        "dense": pytest.approx((density > 0.45).mean()),
        "median": pytest.approx(np.median(alive)),
    }
    assert 0 < row["rare"] < 1
    assert 0 < row["dense"] < 1
    shown = f5_items.density_table(pd.DataFrame([row]))
    assert shown["dense (%)"].tolist() == [round(100 * row["dense"], 2)]


# -- other codes, other dictionaries (F3d)


def test_errors_under_other_codes_are_of_the_site_s_own_saes_and_rows(ws, plain):
    p = layer_params(split_tokens=ROWS, learn_tokens=600)
    wide = {
        site: [
            ws.spec("plain", site, lam=0.5, seed=s, **RECIPE | {"n_latents": 96}) for s in (0, 1)
        ]
        for site in (2, 3)
    }
    ws.train([spec for group in wide.values() for spec in group], "05_layer_analysis")
    larger = {(site, "wider"): specs for site, specs in wide.items()}
    trained = f3_dictionary.Trained({site: plain[site] for site in (2, 3)}, larger, pd.DataFrame())
    errors = f3_dictionary.measure_errors(ws, p, trained, SITES, {2: 0.7, 3: None})
    assert errors.sites == [2, 3]
    for site in (2, 3):
        x, _ = ordinary_rows(ws.store, site, "test", ROWS)
        for seed in (0, 1):
            sae = ws.load(plain[site][seed])
            other = ws.load(wide[site][seed])
            used = (sae.encode_raw(x) > 0).sum(-1)
            codes = nn_omp(other.normalize(x) - other.b_dec, other.W_dec, used)
            expected = {
                "encoder": ratio(error(x, sae.reconstruct(x)), x),
                "wider": ratio(error(x, other.decode_raw(codes)), x),
                f3_dictionary.PCA: left_by_pca(
                    ws.store, site, x, round(float(used.float().mean()))
                ),
            }
            found = {name: errors.by_seed[site, name][seed].value for name in expected}
            assert found == pytest.approx(expected, rel=1e-3)
            assert errors.by_seed[site, "pursuit"][seed].value < expected["encoder"]
    assert errors.shuffled == {2: 0.7, 3: None}


def left_by_pca(store, site, x, rank):
    """FVU of rows x beside PCA of the ordinary training rows."""
    rows = np.flatnonzero(store.mask("ordinary", "train"))
    known = store.rows(site, rows).double()
    mean = known.mean(0)
    v = torch.linalg.svd(known - mean, full_matrices=False)[2][:rank].T
    rest = (x.double() - mean) - (x.double() - mean) @ v @ v.T
    return ratio(rest.square().sum(-1), x)


# -- one gap by several yardsticks


def test_sums_over_all_tokens_are_by_page_site_and_seed(ws, plain):
    specs = {(site, seed): plain[site][seed] for site in SITES.sites for seed in (0, 1)}
    sums = f3_ladder.all_token_sums(ws, specs, SITES, [0, 1])
    assert set(sums) == set(specs)
    rows = np.flatnonzero(ws.store.mask("all", "test"))
    page = ws.store.tokens["page"][rows]
    for (site, seed), (sse, sst, n) in sums.items():
        x = ws.store.rows(site, rows)
        errors = error(x, ws.load(specs[site, seed]).reconstruct(x)).numpy()
        expected = [errors[page == one].sum() for one in np.unique(page)]
        np.testing.assert_allclose(sse, expected, rtol=1e-4)
        assert n.tolist() == [(page == one).sum() for one in np.unique(page)]
        about = (x - x.mean(0)).double().square().sum()
        assert sst.sum() == pytest.approx(float(about), rel=1e-5)


def test_the_sums_are_checked_against_the_table_of_results(ws, plain):
    specs = {(site, 0): plain[site][0] for site in SITES.sites}
    sums = f3_ladder.all_token_sums(ws, specs, SITES, [0])
    rows = ws.train(list(specs.values()), "02_train_sae").set_index("site")
    n = int(ws.store.mask("all", "test").sum())
    n_pages = len(next(iter(sums.values()))[0])
    assert f3_ladder.all_token_checks(ws.store, sums, rows) == [
        f"{n:,} test tokens of {n_pages} pages",
        "all-token FVU as in results.csv: 3 of 3 sites",
    ]
    off = rows.assign(fvu_all=rows["fvu_all"] * np.array([1, 1.001, 1]))
    assert f3_ladder.all_token_checks(ws.store, sums, off)[1].endswith("2 of 3 sites")


# -- depth by depth


def test_what_a_depth_hands_on_is_of_its_ordinary_test_rows(ws, plain):
    p = layer_params(l0_target=L0)
    curves = {}
    for site in (1, 3):
        rows = pd.DataFrame(
            {"lambda": [1.0, 2.0], "l0": [16.0, 4.0], "l0_val": [16.0, 4.0], "fvu": [0.1, 0.4]}
        )
        rows = rows.assign(loss_recovered=[0.9, 0.7], delta_ce=[0.1, 0.3], run_id=["a", "b"])
        curves[site] = Curve(rows, pages=lambda run: None)
    depths = f3_depth.describe(ws.store, p, curves)
    ordinary = np.flatnonzero(ws.store.mask("ordinary", "test"))
    every = np.flatnonzero(ws.store.mask("all", "test"))
    for site in (1, 3):
        x = ws.store.rows(site, ordinary)
        row = depths.table.loc[site]
        median = float(x.norm(dim=-1).median())
        assert row[f3_depth.NORM] == pytest.approx(median, rel=1e-2)
        squares = ws.store.rows(site, every).double().square().sum(-1)
        special = 1 - squares[np.isin(every, ordinary)].sum() / squares.sum()
        assert row[f3_depth.SINK_SHARE] == pytest.approx(float(special), abs=1e-3)
        assert row[depths.fvu] == pytest.approx(0.2)  # half way in logarithms
        assert row[f3_depth.LOSS] == pytest.approx(0.8)
        assert row[depths.pca] == pytest.approx(left_by_pca(ws.store, site, x, 8), rel=1e-2)
    assert depths.table.loc[[1, 3]].equals(depths.reached)


# -- latents one by one


def test_latents_are_described_on_training_pages_and_held_against_test_pages(ws, plain):
    looks = f3_features.look_at_all(ws, OF_06, {("plain", 3): plain[3], ("plain", 1): plain[1][:1]})
    assert {cell: len(ones) for cell, ones in looks.items()} == {("plain", 3): 2, ("plain", 1): 1}
    for (_, site), ones in looks.items():
        for spec, one in zip(plain[site], ones, strict=False):
            sae = ws.load(spec)
            fired = {}
            for split in ("train", "test"):
                rows = np.flatnonzero(ws.store.mask("ordinary", split))
                codes = sae.encode_raw(ws.store.rows(site, rows))
                fired[split] = (codes > 0).sum(0).numpy()
            assert one.description.n_fired.tolist() == fired["train"].tolist()
            assert one.held.n_fired.tolist() == fired["test"].tolist()
            assert torch.equal(one.W_dec, sae.W_dec)
            shares = one.shares()[one.judged]
            # one word makes up most of this text: chance holds much too
            assert np.nanmean(shares) > np.nanmean(one.by_chance[one.judged])
    few = f3_features.look(ws.load(plain[3][0]), ws.store, 300)
    assert few.description.n_fired.sum() < looks["plain", 3][0].description.n_fired.sum()
