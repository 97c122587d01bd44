"""One gap by six yardsticks."""

from typing import get_args

import numpy as np
import pandas as pd
import pytest
from helpers.f3_cases import COMPARED, SCOPE, between, params
from helpers.f3_results import step
from helpers.f3_sweeps import sweep_of

from saelib.sae.spec import make_spec
from saelib.study import f3_ladder
from saelib.study.estimate import Comparison, constant, undefined
from saelib.study.f3_ladder import ORIGINAL_ALL, Ladder, Yardstick
from saelib.study.f3_layers import Matched
from saelib.study.scope import Scope


def ladder(*values):
    """Yardsticks whose readings at the deepest site are `values`; the last is PCA."""
    steps = [step(f"original: {i}", value) for i, value in enumerate(values)]
    steps = [Yardstick(ORIGINAL_ALL, steps[0].by_seed), *steps[1:], step("PCA", constant(1.2))]
    return Ladder({s.name: s for s in steps}, COMPARED)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((between(2, 3), between(1.5, 2)), "worse than site 15"),
        ((between(0.2, 0.3), between(0.5, 0.6)), "better than site 15"),
        ((between(0.2, 0.3), between(1.5, 1.6)), "depends on the yardstick"),
        ((between(2, 3), undefined()), "worse than site 15"),
    ],
)
def test_the_title_says_whether_the_yardsticks_agree(values, words):
    title = f3_ladder.ladder_title(ladder(*values))
    assert words in title
    assert len(title.split()) <= 12


def test_a_yardstick_averages_seeds_in_logarithms_or_as_they_are():
    by_seed = {(2, 0): constant(1.0), (2, 1): constant(4.0)}
    assert Yardstick("log", by_seed).at_site(2).value == pytest.approx(2.0)
    assert Yardstick("sum", by_seed, over_logs=False).at_site(2).value == pytest.approx(2.5)


def test_the_text_table_has_a_row_a_yardstick_and_a_column_a_shallower_site():
    table = ladder(between(2, 3), between(0.5, 0.6, 0.52)).text_table()
    assert table.index.name == "site 29"
    rows = [ORIGINAL_ALL, "original: 1", "PCA"]
    words = ["2.5 [2, 3]", "0.52 [0.5, 0.6]", "1.2 [1.2, 1.2]"]
    column = dict(zip(rows, words, strict=True))
    assert table.to_dict() == {"/ site 2": column, "/ site 15": column}


def test_single_seeds_are_drawn_without_pca():
    seeds = ladder(between(2, 3), between(1, 2)).seeds()
    assert len(seeds) == 2 * 2 * 3
    assert "PCA" not in set(seeds["group"])


def test_a_collapsed_original_recipe_leaves_its_own_yardsticks_undecided():
    rungs = ladder(between(2, 3), between(2, 3))
    fair = step("normalised: FVU at L0 = 32", between(2, 3))
    rungs = Ladder(dict(list(rungs.steps.items())[:2]) | {fair.name: fair, "PCA": fair}, COMPARED)
    verdicts = f3_ladder.verdicts_by_yardstick(rungs, 0.03, SCOPE, collapsed=[2])
    assert list(verdicts.values()) == ["undecided", "undecided", "supported"]


def test_the_middle_lambda_is_of_the_sorted_ones():
    assert f3_ladder.middle_lambda([8.0, 0.8, 2.5]) == 2.5


def test_the_figure_of_an_unreached_l0_says_so():
    original = pd.DataFrame({"l0": [18.0, 49.0, 491.0]}, index=[2, 15, 29])
    figure = f3_ladder.ladder_figure(ladder(between(2, 3), undefined()), original, SCOPE, 30)
    assert "worse" in figure.get_suptitle()
    assert np.isfinite(figure.get_figheight())


def test_each_yardstick_says_where_the_deepest_site_stands_and_why_there_is_no_verdict_once():
    rungs = ladder(between(2, 3), undefined())
    lines = f3_ladder.yardstick_lines(rungs, 0.03, SCOPE)
    assert lines[0] == f"{ORIGINAL_ALL}: worse than site 2, worse than site 15: supported"
    assert lines[1] == "original: 1: site 2: L0 not reached, site 15: L0 not reached: undecided"
    small = f3_ladder.yardstick_lines(rungs, 0.03, Scope("a model", 1, 20))
    assert small[0] == f"{ORIGINAL_ALL}: worse than site 2, worse than site 15"
    assert small[-1] == "undecided by each: 1 seed and 20 test pages; a verdict takes 3 and 15"
    assert sum("undecided" in line for line in small) == 1
    collapsed = f3_ladder.yardstick_lines(rungs, 0.03, SCOPE, collapsed=[2])
    assert collapsed[-1] == "undecided by the original recipe, whose SAEs have collapsed"


def test_the_place_of_the_deepest_site_has_a_word_for_every_comparison():
    assert set(f3_ladder.PLACES) == set(get_args(Comparison))


def test_a_yardstick_that_is_not_known_is_not_counted_in_the_title():
    title = f3_ladder.ladder_title(ladder(between(2, 3), undefined()))
    assert title.startswith("By each known yardstick")


# -- what the rungs are of


