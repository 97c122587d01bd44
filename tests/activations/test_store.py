"""The activation store: what is written is read, damage and mixing are refused."""

import json
import os
import shutil
import socket
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.folders import all_bytes
from helpers.random_stores import (
    N_ROWS,
    SITES,
    D,
    held,
    make_contexts,
    make_store,
    make_x,
    write,
    writer_of,
)
from safetensors.torch import load
from torch.testing import assert_close

from saelib.activations.rows import ShuffledRows
from saelib.activations.shards import StoreError, refuse_difference
from saelib.activations.store import CLASSES, Store
from saelib.activations.writer import shard_plan
from saelib.config import stable_hash
from saelib.text.pages import SPLITS


def anonymous_mib():
    """Memory of this process that is not a mapped file."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1024


def test_shards_hold_whole_contexts_and_at_least_one():
    assert shard_plan(make_contexts((3, 3, 4, 5), (0,) * 4, (0,)), 7) == [
        (0, 2),
        (2, 3),
        (3, 4),
    ]  # 6, 4, 5 rows
    assert shard_plan(make_contexts((3, 3, 4, 5), (0,) * 4, (0,)), 10) == [(0, 3), (3, 4)]  # 10, 5
    assert shard_plan(make_contexts((3, 3), (0, 0), (0,)), 1) == [(0, 1), (1, 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_what_was_written_in_any_order_as_float32(tmp_path, dtype):
    x = make_x()
    store = make_store(tmp_path / "s", x, dtype=dtype)
    index = np.random.default_rng(1).integers(0, 36, 100)  # repeats, every shard, no order
    for site in SITES:
        assert torch.equal(store.rows(site, index), x[site].to(dtype).float()[index])
        assert torch.equal(store.rows(site, index.astype(np.uint16)), store.rows(site, index))
        batches = list(store.iter_rows(site, index, 30))
        assert [len(b) for b in batches] == [30, 30, 30, 10]
        assert torch.equal(torch.cat(batches), store.rows(site, index))
        norm = x[site].to(dtype).float().norm(dim=1)
        assert_close(torch.from_numpy(store.norm(site)), norm)
    assert store.rows(1, np.array([], dtype=np.int64)).shape == (0, D)


def test_a_row_or_site_the_store_does_not_have_is_refused(tmp_path):
    store = make_store(tmp_path / "s")
    for bad in ([-1], [3, 36]):
        with pytest.raises(IndexError, match="has 0 to 35"):
            store.rows(1, np.array(bad))
    for read in (
        lambda: store.rows(2, np.array([0])),
        lambda: store.norm(2),
        lambda: store.median_norm(2),
    ):
        with pytest.raises(StoreError, match="holds sites 1, 3, not 2"):
            read()


def test_token_table_has_one_entry_a_row(tmp_path):
    contexts = make_contexts()
    store = make_store(tmp_path / "s", contexts=contexts)
    tokens = store.tokens
    assert tokens["token_id"].tolist() == contexts.ids.tolist()
    assert tokens["position"][:10].tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 2, 3]  # contexts of 2, 4, 4
    assert tokens["context"][:8].tolist() == [0, 0, 1, 1, 1, 1, 2, 2]
    assert tokens["page"][:8].tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert tokens["split"][:8].tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert {name: values.dtype.name for name, values in tokens.items()} == {
        "token_id": "int32",
        "position": "int32",
        "page": "int32",
        "context": "int32",
        "split": "int8",
    }
    assert store.page_ids == ("p0", "p1", "p2", "p3")
    assert store.page_titles[3] == "P3"
    assert store.context_rows(2) == slice(6, 10)
    assert store.contexts_of("train").tolist() == [0, 1, 5, 7]  # pages 0, 0, 0, 3
    assert store.contexts_of("test").tolist() == [3, 4]  # page 2
    assert (store.n_rows, store.d_model, store.sites) == (36, D, SITES)


def test_token_class_uses_the_training_median_after_position_0(tmp_path):
    # Training rows after position 0: 1, 3 to 5, 20 to 23, 31 to 35. Norm 2 at most of these 13, 10
    # at 5 of them; no others belong to the median, or it would be at least 10.
    x = {site: torch.zeros(36, D) for site in SITES}
    for site in SITES:
        x[site][:, 0] = 2.0
        x[site][[0, 2, 19, 30], 0] = 100.0  # position 0
        x[site][6:19, 0] = x[site][24:30, 0] = 50.0  # validation and test pages
        x[site][[3, 32, 33, 34, 35], 0] = 10.0  # 5 medians exactly: no sink
    x[3][4, 0] = 10.5  # more than 5
    store = make_store(tmp_path / "s", x)
    assert store.median_norm(1) == store.median_norm(3) == 2.0
    names = [CLASSES[c] for c in store.token_class(3)[:7]]
    assert names == ["first", "ordinary", "first", "ordinary", "sink", "ordinary", "first"]
    assert CLASSES[store.token_class(3, factor=4.9)[3]] == "sink"
    assert CLASSES[store.token_class(1)[4]] == "ordinary"
    assert not store.mask("ordinary")[4]  # a sink at one site is ordinary nowhere
    assert store.mask("all").all()


def test_masks_split_the_rows(tmp_path):
    store = make_store(tmp_path / "s")
    parts = [store.mask("all", split) for split in SPLITS]
    assert np.array_equal(sum(p.astype(int) for p in parts), np.ones(36))
    assert [int(p.sum()) for p in parts] == [2 + 4 + 5 + 6, 4 + 6, 4 + 5]
    assert not (store.mask("ordinary", "test") & ~parts[2]).any()


def test_equal_input_gives_equal_bytes_and_no_path_time_or_host(tmp_path):
    first, second = make_store(tmp_path / "a"), make_store(tmp_path / "b")
    assert all_bytes(first.path) == all_bytes(second.path)
    assert first.store_id == second.store_id
    written = b"".join(data for data in all_bytes(first.path).values())
    assert str(tmp_path).encode() not in written
    assert socket.gethostname().encode() not in written
    other = make_store(tmp_path / "c", make_x(seed=1))
    assert other.store_id != first.store_id


def test_manifest_records_hash_size_and_rows_of_every_shard(tmp_path):
    store = make_store(tmp_path / "s")
    shards = store.manifest["shards"]
    assert [shard["rows"] for shard in shards] == [6, 8, 5, 5, 6, 6]  # 2+4, 4+4, 5, 5, 6, 6
    assert list(shards[1]["files"]) == [
        "site_01/shard_00001.safetensors",
        "site_03/shard_00001.safetensors",
    ]
    for shard in shards:
        for name, entry in shard["files"].items():
            assert (store.path / name).stat().st_size == entry["bytes"]
            assert len(entry["sha256"]) == 64


def test_an_interrupted_store_resumes_at_the_first_missing_shard_with_equal_bytes(tmp_path):
    x = make_x()
    whole = make_store(tmp_path / "whole", x)
    with writer_of(tmp_path / "s") as writer:
        write(writer, x, [0, 1])
        with pytest.raises(StoreError, match="shard 2 of 6 is not written"):
            writer.finish()
    with pytest.raises(StoreError, match="unfinished"):
        Store.open(tmp_path / "s")
    with (tmp_path / "s" / "progress.jsonl").open("a") as progress:
        progress.write('{"shard": 2, "ro')  # what a kill in mid-write leaves
    with writer_of(tmp_path / "s") as writer:
        assert writer.missing[0] == 2
        write(writer, x)
        assert not writer.missing
        writer.finish()
    assert all_bytes(tmp_path / "s") == all_bytes(whole.path)


@pytest.mark.parametrize(
    "name", ["site_03/shard_00002.safetensors", "tokens.safetensors", "pages.json"]
)
def test_a_deleted_file_is_redone_alone(tmp_path, name):
    store = make_store(tmp_path / "s")
    before = all_bytes(store.path)
    (store.path / name).unlink()
    with pytest.raises(StoreError, match=f"{name}: missing"):
        Store.open(store.path)
    assert not writer_of(store.path).finished()
    with writer_of(store.path) as writer:
        assert writer.missing == ([2] if "shard" in name else [])
        write(writer, make_x())
        writer.finish()
    assert all_bytes(store.path) == before
    assert writer_of(store.path).finished()


def test_a_kill_between_manifest_and_clean_up_is_no_loss(tmp_path):
    store = make_store(tmp_path / "s")
    before = all_bytes(store.path)
    with writer_of(store.path):
        pass  # back to unfinished, all shards there
    (store.path / "manifest.json").write_bytes(before["manifest.json"])  # both are there now
    assert torch.equal(Store.open(store.path).rows(1, np.arange(36)), make_x()[1])
    with writer_of(store.path) as writer:
        assert writer.missing == []
        writer.finish()
    assert all_bytes(store.path) == before


def _flip(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def test_a_truncated_shard_is_refused_by_name(tmp_path):
    store = make_store(tmp_path / "s")
    shard = store.path / "site_03" / "shard_00004.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    for opened in (True, False):
        with pytest.raises(
            StoreError, match=r"site_03/shard_00004.safetensors: truncated or changed, \d+ bytes"
        ):
            Store.open(store.path, verify=opened)


def test_a_damaged_shard_is_refused_on_read_and_only_there(tmp_path):
    store = make_store(tmp_path / "s")
    _flip(store.path / "site_03" / "shard_00004.safetensors")
    store = Store.open(store.path)
    first, stop = 24, 30  # the rows of shard 4
    assert len(store.rows(3, np.arange(first))) == first
    for read in (lambda: store.rows(3, np.array([0, stop - 1])), lambda: store.norm(3)):
        with pytest.raises(
            StoreError,
            match=r"site_03/shard_00004.safetensors: damaged, sha256 \w{12} where \w{12}",
        ):
            read()
    assert len(store.rows(1, np.arange(36))) == 36


def test_damage_in_an_unfinished_store_is_found_on_resuming(tmp_path):
    with writer_of(tmp_path / "s") as writer:
        write(writer, make_x(), [0, 1])
    _flip(tmp_path / "s" / "site_01" / "shard_00001.safetensors")
    with (
        pytest.raises(StoreError, match=r"site_01/shard_00001.safetensors: damaged"),
        writer_of(tmp_path / "s"),
    ):
        pass
    (tmp_path / "s" / "site_01" / "shard_00001.safetensors").unlink()
    with writer_of(tmp_path / "s") as writer:
        assert writer.missing == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["tokens.safetensors", "pages.json"])
def test_a_damaged_token_table_is_refused_on_opening(tmp_path, name):
    store = make_store(tmp_path / "s")
    _flip(store.path / name, at=-3)
    with pytest.raises(StoreError, match=f"{name}: damaged"):
        Store.open(store.path)


def test_an_edited_or_broken_manifest_is_refused(tmp_path):
    store = make_store(tmp_path / "s")
    path = store.path / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"model_id": "m@1"', '"model_id": "m@2"'))
    with pytest.raises(
        StoreError, match=r"manifest.json: content hashes to \w+, its store_id says"
    ):
        Store.open(store.path)
    path.write_text(text[:-20])
    with pytest.raises(StoreError, match=r"manifest.json: damaged, not JSON"):
        Store.open(store.path)
    path.write_text(json.dumps({**json.loads(text), "format": 99}))
    with pytest.raises(StoreError, match="format = 99, not 1"):
        Store.open(store.path)
    with pytest.raises(StoreError, match="is no store"):
        Store.open(tmp_path)


def test_a_shard_of_another_store_is_refused(tmp_path):
    store, other = make_store(tmp_path / "a"), make_store(tmp_path / "b", make_x(seed=1))
    name = "site_01/shard_00000.safetensors"
    shutil.copy(other.path / name, store.path / name)
    with pytest.raises(StoreError, match=f"{name}: damaged"):
        Store.open(store.path).rows(1, np.array([0]))


OTHER = {
    "model_id": ({"model_id": "m@2"}, "model_id = 'm@1', not 'm@2'"),
    "corpus_id": ({"corpus_id": "other"}, "corpus_id = 'c', not 'other'"),
    "sites": ({"sites": (1, 4)}, r"sites = \[1, 3\], not \[1, 4\]"),
    "dtype": ({"dtype": "bfloat16"}, "dtype = 'float32', not 'bfloat16'"),
    "compute_dtype": ({"compute_dtype": "bfloat16"}, "compute_dtype = 'float32', not 'bfloat16'"),
    "shard_tokens": ({"shard_tokens": 12}, "shard_tokens = 8, not 12"),
    "batch_tokens": ({"batch_tokens": 12}, "batch_tokens = 64, not 12"),
}


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
@pytest.mark.parametrize(("changed", "message"), OTHER.values(), ids=OTHER.keys())
def test_a_store_of_something_else_is_refused_and_left_as_it_is(
    tmp_path, changed, message, finished
):
    with writer_of(tmp_path / "s") as writer:
        write(writer, make_x(), range(6 if finished else 2))
        if finished:
            writer.finish()
    before = all_bytes(tmp_path / "s")
    with pytest.raises(StoreError, match=message), writer_of(tmp_path / "s", **changed):
        pass
    if finished:
        with pytest.raises(StoreError, match=message):
            writer_of(tmp_path / "s", **changed).finished()
    assert all_bytes(tmp_path / "s") == before


def test_a_store_can_be_held_to_a_model(tmp_path):
    store = make_store(tmp_path / "s")
    store.check(model_id="m@1", d_model=D)
    with pytest.raises(StoreError, match="model_id = 'm@1', not 'm@2'"):
        store.check(model_id="m@2")


def test_a_second_writer_is_refused_and_told_who_holds_the_folder(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / ".lock").write_text("pid 1 on host elsewhere")  # what a killed holder leaves
    with writer_of(tmp_path / "s"):
        holder = f"written by pid {os.getpid()} on host {socket.gethostname()}$"
        with pytest.raises(StoreError, match=holder), writer_of(tmp_path / "s"):
            pass
    with writer_of(tmp_path / "s"):
        pass  # free again


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_with_site_context_and_position(tmp_path, value):
    x = make_x()
    x[3][8, 2] = value  # row 8: context 2 (rows 6 to 9) of page p1, position 2
    with writer_of(tmp_path / "s") as writer:
        write(writer, x, [0])
        with pytest.raises(
            StoreError, match=r"site 3, context 2 \(page 'p1'\), position 2: .* not finite"
        ):
            write(writer, x, [1])
        assert writer.missing[0] == 1


def test_a_value_too_large_for_the_stored_dtype_is_refused(tmp_path):
    x = make_x()
    x[1][0, 0] = 70_000.0  # float16 ends at 65,504
    with (
        writer_of(tmp_path / "s", dtype="float16", compute_dtype="float32") as writer,
        pytest.raises(StoreError, match="computed as float32, is not finite as float16"),
    ):
        write(writer, x, [0])


def test_rows_of_the_wrong_shape_are_refused(tmp_path):
    with (
        writer_of(tmp_path / "s") as writer,
        pytest.raises(ValueError, match=r"shard 0, site 1: x is \[5, 6\]"),
    ):
        writer.write_shard(0, {site: torch.zeros(5, D) for site in SITES})


def exact_x():
    """Rows (3k, 4k, 0, …) of norm 5k, exact in any dtype but int8: bytes are any machine's."""
    k = torch.arange(1.0, N_ROWS + 1)
    rows = torch.zeros(N_ROWS, D)
    rows[:, 0], rows[:, 1] = 3 * k, 4 * k
    return dict.fromkeys(SITES, rows)


