"""F1: every verdict of its rule on hand-made ratios, what is trained, and words on odd runs."""

import numpy as np
import pandas as pd
import pytest
from helpers.sweeps import MadeRuns, made_sweep

from saelib.config import ConfigError
from saelib.sae.spec import make_spec
from saelib.study import f1_schedules as f1
from saelib.study.estimate import Estimate, constant, undefined
from saelib.study.scope import Scope

MARGIN = 0.05
PARAMS = {"n_latents": 32, "tokens": 10240, "batch_size": 64, "lr": 8e-3, "schedule": "linear"}
PARAMS |= {"lam_warmup": 0.1, "warmup": 0.05, "grad_clip": 1.0, "sites": [2, "middle"]}
PARAMS |= {"lambdas": [0.5, 2.0, 8.0], "seeds": [0, 1], "ce_tokens": 512, "l0_target": 32.0}
PARAMS |= {"schedule_seeds": [0, 1, 2], "schedule_lam": 2.0, "schedule_lrs": [4e-3, 8e-3]}
PARAMS |= {"n_cycles": 4, "stop_at": 0.8, "schedule_sites": ["middle"], "margin": MARGIN}


def estimate(low, high):
    middle = (low + high) / 2
    return Estimate(np.r_[middle, np.full(100, low), middle, np.full(100, high)])


WORSE, SLIGHT, WIDE = estimate(1.08, 1.12), estimate(1.01, 1.04), estimate(1.0, 1.1)


def site(*against, number=2):
    return {(number, other): ratio for other, ratio in zip(f1.OTHERS, against, strict=True)}


def decide(by_cell, n_seeds=3, n_pages=15):
    return f1.decide(by_cell, MARGIN, n_seeds, n_pages)


def test_the_rule_states_the_margin_unrounded():
    assert "more than 2.5% in FVU" in f1.rule(f1.Params(**PARAMS | {"margin": 0.025}))


@pytest.mark.parametrize(("steps", "every"), [(160, 4), (4000, 100), (79, 1), (12, 1)])
def test_the_history_has_forty_rows_or_each_step(steps, every):
    assert f1.log_every(f1.Params(**PARAMS | {"tokens": 64 * steps})) == every


def test_worse_than_each_other_schedule_supports():
    assert decide(site(WORSE, WORSE, WORSE)) == "supported"


def test_within_the_margin_of_one_schedule_contradicts():
    assert decide(site(WORSE, SLIGHT, WORSE)) == "contradicted"


def test_an_interval_that_reaches_over_the_margin_leaves_it_undecided():
    assert decide(site(WORSE, WIDE, WORSE)) == "undecided"


def test_an_interval_that_touches_the_margin_is_on_neither_side():
    assert decide(site(WORSE, WORSE, estimate(1 + MARGIN, 1.2))) == "undecided"
    assert decide(site(WORSE, WORSE, estimate(0.9, 1 + MARGIN))) == "undecided"


@pytest.mark.parametrize("small", [{"n_seeds": 2}, {"n_pages": 14}])
def test_two_seeds_or_fourteen_pages_decide_nothing(small):
    assert decide(site(WORSE, WORSE, WORSE), **small) == "undecided"
    assert decide(site(SLIGHT, SLIGHT, SLIGHT), **small) == "undecided"


def test_a_site_where_a_run_lies_outside_the_curve_counts_for_neither():
    assert decide(site(WORSE, undefined(202), WORSE)) == "undecided"
    assert decide(site(SLIGHT, undefined(202), SLIGHT)) == "undecided"


def test_no_interval_decides_nothing():
    alone = Estimate(np.r_[1.2, np.full(9, np.nan)])
    assert decide(site(alone, alone, alone)) == "undecided"


def test_most_sites_decide():
    badly, fine = (WORSE, WORSE, WORSE), (SLIGHT, WORSE, WORSE)
    two_badly = site(*badly) | site(*badly, number=9) | site(*fine, number=15)
    assert decide(two_badly) == "supported"
    two_fine = site(*badly) | site(*fine, number=9) | site(*fine, number=15)
    assert decide(two_fine) == "contradicted"
    assert decide(site(*badly) | site(*fine, number=9)) == "undecided"


