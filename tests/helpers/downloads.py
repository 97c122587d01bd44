"""A little wheel that can be installed, and what a download of it leaves."""

import hashlib
import zipfile
from pathlib import Path

MEMBER = "tiny_wheel/data.bz2"
CONTENT = b"the pinned content" * 100


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_wheel(folder: Path, content: bytes = CONTENT, member: str = MEMBER) -> Path:
    """A real, installable wheel of a project `tiny-wheel` that holds one data file."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "tiny_wheel-1.0-py3-none-any.whl"
    info = "tiny_wheel-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            zipfile.ZipInfo(member), content
        )  # ZipInfo: a fixed date, so that the hash repeats
        archive.writestr(
            zipfile.ZipInfo(f"{info}/METADATA"),
            "Metadata-Version: 2.1\nName: tiny-wheel\nVersion: 1.0\n",
        )
        tag = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(zipfile.ZipInfo(f"{info}/WHEEL"), tag)
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD"), "")
    return wheel


def left_in(home: Path) -> set[str]:
    """What lies in the assets' folder, but for locks and what the test put there."""
    names = {p.name for p in (home / "data" / "assets").iterdir()} - {"wheels"}
    return {name for name in names if not name.endswith(".lock")}
