"""An atlas in Chromium, with the network off: it opens, is used, and shows hostile text as text."""

import re
import time

import numpy as np
import pytest
import torch
from helpers.browser import CHROMIUM, module_page, offline_page, running_chromium
from helpers.models import tiny_llama
from helpers.texts import word_tokenizer

from saelib.config import SAEConfig
from saelib.measure.features import OwnText, build_index
from saelib.sae import build_sae
from saelib.show.explore import frontend
from saelib.show.explore.atlas import write_atlas
from saelib.show.explore.records import latent_view

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
# The least contrast of text and ground (WCAG 2) of tokens with some shares of full colour.
CONTRASTS = """([shares, black]) => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const luminance = (colour) => {
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const parts = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((part) => part / 255);
    const linear = parts.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const line = document.querySelector(".sae-context .sae-text");
  const ground = getComputedStyle(document.querySelector(".sae-browser")).backgroundColor;
  const contrasts = shares.map((share) => {
    const span = document.createElement("span");
    const hot = share >= black ? " sae-hot" : "";
    span.className = share === null ? "sae-token sae-grey" : `sae-token sae-fires${hot}`;
    if (share !== null) span.style.setProperty("--share", `${100 * share}%`);
    line.append(span);
    const { color, backgroundColor } = getComputedStyle(span);
    const pair = [luminance(color), luminance(share === null ? ground : backgroundColor)];
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  });
  return Math.min(...contrasts);
}"""


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
    with running_chromium() as browser:
        yield browser


def opened(chromium, path, errors, **options):
    """The atlas with the network off; what the console calls an error is added."""
    page = offline_page(chromium, errors, **options)
    page.goto(path.as_uri())
    page.locator("h3[data-latent]").wait_for(timeout=20_000)
    return page


@pytest.fixture(scope="module")
def index(lm, tmp_path_factory):
    return random_index(lm, tmp_path_factory.mktemp("atlas") / "index", 40)


@pytest.fixture(scope="module")
def atlas(lm, index, tmp_path_factory):
    path = tmp_path_factory.mktemp("atlas") / "page.html"
    return write_atlas(path, index, lm.tokenizer, HOSTILE[0], {"l0": 3.0})


def test_the_page_answers_with_the_records_of_the_index(chromium, lm, index, atlas):
    script = frontend.script(frontend.ATLAS)
    probe = "window.answer = async (text, latent) => atlasLatent(await unpacked(text), latent);"
    page = offline_page(chromium, [])
    page.set_content(module_page(f"{script}\n{probe}"))
    packed = atlas.read_text().partition('id="atlas-data">')[2].partition("<")[0]
    for latent in range(0, 40, 7):
        shown = page.evaluate("([text, latent]) => answer(text, latent)", [packed, latent])
        view = latent_view(index, latent, lm.tokenizer)
        edges = view["histogram"].pop("edges")
        assert shown["histogram"].pop("edges") == pytest.approx(edges, rel=1e-3)
        assert {name: shown[name] for name in view} == view


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


def test_a_link_opens_the_latent_that_its_address_names(chromium, atlas):
    errors = []
    page = opened(chromium, atlas, errors)
    page.evaluate("location.hash = 'latent=11'")  # as a link to another latent of the page does
    page.locator("h3[data-latent='11']").wait_for()
    page.locator("button[data-view=keep]").click()
    page.locator("button[data-export=link]").click()
    page.get_by_text("#latent=11").wait_for()
    assert errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ink_contrasts_with_every_shade(chromium, atlas, scheme):
    """At least 4 : 1, for tokens of any strength; 3 : 1 for those left out."""
    page = opened(chromium, atlas, [], color_scheme=scheme)
    black = float(re.search(r"const HOT = ([\d.]+);", frontend.script()).group(1))
    shares = [0.01 * n for n in range(101)]
    assert page.evaluate(CONTRASTS, [shares, black]) > 4
    assert page.evaluate(CONTRASTS, [[None], black]) > 3


def test_it_prints_the_latent_alone_with_its_histogram(chromium, atlas):
    page = opened(chromium, atlas, [])
    page.emulate_media(media="print")
    assert not page.locator(".sae-left").is_visible()
    assert not page.locator(".sae-tabs").is_visible()
    assert page.locator(".sae-context").first.is_visible()
    assert page.locator(".sae-bin").first.is_visible()


def test_it_fits_a_narrow_screen(chromium, atlas):
    page = opened(chromium, atlas, [])
    page.set_viewport_size({"width": 400, "height": 800})
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 400


def test_it_asks_no_server_for_anything(atlas):
    text = atlas.read_text()
    assert "default-src 'none'" in text
    code = re.sub(r'id="atlas-data">.*?</script>', "", text, flags=re.DOTALL)
    assert "export function mount" in code
    for request in ("fetch(", "XMLHttpRequest", "import(", " src=", "url("):
        assert request not in code, request


def test_two_thousand_latents_open_within_two_seconds_in_a_few_megabytes(chromium, lm, tmp_path):
    lm.tokenizer = word_tokenizer()
    index = random_index(lm, tmp_path / "index", LARGE, n_contexts=80)
    path = write_atlas(tmp_path / "large.html", index, lm.tokenizer, "large", {})
    assert path.stat().st_size < 15e6
    begun = time.perf_counter()
    opened(chromium, path, [])
    seconds = time.perf_counter() - begun
    print(f"{LARGE:,} latents, {path.stat().st_size / 1e6:.1f} MB: open in {seconds:.2f} s")
    assert seconds < 8  # the target is 2; a busy machine may take four times as long