class TwoRecipes:
    """A workspace whose FVU on ordinary tokens are made: each recipe, site and seed has its own."""

    def spec(self, arm, site, **fields):
        return make_spec(arm, site, 16, **fields)

    def pages(self, spec):
        site, seed = spec.sae.site, spec.train.seed
        fvu = ORDINARY[site, seed]
        if spec.sae.normalize != "none":
            fvu = ONE_LAMBDA[site, seed] * spec.train.lam / 2.5
        return pd.DataFrame({"sse": fvu * np.arange(1.0, 21), "sst": np.arange(1.0, 21)})


KEYS = [(site, seed) for site in COMPARED.sites for seed in (0, 1)]
SQUARED = dict(zip(KEYS, [2.0, 4.0, 8.0, 12.0, 30.0, 50.0], strict=True))  # a token
SCATTER = dict(zip(KEYS, [20.0, 20.0, 40.0, 40.0, 1000.0, 1000.0], strict=True))
ORDINARY = dict(zip(KEYS, [0.1, 0.4, 0.2, 0.8, 0.3, 0.27], strict=True))
ONE_LAMBDA = dict(zip(KEYS, [0.2, 0.8, 0.3, 0.3, 0.9, 0.4], strict=True))
AT_L0 = dict(zip(KEYS, [0.1, 0.1, 0.25, 0.16, 0.2, 0.45], strict=True))
SPECTRUM = {2: 0.5, 15: 0.4, 29: 0.6}


@pytest.fixture(scope="module")
def rungs():
    """The ladder of `TwoRecipes`, whose sweep of the normalised recipe is straight."""
    ws = TwoRecipes()
    p = params(seeds=[0, 1], l0_target=32.0, lambdas=[8.0, 0.8, 2.5])
    original = {(s, k): ws.spec("plain", s, lam=5.0, seed=k, normalize="none") for s, k in KEYS}
    tokens = np.arange(1.0, 21)
    sums = {key: (SQUARED[key] * tokens, SCATTER[key] * tokens, tokens) for key in KEYS}
    sweep = sweep_of(lambda arm, site, seed: AT_L0[site, seed], (0, 1), arms=("plain",))
    pca = {(site, l0): SPECTRUM[site] * 32 / l0 for site in SPECTRUM for l0 in (16.0, 32.0, 64.0)}
    return f3_ladder.build_ladder(ws, p, sums, original, sweep, Matched({}, pca, COMPARED, 32.0))


def test_each_rung_reads_its_own_recipe_tokens_and_sparsity(rungs):
    read = {
        name: [rung.at_site(site).value for site in COMPARED.sites]
        for name, rung in rungs.steps.items()
    }
    assert list(read) == [
        "original: squared error, all tokens",
        ORIGINAL_ALL,
        "original: FVU, ordinary tokens",
        "normalised: FVU at λ = 2.5",
        "normalised: FVU at L0 = 32",
        "PCA of rank 32",
    ]
    squared, every, ordinary, one_lambda, at_l0, pca = read.values()
    # means over two seeds; of ordinary tokens they are geometric
    assert squared == pytest.approx([3.0, 10.0, 40.0])
    assert every == pytest.approx([0.15, 0.25, 0.04])
    assert ordinary == pytest.approx([0.2, 0.4, (0.3 * 0.27) ** 0.5])
    assert one_lambda == pytest.approx([0.4, 0.3, 0.6])
    assert at_l0 == pytest.approx([0.1, 0.2, 0.3])
    assert pca == pytest.approx([0.5, 0.4, 0.6])


def test_the_deepest_site_s_gap_is_drawn_over_each_shallower_one(rungs):
    drawn = rungs.table().set_index(["group", "hue"])
    assert drawn.loc[("normalised: FVU at λ = 2.5", 2), "value"] == pytest.approx(1.5)
    assert drawn.loc[("normalised: FVU at λ = 2.5", 15), "value"] == pytest.approx(2.0)
    assert drawn.loc[(ORIGINAL_ALL, 2), "value"] == pytest.approx(0.04 / 0.15)
    assert (drawn["lo"] <= drawn["value"]).all()
    assert (drawn["hi"] >= drawn["value"]).all()
    seeds = rungs.seeds().groupby(["group", "hue"])["value"].apply(list)
    assert seeds["normalised: FVU at λ = 2.5", 15] == pytest.approx([0.9 / 0.3, 0.4 / 0.3])
    assert seeds["original: squared error, all tokens", 2] == pytest.approx([30 / 2, 50 / 4])


def test_pca_compares_the_two_deepest_sites(rungs):
    assert f3_ladder.pca_ratio(rungs) == pytest.approx(0.6 / 0.4)


def test_the_figure_says_which_l0_one_lambda_means_at_each_site(rungs):
    original = pd.DataFrame({"l0": [18.4, 49.0, 491.0]}, index=[2, 15, 29])
    figure = f3_ladder.ladder_figure(rungs, original, Scope("a model", 2, 20))
    assert figure.get_suptitle() == (
        "Whether site 29 looks worse than site 15 depends on the yardstick"
    )
    note = figure.get_supxlabel().replace("\n", " ")
    assert "L0 at one raw λ: 18, 49, 491 by site. Plain SAE, 2 seeds, a model." in note
