"""Parameters of notebooks: an unknown name, a wrong type or a value out of range is refused.

papermill alone takes an unknown name or a string for a number without a word. So all of it is
checked here, for every notebook before any runs: names and types by the defaults in the parameters
cell, ranges by the notebook's model in `study.notebooks`. A notebook without a model, one of a
user's own, is checked by the types of its defaults alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from saelib.config import IN_WORDS, LARGEST, NAME_CHARS, ConfigError, shown
from saelib.run.source_notebooks import parameters

SITES = "sites"  # parameters whose name ends so hold numbers or names, whatever the default has


def nearest(name: str, accepted: Collection[str]) -> str:
    """The end of a refusal: "; did you mean 'lr'?", or where to look when nothing is near."""
    near = difflib.get_close_matches(name, accepted, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return "; a notebook's parameters stand in its first code cell"


def fitted(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` in the types of the notebook's defaults: an int becomes a float where needed.

    Raises ConfigError for an unknown name, naming the nearest, and for a wrong type.
    """
    defaults = parameters(path)
    return {name: _fitted_value(path, name, value, defaults) for name, value in values.items()}


def _fitted_value(path: Path, name: str, value: Any, defaults: Mapping[str, Any]) -> Any:
    if name not in defaults:
        raise ConfigError(f"{path.stem}: unknown parameter {shown(name)}{nearest(name, defaults)}")
    default = [0, "middle"] if name.endswith(SITES) else defaults[name]
    if _longest(value) > NAME_CHARS:
        raise ConfigError(
            f"{path.stem}: {name} = {shown(value)}: expected at most {NAME_CHARS:,} characters"
        )
    if _largest(value) > LARGEST:
        raise ConfigError(
            f"{path.stem}: {name} = {shown(value)}: expected no whole number of more than 64 bits"
        )
    try:
        return _fit(value, default)
    except TypeError:
        raise ConfigError(
            f"{path.stem}: {name} = {shown(value)} ({type(value).__name__}): "
            f"expected {expected(default)}"
        ) from None


def _longest(value: Any) -> int:
    """Characters of a text, or of the longest in a list."""
    if isinstance(value, (list, tuple)):
        return max(map(_longest, value), default=0)
    return len(value) if isinstance(value, str) else 0


def _largest(value: Any) -> int:
    """The size of a whole number, or of the largest in a list."""
    if isinstance(value, (list, tuple)):
        return max(map(_largest, value), default=0)
    return abs(value) if isinstance(value, int) else 0


def _fit(value: Any, default: Any) -> Any:
    """`value` in the type of `default`; TypeError where it is of another."""
    if type(default) is float and type(value) is int:
        return float(value)
    if isinstance(default, (list, tuple)) and isinstance(value, (list, tuple)):
        return [_fit_element(element, default) for element in value]
    if type(value) is not type(default):
        raise TypeError
    return value


def _fit_element(value: Any, examples: Sequence[Any]) -> Any:
    """An element of a list in the type of one of the default's elements, its own type first."""
    for example in sorted(examples, key=lambda e: type(e) is not type(value)):
        try:
            return _fit(value, example)
        except TypeError:
            continue
    if examples:
        raise TypeError
    return value


def expected(default: Any) -> str:
    """The type of a default in words, for messages."""
    words = {**IN_WORDS, float: "a number (in YAML 3.0e-4, not 3e-4)"}
    if isinstance(default, (list, tuple)):
        return "a list of " + (" or ".join(sorted({expected(v) for v in default})) or "values")
    return words.get(type(default), type(default).__name__)


def filled(config: type, values: Mapping[str, Any], **named: Any) -> Any:
    """A configuration from parameters of the same names, and from those given by their own."""
    own = {field.name: values[field.name] for field in fields(config) if field.name in values}
    return config(**own | named)


def check_ranges(path: Path, values: Mapping[str, Any]) -> None:
    """ConfigError for a value of the right type that the notebook's model does not accept.

    `values` are given for some parameters; the notebook's defaults hold for the others, since a
    rule may join several.
    """
    from saelib.study.notebooks import PARAMETERS  # takes pydantic: names and types come first

    model = PARAMETERS.get(path.stem)
    if model is None:
        return
    complete = {**parameters(path), **values}
    own = {name: complete[name] for name in model.model_fields if name in complete}
    model.read(own, path.stem)
