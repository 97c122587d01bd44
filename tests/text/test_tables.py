"""Parquet files and data sets become rows."""

import http.server
import io
import multiprocessing
import os
import pickle
import random
import re
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.texts import config, jsonl

from saelib.text.pages import Page, read_pages
from saelib.text.rows import CorpusError


def test_parquet_files_stream_in_name_order(tmp_path):
    pq.write_table(pa.table({"body": ["three"], "n": [3]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"body": ["one", None, "two"], "n": [1, 0, 2]}), tmp_path / "a.parquet")
    cfg = config("parquet", tmp_path, text_column="body", id_column="n", on_bad_line="skip")
    report: dict = {}
    assert [(p.id, p.text) for p in read_pages(cfg, report)] == [
        ("1", "one"),
        ("2", "two"),
        ("3", "three"),
    ]
    assert report["bad_line_examples"] == [f"{tmp_path}/a.parquet, row 2: field 'body' is null"]
    with pytest.raises(
        CorpusError, match=r"a\.parquet, row 1: no field 'text'; it has 'body', 'n'"
    ):
        list(read_pages(config("parquet", tmp_path / "a.parquet")))


def test_a_parquet_file_is_not_read_ahead_of_the_reader(tmp_path):
    rows = pa.table({"text": [random.Random(i).randbytes(50_000).hex() for i in range(300)]})
    pq.write_table(rows, tmp_path / "a.parquet", row_group_size=10)  # 1 MB each, 30 MB in all
    del rows
    pages = read_pages(config("parquet", tmp_path))
    next(pages)
    time.sleep(1)  # what would be read ahead comes in this time
    assert pa.total_allocated_bytes() < 8_000_000
    assert len(list(pages)) == 299


def test_a_parquet_file_that_unpacks_to_huge_rows_is_refused_unread(tmp_path):
    path = tmp_path / "a.parquet"
    rows = pa.table({"text": ["one", "0" * 60_000_000]})
    pq.write_table(rows, path, compression="zstd", use_dictionary=False)
    del rows
    before = pa.total_allocated_bytes()
    with pytest.raises(CorpusError, match=r"a\.parquet: 2 rows unpack to 60,\d+,\d+ bytes"):
        list(read_pages(config("parquet", path)))
    assert pa.total_allocated_bytes() - before < 1_000_000


def _read_footers_that_differ_by_a_byte(path: Path) -> None:
    """Reads each; run in a process of its own."""
    whole = path.read_bytes()
    first = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for place in range(first, len(whole) - 8):
        for bits in (1, 2):
            damaged = bytearray(whole)
            damaged[place] ^= bits
            path.write_bytes(damaged)
            with suppress(CorpusError):
                list(read_pages(config("parquet", path)))


def test_no_damage_to_a_parquet_files_footer_ends_the_process(tmp_path):
    pq.write_table(pa.table({"text": ["one", None, "three"]}), tmp_path / "a.parquet")
    process = multiprocessing.get_context("spawn").Process(
        target=_read_footers_that_differ_by_a_byte, args=(tmp_path / "a.parquet",)
    )
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("place", range(4, 60, 5))
def test_a_damaged_parquet_footer_is_named(tmp_path, place):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one", "two"]}), path)
    whole = path.read_bytes()
    path.write_bytes(
        whole[:-place] + bytes([whole[-place] ^ 0xFF]) + whole[len(whole) - place + 1 :]
    )
    try:
        assert [page.text for page in read_pages(config("parquet", path))] == ["one", "two"]
    except CorpusError as error:
        message = str(error)
        assert str(path) in message


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(CorpusError, match=r"a\.parquet: cannot be read"):
        list(read_pages(config("parquet", tmp_path / "a.parquet")))


def test_a_saved_data_set_and_a_folder_of_data_files_are_read_as_data_sets(tmp_path):
    table = datasets.Dataset.from_dict({"text": ["one", "two"], "title": ["One", "Two"]})
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"part": table}).save_to_disk(tmp_path / "dict")
    (tmp_path / "files").mkdir()
    jsonl(tmp_path / "files" / "test.jsonl", table.to_list())
    expected = [Page("1", "One", "one"), Page("2", "Two", "two")]
    for path in ("saved", "dict::part", "files::test"):
        assert list(read_pages(config("dataset", tmp_path / path))) == expected
    with pytest.raises(CorpusError, match="no split 'train'; it has part"):
        list(read_pages(config("dataset", tmp_path / "dict")))


