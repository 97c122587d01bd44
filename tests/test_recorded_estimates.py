"""A recorded run's estimates come from its recorded files, and equal the committed file."""

import importlib.util
import json
from pathlib import Path

import pytest

from saelib.env import data_dir
from saelib.files import write_json
from saelib.run.headlines import HEADLINES, effect
from saelib.study import f1_schedules, f2_gated
from saelib.study.estimate import constant
from saelib.study.finding import recorded_estimates
from saelib.study.finding_params import GatedParams
from saelib.study.scope import Scope

SCRIPT = Path(__file__).parents[1] / "tools" / "recorded_estimates.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("recorded_estimates", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_estimates_are_those_of_the_recorded_files(tool):
    path = data_dir("recorded") / "full" / "estimates.json"
    assert tool.estimates("full") == json.loads(path.read_text(encoding="utf-8"))


def test_an_older_sentence_is_read_as_recorded(tool):
    assert tool.estimates("full")["F1"]["site 29, hard restarts over constant"] == {
        "value": 0.985,
        "lo": 0.974,
        "hi": 0.995,
    }
    assert next(iter(tool.estimates("full")["F2c"])) == "site 2, two-term over full"
    shares = tool.estimates("full")["F3e"]["share of the error that pursuit removes, site 2"]
    assert shares == {"value": 0.478, "lo": 0.445, "hi": 0.503}  # a per cent is a share


def test_every_finding_with_intervals_has_estimates(tool):
    recorded = tool.estimates("full")
    findings = {"F0", "F1", "F4", "F2", "F2a", "F2b", "F2c", "F2d", "F2e", "F2f"}
    assert set(recorded) == findings | {f"F3{letter}" for letter in "abcdef"}
    assert all(rows for rows in recorded.values())


def test_an_older_table_s_rows_have_today_s_names(tool):
    recorded = tool.estimates("full")
    assert "deficit (FVU of two-term over plain), large steps, site 2" in recorded["F2"]
    assert recorded["F3f"]["gap in log FVU, original recipe"]["value"] == pytest.approx(
        -0.6335, 1e-3
    )
    names = [name for rows in recorded.values() for name in rows]
    assert not [name for name in names if "v(" in name or "dying" in name]


def test_a_record_in_todays_form_is_taken_as_it_is(tool, home):
    folder = home / "data" / "recorded" / "full" / "verdicts"
    folder.mkdir(parents=True)
    row = {"value": 0.5, "lo": None, "hi": None}
    write_json(folder / "02_x.json", [{"name": "F1", "estimates": {"site 2": row}}])
    assert tool.estimates("full") == {"F1": {"site 2": row}}


def test_the_names_are_those_that_a_run_gives_its_estimates(tool):
    recorded = tool.estimates("full")
    ratios = {(2, other): constant(1.0) for other in f1_schedules.OTHERS}
    assert set(f1_schedules.estimates(ratios, 2)) <= set(recorded["F1"])
    pairs = {(*pair, 2): constant(1.0) for pair in f2_gated.PAIRS}
    p = GatedParams.model_construct(margin=0.03, l0_target=32.0, profile="smoke")
    for finding in f2_gated.findings(pairs, p, Scope("m", 1, 22)):
        assert set(finding.estimates) <= set(recorded[finding.name])


@pytest.mark.parametrize("profile", ["default", "full"])
def test_every_headline_finds_its_estimates_in_what_is_recorded(profile):
    recorded = recorded_estimates(profile)
    for number, headline in HEADLINES.items():
        text = effect(number, recorded)
        assert "not estimated" not in text
        assert text.startswith(headline.text.partition("{")[0])


def test_a_headline_whose_estimate_is_not_there_does_not_read_as_unreached():
    row = {"value": 0.5, "lo": 0.4, "hi": 0.6}
    text = effect("F0", {"F0": {"one latent, all tokens": row}})
    assert "not estimated over ordinary ones" in text