@pytest.mark.parametrize(
    ("dtype", "store_id"), [("float32", "28b1d2487554"), ("bfloat16", "073254ac5a4e")]
)
def test_a_store_of_an_earlier_release_is_still_written_and_named_the_same(
    tmp_path, dtype, store_id
):
    assert make_store(tmp_path / "s", exact_x(), dtype=dtype).store_id == store_id


INT8 = {"dtype": "int8", "compute_dtype": "float32"}


def make_int8(path, first_rows):
    """An int8 store whose first 6 rows at site 1 are these, then zeros; and that shard."""
    x = make_x()
    x[1][:6] = 0.0
    for row, values in enumerate(first_rows):
        x[1][row, : len(values)] = torch.tensor(values)
    store = make_store(path, x, **INT8)
    return store, held(store, 1)[0]


def test_an_int8_row_is_its_greatest_magnitude_over_127_times_whole_numbers(tmp_path):
    # 3 / 127 = 0.0236 is the scale: 3 is 127 of it, -1.5 is -63.5, a tie, so the even -64, and
    # 0.02 is 0.85, so 1.
    store, shard = make_int8(tmp_path / "s", [[3, -1.5, 0.02]])
    scale = np.float32(3) / np.float32(127)
    assert {name: value.dtype for name, value in shard.items()} == {
        "x": torch.int8, "scale": torch.float32, "center": torch.float32, "norm": torch.float32,
    }  # fmt: skip
    assert shard["x"][0].tolist() == [127, -64, 1, 0, 0, 0]
    assert shard["scale"][0].item() == scale
    row = store.rows(1, np.array([0]))[0]
    assert row.dtype == torch.float32
    assert row.tolist() == [127 * scale, -64 * scale, scale, 0, 0, 0]
    assert store.norm(1)[0] == pytest.approx(
        (9 + 2.25 + 0.0004) ** 0.5, rel=1e-6
    )  # of the row as it was computed
    assert store.manifest["dtype"] == "int8"
    assert store.manifest["compute_dtype"] == "float32"


