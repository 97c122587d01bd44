"""An atlas in Chromium, with the network off: it opens, is used, and shows hostile text as text."""

import time

import numpy as np
import pytest
import torch
from helpers.lab import CHROMIUM
from helpers.models import tiny_llama
from helpers.texts import word_tokenizer

from saelib.config import SAEConfig
from saelib.measure.features import OwnText, build_index
from saelib.sae import build_sae
from saelib.show.explore.atlas import write_atlas

pytest.importorskip("playwright", reason="Playwright is not installed: `make browser` installs it")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to drive")

HOSTILE = (
    "</script><script>window.broken = 1</script>",
    '"><img src=x onerror="window.broken = 2">',
    "\N{GRINNING FACE}\N{RAINBOW}",
    "\N{RIGHT-TO-LEFT OVERRIDE}שלום",
    "x" * 10_000,
)
SITE = 2
LARGE = 2000


class HostileTokenizer:
    """Texts of tokens that a page must show and never run."""

    def __init__(self):
        self.words = word_tokenizer()

    def __call__(self, text, **options):
        return self.words(text, **options)

    def decode(self, ids, **options):
        return "".join(HOSTILE[int(i) % len(HOSTILE)] for i in ids)


@pytest.fixture(scope="module")
def lm():
    lm = tiny_llama()
    lm.tokenizer = HostileTokenizer()
    return lm


def random_index(lm, folder, n_latents, n_contexts=6):
    """An index of an SAE with random weights on random tokens."""
    rng = np.random.default_rng(0)
    contexts = [rng.integers(0, 100, 24).tolist() for _ in range(n_contexts)]
    config = SAEConfig(arch="sae", d_in=lm.d_model, n_latents=n_latents, site=SITE)
    sae = build_sae(config, torch.Generator().manual_seed(0)).requires_grad_(False)
    return build_index(sae, OwnText(lm, contexts), lm, folder)


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(chromium, path, errors, **options):
    """The page with the network off; what the console calls an error is added."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, **options)
    context.set_offline(True)
    page = context.new_page()
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    page.locator("h3[data-latent]").wait_for(timeout=20_000)
    return page


@pytest.fixture(scope="module")
def atlas(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    index = random_index(lm, folder / "index", 40)
    name = HOSTILE[0]
    return write_atlas(folder / "page.html", index, lm.tokenizer, name, {"l0": 3.0})


def test_hostile_texts_are_shown_and_never_run(chromium, atlas):
    errors = []
    page = opened(chromium, atlas, errors)
    assert page.evaluate("window.broken") is None
    assert "<script>window.broken" in page.locator(".sae-page").inner_text()
    assert page.locator(".sae-page img, .sae-page script").count() == 0
    assert HOSTILE[0] in page.locator(".sae-strip").inner_text()
    assert errors == []


def test_it_sorts_filters_opens_and_remembers_in_its_address(chromium, atlas):
    errors = []
    page = opened(chromium, atlas, errors)
    page.locator("button[data-column=density]").click()
    row = page.locator(".sae-rows .sae-row").nth(1)
    latent = row.get_attribute("data-latent")
    row.click()
    page.locator(f"h3[data-latent='{latent}']").wait_for()
    assert f"latent={latent}" in page.url
    again = page.context.new_page()
    again.goto(page.url)
    again.locator(f"h3[data-latent='{latent}']").wait_for()
    page.locator("input[type=search]").fill("onerror")
    assert "of 40 latents" in page.locator(".sae-left > .sae-faint").inner_text()
    page.locator("button[data-view=compare]").click()
    page.locator("[data-compared]").nth(1).wait_for()
    assert page.locator("button[data-view=steer]").count() == 0  # needs a kernel
    assert errors == []


def test_it_fits_a_narrow_screen(chromium, atlas):
    page = opened(chromium, atlas, [])
    page.set_viewport_size({"width": 400, "height": 800})
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 400


def test_it_asks_no_server_for_anything(atlas):
    text = atlas.read_text()
    assert "default-src 'none'" in text
    for request in ("fetch(", "XMLHttpRequest", "import(", " src=", "url("):
        assert request not in text.partition('id="atlas-data"')[0], request


def test_two_thousand_latents_open_within_two_seconds_in_a_few_megabytes(chromium, lm, tmp_path):
    lm.tokenizer = word_tokenizer()
    index = random_index(lm, tmp_path / "index", LARGE, n_contexts=200)
    path = write_atlas(tmp_path / "large.html", index, lm.tokenizer, "large", {})
    assert path.stat().st_size < 15e6
    begun = time.perf_counter()
    opened(chromium, path, [])
    seconds = time.perf_counter() - begun
    print(f"{LARGE:,} latents, {path.stat().st_size / 1e6:.1f} MB: open in {seconds:.2f} s")
    assert seconds < 8  # the target is 2; a busy machine may take four times as long
