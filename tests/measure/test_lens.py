"""A lens opens the SAE that was meant, tells tokens apart, and steers by multiples of a maximum."""

import copy

import numpy as np
import pytest
import torch
from helpers.workspaces import RECIPE, trained_profile

import saelib
from saelib.config import ConfigError
from saelib.measure.lens import Lens
from saelib.run.opening import nearest_run, open_lens
from saelib.sae.formats import FormatError

PROMPT = "w1 w2 w3 w1"


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """A home with SAEs of two arms at two sites, one of them of the original recipe."""
    home = tmp_path_factory.mktemp("home")
    return home, trained_profile(home, compared_specs)


def compared_specs(ws):
    specs = [ws.spec("plain", 2, lam=lam, **RECIPE) for lam in (0.3, 1.2)]
    specs += [ws.spec("full", 2, lam=0.6, **RECIPE), ws.spec("plain", 3, lam=0.6, **RECIPE)]
    specs += [ws.spec("plain", 2, lam=0.6, normalize="none", tokens_mask="all", **RECIPE)]
    return specs


@pytest.fixture
def lens(profile, monkeypatch):
    monkeypatch.setenv("SAELIB_HOME", str(profile[0]))
    return saelib.open("tiny", site=2, l0=8)


def test_a_profile_opens_the_sae_nearest_to_the_l0(profile, monkeypatch):
    home, results = profile
    monkeypatch.setenv("SAELIB_HOME", str(home))
    plain = results[(results["arm"] == "plain") & (results["site"] == 2)]
    for row in plain[plain["normalize"] == "center_scale"].itertuples():
        opened = open_lens("tiny", site="middle", l0=row.l0_val, arch="sae")
        assert opened.sae.config.site == 2
        run = nearest_run(results, 2, row.l0_val, "plain")
        assert run["run_id"] == row.run_id
    assert open_lens("tiny", site=3).sae.config.site == 3
    assert nearest_run(results, None, 8, "full")["arm"] == "full"


def test_the_original_recipe_s_saes_are_not_chosen(profile):
    raw = profile[1][profile[1]["normalize"] == "none"].iloc[0]
    wanted = max(raw["l0_val"], 1.0)
    assert nearest_run(profile[1], 2, wanted, None)["normalize"] == "center_scale"


def test_codes_are_the_sae_s_own_and_first_tokens_and_sinks_are_told_apart(lens, caplog):
    seen = lens.see(PROMPT)
    ids = torch.tensor([seen.token_ids])
    stream = lens.lm.capture(ids, [2])[2][0]
    assert torch.equal(seen.codes, lens.sae.encode_raw(stream))
    assert seen.tokens == PROMPT.split()
    assert seen.classes == ["first", "ordinary", "ordinary", "ordinary"]
    error = (lens.sae.reconstruct(stream) - stream).pow(2).sum(1)
    share = error / (stream - lens.sae.mean).pow(2).sum(1)
    assert seen.missed == pytest.approx(share.tolist(), rel=1e-5)
    table = lens.top(PROMPT, k=3)
    assert "0 'w1' (first)" in caplog.text
    assert set(table["position"]) <= {1, 2, 3}
    for position, rows in table.groupby("position"):
        assert rows["code"].tolist() == sorted(rows["code"], reverse=True)
        largest = seen.codes[position].topk(3).values
        assert rows["code"].tolist() == pytest.approx(largest[largest > 0].tolist())


def test_a_token_of_huge_norm_is_a_sink(lens, monkeypatch):
    monkeypatch.setattr(type(lens.store), "median_norm", lambda *_: 1e-9)
    assert lens.see(PROMPT).classes == ["first", "sink", "sink", "sink"]
    assert lens.top(PROMPT).empty


def test_strength_is_in_multiples_of_the_largest_code_on_test_pages(lens):
    rows = np.flatnonzero(lens.store.mask("ordinary", "test"))
    codes = lens.sae.encode_raw(lens.store.rows(2, rows))
    latent = int(codes.amax(0).argmax())
    assert lens.largest_code(latent) == pytest.approx(float(codes[:, latent].max()))
    still = lens.steer(latent, 0, PROMPT, n_tokens=3)
    assert still.before == still.after
    assert still.kl == 0
    pushed = lens.steer(latent, 3, PROMPT, n_tokens=3)
    assert pushed.kl > 0
    assert len(pushed.after.split()) == 3
    assert list(pushed.next_tokens.columns) == ["token", "before", "after"]
    same = lens.steer(latent, 1, PROMPT, mode="scale", n_tokens=2)
    assert same.kl == 0


