"""A control token that a page spells stays text, whatever kind of tokenizer reads it."""

import re

import pytest
from helpers.texts import config, pages_of_every_split
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from saelib.text.contexts import pack
from saelib.text.pages import Page
from saelib.text.rows import CorpusError
from saelib.text.spelling import control_tokens, token_ids

SPELT = "a <s> b</s> <|endoftext|>c <s><s>"
TEXT = "the letters a b c, < and > and / and s, and endoftext with its | bars"


def trained_bytes() -> Tokenizer:
    """A byte-level BPE, as GPT-2's and Llama-3's, with control tokens in it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    control = ["<s>", "</s>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        special_tokens=control, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator([TEXT, SPELT] * 20, trainer)
    return backend


def pieces() -> Tokenizer:
    """A Unigram vocabulary, in which the control tokens are pieces like any other."""
    characters = [(c, -3.0) for c in sorted(set(SPELT) - {" "})]
    control = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("<|endoftext|>", 0.0)]
    backend = Tokenizer(models.Unigram([*control, ("▁", -1.0), *characters], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend


def merged() -> Tokenizer:
    """A BPE that takes a whole word where the vocabulary has it, as Llama-3's does."""
    vocabulary = ["<unk>", "<s>", "</s>", "<|endoftext|>", *sorted(set(SPELT))]
    ids = {token: n for n, token in enumerate(vocabulary)}
    backend = Tokenizer(models.BPE(ids, [], unk_token="<unk>", ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.Fuse()
    return backend


def fast(backend: Tokenizer, **options) -> PreTrainedTokenizerFast:
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    extra = [AddedToken("<|endoftext|>", special=True)]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=extra, **names, **options
    )


@pytest.mark.parametrize("make", [trained_bytes, pieces, merged])
def test_no_control_token_comes_of_a_page_and_its_text_is_whole(make):
    tokenizer = fast(make())
    control = control_tokens(tokenizer)
    assert set(control.values()) == {"<s>", "</s>", "<|endoftext|>"}
    plain = tokenizer(SPELT, add_special_tokens=False)["input_ids"]
    assert len(control.keys() & set(plain)) == 3, "or the plain call would do"
    (ids,) = token_ids([SPELT], tokenizer)
    assert control.keys().isdisjoint(ids)
    assert tokenizer.decode(ids).replace(" ", "") == SPELT.replace(" ", "")


def test_text_without_control_tokens_has_the_ids_of_the_plain_call():
    tokenizer = fast(trained_bytes())
    assert token_ids([TEXT, ""], tokenizer) == [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (TEXT, "")
    ]


def test_added_tokens_that_are_not_special_stay_what_they_are_to_the_tokenizer():
    tokenizer = fast(trained_bytes())
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("    ")])
    added = tokenizer.convert_tokens_to_ids(["<think>", "    "])
    text = "a <think> b    c"
    for page in (text, f"{text} <s>"):  # cut at <s> where that is spelt
        (ids,) = token_ids([page], tokenizer)
        assert [n for n in ids if n in added] == added
        assert control_tokens(tokenizer).keys().isdisjoint(ids)
        assert tokenizer.decode(ids, skip_special_tokens=True) == page


def test_contexts_hold_no_begin_but_their_own():
    tokenizer = fast(trained_bytes())
    pages = [Page(page.id, "", f"{SPELT} " * 20) for page in pages_of_every_split(1)]
    contexts = pack(pages, tokenizer, config("text", "-", ctx_len=16, bos="always"))
    assert (contexts.ids == tokenizer.bos_token_id).sum() == contexts.n_contexts


def test_control_tokens_made_of_other_characters_are_refused_with_the_page():
    backend = pieces()
    backend.normalizer = normalizers.NFKC()
    message = "makes its control tokens '<s>' of a page's text that begins 'a ＜s＞'"
    with pytest.raises(CorpusError, match=re.escape(message)):
        token_ids(["a ＜s＞"], fast(backend))
