"""What test pages say of an SAE's latents: words without an index, and what is kept on disk."""

import shutil

import pandas as pd
import pytest
import torch
from helpers.workspaces import RECIPE, trained_profile

import saelib
from saelib.config import ConfigError
from saelib.measure.features import ablation_losses, matches
from saelib.measure.features.bound_table import read_bound, write_bound
from saelib.measure.features.twin_tables import best_twin
from saelib.measure.features.vocabulary import LogitLens
from saelib.measure.lens import Lens


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with an SAE, another λ's, another seed's and another site's."""
    folder = tmp_path_factory.mktemp("home")
    trained_profile(folder, related_specs)
    return folder


def related_specs(ws):
    specs = [ws.spec("plain", 2, lam=lam, **RECIPE) for lam in (0.3, 1.2)]
    specs += [ws.spec("plain", 2, lam=0.3, seed=1, **RECIPE)]
    return [*specs, ws.spec("plain", 3, lam=0.3, **RECIPE)]


@pytest.fixture
def lens(home, monkeypatch):
    monkeypatch.setenv("SAELIB_HOME", str(home))
    return saelib.open("tiny", site=2, l0=8)


def busiest(lens):
    """A latent that fires often."""
    return int(lens.index.table["n_fired"].argmax())


def reopened(lens):
    """The same SAE, with nothing in memory."""
    return Lens(lens.lm, lens.sae, lens.store, lens.features, lens.relatives)


def test_words_are_the_ends_of_the_logit_lens_with_an_index_or_without(lens):
    latent = busiest(lens)
    logits = LogitLens(lens.lm).logits(lens.sae.W_dec[[latent]].detach() / lens.sae.scale)[0]
    order = logits.argsort(descending=True)
    chosen = [*order[:3].tolist(), *order[-3:].tolist()]
    for one in (lens, Lens(lens.lm, lens.sae)):
        table = one.logits(latent, k=3)
        assert table["token"].tolist() == [lens.lm.tokenizer.decode([i]) for i in chosen]
        assert table["logit"].tolist() == pytest.approx(logits[chosen].tolist(), rel=1e-4)
    assert len(lens.logits(latent, k=20)) == 40  # more than the index keeps
    with pytest.raises(ConfigError, match="k = 0: expected at least 1 token"):
        lens.logits(latent, k=0)


@pytest.mark.parametrize("method", ["logits", "contexts", "neighbours", "twins", "ablation"])
@pytest.mark.parametrize("latent", [64, -1])
def test_a_latent_that_is_not_there_is_refused(lens, method, latent):
    with pytest.raises(ConfigError, match=f"latent {latent}: this SAE has the latents 0 to 63"):
        getattr(lens, method)(latent)


def test_matches_are_made_once_and_then_read(lens, monkeypatch):
    folder = lens.features.parent / "twins"
    shutil.rmtree(folder, ignore_errors=True)
    assert lens.kept_matches() == {}
    assert not folder.exists()
    made = lens.matches()
    for other in lens.relatives:
        expected = matches(lens.index, other.load().index)
        pd.testing.assert_frame_equal(
            made[other.name], expected, check_dtype=False, check_names=False, rtol=1e-6
        )
    monkeypatch.setattr("saelib.measure.indexed.kept_matches", None)  # now they are read
    again = reopened(lens).matches()
    assert list(again) == list(made)
    for name, table in made.items():
        pd.testing.assert_frame_equal(again[name], table)


def test_how_long_comparing_takes_is_said_beforehand(lens, monkeypatch, capsys):
    monkeypatch.delenv("SAELIB_HEADLESS", raising=False)
    shutil.rmtree(lens.features.parent / "twins", ignore_errors=True)
    lens.matches()
    assert f"twins: comparing with {len(lens.relatives)} SAEs, about" in capsys.readouterr().out
    lens.matches()
    assert "comparing" not in capsys.readouterr().out


def test_while_relatives_are_indexed_there_is_one_bar(lens, monkeypatch, capsys):
    monkeypatch.delenv("SAELIB_HEADLESS", raising=False)
    assert lens.index is not None
    for other in lens.relatives:
        shutil.rmtree(other.load().features, ignore_errors=True)
    shutil.rmtree(lens.features.parent / "twins", ignore_errors=True)
    lens.matches()
    printed = capsys.readouterr()
    assert "twins: 100%" in printed.err
    assert "features:" not in printed.err + printed.out


