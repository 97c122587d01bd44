"""In a real JupyterLab the kernel answers the page: every question, errors, buffers, the state.

The page is a probe, so that what fails here is the kernel's side; `test_lab` drives the browser's.
"""

import json
from pathlib import Path

import pytest
from helpers.lab import CHROMIUM, opened_notebook, running_lab
from helpers.probe import CELL, ask, refusal, reply, wait_for_probe
from helpers.workspaces import RECIPE, trained_profile

pytest.importorskip("playwright", reason="Playwright is not installed: `make browser` installs it")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to drive")

CODE = f"""{CELL}
from saelib.run.opening import subjects
from saelib.run.workspace import Workspace
ws = Workspace("tiny")
browser = Probe(subjects(ws, ws.results()), {{"subject": 0, "latent": 3}})
browser
"""
TEXT = "w1 w2 w3 w1 w7"


def compared_specs(ws):
    """Two λ and two sites: each SAE has a relative at its site or at the other."""
    cells = [(2, 0.3), (2, 1.2), (3, 0.3)]
    return [ws.spec("plain", site, lam=lam, **RECIPE) for site, lam in cells]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    trained_profile(folder, compared_specs)
    return folder


@pytest.fixture(scope="module")
def errors():
    return []


@pytest.fixture(scope="module")
def page(home, tmp_path_factory, errors):
    with (
        running_lab(tmp_path_factory.mktemp("lab") / "lab", home, CODE) as address,
        opened_notebook(address, errors) as page,
    ):
        wait_for_probe(page)
        yield page


def test_the_table_arrives_as_bytes(page):
    got = ask(page, "open", subject=0)
    table = got["answer"]["reply"]["table"]
    n_latents = RECIPE["n_latents"]
    widths = [1] * len(table["numbers"]) + [tokens["width"] for tokens in table["tokens"]]
    assert got["sizes"] == [4 * n_latents * width for width in widths]


def test_subjects_and_state_are_there_and_the_state_goes_both_ways(page):
    assert len(page.evaluate("kernelSubjects()")) == 3
    assert page.evaluate("kernelState()") == {"subject": 0, "latent": 3}
    page.evaluate("setKernelState({subject: 1, latent: 5})")
    assert reply(page, "latent", subject=1, latent=5)["latent"] == 5
    assert page.evaluate("kernelState()") == {"subject": 1, "latent": 5}


def test_every_question_is_answered(page):
    view = reply(page, "latent", subject=0, latent=5)
    assert view["contexts"]["top"]
    seen = reply(page, "text", subject=0, text=TEXT)
    assert len(seen["tokens"]) == len(seen["latents"]) == 5
    asked = {"latent": 5, "mode": "add", "strength": 3, "prompt": TEXT, "n_tokens": 4}
    assert len(reply(page, "steer", subject=0, **asked)["after"].split()) == 4
    twins = reply(page, "twins", subject=0, latent=5)
    assert {twin["subject"] for twin in twins} == {1, 2}
    assert reply(page, "ablate", subject=0, latent=5)["n_contexts"] > 0


def test_notes_and_exports_lie_in_the_profile_s_folder(page, home):
    reply(page, "note", subject=0, latent=5, text="of w7", lists=["mine"])
    saes = json.loads((home / "data" / "tiny" / "notes.json").read_text())["saes"]
    assert [entry["latents"] for entry in saes.values()] == [
        {"5": {"text": "of w7", "lists": ["mine"]}}
    ]
    path = reply(page, "export", subject=0, latents=[5, 6], format="csv")["path"]
    assert path.startswith(str(home / "data" / "tiny" / "export"))
    assert len(Path(path).read_text().splitlines()) == 3


def test_a_wrong_question_is_answered_by_a_sentence_and_the_next_one_works(page):
    assert refusal(page, "latent", subject=0, latent=99_999) == (
        "latent 99999: this SAE has the latents 0 to 63"
    )
    assert "takes" in refusal(page, "text", subject=0, text=TEXT * 2000)
    assert reply(page, "latent", subject=0, latent=5)["latent"] == 5


def test_the_console_stays_without_errors_and_nothing_else_is_asked_for(page, errors):
    assert errors == []
