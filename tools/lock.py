"""Write the requirement files with hashes, from the versions in requirements.in.

python tools/lock.py            # needs `uv` (pip install uv) and the package index

    requirements.txt            all but the next two
    requirements-torch.txt      torch: the index's builds, and the CPU builds listed below
    requirements-cuda.txt       what the index's build of torch for Linux needs beside them

A version is that of requirements.in; what this lacks and a package needs is added. Hashes are of
the files that Linux and macOS take on the supported Pythons.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OLDEST = "3.11.5"  # of a Python that everything pinned admits
PYTHONS = re.compile(r"-(cp311-cp311|cp312-cp312|cp313-cp313|cp3\d+-abi3|[\w.]*py3\w*-none)-")
CUDA = re.compile(r"nvidia-|cuda-|triton$")  # what only a CUDA build of torch needs
# Builds of torch for the CPU alone, which the index does not have.
CPU_BUILDS = {
    "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl": (
        "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"
    ),
}
HEAD = {
    "requirements.txt": "everything but torch",
    "requirements-torch.txt": "torch; tools/install.py takes the build that pip finds here",
    "requirements-cuda.txt": "what the package index's build of torch for Linux needs",
}


def resolved(source: Path) -> list[dict[str, Any]]:
    """Packages with markers and files, as `uv` resolves them for every platform at once."""
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder) / "pylock.toml"
        command = ["uv", "pip", "compile", str(source), "--universal", "--generate-hashes", "-q"]
        command += ["--python-version", OLDEST, "--format", "pylock.toml", "-o", str(lock)]
        subprocess.run(command, check=True)
        return tomllib.loads(lock.read_text(encoding="utf-8"))["packages"]


def is_used(package: dict[str, Any]) -> bool:
    """Whether Linux or macOS takes it."""
    return not re.search(r"win32|'nt'|emscripten", package.get("marker", ""))


def hashes(package: dict[str, Any]) -> list[str]:
    """SHA-256 of the files that a supported Python on Linux or macOS may take."""
    files = {
        wheel["url"].rpartition("/")[2]: wheel["hashes"]["sha256"] for wheel in package["wheels"]
    }
    if package["name"] == "torch":
        files |= CPU_BUILDS
    chosen = [
        checksum
        for name, checksum in files.items()
        if PYTHONS.search(name) and not re.search(r"-win(32|_)", name)
    ]
    if "sdist" in package:
        chosen.append(package["sdist"]["hashes"]["sha256"])
    return sorted(chosen)


def entry(package: dict[str, Any]) -> str:
    """Its lines in a requirement file."""
    marker = f" ; {package['marker']}" if "marker" in package else ""
    pin = f"{package['name']}=={package['version']}{marker}"
    return " \\\n    ".join([pin, *(f"--hash=sha256:{each}" for each in hashes(package))]) + "\n"


def file_of(name: str) -> str:
    """The requirement file that a package belongs to."""
    if name == "torch":
        return "requirements-torch.txt"
    return "requirements-cuda.txt" if CUDA.match(name) else "requirements.txt"


def main() -> int:
    packages = [package for package in resolved(ROOT / "requirements.in") if is_used(package)]
    for file, content in HEAD.items():
        entries = [entry(package) for package in packages if file_of(package["name"]) == file]
        head = f"# Written by tools/lock.py from requirements.in: {content}.\n"
        (ROOT / file).write_text(head + "".join(entries), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
