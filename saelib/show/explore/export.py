"""What leaves the browser: table rows as CSV, a page per latent as JSON, a line that reopens it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saelib.config import ConfigError
from saelib.env import data_dir
from saelib.files import replaced_file, write_json
from saelib.measure.features import FeatureIndex
from saelib.measure.features.identity import SHORT
from saelib.measure.latents import latent_number
from saelib.show.explore.records import latent_view

EXPORT = "export"  # folder of a profile
FORMATS = ("csv", "json", "link")
IMPORTS = (
    "from saelib.run.opening import subjects",
    "from saelib.run.workspace import Workspace",
    "from saelib.show.explore import explore",
)


def check_latents(index: FeatureIndex, latents: Sequence[int]) -> None:
    """Refuse an empty selection, and latents that the SAE does not have.

    Raises:
        ConfigError: says which latents there are.
    """
    if not latents:
        raise ConfigError("export: no latent is selected; choose at least one")
    for latent in latents:
        latent_number(latent, index.n_latents)


def export_csv(index: FeatureIndex, latents: Sequence[int], folder: Path) -> Path:
    """Write the table's lines of some latents, texts of their tokens beside; the file."""
    check_latents(index, latents)
    path = folder / f"{_selection(index, latents)}.csv"
    with replaced_file(path) as temporary:
        index.table.loc[list(latents)].to_csv(temporary, index_label="latent")
    return path


def export_json(index: FeatureIndex, latents: Sequence[int], tokenizer: Any, folder: Path) -> Path:
    """Write a file for each latent, all that its page shows; the file, or the folder of several."""
    check_latents(index, latents)
    for latent in latents:
        write_json(_page(index, latent, folder), latent_view(index, latent, tokenizer))
    return _page(index, latents[0], folder) if len(latents) == 1 else folder


def _page(index: FeatureIndex, latent: int, folder: Path) -> Path:
    return folder / f"{_short(index)}_{latent}.json"


def _short(index: FeatureIndex) -> str:
    """The beginning of the SAE's checksum: what a file is of, whatever the folder is called."""
    return index.manifest["sae"][:SHORT]


def _selection(index: FeatureIndex, latents: Sequence[int]) -> str:
    """A name for a selection: the latent, or how many and a hash that tells selections apart."""
    if len(latents) == 1:
        return f"{_short(index)}_{latents[0]}"
    digest = hashlib.sha256(",".join(map(str, latents)).encode()).hexdigest()[:8]
    return f"{_short(index)}_{len(latents)}_latents_{digest}"


def link(features: Path, name: str, facts: Mapping[str, Any], latents: Sequence[int]) -> str:
    """Python that opens the browser at these latents again, a line each.

    For a run of a profile it holds all that is needed. For other SAEs `saes` is what the browser
    was opened with.
    """
    folder, data = features.resolve(), data_dir("").resolve()
    run = facts.get("run_id")
    if run and data in folder.parents:
        profile = folder.relative_to(data).parts[0]
        opened = f'subjects(ws, ws.results().query("run_id == {run!r}"))'
        before = "; ".join([*IMPORTS, f"ws = Workspace({profile!r})"])
        return "\n".join(
            f"{before}; explore({opened}, state={state_of(0, latent)})" for latent in latents
        )
    return "\n".join(f"explore(saes, state={state_of(name, latent)})" for latent in latents)


def state_of(subject: int | str, latent: int) -> dict[str, Any]:
    """The browser's state with one latent open."""
    return {"subject": subject, "latent": latent}
