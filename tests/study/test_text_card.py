"""The data card's words, and the token that stands in front of a text."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers.random_stores import N_ROWS, D, make_contexts, make_store
from helpers.texts import word_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from saelib.config import CorpusConfig
from saelib.study import text_card
from saelib.study.text_card import bos_id
from saelib.text.contexts import load_contexts
from saelib.text.rows import CorpusError

WORDS = {"a": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<pad>": 4}


def tokenizer_of(**special):
    words = Tokenizer(models.WordLevel(WORDS, unk_token=special.get("unk_token", "a")))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


@pytest.mark.parametrize(
    ("special", "token"),
    [
        ({"bos_token": "<s>", "eos_token": "</s>"}, 1),
        ({"eos_token": "</s>", "pad_token": "<pad>"}, 2),
    ],
)
def test_bos_or_else_end_of_text_stands_in_front(special, token, caplog):
    assert bos_id(tokenizer_of(**special)) == token
    assert not caplog.text


@pytest.mark.parametrize(
    ("special", "token", "name"),
    [
        ({"unk_token": "<unk>"}, 3, "<unk>"),
        ({"pad_token": "<pad>"}, 4, "<pad>"),
        ({}, 0, "a"),
    ],
)
def test_a_tokenizer_with_neither_says_what_stands_in_its_place(special, token, name, caplog):
    assert bos_id(tokenizer_of(**special)) == token
    assert f"has neither BOS nor EOS: what asks for a BOS gets {name!r}" in caplog.text


def test_text_is_cut_without_bos_and_eos_and_a_bos_that_is_asked_for_is_refused(tmp_path):
    path = tmp_path / "pages.jsonl"
    path.write_text("".join(f'{{"id": "{i}", "text": "a a"}}\n' for i in range(60)))
    text = {"source": "jsonl", "path": str(path), "ctx_len": 2}
    tokenizer = tokenizer_of()
    assert not load_contexts(CorpusConfig(**text), tokenizer).bos
    with pytest.raises(CorpusError, match="'always', but the tokenizer has no BOS token"):
        load_contexts(CorpusConfig(**text, bos="always"), tokenizer)


COUNTS = {"pages": 1200, "pages_short": 34, "bad_lines": 5, "chars": 67890, "tokens_read": 12345}
COUNTS |= {"pages_train": 900, "pages_val": 80, "pages_test": 70, "contexts_train": 4}
COUNTS |= {"contexts_val": 3, "contexts_test": 2}


def counted(bos=False, **more):
    """Contexts of 2 to 6 tokens: those of training pages 0 and 3, of val page 1, of test page 2."""
    return replace(make_contexts(), report=COUNTS | more, bos=bos)


@pytest.mark.parametrize(
    ("sites", "three"),
    [((2, 9, 15, 20, 29), (2, 15, 29)), ((2, 29), (2, 29, 29)), ((4,), (4, 4, 4))],
)
def test_the_three_sites_are_the_first_the_middle_and_the_last(tmp_path, sites, three):
    store = make_store(tmp_path, {s: torch.ones(N_ROWS, D) for s in sites}, sites=sites)
    assert text_card.three_sites(store) == three


def test_the_card_says_what_was_read_and_how_it_was_cut():
    card = text_card.data_card(counted(), "a model", "fever", "/nowhere")
    assert card.to_dict() == {
        "model": "a model",
        "text": "English Wikipedia: the page introductions of FEVER",
        "licence of the text": "CC BY-SA",
        "pages": "1,200 read, 34 shorter than a context",
        "bad lines": "5 skipped",
        "text read": "67,890 characters, 12,345 tokens",
        "contexts": "8 of 6 tokens at most, none crosses a page",
        "position 0": "a word: the tokenizer adds no BOS",
    }


def test_the_card_names_a_text_of_one_s_own_by_its_path_and_claims_no_licence():
    card = text_card.data_card(counted(bos=True), "a model", "jsonl", "/my/pages.jsonl")
    assert card["text"] == "jsonl /my/pages.jsonl"
    assert card["licence of the text"] == "as its owner says"
    assert card["position 0"] == "BOS"


def test_pages_of_the_same_text_are_on_the_card_where_there_are_some():
    some = counted(pages_same_text=1234, pages_test_as_train=5)
    card = text_card.data_card(some, "a model", "fever", "")
    words = "1,234 pages repeat another's text, 5 test pages that of a training page"
    assert card["same text"] == words
    none = counted(pages_same_text=0, pages_test_as_train=0)
    assert "same text" not in text_card.data_card(none, "a model", "fever", "")


def test_the_splits_card_counts_pages_and_contexts_as_read_and_tokens_of_contexts():
    table = text_card.split_card(counted())
    assert table.index.tolist() == ["pages", "contexts", "tokens"]
    # lengths 2, 4, 5 of page 0 and 6 of page 3 train; 4 and 6 of page 1 val; 4 and 5 of page 2 test
    assert table["train"].tolist() == [900, 4, 2 + 4 + 5 + 6]
    assert table["val"].tolist() == [80, 3, 4 + 6]
    assert table["test"].tolist() == [70, 2, 4 + 5]
    assert table["all"].tolist() == [1050, 9, 36]


def test_a_split_without_contexts_has_no_tokens():
    contexts = replace(make_contexts(split_of=(0, 1, 0, 0)), report=COUNTS)
    assert text_card.split_card(contexts)["test"].tolist() == [70, 2, 0]


def test_examples_are_the_beginnings_of_evenly_spaced_contexts_under_their_pages_titles():
    contexts = make_contexts(lengths=(20, 3, 18, 2, 3), page_of=(0, 0, 1, 1, 2), vocab=50)
    tokenizer = word_tokenizer()
    shown = list(text_card.examples(contexts, tokenizer, 3))
    assert len(shown) == 3
    for line, (context, title) in zip(shown, ((0, "P0"), (2, "P1"), (4, "P2")), strict=True):
        text = tokenizer.decode(contexts.tokens(context)[:16].tolist())
        assert line == f"{title}: {text!r} …"


def test_an_example_has_no_sign_for_a_piece_of_a_letter():
    pieces = SimpleNamespace(decode=lambda ids: "\ufffdab\ufffd")
    assert list(text_card.examples(make_contexts(), pieces, 1)) == ["P0: 'ab' …"]
