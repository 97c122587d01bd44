"""The reference of a site: which contexts, computed once, checked whenever it is used."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.stores import CFG, SITE

from saelib.config import EvalConfig
from saelib.measure.reference import ce_contexts, site_reference


def test_contexts_are_dealt_round_robin_over_pages_within_the_budget(store):
    for tokens in (60, 150, 400, 10_000):
        chosen = ce_contexts(store, EvalConfig(ce_tokens=tokens))
        assert len(set(chosen)) == len(chosen)
        assert set(chosen) <= set(store.contexts_of("test").tolist())
        lengths = [store.context_rows(c).stop - store.context_rows(c).start for c in chosen]
        assert lengths == sorted(lengths)
        assert sum(lengths) <= tokens
        assert sum(lengths) > tokens - 16 or tokens == 10_000
        times = np.bincount(
            [int(store.tokens["page"][store.context_rows(c).start]) // 4 for c in chosen],
            minlength=12,
        )
        assert times.max() - times.min() <= 1
    assert len(chosen) == 48
    assert len(ce_contexts(store, EvalConfig(ce_tokens=1))) == 1
    assert ce_contexts(store, EvalConfig(ce_tokens=200)) == ce_contexts(
        store, EvalConfig(ce_tokens=200)
    )
    assert ce_contexts(store, EvalConfig(ce_tokens=200)) != ce_contexts(
        store, EvalConfig(ce_tokens=200, seed=1)
    )


def test_a_budget_that_the_contexts_fill_to_the_last_token_takes_them_all(store):
    def tokens_of(contexts):
        rows = map(store.context_rows, contexts)
        return sum(part.stop - part.start for part in rows)

    every = ce_contexts(store, EvalConfig(ce_tokens=10_000))
    filled = EvalConfig(ce_tokens=tokens_of(every))
    assert ce_contexts(store, filled) == every
    assert len(ce_contexts(store, replace(filled, ce_tokens=filled.ce_tokens - 1))) == 47


def test_the_reference_is_computed_once_and_read_back_equal(store, lm, ref, tmp_path, monkeypatch):
    cache = tmp_path / "refs" / "site_02.json"
    assert site_reference(lm, store, SITE, CFG, cache) == ref
    with monkeypatch.context() as patched:
        patched.setattr(lm, "continue_from", None)
        assert site_reference(lm, store, SITE, CFG, cache) == ref
    assert [p.name for p in cache.parent.iterdir()] == ["site_02.json"]
    assert ref.n_targets == sum(page["n"] for page in ref.pages) > 300
    other = EvalConfig(ce_tokens=100, batch_tokens=64)
    assert (
        site_reference(lm, store, SITE, other, cache).config == other.to_dict()
    )  # a stale file is replaced
    assert site_reference(lm, store, SITE, other, cache).n_targets < ref.n_targets


@pytest.mark.parametrize("content", ["{", "{}", '{"site": 2}'])
def test_a_cache_that_is_no_reference_is_named(content, store, lm, tmp_path):
    cache = tmp_path / "ref.json"
    cache.write_text(content)
    with pytest.raises(ValueError, match=r"ref\.json is not a site reference"):
        site_reference(lm, store, SITE, CFG, cache)


def test_the_reference_knows_its_file_and_the_file_does_not(store, lm, tmp_path):
    cache = tmp_path / "site_02.json"
    assert site_reference(lm, store, SITE, CFG, cache).file == cache
    assert site_reference(lm, store, SITE, CFG, cache).file == cache  # read back
    assert site_reference(lm, store, SITE, CFG).file is None
    assert str(tmp_path) not in cache.read_text()


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-3), ("bfloat16", 1e-2)])
def test_a_clean_loss_may_drift_as_far_as_its_dtype_rounds(ref, dtype, allowed):
    known = replace(ref, dtype=dtype, file=Path("eval/site_02.json"))
    known.check_drift(ref.ce_id + 0.9 * allowed)
    known.check_drift(ref.ce_id - 0.9 * allowed)
    for beyond in (1.1 * allowed, -1.1 * allowed):
        with pytest.raises(ValueError, match=rf"{dtype}.*remove eval/site_02\.json"):
            known.check_drift(ref.ce_id + beyond)


def test_a_reference_without_a_file_asks_for_a_new_one(ref):
    with pytest.raises(ValueError, match="make a new one"):
        ref.check_drift(ref.ce_id + 1)


@pytest.mark.parametrize("name", ["ce_id", "ce_zero", "n", "page_id", "n_replaced", "contexts"])
def test_one_edited_value_of_a_cached_reference_is_refused(name, store, lm, ref, tmp_path):
    cache = tmp_path / "site_02.json"
    site_reference(lm, store, SITE, CFG, cache)
    content = json.loads(cache.read_text())
    holder = content if name in content else content["pages"][0]
    value = holder[name]
    holder[name] = [*value, 0] if isinstance(value, list) else value * 2
    cache.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{cache} is not a site reference \(damaged, .*: remove"):
        site_reference(lm, store, SITE, CFG, cache)


def test_a_reference_of_an_earlier_version_opens_with_a_notice(store, lm, ref, tmp_path, caplog):
    cache = tmp_path / "site_02.json"
    site_reference(lm, store, SITE, CFG, cache)
    content = json.loads(cache.read_text())
    del content["hash"]
    cache.write_text(json.dumps(content))
    assert site_reference(lm, store, SITE, CFG, cache) == ref
    assert f"{cache}: of an earlier version, has no hash; opened unchecked" in caplog.messages
