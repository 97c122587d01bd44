"""The planner: its words, what is refused before a run, and that nothing is measured in vain."""

import json
import math
import re
import shutil
from collections import namedtuple
from pathlib import Path

import nbformat
import pytest
from helpers.models import llama_config
from nbformat.v4 import new_code_cell, new_notebook
from transformers import LlamaConfig

from saelib.__main__ import main
from saelib.config import ConfigError
from saelib.run import costs, plan, room
from saelib.run.source_notebooks import tags

ROOT = Path(plan.__file__).parents[2]
RECORDED = ROOT / "data" / "recorded"
TINY = llama_config(width=64, inner=96, vocabulary=256)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def small(home, tmp_path):
    """A workbook with notebook 01's own parameters over a tiny model and text, and no work."""
    source = nbformat.read(ROOT / "notebooks" / "01_collect.ipynb", as_version=4)
    cells = [
        new_code_cell(cell.source, metadata=cell.metadata)
        for cell in source.cells
        if "parameters" in tags(cell)
    ]
    notebook = new_notebook(cells=[*cells, new_code_cell("print(profile)")])
    nbformat.write(notebook, home / "notebooks" / "01_collect.ipynb")
    TINY.save_pretrained(tmp_path / "model")
    (tmp_path / "text").mkdir()
    for i in range(40):  # pages of 2,100 characters: 500 tokens, three contexts
        (tmp_path / "text" / f"{i}.txt").write_text("word " * 420)
    common = {
        "model": str(tmp_path / "model"),
        "source": "text",
        "path": str(tmp_path / "text"),
        "device": "cpu",
    }
    (home / "notebooks" / "profiles" / "p.yaml").write_text(json.dumps({"common": common}))
    return home


@pytest.fixture
def shipped(home):
    """A workbook with the shipped notebooks and profiles, the embedded model and text."""
    shutil.copytree(ROOT / "notebooks", home / "notebooks", dirs_exist_ok=True)
    (home / "data").mkdir(exist_ok=True)
    (home / "data" / "assets").symlink_to(ROOT / "data" / "assets")
    (home / "data" / "recorded").symlink_to(RECORDED)
    return home


# --- model -------------------------------------------------------------------------------------


def test_an_unknown_model_is_one_sentence():
    message = r"model = 'nobody/nothing': no dimensions.*local folder.*Llama-2-7b"
    with pytest.raises(ConfigError, match=message) as error:
        plan.model_of("nobody/nothing")
    assert "\n" not in str(error.value)


def test_llama_2_needs_no_network_and_says_that_it_was_not_opened():
    config, label = plan.model_of("meta-llama/Llama-2-7b-hf")
    assert costs.lm_weights(costs.shape_of(config)) == 6_738_149_376
    assert "published dimensions" in label


@pytest.mark.parametrize("rate", ["0", "-1e12", "nan"])
def test_a_rate_that_is_none_is_refused(rate, caplog):
    assert main(["plan", "--profile", "smoke", f"--rate={rate}"]) == 2
    assert "expected operations a second" in caplog.text


# --- words -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (40, "40 s"),
        (89, "89 s"),
        (540, "9 min"),
        (5990, "100 min"),
        (11_520, "3.2 h"),
    ],
)
def test_a_time_is_said_as_a_person_says_it(seconds, words):
    assert plan.duration(seconds) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(999.0, "999"), (16.8e6, "16.8 million"), (5.27e13, "52.7 trillion"), (2e18, "2 quintillion")],
)
def test_a_large_number_is_said_in_words(number, words):
    assert plan.large(number) == words


def test_sizes_have_one_decimal_and_a_little_is_not_nothing():
    assert [plan.gigabytes(size) for size in (0, 1e6, 1.24e9)] == [
        "0.0 GB",
        "under 0.1 GB",
        "1.2 GB",
    ]


def test_counts_have_their_noun():
    assert [plan.count(n, "SAE") for n in (1, 164.2)] == ["1 SAE", "164 SAEs"]


# --- the plan ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["smoke", "default", "full", "enwik8", "llama2-7b"])
def test_every_shipped_profile_can_be_planned_without_network(profile, shipped, caplog):
    caplog.set_level("INFO", "saelib")
    assert main(["plan", "--profile", profile, "--rate", "400e12"]) == 0
    training = re.findall(r"(0\d)_\w+: .*training \d+ SAEs?: ", caplog.text)
    assert {"02", "03", "04", "05"} <= set(training)
    for words in ("text: ", "in all: ", "disk: ", "memory: ", "a GPU of 24 GB", "a GPU of 141 GB"):
        assert words in caplog.text
    assert "e+" not in caplog.text


def test_llama2_7b_takes_82_gb_a_site_in_two_bytes_and_half_in_one(shipped):
    made = plan.make_plan("llama2-7b", ["01"], {"store_dtype": "bfloat16"}, 400e12).work
    assert made.disk.site == pytest.approx(10e6 * (2 * 4096 + 8))
    assert made.disk.site_int8 == pytest.approx(10e6 * (4096 + 12))
    assert made.disk.store == pytest.approx(10e6 * (3 * (2 * 4096 + 4) + 4))


