"""Documents: splits, draws, counts, and what is wrong with a row."""

import json

import datasets
import numpy as np
import pytest
from helpers.texts import config, jsonl, smallest_digests

from saelib.text import rows
from saelib.text.pages import SPLITS, count_pages, read_pages, split_of
from saelib.text.rows import CorpusError


def test_the_split_is_a_stable_function_of_the_page_id():
    assert [split_of(i) for i in ("0", "3", "7", "8", "10", "Anarchism")] == [
        "train",
        "test",
        "val",
        "val",
        "test",
        "train",
    ]
    shares = np.bincount([SPLITS.index(split_of(str(i))) for i in range(20_000)]) / 20_000
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.015)


# ---- n_docs


def test_n_docs_draws_the_pages_of_smallest_digest_in_reading_order(tmp_path):
    rows = [{"k": f"p{i}", "text": f"text {i}" if i % 4 else " "} for i in range(80)]
    full = [r["k"] for r in rows if r["text"].strip()]
    path = jsonl(tmp_path / "a.jsonl", rows)
    for seed in (0, 7):
        drawn = [
            p.id for p in read_pages(config("jsonl", path, id_column="k", n_docs=25, seed=seed))
        ]
        assert drawn == [i for i in full if i in smallest_digests(full, 25, seed)], (
            "blank pages do not count"
        )
    numbered = [p.id for p in read_pages(config("jsonl", path, n_docs=25))]
    assert set(numbered) == smallest_digests([str(i + 1) for i in range(80) if i % 4], 25), (
        "row numbers are ids too"
    )
    shuffled = jsonl(tmp_path / "b.jsonl", rows[::-1])
    assert {
        p.id for p in read_pages(config("jsonl", shuffled, id_column="k", n_docs=25, seed=7))
    } == set(drawn)


def test_fewer_pages_than_n_docs_are_all_of_them_and_are_counted_once(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl", [{"text": "one"}, {"text": ""}, {"body": 1}, {"text": "two"}]
    )
    report: dict = {}
    pages = list(read_pages(config("jsonl", path, n_docs=100, on_bad_line="skip"), report))
    assert [p.text for p in pages] == ["one", "two"]
    assert (report["pages_blank"], report["bad_lines"], len(report["bad_line_examples"])) == (
        1,
        1,
        1,
    )
    jsonl(path, [])
    assert list(read_pages(config("jsonl", path, n_docs=100))) == []


def test_only_a_draw_reads_the_corpus_twice(tmp_path, monkeypatch):
    path, opened = jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}]), []
    read = rows.json_lines
    monkeypatch.setattr(
        rows, "json_lines", lambda name, stream: opened.append(name) or read(name, stream)
    )
    assert len(list(read_pages(config("jsonl", path)))) == 2
    assert len(opened) == 1
    assert len(list(read_pages(config("jsonl", path, n_docs=1)))) == 1
    assert len(opened) == 3


# ---- bad rows


BAD_LINES = {
    "not JSON": (
        b'{"text": "cut\n',
        "not JSON (Invalid control character at: line 1 column 14 (char 13))",
    ),
    "not an object": (b"[1, 2]\n", "expected a JSON object, found list"),
    "no text": (b'{"id": "x", "body": "y"}\n', "no field 'text'; it has 'id', 'body'"),
    "null text": (b'{"text": null}\n', "field 'text' is null"),
    "half a surrogate pair": (
        rb'{"text": "a \ud800 x"}' + b"\n",
        "field 'text' cannot be written as UTF-8 (lone surrogate U+D800, character 3)",
    ),
    "half a pair in the title": (
        rb'{"text": "a", "title": "\udfff"}' + b"\n",
        "field 'title' cannot be written as UTF-8 (lone surrogate U+DFFF, character 1)",
    ),
    "text of another type": (b'{"text": 3}\n', "field 'text' is int, expected text"),
    "a title without end": (
        b'{"text": "t", "title": "' + b"x" * 4097 + b'"}\n',
        "field 'title' has 4,097 characters, expected at most 4,096",
    ),
    "many other columns": (
        json.dumps({f"column {n}": n for n in range(1000)}).encode() + b"\n",
        f"no field 'text'; it has {', '.join(repr(f'column {n}') for n in range(20))} and 980 more",
    ),
    "a column whose name has no end": (
        json.dumps({"x" * 10_000: 1}).encode() + b"\n",
        f"no field 'text'; it has '{'x' * 199}… (10,002 characters)",
    ),
    "wrong encoding": (
        '{"text": "café"}\n'.encode("latin-1"),
        "not UTF-8 (invalid continuation byte, byte 0xe9)",
    ),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_jsonl_line_is_named_by_file_and_number_or_skipped_and_counted(tmp_path, name):
    line, message = BAD_LINES[name]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + line + b'{"text": "two"}\n')
    with pytest.raises(CorpusError) as caught:
        list(read_pages(config("jsonl", path)))
    assert str(caught.value) == f"{path}:2: {message}"
    report: dict = {}
    skipped = config("jsonl", path, on_bad_line="skip")
    assert [p.text for p in read_pages(skipped, report)] == ["one", "two"]
    assert report["bad_lines"] == 1
    assert report["bad_line_examples"] == [f"{path}:2: {message}"]


