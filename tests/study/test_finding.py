"""Findings on disk, their verdicts, and how they stand beside the recorded run."""

import json
from dataclasses import replace

import numpy as np
import pytest

from saelib.files import write_json
from saelib.study import finding
from saelib.study.estimate import Estimate, constant, undefined
from saelib.study.finding import Finding, beside_recorded, enough, majority, replication


def estimate(low, high):
    middle = (low + high) / 2
    return Estimate(np.r_[middle, np.full(100, low), middle, np.full(100, high)])


def made(home, name="F1", **fields):
    (home / "figures" / "smoke").mkdir(parents=True, exist_ok=True)
    (home / "figures" / "smoke" / "02_x.png").touch()
    values = {
        "name": name,
        "claim": "Restarts train badly.",
        "rule": "Supported if worse.",
        "verdict": "contradicted",
        "estimates": {"site 2": estimate(0.9, 1.0), "site 9": undefined()},
        "sentence": "They do not.",
        "section": "5 F1",
        "figure": "figures/smoke/02_x.png",
    }
    return Finding(**values | fields)


def recorded(home, estimates):
    folder = home / "data" / "recorded" / "full"
    folder.mkdir(parents=True)
    write_json(folder / "estimates.json", estimates)


def test_a_verdict_takes_three_seeds_and_fifteen_pages():
    assert enough(3, 15)
    assert not enough(2, 15)
    assert not enough(3, 14)


def test_a_majority_is_more_than_half_of_all_cases():
    yes, no = {"higher"}, {"lower", "equal", "not higher"}
    assert majority(["higher", "higher", "unclear"], yes, no) == "supported"
    assert majority(["lower", "equal", "higher"], yes, no) == "contradicted"
    assert majority(["higher", "unclear"], yes, no) == "undecided"
    assert majority([], yes, no) == "undecided"


def test_replication_is_said_of_what_was_reported():
    words = [replication(verdict) for verdict in ("supported", "contradicted", "undecided")]
    assert words == ["replicates", "does not replicate", "undecided"]


def test_findings_are_kept_with_value_and_interval_and_come_back_sorted(home):
    finding.record("smoke", "03_y", [made(home, "F2"), made(home, "F0")])
    path = finding.record("smoke", "02_x", [made(home)])
    assert path == home / "data" / "smoke" / "verdicts" / "02_x.json"
    entries = finding.load("smoke")
    assert [(e["name"], e["notebook"]) for e in entries] == [
        ("F0", "03_y"),
        ("F1", "02_x"),
        ("F2", "03_y"),
    ]
    assert entries[1]["estimates"]["site 2"] == {"value": 0.95, "lo": 0.9, "hi": 1.0}
    assert entries[1]["estimates"]["site 9"] == {"value": None, "lo": None, "hi": None}
    assert entries[1]["beside_recorded"] == "site 2: 0.95 [0.9, 1]; recorded full: no record"


def test_a_grid_point_keeps_its_findings_to_itself(home, monkeypatch):
    monkeypatch.setenv("SAELIB_GRID", "abc")
    path = finding.record("smoke", "02_x", [made(home)])
    assert path == home / "data" / "smoke" / "grid" / "abc" / "verdicts" / "02_x.json"
    assert finding.load("smoke") == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sentence": " "}, "02_x, F1: sentence = ' ': expected text"),
        ({"name": "one"}, "02_x, one: name = 'one': expected F1, F2, F2a"),
        ({"figure": "figures/smoke/none.png"}, "no such file; expected figures/<profile>/NAME.png"),
    ],
)
def test_a_finding_with_a_field_amiss_is_refused(home, fields, message):
    with pytest.raises(ValueError, match=message):
        finding.record("smoke", "02_x", [made(home, **fields)])
    assert not (home / "data" / "smoke" / "verdicts").exists()


def test_a_finding_recorded_twice_is_refused(home):
    finding.record("smoke", "02_x", [made(home)])
    finding.record("smoke", "03_y", [made(home)])
    with pytest.raises(ValueError, match="F1 is recorded twice, by 02_x and 03_y"):
        finding.load("smoke")


def test_an_older_record_is_read_in_todays_words(home):
    made(home)
    old = {
        "finding": "F1",
        "claim": "c",
        "verdict": "cannot tell",
        "effect": "1.0 [0.9, 1.1]",
        "cell": "5 F1",
        "figure": "figures/smoke/02_x.png",
    }
    path = home / "data" / "smoke" / "verdicts" / "02_x.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([old]))
    (entry,) = finding.load("smoke")
    assert (entry["name"], entry["verdict"], entry["section"]) == ("F1", "undecided", "5 F1")
    assert (entry["sentence"], entry["estimates"]) == ("1.0 [0.9, 1.1]", {})


def test_the_first_shared_effect_stands_beside_the_recorded_one(home):
    row = {"value": 0.93, "lo": 0.92, "hi": 0.94}
    recorded(home, {"F1": {"site 2": row}, "F2": {"site 2": row, "site 9": row}})
    here = {"site 7": estimate(0.1, 0.2), "site 2": estimate(0.9, 1.0)}
    assert beside_recorded(made(home, estimates=here)) == (
        "site 2: 0.95 [0.9, 1]; recorded full: 0.93 [0.92, 0.94]: agrees"
    )
    apart = {"site 2": estimate(0.5, 0.6)}
    assert beside_recorded(made(home, estimates=apart)).endswith("0.93 [0.92, 0.94]: differs")
    other = made(home, "F4", estimates={"site 2": constant(1.0)})
    assert beside_recorded(other) == "site 2: 1 [1, 1]; recorded full: no record"
    unreached = made(home, estimates={"site 2": undefined()})
    assert beside_recorded(unreached).startswith("site 2: L0 not reached; recorded full: 0.93")
    assert beside_recorded(unreached).endswith("cannot be compared")
    assert beside_recorded(made(home, estimates={})) == ""


def test_checks_say_which_holds():
    assert finding.checks([(True, "a"), (False, "b")]) == "holds: a\nDOES NOT HOLD: b"


def test_an_account_gives_the_effect_beside_the_recorded_one_before_undecided(home):
    clear = made(home)
    unclear = replace(made(home, "F2"), verdict="undecided")
    first, second = finding.account([clear, unclear]).split("\n\n")
    assert first.splitlines()[1].startswith(f"{clear.verdict}. ")
    assert second.splitlines()[1].endswith("; undecided here.")
    silent = replace(unclear, estimates={})
    assert finding.account([silent]).splitlines()[1] == "undecided."
