"""JSON Lines and plain text become rows."""

import gzip
import re
import tracemalloc
from pathlib import Path

import pytest
from helpers.texts import config, jsonl

from saelib.text.pages import Page, read_pages
from saelib.text.rows import CorpusError

# ---- JSONL


def test_jsonl_rows_become_pages_with_a_named_column_and_id(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl",
        [{"k": 7, "body": "one"}, {"k": 8, "body": " \n"}, {"k": 9, "body": "two"}],
    )
    cfg = config("jsonl", path, text_column="body", id_column="k")
    assert list(read_pages(cfg)) == [Page("7", "7", "one"), Page("9", "9", "two")]
    numbered = config("jsonl", path, text_column="body")
    assert [p.id for p in read_pages(numbered)] == ["1", "3"]


def test_a_folder_of_jsonl_is_read_in_name_order(tmp_path):
    jsonl(tmp_path / "b.jsonl", [{"text": "three"}])
    jsonl(tmp_path / "a.jsonl", [{"text": ""}, {"text": "one"}, {"text": "two"}])
    assert [p.text for p in read_pages(config("jsonl", tmp_path))] == ["one", "two", "three"]


def test_a_missing_path_is_an_error_that_asks_no_hub(tmp_path):
    for source in ("jsonl", "parquet", "text", "mediawiki"):
        with pytest.raises(CorpusError, match=f"nothing' does not exist; source '{source}'"):
            list(read_pages(config(source, tmp_path / "nothing")))
    for source in ("fever", "dataset"):
        for name in ("nothing.zip", "nothing.ZIP", "nothing.Jsonl"):
            with pytest.raises(CorpusError, match=f"{name}' does not exist, and is no hub id"):
                list(read_pages(config(source, name)))
    with pytest.raises(CorpusError, match=r"holds no \*\.jsonl"):
        list(read_pages(config("jsonl", tmp_path)))


LONG_NAMES = {
    "no file can have": ("x" * 300, "does not exist"),
    "the hub cannot have": (f"{'x' * 60}/{'y' * 60}", "does not exist"),
}


@pytest.mark.parametrize("name", LONG_NAMES)
@pytest.mark.parametrize("source", ["jsonl", "text", "mediawiki", "parquet", "fever", "dataset"])
def test_a_name_that_is_too_long_is_an_error_that_asks_no_hub(monkeypatch, source, name):
    path, message = LONG_NAMES[name]
    monkeypatch.setattr("saelib.text.tables.loaded_rows", None)
    monkeypatch.setattr("saelib.text.fever.loaded_rows", None)
    with pytest.raises(CorpusError, match=message):
        list(read_pages(config(source, path)))


# ---- text files


def test_a_folder_of_text_is_one_page_a_file(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("one\n\ntwo")
    (tmp_path / "sub" / "a.txt").write_text("three")
    pages = list(read_pages(config("text", tmp_path)))
    assert pages == [Page("b.txt", "b", "one\n\ntwo"), Page("sub/a.txt", "a", "three")]


def test_a_text_file_is_one_page_a_block_between_blank_lines(tmp_path):
    (tmp_path / "a.txt").write_text("\none\ntwo\n\n \nthree")
    assert [(p.id, p.text) for p in read_pages(config("text", tmp_path / "a.txt"))] == [
        ("2", "one\ntwo\n"),
        ("6", "three"),
    ]


def test_wrong_encoding_in_text_is_named_by_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n\ntwo\ncaf" + b"\xe9!\n\nthree")
    with pytest.raises(
        CorpusError, match=r"a\.txt:4: not UTF-8 \(invalid continuation byte, byte 0xe9\)"
    ):
        list(read_pages(config("text", path)))
    with pytest.raises(CorpusError, match=r"a\.txt:4: not UTF-8"):
        list(read_pages(config("text", tmp_path)))
    assert [p.text for p in read_pages(config("text", path, on_bad_line="skip"))] == [
        "one\n",
        "three",
    ]


# ---- compressed files


def test_jsonl_and_text_are_read_from_gz_as_they_are_plain(tmp_path):
    rows = b'{"text": "one"}\n{"text": "two"}\n'
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows))
    assert [p.text for p in read_pages(config("jsonl", tmp_path / "a.jsonl.gz"))] == ["one", "two"]
    jsonl(tmp_path / "b.jsonl", [{"text": "three"}])
    assert [p.text for p in read_pages(config("jsonl", tmp_path))] == ["one", "two", "three"]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\n\ntwo"))
    assert list(read_pages(config("text", tmp_path))) == [Page("a.txt.gz", "a", "one\n\ntwo")]
    blocks = [p.text for p in read_pages(config("text", tmp_path / "a.txt.gz"))]
    assert blocks == ["one\n", "two"]