def test_an_empty_jsonl_line_is_a_blank_page_whatever_the_columns(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"k": 1, "text": "one"}\n\n  \n{"k": 4, "text": "two"}\n')
    for id_column in ("", "k"):
        report: dict = {}
        pages = read_pages(config("jsonl", tmp_path / "a.jsonl", id_column=id_column), report)
        assert [p.id for p in pages] == ["1", "4"]
        assert (report["pages_blank"], report["bad_lines"]) == (2, 0)
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(CorpusError, match=r"a\.jsonl:1: no field 'text'; it has none"):
        list(read_pages(config("jsonl", tmp_path / "a.jsonl")))


def test_an_id_without_end_is_a_bad_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "one", "k": "x" * 5000, "title": {"a": "y" * 5000}}))
    with pytest.raises(CorpusError, match=r"field 'k' has 5,000 characters, expected at most 4,"):
        list(read_pages(config("jsonl", path, id_column="k")))
    assert [page.title for page in read_pages(config("jsonl", path))] == ["1"]


def test_an_id_that_cannot_be_hashed_and_a_null_id_are_bad_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(rb'{"text": "one", "k": "\ud800"}' + b"\n" + b'{"text": "two", "k": null}\n')
    report: dict = {}
    assert list(read_pages(config("jsonl", path, id_column="k", on_bad_line="skip"), report)) == []
    assert report["bad_line_examples"] == [
        f"{path}:1: field 'k' cannot be written as UTF-8 (lone surrogate U+D800, character 1)",
        f"{path}:2: field 'k' is null",
    ]


def test_a_whole_surrogate_pair_is_a_character_like_any_other(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(rb'{"text": "\ud83d\ude00"}')
    assert [p.text for p in read_pages(config("jsonl", tmp_path / "a.jsonl"))] == ["\U0001f600"]


# ---- how many pages there are


def test_pages_with_text_are_counted_without_bad_and_blank_ones(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": " "}, {"k": 1}, {"text": "two"}])
    assert count_pages(config("jsonl", path)) == 2
    assert count_pages(config("jsonl", path, n_docs=1)) == 2, "what is there, not what is asked"


def test_counting_ends_at_the_limit(tmp_path):
    jsonl(tmp_path / "a.jsonl", [{"text": f"page {i}"} for i in range(10)])
    (tmp_path / "b.jsonl").mkdir()  # no file: reading on would have to pass over it
    cfg = config("jsonl", tmp_path)
    assert [count_pages(cfg, limit) for limit in (0, 4, 10, 99)] == [10, 4, 10, 10]


def test_a_folder_of_text_and_a_saved_data_set_are_counted_and_the_hub_is_not_asked(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("one\n")
    assert count_pages(config("text", tmp_path)) == 2
    datasets.Dataset.from_dict({"text": ["one", "two", ""]}).save_to_disk(tmp_path / "saved")
    assert count_pages(config("dataset", tmp_path / "saved")) == 2
    assert count_pages(config("dataset", "owner/name:config:train")) is None
    assert count_pages(config("fever", "owner/name")) is None


def test_counting_raises_where_the_source_is_missing(tmp_path):
    with pytest.raises(CorpusError, match="does not exist"):
        count_pages(config("jsonl", tmp_path / "nothing"))