def test_each_site_is_read_in_words():
    by_cell = site(WORSE, WORSE, WORSE) | site(SLIGHT, WORSE, WORSE, number=9)
    by_cell |= site(WIDE, WORSE, WORSE, number=15)
    assert f1.judged_sites(by_cell, MARGIN).splitlines() == [
        "site 2: hard restarts train badly",
        "site 9: hard restarts do not train badly",
        "site 15: neither can be said",
    ]


def test_the_title_names_what_restarts_lose_to_beat_and_tie_with():
    against = dict(zip(f1.OTHERS, (WIDE, WORSE, WORSE), strict=True))
    title = f1.title(against)
    assert title == "Hard restarts lose to linear decay and cosine, tie with constant"
    assert len(title.split()) <= 12
    assert f1.title({"constant": estimate(0.8, 0.9)}) == "Hard restarts beat constant"
    outside = dict.fromkeys(f1.OTHERS, undefined())
    assert f1.title(outside) == "No schedule's L0 lies on the λ curve"


SCOPE = Scope("a model", 3, 22)


def test_the_sentence_gives_the_mean_over_sites_and_its_rates():
    by_cell = site(WIDE, WORSE, WORSE) | site(WIDE, WORSE, WORSE, number=9)
    text = f1.sentence(by_cell, [4e-3, 8e-3], SCOPE)
    assert "mean over sites 2, 9" in text
    assert "1.100 [1.080, 1.120] times that of linear decay" in text
    assert "each at its best of the peak rates 0.004, 0.008" in text
    one = f1.sentence(site(WIDE, WORSE, WORSE), [8e-3], SCOPE)
    assert "at site 2" in one
    assert "all at the peak rate 0.008" in one


def test_words_where_no_run_lies_on_the_curve():
    by_cell = site(*[undefined(202)] * 3)
    assert f1.sentence(by_cell, [8e-3], SCOPE).startswith("FVU of hard restarts cannot be compared")
    assert "outside the curve" in f1.abstract(by_cell, [8e-3], "undecided")


def test_the_abstract_names_the_schedule_that_restarts_lose_most_against():
    text = f1.abstract(site(WIDE, WORSE, SLIGHT), [8e-3], "contradicted")
    assert "(F1: contradicted) leave 1.10 times the FVU of a linear decay schedule" in text
    assert text.endswith("at site 2, all at the rate 0.008.")
    several = site(WIDE, WORSE, SLIGHT) | site(WIDE, WORSE, SLIGHT, number=9)
    assert "mean over sites, all at" in f1.abstract(several, [8e-3], "contradicted")


def test_effects_of_the_headline_site_come_first():
    by_cell = site(WIDE, WORSE, WORSE) | site(SLIGHT, WORSE, WORSE, number=9)
    names = list(f1.estimates(by_cell, 9))
    assert names[0] == "site 9, hard restarts over constant"
    assert names[1] == "site 9, hard restarts over linear decay"
    assert len(names) == 6


# What is trained


class Space:
    """A workspace that trains nothing: L0 = 64 / λ, FVU = 0.1 λ, 20 % more at the lower rate."""

    n_layers = 12

    def __init__(self):
        self.trained = []

    def site(self, name):
        return 6 if name == "middle" else name

    def spec(self, arm, site, **fields):
        return make_spec(arm, site, 16, **fields)

    def measuring(self, evaluation):
        assert evaluation.ce_tokens == 0
        return self

    def train(self, specs, notebook):
        self.trained.append(list(specs))
        return pd.DataFrame([self.row(spec) for spec in specs])

    def row(self, spec):
        cfg = spec.train
        worse = 1.2 if cfg.lr < 8e-3 else 1.0
        fvu = 0.1 * cfg.lam * worse
        run = f"{spec.sae.site}-{cfg.lam:g}-{cfg.schedule}-{cfg.stop_at:g}-{cfg.lr:g}-{cfg.seed}"
        row = {"run_id": run, "site": spec.sae.site, "lambda": cfg.lam, "seed": cfg.seed}
        row |= {"lr": cfg.lr, "fvu": fvu, "fvu_val": fvu, "l0_val": 64 / cfg.lam}
        return row | {"mse": 3.0, "l1": 2.0, "tokens_trained": cfg.steps * cfg.batch_size}

    def pages(self, run):
        lam = float(run.split("-")[1])
        sst = np.array([10.0, 20.0, 10.0, 20.0, 10.0])
        return pd.DataFrame({"sse": 0.1 * lam * sst, "sst": sst, "ce_n": 0})


