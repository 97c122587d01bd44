"""The rules of F3d and F3e on hand-made estimates, and what is said of codes and dictionaries."""

import pandas as pd
import pytest
from helpers.f2_cases import PowerLaws
from helpers.f3_cases import COMPARED, SCOPE, between, params
from helpers.f3_results import LESS, errors

from saelib.study import f3_dictionary
from saelib.study.curve import Curve
from saelib.study.estimate import constant, undefined
from saelib.study.f3_dictionary import Errors, decide_dictionary, decide_encoder

MARGIN = 0.03


@pytest.mark.parametrize(
    ("over_pca", "verdict"),
    [
        ([between(1.1, 1.2), between(1.3, 1.4)], "supported"),
        ([between(1.1, 1.2), between(0.4, 0.5)], "contradicted"),
        ([between(1.1, 1.2), between(0.9, 1.1)], "undecided"),
        ([between(1.0, 1.2)], "undecided"),  # touches 1
        ([between(1.1, 1.2), undefined()], "undecided"),
        ([], "undecided"),
    ],
)
def test_one_dictionary_that_beats_pca_contradicts_that_there_is_none(over_pca, verdict):
    assert decide_dictionary(over_pca, n_seeds=3, n_pages=15) == verdict


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([between(0.1, 0.2), between(0.05, 0.1)], "supported"),
        ([between(0.1, 0.2), between(-0.2, -0.1)], "contradicted"),
        ([between(0.1, 0.2), between(0.0, 0.1)], "undecided"),
        ([between(0.03, 0.1)], "undecided"),  # touches the margin
        ([between(-0.1, 0.03)], "undecided"),
        ([undefined()], "undecided"),
        ([], "undecided"),
    ],
)
def test_the_encoder_is_judged_by_what_better_codes_remove(differences, verdict):
    assert decide_encoder(differences, MARGIN, n_seeds=3, n_pages=15) == verdict


@pytest.mark.parametrize(("n_seeds", "n_pages"), [(2, 20), (3, 14)])
def test_few_seeds_or_pages_decide_nothing(n_seeds, n_pages):
    assert decide_dictionary([between(0.4, 0.5)], n_seeds, n_pages) == "undecided"
    assert decide_encoder([between(-0.2, -0.1)], MARGIN, n_seeds, n_pages) == "undecided"


def test_larger_share_at_the_deepest_site_is_read_from_paired_differences():
    differences = f3_dictionary.removed_differences(errors(LESS))
    assert [d.compare(MARGIN) for d in differences] == ["lower", "lower"]
    ratios = f3_dictionary.over_pca(errors(LESS), params())
    assert {ratio.compare(1) for ratio in ratios} == {"lower"}


def test_each_dictionary_tried_is_measured_against_pca():
    tried = {"pursuit": 0.25, "learned items": 0.1, "trained 2 × longer": 0.4}
    tried |= {"2 × as many items": 0.6, f3_dictionary.PCA: 0.5, "encoder": 0.8}
    by_seed = {(29, name): [constant(fvu)] for name, fvu in tried.items()}
    ratios = f3_dictionary.over_pca(Errors(by_seed, COMPARED, {}), params())
    assert [ratio.value for ratio in ratios] == pytest.approx([0.5, 0.2, 0.8, 1.2])


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        (LESS, "less of the error at site 29"),
        (LESS[::-1][:1] + LESS[:1] + (between(0.6, 0.7),), "more of the error at site 29"),
        ((constant(0.3), constant(0.5), constant(0.4)), "does not follow depth"),
    ],
)
def test_the_title_says_where_better_codes_help(shares, words):
    title = f3_dictionary.title(errors(shares))
    assert words in title
    assert len(title.split()) <= 12


def test_a_site_that_reaches_no_l0_leaves_table_and_figure_standing():
    partial = errors(LESS[:1], sites=(2,))
    assert f3_dictionary.over_pca(partial, params()) == []
    assert f3_dictionary.removed_differences(partial) == []
    assert "L0 not reached" in f3_dictionary.factor_words(partial)
    assert partial.text_table().loc["pursuit", 2].startswith("0.2")
    figure = f3_dictionary.figure(partial, params(), SCOPE, 30)
    assert "L0 is not reached" in figure.get_suptitle()


