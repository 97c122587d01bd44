"""Descriptions of latents against a plain computation, and what they say of made latents."""

import numpy as np
import pytest

from saelib.measure.features import one_thing
from saelib.measure.features.codes import sorted_codes
from saelib.measure.features.sources import StorePages, TokenTable

PAGES = 4
LENGTH = 40
KINDS = {"token": 0, "next": 1, "before": -1}


def table(seed, types=7):
    """Tokens of two contexts a page, the first of each context not ordinary."""
    rng = np.random.default_rng(seed)
    n = PAGES * LENGTH
    position = np.tile(np.arange(LENGTH // 2), PAGES * 2).astype(np.int32)
    context = np.repeat(np.arange(PAGES * 2), LENGTH // 2).astype(np.int32)
    page = np.repeat(np.arange(PAGES), LENGTH).astype(np.int32)
    ids = rng.integers(0, types, n).astype(np.int32)
    kind = np.where(position == 0, one_thing.ORDINARY - 1, one_thing.ORDINARY).astype(np.int8)
    return TokenTable(ids, position, context, page, kind, [f"page {i}" for i in range(PAGES)])


def random_codes(tokens, n_latents=9, seed=3):
    rng = np.random.default_rng(seed)
    fires = rng.random((len(tokens), n_latents)) < 0.2
    fires[tokens.position == 0] = False
    fires[:, -1] = False
    rows, latents = np.nonzero(fires)
    values = rng.random(len(rows)).astype(np.float32) + 0.1
    return sorted_codes(rows, latents, values, n_latents)


def neighbour(tokens, row, distance):
    place = row + distance
    if not 0 <= place < len(tokens) or tokens.context[place] != tokens.context[row]:
        return one_thing.OUTSIDE
    return int(tokens.token_id[place])


def plain_description(codes, tokens, latent):
    """(place, {types}) by dictionaries."""
    rows, values = codes.of(latent)
    best = (-1.0, "", [])
    for name, distance in KINDS.items():
        mass = {}
        for row, value in zip(rows.tolist(), values.tolist(), strict=True):
            token = neighbour(tokens, row, distance)
            mass[token] = mass.get(token, 0.0) + value
        most = sorted(mass, key=lambda token: (-mass[token], token))[: one_thing.N_TYPES]
        share = sum(mass[token] for token in most) / sum(values)
        if share > best[0] + 1e-6:
            best = (share, name, most)
    return best[1], set(best[2])


def test_a_description_is_that_of_dictionaries():
    tokens = table(0)
    codes = random_codes(tokens)
    description = one_thing.describe(codes, tokens)
    names = list(one_thing.PLACES)
    for latent in range(codes.n_latents - 1):
        place, types = plain_description(codes, tokens, latent)
        assert names[description.place[latent]] == place
        assert set(description.types[latent].tolist()) - {-2} == types
    assert (description.types[-1] == -2).all()


def test_what_a_description_holds_on_other_pages_is_summed_by_page():
    train, test = table(0), table(1)
    codes = random_codes(train)
    description = one_thing.describe(codes, train)
    other = random_codes(test, seed=8)
    result = one_thing.held(other, test, description)
    distances = list(one_thing.PLACES.values())
    weights = np.array([1.0, 0.0, 2.0, 1.0])
    each_page = np.eye(PAGES)
    for latent in range(codes.n_latents):
        inside, total = np.zeros(PAGES), np.zeros(PAGES)
        for row, value in zip(*(part.tolist() for part in other.of(latent)), strict=True):
            token = neighbour(test, row, distances[description.place[latent]])
            total[test.page[row]] += value
            inside[test.page[row]] += value * (token in description.types[latent])
        np.testing.assert_allclose(result.sums("total", each_page)[latent], total)
        np.testing.assert_allclose(result.sums("inside", each_page)[latent], inside)
        share = inside @ weights / (total @ weights) if total.any() else np.nan
        assert result.shares(weights)[latent] == pytest.approx(share, nan_ok=True)
    assert result.n_pages == PAGES
    assert not result.n_fired[-1]


def test_pages_on_which_a_latent_is_silent_take_no_room():
    tokens = table(0)
    rows = np.flatnonzero(tokens.position > 0)[:5]  # of the first page
    codes = sorted_codes(rows, np.full(5, 6), np.ones(5, np.float32), 1000)
    result = one_thing.held(codes, tokens, one_thing.describe(codes, tokens))
    assert len(result.total) == 1
    assert result.sums("total", np.ones((PAGES, 1)))[:, 0].tolist() == [0] * 6 + [5] + [0] * 993


@pytest.mark.parametrize("name", KINDS)
def test_a_latent_of_one_place_is_described_there_and_holds_elsewhere(name):
    """It fires wherever the token at the place is 2; elsewhere tokens are many types."""
    held_shares = []
    for seed in (0, 1):
        tokens = table(seed, types=60)
        tokens.token_id[::5] = 2
        at_place = one_thing.tokens_at(tokens, KINDS[name])
        rows = np.flatnonzero((at_place == 2) & (tokens.position > 0))
        latents = np.zeros(len(rows), np.int64)
        codes = sorted_codes(rows, latents, np.ones(len(rows), np.float32), 1)
        if seed == 0:
            description = one_thing.describe(codes, tokens)
            assert list(one_thing.PLACES)[description.place[0]] == name
            assert 2 in description.types[0]
        else:
            result = one_thing.held(codes, tokens, description)
            held_shares.append(result.shares(np.ones(PAGES))[0])
            lost = one_thing.shuffled(codes, tokens, seed=0)
            chance = one_thing.held(lost, tokens, description).shares(np.ones(PAGES))[0]
            assert chance < 0.6
    assert held_shares == [pytest.approx(1.0)]


def test_shuffled_codes_keep_counts_and_sizes_on_ordinary_tokens():
    tokens = table(0)
    codes = random_codes(tokens)
    lost = one_thing.shuffled(codes, tokens, seed=5)
    assert (lost.counts == codes.counts).all()
    assert (tokens.position[lost.rows] > 0).all()
    for latent in range(codes.n_latents):
        assert sorted(lost.of(latent)[1].tolist()) == sorted(codes.of(latent)[1].tolist())
    assert (lost.rows != codes.rows).any()


def test_a_drawn_sample_has_whole_contexts_of_the_split(store):
    whole = StorePages(store, 2, "train")
    part = StorePages(store, 2, "train", n_tokens=20, seed=1)
    assert 20 <= len(part.tokens) < len(whole.tokens)
    assert set(part.rows) < set(whole.rows)
    for context in np.unique(part.tokens.context):
        assert (part.tokens.context == context).sum() == (whole.tokens.context == context).sum()
    again = StorePages(store, 2, "train", n_tokens=20, seed=1)
    assert (again.rows == part.rows).all()
