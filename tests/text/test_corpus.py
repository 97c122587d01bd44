"""Documents -> contexts: every source on small real files, the cutting against a plain re-computation, bad input."""

import hashlib
import json
import logging
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import tracemalloc
import zipfile
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from saelib.config import CorpusConfig, stable_hash
from saelib.text import corpus
from saelib.text.corpus import (
    FEVER_ON_THE_HUB,
    SPLITS,
    CorpusError,
    Page,
    Strings,
    _loaded,
    detokenize,
    fever_title,
    load_contexts,
    pack,
    read_pages,
    split_of,
)

WORDS = [f"w{i}" for i in range(50)]


def word_tokenizer(adds_bos: bool = False, has_bos: bool = True) -> PreTrainedTokenizerFast:
    """One token a word: token id = 2 + the word's number, BOS = 1."""
    vocab = {"[UNK]": 0, "<s>": 1, **{w: i + 2 for i, w in enumerate(WORDS)}}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    names = {"bos_token": "<s>"} if has_bos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", model_max_length=8, **names
    )


def words(n: int, first: int = 0) -> str:
    return " ".join(WORDS[(first + i) % 50] for i in range(n))


def pages_of_every_split(n_tokens: int, each: int = 2) -> list[Page]:
    """`each` pages a split, in an order that mixes the splits."""
    by_split = {s: [str(i) for i in range(1000) if split_of(str(i)) == s][:each] for s in SPLITS}
    ids = [i for group in zip(*by_split.values(), strict=True) for i in group]
    return [Page(i, f"title {i}", words(n_tokens, first=int(i))) for i in ids]


def config(source: str, path: Path | str = "", **options) -> CorpusConfig:
    return CorpusConfig(source=source, path=str(path), **options)


# ---- cutting


def test_a_page_is_cut_into_whole_contexts_and_its_tail_is_dropped():
    contexts = pack(pages_of_every_split(11), word_tokenizer(), config("text", "-", ctx_len=4))
    assert contexts.n_contexts == 6 * 2
    assert contexts.n_tokens == 6 * 8
    assert contexts.start.tolist() == [0, 4] * 6
    first = int(contexts.page_ids[0])
    assert contexts.tokens(1).tolist() == [2 + (first + i) % 50 for i in (4, 5, 6, 7)]
    assert not contexts.bos


def test_a_tail_is_kept_from_min_ctx_len_on_and_the_shortest_contexts_come_first():
    contexts = pack(
        pages_of_every_split(11), word_tokenizer(), config("text", "-", ctx_len=4, min_ctx_len=3)
    )
    assert np.diff(contexts.offsets).tolist() == [3] * 6 + [4] * 12
    assert contexts.page.tolist() == [0, 1, 2, 3, 4, 5] + [p for p in range(6) for _ in range(2)]
    none = pack(
        pages_of_every_split(10), word_tokenizer(), config("text", "-", ctx_len=4, min_ctx_len=3)
    )
    assert np.diff(none.offsets).tolist() == [4] * 12


def test_with_bos_each_context_begins_with_it_and_holds_one_text_token_less():
    contexts = pack(
        pages_of_every_split(6), word_tokenizer(), config("text", "-", ctx_len=4, bos="always")
    )
    assert contexts.bos
    assert contexts.start.tolist() == [0, 3] * 6
    assert all(contexts.tokens(i)[0] == 1 and len(contexts.tokens(i)) == 4 for i in range(12))


@pytest.mark.parametrize(
    ("mode", "adds_bos", "has_bos", "expected"),
    [
        ("auto", True, True, True),
        ("auto", False, True, False),
        ("auto", False, False, False),
        ("never", True, True, False),
        ("always", False, True, True),
    ],
)
def test_bos_follows_the_tokenizer_unless_told_otherwise(mode, adds_bos, has_bos, expected):
    cfg = config("text", "-", ctx_len=4, bos=mode)
    contexts = pack(pages_of_every_split(8), word_tokenizer(adds_bos, has_bos), cfg)
    assert contexts.bos is expected
    assert (contexts.ids == 1).sum() == (contexts.n_contexts if expected else 0)


