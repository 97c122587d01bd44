"""Estimates that are recorded: those of all findings, under the names that a run gives them."""

import json

import pytest

from saelib.env import data_dir
from saelib.run.headlines import HEADLINES, effect
from saelib.study import f1_schedules, f2_gated
from saelib.study.estimate import constant
from saelib.study.finding import load, recorded_estimates
from saelib.study.finding_params import GatedParams
from saelib.study.scope import Scope

PROFILES = ["default", "full"]


@pytest.mark.parametrize("profile", PROFILES)
def test_the_estimates_are_those_of_the_recorded_findings(profile):
    path = data_dir("recorded") / profile / "estimates.json"
    entries = load(f"recorded/{profile}")
    assert json.loads(path.read_text(encoding="utf-8")) == {
        entry["name"]: entry["estimates"] for entry in entries
    }
    assert all(entry["estimates"] for entry in entries)


def test_the_names_are_those_that_a_run_gives_its_estimates():
    recorded = recorded_estimates("full")
    ratios = {(2, other): constant(1.0) for other in f1_schedules.OTHERS}
    assert set(f1_schedules.estimates(ratios, 2)) <= set(recorded["F1"])
    pairs = {(*pair, 2): constant(1.0) for pair in f2_gated.PAIRS}
    p = GatedParams.model_construct(margin=0.03, l0_target=32.0, profile="smoke")
    for finding in f2_gated.findings(pairs, p, Scope("m", 1, 22)):
        assert set(finding.estimates) <= set(recorded[finding.name])


@pytest.mark.parametrize("profile", PROFILES)
def test_every_headline_finds_its_estimates_in_what_is_recorded(profile):
    recorded = recorded_estimates(profile)
    stated = {number: line for number, line in HEADLINES.items() if line.claim in recorded}
    assert set(HEADLINES) - set(stated) <= {"F5"}  # 07 is younger than the recorded runs
    for number, headline in stated.items():
        text = effect(number, recorded)
        assert "not estimated" not in text
        assert text.startswith(headline.text.partition("{")[0])


def test_a_headline_whose_estimate_is_not_there_does_not_read_as_unreached():
    row = {"value": 0.5, "lo": 0.4, "hi": 0.6}
    text = effect("F0", {"F0": {"one latent, all tokens": row}})
    assert "not estimated over ordinary ones" in text
