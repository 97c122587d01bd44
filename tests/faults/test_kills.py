"""A run that is killed at the n-th change of a file, or refused the disk there, ends as if it had
not been; a short part of `benchmarks/faults.py kills`.
"""

import os
import shutil
import sys

import pytest
from helpers.kills import REFUSALS, campaign

KILLS = 12
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which(os.environ.get("CC", "cc")) is None,
    reason="needs Linux and a C compiler",
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    return campaign(folder, seed=7, kills=KILLS, refusals=1, ranks=1, pairs=2, threads=1)


def of(outcomes, *kinds):
    return [outcome for outcome in outcomes if outcome["kind"] in kinds]


def faults(outcomes):
    return [fault for outcome in outcomes for fault in outcome["faults"]]


def test_a_run_killed_at_any_change_of_a_file_ends_like_an_undisturbed_one(outcomes):
    killed = of(outcomes, "killed")
    assert faults(killed) == []
    assert sum(outcome["kills"] for outcome in killed) >= KILLS
    places = {place for outcome in killed for place in outcome["places"]}
    assert len(places) > 3  # kinds of folders that were being changed


def test_a_disk_that_is_full_or_fails_is_a_sentence_and_costs_nothing_that_was_done(outcomes):
    refused = of(outcomes, *REFUSALS)
    assert len(refused) == len(REFUSALS)
    assert faults(refused) == []


def test_a_lost_rank_costs_nothing_that_was_done(outcomes):
    (lost,) = of(outcomes, "lost rank")
    assert lost["faults"] == []
    assert lost["kills"] > 0


def test_two_whole_runs_at_once_both_end_well(outcomes):
    pairs = of(outcomes, "pair")
    assert len(pairs) == 2
    assert faults(pairs) == []


def test_a_run_begun_with_two_threads_goes_on_with_one_to_the_same_bytes(outcomes):
    """At this size: larger sums differ in their last bits, which `benchmarks/README.md` states."""
    (run,) = of(outcomes, "threads")
    assert run["faults"] == []