def test_what_all_rows_share_costs_an_int8_store_nothing(tmp_path):
    # The median of column 0 is 1000: beside it the first row is (0, 1, …), the second (127, 0, …),
    # the others nothing.
    store, shard = make_int8(tmp_path / "s", [[1000.0, 1.0], [1127.0], *[[1000.0]] * 4])
    assert shard["center"].tolist() == [1000, 0, 0, 0, 0, 0]
    assert shard["x"][:, :2].tolist() == [[0, 127], [127, 0], *[[0, 0]] * 4]
    assert shard["scale"].tolist() == [np.float32(1) / np.float32(127), 1, 1, 1, 1, 1]
    assert store.rows(1, np.arange(3))[:, :2].tolist() == [[1000, 1], [1127, 0], [1000, 0]]
    assert store.norm(1)[2] == 1000


def test_int8_ties_go_to_the_even_number_and_rows_of_nothing_stay_nothing(tmp_path):
    rows = [[127, 0.5, 1.5, 2.5, -0.5, -1.5], [], [1e-39], [-127, 126.4, 126.6]]
    store, shard = make_int8(tmp_path / "s", rows)
    assert shard["x"][:4].tolist() == [
        [127, 0, 2, 2, 0, -2],
        [0] * D,
        [0] * D,
        [-127, 126, 127, 0, 0, 0],
    ]
    assert shard["scale"][:4].tolist() == [1, 1, 1, 1]
    assert shard["center"].tolist() == [0] * D
    assert torch.equal(store.rows(1, np.array([1, 2])), torch.zeros(2, D))


