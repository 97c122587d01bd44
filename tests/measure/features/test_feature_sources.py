"""An own text run through the model is what a store of it would be."""

import numpy as np
import pytest
import torch
from helpers.features import make_sae
from helpers.models import SINK_TOKEN

from saelib.measure.features import IndexOptions, OwnText, build_index, twins
from saelib.measure.features.sources import OwnPages, StorePages

OPTIONS = IndexOptions(contexts=2, batch=5)
TEXT = [[3, 8, SINK_TOKEN, 11, 12, 13], [5, 5, 6]]


def test_an_own_text_of_a_store_s_contexts_is_the_store(lm, store, tmp_path):
    sae = make_sae(store)
    contexts = store.contexts_of("test")
    ids = store.tokens["token_id"]
    texts = [ids[store.context_rows(c)].tolist() for c in contexts.tolist()]
    own = OwnText(lm, texts, median_norm=store.median_norm(2))
    pages = OwnPages(own, 2)
    stored = StorePages(store, 2, "test")
    assert pages.tokens.token_id.tolist() == stored.tokens.token_id.tolist()
    assert pages.tokens.position.tolist() == stored.tokens.position.tolist()
    assert pages.tokens.kind.tolist() == store.token_class(2)[stored.rows].tolist()
    x = torch.cat(list(pages.iter_rows(7)))
    torch.testing.assert_close(x, torch.cat(list(stored.iter_rows(7))), rtol=1e-4, atol=1e-4)
    index = build_index(sae, own, lm, tmp_path / "own", options=OPTIONS)
    fires = sae.encode_raw(x)[pages.tokens.kind == 2] > 0
    assert index.table["n_fired"].tolist() == fires.sum(0).tolist()
    assert index.table["n_fired"].sum() > 0


def test_classes_and_titles_of_an_own_text(lm, store, tmp_path):
    own = OwnText(lm, TEXT, ["one", "two"])
    index = build_index(make_sae(store), own, lm, tmp_path / "i", options=OPTIONS)
    assert index.tokens.kind.tolist() == [0, 2, 1, 2, 2, 2, 0, 2, 2]
    assert index.manifest["source"] == "own text"
    latent = int(index.table["n_fired"].idxmax())
    assert {window.title for window in index.contexts(latent, "top")} <= {"one", "two"}
    assert np.isnan(index.contexts(latent, "top")[0].activations[0])
    assert index.firing_on(0)[0].tolist() == []


def test_first_tokens_are_no_part_of_the_norm_that_makes_a_sink(lm):
    """Most tokens here are of huge norm, but most that follow another are not."""
    texts = [[SINK_TOKEN, 3], [SINK_TOKEN, 5], [SINK_TOKEN, 6], [SINK_TOKEN, 8, SINK_TOKEN]]
    assert OwnPages(OwnText(lm, texts), 2).tokens.kind.tolist() == [0, 2, 0, 2, 0, 2, 0, 2, 1]


def test_own_texts_are_told_apart(lm, store, tmp_path):
    sae = make_sae(store)
    a = build_index(sae, OwnText(lm, TEXT), lm, tmp_path / "a", options=OPTIONS)
    b = build_index(sae, OwnText(lm, TEXT[:1]), lm, tmp_path / "b", options=OPTIONS)
    assert a.manifest["corpus_id"] != b.manifest["corpus_id"]
    with pytest.raises(ValueError, match="corpus_id is 'own-"):
        twins(a, b)


def test_bad_texts_are_refused(lm, store, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="own text: no tokens"):
        OwnText(lm, [])
    with pytest.raises(ValueError, match="own text: no tokens"):
        OwnText(lm, [[1], []])
    with pytest.raises(ValueError, match="1 titles for 2 contexts"):
        OwnText(lm, TEXT, ["one"])
    with pytest.raises(ValueError, match="own text: no ordinary token to index"):
        build_index(make_sae(store), OwnText(lm, [[4]]), lm, tmp_path / "i")
    monkeypatch.setattr(lm, "max_length", 4)
    with pytest.raises(ValueError, match="a context of 6 tokens, tiny-0 takes at most 4"):
        OwnText(lm, TEXT)
    assert not (tmp_path / "i").exists()
