"""Shares of causes that act together."""

import itertools

import numpy as np
import pytest

from saelib.study.shapley import TOGGLES, coalitions, recipe_of, shapley


def test_shapley_by_hand():
    value = {frozenset(): 0.0, frozenset("a"): 3.0, frozenset("b"): 1.0, frozenset("ab"): 10.0}
    assert shapley(value) == {"a": 6.0, "b": 4.0}  # a: (3 - 0 + 10 - 1) / 2


def test_shapley_is_the_mean_over_orders_and_adds_up():
    rng = np.random.default_rng(0)
    value = {s: rng.normal(size=5) for s in coalitions()}
    found = shapley(value)
    for player in TOGGLES:
        gains = []
        for order in itertools.permutations(TOGGLES):
            before = frozenset(order[: order.index(player)])
            gains.append(value[before | {player}] - value[before])
        np.testing.assert_allclose(found[player], np.mean(gains, axis=0))
    np.testing.assert_allclose(sum(found.values()), value[frozenset(TOGGLES)] - value[frozenset()])


def test_shapley_names_the_coalition_that_lacks_a_value():
    value = {s: 0.0 for s in coalitions(("a", "b")) if s != {"b"}}
    with pytest.raises(ValueError, match=r"no value of \['b'\]: expected all 4 subsets"):
        shapley(value)


def test_coalitions_are_all_subsets_and_name_their_recipe():
    every = coalitions()
    assert len(every) == len(set(every)) == 16
    assert every[0] == frozenset()
    assert recipe_of(()) == {"normalize": "none", "tokens_mask": "all"}
    assert recipe_of(("scale", "match")) == {"normalize": "scale", "tokens_mask": "all"}
    assert recipe_of(("mask", "center", "scale")) == {
        "normalize": "center_scale",
        "tokens_mask": "ordinary",
    }
    with pytest.raises(ValueError, match=r"'depth'.*mask, center, scale, match"):
        recipe_of(("depth",))
