"""F1's training curves: numbers of the cycle after a restart, and words that fit the picture."""

import numpy as np
import pandas as pd
import pytest

from saelib.sae.spec import make_spec
from saelib.study import f1_curves
from saelib.study import f1_schedules as f1
from saelib.study.finding_params import ScheduleParams

RATE = [0, 2, 1, 2, 1, 0.5]  # warm-up, a fall, one restart
WARM_TOKENS = 100
WINDOW = 200


def history(lr, fvu, label=f1.RESTARTS, seed=0, **columns):
    """A training curve with a point every 100 tokens."""
    table = pd.DataFrame({"tokens": np.arange(len(lr)) * 100, "lr": lr, "fvu": fvu, "l0": 32.0})
    table = table.assign(label=label, seed=seed, site=6, dead_window=WINDOW)
    return table.assign(**{"adam_m": 1.0, "dead_fraction": 0.0} | columns)


def jumps(*curves):
    return f1_curves.jumps(pd.concat(curves, ignore_index=True), WARM_TOKENS)


def note(jump, shown=f1_curves.ALL_SHOWN):
    return f1_curves.note(jump, shown, WINDOW)


def test_the_largest_fvu_of_the_cycle_is_compared_with_the_last_before_the_restart():
    jump = jumps(history(RATE, [1, 0.5, 0.4, 0.4, 0.6, 0.3]))  # the bump comes a point later
    assert jump.fvu.tolist() == pytest.approx([1.5])
    assert f1_curves.title(jump) == "After every restart the training FVU rises"
    assert "the largest FVU is 1.50 times the last before the restart" in note(jump)


def test_a_cycle_ends_at_the_next_restart():
    rate = [0, 2, 1, 2, 1, 2, 1]
    jump = jumps(history(rate, [1, 0.5, 0.4, 0.3, 0.2, 0.5, 0.3]))
    assert jump.fvu.tolist() == pytest.approx([0.75, 2.5])
    assert f1_curves.title(jump) == "After 1 of 2 restarts the training FVU rises"
    assert "the largest FVU is 1.62 times" in note(jump)


def test_a_restart_is_where_the_rate_jumps_after_the_warm_up():
    none = jumps(history([0, 2, 1, 0.5, 0.2, 0.1], [1, 0.5, 0.4, 0.3, 0.3, 0.3]))
    assert len(none.fvu) == 0
    assert f1_curves.title(none) == "No restart is seen in the training curves"
    assert "Between a restart" not in note(none)
    assert "nan" not in note(none)


def test_without_a_rise_the_title_says_so():
    jump = jumps(history(RATE, [1, 0.5, 0.4, 0.3, 0.3, 0.3]))
    assert f1_curves.title(jump) == "After no restart does the training FVU rise"


def test_the_arm_that_stops_in_mid_cycle_has_restarts_too_and_other_schedules_have_none():
    fvu = [1, 0.5, 0.4, 0.6, 0.3, 0.3]
    stopped = history(RATE, fvu, f1.STOPPED)
    assert len(jumps(history(RATE, fvu), stopped, history(RATE, fvu, "cosine")).fvu) == 2


def test_plain_cosine_is_read_over_the_same_tokens():
    falling = history([0, 2, 1.5, 1, 0.5, 0], [1, 0.9, 0.5, 0.4, 0.3, 0.2], "cosine")
    jump = jumps(history(RATE, [1, 0.5, 0.4, 0.6, 0.3, 0.3]), falling)
    assert jump.cosine.tolist() == pytest.approx([0.8])
    assert "(plain cosine, same tokens: 0.80)" in note(jump)
    alone = jumps(history(RATE, [1, 0.5, 0.4, 0.6, 0.3, 0.3]))
    assert "plain cosine" not in note(alone)


def test_seeds_are_averaged_before_restarts_are_counted():
    one = history(RATE, [1, 0.5, 0.4, 0.6, 0.3, 0.3])
    other = history(RATE, [1, 0.5, 0.4, 0.3, 0.3, 0.3], seed=1)
    assert jumps(one, other).fvu.tolist() == pytest.approx([1.125])


def test_adam_and_dead_latents_are_said_only_where_they_are_drawn():
    moments = [1, 1, 2, 1.5, 3, 3]
    dead = [np.nan, np.nan, 0.1, 0.1, 0.15, 0.12]
    jump = jumps(history(RATE, [1, 0.5, 0.4, 0.6, 0.3, 0.3], adam_m=moments, dead_fraction=dead))
    assert jump.adam_m.tolist() == pytest.approx([0.75])  # just after the restart
    assert jump.dead.tolist() == pytest.approx([0.05])  # the largest of the cycle
    full = note(jump)
    assert "Adam's m at the first point after a restart is 0.75 times" in full
    assert "the largest share of dead latents the last before it +5.0 points" in full
    assert "Dead: silent for the last 200 training tokens." in full
    short = note(jump, f1_curves.SHOWN)
    assert "Adam" not in short
    assert "ead" not in short.replace("read", "")


class Histories:
    """A workspace that knows one training curve."""

    def __init__(self, dead_fraction):
        self.dead_fraction = dead_fraction

    def history(self, spec):
        curve = history(RATE, [1, 0.5, 0.4, 0.6, 0.3, 0.3], dead_fraction=self.dead_fraction)
        return curve.drop(columns=["label", "seed", "dead_window"])


PARAMS = {"n_latents": 32, "tokens": 2000, "batch_size": 50, "lr": 8e-3, "schedule": "linear"}
PARAMS |= {"lam_warmup": 0.1, "warmup": 0.05, "grad_clip": 1.0, "sites": [6], "lambdas": [2.0]}
PARAMS |= {"seeds": [0], "ce_tokens": 512, "l0_target": 32.0, "schedule_seeds": [0]}
PARAMS |= {"schedule_lam": 2.0, "schedule_lrs": [8e-3], "n_cycles": 2, "stop_at": 0.8}
PARAMS |= {"schedule_sites": [6], "margin": 0.05}


@pytest.mark.parametrize("dead_fraction", [0.1, np.nan])
def test_a_share_of_dead_latents_begins_at_the_window_and_is_not_drawn_without_one(dead_fraction):
    p = ScheduleParams.read(PARAMS, "02_x")
    spec = make_spec("plain", 6, 16, dead_window=WINDOW)
    row = {"spec": spec, "schedule": f1.RESTARTS, "seed": 0, "site": 6}
    trained = f1.Trained(None, pd.DataFrame([row]), {})
    curves = f1_curves.histories(Histories(dead_fraction), trained)
    assert curves.loc[curves["tokens"] < WINDOW, "dead_fraction"].isna().all()
    fig = f1_curves.figure(curves, p)
    drawn = "dead latents (%)" in [ax.get_ylabel() for ax in fig.axes]
    assert drawn == np.isfinite(dead_fraction)
    assert ("Dead: silent" in fig.get_supxlabel()) == drawn
    assert "nan" not in fig.get_supxlabel()
    assert [ax.get_ylabel() for ax in f1_curves.figure(curves, p, 6).axes] == [
        "learning rate",
        "FVU",
        "L0",
    ]
