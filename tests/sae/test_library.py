"""Compiled code lies and is loaded where this user alone writes, and only as it was compiled."""

import ctypes
import logging
import os
import shutil
import subprocess
import sys

import pytest
import torch

from saelib.sae import sparse
from saelib.sae.sparse import library

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
LOAD = "from saelib.sae.sparse import c as sparse_c; print(sparse_c.available())"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A cache of its own, where nothing is compiled yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "answer.c"
    file.write_text("int answer(void) { return 42; }\n")
    return file


def load(source, flags=("-shared", "-fPIC")):
    return library.load_library(source, library.compiler_command(source, flags))


def kept(cache):
    return sorted((cache / "saelib" / "kernels").iterdir())


def mode(path):
    return path.stat().st_mode & 0o777


def test_it_is_compiled_once_into_a_folder_of_this_user_alone(cache, source):
    assert load(source).answer() == 42
    (built,) = kept(cache)
    before = built.stat()
    assert load(source).answer() == 42
    assert kept(cache) == [built]
    assert (built.stat().st_ino, built.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [mode(p) for p in (built, built.parent, built.parent.parent)] == [0o700] * 3


def test_an_open_umask_opens_nothing(cache, source):
    before = os.umask(0)
    try:
        load(source)
    finally:
        os.umask(before)
    (built,) = kept(cache)
    assert [mode(p) for p in (built, built.parent, built.parent.parent)] == [0o700] * 3


def test_without_the_variable_it_is_the_home_s_cache(monkeypatch, tmp_path, source):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "a/relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert load(source).answer() == 42
    assert len(kept(tmp_path / ".cache")) == 1


def test_nothing_is_loaded_from_or_built_in_a_data_folder(cache, home, source, monkeypatch):
    load(source)
    (built,) = kept(cache)
    planted = home / "data" / "kernels" / built.name
    planted.parent.mkdir(parents=True)
    built.rename(planted)
    loaded = []

    class Watched(ctypes.CDLL):
        def __init__(self, path):
            loaded.append(path)
            super().__init__(path)

    monkeypatch.setattr(library.ctypes, "CDLL", Watched)
    load(source)
    assert loaded == [str(built)]
    assert sorted((home / "data").rglob("*")) == [planted.parent, planted]


def test_a_flipped_bit_is_compiled_anew_with_a_notice(cache, source, caplog):
    load(source)
    (built,) = kept(cache)
    sound = built.read_bytes()
    for place in (0, len(sound) // 2, len(sound) - 1):
        # a new file: the loaded one is mapped into this process
        damaged = bytearray(sound)
        damaged[place] ^= 1
        built.unlink()
        built.write_bytes(damaged)
        built.chmod(0o700)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert load(source).answer() == 42
        assert [record.message for record in caplog.records] == [
            f"{built}: its content is not what was compiled; compiled anew"
        ]
        assert kept(cache) == [built]
        assert built.read_bytes() == sound


def test_a_library_under_a_foreign_checksum_goes(cache, source, caplog):
    load(source)
    (built,) = kept(cache)
    key = built.stem.rpartition("_")[0]
    other = built.with_name(f"{key}_{'0' * 64}.so")
    built.rename(other)
    assert load(source).answer() == 42
    assert kept(cache) == [built]


def test_one_that_does_not_load_here_is_compiled_anew_with_a_notice(cache, source, caplog):
    load(source)
    (built,) = kept(cache)
    content = b"no library"
    key = built.stem.rpartition("_")[0]
    built.unlink()
    other = built.with_name(f"{key}_{library.hashlib.sha256(content).hexdigest()}.so")
    other.write_bytes(content)
    other.chmod(0o700)
    assert load(source).answer() == 42
    assert f"{other}: does not load here (" in caplog.text
    assert kept(cache) == [built]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.setattr(library.sys.implementation, "cache_tag", "cpython-399"),
        lambda m: m.setattr(library.sysconfig, "get_platform", lambda: "linux-i686"),
        lambda m: m.setattr(library.platform, "libc_ver", lambda: ("glibc", "9.99")),
        lambda m: m.setattr(library, "_processor", lambda: "another"),
    ],
    ids=["python", "platform", "C library", "processor"],
)
def test_one_made_for_another_python_or_machine_is_not_taken_by_its_name(
    cache, source, monkeypatch, change
):
    load(source)
    change(monkeypatch)
    load(source)
    first, second = kept(cache)
    assert first.stem.rpartition("_")[2] == second.stem.rpartition("_")[2]


