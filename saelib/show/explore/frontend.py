"""The browser's front end: its scripts joined to one module, and its style."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
# One module without a build step: each file uses those before it, `browser.js` has the exports.
SCRIPTS = (
    *("browser_elements.js", "browser_table.js", "browser_latent.js", "browser_text.js"),
    *("browser_steer.js", "browser_compare.js", "browser.js"),
)
ATLAS = "atlas.js"  # the host of a page without a kernel
STYLE = "browser.css"


def script(*more: str) -> str:
    """The module, and further files after it."""
    names = (*SCRIPTS, *more)
    return "\n".join((HERE / name).read_text(encoding="utf-8") for name in names)


def style() -> str:
    """The style sheet; all its rules are for `.sae-` classes."""
    return (HERE / STYLE).read_text(encoding="utf-8")
