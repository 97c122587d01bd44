"""A reader's notes on latents, and lists of them, in one JSON file per profile.

    {"version": 1, "saes": {checksum: {"name": "site 15 · …", "latents": {"707": {"text": "…",
                                                                         "lists": ["dates"]}}}}}

An SAE is known by its checksum, so that notes stay with it whatever its folder is called. A latent
without text and lists has no entry. What this module does not know stays in the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from saelib.config import ConfigError
from saelib.env import data_dir
from saelib.files import locked, read_json, write_json
from saelib.measure.features.pieces import is_writable

NOTES = "notes.json"
VERSION = 1


class Note(NamedTuple):
    """What a reader wrote of a latent, and the lists it was put on."""

    text: str
    lists: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the file, and as the browser takes it."""
        return {"text": self.text, "lists": list(self.lists)}


def profile_folder(features: Path) -> Path:
    """Where what belongs to an index is kept: its profile's folder, else the one beside it."""
    data = data_dir("").resolve()
    folder = features.resolve()
    if data in folder.parents:
        return data / folder.relative_to(data).parts[0]
    return folder.parent


class Notes:
    """The notes of one file, which is read at each question: another notebook may write it too."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, sae: str) -> dict[int, Note]:
        """The notes on an SAE's latents, by latent; `sae` is its checksum.

        Raises:
            ValueError: the file is damaged; names it.
        """
        entry = self._content()["saes"].get(sae, {"latents": {}})
        return {int(latent): self._note(note) for latent, note in entry["latents"].items()}

    def save(self, sae: str, name: str, latent: int, note: Note) -> None:
        """Put a note in the place of the latent's; `name` says to a reader which SAE it is.

        Raises:
            ValueError: the file is damaged; names it, and leaves it as it is.
        """
        with locked(self.path.with_name(f".{self.path.name}.lock")):
            content = self._content()
            entry = content["saes"].setdefault(sae, {"latents": {}})
            entry["name"] = name
            if note.text or note.lists:
                entry["latents"][str(latent)] = note.to_dict()
            else:
                entry["latents"].pop(str(latent), None)
            write_json(self.path, content)

    def _content(self) -> dict[str, Any]:
        if not self.path.exists():
            return {"version": VERSION, "saes": {}}
        content = read_json(self.path)
        if not isinstance(content, dict) or content.get("version") != VERSION:
            raise ValueError(f"{self.path}: no notes of version {VERSION}; nothing was changed")
        saes = content.get("saes")
        if not isinstance(saes, dict) or not all(map(_is_entry, saes.values())):
            raise ValueError(
                f"{self.path}: damaged, 'saes' is no table of notes; nothing was changed"
            )
        return content

    def _note(self, note: dict[str, Any]) -> Note:
        return Note(note["text"], tuple(note["lists"]))


def _is_entry(entry: Any) -> bool:
    """Whether an SAE's entry holds notes by the number of their latent."""
    latents = entry.get("latents") if isinstance(entry, dict) else None
    if not isinstance(latents, dict) or not all(name.isdecimal() for name in latents):
        return False
    return all(_is_note(note) for note in latents.values())


def _is_note(note: Any) -> bool:
    if not isinstance(note, dict) or not _is_text(note.get("text")):
        return False
    lists = note.get("lists")
    return isinstance(lists, list) and all(map(_is_text, lists))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and is_writable(value)


def note_from(text: Any, lists: Any) -> Note:
    """A note as the browser sends it: spaces around names and names given twice are dropped.

    Raises:
        ConfigError: the text is no text, or the lists are no list of names.
    """
    if not _is_note({"text": text, "lists": lists}):
        raise ConfigError("note: expected a text and a list of names")
    names = dict.fromkeys(name.strip() for name in lists)
    return Note(text.strip(), tuple(name for name in names if name))
