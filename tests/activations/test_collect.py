"""Collection: the stored rows are the model's, and nothing leaves a wrong store."""

import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.collecting import CFG, SITES, VOCAB, make_lm
from helpers.folders import all_bytes
from helpers.models import count_tokens
from helpers.random_stores import LENGTHS, N_ROWS, held, make_contexts
from torch.testing import assert_close

from saelib.activations.collect import collect, length_batches
from saelib.activations.moments import row_moments
from saelib.activations.rows import ShuffledRows
from saelib.activations.shards import StoreError
from saelib.activations.store import Store
from saelib.config import CollectConfig, SAEConfig, TrainConfig
from saelib.sae import build_sae
from saelib.sae.group import train


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store collected without interruption."""
    return collect(
        make_lm(),
        make_contexts(),
        SITES,
        tmp_path_factory.mktemp("whole") / "s",
        CFG,
        progress=False,
    )


def test_rows_are_the_models_streams_of_each_context(whole):
    lm, contexts = make_lm(), make_contexts()
    assert whole.sites == (1, 2, 4)
    for context in range(contexts.n_contexts):
        rows = whole.context_rows(context)
        ids = torch.from_numpy(contexts.ids[rows].astype(np.int64))[None]
        with torch.no_grad():
            hidden = lm.model(ids, output_hidden_states=True).hidden_states
        for site in (1, 2):
            assert_close(
                whole.rows(site, np.arange(rows.start, rows.stop)),
                hidden[site][0],
                rtol=1e-5,
                atol=1e-6,
            )
        last = whole.rows(
            4, np.arange(rows.start, rows.stop)
        )  # site n is taken before the final norm
        assert_close(lm.model.model.norm(last), hidden[4][0], rtol=1e-5, atol=1e-5)


def test_a_batch_has_one_length_and_a_padded_one_its_longest_last():
    lengths = np.array([5, 2, 4, 6, 4, 5, 4, 6])

    def batches(*args, **kwargs):
        return [batch.tolist() for batch in length_batches(lengths, *args, **kwargs)]

    assert batches(8) == [[1], [2, 4], [6], [0], [5], [3], [7]]
    assert batches(12) == [[1], [2, 4, 6], [0, 5], [3, 7]]
    assert batches(1) == [[1], [2], [4], [6], [0], [5], [3], [7]]  # at least one context
    assert batches(12, pad=True) == [[1, 2, 4], [6, 0], [5, 3], [7]]
    assert sorted(c for batch in batches(10, pad=True) for c in batch) == list(range(8))


def test_padding_stays_out_of_what_is_stored(whole, tmp_path):
    padded = collect(
        make_lm(),
        make_contexts(),
        SITES,
        tmp_path / "s",
        replace(CFG, batch_tokens=24, pad=True),
        False,
    )
    every = np.arange(N_ROWS)
    for site in whole.sites:
        assert_close(padded.rows(site, every), whole.rows(site, every), rtol=1e-4, atol=1e-5)
    assert padded.store_id != whole.store_id


def test_the_store_says_what_it_is(whole):
    lm, contexts = make_lm(), make_contexts()
    assert (whole.model_id, whole.corpus_id) == (lm.model_id, contexts.corpus_id)
    assert whole.manifest["config"] == {"batch_tokens": 8, "shard_tokens": 8, "pad": False}
    assert whole.manifest["dtype"] == whole.manifest["compute_dtype"] == "float32"
    assert (
        sum(shard["rows"] for shard in whole.manifest["shards"])
        == whole.n_rows
        == N_ROWS
        == sum(LENGTHS)
    )


def test_rows_are_stored_in_the_models_dtype_unless_asked_otherwise(tmp_path, whole):
    lm, contexts = make_lm(dtype=torch.bfloat16), make_contexts()
    half = collect(lm, contexts, SITES, tmp_path / "bf16", CFG, progress=False)
    assert half.manifest["dtype"] == half.manifest["compute_dtype"] == "bfloat16"
    rows = half.rows(2, np.arange(N_ROWS))
    assert rows.dtype == torch.float32
    assert torch.equal(rows, rows.bfloat16().float())
    asked = CollectConfig(batch_tokens=8, shard_tokens=8, dtype="bfloat16")
    cast = collect(make_lm(), contexts, SITES, tmp_path / "cast", asked, progress=False)
    assert (cast.manifest["dtype"], cast.manifest["compute_dtype"]) == ("bfloat16", "float32")
    assert torch.equal(
        cast.rows(2, np.arange(N_ROWS)), whole.rows(2, np.arange(N_ROWS)).bfloat16().float()
    )


def test_rows_kept_in_8_bits_are_the_models_within_half_a_scale(tmp_path, whole):
    cfg = replace(CFG, dtype="int8")
    store = collect(make_lm(), make_contexts(), SITES, tmp_path / "s", cfg, progress=False)
    assert (store.manifest["dtype"], store.manifest["compute_dtype"]) == ("int8", "float32")
    for site in store.sites:
        rows, exact = (s.rows(site, np.arange(N_ROWS)) for s in (store, whole))
        half = torch.cat([shard["scale"] for shard in held(store, site)])[:, None] / 2
        assert half.max() < 2 * exact.abs().max() / 127 / 2
        assert ((rows - exact).abs() <= half * (1 + 1e-4)).all()
        assert np.array_equal(store.norm(site), whole.norm(site))  # of the rows as computed
        assert np.array_equal(store.token_class(site), whole.token_class(site))
    before = all_bytes(store.path)
    (store.path / "site_02" / "shard_00001.safetensors").unlink()
    collect(make_lm(), make_contexts(), SITES, store.path, cfg, progress=False)
    assert all_bytes(store.path) == before


def test_training_runs_on_rows_of_8_bits_as_on_the_models_own(tmp_path, whole):
    small = collect(
        make_lm(),
        make_contexts(),
        SITES,
        tmp_path / "s",
        replace(CFG, dtype="int8"),
        progress=False,
    )
    found = []
    for store in (whole, small):
        index = np.flatnonzero(store.mask("all", "train"))
        moments = row_moments(store, 2, index)
        sae = build_sae(SAEConfig(d_in=16, n_latents=32, site=2), torch.Generator().manual_seed(0))
        sae.set_normalizer_(moments.mean.float(), (16 / moments.mean_sq_dev) ** 0.5)
        history = train(
            sae,
            ShuffledRows(store, 2, index, 8, seed=0),
            TrainConfig(tokens=1600, batch_size=8, lam=0.1),
        )
        found.append(history.table[-1]["fvu"])
    assert found[0] < 0.3
    assert found[1] == pytest.approx(found[0], rel=0.05)


def test_a_finished_store_is_returned_without_a_forward(tmp_path, capsys):
    lm = make_lm()
    first = collect(lm, make_contexts(), SITES, tmp_path / "s", CFG, progress=False)
    seen, before = count_tokens(lm), all_bytes(first.path)
    capsys.readouterr()
    again = collect(lm, make_contexts(), SITES, tmp_path / "s", CFG, progress=False)
    assert (seen, capsys.readouterr().out) == ([], "")
    assert again.store_id == first.store_id
    assert all_bytes(first.path) == before


def test_only_missing_shards_are_collected_again(tmp_path, whole):
    lm, contexts = make_lm(), make_contexts()
    store = collect(lm, contexts, SITES, tmp_path / "s", CFG, progress=False)
    (store.path / "site_02" / "shard_00001.safetensors").unlink()  # contexts 1 and 2: 8 rows
    seen = count_tokens(lm)
    store = collect(lm, contexts, SITES, store.path, CFG, progress=False)
    assert sum(seen) == 8
    assert all_bytes(store.path) == all_bytes(whole.path)


CHILD = """
import os, pathlib, sys, time
from helpers.collecting import CFG, SITES, make_lm
from helpers.random_stores import make_contexts
from saelib.activations.collect import collect
from saelib.activations.lm import LM

