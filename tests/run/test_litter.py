"""What a kill leaves goes at the next opening, files have equal modes, reading writes nothing."""

import os
import subprocess
import sys

import pytest
from helpers.refusing import WRITING, run_refusing
from helpers.workspaces import RECIPE, trained_profile

from saelib.files import temporary_name
from saelib.run.workspace import Workspace

OPEN = """
from pathlib import Path
from helpers.workspaces import RECIPE, open_workspace
workspace = open_workspace(Path(sys.argv[1]))
assert len(workspace.train([workspace.spec("plain", 1, lam=0.5, **RECIPE)], "02_train_sae")) == 1
assert len(workspace.results()) == 1
"""


def files_under(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workbook folder with one trained SAE, made under umask 022."""
    home = tmp_path_factory.mktemp("trained")
    before = os.umask(0o022)
    try:
        trained_profile(home, lambda ws: [ws.spec("plain", 1, lam=0.5, **RECIPE)])
    finally:
        os.umask(before)
    return home


@pytest.fixture
def profile(trained, monkeypatch):
    monkeypatch.setenv("SAELIB_HOME", str(trained))
    return trained / "data" / "tiny"


def test_all_files_have_the_permissions_that_the_umask_gives(trained):
    paths = sorted((trained / "data" / "tiny").rglob("*"))
    assert {path.suffix for path in paths} > {".safetensors", ".json", ".csv"}
    modes = {(path.is_dir(), path.stat().st_mode & 0o777) for path in paths}
    assert modes == {(True, 0o755), (False, 0o644)}


def leave(path):
    """What a process that was killed while it wrote `path` leaves."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    name = temporary_name(path).name.replace(f".{os.getpid()}.", f".{dead.pid}.")
    left = path.with_name(name)
    left.write_bytes(b"half")
    return left


def test_what_killed_writers_left_goes_when_a_profile_is_opened(profile):
    (run,) = (profile / "saes").iterdir()
    before = files_under(profile)
    for name in ("results.csv", "workspace.json", "eval/site_01.json", "store/manifest.json"):
        leave(profile / name)
    leave(run / "weights.safetensors")
    running = temporary_name(profile / "results.csv")
    running.write_bytes(b"of a process that still writes: this one")
    Workspace("tiny", "cpu")
    assert files_under(profile) == sorted([*before, running])
    running.unlink()


def test_nothing_is_written_where_everything_is_finished(profile):
    before = {path: path.stat().st_mtime_ns for path in files_under(profile)}
    home = profile.parents[1]
    run_refusing(WRITING, OPEN, home, SAELIB_HOME=str(home), REFUSED_FOLDER=str(home / "data"))
    assert {path: path.stat().st_mtime_ns for path in files_under(profile)} == before


def test_in_a_folder_of_others_their_leftovers_stay(profile, monkeypatch):
    left = leave(profile / "results.csv")
    monkeypatch.setattr("saelib.files.os.access", lambda *_: False)
    Workspace("tiny", "cpu")
    assert left.exists()
    left.unlink()
