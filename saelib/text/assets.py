"""The embedded text and enwik8, made once in `data/assets`, and how anything there is made once.

Nothing is fetched before `embedded_wiki()` or `enwik8()` is called for the first time. A file is
made under a temporary name, checked by hash and then renamed, under a lock. So what lies in
`data/assets` under its own name is whole, whatever interrupted its making. Without an index, put
the archives in `data/assets/wheels` by hand.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from saelib.files import locked
from saelib.text.archives import extract
from saelib.text.pinned import Asset, SourceAsset, assets_dir, require_hash
from saelib.text.pinned import AssetError as AssetError  # what callers catch

DUMP = Asset(
    "gensim",
    "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
    "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
)
ENWIK8 = SourceAsset(
    "x-transformers",
    "x_transformers-2.16.1/data/enwik8.gz",
    "d52ea2118b505f79007e084b2f49acef9fd0e45fb481f84b2cab0a7191a7ef60",
    "x_transformers-2.16.1.tar.gz",
    "50f73b36c9aea2499a4b95145f44611bfe3887397377425cf1c7b6c5d18578cb",
)


def embedded_wiki() -> Path:
    """The excerpt of English Wikipedia, a MediaWiki dump (.bz2, 1.7 MB).

    The first call downloads 28 MB. Raises `AssetError` when it cannot be had, or is not the pinned
    file.
    """
    return _extracted(DUMP, "the embedded Wikipedia excerpt", "28 MB")


def enwik8() -> Path:
    """The first 10⁸ bytes of a dump of English Wikipedia of 2006 (.gz, 37 MB).

    The first call downloads 39 MB. Raises `AssetError` as `embedded_wiki` does.
    """
    return _extracted(ENWIK8, "enwik8", "39 MB")


def _extracted(asset: Asset, name: str, size: str) -> Path:
    """The asset's file in `data/assets`, checked by hash."""
    path = assets_dir() / Path(asset.member).name
    message = f"Downloading {name} to {assets_dir()} (once, {size})"
    made_once(path, lambda tmp: extract(asset, tmp), message)
    require_hash(path, asset.sha256, f"delete {path} and run again")
    return path


def made_once(path: Path, make: Callable[[Path], Path], message: str = "") -> Path:
    """`path` (in `data/assets`), made by the first process that asks; others wait for it.

    `make(folder)` makes it in a temporary folder and returns where; `message` is printed before.
    """
    if path.exists():  # it appeared whole, so that no lock is needed, nor a folder to write to
        return path
    with asset_turn(path.name):
        if not path.exists():
            if message:
                _say(message)
            prefix = f".partial-{path.name}-"
            # What killed processes left: none is at work, since the lock is held here.
            for leftover in assets_dir().glob(f"{escape(prefix)}*"):
                shutil.rmtree(leftover)
            with tempfile.TemporaryDirectory(prefix=prefix, dir=assets_dir()) as folder:
                os.replace(make(Path(folder)), path)
    return path


@contextmanager
def asset_turn(name: str) -> Iterator[None]:
    """Hold the lock of one asset; where another process makes or checks it, say so and wait."""

    def say(holder: str) -> None:
        _say(f"{holder} is at work on {name}: waiting for it")

    with locked(assets_dir() / f".{name}.lock", on_wait=say):
        yield


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
