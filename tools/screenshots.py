"""Pictures of the browser of features, as a reader sees it in JupyterLab, for README and docs.

python tools/screenshots.py PROFILE         # needs a finished run of the profile, and Chromium

Writes figures/browser/{latent,text,steer,compare}.png.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page

from saelib.env import root

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.lab import opened_notebook, running_lab

FOLDER = root() / "figures" / "browser"
SIZE = {"width": 1600, "height": 1300}
HEIGHT = 900  # of a picture at most
CODE = """
import saelib
from saelib.show.explore import explore
lens = saelib.open({profile!r}, site="middle", l0=32)
lens.matches()
explore(lens)
"""
WORD = "years"
TEXT = (
    "The war ended in May 1945, and two years later the first computers were built in Manchester."
)
PROMPT = "The house was built in"


def show_latent(page: Page) -> None:
    """The first latent that the table finds for a word."""
    search = page.locator(".sae-bar input[type=search]")
    search.fill(WORD)
    page.locator(".sae-rows .sae-row").first.click()
    page.locator(".sae-context .sae-peak").first.wait_for()


def show_text(page: Page) -> None:
    """Own text, coloured by that latent, with one token's latents."""
    page.locator("button[data-view=text]").click()
    page.locator("textarea[aria-label='your text']").fill(TEXT)
    page.locator("button[data-action=text]").click()
    page.locator(".sae-seen", has_text="years").click()
    page.get_by_text("The SAE misses").wait_for()


def show_steering(page: Page) -> None:
    """A prompt continued with and without that latent."""
    page.locator("button[data-view=steer]").click()
    page.locator("textarea[aria-label=prompt]").fill(PROMPT)
    page.locator("button[data-action=steer]").click()
    page.locator("p[data-kl]").wait_for(timeout=60_000)


def show_comparison(page: Page) -> None:
    """That latent beside the one of nearest direction."""
    page.locator("button[data-view=compare]").click()
    page.locator("[data-compared]").nth(1).wait_for(timeout=60_000)


def take(page: Page, path: Path) -> None:
    """The upper part of the browser."""
    browser = page.locator(".sae-browser")
    browser.evaluate("element => element.scrollIntoView()")
    box = browser.bounding_box()
    page.screenshot(path=path, clip=box | {"height": min(box["height"], HEIGHT)})


VIEWS = {
    "latent": show_latent,
    "text": show_text,
    "steer": show_steering,
    "compare": show_comparison,
}


def main(profile: str) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    errors: list[str] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        running_lab(Path(folder) / "lab", root(), CODE.format(profile=profile)) as address,
        opened_notebook(address, errors) as page,
    ):
        page.set_viewport_size(SIZE)
        page.locator("h3[data-latent]").wait_for(timeout=600_000)
        for name, show in VIEWS.items():
            show(page)
            take(page, FOLDER / f"{name}.png")
            print(FOLDER / f"{name}.png")
    if errors:
        sys.exit(f"the console of the browser: {errors}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
