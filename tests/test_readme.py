"""The Python of README and docs/features.md runs as it stands, on a small workspace."""

import re
from pathlib import Path

import pytest
import torch
from helpers.workspaces import RECIPE, trained_profile

ROOT = Path(__file__).parents[1]


def python_blocks(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the lines of README take as given: rows x, and a profile with an SAE at a site."""
    home = tmp_path_factory.mktemp("home")
    rows = trained_profile(home, lambda ws: [ws.spec("plain", 2, lam=0.5, **RECIPE)])
    folder = home / "data" / "tiny" / "saes" / rows["run_id"].iloc[0]
    return home, str(folder), torch.randn(400, 32)


def test_every_block_runs_in_order(names, monkeypatch):
    home, folder, x = names
    monkeypatch.setenv("SAELIB_HOME", str(home))
    replaced = {  # the names of the workbook's own run, which a test does not have
        '"data/default/saes/<run_id>"': repr(folder),
        'saelib.open("default", site=15': 'saelib.open("tiny", site=2',
        "steer(1671": "steer(3",
        'Workspace("default")': 'Workspace("tiny")',
        '"The war ended in May 1945."': '"w1 w2 w3"',
        '"My favourite food is"': '"w1 w2"',
        "l0=32, arch": "l0=4, tokens=5_000, arch",
    }
    given = {"x": x}
    blocks = python_blocks("README.md")
    assert len(blocks) == 4
    for block in blocks:
        for old, new in replaced.items():
            block = block.replace(old, new)
        exec(block, given)
    assert given["x_hat"].shape == x.shape
    assert given["codes"].shape == (400, RECIPE["n_latents"])
    assert given["fitted"].l0 > 0


def test_the_page_on_features_runs_in_order(names, monkeypatch, tmp_path):
    home, _, _ = names
    monkeypatch.setenv("SAELIB_HOME", str(home))
    replaced = {
        'saelib.open("default", site=15, l0=32)': 'saelib.open("tiny", site=2)',
        'profile="default", site=15': 'profile="tiny", site=2',
        "707": "3",
        '"The war ended in May 1945."': '"w1 w2 w3"',
        '"My favourite place is"': '"w1 w2"',
    }
    given = {"folder": tmp_path / "theirs"}
    blocks = python_blocks("docs/features.md")
    assert len(blocks) == 6
    for block in blocks:
        for old, new in replaced.items():
            block = block.replace(old, new)
        exec(block, given)
    assert given["again"].sae.config.site == 2
    assert len(given["table"]) == RECIPE["n_latents"]
