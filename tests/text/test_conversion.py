"""The files of the embedded model's folder are the ones that were made."""

import json
import os
import time
from pathlib import Path

import pytest
from helpers.downloads import CONTENT, sha256

from saelib.text import conversion, pinned


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(CONTENT)
    (folder / "config.json").write_text("{}")
    conversion.write_record(folder)
    return folder


def test_a_whole_folder_passes_and_a_copied_one_is_hashed_once(folder):
    conversion.verify_folder(folder)
    os.utime(folder / "weights", ns=(1, 1))  # what a copy does
    conversion.verify_folder(folder)
    assert json.loads((folder / conversion.RECORD).read_text())["weights"] == [
        sha256(CONTENT),
        len(CONTENT),
        1,
    ]


def test_a_changed_or_missing_file_of_the_folder_is_named(folder):
    (folder / "weights").write_bytes(b"X" + CONTENT[1:])
    os.utime(folder / "weights", ns=(time.time_ns(), time.time_ns() + 10**9))
    with pytest.raises(
        pinned.AssetError, match=r"weights: sha256 is .*; delete .*model and run again"
    ):
        conversion.verify_folder(folder)
    (folder / "weights").unlink()
    with pytest.raises(pinned.AssetError, match="weights: missing; delete"):
        conversion.verify_folder(folder)
    (folder / conversion.RECORD).unlink()
    with pytest.raises(pinned.AssetError, match=r"sha256\.json is missing"):
        conversion.verify_folder(folder)
