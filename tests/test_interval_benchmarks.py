"""The scripts that measure intervals: what they simulate and read is what they say."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from saelib.measure.bootstrap import page_draws

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def script(name):
    """A benchmark as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a NamedTuple looks there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def coverage():
    return script("interval_coverage")


@pytest.fixture(scope="module")
def bend():
    return script("bend")


@pytest.mark.parametrize("statistic", ["ratio", "paired"])
def test_intervals_of_22_uneven_pages_hold_the_truth_where_percentiles_do_not(coverage, statistic):
    row = coverage.coverage(statistic, coverage.Population("uneven", "light"), 22, 400)
    assert 0.93 <= row["coverage"] <= 0.975
    assert row["percentile"] < 0.92
    assert row["coverage"] + row["below"] + row["above"] == pytest.approx(1)


def test_the_truth_of_each_statistic_is_that_of_many_pages(coverage):
    rng = np.random.default_rng(0)
    for name, made in coverage.STATISTICS.items():
        many = made(rng, coverage.Population("uneven", "light"), 40_000)
        assert many.estimate.value == pytest.approx(many.truth, rel=0.03), name


def test_the_bootstrap_t_interval_equals_a_plain_loop(coverage):
    num, den = np.array([1.0, 2, 4, 3, 2]), np.array([2.0, 3, 9, 4, 6])

    def value_and_error(chosen):
        a, b = num[chosen], den[chosen]
        terms = a / a.sum() - b / b.sum()
        return math.log(a.sum() / b.sum()), math.sqrt((terms**2).sum())

    value, error = value_and_error(np.arange(5))
    t = []
    for times in page_draws(5):
        drawn, of_drawn = value_and_error(np.repeat(np.arange(5), times))
        if times.max() < 5:  # one page alone has no spread
            t.append((drawn - value) / of_drawn)
    low, high = np.quantile(t, [0.025, 0.975])
    expected = math.exp(value - high * error), math.exp(value - low * error)
    assert coverage.studentised(num, den) == pytest.approx(expected)


def test_the_recorded_coverage_is_near_95_percent_from_12_pages_on():
    rows = json.loads((BENCHMARKS / "results" / "interval_coverage.json").read_text())
    light = [row for row in rows if row["tail"] == "light" and row["pages"] >= 12]
    of_pages = [row for row in light if row["name"] != "paired, 3 seeds"]
    assert len(light) == 4 * 2 * 4
    assert all(row["sets"] == 2000 for row in rows)
    assert all(0.92 <= row["coverage"] <= 0.97 for row in of_pages)
    assert all(row["coverage"] >= 0.93 for row in light)


def results(bend, bends, column="fvu"):
    """Curves of five points on parabolas of these second derivatives over log L0."""
    rows = []
    for site, second in enumerate(bends):
        for l0 in (8.0, 16.0, 32.0, 64.0, 128.0):
            x = math.log(l0)
            row = dict.fromkeys(bend.RECIPE, 0.0) | {"site": site, "l0_val": l0, "lambda": 1 / l0}
            rows.append(row | {"fvu": math.exp(-0.3 * x - second * x**2 / 2)})
    return pd.DataFrame(rows)


def test_a_parabola_s_bend_is_found_and_held_or_not(bend):
    by_recipe = bend.curves(results(bend, [0.1, 0.3]), "fvu")
    gentle, sharp = by_recipe.values()
    rows = [
        bend.row("x", "fvu", pd.DataFrame(bend.left_out(curve, "fvu"))) for curve in (gentle, sharp)
    ]
    assert rows[0]["bent_50"] == pytest.approx(0.1)
    assert (rows[0]["holds"], rows[1]["holds"]) == (1, 0)
    errors = pd.DataFrame(bend.left_out(sharp, "fvu"))
    assert errors["parabola"].to_numpy() == pytest.approx(errors["error"].to_numpy())
    whole = bend.Points(sharp.x[:3], sharp.y[:3])  # no point lies outside of the outer two
    assert pd.DataFrame(bend.left_out(whole, "fvu"))["parabola"].isna().all()


def test_of_pairs_the_difference_of_bends_counts_and_other_recipes_are_no_pair(bend):
    table = results(bend, [0.1, 0.25])
    by_recipe = bend.curves(table, "fvu")
    errors = pd.DataFrame(bend.compared(by_recipe, ("site",), "fvu"))
    assert len(errors)
    same = errors[errors["error"] < 0]  # the less bent site first
    assert len(same)
    assert bend.row("x", "fvu", errors)["holds"] > 0.5
    assert not list(bend.compared(by_recipe, ("arch", "loss"), "fvu"))


def test_only_far_points_are_left_out_and_unmeasured_ones_are_no_points(bend):
    table = results(bend, [0.1])
    curve = next(iter(bend.curves(table, "fvu").values()))
    # outer points a factor 4 or 8 apart, of 8 … 128
    assert len(list(bend.left_out(curve, "fvu"))) == 3 + 2 * 2
    table.loc[table["l0_val"] > 16, "fvu"] = np.nan
    assert not bend.curves(table, "fvu")
