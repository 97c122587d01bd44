"""Pages -> contexts: the cutting against a plain re-computation, memory, what is refused."""

import hashlib
import json
import logging
import re
import tempfile
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers.texts import config, jsonl, pages_of_every_split, word_tokenizer, words
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from saelib.config import CorpusConfig, stable_hash
from saelib.study.text_card import data_card
from saelib.text import buffers
from saelib.text import contexts as contexts_module
from saelib.text.contexts import load_contexts, pack
from saelib.text.pages import SPLITS, Page, split_of
from saelib.text.rows import CorpusError

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


def test_stored_splits_are_those_of_the_pages():
    contexts = pack(pages_of_every_split(8), word_tokenizer(), config("text", "-", ctx_len=4))
    assert [SPLITS[s] for s in contexts.split] == [split_of(p) for p in contexts.page_ids]
    assert contexts.report["pages_test"] == 2
    assert contexts.report["contexts_test"] == 4


# ---- memory


def test_tokens_spilled_in_pieces_are_those_of_one_piece(monkeypatch):
    pages = [
        Page(p.id, p.title, words(7 + 3 * i, first=i))
        for i, p in enumerate(pages_of_every_split(8, each=9))
    ]
    cfg = config("text", "-", ctx_len=16, min_ctx_len=2)
    whole = pack(pages, word_tokenizer(), cfg)
    monkeypatch.setattr(buffers, "PIECE", 24)
    monkeypatch.setattr(contexts_module, "BATCH_CHARS", 100)
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
    monkeypatch.setattr(buffers.tempfile, "TemporaryFile", partial(Path("/dev/full").open, "wb"))
    reason = "token ids cannot be kept there (No space left on device); set TMPDIR"
    with pytest.raises(CorpusError, match=re.escape(f"{tempfile.gettempdir()}: {reason}")):
        pack(pages_of_every_split(8), word_tokenizer(), config("text", "-", ctx_len=4))


def test_ten_times_the_pages_take_no_memory_for_their_tokens(monkeypatch):
    monkeypatch.setattr(buffers, "PIECE", 4096)
    monkeypatch.setattr(contexts_module, "BATCH_CHARS", 50_000)

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


def test_a_tokenizer_that_finds_nothing_in_a_text_is_named():
    empty = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()))
    with pytest.raises(CorpusError, match=r"6 pages and 0 tokens: the model's tokenizer finds not"):
        pack(pages_of_every_split(3), empty, config("text", "-", ctx_len=4))


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


# ---- reports


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


def test_a_draw_that_is_packed_reports_the_whole_corpus_and_the_drawn_pages(tmp_path):
    rows = [{"id": p.id, "text": p.text} for p in pages_of_every_split(8, each=20)]
    path = jsonl(tmp_path / "a.jsonl", [*rows, {"id": "y", "text": ""}])
    contexts = load_contexts(
        config("jsonl", path, id_column="id", ctx_len=4, n_docs=50), word_tokenizer()
    )
    expected = {"pages": 50, "pages_blank": 1, "contexts": 100, "tokens_read": 400}
    assert {k: contexts.report[k] for k in expected} == expected


def test_pages_of_one_text_are_counted_and_those_across_train_and_test(tmp_path):
    pages = pages_of_every_split(8)
    by_split = {name: [p for p in pages if split_of(p.id) == name] for name in SPLITS}
    train, test = by_split["train"], by_split["test"]
    twice = [
        Page(test[0].id, "", train[0].text),
        Page(test[1].id, "", train[0].text),
        Page(train[1].id, "", by_split["val"][0].text),
    ]
    ids = {page.id for page in twice}
    pages = [*(page for page in pages if page.id not in ids), *twice]
    contexts = pack(pages, word_tokenizer(), config("text", "-", ctx_len=4), {"bad_lines": 0})
    counts = contexts.report
    assert (counts["pages_same_text"], counts["pages_test_as_train"]) == (3, 2)
    assert data_card(contexts, "m", "text", "")["same text"] == (
        "3 pages repeat another's text, 2 test pages that of a training page"
    )


def test_no_word_is_said_of_same_texts_where_there_are_none():
    cfg = config("text", "-", ctx_len=4)
    contexts = pack(pages_of_every_split(8), word_tokenizer(), cfg, {"bad_lines": 0})
    assert contexts.report["pages_same_text"] == contexts.report["pages_test_as_train"] == 0
    assert "same text" not in data_card(contexts, "m", "text", "")


# ---- the embedded excerpt


@pytest.mark.slow
@pytest.mark.parametrize(
    ("per_page", "corpus_id"), [(2, "2ce015c93bc8"), (12, "9ed1450456a7"), (20, "6bce41098378")]
)
def test_the_embedded_corpus_is_the_one_that_was_recorded(per_page, corpus_id):
    from transformers import AutoTokenizer

    from saelib.text.models import named_model

    tokenizer = AutoTokenizer.from_pretrained(named_model("embedded"))
    contexts = load_contexts(CorpusConfig(contexts_per_page=per_page), tokenizer)
    assert contexts.corpus_id == corpus_id
    assert contexts.report["pages_same_text"] == 0


@pytest.mark.slow
def test_the_embedded_wikipedia_gives_the_expected_articles_tokens_and_contexts():
    from transformers import AutoTokenizer

    from saelib.text.models import named_model

    contexts = load_contexts(CorpusConfig(), AutoTokenizer.from_pretrained(named_model("embedded")))
    expected = {
        "pages": 106,
        "pages_short": 2,
        "pages_redirect": 99,
        "pages_other_namespace": 1,
        "contexts": 1701,
    }
    assert {k: contexts.report[k] for k in expected} == expected
    assert contexts.n_tokens == 1701 * 128
    assert 600_000 < contexts.report["tokens_read"] < 700_000
    assert not contexts.bos, "the tokenizer has a BOS but adds none"
    assert contexts.report["pages_test"] >= 20
    assert contexts.report["pages_val"] >= 10
    assert contexts.page_titles[:2] == ("Anarchism", "Autism")
