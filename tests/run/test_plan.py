"""The planner: counts against recorded runs, what is refused before a run, and that nothing is measured in vain."""

import json
import math
import re
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook
from test_costs import SMOLLM2
from transformers import LlamaConfig, Qwen2Config

from saelib.__main__ import main
from saelib.config import ConfigError, CorpusConfig
from saelib.run import costs, plan
from saelib.run.jobs import jobs_of
from saelib.run.source_notebooks import parameters, tags

ROOT = Path(plan.__file__).parents[2]
RECORDED = ROOT / "data" / "recorded"
TINY = LlamaConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, vocab_size=256
)
Usage = namedtuple("Usage", "total used free")


def groups_of(profile: str) -> dict[str, list[plan.Group]]:
    """What the planner expects of every notebook of a shipped profile, on SmolLM2's blocks."""
    jobs = {job.name: job for job in jobs_of(profile)}
    return {name: make(jobs[name].values, 30) for name, make in plan.GROUPS.items()}


@pytest.fixture
def small(home, tmp_path):
    """A workbook with notebook 01's own parameters over a tiny model and text, and nothing in its cell."""
    source = nbformat.read(ROOT / "notebooks" / "01_collect.ipynb", as_version=4)
    cells = [
        new_code_cell(c.source, metadata=c.metadata)
        for c in source.cells
        if "parameters" in tags(c)
    ]
    nbformat.write(
        new_notebook(cells=[*cells, new_code_cell("print(profile)")]),
        home / "notebooks" / "01_collect.ipynb",
    )
    TINY.save_pretrained(tmp_path / "model")
    (tmp_path / "text").mkdir()
    for i in range(40):
        (tmp_path / "text" / f"{i}.txt").write_text(
            "word " * 420
        )  # 2,100 characters: 500 tokens, three contexts
    common = {
        "model": str(tmp_path / "model"),
        "source": "text",
        "path": str(tmp_path / "text"),
        "device": "cpu",
    }
    (home / "notebooks" / "profiles" / "p.yaml").write_text(json.dumps({"common": common}))
    return home


# --- counts ----------------------------------------------------------------------------------------------------------


def counted(profile: str, notebook: str) -> tuple[tuple[float, float], tuple[int, int]]:
    """(SAEs, training tokens) of a notebook as planned and as recorded, but for those that no table lists."""
    groups = [
        g
        for g in groups_of(profile)[notebook]
        if g.tokens and g.what not in (plan.DEEP, plan.NOISE)
    ]
    found = pd.read_csv(RECORDED / profile / "results.csv")
    found = found[found["notebook"] == notebook]
    mine = {
        (g.batch, n)
        for g in groups
        for n in range(g.tokens - g.tokens % g.batch - g.batch, g.tokens + g.batch + 1)
    }
    found = found[
        [key in mine for key in zip(found["batch_size"], found["tokens_trained"], strict=True)]
    ]
    planned = sum(g.count for g in groups), sum(g.count * g.tokens for g in groups)
    return planned, (len(found), found["tokens_trained"].sum())


@pytest.mark.parametrize("profile", ["default", "full"])
def test_counts_and_training_tokens_are_those_of_the_recorded_run(profile):
    each = [counted(profile, notebook) for notebook in plan.GROUPS]
    for (
        planned,
        found,
    ) in each:  # a search for an L0 has an expected length: a notebook of few curves may be off
        assert planned == pytest.approx(found, rel=0.2)
    planned, found = (np.sum([pair[i] for pair in each], axis=0) for i in (0, 1))
    assert planned == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("profile", ["default", "full"])
def test_notebook_02_searches_for_nothing_so_its_count_is_exact(profile):
    found = pd.read_csv(RECORDED / profile / "results.csv")["notebook"].value_counts()
    assert (
        sum(g.count for g in groups_of(profile)["02_train_sae"] if g.tokens)
        == found["02_train_sae"]
    )


