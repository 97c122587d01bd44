"""Notes stay with their SAE and latent, one file per profile; a damaged file loses nothing."""

import json
import multiprocessing

import pytest

from saelib.config import ConfigError
from saelib.show.explore.notes import Note, Notes, note_from, profile_folder

NOTE = Note("fires on ‘dates’", ("dates", "check"))


def test_a_note_is_read_back_and_an_empty_one_is_forgotten(tmp_path):
    notes = Notes(tmp_path / "data" / "notes.json")
    assert notes.read("abc") == {}
    notes.save("abc", "site 2", 7, NOTE)
    notes.save("abc", "site 2", 12, Note("", ("dates",)))
    notes.save("other", "site 3", 7, Note("of another SAE", ()))
    assert Notes(notes.path).read("abc") == {7: NOTE, 12: Note("", ("dates",))}
    notes.save("abc", "site 2", 7, Note("", ()))
    assert list(notes.read("abc")) == [12]
    assert notes.read("other") == {7: Note("of another SAE", ())}


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"version": 9, "saes": {}}',
        '{"version": 1, "saes": []}',
        '{"version": 1, "saes": {"abc": {"latents": {"x": {"text": "a", "lists": []}}}}}',
        '{"version": 1, "saes": {"abc": {"latents": {"7": {"text": "a"}}}}}',
        '{"version": 1, "saes": {"abc": {"latents": {"7": {"text": 1, "lists": []}}}}}',
        '{"version": 1, "saes": {"abc": {"latents": {"7": {"text": "\\ud800", "lists": []}}}}}',
        '{"version": 1, "saes": {"abc": {"latents": {"7": {"text": "a", "lists": [1]}}}}}',
    ],
)
def test_a_damaged_file_is_named_and_left_as_it_is(tmp_path, content):
    notes = Notes(tmp_path / "notes.json")
    notes.path.write_text(content)
    with pytest.raises(ValueError, match=r"notes\.json"):
        notes.read("abc")
    with pytest.raises(ValueError, match=r"notes\.json"):
        notes.save("abc", "site 2", 7, NOTE)
    assert notes.path.read_text() == content


def test_what_a_later_version_adds_to_an_entry_is_kept(tmp_path):
    notes = Notes(tmp_path / "notes.json")
    notes.save("abc", "site 2", 7, NOTE)
    content = json.loads(notes.path.read_text())
    content["saes"]["abc"]["colour"] = "red"
    notes.path.write_text(json.dumps(content))
    notes.save("abc", "site 2", 8, NOTE)
    assert json.loads(notes.path.read_text())["saes"]["abc"]["colour"] == "red"


def write_many(path, first):
    for latent in range(first, first + 20):
        Notes(path).save("abc", "site 2", latent, NOTE)


def test_two_notebooks_that_write_at_once_lose_nothing(tmp_path):
    path = tmp_path / "notes.json"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(path, first)) for first in (0, 100)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(Notes(path).read("abc")) == 40


def test_notes_lie_in_the_profile_s_folder_else_beside_the_index(tmp_path, monkeypatch):
    monkeypatch.setenv("SAELIB_HOME", str(tmp_path))
    data = tmp_path / "data"
    assert profile_folder(data / "tiny" / "saes" / "run" / "features") == data / "tiny"
    assert profile_folder(data / "tiny" / "features" / "abc") == data / "tiny"
    assert profile_folder(tmp_path / "mine" / "features") == tmp_path / "mine"


def test_names_of_lists_are_trimmed_and_each_stands_once():
    assert note_from(" a ", ["x ", "", "x", "y"]) == Note("a", ("x", "y"))
    for text, lists in ((None, []), ("a", "x"), ("a", [1]), ("\ud800", []), ("a", ["\udfff"])):
        with pytest.raises(ConfigError, match="expected a text and a list of names"):
            note_from(text, lists)
