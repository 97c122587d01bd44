"""The data card's words, and the token that stands in front of a text."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from saelib.config import CorpusConfig
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
