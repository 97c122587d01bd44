"""Numbers of latents are checked in one place, with one message."""

import numpy as np
import pytest

from saelib.config import ConfigError
from saelib.measure.latents import latent_number, whole_number


@pytest.mark.parametrize("value", ["3", 1.5, True, None])
def test_only_whole_numbers_are_numbers_of_latents(value):
    assert whole_number(np.int64(3), "latent") == 3
    with pytest.raises(ConfigError, match=f"latent = {value!r}: expected a whole number"):
        whole_number(value, "latent")


@pytest.mark.parametrize("latent", [-1, 2304, 99999])
def test_a_latent_that_is_not_there_is_refused_by_number(latent):
    assert latent_number(np.int64(2303), 2304) == 2303
    message = f"latent {latent}: this SAE has the latents 0 to 2,303"
    with pytest.raises(ConfigError, match=message):
        latent_number(latent, 2304)