def test_bos_always_needs_a_tokenizer_that_has_one():
    with pytest.raises(CorpusError, match="bos = 'always', but the tokenizer has no BOS"):
        pack(
            pages_of_every_split(8),
            word_tokenizer(has_bos=False),
            config("text", "-", ctx_len=4, bos="always"),
        )


def test_a_long_page_gives_a_seeded_draw_in_reading_order():
    def starts(seed: int, pages: list[Page]) -> dict[str, list[int]]:
        cfg = config("text", "-", ctx_len=4, contexts_per_page=5, seed=seed)
        contexts = pack(pages, word_tokenizer(), cfg)
        return {
            p: contexts.start[contexts.page == i].tolist() for i, p in enumerate(contexts.page_ids)
        }

    pages = pages_of_every_split(400)
    drawn = starts(0, pages)
    assert all(
        len(s) == 5 and s == sorted(set(s)) and all(v % 4 == 0 for v in s) for s in drawn.values()
    )
    assert len({tuple(s) for s in drawn.values()}) > 1, "each page has its own draw"
    assert starts(0, pages[::-1]) == drawn, "the order of the corpus does not matter"
    assert starts(1, pages) != drawn


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=12),
    ctx_len=st.integers(2, 20),
    share=st.floats(0, 1),
    per_page=st.integers(0, 4),
    bos=st.booleans(),
)
def test_contexts_never_cross_a_page_and_repeat_its_tokens(lengths, ctx_len, share, per_page, bos):
    pages = [Page(f"p{i}", f"t{i}", words(n, first=7 * i)) for i, n in enumerate(lengths)]
    pages += pages_of_every_split(2 * ctx_len, each=1)  # so that no split is empty
    least = int(share * ctx_len)
    cfg = config(
        "text",
        "-",
        ctx_len=ctx_len,
        min_ctx_len=least,
        contexts_per_page=per_page,
        bos=["never", "always"][bos],
    )
    tokenizer = word_tokenizer()
    contexts = pack(pages, tokenizer, cfg)
    text = {p.id: tokenizer(p.text, add_special_tokens=False)["input_ids"] for p in pages}
    seen: dict[str, list[tuple[int, int]]] = {}
    for i in range(contexts.n_contexts):
        page, start, tokens = (
            contexts.page_ids[contexts.page[i]],
            int(contexts.start[i]),
            contexts.tokens(i).tolist(),
        )
        body = tokens[bos:]
        assert tokens[:bos] == [1] * bos
        assert body
        assert body == text[page][start : start + len(body)]
        assert (least or ctx_len) <= len(tokens) <= ctx_len or len(body) == 1
        seen.setdefault(page, []).append((start, start + len(body)))
    for page, spans in seen.items():
        assert spans == sorted(spans) or least, "in reading order where all lengths are equal"
        assert all(a[1] <= b[0] for a, b in zip(sorted(spans), sorted(spans)[1:], strict=False)), (
            "disjoint"
        )
        assert not per_page or len(spans) <= per_page
        if not per_page and not least:
            assert len(spans) == len(text[page]) // (ctx_len - bos)
    assert contexts.report["tokens"] == contexts.n_tokens == contexts.offsets[-1]
    assert (np.diff(np.diff(contexts.offsets)) >= 0).all()


def test_a_page_longer_than_the_model_window_raises_no_warning():
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)
    try:
        pack(pages_of_every_split(30), word_tokenizer(), config("text", "-", ctx_len=4))
        assert seen == []
        word_tokenizer()(words(30))
        assert "longer than the specified maximum" in seen[0], "the plain call would have warned"
    finally:
        logging.getLogger("transformers").removeHandler(handler)


def test_the_identity_of_a_corpus_is_its_content():
    cfg = config("text", "-", ctx_len=4)
    pages = pages_of_every_split(8)
    same = pack(pages, word_tokenizer(), cfg).corpus_id
    assert pack(iter(pages), word_tokenizer(), config("jsonl", "x", ctx_len=4)).corpus_id == same
    assert (
        pack([*pages[:-1], Page(pages[-1].id, "", words(8))], word_tokenizer(), cfg).corpus_id
        != same
    )
    assert pack(pages[::-1], word_tokenizer(), cfg).corpus_id != same


