"""Numbers of latents are checked in one place, with one message."""

import numpy as np
import pytest
import torch

from saelib.config import ConfigError
from saelib.measure.latents import finite_number, latent_number, whole_number


@pytest.mark.parametrize("value", ["3", 1.5, True, None])
def test_only_whole_numbers_are_numbers_of_latents(value):
    assert whole_number(np.int64(3), "latent") == 3
    with pytest.raises(ConfigError, match=f"latent = {value!r}: expected a whole number"):
        whole_number(value, "latent")


@pytest.mark.parametrize("value", ["3", None, [1], float("nan"), float("-inf"), 10**400])
def test_only_finite_numbers_are_strengths_and_factors(value):
    assert [finite_number(v, "l0") for v in (2, np.float32(0.5), torch.tensor(3))] == [2, 0.5, 3]
    with pytest.raises(ConfigError, match=r"l0 = .*: expected a number"):
        finite_number(value, "l0")


@pytest.mark.parametrize("latent", [-1, 2304, 99999])
def test_a_latent_that_is_not_there_is_refused_by_number(latent):
    assert latent_number(np.int64(2303), 2304) == 2303
    message = f"latent {latent}: this SAE has the latents 0 to 2,303"
    with pytest.raises(ConfigError, match=message):
        latent_number(latent, 2304)
