"""Descriptions by a language model over real HTTP: what is sent, checked, scored and kept."""

import itertools
import json
import shutil
import socket
import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import torch
from helpers.chat_server import chat_server, completion, word_model
from helpers.workspaces import RECIPE, trained_profile

import saelib
from saelib.config import ConfigError
from saelib.measure.descriptions import (
    balanced_accuracy,
    checked_description,
    checked_fits,
    describe,
    examples_of,
    kept_descriptions,
)
from saelib.measure.features.chat import Chat, ChatError

HALF = {"description": "half of a pair: \ud800"}  # cannot be written
NO_ADDRESSES = (
    *("http://[::1", "http://host:99999/v1", "http://host:abc/v1", f"http://{'a' * 70}/v1"),
    *("http://127.0.0.1:1/v1/ü", "http://127.0.0.1:1/v 1", "http://a..b/v1", "http://h\x00/v1"),
)
DEAD = 63  # a latent that never fires


@pytest.fixture(scope="module")
def lens(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    trained_profile(home, lambda ws: [ws.spec("plain", 2, lam=0.5, **RECIPE)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAELIB_HOME", str(home))
        opened = saelib.open("tiny", site=2, l0=8)
    with torch.no_grad():
        opened.sae.b_enc[DEAD] = -1e6
    return opened


@pytest.fixture(autouse=True)
def nothing_kept(lens, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    shutil.rmtree(lens.beside("descriptions"), ignore_errors=True)


@pytest.fixture
def latents(lens):
    """Three that can be described."""
    return [j for j in range(DEAD) if examples_of(lens.index, j).firing][:3]


def test_contexts_that_explain_are_not_scored_and_as_many_fire_as_do_not(lens, latents):
    for latent in latents:
        examples = examples_of(lens.index, latent)
        explained = {window.context for window in examples.explained}
        firing = {window.context for window in examples.firing}
        silent = {window.context for window in examples.silent}
        assert not explained & firing
        assert not (explained | firing) & silent
        assert len(examples.firing) == len(examples.silent) > 0
    assert not examples_of(lens.index, DEAD).firing


def test_latents_are_described_and_scored_over_http(lens, latents, capsys):
    with chat_server() as server:
        table = describe(lens, [*latents, DEAD], base=server.url, model="words")
    said = capsys.readouterr().out
    assert f"descriptions: {2 * len(latents)} requests with about" in said
    assert f"go to 127.0.0.1:{server.server_port}, model words" in said
    assert len(server.asked) == 2 * len(latents)
    assert {path for path, _, _ in server.asked} == {"/v1/chat/completions"}
    assert table["latent"].tolist() == latents
    for row in table.itertuples():
        examples = examples_of(lens.index, row.latent)
        words = [
            [set(lens.lm.tokenizer.decode(window.token_ids).split()) for window in windows]
            for windows in (examples.firing, examples.silent)
        ]
        right = np.mean([row.description in each for each in words[0]])
        right += np.mean([row.description not in each for each in words[1]])
        assert row.score == pytest.approx(right / 2)
        assert row.n_scored == 2 * len(examples.firing)
    assert all("Authorization" not in headers for _, headers, _ in server.asked)


def test_what_is_described_is_kept_and_not_asked_again(lens, latents):
    answers = iter([word_model, word_model, lambda _: (503, {})])
    with (
        chat_server(lambda question: next(answers)(question)) as server,
        pytest.raises(ChatError, match=r"127.0.0.1:\d+: HTTP 503"),
    ):
        describe(lens, latents, base=server.url, model="words")
    assert kept_descriptions(lens, "words")["latent"].tolist() == latents[:1]
    with chat_server() as server:
        table = describe(lens, latents, base=server.url, model="words")
        assert len(server.asked) == 2 * (len(latents) - 1)
        again = describe(lens, latents, base=server.url, model="words")
        assert len(server.asked) == 2 * (len(latents) - 1)
    assert again.equals(table)
    assert kept_descriptions(lens, "other").empty
    path = next(lens.beside("descriptions").glob("*.jsonl"))
    lines = path.read_text()
    kept = json.loads(lines.splitlines()[0]) | HALF
    path.write_text(lines + json.dumps({k: v for k, v in kept.items() if k != "hash"}))
    with pytest.raises(ValueError, match=r"\.jsonl: line 4 is damaged"):
        kept_descriptions(lens, "words")
    path.write_text(lines + "{")
    with pytest.raises(ValueError, match=r"\.jsonl: line 4 is damaged"):
        kept_descriptions(lens, "words")


@pytest.mark.parametrize("nonsense", ['{"description": ""}', "I think: numbers", "[1]"])
def test_nonsense_is_left_out_with_a_warning(lens, latents, caplog, nonsense):
    answers = iter([completion(nonsense), *[None] * 9])
    with chat_server(lambda question: next(answers) or word_model(question)) as server:
        table = describe(lens, latents, base=server.url, model="words")
    assert table["latent"].tolist() == latents[1:]
    assert f"latent {latents[0]}: " in caplog.text


def test_all_nonsense_is_refused(lens, latents):
    nonsense = chat_server(lambda _: completion("[1]"))
    with nonsense as server, pytest.raises(ChatError, match=r"127.0.0.1:\d+: latent"):
        describe(lens, latents[:1], base=server.url, model="words")


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        ((401, {"error": "no"}), r"127.0.0.1:\d+: HTTP 401"),
        ((302, {}), r"127.0.0.1:\d+: HTTP 302"),
        ((200, b"<html>"), r"127.0.0.1:\d+: the reply is no chat completion"),
        ((200, {"choices": [{"message": {"content": None}}]}), r"\d: the reply has no text"),
    ],
)
def test_replies_that_cannot_be_used_are_one_sentence_with_the_host(reply, sentence):
    with chat_server(lambda _: reply) as server, pytest.raises(ChatError, match=sentence):
        Chat(server.url, "m").reply("?", 5)


def test_a_slow_host_and_one_that_is_down_are_named():
    def slow(_):
        time.sleep(1)
        return completion("{}")

    with (
        chat_server(slow) as server,
        pytest.raises(ChatError, match=r"127.0.0.1:\d+: no reply within 0.2 s"),
    ):
        Chat(server.url, "m", timeout=0.2).reply("?", 5)
    with pytest.raises(ChatError, match=r"127.0.0.1:\d+: .*refused"):
        Chat(server.url, "m").reply("?", 5)


@contextmanager
def raw_host(pieces):
    """The address of a host that answers each question with these bytes, a piece at a time."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection, suppress(OSError):  # the other side leaves
                connection.recv(65536)
                for piece in pieces:
                    connection.sendall(piece)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        thread.join(10)
        assert not thread.is_alive()


def slowly(content):
    """One byte at a time, for ever."""
    for place in itertools.count():
        yield content[place : place + 1] or b" "
        time.sleep(0.05)


@pytest.mark.parametrize(
    "pieces",
    [
        lambda: slowly(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"),
        lambda: slowly(b"HTTP/1.1 200 OK\r\nX: "),
        lambda: itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000),  # faster than read
    ],
)
def test_a_host_that_never_ends_is_left_at_the_time_that_was_said(pieces):
    began = time.monotonic()
    with (
        raw_host(pieces()) as url,
        pytest.raises(ChatError, match=r"127.0.0.1:\d+: no reply within 0.5 s"),
    ):
        Chat(url, "m", timeout=0.5).reply("?", 5)
    assert time.monotonic() - began < 5


def test_what_a_host_says_of_an_error_moves_no_terminal():
    with (
        raw_host([b"HTTP/1.1 401 \x1b[31mred\x07\r\n\r\n"]) as url,
        pytest.raises(ChatError) as info,
    ):
        Chat(url, "m").reply("?", 5)
    assert str(info.value).endswith("HTTP 401 ([31mred)")


def test_the_key_comes_from_the_variable_and_goes_to_the_named_host_alone(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    with chat_server(lambda _: completion("1")) as server:
        assert Chat(server.url, "m", "SOME_KEY").reply("?", 5) == 1
        assert server.asked[0][1]["Authorization"] == "Bearer secret"
    with pytest.raises(ConfigError, match="a key goes over https alone"):
        Chat("http://example.org/v1", "m", "SOME_KEY")


def test_the_key_is_written_nowhere(lens, latents, monkeypatch, capsys, caplog):
    monkeypatch.setenv("SOME_KEY", "the-secret-key")
    with caplog.at_level(0), chat_server() as server:
        describe(lens, latents[:1], base=server.url, model="keyed", key_variable="SOME_KEY")
    assert server.asked[0][1]["Authorization"] == "Bearer the-secret-key"
    said = capsys.readouterr()
    assert "the-secret-key" not in said.out + said.err + caplog.text
    files = [path for path in lens.beside("descriptions").parent.rglob("*") if path.is_file()]
    assert any(b"keyed" in path.read_bytes() for path in files)
    assert not any(b"the-secret-key" in path.read_bytes() for path in files)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"base": "example.org"}, "base = 'example.org': expected an address"),
        *(({"base": base}, "base: expected an address in ASCII, http") for base in NO_ADDRESSES),
        ({"timeout": float("inf")}, "timeout = inf: expected seconds, above 0, at most 86,400"),
        ({"timeout": 1e300}, r"timeout = 1e.300: expected seconds, above 0, at most 86,400"),
        ({"model": ""}, "model = '': expected the name"),
        ({"key_variable": "NOT_THERE"}, "key_variable = 'NOT_THERE': the environment has no"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Chat(**{"base": "https://example.org/v1", "model": "m", **settings})


def test_answers_are_checked_strictly():
    assert checked_description({"description": " a\n b "}) == "a b"
    assert checked_fits({"fits": [0, 1]}, 2) == [0, 1]
    for answer in ("x", {}, {"description": 3}, {"description": "y" * 401}, HALF):
        with pytest.raises(ValueError, match="expected"):
            checked_description(answer)
    for fits in ([0], [0, 2], [True, False], ["0", "1"], None):
        with pytest.raises(ValueError, match="expected"):
            checked_fits({"fits": fits}, 2)
    assert balanced_accuracy([1, 1, 0, 1], [True, True, True, False]) == pytest.approx(1 / 3)
    assert json.dumps(balanced_accuracy([1, 0], [True, False])) == "1.0"