def test_a_disk_too_small_stops_a_run_before_anything_starts_and_names_the_parameter(
    small, monkeypatch, caplog
):
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 10**6))
    assert main(["run", "--profile", "p"]) == 2
    assert "does not fit on the disk" in caplog.text
    assert "most is store" in caplog.text
    assert "contexts_per_page" in caplog.text
    assert not (small / "data" / "p" / "notebooks").exists()
    assert main(["plan", "--profile", "p", "--rate", "1e12"]) == 0  # asked for, one is given


def test_a_finished_store_is_not_counted_again_and_a_part_of_one_is_taken_off(small):
    def store_bytes():
        return plan.make_plan("p", rate=1e12).work.disk.store

    whole = store_bytes()
    store = small / "data" / "p" / "store"
    (store / "site_01").mkdir(parents=True)
    (store / "site_01" / "shard_00000.safetensors").write_bytes(b"x" * 1_000_000)
    assert store_bytes() == pytest.approx(whole - 1e6)
    (store / "manifest.json").write_text("{}")
    (store.parent / "workspace.json").write_text('{"corpus": {}}')
    assert store_bytes() == 0


def test_streaming_stores_held_out_pages_alone(small):
    disk = plan.make_plan("p", rate=1e12).work.disk
    assert disk.store_streaming == pytest.approx(0.3 * disk.store, rel=0.01)


def test_run_prints_the_plan_first_and_measures_nothing_where_all_is_finished(
    small, monkeypatch, caplog
):
    caplog.set_level("INFO", "saelib")
    assert main(["run", "--profile", "p"]) == 0
    order = r"plan: text: .*plan: in all: .*rates measured on cpu.*=== 01_collect"
    assert re.search(order, caplog.text, re.DOTALL)
    caplog.clear()
    monkeypatch.setattr(plan, "measured", lambda *_: pytest.fail("measured though finished"))
    assert main(["run", "--profile", "p"]) == 0
    assert "plan:" not in caplog.text
    caplog.clear()
    assert main(["plan", "--profile", "p"]) == 0
    (record,) = caplog.records
    assert record.getMessage() == "finished: 01_collect; nothing is left to do in data/p"


def test_a_model_that_cannot_be_planned_with_does_not_stop_a_run(small, caplog):
    caplog.set_level("INFO", "saelib")
    assert main(["run", "--profile", "p", "--set", "model=nobody/nothing"]) == 0
    assert "no plan: model = 'nobody/nothing'" in caplog.text


def test_a_setting_for_one_notebook_reaches_its_plan(small):
    one, two = (
        plan.make_plan("p", (), {"contexts_per_page": n}, 1e12).work.text.train for n in (1, 2)
    )
    assert two == pytest.approx(2 * one)


def test_streaming_adds_the_forwards_of_its_passes_to_what_a_store_would_take(shipped):
    stored, live = (
        plan.make_plan("llama2-7b", ["01", "02"], {"stream_tokens": n}, 400e12).work
        for n in (0, 65536)
    )
    tokens = sum(
        math.ceil(group.count / 25) * group.tokens  # so many fit in 80 GB beside the model
        for group in live.counts["02_train_sae"].groups
    )
    forward = costs.forward_flops(costs.shape_of(LlamaConfig()), 31, 128)  # of a token, to site -2
    streaming = live.stage("02_train_sae", "streaming").work
    assert streaming.operations == pytest.approx(tokens * forward)
    assert stored.stage("02_train_sae", "streaming") is None
    hours = [made.cards[1].hours_stored for made in (stored, live)]
    assert 0 < hours[0] - hours[1] < 0.2  # but for the rows that are not stored
    assert live.seconds > 3600 * hours[1]


@pytest.mark.parametrize(
    ("content", "tell"),
    [("", "0 pages"), ('{"text": "short"}', "0 tokens in contexts of 128")],
)
def test_a_text_without_a_context_is_refused_and_a_run_goes_on_without_a_plan(
    small, content, tell, caplog
):
    caplog.set_level("INFO", "saelib")
    (small / "notebooks" / "few.jsonl").write_text(content)
    # relative to the notebooks, as for them
    text = ["--set", "source=jsonl", "--set", "path=few.jsonl"]
    assert main(["plan", "--profile", "p", *text]) == 2
    assert "path = 'few.jsonl'" in caplog.text
    assert tell in caplog.text
    assert main(["run", "--profile", "p", *text]) == 0
    assert "no plan: path = 'few.jsonl'" in caplog.text


def test_streaming_counts_what_it_stores_and_its_buffers(shipped):
    settings = {"stream_tokens": 65536, "stream_held_out": 256, "stream_contexts": 1024}
    made = plan.make_plan("llama2-7b", ["01", "02"], settings, 400e12).work
    rows = (1024 + 2 * 256) * 128
    assert made.disk.store == pytest.approx(rows * (3 * (2 * 4096 + 4) + 4))
    assert made.memory.buffers == pytest.approx(2 * 65536 * 3 * 4096 * 2)


def test_a_buffer_smaller_than_eight_batches_is_refused_before_anything_is_collected(
    shipped, caplog
):
    assert main(["collect", "--profile", "llama2-7b", "--set", "stream_tokens=4096"]) == 2
    message = "01_collect: stream_tokens = 4096: expected 0 or at least 32768, 8 batches"
    assert message in caplog.text
