"""Damage to any artifact is refused by name, healed, told, or changes no answer: a short campaign.

`python benchmarks/faults.py corruptions` tries thousands; what it found is tried here by name.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
from helpers.corruptions import FAILURES, Home, trial

from saelib.config import stable_hash

TRIALS = 6


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    before = os.environ.get("SAELIB_HOME")
    yield Home(tmp_path_factory.mktemp("corruptions"))
    if before is None:
        os.environ.pop("SAELIB_HOME", None)
    else:
        os.environ["SAELIB_HOME"] = before


def test_no_damage_is_silent_or_unnamed(home):
    found = [trial(home, number, seed=0) for number in range(TRIALS)]
    trials = [one for one in found if one]
    assert len(trials) > TRIALS // 2
    for one in trials:
        assert one.outcome not in FAILURES, one
        assert not one.missed, one
    assert "refused" in {one.outcome for one in trials}


def ask(home, probe, path, change):
    """What a reader says once the files of one name were changed."""
    home.answer(probe)
    home.lay_out()
    targets = sorted(home.path.glob(path))

    def changed():
        for target in targets:
            content = target.read_bytes()
            target.unlink()  # it may be a link
            target.write_bytes(content)
            change(target)
        return bool(targets)

    return home.asked([probe], changed)["answers"][probe]


def edit(**fields):
    """A JSON file with other fields, its checksum made to fit."""

    def change(path: Path) -> None:
        values = json.loads(path.read_text()) | fields
        rest = {name: value for name, value in values.items() if name != "hash"}
        path.write_text(json.dumps(values | {"hash": stable_hash(rest)}))

    return change


def replace(old, new):
    def change(path: Path) -> None:
        content = path.read_text()
        assert old in content
        path.write_text(content.replace(old, new, 1))

    return change


def of_profile(name):
    """The same file of another profile."""

    def change(path: Path) -> None:
        shutil.copy(path.parent.parent / name / path.name, path)

    return change


def emptied(path):
    path.write_text("")


def folder(path):
    path.unlink()
    path.mkdir()


def repeated(path):
    *lines, last = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, last, last]))


REFUSED = [
    ("described", "data/tiny/workspace.json", replace('"ctx_len": 16', '"ctx_len": 17'), "hash"),
    ("described", "data/tiny/workspace.json", edit(corpus={}), "corpus = {}"),
    ("live_run", "data/live/workspace.json", of_profile("half"), "not of one collection"),
    ("live_run", "data/live/workspace.json", of_profile("tiny"), "not of one collection"),
    (
        "results",
        "data/tiny/results.csv",
        replace(",plain,", ",full,"),
        "sealed; delete it and run notebook 02",
    ),
    (
        "results",
        "data/tiny/results.csv",
        replace("fvu_all", "fvu_alm"),
        "sealed; delete it and run notebook 02",
    ),
    ("results", "data/tiny/results.csv", repeated, "sealed; delete it and run notebook 02"),
    ("report", "data/tiny/results.csv", emptied, "results.csv: damaged"),
    ("report", "data/tiny/timings.csv", replace("train,", "train,x"), "timings.csv: damaged"),
    (
        "resume",
        "data/tiny/saes/*/checkpoint.safetensors",
        folder,
        "checkpoint.safetensors: damaged",
    ),
    ("half", "data/half/store/progress.jsonl", replace('"rows": 1', '"rows": "'), "not JSON"),
    ("half", "data/half/store/progress.jsonl", replace("site_01/", "../site_01/"), "no shard of"),
    ("lens", "data/tiny/saes/*/descriptions/*.jsonl", replace("0.75", "0.95"), "is damaged"),
    ("lens", "data/tiny/saes/*/features/latents.csv", replace("0.", "1."), "latents.csv: damaged"),
    ("format saelib", "formats/saelib/seal.json", edit(files=None), "files = None: expected"),
]


@pytest.mark.parametrize(("probe", "path", "change", "sentence"), REFUSED)
def test_what_passed_unseen_or_unnamed_is_refused_by_name(home, probe, path, change, sentence):
    answer = ask(home, probe, path, change)
    assert answer["outcome"] == "refused", answer
    assert sentence in answer["said"]


TOLD = [
    ("report", "data/tiny/notebooks/02_x.ipynb", emptied, "02_x.ipynb: damaged"),
    ("report", "data/tiny/notebooks/02_x.json", replace('"seals": {', '"seal": {'), "02_x.json"),
    ("report", "data/tiny/results.csv", of_profile("live"), "runs that have no folder"),
    ("lens", "model/tokenizer.json", replace('"w1": 2', '"w1": 62'), "its tokenizer is not"),
]


@pytest.mark.parametrize(("probe", "path", "change", "sentence"), TOLD)
def test_what_passed_unseen_is_told(home, probe, path, change, sentence):
    answer = ask(home, probe, path, change)
    assert answer["outcome"] == "answer", answer
    assert sentence in answer["notices"]


def test_weights_changed_between_the_samples_of_a_model_s_name_are_refused(home):
    def change(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[-2] ^= 1  # the last value's mantissa
        path.write_bytes(data)

    answer = ask(home, "lens", "model/model.safetensors", change)
    assert answer["outcome"] == "refused", answer
    assert "its weights are not those" in answer["said"]
