"""Install what is pinned, every file checked by its SHA-256: what `make venv` does.

.venv/bin/python tools/install.py [--torch-index URL]     # with the Python of a virtual environment

Without `--torch-index`, torch is the build that pip chooses as it is configured here, and it must
be one of those in requirements-torch.txt. With it, torch and what it needs beside requirements.txt
come from that index alone, unchecked: other indexes' builds have no hashes here. No other package
is ever taken from it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHECKED = ("--no-deps", "--require-hashes")


def pip(*arguments: str) -> None:
    """Run this Python's pip in the checkout; CalledProcessError where it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    subprocess.run(command, cwd=ROOT, check=True)


def torch_pin() -> str:
    """ "torch==<version>", without its hashes."""
    lines = (ROOT / "requirements-torch.txt").read_text(encoding="utf-8").splitlines()
    return next(line.split()[0] for line in lines if line.startswith("torch=="))


def installed_torch() -> str | None:
    """The version of torch that is there, a build's own part of it left out."""
    try:
        return metadata.version("torch").partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def needs_cuda_packages() -> bool:
    """Whether the torch that is there is a build that brings CUDA as packages."""
    return any(need.startswith("nvidia-") for need in metadata.requires("torch") or ())


def install_checked_torch() -> None:
    """The build that pip chooses here, if its hash is known."""
    if installed_torch() != torch_pin().partition("==")[2]:
        with tempfile.TemporaryDirectory() as folder:
            # first the choice: with hashes pip prefers an index's file to one in a folder
            pip("download", "--quiet", "--no-deps", "--dest", folder, torch_pin())
            found = ("--no-index", "--find-links", folder)
            pip("install", "--quiet", *CHECKED, *found, "-r", "requirements-torch.txt")
    if needs_cuda_packages():
        pip("install", "--quiet", *CHECKED, "-r", "requirements-cuda.txt")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-index", default="", help="take torch from this index, unchecked")
    index = parser.parse_args(arguments).torch_index
    try:
        pip("install", "--quiet", *CHECKED, "-r", "requirements.txt")
        if index:
            print(f"torch comes from {index}; its files are not checked against known hashes")
            pip("install", "--quiet", "--index-url", index, torch_pin())
        else:
            install_checked_torch()
        pip("install", "--quiet", "--no-deps", "--no-build-isolation", "-e", ".")
    except subprocess.CalledProcessError as error:
        print(f"error: pip {' '.join(error.cmd[4:])} failed; its message stands above")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