def test_another_source_or_compiler_gives_another_library(cache, source, monkeypatch):
    load(source)
    load(source, ("-shared", "-fPIC", "-O1"))
    source.write_text("int answer(void) { return 43; }\n")
    assert load(source).answer() == 43
    monkeypatch.setenv("CC", "cc -DTWICE='a b'")
    load(source)
    source.with_name("shared.h").write_text("#define TWICE 2\n")
    load(source)
    assert len(kept(cache)) == 5


@pytest.mark.parametrize("part", ["saelib", "saelib/kernels"])
@pytest.mark.parametrize("bits", [0o720, 0o702, 0o777])
def test_a_folder_that_others_may_write_is_refused(cache, source, part, bits):
    load(source)
    (cache / part).chmod(bits)
    with pytest.raises(RuntimeError, match=rf"{part}: others may write .*mode {bits:o}.*chmod 700"):
        load(source)


def test_a_library_that_others_may_write_is_refused(cache, source):
    load(source)
    (built,) = kept(cache)
    built.chmod(0o766)
    with pytest.raises(RuntimeError, match=r"\.so: others may write to it \(mode 766\)"):
        load(source)


@pytest.mark.parametrize("part", ["saelib", "saelib/kernels"])
def test_a_folder_of_another_user_is_refused(cache, source, monkeypatch, part):
    load(source)
    if os.geteuid() == 0:
        os.chown(cache / part, 12345, -1)
    else:  # nobody else can give a folder away: this process is then the other
        monkeypatch.setattr(library.os, "geteuid", lambda: 12345)
    with pytest.raises(RuntimeError, match=r"belongs to user .*XDG_CACHE_HOME"):
        load(source)


def test_a_link_in_the_place_of_the_folder_is_refused(cache, source, tmp_path):
    cache.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (cache / "saelib").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RuntimeError, match=r"saelib: a link, where a folder"):
        load(source)


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(cache, source):
    cache.write_text("a file")
    with pytest.raises(RuntimeError, match=r"cache.*no folder for compiled code.*XDG_CACHE_HOME"):
        load(source)


def test_a_compiler_that_fails_is_reported_with_its_message(cache, source):
    with pytest.raises(RuntimeError, match=r"could not compile .*answer\.c.*no-such-flag"):
        load(source, ("-no-such-flag",))
    assert kept(cache) == []


def test_a_compiler_that_builds_nothing_is_reported(cache, source, monkeypatch):
    monkeypatch.setenv("CC", "true")
    with pytest.raises(RuntimeError, match="no file written, exit status 0"):
        load(source)


def test_what_a_killed_compilation_left_goes(cache, source):
    load(source)
    (built,) = kept(cache)
    built.unlink()
    left = library.temporary_name(built.with_name("build"))
    left = left.with_name(left.name.replace(str(os.getpid()), "999999999"))
    left.mkdir()
    load(source)
    assert kept(cache) == [built]


def test_processes_that_start_together_all_load(cache):
    together = [
        subprocess.Popen([sys.executable, "-c", LOAD], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate()[0] for process in together] == ["True\n"] * 3
    assert len(kept(cache)) == 2  # sparse_step.c and select.c


def test_compiled_code_is_taken_on_the_cpu_wherever_there_is_some(monkeypatch):
    monkeypatch.setattr(sparse.sparse_c, "available", lambda: True)
    assert sparse.operations(torch.device("cpu")) is sparse.sparse_c
    monkeypatch.setattr(sparse.sparse_c, "available", lambda: False)
    assert sparse.operations(torch.device("cpu")) is sparse.sparse_plain