@pytest.mark.parametrize("compute", ["float32", "bfloat16", "float16"])
def test_no_value_of_an_int8_row_is_off_by_more_than_half_its_scale(tmp_path, compute):
    x = {
        site: (rows * 10 ** torch.linspace(-3, 3, N_ROWS)[:, None])
        for site, rows in make_x().items()
    }
    store = make_store(tmp_path / "s", x, dtype="int8", compute_dtype=compute)
    for site in SITES:
        computed = x[site].to(getattr(torch, compute)).float()
        error = (store.rows(site, np.arange(N_ROWS)) - computed).abs().amax(1)
        half = torch.cat([shard["scale"] for shard in held(store, site)]) / 2
        assert (error <= half * (1 + 1e-4)).all()
        center = torch.cat([shard["center"].expand_as(shard["x"]) for shard in held(store, site)])
        assert_close(254 * half, (computed - center).abs().amax(1))
        assert (error > half / 4).any()  # it is 8 bits
        assert torch.equal(torch.from_numpy(store.norm(site)), computed.norm(dim=1))


def test_int8_rows_come_in_any_order_and_by_the_stream_as_one_by_one(tmp_path):
    store = make_store(tmp_path / "s", **INT8)
    one_by_one = torch.cat([store.rows(3, np.array([row])) for row in range(N_ROWS)])
    index = np.random.default_rng(1).integers(0, N_ROWS, 100)  # repeats, every shard, no order
    assert torch.equal(store.rows(3, index), one_by_one[index])
    assert torch.equal(store.stored_rows(3, np.arange(N_ROWS)), one_by_one)
    stream = ShuffledRows(store, 3, np.arange(2, 33), batch_size=7, seed=5)
    for _ in range(6):
        x, rows = next(stream)
        assert x.dtype == torch.float32
        assert torch.equal(x, one_by_one[rows])


