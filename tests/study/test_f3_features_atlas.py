"""Notebook 06 writes an atlas a site: of the first seed's SAE, beside the others."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from helpers.atlases import content
from helpers.f3_cases import SCOPE
from helpers.features import make_sae
from helpers.lenses import make_lens, model_and_store

from saelib.sae.spec import make_spec
from saelib.study.f3_features_atlas import (
    Indexed,
    first_indices,
    plain_indices,
    summary,
    write_atlases,
)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A tokenizer, and the indices of two seeds at each of two sites."""
    folder = tmp_path_factory.mktemp("atlases")
    lm, store = model_and_store(folder)

    def one(site, seed):
        name = f"site {site} seed {seed}"
        lens = make_lens(lm, store, folder / name, site=site, seed=seed)
        facts = {"l0": 12.5, "fvu": 0.25 + seed, "loss_recovered": 0.75, "lr": 1e-3}
        return Indexed(name, facts, lens.index)

    return lm.tokenizer, {site: [one(site, 0), one(site, 1)] for site in (2, 4)}


@pytest.fixture(scope="module")
def pages(case, tmp_path_factory):
    """The files written, by name."""
    tokenizer, indexed = case
    folder = tmp_path_factory.mktemp("profile")
    ws = SimpleNamespace(folder=folder, lm=SimpleNamespace(tokenizer=tokenizer))
    return {path.name: path for path in write_atlases(ws, indexed, SCOPE)}


def test_each_site_s_atlas_is_of_its_first_seed(case, pages):
    assert list(pages) == ["site_02.html", "site_04.html"]
    for site, path in zip((2, 4), pages.values(), strict=True):
        about = content(path)["about"]
        assert about["name"] == f"site {site} seed 0 · a small model"
        assert about["facts"] == {"l0": 12.5, "fvu": 0.25, "loss_recovered": 0.75}
        assert first_indices(case[1])[site] is case[1][site][0].index


def test_twins_are_the_other_seed_and_the_other_site_s_first_which_is_linked(pages):
    data = content(pages["site_02.html"])
    assert data["about"]["relatives"] == 2
    assert data["others"] == [
        {"name": "site 2 seed 1", "href": None},
        {"name": "site 4 seed 0", "href": "site_04.html"},
    ]


def test_a_bar_leads_to_the_other_sites_alone(pages):
    text = pages["site_04.html"].read_text()
    assert '<nav><a href="site_02.html">site 2</a></nav>' in text


def test_the_summary_counts_indices_latents_and_tokens(case):
    indexed = case[1]
    n = indexed[2][0].index.manifest["n_ordinary"]
    assert summary(indexed) == f"4 indices of 48 latents each, on {n:,} ordinary test tokens"
    assert summary({}) == "no plain SAE has the L0 of the comparison"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workspace of four SAEs whose indices are not yet built, and their specs by cell."""
    folder = tmp_path_factory.mktemp("trained")
    lm, store = model_and_store(folder)
    cells = {
        ("plain", 4): [make_spec("plain", 4, 32, n_latents=48, lam=0.5, seed=0)],
        ("full", 1): [make_spec("full", 1, 32, n_latents=48, lam=0.7, seed=0)],
        ("plain", 2): [make_spec("plain", 2, 32, n_latents=48, lam=0.6, seed=s) for s in (1, 0)],
    }
    names = {
        spec: f"run {arm} {site} {spec.train.seed}"
        for (arm, site), specs in cells.items()
        for spec in specs
    }
    rows = [
        {
            "run_id": name,
            "arm": s.arm,
            "site": s.sae.site,
            "lambda": s.train.lam,
            "l0": 10.0 + s.sae.site,
            "seed": s.train.seed,
        }
        for s, name in names.items()
    ]
    rows.append(rows[0] | {"run_id": "another run", "l0": 99.0})
    ws = SimpleNamespace(
        lm=lm,
        store=store,
        run_id=names.get,
        run_folder=lambda spec: folder / names[spec],
        load=lambda spec: make_sae(store, seed=spec.train.seed, site=spec.sae.site),
        results=lambda: pd.DataFrame(rows[::-1]),
    )
    return ws, cells


def test_plain_saes_are_indexed_by_site_in_the_order_of_their_seeds(trained):
    ws, cells = trained
    indexed = plain_indices(ws, cells)
    assert list(indexed) == [2, 4]
    names = {site: [one.name for one in ones] for site, ones in indexed.items()}
    assert names == {
        2: [
            "site 2 · plain SAE · λ 0.6 · L0 12 · seed 1",
            "site 2 · plain SAE · λ 0.6 · L0 12 · seed 0",
        ],
        4: ["site 4 · plain SAE · λ 0.5 · L0 14 · seed 0"],
    }
    for site, ones in indexed.items():
        for spec, one in zip(cells["plain", site], ones, strict=True):
            assert one.facts["run_id"] == ws.run_id(spec)
            assert one.facts["l0"] == 10.0 + site
            assert one.index.folder == ws.run_folder(spec) / "features"
            assert torch.equal(one.index.sae.W_dec, ws.load(spec).W_dec)
    assert not ws.run_folder(cells["full", 1][0]).exists()
    again = plain_indices(ws, {("plain", 4): cells["plain", 4]})[4][0]
    assert again.index.manifest == indexed[4][0].index.manifest