@pytest.fixture(scope="module")
def p():
    return f1.Params.read(PARAMS, "02_x")


def test_each_schedule_is_tried_at_each_rate_then_trained_at_its_best_with_all_seeds(p):
    ws = Space()
    trained = f1.train(ws, p)
    swept, tried, chosen = ws.trained
    assert (len(swept), len(tried), len(chosen)) == (2 * 3 * 2, 4 * 2, 5 * 3)
    assert set(trained.chosen["lr"]) == {8e-3}
    assert trained.chosen["schedule"].unique().tolist() == [*f1.JUDGED, f1.STOPPED]
    assert trained.chosen["matched"].tolist() == pytest.approx([1.0] * 15)
    assert trained.chosen["objective"].tolist() == [3.0 + 2.0 * 2.0] * 15


def test_all_schedules_train_on_as_many_tokens(p):
    ws = Space()
    f1.train(ws, p)
    taken = {spec.train.steps * spec.train.batch_size for spec in ws.trained[2]}
    assert taken == {10240}


def test_a_schedule_is_paired_with_the_restarts_over_seeds_and_pages(p):
    ws = Space()
    ratios = f1.ratios(f1.train(ws, p), ws.pages)
    assert set(ratios) == {(6, other) for other in (*f1.OTHERS, f1.STOPPED)}
    assert ratios[6, "linear"].draws == pytest.approx(np.ones(1001))


def test_schedules_are_studied_where_the_sweep_has_a_curve(p):
    astray = f1.Params.read(PARAMS | {"schedule_sites": [3]}, "02_x")
    with pytest.raises(ConfigError, match=r"schedule_sites are sites \[3\]: expected some of"):
        f1.train(Space(), astray)


def test_a_rate_whose_l0_lies_outside_the_curve_is_not_chosen(p):
    rows = pd.DataFrame({"site": [6, 6], "fvu_val": [0.1, 0.2], "l0_val": [1.0, 32.0]})
    trained = f1.train(Space(), p)
    beyond, inside = f1.excess(rows, trained.curves, "fvu_val")
    assert np.isnan(beyond)
    assert inside == pytest.approx(1.0)


def test_the_plotted_points_are_the_ratios_and_the_objective_s_seed_intervals(p):
    ws = Space()
    trained = f1.train(ws, p)
    ratios = f1.ratios(trained, ws.pages) | {(6, "cosine"): constant(1.5)}
    table = f1.points(f1.gaps(trained.chosen), ratios).set_index(["panel", "group"])
    assert table.loc[("FVU at matched L0", "cosine"), "value"] == 1.5
    assert table.loc[("training objective", "cosine"), "value"] == pytest.approx(1.0)


@pytest.mark.parametrize(("n_seeds", "small_points"), [(1, False), (3, True)])
def test_the_figure_draws_the_line_that_the_rule_asks_for(p, n_seeds, small_points):
    ws = Space()
    trained = f1.train(ws, p)
    scope = Scope("a model", n_seeds, 22)
    fig = f1.figure(ws, trained, f1.ratios(trained, ws.pages), p, scope)
    matched, objective = fig.axes
    margin = [line for line in matched.lines if line.get_label() == "1 + margin = 1.05"]
    assert [set(line.get_xdata()) for line in margin] == [{1.05}]
    assert "1 + margin = 1.05" not in [line.get_label() for line in objective.lines]
    assert ("Small open points" in fig.get_supxlabel()) == small_points
    assert "at matched L0, site 6:" in fig.get_supxlabel()