def test_classes_and_masks_of_an_int8_store_are_those_of_a_bfloat16_one(tmp_path):
    x = make_x()
    x[1][[4, 20], 2] = 3000.0  # sinks, whose other dimensions int8 loses
    x[3] = (
        x[3] * 10 ** torch.linspace(-1, 1, N_ROWS)[:, None]
    )  # norms on both sides of the threshold
    whole = make_store(tmp_path / "bf16", x, dtype="bfloat16")
    small = make_store(tmp_path / "int8", x, dtype="int8", compute_dtype="bfloat16")
    assert small.store_id != whole.store_id
    for site in SITES:
        assert np.array_equal(small.norm(site), whole.norm(site))
        assert np.array_equal(small.token_class(site), whole.token_class(site))
    assert [CLASSES[c] for c in small.token_class(1)[[4, 20]]] == ["sink", "sink"]
    for tokens, split in (("ordinary", "train"), ("ordinary", None), ("all", "test")):
        assert np.array_equal(small.mask(tokens, split), whole.mask(tokens, split))
    assert held(small, 1)[0]["x"][4].tolist() == [0, 0, 127, 0, 0, 0]


def test_an_int8_store_takes_half_the_disk_of_a_bfloat16_one_and_says_so_before(tmp_path):
    n, d, sizes, contexts = 1024, 512, {}, make_contexts((256,) * 4, (0, 1, 2, 3))
    x = {site: torch.randn(n, d, generator=torch.Generator().manual_seed(0)) for site in SITES}
    for dtype, beside in (("bfloat16", 4), ("int8", 8)):
        changed = {"dtype": dtype, "compute_dtype": "float32", "d_model": d}
        writer = writer_of(tmp_path / dtype, contexts, shard_tokens=n, **changed)
        expected = len(SITES) * n * (d * getattr(torch, dtype).itemsize + beside)
        assert writer.bytes_missing == expected + 4 * n
        with writer:
            write(writer, x)
            writer.finish()
        sizes[dtype] = sum(p.stat().st_size for p in (tmp_path / dtype).glob("site_*/*"))
        assert 0 < sizes[dtype] - expected < 6000  # the files' headers and centers
    assert sizes["int8"] == pytest.approx(sizes["bfloat16"] / 2, rel=0.02)


