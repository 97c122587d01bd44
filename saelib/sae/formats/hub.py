"""SAE folders on the hub, sent and fetched only by a call of these two functions."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from saelib.sae.architectures import load_sae
from saelib.sae.base import Autoencoder
from saelib.sae.formats.card import card
from saelib.sae.formats.download import SCHEME, fetched
from saelib.sae.formats.parts import FormatError
from saelib.sae.origin import check_weights
from saelib.seal import SEAL

SENT = ("config.json", "weights.safetensors", "metrics.json", "train.json", SEAL)
LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")


def sent_files(sae_folder: str | Path, repo_id: str, licence: str = "") -> dict[str, Path | bytes]:
    """What `push_to_hub` would send: name in the repository -> file, or content of the card.

    Raises:
        FormatError: the licence is no identifier of the hub's.
        ValueError: a file is damaged, or the weights are not those that were measured.
        FileNotFoundError: the folder holds no (finished) SAE.
    """
    folder = Path(sae_folder)
    if licence and not LICENCE.fullmatch(licence):
        raise FormatError(f"licence = {licence!r}: expected an identifier as 'mit', 'cc-by-4.0'")
    load_sae(folder)  # a damaged SAE is not sent
    check_weights(folder)
    files: dict[str, Path | bytes] = {
        name: folder / name for name in SENT if (folder / name).exists()
    }
    return files | {"README.md": card(folder, repo_id, licence).encode()}


def push_to_hub(
    sae_folder: str | Path, repo_id: str, licence: str = "", private: bool = False
) -> str:
    """Send an SAE folder with a model card to the repository, in one commit; returns its address.

    The repository is made where it is missing. `licence` is one of the hub's identifiers ("mit");
    without it the card says that none is stated. Uses the token of `hf auth login`.

    Raises:
        FormatError: the hub refuses or cannot be reached.
        ValueError, FileNotFoundError: as `sent_files`; nothing is sent then.
    """
    files = sent_files(sae_folder, repo_id, licence)
    operations = [
        CommitOperationAdd(name, str(content) if isinstance(content, Path) else content)
        for name, content in files.items()
    ]
    api = HfApi(library_name="saelib")
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.create_commit(repo_id, operations, commit_message="Sparse autoencoder and its card")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FormatError(f"{repo_id}: not sent ({reason})") from error
    return str(address)


def from_hub(repo_id: str, folder: str = "", revision: str = "main") -> Autoencoder:
    """An SAE that `push_to_hub` sent; for other libraries' see `formats.load("hf://…")`.

    Raises:
        FormatError: there is no such repository, or the hub cannot be reached.
        ValueError: the weights are not those that were measured, or a file is damaged.
        FileNotFoundError: the repository holds no SAE of this package.
    """
    source = f"{SCHEME}{repo_id}@{revision}/{folder}".rstrip("/")
    local = fetched(source, SENT)
    sae = load_sae(local)
    check_weights(local)
    return sae