where, folder = sys.argv[1:]
calls = 0

def blocking_at(n, original, before=lambda *args: None):
    def call(*args, **named):
        global calls
        calls += 1
        if calls == n:
            before(*args)
            print("blocked", flush=True)
            time.sleep(600)
        return original(*args, **named)
    return call

def half(path, data):
    with open(path, "wb") as file:
        file.write(data[: len(data) // 2])

# Writes: 1 is progress.jsonl, then three sites per shard, so the 9th is site 2 of shard 2; then
# two token files and the manifest.
if where == "forward":
    LM.capture = blocking_at(4, LM.capture)
elif where == "half a shard":
    pathlib.Path.write_bytes = blocking_at(9, pathlib.Path.write_bytes, half)
elif where == "manifest":
    os.replace = blocking_at(1 + 6 * 3 + 3, os.replace)
collect(make_lm(), make_contexts(), SITES, folder, CFG, progress=False)
"""


@pytest.mark.parametrize("where", ["forward", "half a shard", "manifest"])
def test_a_second_collector_waits_and_after_kill_9_goes_on_to_the_same_bytes(
    tmp_path, whole, where, caplog
):
    folder = tmp_path / "s"
    lm = make_lm()
    seen = count_tokens(lm)
    stores = []
    second = threading.Thread(
        target=lambda: stores.append(
            collect(lm, make_contexts(), SITES, folder, CFG, progress=False)
        )
    )
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, where, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            assert "blocked\n" in iter(child.stdout.readline, "")
            with pytest.raises(StoreError, match="unfinished"):
                Store.open(folder)
            half_way = all_bytes(folder)
            second.start()
            while "waiting" not in caplog.text and second.is_alive():
                time.sleep(0.01)
            holder = f"is being written by pid {child.pid} on host {socket.gethostname()}"
            assert f"{folder} {holder}: waiting for it" in caplog.text
            assert all_bytes(folder) == half_way
        finally:
            child.kill()  # SIGKILL
    assert child.returncode == -9
    second.join()
    assert all_bytes(folder) == all_bytes(whole.path)
    assert stores[0].store_id == whole.store_id
    # Shards of 6, 8, 5, 5, 6, 6 rows; forwards of 6 = 2 + 4, then 8, then 5 tokens: the 4th forward
    # is shard 2.
    assert sum(seen) == (0 if where == "manifest" else N_ROWS - 6 - 8)


def test_another_model_corpus_or_config_is_refused_before_any_forward(whole):
    lm, contexts = make_lm(), make_contexts()
    cases = [
        (make_lm(seed=1), contexts, SITES, CFG, "model_id = 'tiny@.*', not 'tiny@"),
        (lm, make_contexts(seed=1), SITES, CFG, "corpus_id"),
        (lm, contexts, (1, 2), CFG, r"sites = \[1, 2, 4\], not \[1, 2\]"),
        (
            lm,
            contexts,
            SITES,
            CollectConfig(batch_tokens=9, shard_tokens=8),
            "batch_tokens = 8, not 9",
        ),
        (
            make_lm(dtype=torch.bfloat16),
            contexts,
            SITES,
            CFG,
            "model_id|dtype = 'float32', not 'bfloat16'",
        ),
    ]
    before = all_bytes(whole.path)
    for model, texts, sites, cfg, message in cases:
        seen = count_tokens(model)
        with pytest.raises(StoreError, match=message):
            collect(model, texts, sites, whole.path, cfg, progress=False)
        assert seen == []
    assert all_bytes(whole.path) == before


@pytest.mark.parametrize("site", [5, -6, "late"])
def test_an_unknown_site_is_refused_before_anything_happens(tmp_path, site):
    lm = make_lm()
    seen = count_tokens(lm)
    with pytest.raises(ValueError, match=f"site {site!r}.*0 to 4"):
        collect(lm, make_contexts(), (1, site), tmp_path / "s", CFG)
    with pytest.raises(ValueError, match="no sites"):
        collect(lm, make_contexts(), (), tmp_path / "s", CFG)
    assert (seen, list(tmp_path.iterdir())) == ([], [])


def test_disk_need_is_printed_and_too_small_a_disk_refused_before_any_forward(tmp_path, capsys):
    lm = make_lm()
    collect(lm, make_contexts(), SITES, tmp_path / "s", CFG, progress=False)
    assert capsys.readouterr().out.startswith("activations: 0.00 GB to write, ")
    lm.d_model = 10**12  # 36 rows x 3 sites x 4 TB
    seen = count_tokens(lm)
    with pytest.raises(
        StoreError, match=r"needs 453600.00 GB of disk \(1.05 x the data\), [\d.]+ GB free"
    ):
        collect(lm, make_contexts(), SITES, tmp_path / "huge", CFG, progress=False)
    assert seen == []
    assert not list((tmp_path / "huge").glob("site_*"))


def test_an_activation_that_is_not_finite_is_refused_by_site_context_and_position(tmp_path):
    lm, contexts = make_lm(), make_contexts()
    contexts.ids[contexts.ids == VOCAB - 1] = 0
    contexts.ids[20] = VOCAB - 1  # contexts of 2, 4, 4, 4, 5: context 5 begins at row 19
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[VOCAB - 1] = float("nan")
    with pytest.raises(
        StoreError, match=r"site 0, context 5 \(page 'p0'\), position 1: .* not finite as float32"
    ):
        collect(lm, contexts, (0, 2), tmp_path / "s", CFG, progress=False)


def test_the_progress_bar_is_silent_where_nobody_looks(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("SAELIB_HEADLESS", raising=False)
    collect(make_lm(), make_contexts(), SITES, tmp_path / "a", CFG)
    assert "36/36" in capsys.readouterr().err
    collect(make_lm(), make_contexts(), SITES, tmp_path / "b", CFG, progress=False)
    monkeypatch.setenv("SAELIB_HEADLESS", "1")
    collect(make_lm(), make_contexts(), SITES, tmp_path / "c", CFG)
    assert capsys.readouterr().err == ""