def test_more_seeds_and_sites_are_more_saes_and_refine_adds_to_searches():
    jobs = {job.name: job for job in jobs_of("smoke")}
    p = jobs["03_train_gated"].values
    count = lambda **more: sum(g.count for g in plan.train_gated(p | more, 30))  # noqa: E731
    assert count(seeds=[0, 1, 2]) == pytest.approx(3 * count(seeds=[0]))
    assert count(refine=2) > count(refine=0)
    assert count(lengths=[1.0]) < count(lengths=[0.5, 1.0])


# --- text and model --------------------------------------------------------------------------------------------------


def test_a_page_gives_whole_contexts_and_a_tail_where_it_is_long_enough():
    cfg = CorpusConfig(ctx_len=128, min_ctx_len=16)
    assert [plan._kept(n, cfg, 0) for n in (10, 16, 100, 128, 140, 300)] == [
        0,
        16,
        100,
        128,
        128,
        300,
    ]
    assert plan._kept(300, cfg, 1) == 128
    assert [plan._kept(n, CorpusConfig(ctx_len=128), 0) for n in (100, 300)] == [0, 256]


def test_fever_s_100_000_pages_are_assumed_to_be_10_million_tokens():
    cfg = CorpusConfig(
        source="fever", path="fever/fever", n_docs=100_000, min_ctx_len=16, contexts_per_page=0
    )
    text = plan._estimated(cfg, 1)
    assert text.split == pytest.approx([7e6, 1e6, 2e6])
    assert text.said == "100,000 pages of 100 tokens, assumed"


def test_local_pages_are_sampled_and_few_are_counted(small):
    made = plan.make_plan("p", rate=1e12)
    assert made["tokens"]["in all"] == pytest.approx(40 * 2 * 128)  # two of a page's three contexts
    assert made["tokens"]["known"] == "40 pages of 500 tokens, as the first 40 have"


def test_a_text_elsewhere_of_unknown_size_is_refused_naming_what_to_set():
    with pytest.raises(ConfigError, match=r"path = 'who/knows': unknown pages, .*; set n_docs"):
        plan._estimated(CorpusConfig(source="dataset", path="who/knows"), 0)


def test_an_unknown_model_is_one_sentence():
    with pytest.raises(
        ConfigError, match=r"model = 'nobody/nothing': no dimensions.*local folder.*Llama-2-7b"
    ) as error:
        plan.model_of("nobody/nothing")
    assert "\n" not in str(error.value)


def test_llama_2_needs_no_network_and_says_that_it_was_not_opened():
    config, said = plan.model_of("meta-llama/Llama-2-7b-hf")
    assert costs.lm_weights(costs.shape_of(config)) == 6_738_149_376
    assert "published dimensions" in said


# --- rates -----------------------------------------------------------------------------------------------------------


def test_twice_the_stated_rate_halves_a_forward_and_a_step_but_for_its_launches():
    slow, fast = (plan.stated(SMOLLM2, 128, rate) for rate in (1e12, 2e12))
    assert fast.block == pytest.approx(slow.block / 2)
    steps = [r.step(2304, 512, False, False) - plan.LAUNCH for r in (slow, fast)]
    assert steps[1] == pytest.approx(steps[0] / 2)
    assert slow.step(2304, 512, False, True) > slow.step(2304, 512, False, False)


@pytest.mark.parametrize("rate", ["0", "-1e12", "nan"])
def test_a_rate_that_is_none_is_refused(rate, caplog):
    assert main(["plan", "--profile", "smoke", f"--rate={rate}"]) == 2
    assert "expected operations a second" in caplog.text