def test_an_interrupted_int8_store_resumes_with_equal_bytes(tmp_path):
    whole = make_store(tmp_path / "whole", **INT8)
    with writer_of(tmp_path / "s", **INT8) as writer:
        write(writer, make_x(), [0, 1])
    with (
        pytest.raises(StoreError, match="dtype = 'int8', not 'float32'"),
        writer_of(tmp_path / "s"),
    ):
        pass
    with writer_of(tmp_path / "s", **INT8) as writer:
        assert writer.missing == [2, 3, 4, 5]
        write(writer, make_x())
        writer.finish()
    assert all_bytes(tmp_path / "s") == all_bytes(whole.path)


def test_a_damaged_scale_is_refused(tmp_path):
    store, shard = make_int8(tmp_path / "s", [])
    path = store.path / "site_01" / "shard_00000.safetensors"
    _flip(path, at=path.read_bytes().index(shard["scale"].numpy().tobytes()))
    assert not torch.equal(load(path.read_bytes())["scale"], shard["scale"])
    with pytest.raises(StoreError, match=r"site_01/shard_00000.safetensors: damaged, sha256"):
        Store.open(store.path).rows(1, np.array([0]))


def test_int8_rows_not_finite_or_of_an_unknown_arithmetic_are_refused(tmp_path):
    x = make_x()
    x[3][8, 2] = float("nan")
    with writer_of(tmp_path / "s", dtype="int8", compute_dtype="bfloat16") as writer:
        write(writer, x, [0])
        message = (
            r"site 3, context 2 .*, position 2: .* computed as bfloat16, is not finite as bfloat16"
        )
        with pytest.raises(StoreError, match=message):
            write(writer, x, [1])
    with pytest.raises(ValueError, match="dtype = 'int8': the compute_dtype of the rows is needed"):
        writer_of(tmp_path / "t", dtype="int8")


