"""Live rows: those of a store without one, shared forwards, exact seek and resume."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from helpers.collecting import VOCAB, make_lm
from helpers.folders import all_bytes
from helpers.models import count_tokens
from helpers.random_stores import make_contexts
from helpers.workspaces import STREAMING, open_workspace, specs_over_sites, write_inputs

from saelib.activations.collect import collect
from saelib.activations.live import HELD, LiveBlocks, LiveRows, StreamError, stored_contexts
from saelib.activations.shards import StoreError
from saelib.config import (
    CollectConfig,
    ConfigError,
    EvalConfig,
    SAEConfig,
    StreamConfig,
    TrainConfig,
    stable_hash,
)
from saelib.run.training import schedule
from saelib.run.workspace import Workspace
from saelib.sae import build_sae
from saelib.sae.group import Run, train_together
from saelib.text.pages import SPLITS

D, SITES, BATCH = 16, (1, 2, 4), 8
COLLECT = CollectConfig(batch_tokens=24, shard_tokens=64)
CFG = StreamConfig(buffer_tokens=128, sample_contexts=20, seed=3)
LOUD, HELD_OUT = 7, VOCAB - 1  # a token that is a sink, and one that stands on held-out pages alone


def text():
    """90 contexts of 3 to 9 tokens on 12 pages."""
    rng = np.random.default_rng(0)
    lengths, page_of = np.sort(rng.integers(3, 10, 90)), rng.integers(0, 12, 90)
    split_of = [0, 0, 0, 0, 1, 2] * 2
    contexts = make_contexts(lengths.tolist(), page_of.tolist(), split_of, vocab=VOCAB - 1)
    held_out = contexts.offsets[:-1][contexts.split[contexts.page] > 0]
    contexts.ids[held_out + 1] = HELD_OUT
    return contexts


def model():
    lm = make_lm()
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[LOUD] *= 60
    return lm


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """The store of held-out pages and 20 training contexts."""
    contexts = text()
    chosen = contexts.select(stored_contexts(contexts, CFG))
    return collect(
        model(), chosen, SITES, tmp_path_factory.mktemp("sampled") / "s", COLLECT, progress=False
    )


def live(store, lm=None, journal=None, cfg=CFG):
    return LiveBlocks(lm or model(), text(), store, cfg, journal)


def walked(stream, batches):
    """The stream's next batches in one."""
    x, rows = zip(*(next(stream) for _ in range(batches)), strict=True)
    return torch.cat(x), np.concatenate(rows)


def tokens_of(blocks, numbers):
    return sum(int(np.diff(blocks.contexts.offsets)[blocks.contexts_of(i)].sum()) for i in numbers)


def test_the_store_keeps_held_out_pages_and_a_sample_of_training_contexts():
    contexts = text()
    split = contexts.split[contexts.page]
    chosen = stored_contexts(contexts, CFG)
    assert np.bincount(split[chosen]).tolist() == [20, *np.bincount(split).tolist()[1:]]
    few = stored_contexts(contexts, replace(CFG, held_out_contexts=3))
    assert np.bincount(split[few]).tolist() == [20, 3, 3]
    assert not np.array_equal(chosen, stored_contexts(contexts, replace(CFG, seed=4)))
    part = contexts.select(chosen)
    assert [part.tokens(i).tolist() for i in range(part.n_contexts)] == [
        contexts.tokens(i).tolist() for i in chosen.tolist()
    ]
    assert part.page.tolist() == contexts.page[chosen].tolist()
    assert part.corpus_id != contexts.corpus_id


@pytest.mark.parametrize("buffer", [9, 30, 128, 10_000])
def test_a_pass_is_cut_into_even_blocks_that_hold_each_training_context_once(sampled, buffer):
    contexts, blocks = text(), live(sampled, cfg=replace(CFG, buffer_tokens=buffer))
    training = np.flatnonzero(contexts.split[contexts.page] == 0)
    sizes = np.diff(contexts.offsets)
    passes = [
        [blocks.contexts_of(p * blocks.n_blocks + i) for i in range(blocks.n_blocks)]
        for p in range(3)
    ]
    for one in passes:
        assert np.array_equal(np.sort(np.concatenate(one)), training)
        assert max(int(sizes[block].sum()) for block in one) <= buffer
        if buffer == 128:
            assert min(int(sizes[block].sum()) for block in one) > buffer / 2
    orders = {tuple(np.concatenate(one)) for one in passes}
    assert len(orders) == 3