def test_rates_are_measured_once_a_shape_at_the_l0_that_is_meant(monkeypatch):
    calls = []
    monkeypatch.setattr(plan, "_seconds", lambda call, *_: calls.append(call()) or 1e-3)
    rates = plan.measured(TINY, 16, torch.device("cpu"), torch.float32)
    first = len(calls)
    assert rates.step(512, 64, False, False) == rates.step(512, 64, False, False) == 1e-4
    assert len(calls) == first + 1
    assert rates.block == pytest.approx(1e-3 / 2 / 1024)
    trainers = []
    monkeypatch.setattr(plan.Trainer, "step_", lambda self, x: trainers.append((self, x)))
    rates.step(600, 512, True, False)
    trainer, x = trainers[0]
    assert float(trainer.sae.gate_open(x).sum(1).float().mean()) == pytest.approx(
        plan.ACTIVE, rel=0.1
    )


def test_a_large_step_is_measured_in_part_on_a_cpu_and_scaled(monkeypatch):
    monkeypatch.setattr(plan, "_seconds", lambda call, *_: 1.0)
    assert plan._step_seconds(
        torch.device("cpu"), 4096, 16384, 4096, False, False
    ) == pytest.approx(16384 / (3 * 10**6 // 4096) * 4096 / 512 / 10)


# --- the plan --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["smoke", "default", "full", "enwik8", "llama2-7b"])
def test_every_shipped_profile_can_be_planned_without_network(profile, home, caplog):
    (home / "data").mkdir(exist_ok=True)
    (home / "data" / "assets").symlink_to(ROOT / "data" / "assets")
    shutil.copytree(ROOT / "notebooks", home / "notebooks", dirs_exist_ok=True)
    caplog.set_level("INFO", "saelib")
    assert main(["plan", "--profile", profile, "--rate", "400e12"]) == 0
    made = plan.make_plan(profile, rate=400e12)
    assert list(made["SAEs"])[:4] == list(plan.GROUPS)
    assert made["SAEs"]["tokens trained"] > 1e6
    for word in (
        "tokens",
        "disk, GB",
        "memory, GB",
        "operations",
        "minutes at",
        "a card of 24 GB",
        "a card of 141 GB",
    ):
        assert word in caplog.text


def test_llama2_7b_takes_82_gb_a_site_in_two_bytes_and_half_in_one(home):
    shutil.copytree(ROOT / "notebooks", home / "notebooks", dirs_exist_ok=True)
    made = plan.make_plan("llama2-7b", overrides={"store_dtype": "bfloat16"}, rate=400e12)
    disk = made["disk, GB"]
    assert disk["a site"] == pytest.approx(10e6 * (2 * 4096 + 8) / 1e9)
    assert disk["a site in 8 bits"] == pytest.approx(10e6 * (4096 + 12) / 1e9)
    assert disk["store"] == pytest.approx(10e6 * (3 * (2 * 4096 + 4) + 4) / 1e9)
    cards = [made[f"a card of {gb} GB"]["SAEs at once"] for gb in plan.CARDS]
    assert cards[0] < cards[1] < cards[2]


def test_a_disk_too_small_stops_a_run_before_anything_starts_and_names_the_parameter(
    small, monkeypatch, caplog
):
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 10**6))
    assert main(["run", "--profile", "p"]) == 2
    assert "does not fit on the disk" in caplog.text
    assert "most is store" in caplog.text
    assert "contexts_per_page" in caplog.text
    assert not (small / "data" / "p" / "notebooks").exists()
    assert main(["plan", "--profile", "p", "--rate", "1e12"]) == 0  # asked for a plan, one is given


def test_a_finished_store_is_not_counted_again_and_a_part_of_one_is_taken_off(small):
    whole = plan.make_plan("p", rate=1e12)["disk, GB"]["store"]
    store = small / "data" / "p" / "store"
    (store / "site_01").mkdir(parents=True)
    (store / "site_01" / "shard_00000.safetensors").write_bytes(b"x" * 1_000_000)
    assert plan.make_plan("p", rate=1e12)["disk, GB"]["store"] == pytest.approx(whole - 1e-3)
    (store / "manifest.json").write_text("{}")
    (store.parent / "workspace.json").write_text('{"corpus": {}}')
    assert plan.make_plan("p", rate=1e12)["disk, GB"]["store"] == 0