def test_memory_stays_constant_while_writing_and_reading(tmp_path):
    n_shards, rows, d = 24, 8192, 128  # shards of 4 MiB, 96 MiB in all
    contexts = make_contexts((64,) * (n_shards * rows // 64), (0,) * (n_shards * rows // 64), (0,))
    generator = torch.Generator().manual_seed(0)
    with writer_of(tmp_path / "s", contexts, shard_tokens=rows, sites=(0,), d_model=d) as writer:
        assert len(writer.plan) == n_shards
        used = []
        for shard in writer.missing:
            writer.write_shard(shard, {0: torch.randn(rows, d, generator=generator)})
            used.append(anonymous_mib())
        writer.finish()
    assert max(used[4:]) - used[3] < 24  # 80 MiB are written meanwhile
    store, index = Store.open(tmp_path / "s", verify=False), np.random.default_rng(0)
    store.rows(0, index.integers(0, store.n_rows, 512))
    before = anonymous_mib()
    for _ in range(50):
        store.rows(0, index.integers(0, store.n_rows, 512))
    assert anonymous_mib() - before < 24


def test_the_token_table_is_written_with_one_copy_of_a_mapped_corpus(tmp_path):
    n = 4 << 20  # 16 MiB of token ids
    contexts = make_contexts((n // 4,) * 4, (0, 1, 2, 3))
    np.save(tmp_path / "ids.npy", contexts.ids)
    mapped = replace(contexts, ids=np.load(tmp_path / "ids.npy", mmap_mode="r"))
    tables = []
    for name, given in (("memory", contexts), ("mapped", mapped)):
        with writer_of(tmp_path / name, given, sites=(1,)) as writer:
            tracemalloc.start()
            writer._write_tokens()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 1.5 * contexts.ids.nbytes
        tables.append((tmp_path / name / "tokens.safetensors").read_bytes())
    assert tables[0] == tables[1]


def test_columns_and_classes_take_little_more_memory_than_they_have_bytes(tmp_path):
    n = 1 << 20
    contexts = make_contexts((n // 4,) * 4, (0, 1, 2, 3))
    with writer_of(tmp_path / "s", contexts, shard_tokens=n, sites=(1,), d_model=1) as writer:
        write(writer, {1: torch.ones(n, 1)})
        writer.finish()
    store = Store.open(tmp_path / "s")
    tracemalloc.start()
    store.tokens["token_id"]
    columns = tracemalloc.get_traced_memory()[1] / n
    tracemalloc.reset_peak()
    held = tracemalloc.get_traced_memory()[0]
    store.mask("ordinary", "train")
    masks = (tracemalloc.get_traced_memory()[1] - held) / n
    tracemalloc.stop()
    assert columns < 20  # bytes a row, of which 17 stay
    assert masks < 8  # for any number of sites


MANIFEST_EDITS = [
    ("dtype", "float16", "x is float32"),
    ("dtype", "nonsense", "dtype = 'nonsense': expected one of float32"),
    ("d_model", D + 1, rf"x is float32 \[6, {D}\] where"),
    ("n_rows", 100, "n_rows = 100: expected 36, the rows of its shards"),
    ("sites", [1], r"shards\[0\] = .*: expected shard 0"),
    ("sites", None, "sites = None: expected site numbers"),
    ("median_norm", {"1": 1.0}, "median_norm = .*: expected a number of each site"),
    ("median_norm", {"1": 1.0, "3": 2.9}, "median_norm of site 1 = 1.0: no median of its rows"),
    ("files", {"../outside.safetensors": {"bytes": 1, "sha256": ""}}, "files = .*: expected bytes"),
    ("shards", None, "shards = None: expected a list"),
    ("shards", [], r"manifest.json: shards = \[\]: expected a list with an element"),
    ("n_rows", 10**30, "manifest.json: n_rows = 1000"),
    ("median_norm", {"1": 10**400, "3": 1}, "median_norm = .*: expected a number of each site"),
    (
        "files",
        {name: {"bytes": 1, "sha256": 5} for name in ("tokens.safetensors", "pages.json")},
        "files = .*: expected bytes",
    ),
]


@pytest.mark.parametrize(("field", "value", "message"), MANIFEST_EDITS)
def test_a_manifest_of_a_right_id_is_not_believed_what_its_files_deny(
    tmp_path, field, value, message
):
    make_store(tmp_path / "s")
    path = tmp_path / "s" / "manifest.json"
    manifest = json.loads(path.read_text()) | {field: value}
    del manifest["store_id"]
    path.write_text(json.dumps(manifest | {"store_id": stable_hash(manifest)}))
    with pytest.raises(StoreError, match=message):
        Store.open(tmp_path / "s").mask("ordinary")


def test_a_configuration_that_is_no_mapping_is_another_one():
    with pytest.raises(StoreError, match="with config = 5, not"):
        refuse_difference(Path("store"), {"config": 5}, {"config": {"a": 1}})
