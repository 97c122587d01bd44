"""Made effects of missing parts, and a workspace that resamples, for the tests of F2 and F2e."""

import pandas as pd

from helpers.f2_cases import BETTER, EQUAL, WORSE, PowerLaws
from saelib.study import f2_resampling
from saelib.study.f2_resampling import DEFICIT, NO_AUXILIARY, NO_RESAMPLING

HARMFUL = WORSE  # the FVU without a part over the FVU with it
HARMLESS = BETTER


def ratios_of(deficit, auxiliary, resampling, full=EQUAL):
    """The same effects in both settings at one site."""
    effects = {
        DEFICIT: deficit,
        NO_AUXILIARY: auxiliary,
        NO_RESAMPLING["two_term"]: resampling,
        NO_RESAMPLING["full"]: full,
    }
    return {
        (setting, 15, name): ratio
        for setting in f2_resampling.SETTINGS
        for name, ratio in effects.items()
    }


class Resampled(PowerLaws):
    """Power laws with histories and events: dead latents grow with λ, resampling revives ten."""

    def history(self, spec):
        return pd.DataFrame({"tokens": [1000, 2000], "dead_fraction": [0.0, spec.train.lam / 10]})

    def events(self, spec):
        if not spec.train.resample_at:
            return []
        first = {"tokens": 500, "revived": [1, 2], "n_dead": 2, "n_gate_dead": 2, "alive_later": 1}
        return [first, first | {"tokens": 900, "revived": [2, 3], "alive_later": 2}]