def test_a_corpus_is_named_as_it_was_when_its_tokens_were_kept_in_memory():
    pages = [*pages_of_every_split(11), Page('"é', "", words(9)), Page("日本\n", "", words(7))]
    contexts = pack(
        pages, word_tokenizer(), config("text", "-", ctx_len=4, min_ctx_len=3, bos="always")
    )
    arrays = (contexts.ids, contexts.offsets, contexts.page, contexts.start, contexts.split)
    hashes = [hashlib.sha256(a.tobytes()).hexdigest() for a in arrays]
    assert contexts.corpus_id == stable_hash(hashes, tuple(contexts.page_ids), contexts.bos)
    assert (
        pack(pages_of_every_split(8), word_tokenizer(), config("text", "-", ctx_len=4)).corpus_id
        == "ca7a713c2237"
    )


# ---- memory


def test_tokens_spilled_in_pieces_are_those_of_one_piece(monkeypatch):
    pages = [
        Page(p.id, p.title, words(7 + 3 * i, first=i))
        for i, p in enumerate(pages_of_every_split(8, each=9))
    ]
    cfg = config("text", "-", ctx_len=16, min_ctx_len=2)
    whole = pack(pages, word_tokenizer(), cfg)
    monkeypatch.setattr(corpus, "PIECE", 24)
    monkeypatch.setattr(corpus, "BATCH_CHARS", 100)
    pieces = pack(pages, word_tokenizer(), cfg)
    for name in ("ids", "offsets", "page", "start", "split"):
        assert np.array_equal(getattr(pieces, name), getattr(whole, name)), name
    assert pieces.corpus_id == whole.corpus_id
    assert len(np.unique(np.diff(whole.offsets))) > 5, "or nothing was sorted"


