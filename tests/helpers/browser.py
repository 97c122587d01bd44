"""Chromium for tests: found, started, and pages whose console is kept."""

import contextlib
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)


@contextlib.contextmanager
def running_chromium():
    """The browser, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def watch_console(page, errors):
    """Add what the page's console calls an error, and exceptions that nobody caught."""
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))


def offline_page(chromium, errors, **options):
    """A page that reaches no network; errors of its console are added."""
    context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
    context.set_offline(True)
    page = context.new_page()
    watch_console(page, errors)
    return page


def module_page(script, style=""):
    """A page of one module."""
    return (
        f'<!DOCTYPE html><html><head><meta charset="utf-8"><style>{style}</style></head>'
        f'<body><div id="root"></div><script type="module">{script}</script></body></html>'
    )