def test_a_store_s_own_tokens_are_counted_where_it_is_of_this_text(small, monkeypatch):
    values = {"source": "text", "path": str(small / "text"), "contexts_per_page": 2}
    (small / "data" / "p" / "store").mkdir(parents=True)
    (small / "data" / "p" / "workspace.json").write_text(
        json.dumps({"corpus": CorpusConfig(**values).to_dict()})
    )
    (small / "data" / "p" / "store" / "manifest.json").write_text("{}")

    tokens = {"page": np.array([0, 0, 0, 1, 2]), "split": np.array([0, 0, 0, 1, 2])}
    monkeypatch.setattr(plan.Store, "open", lambda *_, **__: SimpleNamespace(tokens=tokens))
    p = parameters(small / "notebooks" / "01_collect.ipynb") | {"profile": "p"} | values
    text = plan.text_of(p, 0)
    assert (text.split, text.said) == ([3, 1, 1], "counted")


def test_memory_that_is_short_is_told_with_what_to_change():
    disk = dict.fromkeys(("store", "SAEs", "depths", "in all"), 0.0) | {"free": 1.0}
    memory = {"device": 100.0, "device has": 80.0, "host": 10.0, "host has": 64.0}
    told = plan.misfits(disk, memory)
    assert list(told) == ["device memory"]
    assert "lower n_latents" in told["device memory"]
    assert next(plan.brief({"will not fit": told})).startswith(
        "plan: will not fit: device memory 100 GB, 80 there"
    )


def test_streaming_stores_held_out_pages_alone(small):
    whole = plan.make_plan("p", rate=1e12)["disk, GB"]
    assert whole["store when streaming"] == pytest.approx(0.3 * whole["store"], rel=0.01)


def test_a_smaller_card_streams_with_more_passes(small):
    every = [plan.Group("sweep", 60, (2, 16, 31), 20_000_000, 4096, 32768, 0.1)]
    shape, first = (
        costs.shape_of(LlamaConfig()),
        {"ctx_len": 128, "batch_tokens": 16384, "stream_tokens": 0},
    )
    rates, text = plan.stated(shape, 128, 400e12), plan.Text([7e6, 1e6, 2e6], 0, "")
    about = (80e9, 2, "bfloat16")
    p = plan.Profile(small, first, (2, 16, 31), every, (), shape, text, rates, *about)
    cards = {size: plan.card_of(p, size, 1.0) for size in (16, 24, 80)}
    assert cards[16] == {"SAEs at once": 0}
    assert cards[24]["SAEs at once"] < cards[80]["SAEs at once"]
    passes = {size: cards[size]["passes over the training text"] for size in (24, 80)}
    assert passes[24] > passes[80] >= 20 / 7
    assert (
        cards[24]["hours streaming"]
        > cards[80]["hours streaming"]
        > cards[80]["hours from a store, at that rate"]
    )


def test_run_prints_the_plan_first_and_measures_nothing_where_all_is_finished(
    small, monkeypatch, caplog
):
    caplog.set_level("INFO", "saelib")
    assert main(["run", "--profile", "p"]) == 0
    assert re.search(
        r"plan: tokens: .*plan: minutes at rates measured on cpu.*=== 01_collect",
        caplog.text,
        re.DOTALL,
    )
    caplog.clear()
    monkeypatch.setattr(plan, "measured", lambda *_: pytest.fail("measured for a finished profile"))
    assert main(["run", "--profile", "p"]) == 0
    assert "plan:" not in caplog.text
    assert main(["plan", "--profile", "p"]) == 0
    assert "nothing to plan: all of it is finished" in caplog.text


def test_a_model_that_cannot_be_planned_with_does_not_stop_a_run(small, caplog):
    caplog.set_level("INFO", "saelib")
    assert main(["run", "--profile", "p", "--set", "model=nobody/nothing"]) == 0
    assert "no plan: model = 'nobody/nothing'" in caplog.text


