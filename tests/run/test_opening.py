"""Which SAE a profile opens, which ones it is compared with, and SAEs of other makes."""

import pandas as pd
import pytest
from helpers.workspaces import RECIPE, trained_profile

import saelib
from saelib.config import ConfigError
from saelib.run.opening import nearest_run, relatives, subjects
from saelib.run.workspace import Workspace
from saelib.sae import load_sae
from saelib.sae.formats import export
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
    assert lens.index.folder.is_relative_to(workspace.folder / "features")
    own = saelib.open(workspace.run_folder(run), profile="tiny")
    assert (lens.index.table["n_fired"] == own.index.table["n_fired"]).all()
    with pytest.raises(ConfigError, match="model is not given; name the SAE's language model"):
        saelib.open(folder, site=2)
    with pytest.raises(ValueError, match="site"):
        saelib.open(folder, profile="tiny", site=4)
