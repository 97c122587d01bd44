"""F3g: every verdict on made estimates, shares of made latents, and which SAEs are compared."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.f2_cases import PowerLaws
from helpers.f3_cases import SCOPE, between

from saelib.measure.bootstrap import page_draws, widening
from saelib.measure.features import FeatureIndex
from saelib.measure.features.one_thing import Description, Held
from saelib.run.source_notebooks import parameters as literals
from saelib.run.source_notebooks import sources
from saelib.study import f3_features as study
from saelib.study import f3_features_findings as findings
from saelib.study.estimate import constant, undefined
from saelib.study.notebooks import FeaturesParams

MARGIN = 0.05
PAGES = 20


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ([between(-0.3, -0.2), between(-0.2, -0.06)], "supported"),
        ([between(-0.3, -0.2), between(-0.2, -0.05)], "undecided"),  # touches the margin
        ([between(-0.3, -0.2), between(-0.04, 0.1)], "contradicted"),
        ([between(-0.05, 0.1), between(-0.3, -0.2)], "undecided"),  # touches it from above
        ([between(-0.3, -0.2), undefined()], "undecided"),
        ([between(0.1, 0.2), undefined()], "undecided"),
        ([], "undecided"),
    ],
)
def test_fewer_at_the_deepest_site_is_judged_by_whole_intervals(changes, verdict):
    named = dict(enumerate(changes))
    assert study.decide(named, MARGIN, n_seeds=3, n_pages=15) == verdict


@pytest.mark.parametrize(("n_seeds", "n_pages"), [(2, 20), (3, 14)])
def test_two_seeds_or_fourteen_pages_decide_nothing(n_seeds, n_pages):
    assert study.decide({2: between(-0.3, -0.2)}, MARGIN, n_seeds, n_pages) == "undecided"


def test_a_site_without_the_l0_leaves_the_difference_undefined():
    shares = {("plain", 2): constant(0.3), ("full", 29): constant(0.2)}
    changes = study.differences(shares, [2, 29])
    assert not changes[2].defined
    shares["plain", 29] = constant(0.2)
    assert study.differences(shares, [2, 29])[2].value == pytest.approx(-0.1)


def parameters():
    """Those of notebook 06, as it has them."""
    return FeaturesParams.read(literals(sources(["06"])[0]), "06_features")


def rows(*points, seeds=(0,)):
    """Rows of a curve: (λ, L0) for each seed."""
    listed = [(lam, l0, seed) for lam, l0 in points for seed in seeds]
    return pd.DataFrame(listed, columns=["lambda", "l0_val", "seed"])


def test_the_nearest_lambda_serves_or_one_between_its_neighbours():
    near = rows((1.0, 60.0), (2.0, 34.0), (4.0, 15.0))
    assert study.matched_lambda(near, 32.0) == 2.0
    far = rows((1.0, 64.0), (4.0, 16.0))
    assert study.matched_lambda(far, 32.0) == pytest.approx(2.0, rel=1e-2)
    assert study.matched_lambda(rows((1.0, 20.0), (4.0, 16.0)), 32.0) is None
    assert study.matched_lambda(rows((1.0, 0.0)), 32.0) is None


def test_a_lambda_that_one_seed_alone_has_is_not_taken():
    both = rows((1.0, 64.0), (4.0, 16.0), seeds=(0, 1))
    alone = rows((2.1, 32.0), seeds=(0,))
    assert study.matched_lambda(pd.concat([both, alone]), 32.0) == pytest.approx(2.0, rel=1e-2)


def test_saes_at_the_l0_are_trained_once_a_seed_for_each_arm_and_site():
    ws = PowerLaws({"plain": 80.0, "full": 100.0})
    p = parameters()
    cells = study.train(ws, p)
    sites = {ws.site(site) for site in p.sites}
    assert set(cells) == {(arm, site) for arm in study.ARMS for site in sites}
    for (arm, site), specs in cells.items():
        assert [spec.train.seed for spec in specs] == list(p.seeds)
        assert {(spec.arm, spec.sae.site) for spec in specs} == {(arm, site)}
        (lam,) = {spec.train.lam for spec in specs}
        assert ws.levels[arm] / lam == pytest.approx(p.l0_target, rel=0.1)
        assert all(repr(spec) in ws.trained for spec in specs)


def test_an_arm_that_does_not_reach_the_l0_is_left_out():
    ws = PowerLaws({"plain": 80.0, "full": 1e-3})
    assert {arm for arm, _ in study.train(ws, parameters())} == {"plain"}


def looked(inside, total, n_train=50, places=None, W_dec=None):
    """Latents with the same mass on each of `PAGES` pages."""
    inside, total = np.asarray(inside, float), np.asarray(total, float)
    n = len(inside)
    held = Held(
        np.repeat(np.arange(n), PAGES),
        np.tile(np.arange(PAGES), n),
        np.repeat(inside, PAGES),
        np.repeat(total, PAGES),
        np.where(total > 0, 50, 0),
        PAGES,
    )
    place = np.zeros(n, int) if places is None else np.asarray(places)
    description = Description(place, np.zeros((n, 3), int), np.broadcast_to(n_train, n))
    return study.Looked(description, held, np.zeros(n), W_dec)


def test_the_share_is_of_judged_latents_that_hold_half_or_more():
    inside, total, n_train = (
        [1.0, 0.5, 0.4, 1.0, 0.0],
        [1.0, 1.0, 1.0, 1.0, 0.0],
        [50, 50, 50, 9, 50],
    )
    one = looked(inside, total, n_train)
    assert one.judged.tolist() == [True, True, True, False, False]
    assert one.fits().tolist() == [True, True, False, False, False]
    many = looked(*(np.repeat(each, study.LEAST_JUDGED) for each in (inside, total, n_train)))
    estimate = study.share_estimate(many)
    assert estimate.value == pytest.approx(2 / 3)
    assert (estimate.lo, estimate.hi) == pytest.approx((2 / 3, 2 / 3))
    kinds = [study.KINDS[kind] if kind >= 0 else "dead" for kind in one.kinds()]
    assert kinds == ["token", "token", "no short description", "too rare to judge", "dead"]


def test_a_share_that_hangs_on_pages_has_an_interval():
    one = looked([1.0] * 60, [1.0] * 60)
    rng = np.random.default_rng(0)
    inside = rng.random((60, PAGES)) * 0.9 + 0.05
    mixed = one._replace(held=one.held._replace(inside=inside.ravel()))
    estimate = study.share_estimate(mixed)
    share = (inside.sum(1) / PAGES >= 0.5).mean()
    assert estimate.value == share
    assert estimate.lo < estimate.hi
    times = page_draws(PAGES)
    drawn = (times @ inside.T / PAGES >= 0.5).mean(1)
    expected = np.clip(share + widening(np.ones(PAGES)) * (drawn - share), 0, 1)
    assert estimate.draws[1:] == pytest.approx(expected)
    assert estimate.heaviest == pytest.approx(1 / PAGES)


def test_a_share_of_fewer_than_five_pages_has_no_interval():
    one = looked([1.0] * 60, [1.0] * 60)
    mass = one.held.page < 4
    fields = {name: getattr(one.held, name)[mass] for name in ("latent", "page", "inside", "total")}
    few = one._replace(held=one.held._replace(**fields, n_pages=4))
    estimate = study.share_estimate(few)
    assert (estimate.value, np.isnan(estimate.lo)) == (1.0, True)


@pytest.mark.parametrize(("n", "is_enough"), [(50, True), (49, False), (0, False)])
def test_a_share_of_few_judged_latents_is_none_and_decides_nothing(n, is_enough):
    looks = looked([1.0] * 60, [1.0] * 60, n_train=[50] * n + [3] * (60 - n))
    share = study.share_estimate(looks)
    assert share.defined == is_enough
    shares = {("plain", 2): constant(0.5), ("plain", 29): share}
    changes = study.differences(shares, [2, 29])
    verdict = "contradicted" if is_enough else "undecided"
    assert study.decide(changes, MARGIN, n_seeds=3, n_pages=15) == verdict
    chance = dict.fromkeys(shares, 0.0)
    one = findings.one_thing(shares, changes, chance, parameters(), SCOPE, 29)
    assert ("site 29 fewer than 50 latents judged" in one.sentence) != is_enough


def test_kinds_are_shares_of_living_latents():
    one = looked([1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], places=[0, 1, 0, 0])
    table = study.kind_shares({("plain", 2): [one]}).set_index("kind")["share"]
    assert table["token"] == pytest.approx(1 / 3)
    assert table["next"] == pytest.approx(1 / 3)
    assert table["no short description"] == pytest.approx(1 / 3)
    assert table.sum() == pytest.approx(1)


def test_latents_are_found_again_by_direction_among_living_ones():
    eye = torch.eye(4)
    one = looked([1] * 4, [1] * 4, W_dec=eye)
    turned = eye.clone()
    turned[1] = eye[0]  # row 1 is no longer there
    other = looked([1] * 4, [1, 1, 1, 0], W_dec=turned)  # and row 3 never fires
    assert study.shared_latents(one, other).share == pytest.approx(0.5)
    looks = {("plain", 2): [one, other], ("full", 2): [one]}
    table = study.found_again(looks, [2, 29])
    assert table["in"].tolist() == ["another seed", "another seed", "the Gated SAE"]
    assert table["share"].iloc[0] == pytest.approx(0.5)
    assert set(table["site"]) == {2}


def test_latents_that_look_like_one_thing_are_counted_apart_from_others():
    one = looked([1, 1, 0, 0], [1] * 4, W_dec=torch.eye(4))
    other = looked([1] * 4, [1, 1, 1, 0], W_dec=torch.eye(4))
    shared = study.shared_latents(one, other)
    assert shared == (0.75, 1.0, 0.5)
    again = study.found_again({("plain", 2): [one, other], ("full", 2): [other]}, [2])
    note = findings.describable(again[again["in"] == "the Gated SAE"])
    assert (
        "In the same seed's Gated SAE (site 2), of latents that look like one thing 100 %" in note
    )
    assert "of the other judged ones 50 %" in note
    assert "In another seed" in findings.describable(again)
    assert findings.describable(again[:0]) == ""
    assert "In another seed" in findings.again_figure(again, parameters(), SCOPE).get_supxlabel()


@pytest.mark.parametrize(
    ("shares", "title"),
    [
        ([0.21, 0.2], "21 %, 20 % of judged latents look like one thing, sites 2 and 29"),
        ([0.21, np.nan], "21 % of judged latents look like one thing, site 2"),
        ([np.nan, np.nan], "No plain SAE at that L0 has enough latents to judge"),
    ],
)
def test_titles_say_what_the_figure_shows(shares, title):
    totals = pd.DataFrame({"arm": "plain", "site": [2, 29], "share": shares})
    assert findings.kinds_title(totals) == title


def test_the_finding_names_its_numbers():
    p = parameters()
    shares = {("plain", 2): between(0.3, 0.3), ("plain", 29): between(0.1, 0.1)}
    changes = study.differences(shares, [2, 29])
    chance = {("plain", 2): 0.0, ("plain", 29): 0.01}
    one = findings.one_thing(shares, changes, chance, p, SCOPE, 29)
    assert one.verdict == "supported"
    assert "site 2 0.30" in one.sentence
    assert "at most 0.01" in one.sentence
    assert list(one.estimates) == ["share at site 29 less that at 2"]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["the", " cat", "dog1"], True),
        (["the", "at"], False),
        (["a1b2"], False),  # two letters
        (["été", "дом"], True),
        (["the", None], False),  # the context's end
        ([], True),
    ],
)
def test_a_latent_of_words_has_three_letters_in_each(texts, words):
    tokens = np.array([-1 if text is None else i for i, text in enumerate(texts)], int)
    tokenizer = SimpleNamespace(decode=lambda ids: texts[ids[0]])
    assert findings._is_of_words(tokens, tokenizer) == words


@pytest.mark.parametrize(
    ("changed", "holding"),
    [
        ({}, [True, True, True]),
        ({"by_chance": 0.05}, [False, True, True]),
        ({"share": np.nan}, ["too few latents are judged", True, True]),
        ({"l0_val": 40.0}, [True, False, True]),
        ({"judged": 40}, [True, True, False]),
    ],
)
def test_checks_name_what_does_not_hold(changed, holding):
    cell = {"share": 0.2, "by_chance": 0.0, "judged": 90, "living": 100, "l0_val": 33.0} | changed
    table = pd.DataFrame([cell])
    assert [outcome for outcome, _ in study.checks(table, table, parameters())] == holding


@pytest.mark.parametrize(
    ("ranked", "n", "chosen"),
    [
        # site 2 has none described by a neighbour, site 29 none by the token
        ({2: ([5, 6], []), 29: ([], [7, 8, 9])}, 4, [(2, 5), (2, 6), (29, 7), (29, 8)]),
        ({2: ([5, 6], [4]), 29: ([], [])}, 2, [(2, 4), (2, 5)]),  # in turn
        ({2: ([5, 6], [4]), 29: ([], [])}, 6, [(2, 4), (2, 5), (2, 6)]),
        ({2: ([], []), 29: ([], [])}, 6, []),
    ],
)
def test_latents_are_shown_from_each_site_and_kind_in_turn(monkeypatch, ranked, n, chosen):
    order = iter(ranked.values())
    monkeypatch.setattr(findings, "_ranked", lambda *_: next(order))
    looks = dict.fromkeys(ranked, looked([0.5], [100]))
    indices = dict.fromkeys(ranked, object.__new__(FeatureIndex))
    assert findings.chosen_latents(looks, indices, None, n) == chosen


# -- shares over seeds, by chance, and what the table has


def half_of_them(n_fit, by_chance, n_train=50):
    """Sixty latents, of which the first `n_fit` look like one thing."""
    one = looked([1.0] * n_fit + [0.0] * (60 - n_fit), [1.0] * 60, n_train)
    return one._replace(by_chance=np.asarray(by_chance, float))


def test_shares_are_means_over_the_seeds_of_a_cell():
    looks = {
        ("plain", 2): [half_of_them(n, np.zeros(60)) for n in (15, 30)],
        ("full", 29): [half_of_them(60, np.zeros(60))],
    }
    shares = study.shares_by_cell(looks)
    assert {cell: share.value for cell, share in shares.items()} == pytest.approx(
        {("plain", 2): 0.375, ("full", 29): 1.0}
    )
    # each seed's share is the same on each page: what is left is the spread over seeds
    assert shares["plain", 2].lo < 0.25 < 0.5 < shares["plain", 2].hi


def test_chance_is_of_judged_latents_that_hold_half_or_more():
    n_train = np.array([50] * 40 + [9] * 20)  # the last twenty are not judged
    by_chance = np.array([0.5] * 10 + [0.49] * 30 + [1.0] * 20)
    one = half_of_them(10, by_chance, n_train)
    other = half_of_them(10, by_chance[::-1], n_train)  # twenty of the forty judged at 1.0
    looks = {("plain", 2): [one, other], ("plain", 29): [one], ("full", 2): [other]}
    assert study.chance_by_cell(looks) == pytest.approx(
        {("plain", 2): 0.375, ("plain", 29): 0.25, ("full", 2): 0.5}
    )
    unjudged = half_of_them(10, by_chance, n_train=9)
    assert np.isnan(study.chance_by_cell({("plain", 2): [unjudged]})["plain", 2])


def test_the_table_counts_judged_and_living_latents_a_seed():
    n_train = np.array([50] * 40 + [9] * 20)
    one = half_of_them(10, np.zeros(60), n_train)
    dead = looked([1.0] * 50 + [0.0] * 10, [1.0] * 50 + [0.0] * 10)  # fifty live and are judged
    looks = {("plain", 2): [one, dead], ("full", 2): [one]}
    shares = {("plain", 2): between(0.1, 0.4), ("full", 2): undefined()}
    rows = study.table(shares, {("plain", 2): 0.01, ("full", 2): 0.02}, looks)
    assert list(rows) == ["arm", "site", "share", "lo", "hi", "by_chance", "judged", "living"]
    assert rows.iloc[0].tolist() == ["plain", 2, 0.25, 0.1, 0.4, 0.01, 45, 55]
    assert rows.iloc[1, :2].tolist() == ["full", 2]
    assert rows.iloc[1, 2:5].isna().all()
    assert rows.iloc[1, 5:].tolist() == [0.02, 40, 60]


def test_twins_by_chance_are_of_as_many_random_directions_of_that_width():
    one = looked([1.0] * 60, [1.0] * 60, W_dec=torch.eye(60)[:, :7])
    rows = torch.randn(2, 60, 7, generator=torch.Generator().manual_seed(5))
    a, b = (each / each.norm(dim=-1, keepdim=True) for each in rows)
    best = (a @ b.T).max(1).values
    words = study.random_cosine({("full", 2): [], ("plain", 2): [one]}, seed=5)
    assert words == f"at most {best.max():.2f}, in the mean {best.mean():.2f} (60 of each)"
    assert study.random_cosine({("plain", 2): []}) == "no SAE has the L0 of the comparison"


# -- what the figures say


def test_the_figure_of_kinds_says_what_bars_and_points_are_of():
    p = parameters()
    looks = {
        (arm, site): [half_of_them(15, np.zeros(60))] for arm in study.ARMS for site in (2, 29)
    }
    shares = study.shares_by_cell(looks)
    totals = study.table(shares, study.chance_by_cell(looks), looks)
    figure = findings.kinds_figure(study.kind_shares(looks), totals, p, SCOPE)
    assert figure.get_suptitle().replace("\n", " ") == (
        "25 %, 25 % of judged latents look like one thing, sites 2 and 29"
    )
    note = figure.get_supxlabel().replace("\n", " ")
    assert f"SAEs at L0 = {p.l0_target:g}. Bars: all living latents" in note
    assert f"that fire at least 10 times, {SCOPE.interval}. 3 seeds. a small model." in note
    assert len(figure.axes) == 2


def found(*rows):
    return pd.DataFrame(rows, columns=["site", "in", "share"])


@pytest.mark.parametrize(
    ("again", "title"),
    [
        (
            found(
                (29, "another seed", 0.1),
                (2, "another seed", 0.5),
                (2, "another seed", 0.7),
                (15, "another seed", 0.9),
                (2, "the Gated SAE", 0.99),
            ),
            "Found again in another seed: 60 % at site 2, 10 % at 29",
        ),
        (
            found((2, "the Gated SAE", 0.4), (29, "the Gated SAE", 0.3)),
            "Found again in the same seed's Gated SAE: 40 % at site 2, 30 % at 29",
        ),
        (
            found((2, "another seed", 0.4), (29, "another seed", np.nan)),
            "Found again in another seed: 40 % at site 2",
        ),
        (
            found((2, "another seed", np.nan), (2, "the Gated SAE", 0.25)),
            "Found again in the same seed's Gated SAE: 25 % at site 2",
        ),
        (found((2, "another seed", np.nan)), "No latent was judged"),
        (found(), "No latent was judged"),
    ],
)
def test_the_title_gives_the_shallowest_and_the_deepest_site_by_other_seeds_if_any(again, title):
    assert findings.again_title(again) == title
