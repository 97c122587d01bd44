"""`.ci/run` fails where a target fails, also one that runs beside another; it is run with a `make`
that does nothing but fail where it is asked to.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "run"
MAKE = """#!/bin/sh
echo "made $1"
[ "$1" = "$FAILING" ] && exit 2
exit 0
"""


@pytest.fixture
def ci(tmp_path):
    """A call that runs a copy of the script; -> (exit status, output)."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(SCRIPT, tmp_path / ".ci" / "run")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("make", "chromium", "chromium-browser", "google-chrome"):  # none is installed
        (tools / name).write_text(MAKE)
        (tools / name).chmod(0o755)
    path = os.pathsep.join((str(tools), os.environ["PATH"]))

    def run(failing=""):
        environment = os.environ | {"PATH": path, "FAILING": failing}
        script = str(tmp_path / ".ci" / "run")
        done = subprocess.run(["bash", script], capture_output=True, text=True, env=environment)
        return done.returncode, done.stdout

    return run


def test_every_target_is_made_and_the_last_line_says_so(ci):
    status, said = ci()
    assert status == 0
    assert [f"made {name}" in said for name in ("test", "slow", "browser", "interop")] == [True] * 4
    assert "make test, slow, browser and interop passed after " in said.splitlines()[-1]


@pytest.mark.parametrize("target", ["test", "slow", "browser", "interop"])
def test_a_target_that_fails_fails_the_whole(ci, target):
    status, said = ci(target)
    assert status == 2
    assert f"made {target}" in said
    assert "FAILED (exit 2)" in said.splitlines()[-1]
    assert ("made interop" in said) == (target == "interop")


def test_round_trips_are_skipped_with_a_sentence_where_their_libraries_are_missing(ci):
    status, said = ci("peers")
    assert status == 0
    assert "made interop" not in said
    assert "the other libraries could not be installed; round trips with them are skipped" in said