def test_the_tokens_are_mapped_from_a_file_and_cannot_be_changed():
    contexts = pack(pages_of_every_split(8), word_tokenizer(), config("text", "-", ctx_len=4))
    assert isinstance(contexts.ids, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        contexts.ids[0] = 1


def test_a_full_disk_is_an_error_that_names_the_folder_and_the_way_out(monkeypatch):
    monkeypatch.setattr(corpus.tempfile, "TemporaryFile", partial(Path("/dev/full").open, "wb"))
    said = f"{tempfile.gettempdir()}: token ids cannot be kept there (No space left on device); set TMPDIR"
    with pytest.raises(CorpusError, match=re.escape(said)):
        pack(pages_of_every_split(8), word_tokenizer(), config("text", "-", ctx_len=4))


def test_ten_times_the_pages_take_no_memory_for_their_tokens(monkeypatch):
    monkeypatch.setattr(corpus, "PIECE", 4096)
    monkeypatch.setattr(corpus, "BATCH_CHARS", 50_000)

    def peak(n: int) -> tuple[int, int]:
        cfg, tokenizer = config("text", "-", ctx_len=128, min_ctx_len=8), word_tokenizer()
        pages = (Page(f"page {i}", f"title {i}", words(60 + i % 100)) for i in range(n))
        tracemalloc.start()
        contexts = pack(pages, tokenizer, cfg)
        grown = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return grown, contexts.n_tokens

    peak(200)
    (small, few), (large, many) = peak(1_000), peak(10_000)
    assert (large - small) / (many - few) < 2, (
        "bytes a token, for tables of contexts and pages; ids alone are 4"
    )


def test_strings_are_a_sequence_of_what_was_put_in():
    given = ["Abel", "", "日本", "a\nb"]
    strings = Strings()
    for text in given:
        strings.append(text)
    assert list(strings) == given
    assert (len(strings), strings[-1], strings[np.int32(2)], strings[1:3]) == (
        4,
        "a\nb",
        "日本",
        ("", "日本"),
    )
    assert "日本" in strings
    with pytest.raises(IndexError):
        strings[4]


# ---- split


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


def test_stored_splits_are_those_of_the_pages():
    contexts = pack(pages_of_every_split(8), word_tokenizer(), config("text", "-", ctx_len=4))
    assert [SPLITS[s] for s in contexts.split] == [split_of(p) for p in contexts.page_ids]
    assert contexts.report["pages_test"] == 2
    assert contexts.report["contexts_test"] == 4


# ---- too little text


def test_an_empty_corpus_says_so(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(
        CorpusError, match=r"empty\.jsonl: 0 pages and 0 tokens, but no page fills one context of 4"
    ):
        load_contexts(config("jsonl", tmp_path / "empty.jsonl", ctx_len=4), word_tokenizer())


def test_pages_shorter_than_one_context_are_counted_in_the_error():
    with pytest.raises(
        CorpusError, match="6 pages and 18 tokens, but no page fills one context of 4 tokens"
    ):
        pack(pages_of_every_split(3), word_tokenizer(), config("text", "-", ctx_len=4))


def test_a_split_left_empty_is_named():
    pages = [p for p in pages_of_every_split(8) if split_of(p.id) != "val"]
    with pytest.raises(
        CorpusError, match=r"4 pages and 32 tokens give 4 pages with 8 contexts.*split 'val'"
    ):
        pack(pages, word_tokenizer(), config("text", "-", ctx_len=4))


# ---- ids


def test_two_pages_of_one_id_are_refused_with_the_way_out(tmp_path):
    rows = [{"k": p.id, "text": p.text} for p in pages_of_every_split(8)]
    path = jsonl(tmp_path / "a.jsonl", [*rows, {**rows[2], "text": words(8, first=9)}])
    tokenizer, twice = word_tokenizer(), f"two pages have the id {rows[2]['k']!r}"
    with pytest.raises(
        CorpusError, match=rf"a\.jsonl: {twice}.*another id_column than 'k', or none"
    ):
        load_contexts(config("jsonl", path, id_column="k", ctx_len=4), tokenizer)
    assert load_contexts(config("jsonl", path, ctx_len=4), tokenizer).report["pages"] == 7, (
        "row numbers differ"
    )
    pages = pages_of_every_split(8)
    with pytest.raises(
        CorpusError, match=r"corpus mediawiki d: two pages have the id.*an id_column that tells"
    ):
        pack([*pages, pages[0]], tokenizer, config("mediawiki", "d", ctx_len=4))


# ---- JSONL


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


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


# ---- n_docs


def smallest_digests(ids: list[str], n: int, seed: int = 0) -> set[str]:
    return set(sorted(ids, key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).hexdigest())[:n])


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
    read = corpus._json_lines
    monkeypatch.setattr(
        corpus, "_json_lines", lambda name, stream: opened.append(name) or read(name, stream)
    )
    assert len(list(read_pages(config("jsonl", path)))) == 2
    assert len(opened) == 1
    assert len(list(read_pages(config("jsonl", path, n_docs=1)))) == 1
    assert len(opened) == 3


def test_a_draw_that_is_packed_reports_the_whole_corpus_and_the_drawn_pages(tmp_path):
    rows = [{"id": p.id, "text": p.text} for p in pages_of_every_split(8, each=20)]
    path = jsonl(tmp_path / "a.jsonl", [*rows, {"id": "y", "text": ""}])
    contexts = load_contexts(
        config("jsonl", path, id_column="id", ctx_len=4, n_docs=50), word_tokenizer()
    )
    expected = {"pages": 50, "pages_blank": 1, "contexts": 100, "tokens_read": 400}
    assert {k: contexts.report[k] for k in expected} == expected


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


def test_skipped_lines_reach_the_report_of_the_contexts(tmp_path):
    rows = [{"id": p.id, "text": p.text} for p in pages_of_every_split(8)]
    path = jsonl(tmp_path / "a.jsonl", [*rows, {"id": "x"}, {"id": "y", "text": ""}])
    contexts = load_contexts(
        config("jsonl", path, id_column="id", ctx_len=4, on_bad_line="skip"), word_tokenizer()
    )
    expected = {
        "bad_lines": 1,
        "pages_blank": 1,
        "pages": 6,
        "tokens_read": 48,
        "contexts": 12,
        "pages_short": 0,
    }
    assert {k: contexts.report[k] for k in expected} == expected
    json.dumps(contexts.report)


def test_a_missing_path_is_an_error_that_asks_no_hub(tmp_path):
    for source in ("jsonl", "parquet", "text", "mediawiki"):
        with pytest.raises(CorpusError, match=f"nothing' does not exist; source '{source}'"):
            list(read_pages(config(source, tmp_path / "nothing")))
    for source in ("fever", "dataset"):
        with pytest.raises(CorpusError, match=r"nothing\.zip' does not exist, and is no hub id"):
            list(read_pages(config(source, tmp_path / "nothing.zip")))
    with pytest.raises(CorpusError, match=r"holds no \*\.jsonl"):
        list(read_pages(config("jsonl", tmp_path)))


# ---- Parquet and data sets


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


@pytest.mark.parametrize("source", ["dataset", "fever"])
def test_an_unreachable_hub_is_an_error_with_the_local_way(source):
    code = (
        "from saelib.config import CorpusConfig; from saelib.text.corpus import read_pages\n"
        f"list(read_pages(CorpusConfig(source='{source}', path='owner/no-such-set')))"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert "CorpusError: owner/no-such-set: cannot be read (" in last
    assert "give a local folder as path" in last


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


# ---- FEVER

LONG = "Line upon line . " * 20_000
FEVER_ROWS = [
    {"id": "", "text": "", "lines": ""},  # as the real file begins
    {
        "id": "Abel_-LRB-film-RRB-",
        "text": "Abel -LRB- 2010 -RRB- is a film . It is short . ",  # ends in a space
        "lines": "0\tAbel -LRB- 2010 -RRB- is a film .\tfilm\tFilm\n1\tIt is short .\n2\t",
    },
    {"id": "Blank", "text": "", "lines": ""},
    {
        "id": "Star-COLON-_One",
        "text": "It 's `` new '' , they say . ",
        "lines": "0\tIt 's `` new '' , they say .",
    },
    {"id": "Space", "text": " ", "lines": "0\t"},
    {
        "id": "Tōkyō_-LRB-東京-RRB-",
        "text": "Tōkyō -LRB- 東京 , \u2028 \x85 مدينة -RRB- . ",
        "lines": "0\t",
    },
    {"id": "Long", "text": LONG, "lines": f"0\t{LONG}"},
]
FEVER_PAGES = [
    Page("Abel_-LRB-film-RRB-", "Abel (film)", "Abel (2010) is a film. It is short."),
    Page("Star-COLON-_One", "Star: One", 'It\'s "new", they say.'),
    Page("Tōkyō_-LRB-東京-RRB-", "Tōkyō (東京)", "Tōkyō (東京, \u2028 \x85 مدينة)."),
    Page("Long", "Long", "Line upon line. " * 19_999 + "Line upon line."),
]


def fever_folder(folder: Path) -> Path:
    """wiki-001.jsonl and wiki-002.jsonl, half of them in escapes and half in plain UTF-8, beside another file."""
    folder.mkdir()
    plain = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in FEVER_ROWS[2:])
    (folder / "wiki-002.jsonl").write_text(plain, encoding="utf-8", newline="\n")
    jsonl(folder / "wiki-001.jsonl", FEVER_ROWS[:2])
    jsonl(folder / "shared_task_dev.jsonl", [{"claim": "not a page"}])
    return folder


def fever_forms(folder: Path, parquet_rows: list[dict]) -> dict[str, Path]:
    """FEVER's pages as a folder, as the archive and as the hub's Parquet conversion, in whatever order that has."""
    forms = {name: folder / name for name in ("wiki-pages", "wiki-pages.zip", "conversion")}
    fever_folder(forms["wiki-pages"])
    with zipfile.ZipFile(forms["wiki-pages.zip"], "w", zipfile.ZIP_DEFLATED) as archive:
        for file in forms["wiki-pages"].iterdir():
            archive.write(file, f"wiki-pages/{file.name}")
        archive.writestr("__MACOSX/wiki-pages/._wiki-001.jsonl", b"\x00\x05")
    shards = forms["conversion"] / "wiki_pages" / "wikipedia_pages"
    shards.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(parquet_rows[:2]), shards / "0000.parquet")
    pq.write_table(pa.Table.from_pylist(parquet_rows[2:]), shards / "0001.parquet")
    return forms


