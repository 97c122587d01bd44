"""Which sites and SAEs the parts of F3 share, and what captions say of them."""

from types import SimpleNamespace

import pandas as pd
import pytest
from helpers.f3_cases import params
from helpers.f3_sweeps import sweep_of
from helpers.random_stores import make_store

from saelib.config import ConfigError
from saelib.sae.spec import make_spec
from saelib.study import f3_sites
from saelib.study.curve import Curve
from saelib.study.f3_sites import MADE_IN, Compared, compared_sites, enumerate_sites
from saelib.study.scope import Scope


class Trained:
    """A workspace whose results are made by hand; an SAE's run id is its arm, site, λ and seed."""

    profile = "smoke"

    def __init__(self, rows=()):
        names = ["arm", "site", "lambda", "seed", "run_id", "l0", "fvu"]
        self.table = pd.DataFrame(rows, columns=names)

    def site(self, name):
        return {"middle": 3, -2: 5}.get(name, name)

    def spec(self, arm, site, **settings):
        return make_spec(arm, int(site), 8, **settings)

    def run_id(self, spec):
        return f"{spec.arm} {spec.sae.site} {spec.train.lam:g} {spec.train.seed}"

    def results(self):
        return self.table

    def pages(self, run):
        return pd.DataFrame({"page_id": ["a", "b"], "n": [1, 3]})


def test_sites_of_one_depth_are_refused():
    with pytest.raises(ConfigError, match="one site, and two or more are compared"):
        compared_sites(Trained(), ["middle", 3])
    assert compared_sites(Trained(), [-2, 2, "middle"]) == Compared((2, 3, 5))


def test_the_deepest_site_is_compared_with_each_shallower_one():
    compared = Compared((2, 3, 5))
    assert (compared.deep, compared.near, compared.shallow) == (5, 3, (2, 3))
    assert compared.pair == (3, 5)


@pytest.mark.parametrize(
    ("sites", "words"), [([2], "2"), ([2, 9], "2 and 9"), ([2, 9, 15], "2, 9 and 15"), ([], "")]
)
def test_sites_are_enumerated_in_words(sites, words):
    assert enumerate_sites(sites) == words


def rows(lams, sites=(2, 5)):
    made = []
    for arm in MADE_IN:
        for site in sites:
            made += [
                (arm, site, lam, 0, f"{arm} {site} {lam:g} 0", 32.0, 0.3) for lam in sorted(lams)
            ]
    return made


def test_curves_hold_what_the_sweeps_list_and_nothing_else():
    ws = Trained([*rows([1.0, 2.0]), ("plain", 2, 9.0, 0, "plain 2 9 0", 32.0, 0.3)])
    listed = {row[4] for row in rows([1.0, 2.0])}
    sweep = f3_sites.swept_curves(ws, params(), Compared((2, 5)), listed)
    assert len(sweep.curves) == 3 * 2
    assert sweep.curves["plain", 2, 0].rows["lambda"].tolist() == [1.0, 2.0]
    assert len(sweep.by_seed("full", 5)) == 1
    assert f3_sites.page_lists(sweep) == {("a", "b")}


def test_a_row_of_another_recipe_is_no_part_of_a_curve():
    ws = Trained([*rows([1.0, 2.0]), ("plain", 2, 4.0, 0, "another", 32.0, 0.3)])
    listed = set(ws.table["run_id"])
    sweep = f3_sites.swept_curves(ws, params(), Compared((2, 5)), listed)
    assert sweep.curves["plain", 2, 0].rows["lambda"].tolist() == [1.0, 2.0]


def test_a_missing_curve_names_the_notebook_that_trains_it():
    ws = Trained([row for row in rows([1.0, 2.0]) if row[0] != "two_term" or row[1] != 5])
    with pytest.raises(FileNotFoundError, match=r"sites \[5\] lack .*run 03_train_gated"):
        f3_sites.swept_curves(ws, params(), Compared((2, 5)), set(ws.table["run_id"]))


def test_a_missing_original_sae_names_the_notebook_that_trains_it():
    ws = Trained()
    specs = f3_sites.original_specs(ws, params(), Compared((2, 5)))
    assert {spec.sae.normalize for spec in specs.values()} == {"none"}
    with pytest.raises(FileNotFoundError, match=r"2 SAEs of the original recipe .* 02_train_sae"):
        f3_sites.original_rows(ws, specs)


def test_a_code_under_one_latent_per_token_has_collapsed():
    table = pd.DataFrame({"l0": [0.1, 1.0, 40.0]}, index=[2, 15, 29])
    assert f3_sites.collapsed_sites(table) == [2]


def test_the_fewest_test_pages_of_a_sweep_are_its_scope():
    ws = SimpleNamespace(identity={"model": "embedded"})
    table = pd.DataFrame({"n_test_pages": [22, 20, 21]})
    scope = f3_sites.scope_of(ws, params(seeds=[0, 1]), f3_sites.Sweep(table, {}))
    assert (scope.n_seeds, scope.n_pages) == (2, 20)


def test_the_original_recipe_s_results_are_means_over_its_own_seeds():
    ws = Trained()
    p = params(seeds=[0, 1])
    specs = f3_sites.original_specs(ws, p, Compared((2, 5)))
    measured = {(2, 0): (10.0, 0.2), (2, 1): (30.0, 0.4), (5, 0): (50.0, 0.6), (5, 1): (50.0, 1.0)}
    made = [
        ("plain", site, p.original_lam, seed, ws.run_id(specs[site, seed]), *measured[site, seed])
        for site, seed in specs
    ]
    made.append(("plain", 2, p.original_lam, 7, "another seed", 1000.0, 9.0))
    rows = f3_sites.original_rows(Trained(made), specs)
    assert rows.index.tolist() == [2, 5]
    assert rows["l0"].tolist() == [20.0, 50.0]
    assert rows["fvu"].tolist() == pytest.approx([0.3, 0.8])
    with pytest.raises(FileNotFoundError, match=r"^1 SAEs .* run 02_train_sae with 'smoke'$"):
        f3_sites.original_rows(Trained(made[1:]), specs)


def test_the_sweep_is_counted_by_curves_sites_seeds_and_the_fewest_lambdas():
    sweep = sweep_of(lambda *_: 0.3, (0, 1), (2, 5))
    key = ("full", 2, 1)
    curve = sweep.curves[key]
    longer = Curve(pd.concat([curve.rows, curve.rows]), curve.pages)
    sweep = sweep._replace(
        curves={key: longer} | {k: sweep.curves[k] for k in sweep.curves if k != key}
    )
    assert f3_sites.sweep_line(sweep, Compared((2, 5)), Scope("a model", 2, 20)) == (
        "12 curves, 3 architectures at 2 sites, 2 seeds, 2 λ or more each"
    )


def test_the_tokens_tested_are_ordinary_and_long_pages_count_for_more(tmp_path):
    store = make_store(tmp_path / "store")
    sweep = sweep_of(lambda *_: 0.3, (0,), (2, 5))
    first = next(iter(sweep.curves))
    unequal = Curve(sweep.curves[first].rows, lambda run: pd.DataFrame({"n": [2, 2, 2, 2, 1]}))
    sweep.curves[first] = unequal
    original = pd.DataFrame({"l0": [1.0, 2.0]}, index=[2, 5])
    line = f3_sites.test_line(store, sweep, original, Scope("a model", 1, 6))
    assert line == (
        "the original recipe at 2 sites; 7 ordinary tokens of 6 test pages "
        "(by their unequal lengths as many as 5 equal ones)"  # 9² / 17
    )
