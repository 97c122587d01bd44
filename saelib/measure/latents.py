"""Numbers that a caller gives, of latents and others, checked in one place."""

from __future__ import annotations

import math
import operator
from typing import Any

from saelib.config import ConfigError


def whole_number(value: Any, name: str) -> int:
    """A number of Python or numpy, as an int.

    Raises:
        ConfigError: it is anything else.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ConfigError(f"{name} = {value!r}: expected a whole number")
    return operator.index(value)


def finite_number(value: Any, name: str) -> float:
    """A number of Python, numpy or torch, as a float.

    Raises:
        ConfigError: it is anything else, or is not finite.
    """
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):  # the last of a whole number beyond every float
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{name} = {value!r:.80}: expected a number")
    return number


def latent_number(latent: Any, n_latents: int) -> int:
    """The number of one of an SAE's latents, as an int.

    Raises:
        ConfigError: it is no whole number, or there is no such latent.
    """
    number = whole_number(latent, "latent")
    if not 0 <= number < n_latents:
        raise ConfigError(f"latent {number}: this SAE has the latents 0 to {n_latents - 1:,}")
    return number