def test_a_setting_for_one_notebook_reaches_its_plan(small):
    one, two = (
        plan.make_plan("p", (), {"contexts_per_page": n}, 1e12)["tokens"]["train"] for n in (1, 2)
    )
    assert two == pytest.approx(2 * one)


def test_streaming_adds_the_forwards_of_its_passes_to_what_a_store_would_take(home):
    shutil.copytree(ROOT / "notebooks", home / "notebooks", dirs_exist_ok=True)
    stored, live = (
        plan.make_plan("llama2-7b", ["01", "02"], {"stream_tokens": n}, 400e12) for n in (0, 65536)
    )
    tokens = sum(
        math.ceil(g.count / 25) * g.tokens  # so many fit in 80 GB beside the model
        for g in plan.train_sae(jobs_of("llama2-7b", ["02"])[0].values, 32)
    )
    forward = costs.forward_flops(costs.shape_of(LlamaConfig()), 31, 128)  # of a token, to site -2
    assert live["operations"]["02 stream"] == pytest.approx(tokens * forward)
    assert "02 stream" not in stored["operations"]
    hours = [made["a card of 80 GB"]["hours from a store, at that rate"] for made in (stored, live)]
    assert 0 < hours[0] - hours[1] < 0.2  # but for the rows that are not stored
    assert (
        live["minutes at 4e+14 operations a second (55% in forwards, 10% in steps)"]["in all"]
        > 60 * hours[1]
    )


def test_a_family_with_a_type_for_each_layer_is_measured_too():
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = Qwen2Config(num_hidden_layers=4, vocab_size=256, **sizes)
    assert plan._forward_seconds(config, 16, torch.device("cpu"), torch.float32) > (0, 0)


def test_fewer_latents_than_are_thought_active_can_be_planned(monkeypatch):
    monkeypatch.setattr(plan, "_seconds", lambda call, *_: call() and 1.0)
    assert plan._step_seconds(torch.device("cpu"), 64, 32, 64, True, False) > 0


@pytest.mark.parametrize(
    ("content", "tell"),
    [("", "unknown pages"), ('{"text": "short"}', "0 tokens in contexts of 128")],
)
def test_a_text_without_a_context_is_refused_and_a_run_goes_on_without_a_plan(
    small, content, tell, caplog
):
    caplog.set_level("INFO", "saelib")
    (small / "notebooks" / "few.jsonl").write_text(content)
    text = [
        "--set",
        "source=jsonl",
        "--set",
        "path=few.jsonl",
    ]  # relative to the notebooks, as for them
    assert main(["plan", "--profile", "p", *text]) == 2
    assert "path = 'few.jsonl'" in caplog.text
    assert tell in caplog.text
    assert main(["run", "--profile", "p", *text]) == 0
    assert "no plan: path = 'few.jsonl'" in caplog.text


def test_streaming_counts_what_it_stores_and_its_buffers(home):
    shutil.copytree(ROOT / "notebooks", home / "notebooks", dirs_exist_ok=True)
    settings = {"stream_tokens": 65536, "stream_held_out": 256, "stream_contexts": 1024}
    made = plan.make_plan("llama2-7b", ["01", "02"], settings, 400e12)
    rows = (1024 + 2 * 256) * 128
    assert made["disk, GB"]["store"] == pytest.approx(rows * (3 * (2 * 4096 + 4) + 4) / 1e9)
    assert made["memory, GB"]["buffers"] == pytest.approx(2 * 65536 * 3 * 4096 * 2 / 1e9)


def test_a_buffer_smaller_than_eight_batches_is_refused_before_anything_is_collected(home, caplog):
    shutil.copytree(ROOT / "notebooks", home / "notebooks", dirs_exist_ok=True)
    assert main(["collect", "--profile", "llama2-7b", "--set", "stream_tokens=4096"]) == 2
    assert (
        "01_collect: stream_tokens = 4096: expected 0 or at least 32768, 8 batches" in caplog.text
    )
