"""Where a model comes from: a local folder, a GGUF file or the hub, and why it cannot be had."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HTTPError,
    RepositoryNotFoundError,
)

from saelib.config import HUB_CHARS, shown
from saelib.files import is_there

# "name" or "owner/name"; anything else is a path
HUB_ID = re.compile(rf"(?=.{{1,{HUB_CHARS}}}\Z)[\w.-]*\w(/\w[\w.-]*)?")
LONGEST = 300  # letters of a library's own reason


class ModelLoadError(OSError):
    """A model cannot be loaded; the message says what is missing and how a local folder helps."""


def short_name(name: str, gguf_file: str) -> str:
    """The model's readable name: of a path the last component, else the hub id."""
    path = Path(name).expanduser()
    if gguf_file or path.suffix == ".gguf":
        return Path(gguf_file or name).stem
    return path.resolve().name if path.is_dir() else name


def locate(name: str, gguf_file: str) -> tuple[str, dict[str, Any], Exception | None]:
    """What `from_pretrained` gets: (folder or hub id, options, why the hub cannot be used or None).

    Raises `ModelLoadError` where the name is neither a folder, a GGUF file nor a possible hub id.
    """
    path = Path(name).expanduser()
    if not gguf_file and path.suffix == ".gguf":
        path, gguf_file = path.parent, path.name
    options = {"gguf_file": gguf_file} if gguf_file else {}
    if is_there(path) and path.is_dir():
        if gguf_file and not (path / gguf_file).is_file():
            raise ModelLoadError(
                f"model {name!r}: there is no GGUF file {gguf_file!r} in {path.resolve()}"
            )
        return str(path), {**options, "local_files_only": True}, None
    if name.endswith(".gguf") or not HUB_ID.fullmatch(name):
        raise ModelLoadError(
            f"model {shown(name)}: there is no such local folder or GGUF file, and it is not a hub "
            "id"
        )
    hub_error = _ask_hub(name)
    return name, {**options, "local_files_only": hub_error is not None}, hub_error


def _ask_hub(name: str) -> Exception | None:
    """Why the hub does not give the model, None where it does; the local cache is still tried.

    One request without retries, so that an unreachable hub is known in seconds: transformers would
    try for minutes.
    """
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"))
    except EntryNotFoundError:
        return None  # a repository without config.json, as of GGUF files
    except (HTTPError, OSError, ValueError) as error:  # ValueError: a name the hub does not allow
        return error
    return None


def explain(name: str, error: Exception) -> str:
    """A sentence on why loading failed, with the way out."""
    way = (
        f"or fetch it elsewhere with `hf download {name} --local-dir FOLDER` "
        "and give that folder as the model"
    )
    if isinstance(error, GatedRepoError):
        return (
            f"model {name!r} is gated and access was refused: "
            f"accept its licence and run `hf auth login`, {way}"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"model {name!r} is no local folder and not public on the hub: "
            f"if private run `hf auth login`, {way}"
        )
    if isinstance(error, (HTTPError, ConnectionError)):
        return (
            f"model {name!r} is no local folder, the hub cannot be reached "
            f"and its cache lacks it: connect, {way}"
        )
    if "trust_remote_code" in str(error):
        return (
            f"model {name!r} needs code that it brings along (auto_map in its config.json or "
            "tokenizer_config.json), which is never run here: "
            "expected a model and tokenizer of classes that transformers has"
        )
    reason = " ".join(str(error).split())[:LONGEST] or type(error).__name__
    kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
    return f"model {name!r} cannot be loaded: {kind}{reason}"
