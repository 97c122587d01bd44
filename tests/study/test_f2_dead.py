"""F2e: dead latents over training and at the L0 of the comparison, and every verdict."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from helpers.f2_cases import FULL, ONE_SEED, UNREACHED, estimate, params
from helpers.f2_resampling_cases import Resampled

from saelib.study import f2_dead, f2_resampling

MANY = estimate(0.15, 0.12, 0.18)
FEW = estimate(0.02, 0.01, 0.03)
TOUCHING = estimate(0.08, 0.06, 0.1)  # its interval ends at the bound


@pytest.fixture
def p():
    return params("04_resampling", seeds=[0, 1])


@pytest.fixture
def deaths(p):
    ws = Resampled()
    runs = f2_resampling.train(ws, p)
    return f2_dead.deaths(ws, p, runs, f2_resampling.nearest_specs(ws, p, runs))


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [
        ([MANY, FEW, FEW], "supported"),
        ([estimate(0.15, 0.1, 0.2), FEW, FEW], "supported"),
        ([FEW, FEW, FEW], "contradicted"),
        ([FEW, FEW, TOUCHING], "undecided"),
        ([FEW, FEW, estimate(0.1, 0.05, 0.15)], "undecided"),
        ([FEW, FEW, UNREACHED], "undecided"),
        ([], "undecided"),
    ],
)
def test_latents_die_where_some_arm_has_a_tenth_dead_by_its_interval(shares, verdict):
    assert f2_dead.decide(shares, 3, 22) == verdict


@pytest.mark.parametrize(("n_seeds", "n_pages"), [(2, 22), (3, 14)])
def test_two_seeds_or_fourteen_pages_decide_nothing(n_seeds, n_pages):
    assert f2_dead.decide([MANY, MANY, MANY], n_seeds, n_pages) == "undecided"


def test_a_latent_revived_twice_counts_at_the_later_event():
    events = [{"tokens": 1, "revived": [1, 2]}, {"tokens": 2, "revived": [2, 3]}]
    kept = f2_dead.without_repeats(events)
    assert [event["revived"] for event in kept] == [[1], [2, 3]]
    assert events[0]["revived"] == [1, 2]


def test_dead_latents_are_read_at_the_l0_between_two_runs(deaths):
    dead = deaths.dead["normal recipe", "plain", "off", 15, 0]
    share = np.log(40 / 32) / np.log(2)  # on the way from L0 40 to 20
    assert dead == pytest.approx(0.2 + share * 0.2)
    assert list(deaths.shares.columns) == ["off", "on"]


def test_events_are_counted_by_run_and_by_combination(p, deaths):
    assert len(deaths.events) == 2 * 3 * 2 * 2
    near = f2_dead.revived_near_l0(deaths.events)
    assert near["large steps", "full", 15] == 3
    ws = Resampled()
    counts = f2_dead.revived_on_curves(ws, p, f2_resampling.train(ws, p))
    assert counts["normal recipe", "plain", 15] == 2 * 2 * 4
    assert len(f2_dead.event_table(deaths.events)) == 2 * 3 * 2


def test_shares_without_resampling_have_an_interval_over_seeds_within_bounds(deaths):
    shares = f2_dead.dead_without(deaths.dead)
    assert shares["normal recipe", "plain"].lo == shares["normal recipe", "plain"].value
    index = pd.MultiIndex.from_tuples(
        [
            (s, a, "off", 15, k)
            for s in f2_resampling.SETTINGS
            for a in f2_dead.ARMS
            for k in (0, 1)
        ],
        names=f2_dead.KEYS,
    )
    wide = f2_dead.dead_without(pd.Series([0.0, 0.5] * 6, index=index))
    assert wide["normal recipe", "plain"].lo == 0.0
    assert wide["normal recipe", "plain"].hi == 1.0


def test_the_finding_names_arm_and_setting_and_says_percentages(p, deaths):
    result = f2_dead.finding(deaths.dead, p, FULL)
    assert next(iter(result.estimates)) == "share dead, plain SAE, normal recipe"
    assert "normal recipe: plain SAE 26.4 % [26.4, 26.4]" in result.sentence
    assert f2_dead.finding(deaths.dead, p, ONE_SEED).verdict == "undecided"


def test_a_share_that_is_not_reached_is_said_in_words():
    assert f2_dead.percent(UNREACHED) == "unreached"
    assert f2_dead.percent(f2_dead.student([0.305])) == "30.5 % (no interval)"
    assert f2_dead.percent(MANY) == "15.0 % [12.0, 18.0]"


def test_survivors_are_undefined_where_nothing_was_revived(deaths):
    assert f2_dead.survivors(deaths.events)["plain"] == 1.0
    none = deaths.events.assign(revived=0)
    assert f2_dead.survivors(none).isna().all()
    assert [outcome for outcome, _ in f2_dead.survivor_checks(none, 768)] == [
        False,
        "nothing was revived in 3 of 3 arms",
    ]


@pytest.mark.parametrize(
    ("revived", "alive", "outcomes"),
    [
        ({"plain": 6, "full": 1}, 0.5, [True, True]),
        ({"plain": 5, "full": 1}, 0.5, [False, True]),  # no more than 5 % of 100 latents
        ({"plain": 6, "full": 1}, 0.4, [True, False]),  # no more than 40 % alive
    ],
)
def test_survivors_are_counted_in_the_arm_with_the_most_revived(revived, alive, outcomes):
    rows = [
        (arm, site, 0, setting, n, alive * n)
        for (arm, few), site in product(revived.items(), (2, 29))
        for setting, n in [("large steps", few), ("normal recipe", 10 * few)]
    ]
    columns = ["arm", "site", "seed", "setting", "revived", "alive_later"]
    checks = f2_dead.survivor_checks(pd.DataFrame(rows, columns=columns), 100)
    assert [outcome for outcome, _ in checks] == outcomes


def dead_shares(on):
    """Shares dead of three arms, `on` with large steps and resampling."""
    settings = ["large steps", "normal recipe"]
    index = pd.MultiIndex.from_product([settings, ["full", "plain", "two_term"]])
    off = [0.5, 0.5, 0.5, 0.1, 0.1, 0.4]
    return pd.DataFrame({"off": off, "on": [*on, 0.1, 0.1, 0.4]}, index=index)


def test_expectations_of_death_compare_settings_and_resampling(p):
    checks = f2_dead.death_checks(dead_shares([0.1, 0.2, 0.5]), p)
    assert [outcome for outcome, _ in checks] == [True, True, True]


@pytest.mark.parametrize(
    ("on", "outcome"),
    [
        ([0.1, np.nan, 0.1], True),  # two of the known ones are enough
        ([0.5, 0.5, np.nan], False),  # the third cannot make two
        ([np.nan, np.nan, 0.1], "L0 not reached in 2 of 3 arms"),
    ],
)
def test_an_arm_without_the_l0_is_no_failure_of_an_expectation(p, on, outcome):
    assert f2_dead.death_checks(dead_shares(on), p)[2][0] == outcome


def test_a_training_shorter_than_the_window_has_no_dead_latents_to_speak_of():
    short = params("04_resampling", dead_window=200_000)
    unknown = dead_shares([np.nan] * 3) * np.nan
    outcomes = [outcome for outcome, _ in f2_dead.death_checks(unknown, short)]
    assert outcomes == ["training is shorter than the window in 3 of 3 arms"] * 3
    words = f2_dead.sentence({}, short, FULL)
    assert words.startswith("No latent can be found dead: training has 40,960 tokens")


def test_the_interval_over_seeds_is_named_where_there_are_several(p, deaths):
    assert "Student interval" in f2_dead.finding(deaths.dead, p, FULL).sentence
    assert "Student interval" not in f2_dead.finding(deaths.dead, p, ONE_SEED).sentence
