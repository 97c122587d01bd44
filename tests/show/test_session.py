"""A session answers as the lens and the index do; what cannot be is answered with one sentence."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from helpers.chat_server import chat_server, completion, word_model
from helpers.features import DEAD, N_LATENTS
from helpers.lenses import make_subjects

from saelib.measure import features
from saelib.measure.descriptions import describe, examples_of
from saelib.measure.lens import Lens, rarity
from saelib.show.explore import records
from saelib.show.explore.session import KEPT, LISTED, Session, ranked

TEXT = "w1 w2 w3 w1 w7"


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    return make_subjects(tmp_path_factory.mktemp("subjects"))


@pytest.fixture
def session(subjects):
    """A session on SAEs of which nothing was kept yet."""
    for subject in subjects:
        for name in ("twins", "ablation", "descriptions"):
            shutil.rmtree(subject.load().beside(name), ignore_errors=True)
    return Session(subjects)


def ask(session, kind, **arguments):
    """The reply; it must be JSON, and an error fails the test."""
    answer, _ = session.answer({"id": 7, "kind": kind, **arguments})
    json.dumps(answer, allow_nan=False)
    assert answer["id"] == 7
    assert "error" not in answer, answer
    return answer["reply"]


def refusal(session, kind, **arguments):
    answer, buffers = session.answer({"id": 7, "kind": kind, **arguments})
    assert set(answer) == {"id", "error"}
    assert buffers == []
    assert "\n" not in answer["error"]
    return answer["error"]


def busiest(session, subject=0):
    return int(session.lens(subject).index.table["n_fired"].idxmax())


def test_opening_sends_the_table_and_what_is_said_of_the_sae(session):
    answer, buffers = session.answer({"id": 1, "kind": "open", "subject": 0})
    index = session.lens(0).index
    expected = records.table_view(index)
    assert answer["reply"]["table"] == expected.content
    assert buffers == expected.buffers
    said = answer["reply"]["about"]
    assert said["facts"]["fvu"] is None
    assert said["titles"] == {
        "lambda": "λ",
        "l0": "L0 (active latents a token)",
        "fvu": "FVU",
        "schedule": "schedule",
    }
    assert said["sae"] == index.manifest["sae"]
    json.dumps(answer, allow_nan=False)


def test_a_latent_s_page_is_its_record(session):
    latent = busiest(session)
    lens = session.lens(0)
    view = ask(session, "latent", subject=0, latent=latent)
    assert view == records.latent_view(lens.index, latent, lens.lm.tokenizer)


def test_an_own_text_has_its_latents_by_code_times_rarity(session):
    reply = ask(session, "text", subject=0, text=TEXT)
    lens = session.lens(0)
    seen = lens.see(TEXT)
    assert "".join(reply["tokens"]) == TEXT
    assert reply["classes"] == seen.classes
    assert reply["missed"] == pytest.approx(seen.missed, rel=1e-3)
    assert reply["latents"][0] == []  # the first token is not ordinary
    density = lens.index.table["density"]
    n_tokens = lens.index.manifest["n_ordinary"]
    for position in range(1, 5):
        expected = {}
        for latent, code in enumerate(seen.codes[position].tolist()):
            if code > 0:
                share = max(density[latent], 1 / n_tokens)
                expected[latent] = code * math.log(1 / share)
        best = sorted(expected.values(), reverse=True)[:LISTED]
        listed = reply["latents"][position]
        assert [entry["score"] for entry in listed] == pytest.approx(best, rel=1e-3)
        for entry in listed:
            assert entry["score"] == pytest.approx(expected[entry["latent"]], rel=1e-3)


def test_an_own_text_has_the_codes_of_the_latent_that_is_open(session):
    latent = busiest(session)
    reply = ask(session, "text", subject=0, text=TEXT, latent=latent)
    seen = session.lens(0).see(TEXT)
    assert reply["codes"][0] is None  # the first token is not ordinary
    assert reply["codes"][1:] == pytest.approx(seen.codes[1:, latent].tolist(), rel=1e-3)
    assert "codes" not in ask(session, "text", subject=0, text=TEXT)
    assert "latent 99: " in refusal(session, "text", subject=0, text=TEXT, latent=99)


def test_a_latent_on_every_token_ranks_last_and_the_rarest_first(session):
    weights = rarity(session.lens(0).index)
    assert np.isfinite(weights).all()
    assert weights[DEAD] == weights.max()
    entries = ranked(np.array([5.0, 1.0, 0.0]), np.array([0.0, 3.0, 9.0]))
    assert [entry["latent"] for entry in entries] == [1, 0]


def test_steering_is_the_lens_s(session):
    latent = busiest(session)
    asked = {"latent": latent, "mode": "add", "strength": 4, "prompt": TEXT, "n_tokens": 3}
    reply = ask(session, "steer", subject=0, **asked)
    expected = session.lens(0).steer(latent, 4.0, TEXT, "add", 3)
    assert (reply["before"], reply["after"]) == (expected.before, expected.after)
    assert reply["kl"] == pytest.approx(expected.kl, rel=1e-3)
    assert [row["token"] for row in reply["next_tokens"]] == expected.next_tokens["token"].tolist()


def test_twins_are_the_best_matches_in_the_relatives(session):
    index = session.lens(0).index
    latent = busiest(session)
    assert "twins" not in ask(session, "latent", subject=0, latent=latent)
    rows = ask(session, "twins", subject=0, latent=latent)
    assert [row["name"] for row in rows] == ["second", "deep"]
    same, deep = rows
    other = session.lens(1).index
    table = features.twins(index, other).loc[latent]
    assert (same["subject"], same["latent"], same["mutual"]) == (1, table["twin"], table["mutual"])
    fires = set(index.firing(latent)[0]) & set(other.firing(same["latent"])[0])
    either = set(index.firing(latent)[0]) | set(other.firing(same["latent"])[0])
    assert same["jaccard"] == pytest.approx(len(fires) / len(either), rel=1e-3)
    table = features.twins(index, session.lens(2).index).loc[latent]
    assert deep["cosine"] is None
    assert (deep["latent"], deep["mutual"]) == (table["firing_twin"], table["firing_mutual"])
    again = Session(session.subjects)
    assert ask(again, "latent", subject=0, latent=latent)["twins"] == rows


def columns(session, subject=0):
    """The numbers of the table of all latents, by column."""
    answer, buffers = session.answer({"id": 1, "kind": "open", "subject": subject})
    named = answer["reply"]["table"]["numbers"]
    buffers = buffers[: len(named)]
    return {
        column["name"]: np.frombuffer(buffer, "<f4")
        for column, buffer in zip(named, buffers, strict=True)
    }


def test_the_table_has_the_nearest_twin_once_twins_were_found(session):
    assert "twin" not in columns(session)
    ask(session, "twins", subject=0, latent=0)
    cosines = session.lens(0).matches()["second"]["cosine"]  # the other is of another site
    assert columns(session)["twin"] == pytest.approx(cosines.to_numpy(), rel=1e-5)


def years(question):
    """A model that describes each latent by one word, and looks for it in excerpts."""
    is_asked_what = "tokens, with their surroundings" in question
    return completion('{"description": "years"}') if is_asked_what else word_model(question)


def test_descriptions_stand_on_page_and_table(session, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    lens = session.lens(0)
    latent = next(j for j in range(N_LATENTS) if examples_of(lens.index, j).firing)
    with chat_server(years) as server:
        table = describe(lens, [latent], base=server.url, model="words")
    score = table["score"].item()
    page = ask(session, "latent", subject=0, latent=latent)
    assert page["description"] == {"text": "years", "score": records.plain(score)}
    assert ask(session, "open", subject=0)["about"]["descriptions"] == {str(latent): "years"}
    scores = columns(session)["score"]
    assert scores[latent] == pytest.approx(score)
    assert np.isfinite(scores).sum() == 1
    assert "description" not in ask(session, "latent", subject=0, latent=latent + 1)


@pytest.mark.parametrize("name", ["twins", "ablation", "descriptions"])
def test_a_damaged_file_beside_the_index_leaves_the_pages_usable_and_is_named(session, name):
    lens = session.lens(0)
    latent = busiest(session)
    ask(session, "twins", subject=0, latent=latent)
    ask(session, "ablate", subject=0, latent=latent)
    folder = lens.beside(name)
    folder.mkdir(exist_ok=True)
    files = [*folder.glob("*.csv")] or [folder / f"{lens.checksum[:12]}.jsonl"]
    files[0].write_text("{")
    again = Session(session.subjects)
    assert str(files[0]) in ask(again, "open", subject=0)["about"]["warnings"][0]
    assert ask(again, "latent", subject=0, latent=latent)["latent"] == latent


def test_one_damaged_table_of_twins_does_not_hide_the_others(session):
    lens = session.lens(0)
    latent = busiest(session)
    ask(session, "twins", subject=0, latent=latent)
    whole = ask(session, "latent", subject=0, latent=latent)["twins"]
    # the one with the SAE of another site, to whose decoder there is no cosine
    (elsewhere,) = lens.beside("twins").glob(f"*-{session.lens(2).checksum[:12]}-*.csv")
    elsewhere.write_text("{")
    again = Session(session.subjects)
    opened = ask(again, "open", subject=0)
    assert [warning for warning in opened["about"]["warnings"] if str(elsewhere) in warning]
    page = ask(again, "latent", subject=0, latent=latent)
    names = {row["name"] for row in page["twins"]}
    assert names < {row["name"] for row in whole}
    assert "twin" in [column["name"] for column in opened["table"]["numbers"]]


def test_ablation_is_measured_once_and_stands_on_the_page(session, monkeypatch):
    latent = busiest(session)
    reply = ask(session, "ablate", subject=0, latent=latent)
    lens = session.lens(0)
    losses = features.ablation_losses(lens.sae, lens.lm, lens.store, [latent], 8).loc[latent]
    assert reply["delta_ce"] == pytest.approx(losses["delta_ce"], rel=1e-3)
    assert reply["n_contexts"] == losses["n_contexts"]
    assert ask(session, "latent", subject=0, latent=latent)["ablation"] == reply
    dead = ask(session, "ablate", subject=0, latent=DEAD)
    assert dead == {"delta_ce": None, "n_contexts": 0}


def test_few_lenses_stay_in_memory(subjects):
    loaded = []

    def counted(subject):
        def load():
            loaded.append(subject.name)
            return subject.load()

        return type(subject)(subject.name, subject.facts, load)

    session = Session([counted(subject) for subject in [*subjects, *subjects[:1]]])
    for number in (0, 1, 2, 0):
        session.lens(number)
    assert len(loaded) == KEPT
    session.lens(3)  # puts out the one that was asked for longest ago
    assert len(loaded) == KEPT + 1
    session.lens(0)
    assert len(loaded) == KEPT + 1
    session.lens(1)
    assert len(loaded) == KEPT + 2


@pytest.mark.parametrize(
    ("kind", "arguments", "sentence"),
    [
        (
            "latent",
            {"latent": 99999},
            f"latent 99999: this SAE has the latents 0 to {N_LATENTS - 1}",
        ),
        ("latent", {"latent": -1}, "latent -1: this SAE has the latents"),
        ("latent", {"latent": "7"}, "latent = '7': expected a whole number"),
        ("latent", {"latent": True}, "latent = True: expected a whole number"),
        ("open", {"subject": 5}, "subject 5: there are the SAEs 0 to 2"),
        ("text", {"text": ""}, "text = '': no tokens"),
        ("text", {"text": None}, "text = None: expected a text"),
        ("text", {"text": "w1 " * 5000}, "tokens: model"),
        ("ask", {}, "kind = 'ask': expected one of open, latent, text"),
        ("export", {"latents": [0], "format": "pdf"}, "format = 'pdf': expected one of csv, json"),
        ("export", {"latents": [], "format": "csv"}, "no latent is selected"),
        ("export", {"latents": "0", "format": "csv"}, "latents = '0': expected a list"),
        ("note", {"latent": 0, "text": 3, "lists": []}, "note: expected a text and a list"),
    ],
)
def test_what_cannot_be_is_answered_with_one_sentence(session, kind, arguments, sentence):
    assert sentence in refusal(session, kind, **{"subject": 0, **arguments})
    ask(session, "latent", subject=0, latent=0)  # and it goes on


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mode": "push"}, "mode = 'push': expected one of 'add'"),
        ({"strength": math.inf}, "strength = inf: expected a number"),
        ({"strength": "much"}, "strength = 'much': expected a number"),
        ({"n_tokens": 0}, "n_tokens = 0: expected 1 to 200"),
        ({"latent": N_LATENTS}, "this SAE has the latents 0 to"),
        ({"prompt": ""}, "no tokens"),
    ],
)
def test_steering_that_cannot_be_is_answered_with_one_sentence(session, change, sentence):
    asked = {"latent": 0, "mode": "add", "strength": 1, "prompt": TEXT, "n_tokens": 2}
    assert sentence in refusal(session, "steer", subject=0, **{**asked, **change})


def test_an_unforeseen_error_is_answered_and_stays_in_the_log(session, monkeypatch, caplog):
    def broken(*_):
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(Lens, "see", broken)
    assert refusal(session, "text", subject=0, text=TEXT) == "ZeroDivisionError: by nought"
    assert "Traceback" in caplog.text


def test_an_out_of_memory_of_torch_is_a_sentence(session, monkeypatch):
    def broken(*_):
        raise torch.OutOfMemoryError("out of\nmemory")

    monkeypatch.setattr(Lens, "see", broken)
    assert refusal(session, "text", subject=0, text=TEXT) == "out of memory"


def test_a_note_is_kept_and_shown_on_page_and_list(session):
    said = {"text": " fires on dates ", "lists": ["dates", "dates", " "]}
    assert ask(session, "note", subject=0, latent=3, **said) is None
    kept = {"text": "fires on dates", "lists": ["dates"]}
    assert ask(session, "latent", subject=0, latent=3)["note"] == kept
    assert ask(session, "open", subject=0)["about"]["notes"] == {"3": kept}
    assert ask(session, "open", subject=1)["about"]["notes"] == {}
    ask(session, "note", subject=0, latent=3, text="", lists=[])
    assert "note" not in ask(session, "latent", subject=0, latent=3)


def test_damaged_notes_leave_the_pages_usable_and_are_named(session):
    notes = session._notes(session.lens(0)).path
    notes.write_text("{")
    try:
        assert str(notes) in ask(session, "open", subject=0)["about"]["warnings"][0]
        assert "note" not in ask(session, "latent", subject=0, latent=3)
        sentence = refusal(session, "note", subject=0, latent=3, text="a", lists=[])
        assert str(notes) in sentence
        assert notes.read_text() == "{"
    finally:
        notes.unlink()


def test_a_selection_is_exported(session):
    path = ask(session, "export", subject=0, latents=[3, 5], format="csv")["path"]
    assert path.endswith(".csv")
    assert "explore(saes" in ask(session, "export", subject=0, latents=[3], format="link")["text"]
    assert ask(session, "export", subject=0, latents=[3], format="json")["path"].endswith("_3.json")
