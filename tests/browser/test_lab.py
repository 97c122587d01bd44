"""The browser in a real JupyterLab, used as a reader does: table, latent, text, steering, notes."""

import json
import os
from pathlib import Path

import pytest
from helpers.lab import CHROMIUM, opened_notebook, running_lab
from helpers.workspaces import RECIPE, trained_profile

pytest.importorskip("playwright", reason="Playwright is not installed: `make browser` installs it")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to drive")

CODE = """
from saelib.run.opening import subjects
from saelib.run.workspace import Workspace
from saelib.show.explore import explore
ws = Workspace("tiny")
explore(subjects(ws, ws.results()))
"""
TEXT = "w1 w2 w3 w1 w7"


def compared_specs(ws):
    return [ws.spec("plain", site, lam=0.3, **RECIPE) for site in (2, 3)]


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
    """The notebook with its browser drawn; screenshots go to `SAELIB_SHOTS`, where it is set."""
    with (
        running_lab(tmp_path_factory.mktemp("lab") / "lab", home, CODE) as address,
        opened_notebook(address, errors) as page,
    ):
        page.locator("h3[data-latent]").wait_for(timeout=120_000)
        yield page


def shot(page, name):
    if folder := os.environ.get("SAELIB_SHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.locator(".sae-browser").screenshot(path=Path(folder) / f"{name}.png")


def open_latent(page, number):
    search = page.locator(".sae-bar input[type=search]")
    search.fill(str(number))
    search.press("Enter")
    page.locator(f"h3[data-latent='{number}']").wait_for()
    search.fill("")


def test_the_table_sorts_and_filters(page):
    latents = page.locator(".sae-rows .sae-row")
    page.locator("button[data-column=density]").click()
    header = page.locator(".sae-head [aria-sort]:not([aria-sort=none])")
    assert header.get_attribute("aria-sort") == "descending"
    densest = latents.first.get_attribute("data-latent")
    page.locator("button[data-column=density]").click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert latents.first.get_attribute("data-latent") != densest
    whole = latents.count()
    page.locator(".sae-bar input[type=search]").fill("w1")
    shown = page.locator(".sae-left > .sae-faint").inner_text()
    assert shown.endswith("of 64 latents")
    assert 0 < latents.count() <= whole
    page.locator(".sae-bar input[type=search]").fill("no such token")
    assert latents.count() == 0
    page.locator(".sae-bar input[type=search]").fill("")
    shot(page, "table")


def test_a_latent_is_chosen_and_its_page_drawn(page):
    page.locator(".sae-rows .sae-row").nth(2).click()
    chosen = page.locator(".sae-row.sae-chosen").get_attribute("data-latent")
    page.locator(f"h3[data-latent='{chosen}']").wait_for()
    assert page.locator(".sae-context .sae-peak").count() > 0
    assert page.locator(".sae-histogram").count() == 1
    shot(page, "latent")


def test_a_number_that_no_latent_has_is_answered_by_a_sentence(page):
    search = page.locator(".sae-bar input[type=search]")
    search.fill("99999")
    search.press("Enter")
    alert = page.locator(".sae-message[role=alert]")
    alert.wait_for()
    assert alert.inner_text() == ("There is no latent 99999: this SAE has the latents 0 to 63.")
    open_latent(page, 5)


def test_own_text_has_latents_what_is_missed_and_first_tokens_greyed(page):
    page.locator("button[data-view=text]").click()
    page.locator("textarea[aria-label='your text']").fill(TEXT)
    page.locator("button[data-action=text]").click()
    tokens = page.locator(".sae-seen")
    tokens.nth(4).wait_for()
    assert tokens.count() == 5
    assert "first token" in tokens.first.get_attribute("title")
    assert "misses" in tokens.nth(2).get_attribute("title")
    tokens.nth(2).click()
    page.get_by_text("The SAE misses").wait_for()
    shot(page, "text")


def test_a_latent_is_steered(page):
    open_latent(page, 5)
    page.locator("button[data-view=steer]").click()
    page.locator("textarea[aria-label=prompt]").fill(TEXT)
    page.locator("button[data-action=steer]").click()
    page.locator("p[data-kl]").wait_for()
    assert float(page.locator("p[data-kl]").get_attribute("data-kl")) >= 0
    assert page.locator(".sae-side").count() == 2
    shot(page, "steer")


def test_two_latents_of_two_saes_are_compared(page):
    page.locator("button[data-view=latent]").click()
    page.locator("button[data-action=twins]").click()
    page.get_by_role("button", name="compare", exact=True).first.click()
    page.locator("[data-compared]").nth(1).wait_for(timeout=60_000)
    assert page.locator("[data-compared]").count() == 2
    shot(page, "compare")


def test_a_note_is_kept_in_the_profile_s_file(page, home):
    page.locator("button[data-view=latent]").click()
    open_latent(page, 7)
    page.locator("textarea[aria-label=note]").fill("fires on w7")
    page.locator("input[aria-label=lists]").fill("mine, words")
    page.locator("button[data-action=note]").click()
    page.get_by_text("note saved").wait_for()
    saes = json.loads((home / "data" / "tiny" / "notes.json").read_text())["saes"]
    written = {"text": "fires on w7", "lists": ["mine", "words"]}
    assert [entry["latents"]["7"] for entry in saes.values()] == [written]


def test_the_selection_is_exported(page, home):
    page.locator("button[data-view=keep]").click()
    page.locator("button[data-export=csv]").click()
    page.get_by_text("written:").wait_for()
    assert list((home / "data" / "tiny" / "export").glob("*.csv"))


def test_the_console_stays_without_errors_and_nothing_else_is_asked_for(page, errors):
    assert errors == []
