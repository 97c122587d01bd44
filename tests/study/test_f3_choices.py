"""Does one choice of the recipe close the gap?"""

from itertools import product

import pandas as pd
import pytest
from helpers.f2_cases import PowerLaws
from helpers.f3_cases import COMPARED, SCOPE, between, params
from helpers.f3_sweeps import Quick, line, pages

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


NAMES = {"as it is": 0.2, "twice the latents": 0.1}  # FVU at L0 32 of the nearer site


def curves(seeds=(0, 1)):
    """The deepest site has 1.5 times the FVU of the nearer as it is, else 1.2 times."""
    made = {}
    for (name, fvu), site, seed in product(NAMES.items(), COMPARED.pair, seeds):
        gap = {"as it is": 1.5, "twice the latents": 1.2}[name] if site == COMPARED.deep else 1.0
        at_l0 = fvu * gap * 4**seed
        rows = [line("plain", site, seed, 1.0, 64.0, at_l0 / 2)]
        rows += [line("plain", site, seed, 2.0, 16.0, at_l0 * 2)]
        made[name, site, seed] = Quick(pd.DataFrame(rows), pages)
    return made


def test_choices_are_compared_at_the_l0_over_seeds_in_logarithms():
    result = f3_choices.compare_fvu(params(l0_target=32.0), curves(), COMPARED)
    assert result.names == list(NAMES)
    table = result.table().set_index("group")
    assert table["value"].to_dict() == pytest.approx({"as it is": 1.5, "twice the latents": 1.2})
    # seeds of 1 and 4 times as much: their geometric mean is twice the first
    assert table["FVU at site 15"].tolist() == pytest.approx([0.4, 0.2])
    assert table["FVU at site 29"].tolist() == pytest.approx([0.6, 0.24])
    at_16 = f3_choices.compare_fvu(params(l0_target=16.0), curves((0,)), COMPARED).table()
    assert at_16["FVU at site 15"].tolist() == pytest.approx([0.4, 0.2])
    seeds = result.seed_table()
    assert seeds["value"].tolist() == pytest.approx([1.5, 1.5, 1.2, 1.2])


def test_the_text_table_says_which_site_misses_the_l0():
    made = curves((0,))
    key = ("twice the latents", COMPARED.deep, 0)
    made[key] = Quick(made[key].rows.assign(l0_val=[64.0, 40.0]), pages)
    result = f3_choices.compare_fvu(params(l0_target=32.0), made, COMPARED)
    texts = result.text_table()
    assert texts.index.name == "choice"
    assert texts.loc["as it is"].to_dict() == {
        "FVU ratio": "1.50 [1.43, 1.57]",  # wider by 1.5 · 0.2 · (ln 2)² / 2: curves may bend
        "FVU at site 15": "0.200",
        "FVU at site 29": "0.300",
    }
    assert texts.loc["twice the latents"].tolist() == [
        "L0 not reached",
        "0.100",
        "L0 not reached",
    ]


def test_the_figure_gives_the_span_of_the_ratios():
    result = f3_choices.compare_fvu(params(l0_target=32.0), curves(), COMPARED)
    figure = f3_choices.figure(result, params(l0_target=32.0), SCOPE)
    note = figure.get_supxlabel().replace("\n", " ")
    assert "Ratios from 1.20 to 1.50. Plain SAE, L0 = 32, 3 seeds, 16 latents" in note
    assert figure.axes[0].get_xlabel() == "FVU of site 29 over site 15's"
