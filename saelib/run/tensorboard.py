"""Training curves for TensorBoard: the histories of a profile's SAEs as its event files.

`history.csv` beside each SAE stays the truth; these files are made from it and may be deleted. A
SAE whose events are newer than its history is left alone.
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
from tensorboardX import SummaryWriter

from saelib.env import data_dir
from saelib.files import replaced_folder
from saelib.seal import checked

HISTORY = "history.csv"
AXES = ("step", "tokens")  # of a row; all other columns are curves


def write_curves(profile: str, folder: Path | None = None) -> tuple[Path, int]:
    """Write the events of all SAEs of a profile; returns the folder and how many were written.

    folder: `data/<profile>/tensorboard` without one; it gets a folder for each SAE, by its run id.

    Raises:
        FileNotFoundError: the profile has no SAE with a history.
        ValueError: a history is damaged; names the file.
    """
    histories = sorted((data_dir(profile) / "saes").glob(f"*/{HISTORY}"))
    if not histories:
        raise FileNotFoundError(
            f"{data_dir(profile) / 'saes'} has no {HISTORY}: train SAEs with profile {profile!r}"
        )
    target = folder or data_dir(profile) / "tensorboard"
    written = [_write(path, target / path.parent.name) for path in histories]
    return target, sum(written)


def _write(history: Path, folder: Path) -> bool:
    """Write one SAE's events, unless they are there already."""
    if folder.exists() and folder.stat().st_mtime >= history.stat().st_mtime:
        return False
    table = _read(checked(history))
    curves = [name for name in table.columns if name not in AXES]
    with (
        replaced_folder(folder) as temporary,
        SummaryWriter(str(temporary), write_to_disk=True) as writer,
    ):
        for row in table.to_dict("records"):
            for name in curves:
                if math.isfinite(row[name]):
                    writer.add_scalar(name, row[name], int(row["tokens"]))
    return True


def _read(history: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(history).astype(float)
    except ValueError as error:
        raise ValueError(f"{history}: damaged ({error})") from error
    if "tokens" not in table:
        raise ValueError(f"{history}: damaged (no column 'tokens')")
    return table
