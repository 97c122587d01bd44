"""JSON Lines and plain text become rows."""

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
        with pytest.raises(CorpusError, match=r"nothing\.zip' does not exist, and is no hub id"):
            list(read_pages(config(source, tmp_path / "nothing.zip")))
    with pytest.raises(CorpusError, match=r"holds no \*\.jsonl"):
        list(read_pages(config("jsonl", tmp_path)))


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
