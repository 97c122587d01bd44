"""Findings on disk, their verdicts, and how they stand beside the recorded run."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from saelib.files import write_json
from saelib.study import finding
from saelib.study.estimate import Estimate, constant, undefined
from saelib.study.finding import Finding, beside_recorded, enough, majority, replication


def estimate(low, high):
    middle = (low + high) / 2
    return Estimate(np.r_[middle, np.full(100, low), middle, np.full(100, high)])


def made(home, name="F1", **fields):
    folder = home / "data" / "smoke" / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "02_x.png").touch()
    values = {
        "name": name,
        "claim": "Restarts train badly.",
        "rule": "Supported if worse.",
        "verdict": "contradicted",
        "estimates": {"site 2": estimate(0.9, 1.0), "site 9": undefined()},
        "sentence": "They do not.",
        "section": "5 F1",
        "figure": finding.figure_path("smoke", "02_x"),
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
        (
            {"figure": "data/smoke/figures/none.png"},
            "no such file; expected data/<profile>/figures/NAME.png",
        ),
        ({"figure": "/etc/hostname"}, "figure = '/etc/hostname': no such file"),
        ({"figure": "data/smoke/figures/../../../secret"}, "secret': no such file; expected data/"),
        ({"figure": "data/smoke/figures/../x.png"}, "x.png': no such file; expected data/"),
        ({"figure": "data/../figures/x.png"}, "x.png': no such file; expected data/"),
        ({"figure": "secret"}, "figure = 'secret': no such file; expected data/"),
    ],
)
def test_a_finding_with_a_field_amiss_is_refused(home, fields, message):
    for name in ("secret", "data/smoke/x.png", "figures/x.png"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch()
    with pytest.raises(ValueError, match=message):
        finding.record("smoke", "02_x", [made(home, **fields)])
    assert not (home / "data" / "smoke" / "verdicts").exists()


def test_a_finding_recorded_twice_is_refused(home):
    finding.record("smoke", "02_x", [made(home)])
    finding.record("smoke", "03_y", [made(home)])
    with pytest.raises(ValueError, match="F1 is recorded twice, by 02_x and 03_y"):
        finding.load("smoke")


def test_figures_of_a_recorded_profile_lie_with_the_repository(home):
    figure = finding.figure_path("smoke", "02_x")
    assert figure == "data/smoke/figures/02_x.png"
    assert finding.figure_file(figure) == home / "figures" / "smoke" / "02_x.png"
    made(home)
    assert finding.figure_file(figure) == home / figure  # a run's own goes first
    older = "figures/full/02_x.png"
    assert finding.figure_file(older) == home / older


@pytest.mark.parametrize(
    ("text", "named"),
    [("[{", r"02_x\.json: damaged"), ('[{"claim": "c"}]', r"02_x\.json, finding 0: fields")],
)
def test_a_damaged_file_of_findings_is_named(home, text, named):
    path = home / "data" / "smoke" / "verdicts" / "02_x.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ValueError, match=named):
        finding.load("smoke")


@pytest.mark.parametrize("text", ["null", "3", "[1]", '{"name": "F1"}'])
def test_a_file_that_is_no_list_of_findings_is_refused_by_name(home, text):
    path = finding.record("smoke", "02_x", [made(home)])
    path.write_text(text)
    with pytest.raises(ValueError, match=r"02_x\.json: expected a list of findings, found"):
        finding.load("smoke")


@pytest.mark.parametrize(
    ("field", "damaged", "accepted"),
    [
        *(("beside_recorded", value, "expected text") for value in (None, ["agrees"], {})),
        *(("estimates", value, "expected value") for value in (None, [1], {"a": {"value": 1.0}})),
        ("estimates", {"a": {"value": "x", "lo": 1.0, "hi": 2.0}}, "expected value"),
    ],
)
def test_a_field_of_another_form_is_refused_when_read(home, field, damaged, accepted):
    path = finding.record("smoke", "02_x", [made(home)])
    (entry,) = json.loads(path.read_text())
    path.write_text(json.dumps([entry | {field: damaged}]))
    with pytest.raises(ValueError, match=rf"02_x\.json, finding 0: {field} = .*: {accepted}"):
        finding.load("smoke")


def test_another_word_for_a_verdict_is_refused_when_read(home):
    path = finding.record("smoke", "02_x", [made(home)])
    path.write_text(path.read_text().replace('"contradicted"', '"maybe"'))
    with pytest.raises(ValueError, match="verdict = 'maybe': expected one of supported"):
        finding.load("smoke")


def test_an_older_record_is_read_in_todays_words(home):
    (home / "figures" / "smoke").mkdir(parents=True)
    (home / "figures" / "smoke" / "02_x.png").touch()
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


@pytest.mark.parametrize("value", [0.93, 5.0])
def test_a_bare_value_says_that_it_has_no_interval_not_that_it_differs(home, value):
    row = {"value": 0.93, "lo": 0.92, "hi": 0.94}
    recorded(home, {"F1": {"site 2": row, "site 9": row | {"lo": None, "hi": None}}})
    alone = made(home, estimates={"site 2": Estimate(np.array([value, np.nan]))})
    assert beside_recorded(alone) == (
        f"site 2: {value:g} (no interval); recorded full: 0.93 [0.92, 0.94]: no interval here"
    )
    there = made(home, estimates={"site 9": estimate(0.9, 1.0)})
    assert beside_recorded(there).endswith("0.93 (no interval): no interval recorded")


def test_checks_say_which_holds():
    assert finding.checks([(True, "a"), (False, "b")]) == "holds: a\nDOES NOT HOLD: b"


def test_a_check_that_cannot_be_made_says_why():
    lines = finding.checks([("L0 not reached in 2 of 3 arms", "a"), (None, "b")]).splitlines()
    assert lines[0] == "cannot be checked (L0 not reached in 2 of 3 arms): a"
    assert lines[1] == "cannot be checked (an L0 is not reached): b"


@pytest.mark.parametrize(
    ("cases", "outcome"),
    [
        ([True, True, None], True),
        ([True, False, False], False),
        ([False, False, None], False),
        ([True, None, None], "why in 2 of 3 arms"),
        ([None, None, None], "why in 3 of 3 arms"),
        ([], False),
    ],
)
def test_what_is_not_known_is_a_reason_only_where_it_could_turn_the_answer(cases, outcome):
    assert finding.at_least(2, cases, "why") == outcome


def test_an_account_gives_the_effect_beside_the_recorded_one_before_undecided(home):
    clear = made(home)
    unclear = replace(made(home, "F2"), verdict="undecided")
    first, second = finding.account([clear, unclear]).split("\n\n")
    assert first.splitlines()[1].startswith(f"{clear.verdict}. ")
    assert second.splitlines()[1].endswith("; undecided here.")
    silent = replace(unclear, estimates={})
    assert finding.account([silent]).splitlines()[1] == "undecided."


def test_a_notice_of_a_heavy_page_follows_the_sentence_in_the_account_and_on_disk(home):
    heavy = replace(estimate(0.9, 1.0), heaviest=0.4)
    found = made(home, estimates={"site 2": heavy, "site 9": undefined()})
    words = "They do not. One test page has 40 % of an error"
    assert words in finding.account([found])
    finding.record("smoke", "02_x", [found])
    assert finding.load("smoke")[0]["sentence"].startswith(words)
    assert made(home).words == "They do not."
    with pytest.raises(ValueError, match="sentence = ' ': expected text"):
        finding.record("smoke", "02_x", [replace(found, sentence=" ")])


def test_a_damaged_table_is_named(home):
    finding.record_table("smoke", "02_gaps", pd.DataFrame({"gap": [0.1]})).write_text("")
    with pytest.raises(ValueError, match=r"02_gaps\.csv: damaged .*run notebook 02 again"):
        finding.read_table("smoke", "02_gaps")


def test_a_table_is_named_after_its_notebook(home):
    with pytest.raises(ValueError, match=r"table name = '\.\./x'"):
        finding.record_table("smoke", "../x", pd.DataFrame())


def test_a_recorded_table_is_read_back_and_a_missing_one_names_its_notebook(home, monkeypatch):
    with pytest.raises(
        FileNotFoundError, match=r"02_curves\.csv is missing: run notebook 02 with profile 'smoke'"
    ):
        finding.read_table("smoke", "02_curves")
    table = pd.DataFrame({"run_id": ["77e5", "0012"], "fvu": [0.1, 1 / 3]})
    finding.record_table("smoke", "02_curves", table)
    pd.testing.assert_frame_equal(finding.read_table("smoke", "02_curves"), table)
    monkeypatch.setenv("SAELIB_GRID", "abc")  # a grid point whose notebook 02 is not run anew
    pd.testing.assert_frame_equal(finding.read_table("smoke", "02_curves"), table)
    finding.record_table("smoke", "02_curves", table.iloc[:1])
    assert len(finding.read_table("smoke", "02_curves")) == 1


@pytest.mark.parametrize("text", [" ", "It is nan times as large.", "From 0.1 [NaN, 2]."])
def test_an_abstract_without_its_numbers_is_refused(home, text):
    with pytest.raises(ValueError, match="abstract of 02_x = "):
        finding.record_abstract("smoke", "02_x", text)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"name": "F4"}, "finding 0: verdict = None: expected one of supported"),
        ({"name": "F4", "verdict": "maybe"}, "verdict = 'maybe': expected one of supported"),
        ({"finding": 4, "verdict": "replicates"}, "name = 4: expected F1"),
    ],
)
def test_a_recorded_verdict_that_is_none_is_refused_by_file(home, entry, sentence):
    folder = home / "data" / "recorded" / "full" / "verdicts"
    folder.mkdir(parents=True)
    (folder / "02_x.json").write_text(json.dumps([entry]))
    with pytest.raises(ValueError, match=rf"02_x\.json, .*{sentence}"):
        finding.recorded_verdicts()


def test_an_estimate_beyond_all_numbers_is_refused(home):
    path = finding.record("smoke", "02_x", [made(home)])
    content = json.loads(path.read_text())
    content[0]["estimates"] = {"a": {"value": 10**400, "lo": None, "hi": None}}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"estimates = .*: expected value, lo"):
        finding.load("smoke")


def kept(home, profile="smoke"):
    folder = home / "data" / profile / "verdicts"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_abstracts_come_back_by_notebook_in_their_order(home):
    finding.record_abstract("smoke", "03_y", "Two banana-shaped curves, nanometres apart.")
    path = finding.record_abstract("smoke", "02_x", "\n It grows by 4 %. ")
    assert path == kept(home) / "02_x.txt"
    assert path.read_text() == "It grows by 4 %.\n"
    finding.record("smoke", "01_w", [made(home)])  # a finding is no abstract
    kept(home, "other").joinpath("02_x.txt").write_text("Of another profile.")
    abstracts = finding.read_abstracts("smoke")
    assert list(abstracts.items()) == [
        ("02_x", "It grows by 4 %."),
        ("03_y", "Two banana-shaped curves, nanometres apart."),
    ]
    finding.record_abstract("smoke", "02_x", "It shrinks.")
    assert finding.read_abstracts("smoke")["02_x"] == "It shrinks."
    assert finding.read_abstracts("none") == {}


def test_a_grid_point_keeps_its_abstract_to_itself(home, monkeypatch):
    monkeypatch.setenv("SAELIB_GRID", "abc")
    path = finding.record_abstract("smoke", "02_x", "It grows.")
    assert path == home / "data" / "smoke" / "grid" / "abc" / "verdicts" / "02_x.txt"
    assert finding.read_abstracts("smoke") == {}


def test_a_damaged_abstract_is_named(home):
    kept(home).joinpath("02_x.txt").write_bytes(b"It grows \xff.")
    with pytest.raises(ValueError, match=r"02_x\.txt: damaged .*; run notebook 02 again"):
        finding.read_abstracts("smoke")


@pytest.mark.parametrize("name", ["javascript:alert", "-x", ".hidden", "a:"])
def test_what_no_notebook_left_is_not_linked_to(home, name):
    kept(home).joinpath(f"{name}.txt").write_text("It grows.")
    with pytest.raises(ValueError, match="not named after a notebook, as 02_train_sae; remove it"):
        finding.read_abstracts("smoke")
    kept(home).joinpath(f"{name}.txt").unlink()
    finding.record("smoke", name, [made(home)])
    with pytest.raises(ValueError, match=rf"{name}\.json: not named after a notebook"):
        finding.load("smoke")


def test_recorded_verdicts_are_by_finding_in_todays_words(home):
    entries = {
        "02_x": [
            {"finding": "F1", "verdict": "does not replicate"},
            {"finding": "F4", "verdict": "replicates"},
        ],
        "03_y": [{"name": "F2a", "verdict": "undecided"}, {"name": "F2b", "verdict": "supported"}],
    }
    for profile in ("full", "default"):
        folder = home / "data" / "recorded" / profile / "verdicts"
        folder.mkdir(parents=True)
        for notebook, of_notebook in entries.items():
            (folder / f"{notebook}.json").write_text(json.dumps(of_notebook))
        entries = {"02_x": [{"finding": "F1", "verdict": "cannot tell"}]}
    assert finding.recorded_verdicts() == {
        "F1": "contradicted",
        "F4": "supported",
        "F2a": "undecided",
        "F2b": "supported",
    }
    assert finding.recorded_verdicts("default") == {"F1": "undecided"}
    assert finding.recorded_verdicts("smoke") == {}
