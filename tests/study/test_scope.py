"""The words for a run's size."""

import pytest

from saelib.study.scope import Scope, model_label, sites_label


@pytest.mark.parametrize(
    ("model", "label"),
    [
        ("embedded", "SmolLM2-135M-Instruct, dequantised from Q4_1"),
        ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf"),
        ("/models/of/mine/tiny", "tiny"),
    ],
)
def test_a_model_is_named_without_the_path_of_a_folder(model, label):
    assert model_label(model) == label


def test_one_seed_and_one_site_are_singular():
    scope = Scope("tiny", 1, 22)
    assert scope.note == "1 seed. tiny."
    assert scope.interval == "95 % bootstrap over 22 test pages"
    assert sites_label([15]) == "site 15"


def test_fewer_than_five_pages_have_no_interval_and_say_why():
    words = "no interval: 4 test pages, and 5 or more have one"
    assert Scope("tiny", 3, 4).interval == words
    assert Scope("tiny", 3, 5).interval == "95 % bootstrap over 5 test pages and seeds"


def test_several_seeds_widen_what_an_interval_is():
    scope = Scope("tiny", 3, 22)
    assert scope.trainings == "3 seeds"
    assert scope.interval == "95 % bootstrap over 22 test pages and seeds"
    assert sites_label([2, 15, 29]) == "sites 2, 15, 29"


def test_an_interval_at_matched_l0_says_that_it_holds_what_a_curve_may_bend():
    assert Scope("a", 3, 22).matched_interval == (
        "95 % bootstrap over 22 test pages and seeds, wider by what a curve may bend"
    )
    assert Scope("a", 1, 4).matched_interval.startswith("no interval: 4 test pages")