def test_fever_folder_archive_and_parquet_give_the_same_pages(tmp_path):
    for path in fever_forms(tmp_path, FEVER_ROWS).values():
        report: dict = {}
        assert list(read_pages(config("fever", path), report)) == FEVER_PAGES
        assert (report["pages_blank"], report["bad_lines"]) == (3, 0)
    streamed = list(
        _loaded(str(tmp_path / "conversion"), "hub", columns=["id", "text"], **FEVER_ON_THE_HUB)
    )
    assert streamed == [
        (f"hub, row {i}", {k: r[k] for k in ("id", "text")}) for i, r in enumerate(FEVER_ROWS, 1)
    ]


@pytest.mark.parametrize("seed", [0, 1])
def test_n_docs_draws_the_same_pages_from_every_form_of_fever(tmp_path, seed):
    forms = fever_forms(tmp_path, FEVER_ROWS[::-1])
    drawn = {
        name: list(read_pages(config("fever", path, n_docs=2, seed=seed)))
        for name, path in forms.items()
    }
    chosen = smallest_digests([p.id for p in FEVER_PAGES], 2, seed)
    assert (
        drawn["wiki-pages"] == drawn["wiki-pages.zip"] == [p for p in FEVER_PAGES if p.id in chosen]
    )
    assert drawn["conversion"] == drawn["wiki-pages"][::-1], (
        "the pages are the same, their order is the form's"
    )


