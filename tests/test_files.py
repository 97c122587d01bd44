"""Files appear whole or not at all, with ordinary permissions; locks exclude others."""

import errno
import fcntl
import multiprocessing
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from saelib.files import (
    LockedError,
    locked,
    read_json,
    remove_leftovers,
    remove_leftovers_of_the_dead,
    replaced_file,
    replaced_folder,
    temporary_name,
    write_bytes,
    write_json,
    write_text,
)


@pytest.fixture
def umask_027():
    before = os.umask(0o027)
    yield
    os.umask(before)


def _write_half(path: Path) -> None:
    path.write_text("ne")
    raise ZeroDivisionError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_into_a_folder_that_is_made(tmp_path):
    write_bytes(tmp_path / "a" / "b" / "c", b"\x00\x01")
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"\x00\x01"
    assert names(tmp_path / "a" / "b") == ["c"]


def test_text_is_utf_8_with_its_line_ends_as_they_are(tmp_path):
    write_text(tmp_path / "a", "λ\r\nb\n")
    assert (tmp_path / "a").read_bytes() == "λ\r\nb\n".encode()


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "a"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), replaced_file(path) as temporary:
        _write_half(temporary)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_what_a_library_writes_beside_its_file_goes_with_it(tmp_path):
    with replaced_file(tmp_path / "weights") as temporary:
        (temporary.parent / ".tmpAb3xYz").write_text("safetensors' own, before it renames it")
    assert names(tmp_path) == ["weights"]


def test_of_a_killed_writer_nothing_stays(tmp_path):
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom saelib.files import replaced_file\n"
        "with replaced_file(Path(sys.argv[1]) / 'weights') as temporary:\n"
        "    (temporary.parent / '.tmpAb3xYz').touch()\n    os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)]).returncode == 9
    assert len(names(tmp_path)) == 1
    remove_leftovers_of_the_dead(tmp_path)
    assert names(tmp_path) == []


def test_leftovers_are_removed_while_another_process_writes(tmp_path):
    def write():
        while not ended.is_set():
            write_bytes(tmp_path / "a" / "b", b"c")

    ended = threading.Event()
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(400):
            remove_leftovers_of_the_dead(tmp_path)
    finally:
        ended.set()
        writer.join()
    assert names(tmp_path / "a") == ["b"]


@pytest.mark.parametrize("refused", ["rmdir", "unlink"])
def test_a_removal_that_is_refused_once_is_tried_again(tmp_path, refused, monkeypatch):
    real = getattr(os, refused)
    refusals: list[OSError] = []

    def once(*arguments, **options):
        if refusals:
            raise refusals.pop()
        return real(*arguments, **options)

    monkeypatch.setattr(os, refused, once)
    with suppress(KeyError), replaced_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        refusals.append(OSError(errno.EROFS, "refused"))
        raise KeyError
    assert not refusals
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_is_named(tmp_path):
    with (
        pytest.raises(OSError, match=r"Input/output error: '.*/a'$"),
        replaced_file(tmp_path / "a"),
    ):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    with (
        pytest.raises(OSError, match=r"Input/output error: '.*/a'$"),
        replaced_file(tmp_path / "a"),
    ):
        raise SafetensorError("I/O error: Input/output error (os error 5)")
    with pytest.raises(FileNotFoundError, match="other"), replaced_file(tmp_path / "a"):
        (tmp_path / "other").read_bytes()
    with pytest.raises(ValueError, match="os error 5"), replaced_file(tmp_path / "a"):
        raise ValueError("of another thing (os error 5)")
    assert names(tmp_path) == []


def test_a_lock_that_cannot_be_written_is_named(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with (
            pytest.raises(OSError, match=r"/\.lock: not written .* free"),
            locked(tmp_path / ".lock"),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_temporary_name_carries_the_process_and_is_no_file_of_its_kind(tmp_path):
    name = temporary_name(tmp_path / "a.json").name
    assert str(os.getpid()) in name
    assert not name.endswith(".json")


def test_what_a_killed_writer_leaves_is_removed_and_nothing_else(tmp_path):
    write_text(tmp_path / "site" / "shard", "whole")
    write_text(tmp_path / ".lock", "")
    temporary_name(tmp_path / "site" / "shard").write_text("half")
    temporary_name(tmp_path / "report").mkdir()
    (temporary_name(tmp_path / "report") / "page").touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".lock", "site"]
    assert names(tmp_path / "site") == ["shard"]


def test_without_a_lock_only_what_dead_writers_of_this_host_left_is_removed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        dead = child.pid
    host = temporary_name(tmp_path / "b").name.split(".")[2]
    kept = [
        temporary_name(tmp_path / "b").name,
        f".a.{host}.1.tmp",
        f".a.{host}.mine.tmp",
        f".a.0{host}.{dead}.tmp",
        f".a.{host}.x.{dead}.tmp",
        "a",
    ]
    for name in [f".a.{host}.{dead}.tmp", f".a.{host}.{10**20}.tmp", *kept]:
        write_text(tmp_path / name, "half")
    remove_leftovers_of_the_dead(tmp_path)
    assert names(tmp_path) == sorted(kept)


@pytest.mark.usefixtures("umask_027")
def test_files_get_the_permissions_of_the_umask(tmp_path):
    write_text(tmp_path / "text", "a")
    with replaced_file(tmp_path / "weights") as temporary:
        save_file({"x": torch.zeros(1)}, temporary)
        temporary.chmod(0o600)  # as some libraries create their files
    with replaced_folder(tmp_path / "folder") as temporary:
        (temporary / "a").touch()
    assert (tmp_path / "text").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_a_folder_is_replaced_whole(tmp_path):
    write_text(tmp_path / "report" / "old", "")
    with replaced_folder(tmp_path / "report") as new:
        (new / "new").write_text("")
    assert names(tmp_path / "report") == ["new"]
    assert names(tmp_path) == ["report"]


def test_a_folder_that_cannot_be_filled_stays_as_it_was(tmp_path):
    write_text(tmp_path / "report" / "old", "")
    with pytest.raises(ZeroDivisionError), replaced_folder(tmp_path / "report") as new:
        _write_half(new / "new")
    assert names(tmp_path / "report") == ["old"]
    assert names(tmp_path) == ["report"]


def test_equal_values_give_equal_json(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None], "a": "λ"})
    write_json(tmp_path / "b.json", {"a": "λ", "b": [1, 2.5, None]})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert read_json(tmp_path / "a.json") == {"a": "λ", "b": [1, 2.5, None]}


