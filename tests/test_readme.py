"""The Python of README and docs/features.md runs as it stands, on a small workspace."""

import re
from pathlib import Path

import pytest
import torch
from helpers.chat_server import chat_server
from helpers.workspaces import RECIPE, trained_profile

import saelib
from saelib.measure.descriptions import examples_of

ROOT = Path(__file__).parents[1]


def python_blocks(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the lines of README take as given: rows x, and a profile with an SAE at a site."""
    home = tmp_path_factory.mktemp("home")
    rows = trained_profile(home, two_seeds)
    folder = home / "data" / "tiny" / "saes" / rows["run_id"].iloc[0]
    return home, str(folder), torch.randn(400, 32)


def two_seeds(ws):
    """A twin needs another SAE."""
    return [ws.spec("plain", 2, lam=0.5, seed=seed, **RECIPE) for seed in (0, 1)]


def run_blocks(page, replaced, given):
    """The blocks of a page, one after the other; returns how many there are."""
    blocks = python_blocks(page)
    for block in blocks:
        for old, new in replaced.items():
            block = block.replace(old, new)
        exec(block, given)
    return len(blocks)


def test_readme_runs_in_order(names, monkeypatch):
    home, folder, x = names
    monkeypatch.setenv("SAELIB_HOME", str(home))
    latent = describable(saelib.open("tiny", site=2).index)
    replaced = {  # the names of the workbook's own run, which a test does not have
        '"data/default/saes/<run_id>"': repr(folder),
        'saelib.open("default", site=15': 'saelib.open("tiny", site=2',
        "919": str(latent),
        'Workspace("default")': 'Workspace("tiny")',
        '"The war ended in May 1945."': '"w1 w2 w3"',
        '"My favourite food is"': '"w1 w2"',
        '"She left in 1945.", "By 1969 two men"': '"w1 w2", "w2 w3"',
        "l0=32, arch": "l0=4, tokens=5_000, arch",
    }
    given = {"x": x}
    assert run_blocks("README.md", replaced, given) == 4
    assert given["x_hat"].shape == x.shape
    assert given["codes"].shape == (400, RECIPE["n_latents"])
    assert given["fitted"].l0 > 0


def describable(index):
    """A latent that fires in some contexts and not in others."""
    return next(j for j in range(index.n_latents) if examples_of(index, j).firing)


def test_the_page_on_features_runs_in_order(names, monkeypatch, tmp_path):
    home, _, _ = names
    monkeypatch.setenv("SAELIB_HOME", str(home))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    latent = describable(saelib.open("tiny", site=2).index)
    replaced = {
        'saelib.open("default", site=15, l0=32)': 'saelib.open("tiny", site=2)',
        'profile="default", site=15': 'profile="tiny", site=2',
        "707": str(latent),
        '"The war ended in May 1945."': '"w1 w2 w3"',
        '"My favourite place is"': '"w1 w2"',
        '"She left in 1945.", "By 1969 two men"': '"w1 w2", "w2 w3"',
        '"exported"': repr(str(tmp_path / "theirs")),
    }
    given = {}
    with chat_server() as server:
        replaced["http://localhost:8000/v1"] = server.url
        assert run_blocks("docs/features.md", replaced, given) == 7
    assert len(server.asked) == 2
    assert given["again"].sae.config.site == 2
    assert len(given["table"]) == RECIPE["n_latents"]
