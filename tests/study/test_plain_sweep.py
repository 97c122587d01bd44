"""The plain sweep on a made workspace: tables, checks, and titles that stay true on odd models."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers.random_stores import make_store, make_x
from helpers.sweeps import MadeRuns, made_sweep

from saelib.sae.spec import make_spec
from saelib.show.style import LOOKS
from saelib.study import f4_lambda
from saelib.study import sweep as plain

PARAMS = {"n_latents": 32, "tokens": 1024, "batch_size": 64, "lr": 8e-3, "schedule": "linear"}
PARAMS |= {"lam_warmup": 0.1, "warmup": 0.05, "grad_clip": 1.0, "sites": [2, "middle", 6]}
PARAMS |= {"lambdas": [0.5, 2.0], "seeds": [0, 1], "ce_tokens": 512, "l0_target": 32.0}


class Space:
    """A workspace that trains nothing: L0 = 64 / λ, FVU = 0.1 λ."""

    n_layers = 12
    identity = {"model": "/somewhere/model"}  # noqa: RUF012

    def site(self, name):
        return 6 if name == "middle" else name

    def spec(self, arm, site, **fields):
        return make_spec(arm, site, 16, **fields)

    def train(self, specs, notebook):
        return pd.DataFrame([self.row(spec) for spec in specs])

    def row(self, spec):
        lam = spec.train.lam
        run = f"{spec.sae.site}-{lam:g}-{spec.train.seed}"
        row = {"run_id": run, "site": spec.sae.site, "lambda": lam, "seed": spec.train.seed}
        row |= {"fvu": 0.1 * lam, "l0": 64 / lam, "l0_val": 64 / lam, "loss_recovered": np.nan}
        row |= {"loss_recovered_mean": 0.9 / lam, "ce_zero": 6.0, "ce_mean": 4.0, "ce_id": 2.0}
        return row | {"delta_ce": 0.1, "dead_fraction": 0.0, "shrinkage": 0.9, "arm": "plain"}

    def pages(self, run):
        lam = float(run.split("-")[1])
        sst = np.array([10.0, 20.0, 10.0, 20.0, 10.0])
        losses = {"ce_n": 0, "ce_sae": 0.0, "ce_id": 0.0, "ce_zero": 0.0, "ce_mean": 0.0}
        return pd.DataFrame({"sse": 0.1 * lam * sst, "sst": sst} | losses)


@pytest.fixture(scope="module")
def p():
    return plain.Params.read(PARAMS, "02_x")


@pytest.fixture(scope="module")
def sweep(p):
    return plain.train(Space(), p)


def test_one_sae_per_site_lambda_and_seed_a_site_named_twice_once(sweep):
    assert (sweep.sites, sweep.lambdas, sweep.seeds) == ([2, 6], [0.5, 2.0], [0, 1])
    assert len(sweep.rows) == 8
    assert [spec.train.seed for spec in sweep.specs[2, 0.5]] == [0, 1]


def test_estimates_are_means_over_seeds_of_the_pages(sweep):
    assert sweep.estimates["fvu"][6, 2.0].value == pytest.approx(0.2)
    assert sweep.means.set_index(["site", "lambda"]).loc[(6, 2.0), "fvu"] == pytest.approx(0.2)
    assert (sweep.n_pages, sweep.n_loss_pages) == (5, 0)


def test_a_table_has_values_with_intervals_and_undefined_in_words(sweep):
    table = plain.table(sweep)
    assert table.index.tolist() == ["λ = 0.5", "λ = 2"]
    assert table["site 2", "FVU"].tolist() == ["0.05 [0.05, 0.05]", "0.2 [0.2, 0.2]"]
    assert table["site 2", "loss recovered"].tolist() == ["undefined", "undefined"]
    assert len(plain.details(sweep)) == 2


def test_the_summary_counts_what_was_trained(sweep, p):
    text = plain.summary(Space(), sweep, p)
    assert text.startswith("8 SAEs: 2 sites x 2 values of lambda x 2 seeds, 1,024 tokens each")
    assert sweep.scope(Space()).model == "model"  # no path in a caption


def test_checks_hold_of_what_has_learned_and_only_of_it(sweep):
    assert [holds for holds, _ in plain.checks(sweep)] == [True, True, True]
    flat = plain.Sweep(sweep.rows.assign(fvu=1.0, l0=3.0), sweep.specs, sweep.pages)
    assert [holds for holds, _ in plain.checks(flat)] == [False, True, False]


def test_a_loss_recovered_that_is_undefined_is_no_failure(sweep):
    rows = sweep.rows.assign(loss_recovered_mean=np.nan)
    unknown = plain.Sweep(rows, sweep.specs, sweep.pages)
    outcome = [outcome for outcome, _ in plain.checks(unknown)][1]
    assert outcome == "loss recovered is undefined in 2 of 2 sites"


def test_sites_below_pca_are_those_with_a_lambda_below_it(sweep):
    ranks = np.arange(17)
    baseline = pd.concat(
        [
            pd.DataFrame({"site": 2, "rank": ranks, "fvu": 0.04}),
            pd.DataFrame({"site": 6, "rank": ranks, "fvu": 0.06}),
        ]
    )
    assert plain.sites_below_pca(sweep, baseline, 16) == [6]


def test_titles_of_the_trade_off():
    assert plain.trade_off_title(3, 3) == "The plain SAE reaches below PCA of rank L0 at every site"
    assert plain.trade_off_title(0, 3) == "The plain SAE reaches below PCA of rank L0 at no site"
    assert plain.trade_off_title(1, 3).endswith("at 1/3 sites")


def test_titles_of_loss_recovered_on_odd_models():
    usual = plain.recovered_title(pd.Series([0.9, 0.8]), pd.Series([0.7, 0.6]))
    assert usual == "Zero ablation flatters: the mean vector alone recovers most loss"
    none = plain.recovered_title(pd.Series([np.nan]), pd.Series([np.nan]))
    assert none == "Loss recovered is undefined: ablation costs nothing here"
    above = plain.recovered_title(pd.Series([1.1, 0.8]), pd.Series([0.1, 0.2]))
    assert above == "With some SAEs the model's loss is lower than without"
    weak = plain.recovered_title(pd.Series([0.42]), pd.Series([0.1]))
    assert weak == "At most 42 % of the loss is recovered"


def test_titles_of_densities_say_what_a_larger_lambda_does():
    fine, coarse = np.array([0.2, 0.1, 0.3, 0.2]), np.array([0.05, 0.0, 0.02, 0.0])
    kills = plain.density_title({2.0: coarse, 0.5: fine}, 6)
    assert kills == "A larger λ makes latents rarer and kills more (site 6)"
    rarer = plain.density_title({0.5: fine, 2.0: fine / 2}, 6)
    assert rarer == "A larger λ makes latents rarer (site 6)"
    collapsed = plain.density_title({0.5: np.zeros(4), 2.0: np.zeros(4)}, 6)
    assert collapsed == "How often latents fire at each λ (site 6)"


def test_the_nearest_lambda_is_that_of_the_site_asked_for(sweep):
    rows = sweep.rows.assign(l0=sweep.rows["l0"] * (1 + 3 * (sweep.rows["site"] == 6)))
    other = replace(sweep, rows=rows)  # L0 128 and 32 at site 2, four times as many at site 6
    assert plain.nearest_lambda(other, 2, 120.0) == 0.5
    assert plain.nearest_lambda(other, 6, 120.0) == 2.0
    assert plain.nearest_lambda(other, 2, 33.0) == 2.0


def test_the_middle_site_or_the_middle_one_of_those_there():
    assert plain.middle_site(Space(), [2, 6, 9]) == 6
    assert plain.middle_site(Space(), [1, 2, 3]) == 2


@pytest.mark.parametrize(("times", "holds"), [(1.6, True), (1.4, False)])
def test_the_densest_sae_of_each_site_is_shuffled(sweep, monkeypatch, times, holds):
    shuffled = []

    def shuffled_fvu(ws, spec):
        shuffled.append((spec.sae.site, spec.train.lam))
        return times * sweep.finest.loc[spec.sae.site, "fvu"]

    monkeypatch.setattr(plain, "_shuffled_fvu", shuffled_fvu)
    [(worse, claim)] = plain.shuffled_check(Space(), sweep)
    assert worse == holds
    assert "each of 2 SAEs" in claim
    assert shuffled == [(2, 0.5), (6, 0.5)]  # where 0.05 is left; 0.2 at λ = 2


@pytest.mark.parametrize(("l0", "fvu"), [(64.0, "0.1"), (45.2548, "0.141"), (1000.0, "–")])
def test_one_lambda_or_one_l0_is_a_row_of_the_table(sweep, l0, fvu):
    table = f4_lambda.one_lambda_or_one_l0(sweep, l0)
    assert table["FVU", 2].tolist() == table["FVU", 6].tolist() == ["0.05", "0.2", fvu]
    assert table["L0", 6].tolist()[:2] == ["128", "32"]
    assert table.index.tolist() == ["λ = 0.5", "λ = 2", f"L0 = {l0:g}"]
    assert table["L0", 6].tolist()[2] == f"{l0:.3g}"


# Figures, of a sweep that differs in site, λ and seed


@pytest.fixture(scope="module")
def uneven():
    return made_sweep(MadeRuns())


def test_an_sae_is_drawn_with_the_interval_of_its_cell(uneven):
    for column, exact in (("fvu", 0.2), ("loss_recovered", 0.8)):
        drawn = plain._drawn(uneven, column)
        assert len(drawn) == 2 * 3 * 3
        (row,) = drawn[drawn["run_id"] == repr(uneven.specs[1, 4.0][0])].to_dict("records")
        of_cell = uneven.estimates[column][1, 4.0]
        assert row[column] == pytest.approx(exact)
        assert (row["lo"], row["hi"]) == (of_cell.lo, of_cell.hi)


def test_the_trade_off_s_figure_counts_the_sites_below_pca(uneven, tmp_path):
    ws = MadeRuns()
    x = make_x()
    x[3][:, 4:] = 0  # PCA of rank 4 leaves nothing, the SAE with L0 = 4 does
    ws.store = make_store(tmp_path / "s", x)
    fig = plain.trade_off_figure(ws, uneven)
    title = " ".join(fig.get_suptitle().split())
    assert title == "The plain SAE reaches below PCA of rank L0 at 1/2 sites"
    note = " ".join(fig.get_supxlabel().split())
    assert note.startswith(
        "Bars: 95 % bootstrap over 16 test pages and seeds. Small points: seeds;"
    )
    assert note.endswith("FVU 0.02 to 0.44 over the sweep. 3 seeds. tiny-llama.")
    baseline = plain.pca(ws, [1, 3]).set_index(["site", "rank"])["fvu"]
    for ax, site in zip(fig.axes, (1, 3), strict=True):
        assert ax.get_title(loc="left") == f"site {site}"
        lines = {line.get_label(): line for line in ax.lines}
        means, pca = lines["plain SAE"], lines[LOOKS["pca"].label]
        l0 = [32, 8, 2] if site == 1 else [64, 16, 4]
        assert means.get_xdata() == pytest.approx(l0)
        assert pca.get_ydata()[0] == pytest.approx(baseline[site, 1])


def test_the_mean_vector_s_share_is_that_of_the_smallest_lambda(uneven):
    assert plain.mean_vector_recovers(uneven).to_dict() == {1: 0.75, 3: 0.25}
    elsewhere = uneven.rows["lambda"] > 1
    rows = uneven.rows.assign(ce_mean=uneven.rows["ce_mean"] + elsewhere)
    other = replace(uneven, rows=rows)
    assert plain.mean_vector_recovers(other).to_dict() == {1: 0.75, 3: 0.25}


def test_the_figure_of_loss_recovered_has_the_mean_vector_s_share_by_site(uneven):
    fig = plain.recovered_figure(MadeRuns(), uneven)
    note = " ".join(fig.get_supxlabel().split())
    measured = "95 % bootstrap over 15 test pages with a measured loss and seeds."
    assert note.startswith(f"Bars: {measured}")
    assert note.endswith("Up to 0.98. Mean vector: site 1 0.75, site 3 0.25.")
    assert " ".join(fig.get_suptitle().split()) == "At most 98 % of the loss is recovered"
    drawn = {line.get_label(): line for line in fig.axes[0].lines}["plain SAE"]
    assert drawn.get_ydata() == pytest.approx([0.89, 0.78, 0.56])  # 1 - FVU


def test_where_ablation_costs_nothing_the_mean_vector_s_share_is_undefined(uneven):
    free = uneven.rows["site"] == 1
    none = {"ce_zero": uneven.rows["ce_zero"].where(~free, 2.0)}
    none |= {"ce_mean": uneven.rows["ce_mean"].where(~free, 2.0)}
    other = replace(uneven, rows=uneven.rows.assign(**none))
    note = " ".join(plain.recovered_figure(MadeRuns(), other).get_supxlabel().split())
    assert note.endswith("Mean vector: site 1 undefined, site 3 0.25.")