def test_a_slice_of_a_split_is_its_rows_by_number(tmp_path):
    table = datasets.Dataset.from_dict({"text": [f"text {i}" for i in range(50)]})
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "saved")
    (tmp_path / "files").mkdir()
    jsonl(tmp_path / "files" / "train.jsonl", table.to_list())
    slices = {"[:30]": (0, 30), "[20:]": (20, 50), "[5:7]": (5, 7), "[:]": (0, 50), "": (0, 50)}
    for folder in ("saved", "files"):
        for end, (first, last) in slices.items():
            pages = read_pages(config("dataset", f"{tmp_path / folder}::train{end}"))
            assert [page.text for page in pages] == [f"text {i}" for i in range(first, last)]


@pytest.mark.parametrize("split", ["train[:10%]", "train[-5:]", "train[5:5]", "train[3]", "[:3]"])
def test_a_slice_that_cannot_be_read_is_refused_with_what_is_accepted(tmp_path, split):
    with pytest.raises(CorpusError, match=r"expected a split's name, or name\[first:last\]"):
        list(read_pages(config("dataset", f"{tmp_path}::{split}")))


@pytest.mark.parametrize("source", ["dataset", "fever"])
def test_an_unreachable_hub_is_an_error_with_the_local_way(source):
    code = (
        "from saelib.config import CorpusConfig; from saelib.text.pages import read_pages\n"
        f"list(read_pages(CorpusConfig(source='{source}', path='owner/no-such-set')))"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert "CorpusError: owner/no-such-set: cannot be read (" in last
    assert "give a local folder as path" in last


# ---- folders of others: nothing that they name is fetched or opened


@pytest.fixture
def asked(monkeypatch):
    """What a server on this machine is asked while `datasets` takes it for the hub."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            self.send_error(404)

        do_HEAD = do_POST = do_GET

        def log_message(self, *args):
            """Nothing on the test's stderr."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)
    yield SimpleNamespace(paths=paths, address=address)
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize(
    "named",
    [
        "data_files: ADDRESS/x.jsonl",
        "data_files: hf://datasets/other/beacon/x.jsonl",
        "data_files: [{split: train, path: [a.jsonl, 'ADDRESS/x.jsonl']}]",
        "data_files: 'a b::ADDRESS/x.jsonl'",
        "data_dir: ADDRESS/x",
    ],
)
def test_data_that_a_folder_names_elsewhere_are_not_fetched(tmp_path, asked, file, named):
    jsonl(tmp_path / "a.jsonl", [{"text": "one"}])
    config_of = f"configs:\n- config_name: default\n  {named}\n".replace("ADDRESS", asked.address)
    (tmp_path / file).write_text(f"---\n{config_of}---\n" if file == "README.md" else config_of)
    with pytest.raises(CorpusError, match=rf"{re.escape(file)}: data_files or data_dir .*: expec"):
        list(read_pages(config("dataset", tmp_path)))
    assert asked.paths == []


def with_pictures(path: str) -> datasets.Dataset:
    """Two rows whose column `image` names a picture that lies at `path`."""
    return datasets.Dataset.from_dict(
        {"text": ["one", "two"], "image": [{"bytes": None, "path": path}] * 2},
        features=datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()}),
    )


@pytest.mark.parametrize("column", ["text", "image"])
@pytest.mark.parametrize("place", ["ADDRESS/a.png", "hf://datasets/other/beacon/a.png", "LOCAL"])
def test_files_that_a_row_names_are_neither_fetched_nor_opened(
    tmp_path, asked, monkeypatch, place, column
):
    (tmp_path / "no-picture").write_text("secret")
    local = str(tmp_path / "no-picture")
    rows = with_pictures(place.replace("ADDRESS", asked.address).replace("LOCAL", local))
    (tmp_path / "files").mkdir()
    pq.write_table(rows.data.table, tmp_path / "files" / "train.parquet")
    with monkeypatch.context() as patch:  # who saves asks for the pictures' sizes
        patch.setattr(datasets.Dataset, "_estimate_nbytes", lambda self: 1)
        rows.save_to_disk(tmp_path / "saved")
    for folder in ("files", "saved"):
        cfg = config("dataset", tmp_path / folder, text_column=column, on_bad_line="skip")
        report: dict = {}
        texts = [page.text for page in read_pages(cfg, report)]
        assert texts == (["one", "two"] if column == "text" else [])
        if column == "image":
            assert "field 'image' is dict, expected text" in report["bad_line_examples"][0]
    assert asked.paths == []


