"""A selection leaves as the table's rows, as the latents' pages, or as a line that reopens it."""

import json

import pandas as pd
import pytest
from helpers.features import N_LATENTS
from helpers.lenses import make_lens, model_and_store
from helpers.workspaces import RECIPE, trained_profile

from saelib.config import ConfigError
from saelib.show.explore import export, records

LATENTS = [5, 0, 9]


@pytest.fixture(scope="module")
def lens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    return make_lens(*model_and_store(folder), folder)


def test_csv_holds_the_table_s_rows_as_they_were_chosen(lens, tmp_path):
    path = export.export_csv(lens.index, LATENTS, tmp_path)
    table = pd.read_csv(path, index_col="latent")
    assert table.index.tolist() == LATENTS
    expected = lens.index.table.loc[LATENTS]
    assert table["density"].tolist() == pytest.approx(expected["density"].tolist())
    assert table["top_token"].fillna("").tolist() == expected["top_token"].tolist()
    assert export.export_csv(lens.index, LATENTS, tmp_path) == path
    assert export.export_csv(lens.index, [5, 0], tmp_path) != path
    assert sorted(tmp_path.iterdir()) == sorted({path, *tmp_path.glob("*_2_latents_*.csv")})


def test_json_holds_a_latent_s_page(lens, tmp_path):
    tokenizer = lens.lm.tokenizer
    folder = export.export_json(lens.index, LATENTS, tokenizer, tmp_path)
    assert folder == tmp_path
    assert len(list(folder.iterdir())) == len(LATENTS)
    path = export.export_json(lens.index, [9], tokenizer, tmp_path)
    assert json.loads(path.read_text()) == records.latent_view(lens.index, 9, tokenizer)


def test_latents_that_are_not_there_are_refused_and_nothing_is_written(lens, tmp_path):
    for write in (
        lambda latents: export.export_csv(lens.index, latents, tmp_path / "to"),
        lambda latents: export.export_json(lens.index, latents, None, tmp_path / "to"),
    ):
        with pytest.raises(ConfigError, match=f"has the latents 0 to {N_LATENTS - 1}"):
            write([0, N_LATENTS])
        with pytest.raises(ConfigError, match="no latent is selected"):
            write([])
    assert not (tmp_path / "to").exists()


def test_the_link_of_a_run_opens_the_browser_on_it_again(tmp_path, monkeypatch):
    rows = trained_profile(tmp_path, lambda ws: [ws.spec("plain", 2, lam=0.5, **RECIPE)])
    monkeypatch.setenv("SAELIB_HOME", str(tmp_path))
    facts = rows.iloc[0].to_dict()
    features = tmp_path / "data" / "tiny" / "saes" / facts["run_id"] / "features"
    lines = export.link(features, "site 2", facts, [3, 4]).splitlines()
    assert len(lines) == 2
    *before, last = lines[1].split("; ")
    names = {}
    exec("\n".join(before), names)
    page = eval(last, names).data
    assert "<b>Latent 4</b>" in page
    assert f"{facts['arm']}" in page


def test_the_link_of_another_sae_names_it(tmp_path):
    line = export.link(tmp_path / "features", "mine", {"site": 2}, [3])
    assert line == "explore(saes, state={'subject': 'mine', 'latent': 3})"
