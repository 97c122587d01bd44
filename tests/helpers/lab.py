"""A real JupyterLab for tests: a server of its own folder, and a notebook opened in Chromium."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat

STARTED = 60  # seconds a server may take
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)
QUIET = {"fetchNews": "false", "checkForUpdates": False}  # JupyterLab asks nothing of the network


def free_port():
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_notebook(path, code):
    """A notebook of one cell."""
    cell = nbformat.v4.new_code_cell(code)
    notebook = nbformat.v4.new_notebook(cells=[cell])
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    nbformat.write(notebook, path)


def _environment(folder, home):
    """A kernel of this process's package, with live widgets and none of the user's settings."""
    places = ("CONFIG", "DATA", "RUNTIME")
    own = {f"JUPYTER_{place}_DIR": str(folder / place.lower()) for place in places}
    kept = {name: value for name, value in os.environ.items() if name != "SAELIB_HEADLESS"}
    return kept | own | {"SAELIB_HOME": str(home)}


def _command(folder, port, token):
    settings = folder / "settings"
    quiet = settings / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text(json.dumps(QUIET))
    root = ["--allow-root"] if os.geteuid() == 0 else []
    return [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ip", "127.0.0.1"),
        *("--port", str(port), "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"),
        *(f"--LabApp.user_settings_dir={settings}", f"--LabApp.workspaces_dir={folder / 'spaces'}"),
        *(f"--ServerApp.root_dir={folder / 'notebooks'}", "--LabApp.news_url=None", *root),
    ]


def _wait(process, url, log):
    deadline = time.monotonic() + STARTED
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(url, timeout=5).read()
            return
        time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start in {STARTED} s:\n{log.read_text()}")


@contextlib.contextmanager
def running_lab(folder, home, code):
    """The address of a notebook with `code`; the kernels of its JupyterLab work in `home`."""
    folder = Path(folder)
    (folder / "notebooks").mkdir(parents=True)
    write_notebook(folder / "notebooks" / "features.ipynb", code)
    port, token = free_port(), secrets.token_hex(16)
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            _command(folder, port, token),
            env=_environment(folder, home),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(process, f"{address}/api/status?token={token}", log)
        yield f"{address}/lab/tree/features.ipynb?token={token}"
    finally:
        process.terminate()  # ends its kernels too
        process.wait(timeout=30)


@contextlib.contextmanager
def opened_notebook(address, errors):
    """A page of Chromium on the notebook, its cells run; what the console calls an error is added.

    Nothing but the server can be reached from it.
    """
    from playwright.sync_api import sync_playwright

    host = address.split("/lab")[0]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1500, "height": 1100})
        context.route(lambda url: not url.startswith((host, "blob:", "data:")), _refuse(errors))
        page = context.new_page()
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        run_all_cells(page)
        try:
            yield page
        finally:
            browser.close()


def _refuse(errors):
    def refuse(route):
        errors.append(f"asked for {route.request.url}")
        route.abort()

    return refuse


def run_all_cells(page):
    """Run the opened notebook by the menu, as a user does."""
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
