"""How long a reader waits at 32,768 latents, from a click in JupyterLab to what it draws.

Targets: first view 2 s after the index is there, a click 0.3 s, own text of 64 tokens 1.5 s. The
figures are printed; a busy machine may take four times as long before a test fails.
"""

import statistics
import time

import pytest
from helpers import large_lens
from helpers.lab import CHROMIUM, opened_notebook, running_lab

pytest.importorskip("playwright", reason="Playwright is not installed: `make browser` installs it")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to drive"),
    pytest.mark.skipif(
        not large_lens.embedded_model_is_there(),
        reason="the embedded model is not there: `make assets` fetches it",
    ),
]

CODE = f"""{large_lens.CELL}
from saelib.show.explore import explore
explore(lens)
"""
SENTENCE = "The war ended in May 1945, and people danced in the streets of London. "
GENEROUS = 4  # times the target
ROWS = (1, 3, 5, 7, 9)
# Milliseconds from an action on the first selector's n-th element until `drawn` is true.
TIMED = """([selector, n, drawn]) => new Promise((resolve) => {
  const ready = new Function(`return ${drawn}`);
  const begun = performance.now();
  document.querySelectorAll(selector)[n].click();
  const look = () => ready() ? resolve(performance.now() - begun) : requestAnimationFrame(look);
  look();
})"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """The notebook, and the seconds from an empty browser to its table and first latent."""
    home = tmp_path_factory.mktemp("large") / "home"
    n_tokens = large_lens.write_large_lens(home)
    print(f"an index of {large_lens.LATENTS:,} latents on {n_tokens:,} tokens")
    errors = []
    with (
        running_lab(tmp_path_factory.mktemp("lab") / "lab", home, CODE) as address,
        opened_notebook(address, errors) as page,
    ):
        page.locator(".sae-browser").wait_for(state="attached", timeout=120_000)
        begun = time.monotonic()
        page.locator("h3[data-latent]").wait_for(timeout=60_000)
        yield page, time.monotonic() - begun
    assert errors == []


@pytest.fixture
def page(opened):
    return opened[0]


def seconds(page, selector, drawn, n=0):
    return page.evaluate(TIMED, [selector, n, drawn]) / 1000


def click_row(page, n):
    """Seconds from a click on the n-th row shown until that latent's page is drawn."""
    latent = page.locator(".sae-rows .sae-row").nth(n).get_attribute("data-latent")
    return seconds(
        page, ".sae-rows .sae-row", f"document.querySelector(\"h3[data-latent='{latent}']\")", n
    )


def test_the_first_view_is_there_within_two_seconds(opened):
    page, first = opened
    print(f"first view of {large_lens.LATENTS:,} latents: {first:.2f} s")
    assert f"of {large_lens.LATENTS:,} latents" in page.locator(".sae-left").inner_text()
    assert first < 2 * GENEROUS


def test_a_click_takes_less_than_three_tenths_of_a_second(page):
    times = [click_row(page, n) for n in ROWS]
    print(f"a latent's page: {statistics.median(times):.3f} s, at most {max(times):.3f} s")
    assert statistics.median(times) < 0.3 * GENEROUS


def test_sorting_takes_less_than_three_tenths_of_a_second(page):
    sorted_by = "document.querySelector('.sae-head [aria-sort={}]')"
    down = seconds(page, "button[data-column=density]", sorted_by.format("descending"))
    up = seconds(page, "button[data-column=density]", sorted_by.format("ascending"))
    print(f"sorting: {down:.3f} s and {up:.3f} s")
    assert max(down, up) < 0.3 * GENEROUS


def test_own_text_of_64_tokens_takes_less_than_a_second_and_a_half(page):
    page.locator("button[data-view=text]").click()
    times = []
    for number in range(3):
        text = f"{number} {SENTENCE * 4}"
        page.locator("textarea[aria-label='your text']").fill(text)
        drawn = f"document.querySelector('.sae-seen')?.textContent.startsWith('{number}')"
        times.append(seconds(page, "button[data-action=text]", drawn))
    n_tokens = page.locator(".sae-seen").count()
    print(f"own text of {n_tokens} tokens: {statistics.median(times):.2f} s")
    assert n_tokens >= 64
    assert statistics.median(times) < 1.5 * GENEROUS
