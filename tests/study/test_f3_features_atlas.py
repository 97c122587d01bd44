"""Notebook 06 writes an atlas a site: of the first seed's SAE, beside the others."""

from types import SimpleNamespace

import pytest
from helpers.atlases import content
from helpers.f3_cases import SCOPE
from helpers.lenses import make_lens, model_and_store

from saelib.study.f3_features_atlas import Indexed, first_indices, summary, write_atlases


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