def test_json_that_is_damaged_or_not_a_number_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"a\.json: damaged, not JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "b.json", float("nan"))
    assert names(tmp_path) == ["a.json"]


def test_a_held_lock_is_refused_with_its_holder_and_free_afterwards(tmp_path):
    path = tmp_path / "lock"
    path.write_text("pid 1 on host elsewhere")  # what a killed holder leaves
    with locked(path):
        with pytest.raises(LockedError) as caught, locked(path, wait=False):
            pass
        assert caught.value.holder == f"pid {os.getpid()} on host {socket.gethostname()}"
    assert path.read_text() == ""
    with locked(path, wait=False):
        pass


def _append(folder: Path, number: int) -> None:
    with locked(folder / "lock"):
        text = (folder / "text").read_text()
        write_text(folder / "text", f"{text}{number}\n")


def test_processes_wait_for_each_other(tmp_path):
    write_text(tmp_path / "text", "")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append, args=(tmp_path, n)) for n in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted((tmp_path / "text").read_text().split()) == list("01234567")


def test_who_waits_for_a_lock_is_told_for_whom(tmp_path):
    waiting = multiprocessing.get_context("fork").Event()
    process = multiprocessing.get_context("fork").Process(
        target=_hold, args=(tmp_path / "lock", waiting)
    )
    process.start()
    waiting.wait()
    holders = []
    with locked(tmp_path / "lock", on_wait=holders.append):
        pass
    process.join()
    assert holders == [f"pid {process.pid} on host {socket.gethostname()}"]


def _hold(path: Path, held) -> None:
    with locked(path):
        held.set()
        time.sleep(0.3)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named_with_a_way_out(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    for wait in (True, False):
        refused = pytest.raises(OSError, match=r"lock: its file system .*SAELIB_NO_LOCKS=1")
        with refused as caught, locked(tmp_path / "lock", wait=wait):
            pass
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("SAELIB_NO_LOCKS", "1")
    with locked(tmp_path / "lock"), locked(tmp_path / "lock", wait=False):
        pass


def _save(file: Path) -> None:
    with replaced_file(file) as temporary:
        save_file({"x": torch.zeros(1000)}, temporary)


WRITERS = [lambda file: write_bytes(file, bytes(4000)), _save]


@pytest.mark.parametrize("write", WRITERS, ids=["bytes", "safetensors"])
def test_a_full_disk_is_one_sentence_with_the_file_and_nothing_is_left(tmp_path, write):
    write_text(tmp_path / "a", "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=r"a: not written \(.*\): free some space") as caught:
            write(tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_folder_that_comes_out_the_same_is_left_alone(tmp_path):
    folder = tmp_path / "report"
    for text, is_same in (("a", False), ("a", True), ("b", False)):
        stamp = folder.stat().st_ino if folder.exists() else 0
        with replaced_folder(folder) as new:
            (new / "figures").mkdir()
            write_text(new / "figures" / "page", text)
        assert (folder.stat().st_ino == stamp) == is_same
        assert (folder / "figures" / "page").read_text() == text
    assert names(tmp_path) == ["report"]


def test_json_with_a_name_twice_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": {"site": 2, "d_in": 4, "site": 3}}')
    with pytest.raises(ValueError, match=rf"{path}: .*'site' stands twice in one mapping"):
        read_json(path)


def test_a_leftover_that_is_a_link_goes_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".a.tmp").symlink_to(tmp_path / "kept")
    remove_leftovers(tmp_path / "folder")
    assert list((tmp_path / "folder").iterdir()) == []
    assert (tmp_path / "kept").is_dir()


def test_a_lock_whose_holder_has_no_utf8_name_is_told(tmp_path):
    path = tmp_path / "lock"
    with locked(path):
        path.write_bytes(b"pid 7 on host \xff")
        with (
            pytest.raises(LockedError, match=rf"{path} is held by pid 7"),
            locked(path, wait=False),
        ):
            pass