@pytest.mark.parametrize("tokens", ["ordinary", "all"])
def test_a_pass_hands_out_every_wanted_training_row_once_as_a_store_has_it(tmp_path, tokens):
    contexts, every = text(), replace(CFG, sample_contexts=1000)
    whole = collect(model(), contexts, SITES, tmp_path / "s", COLLECT, progress=False)
    wanted = np.flatnonzero(whole.mask(tokens, "train"))
    sinks = whole.mask("all", "train") & (whole.token_class(1) == 1)
    assert sinks.any()  # so that there is something to leave out beside position 0
    for site in SITES:
        blocks = LiveBlocks(model(), contexts, whole, every)
        stream = LiveRows(blocks, site, tokens, 1)
        for _ in range(2):
            x, rows = walked(stream, len(wanted))
            assert np.array_equal(np.sort(rows), wanted)
            assert not np.array_equal(rows, wanted)
            torch.testing.assert_close(x, whole.rows(site, rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("site", SITES)
def test_a_live_row_is_a_sink_above_five_medians_as_a_stored_one_is(sampled, site):
    medians = torch.tensor([0.5, 2.6, 4.99, 5.01, 9.9, 10.1])
    x = torch.zeros(len(medians), D)
    x[:, 3] = medians * sampled.median_norm(site)
    kept = live(sampled)._no_sink(site, x, np.arange(len(medians)))
    assert kept.tolist() == [True, True, True, False, False, False]


def test_no_row_of_a_held_out_page_is_handed_out_or_even_computed(sampled):
    lm, contexts, seen = model(), text(), []
    lm.model.register_forward_pre_hook(
        lambda _, __, named: seen.append(named["input_ids"].clone()), with_kwargs=True
    )
    stream = LiveRows(live(sampled, lm), 2, "all", BATCH)
    _, rows = walked(stream, 3 * contexts.n_tokens // BATCH)
    context = np.searchsorted(contexts.offsets, rows, side="right") - 1
    assert {SPLITS[s] for s in contexts.split[contexts.page[context]]} == {"train"}
    assert (contexts.ids == HELD_OUT).any()
    assert not any((ids == HELD_OUT).any() for ids in seen)


def test_rows_are_mixed_over_the_buffer(sampled):
    blocks = live(sampled)
    _, rows = next(LiveRows(blocks, 1, "ordinary", BATCH))
    assert set(rows) <= set(blocks.block(0).rows)
    assert (
        len(set(np.searchsorted(blocks.contexts.offsets, rows, side="right"))) > BATCH / 2
    )  # contexts


@pytest.mark.parametrize("tokens", ["ordinary", "all"])
def test_seeking_equals_walking(sampled, tokens):
    x, rows = walked(LiveRows(live(sampled), 2, tokens, BATCH), 120)  # over two passes
    for at in (0, 1, 17, 61, 100, 40):
        stream = LiveRows(live(sampled), 2, tokens, BATCH)
        stream.seek(at * BATCH)
        again, same = next(stream)
        assert torch.equal(again, x[at * BATCH : (at + 1) * BATCH])
        assert np.array_equal(same, rows[at * BATCH : (at + 1) * BATCH])
    assert live(sampled).find(120 * BATCH, tokens)[0] > 2 * live(sampled).n_blocks


def test_a_sample_depends_on_the_cursor_alone(sampled):
    def drawn(blocks, n=12):
        return LiveRows(blocks, 2, "ordinary", BATCH).sample(
            n, torch.Generator().manual_seed(1), 20 * BATCH
        )

    ahead = live(sampled)
    walked(LiveRows(ahead, 1, "ordinary", BATCH), 60)
    first = drawn(live(sampled))
    assert first.shape == (12, D)
    assert torch.equal(drawn(ahead), first)
    number, _ = ahead.find(20 * BATCH, "ordinary")
    assert number > 0
    block = ahead.block(number)
    ordinary = block.x[2][torch.from_numpy(block.orders["ordinary"])]
    assert torch.equal(
        drawn(ahead, 10**6).sort(0).values, ordinary.sort(0).values
    )  # no more than there are


def test_at_most_two_blocks_are_in_memory(sampled):
    blocks, held = live(sampled), []
    stream = LiveRows(blocks, 4, "all", BATCH)
    for _ in range(60):
        next(stream)
        held.append(len(blocks._held))
    assert max(held) == HELD == 2
    held = sum(x.nbytes for block in blocks._held.values() for x in block.x.values())
    assert held <= blocks.nbytes == 2 * 128 * len(SITES) * D * 4
    assert f"{blocks.n_blocks} blocks a pass" in blocks.summary()


# -- the file with the counts


def test_with_the_counts_only_the_block_that_was_reached_is_computed_again(sampled, tmp_path):
    path, at = tmp_path / "stream" / "counts.jsonl", 31 * BATCH
    stream = LiveRows(live(sampled, journal=path), 2, "ordinary", BATCH)
    walked(stream, 31)
    expected, number = next(stream)[0], live(sampled, journal=path).find(at, "ordinary")[0]
    assert number >= 2
    for journal, needed in ((path, [number]), (None, range(number + 1))):
        lm = model()
        blocks, seen = live(sampled, lm, journal), count_tokens(lm)
        resumed = LiveRows(blocks, 2, "ordinary", BATCH)
        resumed.seek(at)
        assert torch.equal(next(resumed)[0], expected)
        assert sum(seen) == tokens_of(blocks, needed)


def test_a_damaged_or_foreign_file_of_counts_is_named(sampled, tmp_path):
    path = tmp_path / "counts.jsonl"
    path.write_text("[0, 1")
    with pytest.raises(StreamError, match=r"counts\.jsonl: damaged .*delete it"):
        live(sampled, journal=path)
    path.write_text("[0, 5]\n")
    with pytest.raises(
        StreamError,
        match=r"counts\.jsonl: block 0 gave 5 rows, now \d+: the model computes otherwise",
    ):
        next(LiveRows(live(sampled, journal=path), 1, "ordinary", BATCH))


@pytest.mark.parametrize("edit", ["digit", "number", "lost hash", "twice"])
def test_an_edited_file_of_counts_is_refused_before_a_row_is_read(sampled, tmp_path, edit):
    """A count moves the row at which a killed run goes on; blocks passed are not counted again."""
    path = tmp_path / "counts.jsonl"
    walked(LiveRows(live(sampled, journal=path), 2, "ordinary", BATCH), 31)
    first, *rest = path.read_text().splitlines()
    number, count, _ = values = json.loads(first)
    edited = {
        "digit": [[number, count + 1, values[2]]],
        "number": [[number + 70, count, values[2]]],
        "lost hash": [[number, count, ""]],
        "twice": [values, [number, count + 1, stable_hash(number, count + 1)]],
    }
    path.write_text("\n".join([*map(json.dumps, edited[edit]), *rest]))
    with pytest.raises(StreamError, match=rf"{path}: damaged \(.*block.*; delete it: the blocks"):
        live(sampled, journal=path)


def test_counts_of_an_earlier_version_are_read_with_a_notice(sampled, tmp_path, caplog):
    path = tmp_path / "counts.jsonl"
    walked(LiveRows(live(sampled, journal=path), 2, "ordinary", BATCH), 31)
    counts = [json.loads(line)[:2] for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in counts))
    assert live(sampled, journal=path).counts == dict(counts)
    assert f"{path}: of an earlier version, has no hashes; read unchecked" in caplog.messages


# -- refusals


def test_another_model_a_small_buffer_and_a_value_not_finite_are_refused(sampled):
    with pytest.raises(StoreError, match="model_id"):
        live(sampled, make_lm(seed=1))
    with pytest.raises(
        ConfigError, match=r"buffer_tokens = 8: expected at least the longest context, 9 tokens"
    ):
        live(sampled, cfg=replace(CFG, buffer_tokens=8))
    with pytest.raises(
        ConfigError, match=r"buffer_tokens = 128: expected at least 8 batches of 17 rows"
    ):
        LiveRows(live(sampled), 1, "all", 17)
    lm = model()
    blocks = live(sampled, lm)
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[11] = float("nan")
    with pytest.raises(
        StreamError, match=r"site 1, page 'p\d+': an activation is not finite as torch.float32"
    ):
        walked(LiveRows(blocks, 2, "all", BATCH), 60)


# -- training


def _cfg(**changes):
    return TrainConfig(
        **{"tokens": 640, "batch_size": BATCH, "lam": 0.3, "lr": 3e-3, "dead_window": 64} | changes
    )


CFGS = {  # by site
    1: [_cfg(), _cfg(lam=1.0, loss="full")],
    2: [_cfg(b_dec_init="mean"), _cfg(resample_at=(0.3, 0.6), resample_rows=40, seed=2)],
    4: [_cfg(batch_size=16, tokens=1280, schedule="cosine"), _cfg(batch_size=16, tokens=960)],
}
LAST = 1280 - 1  # row of the longest run


def _runs(site, folder=None):
    runs = []
    for i, cfg in enumerate(CFGS[site]):
        arch = "sae" if cfg.loss == "plain" else "gated"
        config = SAEConfig(arch=arch, d_in=D, n_latents=32, site=site)
        sae = build_sae(config, torch.Generator().manual_seed(cfg.seed))
        with torch.no_grad():
            getattr(sae, sae.bias_names()[0])[: 20 if cfg.resample_at else 0] = -1e3
        runs.append(Run(sae, cfg, None, folder and folder / f"{site}_{i}.safetensors"))
    return runs


def _groups(blocks, folder=None):
    return [
        (_runs(site, folder), LiveRows(blocks, site, "ordinary", CFGS[site][0].batch_size))
        for site in CFGS
    ]


def _same(groups, others):
    pairs = zip(
        (r for runs, _ in groups for r in runs),
        (r for runs, _ in others for r in runs),
        strict=True,
    )
    return all(
        torch.equal(v, b.sae.state_dict()[k])
        for a, b in pairs
        for k, v in a.sae.state_dict().items()
    )


@pytest.fixture(scope="module")
def alone(sampled):
    """Every SAE trained by itself."""
    groups = _groups(live(sampled))
    histories = []
    for runs, stream in groups:
        for run in runs:
            histories += train_together(
                [([run], LiveRows(live(sampled), stream.site, "ordinary", stream.batch_size))]
            )
    assert any(event.revived for history in histories for event in history.events)
    return groups, histories


def test_sites_trained_side_by_side_share_forwards_and_end_as_each_alone(sampled, alone):
    lm = model()
    blocks = live(sampled, lm)
    seen, groups = count_tokens(lm), _groups(blocks)
    histories = train_together(groups, ahead=blocks.ahead)
    assert _same(groups, alone[0])
    assert [h.table for h in histories] == [h.table for h in alone[1]]
    assert [h.events for h in histories] == [h.events for h in alone[1]]
    assert sum(seen) == tokens_of(
        blocks, range(blocks.find(LAST, "ordinary")[0] + 1)
    )  # each block once


def test_interrupted_side_by_side_they_resume_to_the_same_bits(sampled, alone, tmp_path):
    class Killed(Exception):
        pass

    def kill(i, row):
        if (i, row["step"]) == (3, 50):
            raise Killed

    path = tmp_path / "counts.jsonl"
    with pytest.raises(Killed):
        train_together(_groups(live(sampled, journal=path), tmp_path), 10, kill, 16)
    lm = model()
    blocks = live(sampled, lm, path)
    seen, groups = count_tokens(lm), _groups(blocks, tmp_path)
    histories = train_together(groups, 10, ahead=blocks.ahead)
    assert all(history.resumed_at >= 20 for history in histories)
    assert _same(groups, alone[0])
    cursors = [
        h.resumed_at * cfg.batch_size
        for h, cfg in zip(histories, chain(*CFGS.values()), strict=True)
    ]
    first, last = (blocks.find(cursor, "ordinary")[0] for cursor in (min(cursors), LAST))
    assert first > 0
    assert sum(seen) == tokens_of(blocks, range(first, last + 1))


# -- a profile


CHILD = """
import sys
from pathlib import Path
from helpers.workspaces import STREAMING, halt_training, open_workspace, specs_over_sites
halt_training(at=30)
ws = open_workspace(Path(sys.argv[1]), "live", STREAMING)
ws.checkpoint_every = 8
ws.train(specs_over_sites(ws), "02_train_sae")
"""


@pytest.fixture
def collected(home):
    write_inputs(home)
    return home


def live_workspace(home, streaming=STREAMING):
    return open_workspace(home, "live", streaming)


def test_a_profile_is_trained_live_killed_and_resumed_to_the_same_bytes(collected):
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(collected)])
    saes, deadline = collected / "data" / "live" / "saes", time.monotonic() + 120
    while len(list(saes.glob("*/checkpoint.safetensors"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert (
        len(list(saes.glob("*/checkpoint.safetensors"))) == 3
    )  # one wave: three SAEs of two sites
    ws = live_workspace(collected)
    rows = ws.train(specs_over_sites(ws), "02_train_sae")
    assert rows["fvu"].between(0.01, 1.2).all()
    assert rows["ce_sae"].notna().all()
    assert set(rows["corpus_id"]) == {ws.contexts.corpus_id}
    assert (ws.folder / "results.csv").read_text().count("\n") == 5
    killed, table = all_bytes(saes), (ws.folder / "results.csv").read_bytes()
    for folder in saes.iterdir():
        for path in folder.iterdir():
            path.unlink()
    ws.train(specs_over_sites(ws), "02_train_sae")
    assert all_bytes(saes) == killed
    assert (ws.folder / "results.csv").read_bytes() == table


def test_a_live_profile_stores_a_sample_and_trains_on_all_pages(collected):
    ws = live_workspace(collected)
    contexts, store = ws.contexts, ws.store
    split = contexts.split[contexts.page]
    assert [len(store.contexts_of(name)) for name in SPLITS] == [
        60,
        (split == 1).sum(),
        (split == 2).sum(),
    ]
    stream = ws.stream(specs_over_sites(ws)[0])
    _, rows = walked(stream, 80)
    pages = set(contexts.page[np.searchsorted(contexts.offsets, rows, side="right") - 1])
    assert pages == set(np.flatnonzero(contexts.split == 0))
    assert len(rows) > store.mask("all", "train").sum()  # rows that no store has


def test_a_finished_live_profile_is_read_without_its_model_and_not_mixed_with_a_store(
    collected, monkeypatch
):
    ws = live_workspace(collected)
    before = ws.train(specs_over_sites(ws)[:1], "02_train_sae")
    again = Workspace("live", "cpu", EvalConfig(ce_tokens=0))
    monkeypatch.setattr("saelib.activations.lm.LM.load", None)  # would raise
    assert (
        again.train(specs_over_sites(again)[:1], "03_train_gated").loc[0, "run_id"]
        == before.loc[0, "run_id"]
    )
    monkeypatch.undo()
    for other in (None, StreamConfig(buffer_tokens=2048, sample_contexts=60)):
        with pytest.raises(ConfigError, match=r"workspace\.json: stream is .*now asked for"):
            live_workspace(collected, other)
    stored = open_workspace(collected, "stored")
    with pytest.raises(ConfigError, match="stream is None, now asked for"):
        open_workspace(collected, "stored", STREAMING)
    assert stored.rows_id == stored.store.store_id
    assert (
        json.loads((ws.folder / "workspace.json").read_text())["corpus_id"]
        == stored.store.corpus_id
    )


def test_one_wave_holds_all_sites_and_no_more_saes_than_fit(collected):
    ws = live_workspace(collected)
    named = {ws.run_id(s): s for s in specs_over_sites(ws)}
    assert [[len(group.runs) for group in wave.groups] for wave in schedule(ws, named)] == [
        [2, 1],
        [1],
    ]
    ws.together = 2
    assert [[len(group.runs) for group in wave.groups] for wave in schedule(ws, named)] == [
        [2],
        [1],
        [1],
    ]


def test_a_text_that_changed_after_collection_is_not_trained_on(collected):
    ws, text = live_workspace(collected), collected / "pages.jsonl"
    text.write_text("".join(text.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ConfigError, match=r"collected from text \w+, which now is"):
        Workspace(ws.profile, "cpu").train(specs_over_sites(ws)[:1], "02")
