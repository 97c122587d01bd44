"""An atlas holds what the index says, in one file that is the same each time."""

import re

import pandas as pd
import pytest
from helpers.atlases import content
from helpers.features import DEAD, N_LATENTS
from helpers.lenses import make_lens, model_and_store

from saelib.measure.features import matches
from saelib.show.explore import frontend
from saelib.show.explore.atlas import Extras, write_atlas
from saelib.show.explore.notes import Note
from saelib.show.explore.records import latent_view

NAME = "mine </script><b>"
FACTS = {"site": 2, "l0": 12.25, "fvu": 0.5, "run_id": "r"}


@pytest.fixture(scope="module")
def lenses(tmp_path_factory):
    """Two seeds at one site and a third SAE at another."""
    folder = tmp_path_factory.mktemp("atlas")
    lm, store = model_and_store(folder)
    recipes = {"a": {"seed": 0}, "b": {"seed": 1}, "deep": {"seed": 2, "site": 4}}
    return {name: make_lens(lm, store, folder / name, **sae) for name, sae in recipes.items()}


@pytest.fixture(scope="module")
def lens(lenses):
    return lenses["a"]


def write(lens, path, **options):
    return write_atlas(path, lens.index, lens.lm.tokenizer, NAME, FACTS, **options)


def tables(lenses):
    return {name: matches(lenses["a"].index, lenses[name].index) for name in ("b", "deep")}


def test_windows_of_the_stream_are_the_contexts_of_the_index(lens, tmp_path):
    data = content(write(lens, tmp_path / "page.html"))
    stream = data["stream"]
    latent = int(lens.index.table["n_fired"].idxmax())
    view = latent_view(lens.index, latent, lens.lm.tokenizer)
    for kind, windows in data["latents"][latent]["contexts"].items():
        assert len(windows) == len(view["contexts"][kind])
        for (row, fired), shown in zip(windows, view["contexts"][kind], strict=True):
            place = next(c for c in stream["contexts"] if c["first"] <= row < c["stop"])
            assert stream["titles"][place["page"]] == shown["title"]
            assert row - place["first"] + place["position"] == shown["position"]
            first = max(place["first"], row - stream["width"])
            stop = min(place["stop"], row + stream["width"] + 1)
            rows = range(first, stop)
            assert [stream["pieces"][stream["piece"][n]] for n in rows] == shown["tokens"]
            values = [0.0 if stream["ordinary"][n] == "1" else None for n in rows]
            for offset, value in zip(fired[::2], fired[1::2], strict=True):
                values[shown["peak"] + offset] = value
            assert values == shown["activations"]


def test_the_table_has_the_index_s_columns_of_the_chosen_latents(lens, tmp_path):
    chosen = [3, 7, DEAD]
    data = content(write(lens, tmp_path / "page.html", latents=[7, 3, DEAD, 3]))
    assert data["table"]["ids"] == chosen
    assert len(data["latents"]) == 3
    columns = {column["name"]: column["values"] for column in data["table"]["numbers"]}
    expected = lens.index.table.loc[chosen, "density"].tolist()
    assert columns["density"] == pytest.approx(expected, rel=1e-3)
    assert columns["mean"][2] is None
    assert "twin" not in columns


def test_it_says_the_metrics_that_have_a_title(lens, tmp_path):
    about = content(write(lens, tmp_path / "page.html", latents=[3]))["about"]
    assert about["titles"] == {"l0": "L0 (active latents a token)", "fvu": "FVU"}
    assert about["facts"]["l0"] == 12.25
    assert about["n_latents"] == N_LATENTS  # the page says how many of them it has


def test_twins_stand_on_the_page_in_the_table_and_link_to_their_atlas(lenses, tmp_path):
    found = tables(lenses)
    pages = {"deep": "deep.html"}
    data = content(write(lenses["a"], tmp_path / "page.html", twins=found, pages=pages))
    assert data["others"] == [
        {"name": "b", "href": None},
        {"name": "deep", "href": "deep.html"},
    ]
    columns = {column["name"]: column for column in data["table"]["numbers"]}
    cosines = found["b"]["cosine"]  # the other is of another site and has none
    assert columns["twin"]["values"] == pytest.approx(cosines.tolist(), rel=1e-3)
    by_number = {row[0]: row for row in data["latents"][5]["twins"]}
    line = found["b"].loc[5]
    assert by_number[0][1] == line["twin"]
    assert by_number[0][2] == pytest.approx(line["cosine"], rel=1e-3)
    assert by_number[1][2] is None
    assert by_number[1][1] == found["deep"]["twin"][5]


def test_descriptions_notes_and_ablations_of_its_latents_come_along(lens, tmp_path):
    ablation = pd.DataFrame({"delta_ce": [0.0123456], "n_contexts": [8]}, index=[5])
    extras = Extras({5: ("years", 0.75), 9: ("absent", None)}, {5: Note("!", ("mine",))}, ablation)
    data = content(write(lens, tmp_path / "page.html", latents=[5, 6], extras=extras))
    entry = data["latents"][0]
    assert entry["description"] == {"text": "years", "score": 0.75}
    assert entry["note"] == {"text": "!", "lists": ["mine"]}
    assert entry["ablation"] == {"delta_ce": 0.01235, "n_contexts": 8}
    assert data["about"]["descriptions"] == {"5": "years"}
    assert set(data["latents"][1]) == set(entry) - {"description", "note", "ablation"}


def test_equal_indices_give_equal_bytes_and_texts_cannot_end_the_script(lens, tmp_path):
    pages = [write(lens, tmp_path / name).read_bytes() for name in ("one.html", "two.html")]
    assert pages[0] == pages[1]
    text = pages[0].decode()
    assert text.count("</script>") == 2  # the data's and the module's
    assert "<title>Features of mine &lt;/script&gt;&lt;b&gt;</title>" in text


def test_a_latent_out_of_range_is_refused_and_leaves_no_file(lens, tmp_path):
    with pytest.raises(
        ValueError, match=f"latent {N_LATENTS}: this SAE has the latents 0 to {N_LATENTS - 1}"
    ):
        write(lens, tmp_path / "page.html", latents=[3, N_LATENTS])
    assert list(tmp_path.iterdir()) == []


def test_the_front_end_is_one_module_without_requests_or_markup_from_texts():
    script = frontend.script(frontend.ATLAS)
    assert script.count("export default") == 1
    assert not re.search(r"^import ", script, re.MULTILINE)
    for banned in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "fetch(", "import("):
        assert banned not in script, banned
    files = {path.name for path in frontend.HERE.glob("*.js")}
    assert files == {*frontend.SCRIPTS, frontend.ATLAS}


def test_all_rules_of_the_style_are_for_the_browser_s_own_elements():
    rules = re.sub(r"/\*.*?\*/|@[^{]*\{|\{[^{}]*\}", "\n", frontend.style(), flags=re.DOTALL)
    selectors = [one.strip(" }\n") for one in re.split(r"[,\n]", rules)]
    assert [one for one in selectors if one and ".sae-" not in one] == []
