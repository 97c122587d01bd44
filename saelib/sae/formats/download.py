"""Files of an SAE from the hub, taken only where the name says so."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)

from saelib.sae.formats.parts import FormatError

SCHEME = "hf://"
NAME = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<folder>.+))?")


def fetched(source: str | Path, names: Iterable[str]) -> Path:
    """The local folder of "hf://owner/name[@revision][/folder]" with those of its files that exist.

    Raises:
        FormatError: the name is none, or the hub does not give the files.
    """
    parts = NAME.fullmatch(str(source).rstrip("/"))
    if parts is None or ".." in str(source):
        raise FormatError(f"{source!r}: expected hf://owner/name[@revision][/folder]")
    folder = parts["folder"] or ""
    prefix = f"{folder}/" if folder else ""
    try:
        root = snapshot_download(
            parts["repo"],
            revision=parts["revision"],
            allow_patterns=[prefix + name for name in names],
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FormatError(f"{source}: the hub does not give it ({reason})") from error
    return Path(root) / folder
