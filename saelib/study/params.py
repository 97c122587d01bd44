"""Parameters of notebooks and studies: type, range, unit and meaning, once, at the field.

A field's type is one of those below, so that a range and its message stand in one place:

    class Params(Recipe):
        margin: NotNegative = Field(description="extra FVU from which on a schedule trains badly")

A value that is refused raises `ConfigError` with notebook, parameter, value and what is accepted.
Defaults are the literals of a notebook's parameter cell alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from saelib.config import IN_WORDS, Checked, ConfigError, TrainConfig

RANGE = "range"  # kind of our own errors, whose message is what is accepted
Read = TypeVar("Read", bound="Params")
NUMBER = "a number (in YAML 3.0e-4, not 3e-4)"

# -- types of fields -------------------------------------------------------------------------------


def accepts(test: Callable[[Any], bool], words: str) -> AfterValidator:
    """A rule for a field's value; `words` say what it accepts."""

    def check(value: Any) -> Any:
        if not test(value):
            raise PydanticCustomError(RANGE, "{words}", {"words": words})
        return value

    return AfterValidator(check)


def _distinct(values: list) -> bool:
    return len(set(values)) == len(values)


def _rising(shares: list) -> bool:
    return all(a < b for a, b in pairwise((0, *shares, 1)))


def _ascending(values: list) -> bool:
    return all(a < b for a, b in pairwise(values))


_LIST = BeforeValidator(lambda value: list(value) if isinstance(value, tuple) else value)
_FILLED = accepts(lambda values: len(values) > 0, "at least one element")
_ONCE = accepts(_distinct, "each element once")  # one seed thrice is not three
_POSITIVE = accepts(lambda value: value > 0, "above 0")
_NOT_NEGATIVE = accepts(lambda value: value >= 0, "0 or more")
_AT_LEAST_ONE = accepts(lambda value: value >= 1, "at least 1")
_SHARE = accepts(lambda value: 0 <= value <= 1, "a share in [0, 1]")
_LAMBDA = accepts(lambda value: value >= 0, "λ ≥ 0")
_RATE = accepts(lambda value: value > 0, "a learning rate > 0")

Positive = Annotated[float, _POSITIVE]
NotNegative = Annotated[float, _NOT_NEGATIVE]
Share = Annotated[float, _SHARE]  # of a whole run
StopShare = Annotated[float, accepts(lambda v: 0 < v <= 1, "a share in (0, 1]")]
Lambda = Annotated[float, _LAMBDA]  # L1 coefficient, normalised units
LearningRate = Annotated[float, _RATE]
GradClip = Annotated[float, accepts(lambda v: v >= 0, "0 (off) or a norm")]
Count = Annotated[int, _POSITIVE]
AtLeastOne = Annotated[int, _AT_LEAST_ONE]
CountOrZero = Annotated[int, _NOT_NEGATIVE]
All0 = Annotated[int, accepts(lambda v: v >= 0, "0 (all) or more")]  # 0 takes all there are
LossTokens = Annotated[int, accepts(lambda v: v >= 0, "0 (no loss is measured) or more")]

Seeds = Annotated[list[Annotated[int, _NOT_NEGATIVE]], _LIST, _FILLED, _ONCE]
Sites = Annotated[list[int | str], _LIST, _FILLED, _ONCE]  # depths: 2, "middle", -2
Lambdas = Annotated[list[Lambda], _LIST, _FILLED, _ONCE]
PositiveLambdas = Annotated[list[Positive], _LIST, _FILLED, _ONCE]
LearningRates = Annotated[list[LearningRate], _LIST, _FILLED, _ONCE]
Multiples = Annotated[list[Positive], _LIST, _FILLED, _ONCE]  # of the training tokens
RisingShares = Annotated[
    list[float], _LIST, _FILLED, _ONCE, accepts(_rising, "rising shares in (0, 1)")
]
RisingTargets = Annotated[
    list[Positive], _LIST, _FILLED, accepts(_ascending, "L0 that rise, each once")
]  # of a comparison
Schedule = Literal["constant", "linear", "cosine", "cosine_with_restarts"]

# -- models ----------------------------------------------------------------------------------------