@pytest.mark.parametrize(("source", "name"), [("jsonl", "a.jsonl.gz"), ("text", "a.txt.gz")])
@pytest.mark.parametrize("damage", ["cut", "no gzip", "a bit"])
def test_a_damaged_gz_is_named(tmp_path, source, name, damage):
    whole = bytearray(gzip.compress(b'{"text": "one"}\n\n' * 2000))
    whole[-6] ^= 64  # of the checksum
    damaged = {"cut": whole[: len(whole) // 3], "no gzip": b"plain text", "a bit": bytes(whole)}
    (tmp_path / name).write_bytes(damaged[damage])
    with pytest.raises(CorpusError, match=rf"{name}: cannot be read \("):
        list(read_pages(config(source, tmp_path / name)))


# ---- bounds


def zeros(path: Path, megabytes: int) -> Path:
    """A .gz of about a thousandth of what it unpacks to: one line."""
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.writelines([b'{"text": "one"}\n\n', *[b"0" * 1_000_000] * megabytes])
        stream.write(b'\n\n{"text": "two"}\n')
    return path


@pytest.mark.parametrize(("source", "kind"), [("jsonl", "line"), ("text", "page")])
def test_one_line_of_200_mb_is_a_bad_line_in_little_memory(tmp_path, source, kind):
    path = zeros(tmp_path / "a.gz", 200)
    message = f"{path}:3: a {kind} of more than 16,000,000 bytes, the most that is read"
    tracemalloc.start()
    with pytest.raises(CorpusError, match=re.escape(message)):
        list(read_pages(config(source, path)))
    report: dict = {}
    pages = list(read_pages(config(source, path, on_bad_line="skip"), report))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(pages) == 2
    assert report["bad_lines"] == 1
    assert message in report["bad_line_examples"][0]
    assert peak < 100e6


def test_a_page_of_too_many_characters_is_a_bad_line_of_every_source(tmp_path):
    rows = [{"text": "one"}, {"text": "0" * 4_000_001}, {"text": "0" * 4_000_000}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    message = f"{path}:2: a page of 4,000,001 characters, of which at most 4,000,000 are read"
    with pytest.raises(CorpusError, match=re.escape(message)):
        list(read_pages(config("jsonl", path)))
    pages = read_pages(config("jsonl", path, on_bad_line="skip"))
    assert [len(page.text) for page in pages] == [3, 4_000_000]


def test_a_file_of_a_folder_of_text_that_is_too_long_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"0\n" * 8_000_001)
    (tmp_path / "b.txt").write_bytes(b"one")
    with pytest.raises(CorpusError, match=r"a\.txt:1: a page of more than 16,000,000 bytes"):
        list(read_pages(config("text", tmp_path)))
    pages = read_pages(config("text", tmp_path, on_bad_line="skip"))
    assert [page.text for page in pages] == ["one"]


# ---- documents between separators


def test_documents_between_separators_are_pages(tmp_path):
    text = "One.\n\nMore.\n<|endoftext|>\nTwo.<|endoftext|>Three.\n<|endoftext|>\n"
    for name in ("a.txt", "b.txt.gz"):
        raw = text.encode()
        (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        pages = list(read_pages(config("text", f"{tmp_path / name}:<|endoftext|>")))
        assert pages == [
            Page("1", "1", "One.\n\nMore."),
            Page("2", "2", "Two."),
            Page("3", "3", "Three."),
        ]
    ids = [page.id for page in read_pages(config("text", f"{tmp_path}:<|endoftext|>"))]
    assert ids == [f"{name}:{n}" for name in ("a.txt", "b.txt.gz") for n in (1, 2, 3)]


def test_a_separator_may_hold_colons_and_a_path_too(tmp_path):
    (tmp_path / "a:b.txt").write_text("one::two::three")
    assert [p.text for p in read_pages(config("text", f"{tmp_path}/a:b.txt:::"))] == [
        "one",
        "two",
        "three",
    ]
    assert len(list(read_pages(config("text", tmp_path / "a:b.txt")))) == 1


def test_a_separator_that_stands_alone_says_how_it_is_used(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("One.\n\n<|endoftext|>\n\nTwo.\n")
    with pytest.raises(CorpusError, match=re.escape(f"give the path as '{path}:<|endoftext|>'")):
        list(read_pages(config("text", path)))


def test_wrong_encoding_in_a_separated_document_is_named_by_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\n<|endoftext|>\n\ntwo\ncaf\xe9\n<|endoftext|>three")
    cfg = config("text", f"{tmp_path}/a.txt:<|endoftext|>")
    with pytest.raises(CorpusError, match=r"a\.txt:5: not UTF-8"):
        list(read_pages(cfg))