def test_what_was_tried_is_counted_in_words(p):
    words = f1.tried_summary(f1.train(Space(), p), p).splitlines()
    assert words[0].startswith("site 6: 4 schedules, 2 peak rates each; then 3 seeds at the best")
    assert words[1].startswith("0 of 8 trials end at an L0 outside the curve of λ")


# From ratios or runs to what is shown


def chosen(sites=(2, 9, 15)):
    """Two seeds of two schedules at these sites; every column is told by site and seed."""
    rows = [
        {"site": number, "schedule": name, "seed": seed, "lr": rate, "fvu": number / 10 + seed}
        for number in sites
        for name, rate in (("linear", 4e-3), (f1.RESTARTS, 8e-3))
        for seed in (0, 1)
    ]
    table = pd.DataFrame(rows)
    columns = {"l0": table["fvu"] + 10, "matched": np.nan, "objective": 7.0}
    return table.assign(**columns, loss_recovered=0.5, dead_fraction=0.25)


def test_the_table_is_of_the_middle_studied_site_and_means_over_its_seeds():
    table = f1.table(f1.Trained(pd.DataFrame(), chosen((15, 2, 9)), {}))
    assert table.index.name == "site 9"
    assert table.index.tolist() == ["linear decay", "cosine, hard restarts"]
    assert table["fvu"].tolist() == ["1.4"] * 2  # 0.9 and 1.9
    assert table["l0"].tolist() == ["11.4"] * 2
    assert table["lr"].tolist() == ["0.004", "0.008"]
    assert table["matched"].tolist() == ["–"] * 2
    others = ["objective", "loss_recovered", "dead_fraction"]
    assert table[others].iloc[0].tolist() == ["7", "0.5", "0.25"]


@pytest.mark.parametrize(("sites", "middle"), [((15, 2, 9), 9), ((9, 2), 9), ((2,), 2)])
def test_the_middle_site_is_of_those_in_order_of_depth(sites, middle):
    assert f1.middle_site(f1.Trained(pd.DataFrame(), chosen(sites), {})) == middle


def test_the_scope_counts_the_seeds_of_the_schedules_and_the_sweep_s_pages():
    ws = MadeRuns(n_pages=17)
    p = f1.Params(**PARAMS | {"seeds": [0], "schedule_seeds": [0, 1, 2, 3]})
    assert f1.scope_of(ws, p, made_sweep(ws, seeds=[0])) == Scope("tiny-llama", 4, 17)


def test_the_finding_is_of_all_sites_and_opens_with_the_middle_one(p):
    by_cell = site(WORSE, WORSE, WORSE, number=15) | site(WIDE, WORSE, WORSE, number=2)
    by_cell |= site(WORSE, WORSE, WORSE, number=9)
    found = f1.finding(by_cell, p, Scope("a model", 3, 15), "small")
    assert (found.name, found.verdict) == ("F1", "supported")
    assert next(iter(found.estimates)) == "site 9, hard restarts over constant"
    assert len(found.estimates) == 9
    assert found.figure == "data/small/figures/02_schedules_final.png"
    assert (found.claim, found.section) == (f1.CLAIM, f1.SECTION)
    assert found.rule == f1.rule(p)
    assert found.sentence == f1.sentence(by_cell, [4e-3, 8e-3], Scope("a model", 3, 15))


@pytest.mark.parametrize(
    ("n_seeds", "n_pages", "margin", "verdict"),
    [
        (3, 15, 0.05, "supported"),
        (2, 15, 0.05, "undecided"),
        (3, 14, 0.05, "undecided"),
        (3, 15, 0.2, "contradicted"),
    ],
)
def test_the_finding_s_verdict_is_of_its_margin_seeds_and_pages(n_seeds, n_pages, margin, verdict):
    p = f1.Params(**PARAMS | {"margin": margin})
    found = f1.finding(site(WORSE, WORSE, WORSE), p, Scope("a model", n_seeds, n_pages), "small")
    assert found.verdict == verdict