def test_only_what_is_missing_is_made(lens):
    made = lens.matches()
    file = sorted((lens.features.parent / "twins").glob("*.csv"))[0]
    file.unlink()
    left = reopened(lens).kept_matches()
    assert len(left) == len(made) - 1
    again = reopened(lens).matches()
    assert list(again) == list(made)
    assert file.exists()


def test_a_damaged_table_of_matches_is_named(lens):
    lens.matches()
    file = sorted((lens.features.parent / "twins").glob("*.csv"))[0]
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=rf"{file.name}: damaged .*; delete it"):
        lens.twins(0)
    file.write_bytes(whole)


def test_the_best_twin_is_that_of_largest_cosine_at_the_site(lens):
    tables = lens.matches()
    here = [tables[other.name]["cosine"] for other in lens.relatives if other.facts["site"] == 2]
    best = best_twin(tables)
    assert best["twin"].tolist() == pd.concat(here, axis=1).max(axis=1).tolist()
    assert list(best.attrs["labels"]) == ["twin"]
    elsewhere = {
        other.name: tables[other.name] for other in lens.relatives if other.facts["site"] == 3
    }
    assert elsewhere
    assert best_twin(elsewhere) is None


def test_an_ablation_is_measured_once_and_kept(lens, monkeypatch):
    latent = busiest(lens)
    loss = lens.ablation(latent, 3)
    expected = ablation_losses(lens.sae, lens.lm, lens.store, [latent], 3)
    assert loss == expected.loc[latent, "delta_ce"]
    other = (latent + 1) % 64
    lens.ablation(other, 3)
    assert sorted(lens.ablations(3).index) == sorted([latent, other])
    pd.testing.assert_frame_equal(lens.ablations(3).loc[[latent]], expected)
    assert lens.ablations(4).empty  # another number of contexts
    monkeypatch.setattr("saelib.measure.indexed.ablation_losses", None)  # now it is read
    assert reopened(lens).ablation(latent, 3) == loss
    with pytest.raises(ConfigError, match="open the SAE by its profile"):
        Lens(lens.lm, lens.sae).ablation(0)


def test_a_kept_table_is_bound_to_what_it_is_of(tmp_path):
    path = tmp_path / "table.csv"
    values = torch.rand(5, dtype=torch.float64).tolist()
    write_bound(path, pd.DataFrame({"x": values}), {"sae": "a"})
    assert read_bound(path, {"sae": "a"})["x"].tolist() == values  # to the last bit
    with pytest.raises(ValueError, match=r"table.csv is of sae = 'a', not 'b'"):
        read_bound(path, {"sae": "b"})
    for content in ("x\n1\n", "# [1]\nx\n", "# {}\nx\n", "\udcff", "# 3\n1"):
        path.write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises(ValueError, match=r"table.csv: damaged \(first line\)"):
            read_bound(path, {"sae": "a"})
    assert read_bound(tmp_path / "none.csv", {}) is None


def test_another_split_has_an_index_of_its_own_beside_that_of_test_pages(lens):
    latent = busiest(lens)
    other = saelib.open("tiny", site=2, l0=8, split="val")
    assert other.index.manifest["source"] == "val"
    assert lens.index.manifest["source"] == "test"
    assert other.index.folder.parent == lens.index.folder.parent
    assert (lens.index.folder, other.index.folder) == (lens.features, other.features)
    assert other.features == lens.features.with_name(f"{lens.features.name}_val")
    n_rows = int(lens.store.mask("ordinary", "val").sum())
    assert other.index.manifest["n_ordinary"] == n_rows
    expected = ablation_losses(lens.sae, lens.lm, lens.store, [latent], 3, split="val")
    assert other.ablation(latent, 3) == expected.loc[latent, "delta_ce"]
    assert other.ablation(latent, 3) != lens.ablation(latent, 3)
    assert set(other.twins(latent)["sae"]) == set(lens.twins(latent)["sae"])
