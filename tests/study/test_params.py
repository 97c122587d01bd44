"""Parameters are refused in the user's words: notebook, parameter, value, what is accepted."""

from dataclasses import dataclass
from typing import Literal, Union

import pytest
from pydantic import Field

from saelib.config import Checked, CollectConfig, ConfigError
from saelib.study.params import (
    Count,
    Params,
    Recipe,
    RisingShares,
    Schedule,
    Seeds,
    Sites,
    Sweep,
    build,
    in_words,
)

RECIPE = {"n_latents": 768, "tokens": 4096, "batch_size": 256, "lr": 8e-3, "schedule": "linear"}
RECIPE |= {"lam_warmup": 0.1, "warmup": 0.05, "grad_clip": 1}
SWEEP = {"sites": [2, "middle", -2], "lambdas": [0.5, 1], "seeds": [0, 1], "ce_tokens": 512}
SWEEP |= {"l0_target": 32.0}


class Small(Params):
    seeds: Seeds = Field(description="of the SAEs")
    sites: Sites = Field(description="depths")
    schedule: Schedule = Field(description="of the rate")
    window: Count = Field(description="training tokens of silence")
    marks: RisingShares = Field(description="when to resample")


SMALL = {"seeds": [0], "sites": [2], "schedule": "linear", "window": 5, "marks": [0.25, 0.5]}


def refusal(model, values):
    with pytest.raises(ConfigError) as error:
        model.read(values, "02_x")
    return str(error.value)


def test_a_whole_number_becomes_a_float_where_a_number_is_asked():
    recipe = Recipe.read(RECIPE, "02_x")
    assert (recipe.grad_clip, type(recipe.grad_clip)) == (1.0, float)
    assert Sweep.read(SWEEP, "02_x").lambdas == [0.5, 1.0]
    assert recipe.spec_fields() == RECIPE


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("lr", "3e-4", "lr = '3e-4' (str): expected a number (in YAML 3.0e-4, not 3e-4)"),
        ("lr", True, "lr = True (bool): expected a number"),
        ("lr", -1, "lr = -1: expected a learning rate > 0 (Adam's peak learning rate)"),
        ("lr", float("nan"), "lr = nan: expected a finite number"),
        ("batch_size", 2.5, "batch_size = 2.5 (float): expected a whole number"),
        ("batch_size", 0, "batch_size = 0: expected at least 1 (tokens per step)"),
        ("tokens", 255, "tokens = 255: expected at least one batch of 256"),
        ("warmup", 1.5, "warmup = 1.5: expected a share in [0, 1]"),
        ("schedule", "cosin", "schedule = 'cosin': expected one of 'constant', 'linear'"),
    ],
)
def test_a_recipe_out_of_range_names_value_and_what_is_accepted(name, value, expected):
    assert refusal(Recipe, RECIPE | {name: value}).startswith(f"02_x: {expected}")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("seeds", [], "at least one element (of the SAEs)"),
        ("seeds", [0, 1, 0], "each element once"),  # one seed thrice is no spread
        ("seeds", [0, -1], "0 or more"),
        ("sites", [2.5], "a list of a string or a whole number"),
        ("sites", 2, "a list of a string or a whole number"),
        ("window", 0, "above 0 (training tokens of silence)"),
        ("marks", [0.5, 0.25], "rising shares in (0, 1)"),
        ("marks", [0.5, 1.0], "rising shares in (0, 1)"),
    ],
)
def test_a_list_is_refused_as_a_whole(name, value, expected):
    message = refusal(Small, SMALL | {name: value})
    assert message.startswith(f"02_x: {name} = {value!r}")
    assert expected in message


def test_an_unknown_or_a_missing_parameter_is_named():
    assert "unknown parameter 'learning_rate'" in refusal(Small, SMALL | {"learning_rate": 1})
    missing = {name: value for name, value in SMALL.items() if name != "window"}
    assert "window is missing: expected a whole number" in refusal(Small, missing)


def test_parameters_are_picked_from_a_notebook_and_never_change():
    values = Small.from_notebook(SMALL | {"np": object(), "notebook": "02_x"})
    assert values.window == 5
    with pytest.raises(ValueError, match="frozen"):
        values.window = 6
    with pytest.raises(ConfigError, match="02_x: window = -1"):
        Small.from_notebook(SMALL | {"window": -1, "notebook": "02_x"})


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "a whole number"),
        (float, "a number (in YAML 3.0e-4, not 3e-4)"),
        (bool, "true or false"),
        (Count, "a whole number"),  # without its rule
        (list[float], "a list of a number (in YAML 3.0e-4, not 3e-4)"),
        (Seeds, "a list of a whole number"),
        (str | int, "a string or a whole number"),
        (Union[int, str], "a string or a whole number"),  # noqa: UP007 - as older code has it
        (Literal["a", 2], "one of 'a', 2"),
        (list[Literal["b", "a"]], "a list of one of 'b', 'a'"),
    ],
)
def test_a_type_is_named_in_words(hint, words):
    assert in_words(hint) == words


def test_a_configuration_is_built_of_its_values():
    config = build(CollectConfig, {"batch_tokens": 128, "dtype": "float32"}, {})
    assert (config.batch_tokens, config.dtype) == (128, "float32")


def test_what_a_configuration_refuses_is_said_of_the_parameter():
    values = {"batch_tokens": 0, "dtype": "float32"}
    with pytest.raises(ConfigError) as error:
        build(CollectConfig, values, {"dtype": "store_dtype"})
    assert str(error.value) == "batch_tokens = 0: expected at least 1"
    with pytest.raises(ConfigError) as error:
        build(
            CollectConfig, values | {"batch_tokens": 128, "dtype": "int3"}, {"dtype": "store_dtype"}
        )
    assert str(error.value).startswith("store_dtype = 'int3': expected ")
    assert "float32" in str(error.value)
    assert "CollectConfig" not in str(error.value)
    assert error.value.__suppress_context__  # one message


def test_a_field_that_is_no_parameter_keeps_its_own_name():
    @dataclass(frozen=True)
    class Hidden(Checked):
        seen: int = 1
        hidden: int = 2

        def check(self) -> None:
            self._at_least(3, "at least 3", "hidden")

    with pytest.raises(ConfigError, match=r"^Hidden\.hidden = 2 \(int\): expected at least 3$"):
        build(Hidden, {"seen": 1}, {"hidden": "other"})
    with pytest.raises(ConfigError, match=r"^other = 1: expected at least 3$"):
        build(Hidden, {"seen": 5, "hidden": 1}, {"hidden": "other", "seen": "none"})
