"""Parameters of notebooks: what is refused, in the user's words, before anything runs."""

import pytest
from toy_workbook import write_notebook, write_profile

from saelib.config import ConfigError
from saelib.run.jobs import jobs_of
from saelib.run.parameters import check_ranges, fitted


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"lr": 1}, {"lr": 1.0}),
        ({"lambdas": [1, 2.5]}, {"lambdas": [1.0, 2.5]}),
        ({"sites": ["middle", 3]}, {"sites": ["middle", 3]}),
        ({"clip": True, "steps": 0}, {"clip": True, "steps": 0}),
        ({"lambdas": []}, {"lambdas": []}),
    ],
)
def test_values_of_the_right_type_are_accepted_and_whole_numbers_become_floats(
    home, values, expected
):
    result = fitted(write_notebook(home, "01_a"), values)
    assert repr(result) == repr(expected)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("lr", "3e-4", "a number"),
        ("lr", None, "a number"),
        ("lr", True, "a number"),
        ("steps", 3.0, "a whole number"),
        ("steps", True, "a whole number"),
        ("clip", 1, "true or false"),
        ("model", 7, "a string"),
        ("lambdas", ["1.0"], "a list of a number"),
        ("lambdas", [None], "a list of a number"),
        ("lambdas", 0.5, "a list"),
        ("sites", [0.5], "a list of a string or a whole number"),
    ],
)
def test_a_wrong_type_is_refused_naming_key_value_and_type(home, key, value, expected):
    with pytest.raises(ConfigError) as error:
        fitted(write_notebook(home, "01_a"), {key: value})
    assert f"01_a: {key} = {value!r}" in str(error.value)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("stepz", "'stepz'; did you mean 'steps'?"),
        ("lamdas", "'lamdas'; did you mean 'lambdas'?"),
        ("zzz", "'zzz'; a notebook's parameters stand in its first code cell"),
    ],
)
def test_an_unknown_parameter_is_refused_naming_the_nearest(home, name, rest):
    with pytest.raises(ConfigError) as error:
        fitted(write_notebook(home, "01_a"), {name: 1.0})
    assert str(error.value) == f"01_a: unknown parameter {rest}"


def test_a_list_of_sites_holds_numbers_or_names_whatever_its_literal_has(home):
    path = write_notebook(home, "01_a", 'some_sites = ["middle"]  # depths')
    assert fitted(path, {"some_sites": [2, "middle", -2]}) == {"some_sites": [2, "middle", -2]}
    with pytest.raises(
        ConfigError, match=r"some_sites = .*expected a list of a string or a whole number"
    ):
        fitted(path, {"some_sites": [2.5]})


RANGED = """profile: str = "smoke"  # set by the driver
lr: float = 1e-3  # learning rate
tokens: int = 4096  # training tokens
batch_size: int = 256  # rows a step
source: str = "embedded"  # of the text
path: str = ""  # of the text
store_dtype: str = "auto"  # of the rows
ce_tokens: int = 512  # test tokens
sites = [2, "middle"]  # which sites
lambdas: list[float] = [0.5, 1.0]  # L1 coefficients
gate_lam: float = 4.0  # another
schedule_lrs: list[float] = [1e-3]  # learning rates
seeds: list[int] = [0]  # seeds
cause_tokens: int = 4096  # training tokens of some
depth_step: int = 4  # every so many sites
lengths: list[float] = [0.5, 1.0]  # shares of the tokens
margin: float = 0.03  # differences below it are none
snapshots: int = 4  # states kept
stream_tokens: int = 0  # of the shuffle buffer
stream_contexts: int = 64  # stored all the same
"""


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("lr", -1.0, "a learning rate > 0"),
        ("lr", float("nan"), "a finite number"),
        ("tokens", 255, "at least one batch of 256"),
        ("source", "wikipedia", "one of 'embedded'"),
        ("store_dtype", "int4", "one of 'auto'"),
        ("ce_tokens", -1, "0 "),
        ("lambdas", [0.5, -1.0], "λ ≥ 0"),
        ("gate_lam", -4.0, "λ ≥ 0"),
        ("schedule_lrs", [1e-3, 0.0], "a learning rate > 0"),
        ("seeds", [0, -1], "0 or more"),
        ("lambdas", [], "at least one element"),
        ("sites", [], "at least one element"),
        ("seeds", [], "at least one element"),
        ("schedule_lrs", [], "at least one element"),
        ("cause_tokens", 0, "above 0"),
        ("depth_step", -1, "above 0"),
        ("lengths", [1.0, 0.0], "above 0"),
        ("snapshots", 0, "above 0"),
        ("margin", -0.5, "0 or more"),
        ("stream_tokens", -1, "0 or more"),
        ("stream_contexts", 0, "above 0"),
        ("seeds", [0, 1, 0], "each element once"),  # three times one seed is no spread
        ("lambdas", [1.0, 1.0], "each element once"),
        ("sites", [2, 2], "each element once"),
    ],
)
def test_a_value_out_of_range_is_refused_in_the_user_s_words_before_anything_runs(
    home, key, value, expected
):
    write_notebook(home, "01_a", "n = 1\n")
    write_notebook(home, "02_b", RANGED)
    write_profile(home, "")
    with pytest.raises(ConfigError) as error:
        jobs_of("smoke", overrides={key: value})
    assert str(error.value).startswith(f"02_b: {key} = {value!r}: expected {expected}")


def test_a_rule_that_joins_parameters_is_checked_once_all_are_there(home):
    write_notebook(home, "02_b", RANGED)
    write_profile(home, "common: {source: jsonl}")  # not yet whole
    assert jobs_of("smoke", overrides={"path": "pages.jsonl"})[0].parameters["source"] == "jsonl"
    with pytest.raises(ConfigError, match="02_b: path = '': expected a path or hub id for 'jsonl'"):
        jobs_of("smoke")


def test_a_refused_field_that_is_no_parameter_is_named_as_it_is(home):
    path = write_notebook(home, "02_b", "batch_size = 256\n")
    with pytest.raises(
        ConfigError, match=r"02_b: TrainConfig\.tokens = 204800 .*one batch of 300000"
    ):
        check_ranges(path, {"batch_size": 300_000})


@pytest.mark.parametrize("profile", ["smoke", "default", "full", "enwik8", "llama2-7b"])
def test_the_shipped_profiles_are_in_range(profile):
    assert jobs_of(profile)
