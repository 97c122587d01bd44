"""Parameters of notebooks: what is refused, in the user's words, before anything runs."""

from pathlib import Path

import pytest
from helpers.toy_workbook import write_notebook, write_profile

from saelib.config import ConfigError
from saelib.run.jobs import jobs_of
from saelib.run.parameters import check_ranges, fitted
from saelib.run.source_notebooks import parameters

ROOT = Path(__file__).resolve().parents[2]


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
    ("key", "value"),
    [("lr", 10**400), ("steps", 2**63), ("lambdas", [-(10**400)]), ("lr", 10**5000)],
    ids=["float", "int", "list", "too long to print"],
)
def test_a_whole_number_of_more_than_64_bits_is_refused(home, key, value):
    expected = f"01_a: {key} = .*: expected no whole number of more than 64 bits"
    with pytest.raises(ConfigError, match=expected) as error:
        fitted(write_notebook(home, "01_a"), {key: value})
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("key", "value"), [("model", "x" * 4097), ("sites", ["x" * 4097]), ("steps", "x" * 10**6)]
)
def test_a_text_without_end_is_refused_and_not_repeated_in_full(home, key, value):
    with pytest.raises(ConfigError, match=f"01_a: {key} = .*: expected at most 4,096") as error:
        fitted(write_notebook(home, "01_a"), {key: value})
    assert len(str(error.value)) < 400


def test_a_parameter_s_name_without_end_is_not_repeated_in_full(home):
    with pytest.raises(ConfigError, match="01_a: unknown parameter") as error:
        fitted(write_notebook(home, "01_a"), {"x" * 10**6: 1})
    assert len(str(error.value)) < 400


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


@pytest.fixture
def shipped(home):
    """A workbook with the shipped notebooks and an empty profile "smoke"."""
    for path in (ROOT / "notebooks").glob("0*.ipynb"):
        (home / "notebooks" / path.name).symlink_to(path)
    write_profile(home, "")
    return home


@pytest.mark.parametrize(
    ("notebook", "key", "value", "expected"),
    [
        ("02_train_sae", "lr", -1.0, "a learning rate > 0"),
        ("02_train_sae", "lr", float("nan"), "a finite number"),
        ("02_train_sae", "tokens", 255, "at least one batch of "),
        ("01_collect", "source", "wikipedia", "one of 'embedded'"),
        ("01_collect", "store_dtype", "int4", "one of 'auto'"),
        ("02_train_sae", "ce_tokens", -1, "0 "),
        ("02_train_sae", "lambdas", [0.5, -1.0], "λ ≥ 0"),
        ("02_train_sae", "schedule_lam", -4.0, "λ ≥ 0"),
        ("02_train_sae", "schedule_lrs", [1e-3, 0.0], "a learning rate > 0"),
        ("02_train_sae", "seeds", [0, -1], "0 or more"),
        ("02_train_sae", "lambdas", [], "at least one element"),
        ("02_train_sae", "sites", [], "at least one element"),
        ("02_train_sae", "seeds", [], "at least one element"),
        ("02_train_sae", "schedule_lrs", [], "at least one element"),
        ("05_layer_analysis", "cause_tokens", 0, "above 0"),
        ("05_layer_analysis", "depth_step", -1, "above 0"),
        ("03_train_gated", "lengths", [1.0, 0.0], "above 0"),
        ("03_train_gated", "snapshots", 0, "above 0"),
        ("02_train_sae", "margin", -0.5, "0 or more"),
        ("01_collect", "stream_tokens", -1, "0 or more"),
        ("01_collect", "stream_contexts", 0, "above 0"),
        ("02_train_sae", "seeds", [0, 1, 0], "each element once"),  # three times one is no spread
        ("02_train_sae", "lambdas", [1.0, 1.0], "each element once"),
        ("02_train_sae", "sites", [2, 2], "each element once"),
    ],
)
def test_a_value_out_of_range_is_refused_in_the_user_s_words_before_anything_runs(
    shipped, notebook, key, value, expected
):
    with pytest.raises(ConfigError) as error:
        jobs_of("smoke", [notebook], {key: value})
    assert str(error.value).startswith(f"{notebook}: {key} = {value!r}: expected {expected}")


def test_a_rule_that_joins_parameters_is_checked_once_all_are_there(shipped):
    write_profile(shipped, "common: {source: jsonl}")  # not yet whole
    (job,) = jobs_of("smoke", ["01"], {"path": "pages.jsonl"})
    assert job.parameters["source"] == "jsonl"
    message = "01_collect: path = '': expected a path or hub id for 'jsonl'"
    with pytest.raises(ConfigError, match=message):
        jobs_of("smoke", ["01"])


def test_a_notebook_without_a_model_is_checked_by_the_types_of_its_defaults_alone(home):
    path = write_notebook(home, "02_b", "lr = 0.1\n")
    assert fitted(path, {"lr": -1}) == {"lr": -1.0}
    check_ranges(path, {"lr": -1.0})


def test_a_parameter_that_a_user_adds_to_a_shipped_notebook_is_no_offence(shipped):
    path = shipped / "notebooks" / "02_train_sae.ipynb"
    defaults = parameters(path)
    path.unlink()
    cell = "\n".join(f"{name} = {value!r}" for name, value in defaults.items())
    write_notebook(shipped, "02_train_sae", f"{cell}\nmy_own = 1\n")
    (job,) = jobs_of("smoke", ["02"], {"my_own": 2})
    assert job.parameters["my_own"] == 2


@pytest.mark.parametrize("profile", ["smoke", "default", "full", "enwik8", "llama2-7b"])
def test_the_shipped_profiles_are_in_range(profile):
    assert jobs_of(profile)
