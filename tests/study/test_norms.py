"""Notebook 01's messages say what was seen, on models with and without sinks, BOS or repeats."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.random_stores import SITES, D, make_contexts, make_store

from saelib.study import norms, text_card


def depth(first, ordinary):
    """Norms by depth at two sites with these medians."""
    rows = [
        (site, name, value, value, value)
        for site, pair in enumerate(zip(first, ordinary, strict=True))
        for name, value in zip(("first", "ordinary"), pair, strict=True)
    ]
    return pd.DataFrame(rows, columns=["site", "class", "q10", "median", "q90"])


def test_the_norms_by_depth_are_quantiles_of_first_and_of_ordinary_tokens():
    norm = {3: np.array([[100.0, 1, 2, 3, 50], [200.0, 1, 2, 3, 2]])}
    table = norms.by_depth(norm).set_index(["site", "class"])
    assert table.loc[(3, "first"), "median"] == 150
    assert table.loc[(3, "ordinary"), "median"] == 2  # 50 is over five times the median: a sink


@pytest.mark.parametrize(
    ("first", "ordinary", "words"),
    [
        ((1, 3000), (1, 30), "grow 30-fold (sites 0 to 1); first tokens are massive"),
        ((1, 30), (1, 30), "grow 30-fold (sites 0 to 1); no massive first token"),
        ((1, 1.5), (1, 1.5), "hardly grow (sites 0 to 1); no massive first token"),
    ],
)
def test_the_title_of_norms_by_depth_says_what_was_seen(first, ordinary, words):
    table = depth(first, ordinary)
    assert norms.depth_title(table, [0, 1]).endswith(words)
    note = norms.depth_note(table, [0, 1], 16, "m")
    assert ("massive" in note) == ("are massive" in words)
    assert len(norms.depth_title(table, [0, 1]).split()) <= 12


def test_a_first_token_is_massive_above_ten_times_the_ordinary_norm_and_growth_above_two():
    (grows, _), (massive, words) = norms.depth_checks(depth((1, 100), (5, 10)), [0, 1], 1)
    assert (grows, massive) == (False, False)
    assert words == "at site 1 the first token is > 10 x ordinary"
    (grows, _), (massive, _) = norms.depth_checks(depth((1, 101), (4.9, 10)), [0, 1], 1)
    assert (grows, massive) == (True, True)


def test_growth_names_the_sites_between_which_it_is_and_the_whole_span_beside():
    table = depth((1, 1, 1, 1), (2, 4, 8, 40))
    note = norms.depth_note(table, [1, 2], 16, "m")
    assert "(sites 1 to 2)" in norms.depth_title(table, [1, 2])
    assert "2-fold from site 1 to 2, the first and last stored one; 20-fold from 0 to 3." in note


def test_massive_first_tokens_with_a_gap_between_are_counted_not_spanned():
    note = norms.depth_note(depth((100, 1, 100), (1, 1, 1)), [0, 2], 16, "m")
    assert "massive at 2 of the 3 sites drawn: the shallowest is 0, the deepest 2." in note


@pytest.mark.parametrize(
    ("alone", "led", "words"),
    [
        (10.0, 1.0, "The place makes a sink"),
        (1.0, 1.0, "First words are no sinks"),
        (10.0, 10.0, "in some contexts only"),
    ],
)
def test_the_place_is_blamed_only_where_first_words_turn_ordinary_behind_bos(alone, led, words):
    first = norms.FirstWords(15, np.full(8, alone), np.full(8, led), np.full(8, 10.0), 5.0)
    assert words in norms.first_words_title(first)


def test_bos_is_a_sink_by_the_definition_s_own_limit():
    first = norms.FirstWords(15, np.full(8, 10.0), np.full(8, 1.0), np.full(8, 5.1), 5.0)
    assert norms.first_words_checks(first)[-1] == (True, "BOS is a sink in their stead")


def test_bos_is_put_in_front_or_taken_away():
    ids = torch.tensor([[7, 8, 9]])
    assert norms.with_or_without_bos(ids, False, 1).tolist() == [[1, 7, 8, 9]]
    assert norms.with_or_without_bos(ids, True, 7).tolist() == [[8, 9]]


def test_the_first_word_is_followed_behind_bos_by_its_own_position():
    collected = {15: np.array([[100.0, 1.0], [100.0, 1.0]])}
    rerun = {15: np.array([[90.0, 2.0, 1.0], [90.0, 2.0, 1.0]])}
    table = norms.norms_of_first_words([15], collected, rerun, False).set_index("variant")
    assert table["median"].to_dict() == {"as collected": 100.0, "BOS prepended": 2.0}
    other = norms.norms_of_first_words([15], rerun, collected, True).set_index("variant")
    assert other["median"].to_dict() == {"as collected": 2.0, "BOS removed": 100.0}


def tokens(sink, repeat, relative=None):
    relative = np.ones(len(sink)) if relative is None else np.asarray(relative)
    return norms.Repeats(15, np.array(sink), np.array(repeat), relative)


def test_repeats_have_only_their_own_kind_before_them(tmp_path):
    words = [5, 5, 5, 7, 5, 3, 3, 4, 4, 4]  # two contexts, of 5 and of 5
    contexts = make_contexts(lengths=(5, 5), page_of=(0, 1), split_of=(0, 0))
    contexts = replace(contexts, ids=np.array(words, dtype=np.int32))
    sizes = torch.tensor([50.0, 40, 1, 2, 1, 10, 1, 1, 1, 30])
    x = {site: sizes[:, None] * torch.eye(D)[0] for site in SITES}
    found = norms.repeats(make_store(tmp_path, x, contexts=contexts), SITES[1])
    assert np.flatnonzero(found.repeat).tolist() == [1, 2, 6]
    assert np.flatnonzero(found.sink).tolist() == [1, 9]  # over five times the median of 1
    assert found.relative_norm == pytest.approx(sizes.numpy() / np.repeat([50, 10], 5))
    assert found.site == SITES[1]


def test_nothing_is_claimed_of_repeats_where_there_are_none():
    assert norms.repeats_checks(tokens([True, False], [False, False])) == []
    assert "no sinks" in norms.repeats_sentence(tokens([False, False], [False, False]))


def test_repeats_that_are_ordinary_hold_no_check():
    checks = norms.repeats_checks(tokens([False, True], [True, False], [0.01, 1]))
    assert [holds for holds, _ in checks] == [False, False, False, False]


def profile(norm_share, top_all, top_ordinary):
    rows = [
        (15, "all", 1000, 1.0, 0.5, top_all),
        (15, "first", 8, norm_share, 0.9, 1.0),
        (15, "ordinary", 992, 1 - norm_share, 0.5, top_ordinary),
    ]
    columns = ["site", "class", "count", "norm_share", "mean_share", "top1_share"]
    return pd.DataFrame(rows, columns=columns)


def test_few_tokens_hold_most_of_the_norm_only_where_they_do():
    special = norms.class_shares(profile(0.99, 0.9, 0.02))
    assert norms.shares_title(special, 15) == "Few tokens hold most of the squared norm at site 15"
    assert "0.8 % of the tokens, 99 %" in norms.shares_note(special, 15, "m")
    plain = norms.class_shares(profile(0.01, 0.1, 0.1))
    assert norms.shares_title(plain, 15).startswith("Ordinary tokens hold most")


@pytest.mark.parametrize(
    ("tokens", "norm", "near_input", "holds"),
    [
        (0.019, 0.9, 0.4, [True, True, True]),
        (0.021, 0.6, 0.31, [False, True, False]),
        (0.019, 0.49, 0.2, [True, False, True]),
    ],
)
def test_the_checks_of_few_tokens_and_most_of_the_norm(tokens, norm, near_input, holds):
    rows = [(2, "first", 0.01, near_input), (15, "first", tokens / 2, norm / 2)]
    rows += [(15, "sink", tokens / 2, norm / 2), (15, "ordinary", 1 - tokens, 1 - norm)]
    shares = pd.DataFrame(rows, columns=["site", "class", "share_tokens", "share_sq_norm"])
    assert [bool(held) for held, _ in norms.shares_checks(shares, 15, 2)] == holds


@pytest.mark.parametrize(
    ("top_all", "top_ordinary", "words"),
    [(0.9, 0.02, "only where sinks are counted"), (0.9, 0.9, "with and without"), (0.1, 0.1, "No")],
)
def test_one_dimension_rules_only_where_it_does(top_all, top_ordinary, words):
    offset = norms.offsets(profile(0.9, top_all, top_ordinary))
    assert words in norms.offsets_title(offset, 15)


def test_sinks_hide_the_rank_only_where_it_is_larger_without_them():
    assert "hide" in norms.spectra_title({(15, "all"): 1.0, (15, "ordinary"): 64.0}, 15)
    assert "same" in norms.spectra_title({(15, "all"): 60.0, (15, "ordinary"): 64.0}, 15)


def test_the_card_says_what_stands_at_position_0():
    assert "always BOS" in text_card.where_contexts_begin(SimpleNamespace(bos=True))
    assert "arbitrary" in text_card.where_contexts_begin(SimpleNamespace(bos=False))


# What is read from contexts, streams and stores


def test_whole_contexts_are_the_longest_evenly_spaced():
    contexts = make_contexts(lengths=(3, 4, 2, 4, 4, 4, 4, 3), page_of=(0,) * 8, split_of=(0,))
    found = norms.whole_contexts(contexts, 3)
    assert found.dtype == torch.long
    assert found.tolist() == [contexts.tokens(i).tolist() for i in (1, 4, 6)]
    assert len(norms.whole_contexts(contexts, 9)) == 5  # there are no more
    assert norms.whole_contexts(contexts, 1).tolist() == [contexts.tokens(1).tolist()]


def test_norms_are_euclidean_by_context_and_position():
    x = torch.tensor([[[3.0, 4.0], [0.0, 1.0]], [[5.0, 12.0], [8.0, 6.0]]])
    found = norms.norms({2: x.bfloat16(), 4: 2 * x})
    assert found[2].tolist() == [[5, 1], [13, 10]]
    assert found[4].tolist() == [[10, 2], [26, 20]]


@pytest.mark.parametrize("has_bos", [False, True])
def test_first_words_are_read_alone_and_behind_bos_whichever_was_collected(tmp_path, has_bos):
    site = SITES[1]
    sizes = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 30])
    contexts = make_contexts(lengths=(5, 5), page_of=(0, 1), split_of=(0, 0))
    x = {SITES[0]: torch.ones(10, D), site: sizes[:, None] * torch.eye(D)[0]}
    store = make_store(tmp_path, x, contexts=contexts)
    alone = {SITES[0]: np.ones((2, 2)), site: np.array([[40.0, 1], [20.0, 2]])}
    behind = {SITES[0]: np.ones((2, 3)), site: np.array([[50.0, 7, 1], [60.0, 40, 2]])}
    collected, rerun = (behind, alone) if has_bos else (alone, behind)
    found = norms.first_words(store, site, collected, rerun, has_bos)
    assert found.site == site
    assert found.alone.tolist() == [40, 20]
    assert found.after_bos.tolist() == [7, 40]
    assert found.bos.tolist() == [50, 60]
    later = np.array([2, 3, 4, 5, 7, 8, 9, 30])
    assert found.limit == 5 * np.median(later)
    assert (found.n, found.sinks_alone, found.sinks_after_bos) == (2, 1, 1)


@pytest.mark.parametrize(("has_bos", "variant"), [(False, "BOS prepended"), (True, "BOS removed")])
def test_the_caption_counts_the_first_words_that_are_sinks(has_bos, variant):
    alone, behind = np.array([9.0, 9, 9, 5]), np.array([9.0, 1, 5, 1])
    first = norms.FirstWords(15, alone, behind, np.full(4, 9.0), 5.0)
    assert norms.first_words_note(first, has_bos, "m") == (
        "3 of 4 first words are sinks at site 15 with nothing before them, "
        f"1 after BOS ({variant}). m."
    )


def test_sinks_that_repeat_their_first_token_are_counted_among_all():
    found = tokens([True, True, True, False, False], [True, True, False, True, False])
    words = norms.repeats_sentence(found)
    assert words == "3 sinks after position 0 at site 15; 2 repeat their first token"


def offset(top_all, top_ordinary, offset_share=(0.3, 0.3)):
    rows = {"site": [2, 15], "offset_share": offset_share}
    rows |= {"top_dim_share_all": [0.5, top_all], "top_dim_share_ordinary": [0.6, top_ordinary]}
    return pd.DataFrame(rows)


def test_the_caption_of_the_largest_dimension_has_both_shares_of_its_site():
    note = norms.offsets_note(offset(0.987, 0.0123), 15, "m")
    assert note == (
        "Largest dimension at site 15: 99 % of the variance of all tokens; "
        "of ordinary tokens' 1.2 %. All splits. m."
    )


@pytest.mark.parametrize(
    ("table", "holds"),
    [
        (offset(0.81, 0.19, (0.26, 0.26)), [True, True, True]),
        (offset(0.8, 0.2, (0.25, 0.9)), [False, False, False]),
        (offset(0.9, 0.3, (0.9, 0.2)), [True, False, False]),
    ],
)
def test_the_checks_of_one_dimension_are_of_the_site_and_the_mean_s_of_every_site(table, holds):
    checks = norms.offsets_checks(table, 15)
    assert [bool(held) for held, _ in checks] == holds
    assert "at site 15 one dimension" in checks[0][1]


def test_spectra_are_of_training_rows_over_all_and_over_ordinary_tokens(tmp_path):
    store = make_store(tmp_path)
    table, rank = norms.spectra(store)
    assert list(rank) == [(site, name) for site in SITES for name in ("all", "ordinary")]
    for (site, name), found in rank.items():
        x = store.rows(site, np.flatnonzero(store.mask(name, "train"))).double().numpy()
        variances = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
        assert found == pytest.approx(variances.sum() ** 2 / (variances**2).sum())
        own = table[(table["site"] == site) & (table["variant"] == name)]
        assert own["rank"].tolist() == list(range(1, D + 1))
        expected = np.cumsum(variances) / variances.sum()
        np.testing.assert_allclose(own["cumulative"], expected)
    assert len(table) == 4 * D


RANK = {(2, "all"): 7.0, (2, "ordinary"): 8.0, (15, "all"): 1.94, (15, "ordinary"): 20.6}


def test_the_caption_of_spectra_has_both_ranks_of_its_site():
    note = norms.spectra_note(RANK, 15, "m")
    assert note == (
        "Effective rank at site 15: 1.9 over all tokens, 21 over ordinary ones. Training rows. m."
    )


@pytest.mark.parametrize(
    ("over_all", "ordinary", "left", "holds"),
    [
        (1.9, 20.1, (0.84, 0.2), [True, True]),
        (2.0, 30.0, (0.85, 0.2), [False, False]),
        (1.0, 20.0, (0.2, 0.9), [False, False]),
    ],
)
def test_the_checks_of_spectra_are_of_the_site_s_ranks_and_of_pca_at_one_rank(
    over_all, ordinary, left, holds
):
    rank = RANK | {(15, "all"): over_all, (15, "ordinary"): ordinary}
    rows = [(2, 32, left[0]), (15, 32, left[1]), (2, 1, 0.99), (15, 1, 0.99)]
    pca = pd.DataFrame(rows, columns=["site", "rank", "fvu"])
    checks = norms.spectra_checks(rank, pca, 15, 32)
    assert [bool(held) for held, _ in checks] == holds
    assert checks[0][1].startswith("site 15:")
    assert checks[1][1] == "rank 32 leaves under 85 % of the variance"
    assert not norms.spectra_checks(rank, pca, 15, 1)[1][0]
