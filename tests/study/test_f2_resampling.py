"""F2 and F2f: what is trained, and the five effects."""

import numpy as np
import pandas as pd
import pytest
from helpers.f2_cases import MARGIN, UNREACHED, PowerLaws, estimate, params

from saelib.study import f2_resampling
from saelib.study.f2_resampling import DEFICIT, NO_AUXILIARY, NO_RESAMPLING


@pytest.fixture
def p():
    return params("04_resampling", seeds=[0, 1])


@pytest.fixture
def runs(p):
    return f2_resampling.train(PowerLaws(), p)


def test_every_combination_of_setting_arm_and_resampling_is_trained(p, runs):
    assert len(runs.combinations) == 2 * 3 * 2
    assert len(runs.curves) == 2 * 3 * 2 * 2
    assert runs.n_saes == sum(len(curve.rows) for curve in runs.curves.values())


def test_combinations_are_of_every_site_setting_by_setting():
    p = params("04_resampling", resample_sites=[2, -2])
    found = f2_resampling.combinations(PowerLaws(), p)
    assert found[:4] == [
        ("normal recipe", "plain", False, 2),
        ("normal recipe", "plain", False, 29),
        ("normal recipe", "plain", True, 2),
        ("normal recipe", "plain", True, 29),
    ]
    assert len(found) == len(set(found)) == 2 * 3 * 2 * 2


def test_the_fewest_test_pages_count(runs):
    first = next(iter(runs.curves.values()))
    first.rows["n_test_pages"] = [14, *[22] * (len(first.rows) - 1)]
    assert len(first.rows) > 1
    assert runs.n_pages == 14


def test_lambdas_of_an_arm_are_multiples_with_three_digits():
    p = params("04_resampling", normal_lambdas=[1.23456], lam_two_term=0.25, lam_full=1.6)
    starts = f2_resampling.arm_starts(p)
    assert starts["normal recipe", "plain"] == [1.23]
    assert starts["normal recipe", "two_term"] == [0.309]
    assert starts["normal recipe", "full"] == [1.98]


def test_large_steps_differ_from_the_recipe_only_where_they_say_so(p):
    assert f2_resampling.large_steps(p) == {"lr": 3e-2, "grad_clip": 0.0}
    run = ("large steps", "plain", True, 15, 0)
    spec = f2_resampling.resampling_spec(PowerLaws(), p, *run, 2.0)
    assert spec.train.lr == 3e-2
    assert list(spec.train.resample_at) == [0.25, 0.5]
    normal = f2_resampling.resampling_spec(
        PowerLaws(), p, "normal recipe", "plain", False, 15, 0, 2.0
    )
    assert normal.train.lr == p.lr
    assert list(normal.train.resample_at) == []


def test_the_run_nearest_to_the_l0_is_chosen_of_every_curve(p, runs):
    specs = f2_resampling.nearest_specs(PowerLaws(), p, runs)
    spec = specs["normal recipe", "plain", False, 15, 0]
    assert spec.train.lam == 2.0  # L0 40; the other has 20


def test_effects_are_ratios_of_the_six_combinations(p, runs):
    matched = f2_resampling.match(runs, 32.0)
    ratios = f2_resampling.effect_ratios(matched, runs)
    two_term = 0.4 * (8 / 32) ** 0.2
    full = 0.25 * (100 / 32) ** 0.2
    plain = 0.3 * (80 / 32) ** 0.2
    assert ratios["normal recipe", 15, DEFICIT].value == pytest.approx(two_term / plain)
    assert ratios["normal recipe", 15, NO_AUXILIARY].value == pytest.approx(two_term / full)
    assert ratios["normal recipe", 15, NO_RESAMPLING["full"]].value == pytest.approx(1.0)
    assert ratios["normal recipe", 15, "interaction"].value == pytest.approx(1.0)
    assert len(f2_resampling.seed_effects(matched, runs)) == 2 * 5 * 2


def test_tables_keep_the_columns_of_their_files(p, runs):
    matched = f2_resampling.match(runs, 32.0)
    table = f2_resampling.fvu_table(matched)
    columns = ["value", "lo", "hi", "setting", "arm", "resampling", "site", "shown"]
    assert list(table.columns) == columns
    ratios = f2_resampling.effect_ratios(matched, runs)
    effects = f2_resampling.effect_table(ratios, MARGIN)
    expected = ["panel", "hue", "group", "value", "lo", "hi", "found", "note"]
    assert list(effects.columns) == expected
    assert list(dict.fromkeys(effects["panel"])) == ["normal recipe", "large steps"]


