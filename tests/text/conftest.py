"""A pinned download in place of the embedded text, shared by the tests of what is fetched."""

import os

import pytest
from helpers.downloads import CONTENT, MEMBER, make_wheel, sha256

from saelib.text import archives, assets, pinned


@pytest.fixture
def tiny(home, monkeypatch):
    """A tiny pinned wheel in the excerpt's place; no index, pip looks into `links`."""
    wheel = make_wheel(home / "made")
    requirements = home / "requirements.txt"
    requirements.write_text(
        f"# a comment\ntiny-wheel==1.0 --hash=sha256:{sha256(wheel.read_bytes())}\n"
    )
    monkeypatch.setattr(archives, "REQUIREMENTS", requirements)
    monkeypatch.setattr(assets, "DUMP", pinned.Asset("tiny-wheel", MEMBER, sha256(CONTENT)))
    (home / "links").mkdir()
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(home / "links"))
    return home