def test_an_sae_s_folder_opens_with_its_model_alone(profile, monkeypatch):
    home, results = profile
    monkeypatch.setenv("SAELIB_HOME", str(home))
    folder = home / "data" / "tiny" / "saes" / results["run_id"].iloc[0]
    opened = saelib.open(folder, model=str(home / "model"))
    assert opened.see(PROMPT).classes[0] == "first"
    with pytest.raises(ConfigError, match="multiples of a latent's largest code need a profile"):
        opened.steer(0, 1, PROMPT)
    assert opened.steer(0, 1, PROMPT, mode="scale", n_tokens=1).kl == 0
    with pytest.raises(ConfigError, match="name either the SAE's language model"):
        saelib.open(folder)


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"source": "tinny"}, FileNotFoundError, "tinny: neither an SAE's folder nor .* has tiny$"),
        ({"arch": "gate"}, ConfigError, "arch = 'gate': no such SAE here; expected one of 'sae'"),
        ({"site": 1}, ConfigError, r"site = 1: no SAE there; expected one of \[2, 3\]"),
        ({"l0": 0}, ConfigError, "l0 = 0: expected above 0"),
        ({"l0": 10**400}, ConfigError, "l0 = 1000.*: expected a number"),
    ],
)
def test_what_is_not_there_is_refused_saying_what_is(
    profile, monkeypatch, settings, error, sentence
):
    monkeypatch.setenv("SAELIB_HOME", str(profile[0]))
    with pytest.raises(error, match=sentence):
        open_lens(**{"source": "tiny", "site": 2, **settings})


def test_texts_and_latents_that_cannot_be_are_refused(lens, monkeypatch):
    with pytest.raises(ConfigError, match="text = '': no tokens"):
        lens.see("")
    with pytest.raises(ConfigError, match=r"text = 'w1 .*ud800': expected a text that can be wri"):
        lens.codes(0, "w1 \ud800")
    with pytest.raises(ConfigError, match="latent 64: this SAE has the latents 0 to 63"):
        lens.steer(64, 1, PROMPT)
    monkeypatch.setattr(lens.lm, "max_length", 3)
    with pytest.raises(ConfigError, match=r"text of 4 tokens: model .* takes 3"):
        lens.top(PROMPT)


def test_an_sae_of_another_model_is_refused(lens):
    other = saelib.fit(torch.randn(300, 8), l0=2, arch="topk", tokens=1024).sae
    with pytest.raises(ConfigError, match=r"width d_in = 8 does not fit model .* of width 32"):
        Lens(lens.lm, other)


def test_one_latent_on_a_text_has_no_code_on_first_tokens(lens):
    latent = int(lens.index.table["n_fired"].argmax())
    table = lens.codes(latent, PROMPT)
    assert table["position"].tolist() == [0, 1, 2, 3]
    assert table["token"].tolist() == PROMPT.split()
    assert np.isnan(table["code"][0])
    expected = lens.see(PROMPT).codes[1:, latent].tolist()
    assert table["code"][1:].tolist() == pytest.approx(expected)


def test_latents_that_texts_have_in_common_are_found_rare_ones_first(lens):
    texts = [PROMPT, "w5 w6"]
    table = lens.find(texts, k=64)
    largest = np.stack([lens.see(text).codes[1:].max(0).values.numpy() for text in texts])
    density = lens.index.table["density"].to_numpy()
    least = 1 / lens.index.manifest["n_ordinary"]
    scores = largest.mean(0) * -np.log(np.maximum(density, least))
    assert table["score"].tolist() == pytest.approx(sorted(scores[largest.any(0)], reverse=True))
    for row in table.itertuples():
        assert row.score == pytest.approx(scores[row.latent], rel=1e-5)
        assert row.n_texts == (largest[:, row.latent] > 0).sum()
        assert row.on == lens.index.table["top_token"][row.latent]
    assert len(lens.find(PROMPT, k=3)) == 3
    with pytest.raises(ConfigError, match="texts: expected at least one"):
        lens.find([])


