"""Configurations refuse what they cannot mean, and name the same thing the same way everywhere."""

import pytest

from saelib.config import (
    CollectConfig,
    ConfigError,
    CorpusConfig,
    EvalConfig,
    SAEConfig,
    StreamConfig,
    TrainConfig,
    stable_hash,
)
from saelib.env import data_dir


def test_unknown_key_is_refused_with_the_accepted_ones():
    with pytest.raises(
        ConfigError, match=r"SAEConfig: unknown key 'widht'; accepted: arch, d_in, n_latents"
    ):
        SAEConfig.from_dict({"widht": 3})


@pytest.mark.parametrize("digits", [400, 5000])  # Python prints no more than 4,300
def test_a_number_beyond_all_bounds_is_refused(digits):
    with pytest.raises(ConfigError, match=r"TrainConfig\.lam = .* expected a finite number"):
        TrainConfig(lam=10**digits)
    with pytest.raises(ConfigError, match=r"n_latents = .* a whole number of 64 bits at most"):
        SAEConfig(n_latents=10**digits)


@pytest.mark.parametrize(
    ("make", "field", "value", "accepted"),
    [
        (TrainConfig, "lr", "3e-4", "a finite number"),
        (TrainConfig, "lam", True, "a finite number"),
        (TrainConfig, "lam", -0.1, "λ ≥ 0"),
        (TrainConfig, "tokens", 1e5, "a whole number"),
        (TrainConfig, "resample_at", ["a"], "a list of a finite number"),
        (TrainConfig, "warmup", 1.5, "a share"),
        (TrainConfig, "lam", float("inf"), "a finite number"),
        (TrainConfig, "tokens", 10**20, "a whole number of 64 bits at most"),
        (TrainConfig, "seed", -1, "0 or more"),
        (TrainConfig, "data_seed", -2, "-1 (the same as seed), 0 or more"),
        (CorpusConfig, "seed", -1, "0 or more"),
        (EvalConfig, "seed", -1, "0 or more"),
        (SAEConfig, "n_latents", 0, "at least 1"),
        (SAEConfig, "normalize", "layer_norm", "'center_scale'"),
        (CorpusConfig, "ctx_len", 1, "at least 2"),
        (CorpusConfig, "min_ctx_len", 200, "0 to ctx_len = 128"),
        (CorpusConfig, "on_bad_line", "ignore", "'raise', 'skip'"),
        (CollectConfig, "batch_tokens", 0, "at least 1"),
        (CollectConfig, "dtype", "int4", "'float16', 'int8'"),
        (EvalConfig, "ce_tokens", -1, "0 "),
        (StreamConfig, "buffer_tokens", 0, "at least 1"),
        (StreamConfig, "sample_contexts", 0, "at least 1"),
        (StreamConfig, "held_out_contexts", -1, "0 (all) or more"),
        (StreamConfig, "seed", -1, "0 or more"),
    ],
)
def test_a_bad_value_names_field_value_and_what_is_accepted(make, field, value, accepted):
    with pytest.raises(ConfigError) as error:
        make(**{field: value})
    message = str(error.value)
    assert message.startswith(
        f"{make.__name__}.{field} = {tuple(value) if isinstance(value, list) else value!r}"
    )
    assert accepted in message


def test_a_name_without_end_is_refused_and_not_repeated_in_full():
    with pytest.raises(ConfigError, match=r"CorpusConfig\.path = 'x+… .*: expected at most 4,096"):
        CorpusConfig(source="jsonl", path="x" * 1_000_000)
    with pytest.raises(ConfigError) as error:
        SAEConfig.from_dict({"y" * 1_000_000: 3})
    assert len(str(error.value)) < 1000


def test_a_source_that_needs_a_path_says_so():
    with pytest.raises(
        ConfigError, match=r"CorpusConfig\.path = '' .*expected a path or hub id for 'fever'"
    ):
        CorpusConfig(source="fever")


def test_configurations_survive_a_dictionary():
    cfg = TrainConfig(resample_at=[0.25, 0.5], lam=2)
    assert TrainConfig.from_dict(cfg.to_dict()) == cfg
    assert cfg.lam == 2.0
    assert isinstance(cfg.resample_at, tuple)


def test_steps_are_whole_batches_and_stop_early_when_asked():
    assert TrainConfig(tokens=1000, batch_size=300).steps == 3
    assert TrainConfig(tokens=1000, batch_size=100, stop_at=0.55).steps in (5, 6)


@pytest.mark.parametrize(
    ("shares", "stop_at"),
    [((0.001,), 1.0), ((0.999,), 1.0), ((0.5,), 0.5), ((0.5,), 0.4), ((0.5, 0.501), 1.0)],
    ids=[
        "before the first step",
        "after the last",
        "at the stop",
        "after the stop",
        "two at one step",
    ],
)
def test_a_resampling_that_no_training_could_follow_or_precede_is_refused(shares, stop_at):
    with pytest.raises(
        ConfigError, match=r"TrainConfig\.resample_at = .*: expected shares at different steps"
    ):
        TrainConfig(tokens=100 * 512, resample_at=shares, stop_at=stop_at)
    assert TrainConfig(tokens=100 * 512, resample_at=(0.25, 0.5)).resample_steps == (25, 50)


def test_hash_is_the_same_on_every_machine():
    assert stable_hash({"b": 1, "a": [2.5, "x"]}) == "39b9006aec16"


def test_home_moves_data(monkeypatch, tmp_path):
    monkeypatch.setenv("SAELIB_HOME", str(tmp_path))
    assert data_dir("smoke") == tmp_path / "data" / "smoke"