def test_the_caption_explains_only_rows_that_are_drawn():
    whole = errors(LESS)
    bare = Errors(
        {key: value for key, value in whole.by_seed.items() if key[1] != "learned items"},
        COMPARED,
        {2: None, 15: None, 29: None},
    )
    captions = [
        f3_dictionary.figure(one, params(), SCOPE, 30).get_supxlabel().replace("\n", " ")
        for one in (whole, bare)
    ]
    for words in ("One dictionary is learned by pursuit", "The last row is one seed"):
        assert words in captions[0]
        assert words not in captions[1]


def test_no_site_that_reaches_the_l0_is_said_in_words():
    nothing = Errors({}, COMPARED, {2: None, 15: None, 29: None})
    assert "L0 is reached at no site" in f3_dictionary.sentence_encoder(nothing, params(), SCOPE)
    assert "L0 not reached" in f3_dictionary.sentence_dictionary(nothing, params(), SCOPE)
    assert f3_dictionary.checks(nothing)[0].endswith("at 0 of 0 sites")
    assert f3_dictionary.figure(nothing, params(), SCOPE, 30)


def test_the_two_factors_multiply_to_the_ratio_of_two_sites():
    factors = errors(LESS).factors()
    product = factors["dictionary"] * factors["encoder"]
    assert product.value == pytest.approx(factors["FVU"].value)


def test_checks_count_sites():
    lines = f3_dictionary.checks(errors(LESS))
    assert lines[0].endswith("at 3 of 3 sites")
    assert lines[1].endswith("at 3 of 3")
    assert lines[3].endswith("2 of 2")  # one site's shuffled curve does not reach the L0


def test_a_bound_of_a_check_is_not_passed_by_reaching_it():
    per_codes = {"encoder": 1.0, "pursuit": 0.95, "random items": 1.0, "refitted": 1.0}
    by_seed = {(2, name): [constant(fvu)] for name, fvu in per_codes.items()}
    lines = f3_dictionary.checks(Errors(by_seed, COMPARED, {2: None}))
    assert all("0 of 1" in line for line in lines[:3])
    by_seed[2, "pursuit"] = [constant(0.949)]
    assert f3_dictionary.checks(Errors(by_seed, COMPARED, {2: None}))[0].endswith("1 of 1 sites")


def curve(*points):
    rows = pd.DataFrame(points, columns=["lambda", "l0_val"]).assign(l0=1.0)
    return Curve(rows, pages=lambda run: None)


def test_lambda_is_read_where_each_seed_reaches_the_l0():
    plain = {
        (2, 0): curve((1.0, 64.0), (4.0, 16.0)),
        (2, 1): curve((1.0, 64.0), (4.0, 16.0)),
        (29, 0): curve((1.0, 64.0), (4.0, 16.0)),
        (29, 1): curve((1.0, 64.0), (4.0, 40.0)),
    }
    assert f3_dictionary.lambdas_at_l0(params(), plain) == {2: 2.0}


def test_longer_and_wider_saes_are_trained_at_the_lambda_of_the_l0():
    ws = PowerLaws()
    p = params(split_seeds=[0, 1], longer=2.5, wider=3.0)
    plain = {
        (2, 0): curve((2.0, 40.0), (4.0, 20.0)),
        (2, 1): curve((2.0, 40.0), (4.0, 20.0)),
        (29, 0): curve((2.0, 20.0), (4.0, 10.0)),  # does not reach the L0
    }
    trained = f3_dictionary.train(ws, p, plain)
    lam = f3_dictionary.lambdas_at_l0(p, plain)[2]
    assert 2.0 < lam < 4.0
    assert list(trained.split) == [2]
    assert set(trained.larger) == {(2, "trained 2.5 × longer"), (2, "3 × as many items")}
    sizes = {
        name: [(s.train.lam, s.train.seed, s.train.tokens, s.sae.n_latents) for s in specs]
        for name, specs in {"itself": trained.split[2], **trained.larger}.items()
    }
    assert sizes == {
        "itself": [(lam, 0, 640, 16), (lam, 1, 640, 16)],
        (2, "trained 2.5 × longer"): [(lam, 0, 1600, 16), (lam, 1, 1600, 16)],
        (2, "3 × as many items"): [(lam, 0, 640, 48), (lam, 1, 640, 48)],
    }
    assert len(trained.rows) == 2
    assert len(ws.trained) == 6
