"""Markup removed in a process of its own: the same text, and an end to every page."""

import os
from pathlib import Path

import pytest
from helpers.wikitext import ARTICLE, PLAIN

from saelib.text import apart
from saelib.text.apart import Cleaner, MarkupError
from saelib.text.pinned import run_python


def test_text_is_what_it_is_in_this_process_whatever_characters_it_holds():
    with Cleaner() as cleaner:
        assert cleaner(ARTICLE) == PLAIN
        assert cleaner("''Tōkyō'' \u2028 \x85\n\nمدينة\n") == "Tōkyō\n\nمدينة"


def test_after_a_page_without_an_end_the_next_one_is_read(monkeypatch):
    monkeypatch.setattr(apart, "SECONDS", 0.2)
    with Cleaner() as cleaner:
        with pytest.raises(MarkupError, match=r"takes more than 0\.6 s of processor time"):
            cleaner("<b " * 7000)
        assert cleaner("''one''") == "one"


def test_a_page_that_takes_too_much_memory_is_named_by_that(monkeypatch):
    serve = "import saelib.text.apart as a; a.MEMORY = 200 << 20; a.serve()"
    monkeypatch.setattr(apart, "COMMAND", serve)
    with Cleaner() as cleaner:
        with pytest.raises(MarkupError, match="its markup takes more than 200 MiB of memory"):
            cleaner("[[a]] " * 300_000)
        assert cleaner("''one''") == "one"


def test_the_process_ends_with_the_block_and_is_not_started_before_a_page():
    with Cleaner() as cleaner:
        assert cleaner._process is None
        cleaner("one")
        process = cleaner._process
    assert process.poll() is not None


@pytest.mark.parametrize("paths", ["", os.pathsep, f"/none{os.pathsep}"])
def test_no_module_of_the_folder_that_it_is_started_in_is_executed(tmp_path, monkeypatch, paths):
    for name in ("json", "mwparserfromhell", "saelib", "torch"):
        (tmp_path / f"{name}.py").write_text("open('was-executed', 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", paths)
    with Cleaner() as cleaner:
        assert cleaner("''one''") == "one"
    assert run_python("-c", "import json, torch, saelib.config") == ("", "")
    assert run_python("-m", "json.tool", "--help")[1] == ""
    assert not (tmp_path / "was-executed").exists()


def test_one_module_alone_starts_processes_of_python():
    package = Path(apart.__file__).parents[1]
    sources = {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    starts = [path.name for path, source in sources.items() if "sys.executable" in source]
    assert starts == ["child.py"]
