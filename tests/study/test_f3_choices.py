"""Does one choice of the recipe close the gap?"""

from itertools import product

import pytest
from helpers.f2_cases import PowerLaws
from helpers.f3_cases import COMPARED, SCOPE, between, params

from saelib.study import f3_choices
from saelib.study.estimate import constant, undefined
from saelib.study.f3_choices import Choices


def choices(**gaps):
    """log FVU of 0 at the nearer site and the gap at the deepest, one seed."""
    log_fvu = {}
    for name, gap in gaps.items():
        log_fvu[name, COMPARED.near, 0] = constant(0.0)
        log_fvu[name, COMPARED.deep, 0] = gap
    return Choices(log_fvu, COMPARED)


@pytest.mark.parametrize(
    ("gaps", "words"),
    [
        ({"as it is": between(0.2, 0.3), "longer": between(0.1, 0.3)}, "No single choice closes"),
        (
            {"as it is": between(0.2, 0.3), "longer": between(-0.1, 0.3)},
            "1 of 2 choices leave no clear gap",
        ),
        ({"as it is": between(-0.2, 0.3), "longer": between(0.1, 0.3)}, "There is no clear gap"),
        ({"as it is": undefined(), "longer": undefined()}, "No choice reaches"),
        ({"as it is": between(0.2, 0.3), "longer": undefined()}, "No single choice closes"),
    ],
)
def test_the_title_says_whether_a_choice_closes_the_gap(gaps, words):
    title = f3_choices.title(choices(**gaps))
    assert words in title
    assert len(title.split()) <= 12


def test_the_table_has_ratios_beside_both_sites():
    table = choices(**{"as it is": constant(0.0)}).table()
    assert list(table) == ["group", "hue", "value", "lo", "hi", "FVU at site 15", "FVU at site 29"]
    assert table["value"].iloc[0] == 1.0


def test_the_figure_stands_where_nothing_is_reached():
    figure = f3_choices.figure(choices(**{"as it is": undefined()}), params(), SCOPE)
    assert "No choice reaches" in figure.get_suptitle()


def test_each_choice_changes_one_setting():
    changed = f3_choices.choices(params())
    assert changed["as it is"] == {}
    assert all(len(fields) == 1 for name, fields in changed.items() if name != "as it is")


def test_each_choice_is_trained_along_lambda_at_the_two_deepest_sites():
    ws = PowerLaws()
    p = params(cause_lambdas=[2.0, 6.0], cause_seeds=[0, 1])
    curves = f3_choices.train(ws, p, COMPARED)
    assert set(curves) == set(product(f3_choices.choices(p), COMPARED.pair, (0, 1)))
    changed = {
        "as it is": (16, 320, 1e-3),
        "twice the latents": (32, 320, 1e-3),
        "twice the tokens": (16, 640, 1e-3),
        "b_dec from the mean": (16, 320, 1e-3),
        "half the learning rate": (16, 320, 5e-4),
        "twice the learning rate": (16, 320, 2e-3),
    }
    for (name, site, seed), curve in curves.items():
        assert {2.0, 6.0} <= set(curve.rows["lambda"])
        assert set(curve.rows["site"]) == {site}
        specs = [ws.trained[run] for run in curve.rows["run_id"]]
        found = {(spec.sae.n_latents, spec.train.tokens, spec.train.lr) for spec in specs}
        assert found == {changed[name]}
        assert {spec.train.seed for spec in specs} == {seed}
        assert {spec.train.b_dec_init == "mean" for spec in specs} == {name.startswith("b_dec")}