def test_own_text_begins_as_the_contexts_of_training_do(lens, monkeypatch):
    monkeypatch.setitem(lens.store.manifest, "bos", True)
    tokenizer = copy.deepcopy(lens.lm.tokenizer)
    tokenizer.bos_token = "w7"
    monkeypatch.setattr(lens.lm, "tokenizer", tokenizer)
    seen = lens.see(PROMPT)
    assert seen.tokens[0] == "w7"
    assert len(seen.tokens) == 5
    assert seen.classes == ["first", *["ordinary"] * 4]
    monkeypatch.setitem(lens.store.manifest, "bos", False)
    assert len(lens.see(PROMPT).tokens) == 4


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda lens: lens.top(PROMPT, k=0), "k = 0: expected at least 1 latent"),
        (lambda lens: lens.steer(True, 1, PROMPT), "latent = True: expected a whole number"),
        (lambda lens: lens.steer(3, float("nan"), PROMPT), "strength = nan: expected a number"),
        (lambda lens: lens.steer(3, 10**400, PROMPT), "strength = 1000.*: expected a number"),
        (
            lambda lens: lens.steer(3, 1e300, PROMPT),
            r"value = .*e\+\d+: expected a number of float",
        ),
        (lambda lens: lens.steer(3, 1e30, PROMPT), "the model cannot compute with so large a st"),
        (lambda lens: lens.steer(3, 1, "w1", mode="scale"), "prompt = 'w1': one token, and the"),
    ],
)
def test_what_cannot_be_is_one_sentence(lens, call, sentence):
    with pytest.raises(ConfigError, match=sentence):
        call(lens)


def test_a_latent_that_never_fires_cannot_be_raised_by_its_largest_code(lens):
    index = lens.index
    index.table.loc[5, "max"] = 0.0
    with pytest.raises(ConfigError, match="latent 5 never fires on test pages"):
        lens.steer(5, 1, PROMPT)


def test_a_warning_names_few_of_many_tokens(lens, monkeypatch, caplog):
    monkeypatch.setattr(type(lens.store), "median_norm", lambda *_: 1e-9)
    lens.top("w1 " * 30)
    assert "and 25 more" in caplog.text
    assert caplog.text.count("(sink)") == 4


def test_an_l0_that_no_sae_has_is_said(profile, monkeypatch, caplog):
    monkeypatch.setenv("SAELIB_HOME", str(profile[0]))
    opened = saelib.open("tiny", site=2, l0=10_000)
    assert f"no SAE there has an L0 near 10000; opened {opened.name}" in caplog.text


@pytest.mark.parametrize(
    ("source", "settings", "error", "sentence"),
    [
        ("tiny", {"model": "gpt2"}, ConfigError, "tiny is a profile; model and profile are for"),
        ("..", {}, ConfigError, "name either the SAE's language model"),
        ("", {}, ConfigError, "name either the SAE's language model"),
        ("nosuch", {}, FileNotFoundError, "nosuch: neither an SAE's folder nor .* has tiny"),
    ],
)
def test_arguments_that_do_not_apply_are_refused(
    profile, monkeypatch, source, settings, error, sentence
):
    monkeypatch.setenv("SAELIB_HOME", str(profile[0]))
    with pytest.raises(error, match=sentence):
        saelib.open(source, **settings)


def test_a_pickle_is_refused_by_name(profile, monkeypatch, tmp_path):
    monkeypatch.setenv("SAELIB_HOME", str(profile[0]))
    (tmp_path / "ae.pt").write_bytes(b"\x80\x04N.")
    with pytest.raises(FormatError, match=r"ae.pt is a pickle"):
        saelib.open(tmp_path, profile="tiny", site=2)


def test_a_run_s_folder_opens_with_its_relatives(profile, monkeypatch):
    home, results = profile
    monkeypatch.setenv("SAELIB_HOME", str(home))
    run = results[(results["arm"] == "plain") & (results["normalize"] != "none")].iloc[0]
    opened = saelib.open(home / "data" / "tiny" / "saes" / run["run_id"], profile="tiny")
    assert opened.facts["run_id"] == run["run_id"]
    assert opened.relatives
    assert opened.twins(3)["run_id"].isin(results["run_id"]).all()