def test_of_the_parquet_conversion_only_id_and_text_are_read(tmp_path):
    path = tmp_path / "wiki_pages" / "0000.parquet"
    path.parent.mkdir()
    table = pa.Table.from_pylist(FEVER_ROWS[1:2]).append_column("note", pa.array(["x" * 1000]))
    pq.write_table(table, path, compression="none", use_dictionary=False)
    data = path.read_bytes()
    path.write_bytes(
        data.replace(b"x" * 1000, b"\xff" * 1000)
    )  # no longer UTF-8, which reading it would notice
    assert list(read_pages(config("fever", tmp_path))) == FEVER_PAGES[:1]


def test_the_treebank_option_off_leaves_text_and_title_as_they_are(tmp_path):
    pages = list(read_pages(config("fever", fever_folder(tmp_path / "w"), detokenize=False)))
    assert pages[0] == Page(
        "Abel_-LRB-film-RRB-",
        "Abel_-LRB-film-RRB-",
        "Abel -LRB- 2010 -RRB- is a film . It is short .",
    )
    assert [p.id for p in pages] == [p.id for p in FEVER_PAGES], (
        "the option moves no page to another split"
    )


def test_pages_are_streamed_so_later_files_are_not_touched(tmp_path):
    folder = fever_folder(tmp_path / "w")
    (folder / "wiki-002.jsonl").write_text("not JSON")
    assert next(read_pages(config("fever", folder))) == FEVER_PAGES[0]
    with pytest.raises(CorpusError, match=r"wiki-002\.jsonl:1: not JSON"):
        list(read_pages(config("fever", folder)))


