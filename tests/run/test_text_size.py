"""Tokens of a text before it is read: counted, sampled, assumed, and what is not believed."""

import json
from types import SimpleNamespace

import datasets
import numpy as np
import pytest

from saelib.config import ConfigError, CorpusConfig
from saelib.run import text_size
from saelib.run.text_size import TextSize, estimated, kept, text_of


@pytest.fixture
def pages(tmp_path):
    """A folder of 40 pages of 2,100 characters: 500 tokens, three contexts of 128."""
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text("word " * 420)
    return tmp_path


def test_a_page_gives_whole_contexts_and_a_tail_where_it_is_long_enough():
    cfg = CorpusConfig(ctx_len=128, min_ctx_len=16)
    lengths = (10, 16, 100, 128, 140, 300)
    assert [kept(n, cfg, 0) for n in lengths] == [0, 16, 100, 128, 128, 300]
    assert kept(300, cfg, 1) == 128
    assert [kept(n, CorpusConfig(ctx_len=128), 0) for n in (100, 300)] == [0, 256]


def test_fever_s_100_000_pages_are_assumed_to_be_10_million_tokens():
    cfg = CorpusConfig(
        source="fever", path="fever/fever", n_docs=100_000, min_ctx_len=16, contexts_per_page=0
    )
    text = estimated(cfg, 1)
    assert (text.train, text.val, text.test) == pytest.approx((7e6, 1e6, 2e6))
    assert text.known == "100,000 pages of 100 tokens, assumed"


@pytest.mark.parametrize("n_docs", [0, 40, 10_000])
def test_no_more_pages_are_planned_than_the_text_holds(pages, n_docs):
    cfg = CorpusConfig(source="text", path=str(pages), contexts_per_page=2, n_docs=n_docs)
    text = estimated(cfg, 1)
    assert text.total == pytest.approx(40 * 2 * 128)  # two of a page's three contexts
    assert text.depths == pytest.approx(40 * 128)
    assert text.known == "40 pages of 500 tokens, as the first 40 have"


def test_pages_beyond_the_sample_are_counted(pages, monkeypatch):
    monkeypatch.setattr(text_size, "SAMPLE", 10)
    whole, some = (
        estimated(CorpusConfig(source="text", path=str(pages), n_docs=n), 0) for n in (0, 20)
    )
    assert whole.known == "40 pages of 500 tokens, as the first 10 have"
    assert whole.total == pytest.approx(2 * some.total)


def test_a_text_elsewhere_of_unknown_size_is_refused_naming_what_to_set():
    words = r"'who/knows': nothing lies at /.*/who/knows, .* set n_docs"
    with pytest.raises(ConfigError, match=words):
        estimated(CorpusConfig(source="dataset", path="who/knows"), 0)


def test_a_store_s_own_tokens_are_counted_where_it_is_of_this_text(home, monkeypatch):
    corpus = CorpusConfig(source="text", path="there", contexts_per_page=2)
    folder = home / "data" / "p"
    (folder / "store").mkdir(parents=True)
    (folder / "workspace.json").write_text(json.dumps({"corpus": corpus.to_dict()}))
    (folder / "store" / "manifest.json").write_text("{}")
    tokens = {"page": np.array([0, 0, 0, 1, 2]), "split": np.array([0, 0, 0, 1, 2])}
    monkeypatch.setattr(text_size.Store, "open", lambda *_, **__: SimpleNamespace(tokens=tokens))
    values = corpus.to_dict() | {"corpus_seed": 0, "profile": "p"}
    text = text_of(values, 0)
    assert (text.train, text.val, text.test, text.known) == (3, 1, 1, "counted")


def test_streaming_keeps_at_most_so_many_held_out_tokens():
    text = TextSize(100.0, 50.0, 20.0, 0.0, "")
    assert text.streamed(0) == text
    assert (text.streamed(30).val, text.streamed(30).test) == (30, 20)


def test_what_follows_the_colon_of_a_local_path_does_not_make_it_a_text_elsewhere(tmp_path):
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(["word " * 420] * 30))
    datasets.Dataset.from_dict({"text": ["word " * 420] * 50}).save_to_disk(tmp_path / "saved")
    paths = {"text": f"{tmp_path}/a.txt:<|endoftext|>", "dataset": f"{tmp_path}/saved::train[:30]"}
    for source, path in paths.items():
        size = estimated(CorpusConfig(source=source, path=path, contexts_per_page=2), 0)
        assert size.known.startswith("30 pages of 500 tokens, as the first 30 have")
