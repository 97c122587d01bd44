"""Small corpora and a tokenizer with one token per word, for tests."""

import hashlib
import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from saelib.config import CorpusConfig
from saelib.text.pages import SPLITS, Page, split_of

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


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def smallest_digests(ids: list[str], n: int, seed: int = 0) -> set[str]:
    return set(sorted(ids, key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).hexdigest())[:n])
