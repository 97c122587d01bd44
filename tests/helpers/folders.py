"""What lies in a folder."""

from pathlib import Path


def all_bytes(folder: Path) -> dict[str, bytes]:
    """Content of every file below it, by relative path."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }
