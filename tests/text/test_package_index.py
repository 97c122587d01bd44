"""A source archive comes from pip's index, byte for byte, and no address is told."""

import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import traceback
from dataclasses import replace

import pytest
from helpers.downloads import CONTENT, left_in, sha256

from saelib.text import assets, package_index, pinned


@pytest.fixture
def source(tiny, monkeypatch):
    """A tiny source archive in enwik8's place; its build would leave a file behind."""
    made = tiny / "made" / "tiny_source-1.0.tar.gz"
    files = {"data/enwik8.gz.txt": b"no", "../out": b"no", "data/enwik8.gz": CONTENT}
    files["setup.py"] = f"open({str(tiny / 'was-built')!r}, 'w')".encode()
    with tarfile.open(made, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"tiny_source-1.0/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    digest = sha256(made.read_bytes())
    asset = pinned.SourceAsset(
        "tiny-source", "tiny_source-1.0/data/enwik8.gz", sha256(CONTENT), made.name, digest
    )
    monkeypatch.setattr(assets, "ENWIK8", asset)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return made


@pytest.fixture
def serve(monkeypatch):
    """`serve({path: (type, content)})` starts an index, to which pip's configuration points."""
    servers = []

    def start(answers: dict[str, tuple[str, bytes]]) -> list[str]:
        asked: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                kind, content = answers.get(self.path, ("text/plain", b""))
                self.send_response(200 if self.path in answers else 404)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                """Nothing on the test's stderr."""

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{servers[-1].server_port}/simple")
        return asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


HTML_PAGE = b"""<!DOCTYPE html><a href="../../files/tiny_source-0.9.tar.gz#sha256=0">old</a>
<a data-requires-python="&gt;=3" \
href="../../files/tiny%5Fsource-1.0.tar.gz?a=1&amp;b=2#sha256=0">new</a>"""
JSON_PAGE = json.dumps(
    {"files": [{"filename": "x", "url": "/files/tiny_source-1.0.tar.gz?a=1&b=2"}]}
).encode()


@pytest.mark.parametrize(
    ("kind", "page"), [("text/html", HTML_PAGE), ("application/vnd.pypi.simple.v1+json", JSON_PAGE)]
)
def test_the_archive_comes_from_pips_index_once_and_only_its_member_is_taken(
    source, serve, home, kind, page, capfd
):
    links = [f"/files/tiny{_}source-1.0.tar.gz?a=1&b=2" for _ in ("_", "%5F")]
    asked = serve(
        {"/simple/tiny-source/": (kind, page), **dict.fromkeys(links, ("", source.read_bytes()))}
    )
    path = assets.enwik8()
    assert path == home / "data" / "assets" / "enwik8.gz"
    assert path.read_bytes() == CONTENT
    assert left_in(home) == {"enwik8.gz"}
    assert not (home / "was-built").exists()
    assert not list(home.rglob("out"))
    assert len(asked) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert assets.enwik8() == path
    assert len(asked) == 2, "the second call asks nothing"


def test_an_archive_of_another_hash_is_refused_and_leaves_nothing(source, serve, home):
    damaged = source.read_bytes()[:-1]
    serve({"/simple/tiny-source/": ("text/html", b'<a href="/t/tiny_source-1.0.tar.gz">t</a>'),
           "/t/tiny_source-1.0.tar.gz": ("", damaged)})  # fmt: skip
    with pytest.raises(
        pinned.AssetError,
        match=rf"sha256 is {sha256(damaged)}, expected .*not the archive that was pin",
    ):
        assets.enwik8()
    assert left_in(home) == set()


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({}, "404"),
        (
            {"/simple/tiny-source/": ("text/html", b'<a href="/t/tiny_source-2.tar.gz">t</a>')},
            "index pip asks has no tiny",
        ),
        ({"/simple/tiny-source/": ("application/json", b"{}")}, "files"),
    ],
)
def test_an_index_without_the_archive_is_named_with_the_way_by_hand(
    source, serve, home, answers, reason
):
    serve(answers)
    with pytest.raises(pinned.AssetError) as caught:
        assets.enwik8()
    assert reason in str(caught.value)
    assert str(caught.value).startswith(
        "tiny_source-1.0.tar.gz of tiny-source could not be downloaded ("
    )
    assert f"bring it into {home}/data/assets/wheels, and run again." in str(caught.value)
    assert left_in(home) == set()


def test_an_archive_put_there_by_hand_needs_no_index_and_a_damaged_one_is_named(source, home):
    with pytest.raises(pinned.AssetError, match="pip is configured to ask no index"):
        assets.enwik8()
    by_hand = home / "data" / "assets" / "wheels" / source.name
    by_hand.parent.mkdir()
    by_hand.write_bytes(source.read_bytes()[:-1])
    with pytest.raises(pinned.AssetError, match=rf"wheels/{source.name}: sha256 is .* expected"):
        assets.enwik8()
    by_hand.write_bytes(source.read_bytes())
    assert assets.enwik8().read_bytes() == CONTENT


def test_a_member_that_is_not_in_the_archive_is_named(source, home, monkeypatch):
    (home / "data" / "assets" / "wheels").mkdir(parents=True)
    (home / "data" / "assets" / "wheels" / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(
        assets, "ENWIK8", replace(assets.ENWIK8, member="tiny_source-1.0/data/other")
    )
    with pytest.raises(
        pinned.AssetError, match=r"cannot take tiny_source-1\.0/data/other out of it: .*not found"
    ):
        assets.enwik8()
    assert left_in(home) == set()


def test_without_an_index_of_his_own_a_user_asks_pips():
    from pip._internal.models.index import PyPI

    env = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")} | {
        "PIP_CONFIG_FILE": os.devnull
    }
    done = subprocess.run(
        [sys.executable, "-c", package_index.PIP_INDEX], capture_output=True, text=True, env=env
    )
    assert json.loads(done.stdout) == [PyPI.simple_url, True]


def test_what_an_index_s_address_holds_is_not_told(monkeypatch, tmp_path):
    server = http.server.HTTPServer(
        ("127.0.0.1", 0), http.server.BaseHTTPRequestHandler
    )  # answers 501 to all
    threading.Thread(target=server.handle_request).start()
    monkeypatch.setattr(
        package_index,
        "_pip_index",
        lambda: (f"http://bob:s3cret@127.0.0.1:{server.server_port}", True),
    )
    with pytest.raises(
        pinned.AssetError, match=r"could not be downloaded \(HTTPError, 501\)"
    ) as error:
        package_index.fetch(assets.ENWIK8, tmp_path)
    server.server_close()
    assert "s3cret" not in "".join(traceback.format_exception(error.value))
