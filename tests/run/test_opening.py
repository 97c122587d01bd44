"""Which SAE a profile opens, which ones it is compared with, and SAEs of other makes."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.workspaces import RECIPE, trained_profile

import saelib
from saelib.config import ConfigError
from saelib.measure.features.identity import sae_checksum
from saelib.run.opening import nearest_run, relatives, subjects
from saelib.run.workspace import Workspace
from saelib.sae import load_sae
from saelib.sae.formats import export, load
from saelib.show.explore.names import subject_name


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """A home with plain SAEs of two λ, two seeds and two sites, and Gated ones."""
    home = tmp_path_factory.mktemp("home")
    return home, trained_profile(home, compared_specs)


def compared_specs(ws):
    specs = [ws.spec("plain", 2, lam=lam, **RECIPE) for lam in (0.3, 0.6, 1.2)]
    specs += [ws.spec("plain", 2, lam=0.6, seed=1, **RECIPE)]
    specs += [ws.spec("full", 2, lam=lam, **RECIPE) for lam in (0.4, 0.6)]
    specs += [ws.spec("plain", 3, lam=0.6, **RECIPE)]
    specs += [ws.spec("plain", 2, lam=0.6, **RECIPE | {"lr": 3e-2})]
    return specs


@pytest.fixture
def workspace(profile, monkeypatch):
    monkeypatch.setenv("SAELIB_HOME", str(profile[0]))
    return Workspace("tiny")


def row_of(results, **values):
    rows = results[(results[list(values)] == pd.Series(values)).all(axis=1)]
    return rows.iloc[0]


def test_of_saes_equally_near_in_l0_the_best_on_validation_pages_is_opened(profile):
    good = row_of(profile[1], arm="plain", site=2, lr=3e-3)
    collapsed = good.copy()
    collapsed["run_id"], collapsed["fvu_val"] = "collapsed", 0.9
    collapsed["l0_val"] = good["l0_val"] * 1.05
    table = pd.DataFrame([good, collapsed])
    assert nearest_run(table, 2, collapsed["l0_val"], None)["run_id"] == good["run_id"]
    collapsed["l0_val"] = good["l0_val"] * 1.2
    table = pd.DataFrame([good, collapsed])
    assert nearest_run(table, 2, collapsed["l0_val"], None)["run_id"] == "collapsed"


def test_relatives_are_other_seeds_lambdas_architectures_and_sites_of_one_recipe(profile):
    results = profile[1]
    one = row_of(results, arm="plain", site=2, seed=0, lr=3e-3, **{"lambda": 0.6}).to_dict()
    others = relatives(results, one)
    keys = others[["arm", "site", "lambda", "seed"]].apply(tuple, axis=1).tolist()
    gated = results[results["arm"] == "full"]
    distance = (gated["l0_val"] / one["l0_val"]).apply(lambda ratio: max(ratio, 1 / ratio))
    nearest = gated.loc[distance.idxmin(), "lambda"]
    assert keys == [
        ("plain", 2, 0.6, 1),
        ("plain", 2, 0.3, 0),
        ("plain", 2, 1.2, 0),
        ("full", 2, nearest, 0),
        ("plain", 3, 0.6, 0),
    ]
    assert set(others["lr"]) == {3e-3}


def test_subjects_are_listed_before_they_are_loaded_and_open_with_relatives(profile, workspace):
    rows = profile[1].drop_duplicates(["arm", "site", "lambda", "seed"])
    listed = subjects(workspace, rows)
    assert len(listed) == len(rows)
    assert len({subject.name for subject in listed}) == len(rows)
    lens = listed[1].load()
    assert lens.sae.config.site == listed[1].facts["site"]
    assert len(lens.relatives) == 5
    assert lens.index.n_latents == 64
    assert (workspace.run_folder(listed[1].facts["run_id"]) / "features" / "index.json").exists()
    gone = rows.assign(run_id="not-there")
    assert subjects(workspace, gone) == []


def test_a_name_says_what_tells_runs_apart(profile):
    row = row_of(profile[1], arm="full", site=2, **{"lambda": 0.6}).to_dict()
    name = f"site 2 · Gated, full loss · λ 0.6 · L0 {row['l0']:.3g} · seed 0"
    assert subject_name(row) == name


def test_an_sae_of_another_make_is_seen_on_a_profile_s_test_pages(profile, workspace, tmp_path):
    run = row_of(profile[1], arm="plain", site=2, **{"lambda": 0.6})["run_id"]
    original = load_sae(workspace.run_folder(run))
    folder = export(original, "saelens", tmp_path / "theirs", model="tiny")
    lens = saelib.open(folder, profile="tiny", site=2)
    name = sae_checksum(lens.sae)[:12]
    assert lens.index.folder.relative_to(workspace.folder).parts == ("features", name)
    own = saelib.open(workspace.run_folder(run), profile="tiny")
    assert (lens.index.table["n_fired"] == own.index.table["n_fired"]).all()
    with pytest.raises(ConfigError, match="name either the SAE's language model"):
        saelib.open(folder, site=2)
    with pytest.raises(ValueError, match="site"):
        saelib.open(folder, profile="tiny", site=4)


@pytest.fixture
def lens(profile, workspace):
    results = profile[1]
    one = row_of(results, arm="plain", site=2, seed=0, lr=3e-3, **{"lambda": 0.6})
    return subjects(workspace, results[results["run_id"] == one["run_id"]])[0].load()


def test_a_latent_s_words_contexts_and_neighbours_are_its_index_s(lens):
    assert repr(lens).startswith("<Lens on site 2 · plain SAE · λ 0.6 · L0 ")
    latent = int(lens.index.table["n_fired"].idxmax())
    record = lens.index.latent(latent)
    words = lens.logits(latent)
    assert words["token"].iloc[0] == lens.index.text(record.promoted[0].number)
    assert words["logit"].is_monotonic_decreasing
    shown = lens.contexts(latent)
    assert shown["activation"].iloc[0] == pytest.approx(lens.index.table["max"][latent])
    assert shown["text"].str.count("«").eq(1).all()
    peak = record.contexts["top"][0]
    word = lens.lm.tokenizer.decode([int(peak.token_ids[peak.peak])])
    assert f"«{word}»" in shown["text"].iloc[0]
    assert lens.contexts(latent, "off")["activation"].eq(0).all()
    near = lens.neighbours(latent)
    assert near["latent"].iloc[0] == record.nearest[0].number
    assert set(near["by"]) == {"cosine", "co-firing"}
    with pytest.raises(ValueError, match="latent 64: this SAE has the latents 0 to 63"):
        lens.logits(64)


def test_twins_are_the_best_matches_in_all_relatives(lens):
    latent = int(lens.index.table["n_fired"].idxmax())
    table = lens.twins(latent)
    assert set(table["sae"]) == {relative.name for relative in lens.relatives}
    here = lens.sae.W_dec[latent]
    for relative in lens.relatives:
        row = table[table["sae"] == relative.name].iloc[0]
        if relative.facts["site"] != 2:
            assert np.isnan(row["cosine"])
            assert 0 <= row["jaccard"] <= 1
            continue
        cosines = torch.nn.functional.cosine_similarity(relative.load().sae.W_dec, here[None])
        assert row["twin"] == int(cosines.argmax())
        assert row["cosine"] == pytest.approx(float(cosines.max()), abs=1e-5)


def test_ablation_is_a_loss_and_export_opens_again(lens, tmp_path):
    latent = int(lens.index.table["n_fired"].idxmax())
    assert np.isfinite(lens.ablation(latent))
    folder = lens.export("saelens", tmp_path / "theirs")
    x = torch.randn(5, lens.sae.config.d_in)
    again = load(folder, site=2)
    torch.testing.assert_close(again.reconstruct(x), lens.sae.reconstruct(x), atol=1e-4, rtol=1e-4)