def test_a_bad_line_in_the_archive_is_named_and_a_damaged_archive_too(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("wiki-pages/wiki-001.jsonl", '{"id": "a", "text": "one"}\n{"id": "b"}\n')
    with pytest.raises(
        CorpusError, match=r"w\.zip/wiki-pages/wiki-001\.jsonl:2: no field 'text'; it has 'id'"
    ):
        list(read_pages(config("fever", tmp_path / "w.zip")))
    (tmp_path / "w.zip").write_bytes(b"PK no archive")
    with pytest.raises(CorpusError, match=r"w\.zip: archive cannot be read \("):
        list(read_pages(config("fever", tmp_path / "w.zip")))


def test_a_damaged_member_of_the_archive_is_named(tmp_path):
    path, name = tmp_path / "w.zip", "wiki-pages/wiki-002.jsonl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("wiki-pages/wiki-001.jsonl", '{"id": "a", "text": "one"}\n')
        archive.writestr(name, '{"id": "b", "text": "two"}\n' * 9)
        begin = (
            archive.getinfo(name).header_offset + 30 + len(name)
        )  # a local header is 30 bytes and the name
    data = bytearray(path.read_bytes())
    data[begin] = 0b111  # a deflate block of the type that does not exist
    path.write_bytes(data)
    pages = read_pages(config("fever", path))
    assert next(pages).text == "one"
    with pytest.raises(
        CorpusError,
        match=r"w\.zip/wiki-pages/wiki-002\.jsonl: archive cannot be read \(.*invalid block type",
    ):
        next(pages)


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (
            "He -LRB- born 1 May 1980 -RRB- , a poet , died . ",
            "He (born 1 May 1980), a poet, died.",
        ),
        (
            "`` Heroes '' -LRB- David Bowie song -RRB- is old .",
            '"Heroes" (David Bowie song) is old.',
        ),
        ("-LRB- `` A '' ; see -LSB- 1 -RSB- -RRB- !", '("A"; see [1])!'),
        ("the set -LCB- 1 , 2 -RCB- holds two -COLON- yes ?", "the set {1, 2} holds two: yes?"),
        (
            "It did n't and they 've said John 's dog ca n't .",
            "It didn't and they've said John's dog can't.",
        ),
        (
            "the boys ' toys of the ' 90s cost $ 5 , or 3 % ...",
            "the boys' toys of the ' 90s cost $5, or 3%...",
        ),
        ("it rose by .5 from 10:30 -- see a.b , c/d", "it rose by .5 from 10:30 -- see a.b, c/d"),
        ("a ` word ' in single quotes", "a 'word' in single quotes"),
        (
            'Ordinary text (as it is): "quoted", it\'s 5.5% [1].',
            'Ordinary text (as it is): "quoted", it\'s 5.5% [1].',
        ),
    ],
)
def test_treebank_tokens_become_text(tokens, text):
    assert detokenize(tokens) == text


def test_fever_ids_become_titles():
    assert fever_title("Alien-COLON-_Isolation_-LRB-2014-RRB-") == "Alien: Isolation (2014)"
    assert fever_title("Schindler's_List") == "Schindler's List"


# ---- the embedded excerpt


@pytest.mark.slow
def test_the_embedded_wikipedia_gives_the_expected_articles_tokens_and_contexts():
    from transformers import AutoTokenizer

    from saelib.text.assets import embedded_model

    contexts = load_contexts(CorpusConfig(), AutoTokenizer.from_pretrained(embedded_model()))
    expected = {
        "pages": 106,
        "pages_short": 2,
        "pages_redirect": 99,
        "pages_other_namespace": 1,
        "contexts": 1698,
    }
    assert {k: contexts.report[k] for k in expected} == expected
    assert contexts.n_tokens == 1698 * 128
    assert 600_000 < contexts.report["tokens_read"] < 700_000
    assert not contexts.bos, "the tokenizer has a BOS but adds none"
    assert contexts.report["pages_test"] >= 20
    assert contexts.report["pages_val"] >= 10
    assert contexts.page_titles[:2] == ("Anarchism", "Autism")


@pytest.mark.slow
def test_enwik8_gives_its_articles_up_to_the_cut():
    report: dict = {}
    pages = list(read_pages(CorpusConfig(source="enwik8"), report))
    assert (len(pages), report["pages_blank"]) == (8571, 18)
    assert (report["pages_redirect"], report["pages_other_namespace"]) == (3649, 108), (
        "12,346 whole pages in all"
    )
    assert (pages[0].title, pages[-1].title) == ("Anarchism", "James Bond")
    assert 70e6 < sum(len(p.text) for p in pages) < 75e6


@pytest.mark.slow
def test_the_cleaned_excerpt_is_kept_and_read_back_the_same():
    first, again = ({}, {})
    pages = list(read_pages(CorpusConfig(), first))
    assert list(read_pages(CorpusConfig(), again)) == pages
    assert again == first
    left = [
        p.title
        for p in pages
        for mark in ("{{", "{|", "[[", "<ref", "''", "\x00")
        if mark in p.text
    ]
    assert left == []
