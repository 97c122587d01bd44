"""Profiles, settings and grids: the parameters of every notebook, checked before any runs.

A profile is `notebooks/profiles/NAME.yaml`: a mapping `common` and a mapping `notebooks` (name ->
mapping). `common` reaches every notebook that has the name, `notebooks` one of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from saelib.config import ConfigError, refuse_unknown, shown
from saelib.run.parameters import fitted, nearest
from saelib.run.source_notebooks import notebooks_dir, parameters, sources

RESERVED = "profile"  # set by the profile's file name, in every notebook that has it
# Folders of data/ that belong to no profile; `make clean-data` keeps them too.
KEPT = ("recorded", "assets")

LARGEST = 200_000  # bytes of a profile or grid
MOST_POINTS = 10_000  # of a grid

Values = dict[str, Any]


class _PlainLoader(yaml.SafeLoader):
    """Reads plain values, each key once.

    A few lines of aliases of aliases stand for more than any memory has; of two values of one key
    the first would be gone without a word.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()
            raise yaml.YAMLError(f"an alias, *{alias.anchor}; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                both = f"in line {lines[name]} and in line {line}"
                raise yaml.YAMLError(f"the key {shown(name)} stands there twice, {both}")
            lines[name] = line
        return super().construct_mapping(node, deep)


def _mapping(value: Any, what: str) -> Values:
    value = {} if value is None else value
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{what}: expected a mapping of names, found {shown(value)}")
    return value


def _load_yaml(path: Path) -> Values:
    if path.stat().st_size > LARGEST:
        raise ConfigError(f"{path}: larger than {LARGEST:,} bytes, the most of such a file")
    try:
        return _mapping(parsed_yaml(path.read_text(encoding="utf-8")), str(path))
    except UnicodeDecodeError as error:
        line = 1 + error.object.count(b"\n", 0, error.start)
        byte = f"byte 0x{error.object[error.start]:02x} in line {line}"
        raise ConfigError(f"{path}: not UTF-8 ({error.reason}, {byte})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def parsed_yaml(text: str) -> Any:
    """What YAML text says, in plain values.

    Raises:
        yaml.YAMLError: it is none, has an alias or a key twice, is nested too deeply to be read, or
            has a value that is not of the type whose form it has.
    """
    try:
        return yaml.load(text, _PlainLoader)
    except RecursionError as error:
        raise yaml.YAMLError("brackets nested too deeply") from error
    except (ValueError, LookupError, AttributeError, TypeError) as error:  # "2001-99-99", "!!int x"
        raise yaml.YAMLError(f"a value that cannot be read ({error})") from error


def profile_names() -> list[str]:
    """The profiles there are; a name that would be a folder of something else is none."""
    stems = [path.stem for path in (notebooks_dir() / "profiles").glob("*.yaml")]
    return sorted(stem for stem in stems if "." not in stem and stem not in KEPT)


def load_profile(name: str) -> tuple[Values, dict[str, Values]]:
    """`common` and `notebooks` of a profile; ConfigError for an unknown name or section."""
    names = profile_names()
    if name not in names:
        raise ConfigError(
            f"profile {shown(name)}: accepted: {', '.join(names)} "
            f"(a name has no '/' or '.' and is not {', '.join(KEPT)})"
        )
    path = notebooks_dir() / "profiles" / f"{name}.yaml"
    content = _load_yaml(path)
    refuse_unknown(content, ("common", "notebooks"), f"{path}: unknown section")
    common = _mapping(content.get("common"), f"{path}: common")
    notebooks = _mapping(content.get("notebooks"), f"{path}: notebooks")
    return common, {
        notebook: _mapping(values, f"{path}: notebooks.{notebook}")
        for notebook, values in notebooks.items()
    }


def spread(values: Mapping[str, Any], paths: Sequence[Path], what: str) -> dict[Path, Values]:
    """Give every notebook those of `values` that it has a parameter for.

    Raises ConfigError naming the nearest parameter where no notebook has one of this name.
    """
    names = {path: parameters(path) for path in paths}
    accepted = sorted(set().union(*names.values()))
    for name in values:
        if name not in accepted:
            raise ConfigError(
                f"{what}: no notebook has the parameter {shown(name)}{nearest(name, accepted)}"
            )
    return {
        path: {name: value for name, value in values.items() if name in own}
        for path, own in names.items()
    }


def resolve_profile(profile: str) -> dict[Path, Values]:
    """Parameters of every notebook under a profile, names and types checked."""
    paths = sources()
    common, each = load_profile(profile)
    refuse_unknown(each, [path.stem for path in paths], f"profile {profile!r}: unknown notebook")
    if any(RESERVED in values for values in (common, *each.values())):
        raise ConfigError(
            f"profile {profile!r}: {RESERVED!r} is the name of the file and cannot be set in it"
        )
    shared = spread(common, paths, f"profile {profile!r}, common")
    resolved = {}
    for path in paths:
        values = {**shared[path], **each.get(path.stem, {})}
        if RESERVED in parameters(path):
            values[RESERVED] = profile
        resolved[path] = fitted(path, values)
    return resolved


def grid_points(path: Path) -> list[Values]:
    """The product of a grid file's lists, in the file's order, the last name running fastest."""
    if not path.is_file():
        raise ConfigError(f"grid {str(path)!r}: no such file")
    axes = _load_yaml(path)
    for key, values in axes.items():
        if not isinstance(values, list) or not values or key == RESERVED:
            raise ConfigError(
                f"{path}: {shown(key)} = {shown(values)}: expected a list of values for a "
                f"parameter but {RESERVED!r}"
            )
    n_points = math.prod(map(len, axes.values()))
    if n_points > MOST_POINTS:
        raise ConfigError(f"{path}: {n_points:,} points; expected at most {MOST_POINTS:,}")
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