def test_tables_for_reading_have_a_row_per_site_and_arm_and_a_row_per_effect(p, runs):
    matched = f2_resampling.match(runs, 32.0)
    shown = f2_resampling.shown_fvu(f2_resampling.fvu_table(matched), "large steps")
    assert list(shown.columns) == ["resampling off", "resampling on"]
    assert [arm for _, arm in shown.index] == ["plain", "two_term", "full"]
    ratios = f2_resampling.effect_ratios(matched, runs)
    effects = f2_resampling.shown_effects(ratios, MARGIN, "normal recipe")
    assert list(effects.index) == list(f2_resampling.EFFECTS)
    assert effects.loc["interaction", "site 15"] == "1.00 [1.00, 1.00] equal"
    unreached = f2_resampling.shown_effects(
        {("normal recipe", 15, DEFICIT): UNREACHED}, MARGIN, "normal recipe"
    )
    assert unreached.loc[DEFICIT, "site 15"] == "unreachable"


def test_a_plan_without_time_after_the_last_resampling_fails_its_check():
    late = params("04_resampling", resample_at=[0.25, 0.7])
    assert [holds for holds, _ in f2_resampling.schedule_checks(late)] == [False, True]


def test_runs_in_which_nothing_was_revived_must_be_the_same_run(p, runs):
    matched = f2_resampling.match(runs, 32.0)
    revived = {(s, a, 15): 0 for s in f2_resampling.SETTINGS for a in ("plain", "full")}
    reached, same = f2_resampling.match_checks(matched, runs, revived, 32.0)
    assert reached[0]
    assert same[0]
    assert "in the 4 of 4 pairs" in same[1]
    assert "at any λ" in same[1]
    everywhere = f2_resampling.match_checks(matched, runs, dict.fromkeys(revived, 1), 32.0)
    assert len(everywhere) == 1


def test_two_curves_that_miss_the_l0_are_not_called_the_same(p, runs):
    matched = f2_resampling.match(runs, 1e4)
    revived = {("normal recipe", arm, 15): 0 for arm in ("plain", "full")}
    _, same = f2_resampling.match_checks(matched, runs, revived, 1e4)
    assert same[0] == "L0 not reached in 2 of 2 pairs"


def test_the_lambdas_at_which_curves_begin_are_a_table_by_setting_and_arm(p):
    table = f2_resampling.starts_table(p)
    assert list(table.index) == ["normal recipe", "large steps"]
    assert table.loc["normal recipe", "two_term"] == "0.5, 1"


def test_typical_effects_are_geometric_means_over_sites():
    ratios = {
        ("normal recipe", 2, DEFICIT): estimate(2.0, 2, 2),
        ("normal recipe", 15, DEFICIT): estimate(8.0, 8, 8),
    }
    assert f2_resampling.typical(ratios)["normal recipe", DEFICIT] == pytest.approx(4.0)
    ratios["normal recipe", 29, DEFICIT] = UNREACHED
    assert np.isnan(f2_resampling.typical(ratios)["normal recipe", DEFICIT])


def test_the_description_says_in_what_large_steps_differ():
    recipe = {"lr": 1e-3, "grad_clip": 1.0, "lam_warmup": 0.1, "n_latents": 768}
    p = params("04_resampling", seeds=[0, 1], resample_sites=[-2, 2], **recipe)
    words = f2_resampling.describe(PowerLaws(), p).split("\n")
    assert words[0] == "tiny-llama: sites 29, 2; 2 seeds"
    assert words[1].startswith("recipe: n_latents 768, tokens 40960, ")
    assert "lr 0.001, " in words[1]
    assert words[2:] == ["large steps: lr 0.03, grad_clip 0"]
    same = {"dying_lr": 1e-3, "dying_clip": 1.0, "dying_lam_warmup": 0.1}
    p = params("04_resampling", **recipe, **same)
    assert f2_resampling.describe(PowerLaws(), p).endswith("\nlarge steps: as the recipe")


@pytest.mark.parametrize(
    ("fvu", "shuffled", "holds"),
    [
        ([0.8, 0.84], [1.1, 1.1], [True, True]),
        ([0.8, 0.85], [1.1, 1.1], [False, True]),  # from there on
        ([0.3, 0.3], [1.5, 1.0], [True, False]),  # as bad as the mean is no worse
        ([0.3, 0.3], [1.5, 1.01], [True, True]),
        ([0.9, 0.3], [1.07, 1.5], [False, False]),  # 1.2 · 0.9 = 1.08
        ([0.9, 0.3], [1.09, 1.5], [False, True]),
    ],
)
def test_controls_fail_from_their_bounds_on(fvu, shuffled, holds):
    controls = pd.DataFrame({"fvu": fvu, "shuffled": shuffled})
    outcomes = f2_resampling.control_checks(controls)
    assert [outcome for outcome, _ in outcomes] == holds


def test_controls_are_of_the_saes_nearest_to_the_l0_in_order(p, runs, monkeypatch):
    asked = []

    def shuffled(ws, specs):
        asked.extend(specs)
        return pd.DataFrame({"fvu": [0.5], "shuffled": [2.0]})

    monkeypatch.setattr(f2_resampling, "shuffled_decoders", shuffled)
    nearest = f2_resampling.nearest_specs(PowerLaws(), p, runs)
    controls = f2_resampling.nearest_controls(PowerLaws(), nearest)
    assert asked == list(nearest.values())
    assert controls.to_dict("list") == {"fvu": [0.5], "shuffled": [2.0]}