class Params(BaseModel):
    """Base of all parameters: values of exactly the declared types, unknown names refused."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def read(cls: type[Read], values: Mapping[str, Any], notebook: str) -> Read:
        """Check `values` of a notebook; `ConfigError` in the words of its user."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            message = cls._message(error.errors()[0], values)
            raise ConfigError(f"{notebook}: {message}") from None

    @classmethod
    def from_notebook(cls: type[Read], namespace: Mapping[str, Any]) -> Read:
        """The fields as a notebook's `globals()` have them; its name is in `notebook`, if there."""
        values = {name: namespace[name] for name in cls.model_fields if name in namespace}
        return cls.read(values, str(namespace.get("notebook", cls.__name__)))

    @classmethod
    def _message(cls, error: ErrorDetails, values: Mapping[str, Any]) -> str:
        """One refusal in words: parameter, value, what is accepted."""
        if error["type"] == "value_error":  # a rule that joins several parameters
            return str(error["ctx"]["error"])
        name = str(error["loc"][0])
        if error["type"] == "extra_forbidden":
            return f"unknown parameter {name!r}; accepted: {', '.join(cls.model_fields)}"
        field = cls.model_fields[name]
        if error["type"] == "missing":
            return f"{name} is missing: expected {in_words(field.annotation)} ({field.description})"
        value = values[name]
        if error["type"] in (RANGE, "finite_number", "literal_error"):
            accepted = _accepted(error, field.annotation)
            return f"{name} = {value!r}: expected {accepted} ({field.description})"
        expected = in_words(field.annotation)
        return f"{name} = {value!r} ({type(value).__name__}): expected {expected}"


def _accepted(error: ErrorDetails, hint: Any) -> str:
    if error["type"] == "finite_number":
        return IN_WORDS[float]
    return in_words(hint) if error["type"] == "literal_error" else error["msg"]


def in_words(hint: Any) -> str:
    """A field's type as messages name it."""
    origin = get_origin(hint)
    if origin is Annotated:
        return in_words(get_args(hint)[0])
    if origin is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if origin in (Union, UnionType):
        return " or ".join(sorted(map(in_words, get_args(hint))))
    if origin is list:
        return f"a list of {in_words(get_args(hint)[0])}"
    return NUMBER if hint is float else IN_WORDS[hint]


def build(config: type[Checked], values: Mapping[str, Any], names: Mapping[str, str]) -> Any:
    """A configuration from parameters; what it refuses is said of the parameter, not of its field.

    values: by field; names: field -> parameter, where the two differ.
    """
    try:
        return config(**values)
    except ConfigError as error:
        field = str(error).partition(" = ")[0].partition(".")[2]
        if field not in values:
            raise
        accepted = str(error).rpartition("): expected ")[2]
        name = names.get(field, field)
        raise ConfigError(f"{name} = {values[field]!r}: expected {accepted}") from None


class Common(Params):
    """What every notebook has."""

    profile: str = Field(description="a file of notebooks/profiles, and the folder under data/")
    device: str = Field(description="cpu, cuda, or auto: a GPU where there is one")


class Recipe(Params):
    """How an SAE is trained, apart from architecture, site, λ and seed."""

    n_latents: AtLeastOne = Field(description="dictionary size")
    tokens: AtLeastOne = Field(description="training tokens of an SAE")
    batch_size: AtLeastOne = Field(description="tokens per step")
    lr: LearningRate = Field(description="Adam's peak learning rate")
    schedule: Schedule = Field(description="of the learning rate, after warm-up")
    lam_warmup: Share = Field(description="share of training over which λ rises from 0")
    warmup: Share = Field(description="share of training over which the learning rate rises from 0")
    grad_clip: GradClip = Field(description="bound on the gradient's norm; 0 is none")

    def spec_fields(self) -> dict[str, Any]:
        """These settings as `Workspace.spec` takes them."""
        return {name: getattr(self, name) for name in Recipe.model_fields}

    @model_validator(mode="after")
    def _trains(self) -> Recipe:
        train = {name: value for name, value in self.spec_fields().items() if name != "n_latents"}
        build(TrainConfig, train, {})
        return self


class Sweep(Params):
    """A range of λ at several depths, measured on test pages and compared at one L0."""

    sites: Sites = Field(description="depths of the residual stream, as in hidden_states")
    lambdas: Lambdas = Field(description="L1 coefficients, normalised units")
    seeds: Seeds = Field(description="initialisation and order of the rows; a verdict takes three")
    ce_tokens: LossTokens = Field(description="test tokens whose next-token loss is measured")
    l0_target: Positive = Field(description="active latents per token at which SAEs are compared")
