"""What is installed is pinned and checked by hash; an index given for torch serves torch alone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import install  # noqa: E402

FILES = ("requirements.txt", "requirements-torch.txt", "requirements-cuda.txt")
ENTRY = re.compile(
    r"^(?P<name>[\w.-]+)==(?P<version>[\w.]+)(?: ; [^\n\\]+)?"
    r"(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n",
    re.MULTILINE,
)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str) -> dict[str, str]:
    text = (ROOT / file).read_text(encoding="utf-8")
    return {canonical(match["name"]): match["version"] for match in ENTRY.finditer(text)}


@pytest.mark.parametrize("file", FILES)
def test_every_line_is_a_version_with_its_hashes(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    assert re.fullmatch(r"(#[^\n]*\n)*", ENTRY.sub("", text))
    assert pins(file)


def test_the_files_hold_the_versions_that_requirements_in_states():
    text = (ROOT / "requirements.in").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    stated = {canonical(name): version for name, version in (line.split("==") for line in lines)}
    locked = [pins(file) for file in FILES]
    together = {name: version for file in locked for name, version in file.items()}
    assert len(together) == sum(map(len, locked))  # each in one file
    assert {name: together.get(name) for name in stated} == stated
    assert list(locked[1]) == ["torch"]


@pytest.fixture
def calls(monkeypatch):
    """What `install` asks of pip; nothing is installed."""
    asked = []
    monkeypatch.setattr(install, "pip", lambda *arguments: asked.append(list(arguments)))
    monkeypatch.setattr(install, "installed_torch", lambda: None)
    monkeypatch.setattr(install, "needs_cuda_packages", lambda: True)
    return asked


def requirement_file(call: list[str]) -> str:
    return call[call.index("-r") + 1] if "-r" in call else ""


def test_every_package_is_installed_with_its_hash_required(calls):
    assert install.main([]) == 0
    from_files = [call for call in calls if requirement_file(call)]
    assert sorted(map(requirement_file, from_files)) == sorted(FILES)
    assert all("--require-hashes" in call for call in from_files)
    others = [call[0] for call in calls if call not in from_files]
    assert others == ["download", "install"]  # the choice of torch; this package


def test_an_index_for_torch_serves_torch_alone_and_is_no_extra_one(calls, capsys):
    assert install.main(["--torch-index", "file:///builds"]) == 0
    (named,) = [call for call in calls if "file:///builds" in call]
    assert named[-3:] == ["--index-url", "file:///builds", install.torch_pin()]
    assert not any("--extra-index-url" in call for call in calls)
    assert calls.index(named) > 0  # what it needs besides is there before, with hashes
    assert "not checked against known hashes" in capsys.readouterr().out
    assert "--extra-index-url" not in (ROOT / "Makefile").read_text(encoding="utf-8")


def wheel(folder: Path, name: str, content: bytes) -> Path:
    file = folder / f"{name}-1.0-py3-none-any.whl"
    file.write_bytes(content)
    return file


def test_a_file_that_is_not_the_one_of_the_hash_is_refused(tmp_path, monkeypatch, capfd):
    wheel(tmp_path, "torch", b"another build, or a damaged one")
    (tmp_path / "requirements-torch.txt").write_text(f"torch==1.0 --hash=sha256:{'0' * 64}\n")
    monkeypatch.setattr(install, "ROOT", tmp_path)
    with pytest.raises(subprocess.CalledProcessError):
        install.pip(
            *("install", "--no-index", "--find-links", str(tmp_path), "--target", str(tmp_path)),
            *(*install.CHECKED, "-r", "requirements-torch.txt"),
        )
    assert "DO NOT MATCH THE HASHES" in capfd.readouterr().err


def test_a_pip_that_fails_ends_with_its_command(monkeypatch, capsys):
    def fail(command, **_):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(install.subprocess, "run", fail)
    assert install.main([]) == 1
    assert "error: pip install --quiet --no-deps --require-hashes" in capsys.readouterr().out