def test_a_folder_called_like_a_format_and_a_file_are_not_asked_of_the_hub(
    tmp_path, asked, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    jsonl(tmp_path / "text" / "train.jsonl", [{"text": "one"}])
    jsonl(tmp_path / "other.jsonl", [{"text": "two"}])
    assert [page.text for page in read_pages(config("dataset", "text"))] == ["one"]
    with pytest.raises(CorpusError, match=r"'other\.jsonl' is a file, and source 'dataset' reads"):
        list(read_pages(config("dataset", "other.jsonl")))
    assert asked.paths == []


# ---- saved data sets that are damaged


@pytest.mark.parametrize("text", ["{}", "[]", "x", "null", '{"_data_files": 5}', "[" * 5000])
@pytest.mark.parametrize("file", ["state.json", "dataset_info.json", "dataset_dict.json"])
def test_a_damaged_saved_data_set_is_an_error_that_names_its_folder(tmp_path, file, text):
    folder = tmp_path / "saved"
    table = datasets.Dataset.from_dict({"text": ["one"]})
    is_dict = file == "dataset_dict.json"
    (datasets.DatasetDict({"train": table}) if is_dict else table).save_to_disk(folder)
    (folder / file).write_text(text)
    if file == "dataset_info.json" and text.startswith("{"):
        assert len(list(read_pages(config("dataset", folder)))) == 1  # the table says as much
        return
    with pytest.raises(CorpusError, match=str(folder)):
        list(read_pages(config("dataset", folder)))


@pytest.mark.parametrize("size", [0, 100, 300])
def test_a_saved_data_set_of_a_cut_table_is_an_error_that_names_its_folder(tmp_path, size):
    datasets.Dataset.from_dict({"text": ["one"] * 50}).save_to_disk(tmp_path / "saved")
    (table,) = (tmp_path / "saved").glob("*.arrow")
    table.write_bytes(table.read_bytes()[:size])
    with pytest.raises(CorpusError, match="saved: cannot be read"):
        list(read_pages(config("dataset", tmp_path / "saved")))


# ---- columns of Parquet files


TEXTS = pa.array(["one", "two"])


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (["when"], pa.array([2**60, 1], pa.timestamp("us"))),
        (["when"], pa.array([2**30, 1], pa.date32())),
        (["when"], pa.array([2**62, 1], pa.duration("s"))),
        (["when"], pa.array([1, 2], pa.timestamp("us", tz="No/Where"))),
        (["same", "same"], pa.array([1, 2])),
    ],
)
def test_a_column_that_is_not_asked_for_is_not_read(tmp_path, names, values):
    table = pa.table([TEXTS, *[values] * len(names)], names=["text", *names])
    pq.write_table(table, tmp_path / "a.parquet")
    assert [p.text for p in read_pages(config("parquet", tmp_path))] == ["one", "two"]
    cfg = config("parquet", tmp_path, id_column=names[0], on_bad_line="skip")
    if len(names) > 1:
        with pytest.raises(CorpusError, match=r"a\.parquet: 2 columns are called 'same'"):
            list(read_pages(cfg))
        return
    report: dict = {}
    assert len(list(read_pages(cfg, report))) + report["bad_lines"] == 2
    assert "a.parquet, row 1: field 'when' cannot be read" in report["bad_line_examples"][0]


def test_a_row_that_is_not_utf_8_is_named_and_the_others_are_read(tmp_path):
    buffers = pa.array([b"\xff", b"two"]).buffers()
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 2, buffers)})
    pq.write_table(table, tmp_path / "a.parquet")
    report: dict = {}
    cfg = config("parquet", tmp_path, on_bad_line="skip")
    assert [p.text for p in read_pages(cfg, report)] == ["two"]
    assert "a.parquet, row 1: field 'text' cannot be read" in report["bad_line_examples"][0]


def test_a_list_of_millions_of_nulls_beside_the_text_takes_no_memory(tmp_path):
    n = 3_000_000
    nulls = pa.ListArray.from_arrays(pa.array([0, n], pa.int32()), pa.nulls(n, pa.int8()))
    pq.write_table(pa.table({"text": ["one"], "x": nulls}), tmp_path / "a.parquet")
    del nulls
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    pages = read_pages(config("parquet", tmp_path))
    assert next(pages).text == "one"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pa.total_allocated_bytes() - before < 1_000_000
    assert peak < 2_000_000


class Opened:
    """A pickle of it makes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["0.pth", "0.pickle", "0.pyd"])
def test_a_pickle_in_an_archive_of_a_folder_is_never_opened(tmp_path, monkeypatch, name):
    def refuse(*arguments, **options):
        raise AssertionError("opened")

    monkeypatch.setattr("torch.load", refuse)
    members = {"0.txt": b"one", name: pickle.dumps(Opened(tmp_path / "was-opened"))}
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with pytest.raises(CorpusError, match="data in the format 'webdataset', whose files may be"):
        list(read_pages(config("dataset", tmp_path, text_column="txt")))
    assert not (tmp_path / "was-opened").exists()
