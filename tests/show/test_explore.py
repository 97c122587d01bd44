"""`explore` takes subjects and lenses, opens what its state names, live or as HTML."""

import nbformat
import pytest
from helpers.lenses import make_lens, make_subjects, model_and_store
from helpers.workspaces import RECIPE, trained_profile
from IPython.display import HTML
from nbclient import NotebookClient

from saelib.config import ConfigError
from saelib.measure.lens import Lens, Subject
from saelib.show.explore import explore, nearest_l0
from saelib.show.explore.widget import FeatureBrowser


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    return make_subjects(tmp_path_factory.mktemp("explore"))


def test_a_browser_lists_its_saes_with_facts_that_json_has(subjects):
    browser = explore(subjects, headless=False, state={"subject": "second", "latent": 3})
    assert isinstance(browser, FeatureBrowser)
    assert [entry["name"] for entry in browser.subjects] == ["first", "second", "deep"]
    assert browser.subjects[0]["facts"]["fvu"] is None
    assert browser.state == {"subject": 1, "latent": 3}


def test_without_a_watcher_it_is_html_of_what_the_state_names(subjects):
    page = explore(subjects, state={"subject": 1, "latent": 3})  # tests set SAELIB_HEADLESS
    assert isinstance(page, HTML)
    assert "<b>second</b>" in page.data
    assert "<b>Latent 3</b>" in page.data
    assert "<b>first</b>" in explore(subjects).data


def test_a_lens_is_taken_by_its_name_and_facts(tmp_path):
    lm, store = model_and_store(tmp_path)
    lens = make_lens(lm, store, tmp_path)
    alone = explore(lens, headless=False).subjects[0]
    assert alone["name"] == "site 2 · sae · 48 latents"
    assert alone["facts"] == {"site": 2, "arch": "sae"}
    named = Lens(lm, lens.sae, store, lens.features, name="mine", facts={"site": 2, "fvu": 0.25})
    assert explore([named], headless=False).subjects == [
        {"name": "mine", "facts": {"site": 2, "fvu": 0.25}}
    ]


def test_with_a_lens_come_the_saes_that_its_twins_are_in(subjects):
    lens = subjects[0].load()
    names = [entry["name"] for entry in explore(lens, headless=False).subjects]
    assert names[1:] == [other.name for other in lens.relatives] == ["second", "deep"]


def test_the_sae_nearest_to_an_l0_is_opened_first():
    rows = [(2, 40.0), (2, 20.0), (15, 31.0), (15, float("nan")), (15, 0.0)]
    subjects = [Subject(str(n), {"site": s, "l0": l0}, dict) for n, (s, l0) in enumerate(rows)]
    assert nearest_l0(subjects) == {"subject": 2}
    assert nearest_l0(subjects, 32, site=2) == {"subject": 0}
    assert nearest_l0(subjects, 20) == {"subject": 1}
    with pytest.raises(ConfigError, match="no SAE at site 3 has an L0 above 0"):
        nearest_l0(subjects, site=3)


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"subject": "third"}, r"subject = 'third': expected one of \['first', 'second', 'deep'\]"),
        ({"subject": 3}, "subject = 3: expected 0 to 2"),
        ({"subject": 1.5}, "subject = 1.5: expected a whole number"),
        ({"latent": -1}, "latent = -1: expected 0 or more"),
    ],
)
def test_a_state_that_names_what_is_not_there_is_refused(subjects, state, sentence):
    with pytest.raises(ConfigError, match=sentence):
        explore(subjects, state=state)


def test_what_is_no_sae_is_refused():
    with pytest.raises(ConfigError, match="no SAE is given"):
        explore([])
    with pytest.raises(ConfigError, match="str is given; expected subjects or lenses"):
        explore(["default"])


CELL = """
import saelib
from saelib.show.explore import explore
explore(saelib.open("tiny", site=2), headless={headless})
"""


def test_a_kernel_shows_the_widget_live_and_html_headless(tmp_path, monkeypatch):
    trained_profile(tmp_path, lambda ws: [ws.spec("plain", 2, lam=0.5, **RECIPE)])
    monkeypatch.setenv("SAELIB_HOME", str(tmp_path))
    cells = [nbformat.v4.new_code_cell(CELL.format(headless=each)) for each in (None, False)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    static, live = ([set(o.data) for o in c.outputs if "data" in o] for c in notebook.cells)
    assert static == [{"text/html", "text/plain"}]
    assert "application/vnd.jupyter.widget-view+json" in live[0]
