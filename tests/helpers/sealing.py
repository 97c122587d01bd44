"""Folders whose files a test writes anew, and files that it damages."""

import json
import os
import time

from saelib.sae.origin import SEALED
from saelib.seal import read_seal, seal_files


def resealed(folder, *names):
    """The folder, sealed with what its files hold now, and with further files."""
    seal_files(folder, [*read_seal(folder).files, *names])
    return folder


def as_before_seals(folder):
    """Make a run's folder as a version without seals left it."""
    (folder / "seal.json").unlink()
    for name in ("train.json", "metrics.json"):
        content = json.loads((folder / name).read_text())
        content.pop(SEALED, None)
        (folder / name).write_text(json.dumps(content))


def age(folder):
    """Set the times of a folder's files back, so that their hashes are kept."""
    past = time.time() - 60
    for path in folder.iterdir():
        os.utime(path, (past, past))


def flip(path, byte=-1, bit=0):
    """Flip one bit of a file; returns its content before."""
    before = path.read_bytes()
    damaged = bytearray(before)
    damaged[byte] ^= 1 << bit
    path.write_bytes(damaged)
    return before
