"""Text of a run as others may see it: no control sequences, no path of the machine it ran on."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from saelib.env import root

# ANSI's: CSI to its final byte, OSC and its kin to BEL or ST, and the two-byte ones
SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|\x1b[PX\]^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?"
    r"|\x1b[ -/]*[0-~]"
)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
CELL_FILE = re.compile(r"\S*/ipykernel_\d+/\d+\.py")  # what a kernel calls a cell


def without_controls(text: str, colours: bool = False) -> str:
    """A text without control sequences and characters, line breaks and tabs apart.

    colours: those of ANSI stay, as in IPython's tracebacks.
    """
    if not colours:
        return CONTROL.sub("", SEQUENCE.sub("", text))
    parts = COLOUR.split(text)
    kept = [*COLOUR.findall(text), ""]
    return "".join(
        without_controls(part) + colour for part, colour in zip(parts, kept, strict=True)
    )


def without_paths(text: str) -> str:
    """A text with the folders of this machine shortened.

    The workbook's folder goes, Python's is `<python>`, the user's `~`, a cell's file `<cell>`.
    """
    text = CELL_FILE.sub("<cell>", text)
    for folder, short in _folders():
        text = text.replace(f"{folder}/", f"{short}/" if short else "").replace(
            folder, short or "."
        )
    return text


def _folders() -> list[tuple[str, str]]:
    """Folders and what stands for them, inner ones first; with `~` too, as IPython writes them."""
    home = Path.home()
    named = [(Path(sys.prefix), "<python>"), (Path(sys.base_prefix), "<python>"), (home, "~")]
    named += [(root(), ""), (Path(__file__).parents[2], "")]
    pairs = {str(folder): short for folder, short in named if len(folder.parts) > 1}
    for folder, short in named[:2] + named[3:]:
        if folder != home and folder.is_relative_to(home):
            pairs[f"~/{folder.relative_to(home)}"] = short
    return sorted(pairs.items(), key=lambda pair: -len(pair[0]))
