"""An SAE goes to a hub with its card and comes back; the hub here is a local server."""

import json
import os
import subprocess
import sys
import threading

import pytest
import torch
from helpers.hub_server import serve
from helpers.published import random_sae, rows, weights, write_gemma_scope
from helpers.sealing import resealed

from saelib.sae import load_sae
from saelib.sae.formats import FormatError
from saelib.sae.formats.hub import push_to_hub, sent_files
from saelib.sae.origin import check_weights, digest, origin

ROW = {
    "model_id": "toy-model@12ab",
    "corpus_id": "7e5c",
    "fvu": 0.25,
    "fvu_sink": 0.5,
    "fvu_all": 0.3,
    "l0": 31.5,
    "loss_recovered": None,
}


@pytest.fixture
def folder(tmp_path):
    """A measured SAE as a run leaves it."""
    path = tmp_path / "sae"
    random_sae("gated").save(path)
    stated = {"model": "toy-model@12ab", "text": "7e5c", "site": 6, "weights": digest(path)}
    (path / "metrics.json").write_text(json.dumps({"row": ROW, "origin": stated}))
    (path / "train.json").write_text(json.dumps({"train": {"lam": 3.5, "lr": 0.01}}))
    (path / "history.csv").write_text("step\n")
    return resealed(path, "train.json", "history.csv")


@pytest.fixture
def hub(tmp_path):
    """The address of a local hub, and the folder that it keeps."""
    kept = tmp_path / "hub"
    server = serve(kept)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", kept
    server.shutdown()
    server.server_close()


def elsewhere(code, tmp_path, endpoint, *arguments):
    """Run code in a process that may use the hub at `endpoint`."""
    env = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": "hf_none",
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


PUSH = """
import sys
from saelib.sae.formats.hub import push_to_hub
print(push_to_hub(sys.argv[1], "someone/toy-sae", licence="mit"))
"""
PULL = """
import sys
from pathlib import Path
from saelib.sae.formats.hub import from_hub
from_hub("someone/toy-sae").save(Path(sys.argv[1]))
"""


def test_there_and_back(folder, hub, tmp_path):
    endpoint, kept = hub
    sent = elsewhere(PUSH, tmp_path, endpoint, folder)
    assert sent.stdout.strip().endswith("/someone/toy-sae"), sent.stderr
    repository = kept / "someone" / "toy-sae"
    names = {path.name for path in repository.iterdir()}
    files = {
        "config.json",
        "weights.safetensors",
        "metrics.json",
        "train.json",
        "seal.json",
        "README.md",
    }
    assert names == files
    card = (repository / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: saelib\n")
    got = elsewhere(PULL, tmp_path, endpoint, tmp_path / "back")
    assert got.returncode == 0, got.stderr
    back = load_sae(tmp_path / "back")
    assert torch.equal(back.reconstruct(rows()), load_sae(folder).reconstruct(rows()))


LOAD = """
import sys
from pathlib import Path
from saelib.sae.formats import load
load("hf://google/gemma-scope-2b-pt-res@main/layer_3/width_1k").save(Path(sys.argv[1]))
"""


def test_a_published_layout_from_the_hub(hub, tmp_path):
    endpoint, kept = hub
    published = kept / "google" / "gemma-scope-2b-pt-res" / "layer_3" / "width_1k"
    write_gemma_scope(published, weights())
    (published / "huge.bin").write_bytes(b"not asked for")
    got = elsewhere(LOAD, tmp_path, endpoint, tmp_path / "back")
    assert got.returncode == 0, got.stderr
    assert load_sae(tmp_path / "back").config.site == 4
    assert not list((tmp_path / "hf").rglob("huge.bin"))


def test_a_repository_that_is_none_and_a_hub_that_is_down(hub, tmp_path):
    endpoint, _ = hub
    got = elsewhere(PULL, tmp_path, endpoint, tmp_path / "back")
    assert "hf://someone/toy-sae@main: the hub does not give it (" in got.stderr
    got = elsewhere(PULL, tmp_path, "http://127.0.0.1:9", tmp_path / "back")
    assert "hf://someone/toy-sae@main: the hub does not give it (" in got.stderr
    assert not (tmp_path / "back").exists()


def test_the_card_says_model_site_text_recipe_metrics_and_licence(folder):
    card = sent_files(folder, "someone/toy-sae", "cc-by-4.0")["README.md"].decode()
    for line in (
        "license: cc-by-4.0",
        "| language model | toy-model@12ab |",
        "| site | 6 (0 is the embedding; ℓ the output of block ℓ − 1) |",
        "| text | 7e5c |",
        "| FVU, ordinary tokens | 0.25 |",
        "| FVU, first and sink tokens | 0.5 |",
        "| lam | 3.5 |",
        f"| SHA-256 of the weights | {digest(folder)} |",
        'sae = from_hub("someone/toy-sae")',
    ):
        assert line in card.splitlines()
    assert "loss recovered" not in card  # it has no value
    assert "license:" not in sent_files(folder, "a/b")["README.md"].decode()


def test_an_sae_that_is_not_measured_has_a_card_that_says_so(tmp_path):
    random_sae("sae").save(tmp_path)
    card = sent_files(tmp_path, "a/b")["README.md"].decode()
    assert "Not measured." in card
    assert "| language model | not recorded |" in card


def test_nothing_that_is_damaged_is_sent(folder):
    with pytest.raises(FormatError, match=r"licence = 'MIT License': expected an identifier"):
        push_to_hub(folder, "a/b", licence="MIT License")
    other = random_sae("gated")
    other.b_dec.add_(1)
    metrics = (folder / "metrics.json").read_text()
    other.save(folder)
    (folder / "metrics.json").write_text(metrics)
    resealed(folder)
    with pytest.raises(ValueError, match=r"SHA-256 .* metrics.json says .* not the weights that"):
        push_to_hub(folder, "a/b")
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"not a \(finished\) SAE folder"):
        push_to_hub(folder, "a/b")


def test_a_folder_says_where_it_comes_from(folder):
    assert origin(folder) == ("toy-model@12ab", "7e5c", 6, digest(folder))
    check_weights(folder)
    (folder / "metrics.json").write_text(json.dumps({"row": ROW}))  # as before there was an origin
    resealed(folder)
    assert origin(folder) == ("toy-model@12ab", "7e5c", 6, "")
    check_weights(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", {}, r"config\.json: site is missing"),
        ("config.json", {"site": "6"}, r"config\.json: site = '6': expected a whole number"),
        ("metrics.json", {"origin": 5}, r"metrics\.json: origin = 5: expected a mapping"),
        ("metrics.json", {"row": [1]}, r"metrics\.json: row = \[1\]: expected a mapping"),
        ("metrics.json", {"origin": {"weights": 5}}, r"weights = 5: expected a string"),
    ],
)
def test_a_folder_that_says_it_in_another_form_is_refused(folder, file, content, message):
    (folder / file).write_text(json.dumps(content))
    resealed(folder)
    with pytest.raises(ValueError, match=message):
        origin(folder)


def test_offline_is_one_sentence(folder):
    with pytest.raises(FormatError, match=r"^a/b: not sent \("):
        push_to_hub(folder, "a/b")
