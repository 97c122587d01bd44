"""F0: its rule on made tables, its sentences on models with and without sinks."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.random_stores import SITES, make_store, make_x

from saelib.study import f0_trap

PREDICTORS = ("mean", "one_latent", "sinks_only", "pca")


def table(values, pages=22, sites=(2, 15, 29)):
    """A table of errors, equal at all sites; (predictor, class) -> (fvu, lo, hi), else 1."""
    rows = []
    for site, predictor, tokens in itertools.product(sites, PREDICTORS, ("all", "ordinary")):
        fvu, lo, hi = values.get((predictor, tokens), (1.0, 1.0, 1.0))
        rows.append((site, predictor, tokens, pages, fvu, lo, hi, 0.05))
    columns = ["site", "predictor", "class", "pages", "fvu", "lo", "hi", "heaviest"]
    return pd.DataFrame(rows, columns=columns)


TRAP = {
    ("one_latent", "all"): (0.01, 0.005, 0.02),
    ("pca", "all"): (0.3, 0.29, 0.31),
    ("pca", "ordinary"): (0.55, 0.54, 0.56),
}
NO_SINKS = {("pca", "all"): (0.5, 0.49, 0.51), ("pca", "ordinary"): (0.55, 0.54, 0.56)}


def test_one_latent_that_wins_over_all_tokens_alone_contradicts_the_claim():
    errors = table(TRAP)
    assert f0_trap.inverted_sites(errors) == [2, 15, 29]
    assert f0_trap.finding(errors, 15, 32, "p").verdict == "contradicted"


def test_without_an_inverted_order_the_claim_is_supported():
    assert f0_trap.inverted_sites(table(NO_SINKS)) == []
    assert f0_trap.finding(table(NO_SINKS), 15, 32, "p").verdict == "supported"


@pytest.mark.parametrize("values", [TRAP, NO_SINKS])
def test_fourteen_pages_decide_nothing_and_fifteen_do(values):
    assert f0_trap.finding(table(values, pages=14), 15, 32, "p").verdict == "undecided"
    assert f0_trap.finding(table(values, pages=15), 15, 32, "p").verdict != "undecided"


def test_intervals_that_touch_are_no_inverted_order():
    touching = TRAP | {("one_latent", "all"): (0.2, 0.1, 0.29)}
    assert f0_trap.inverted_sites(table(touching)) == []
    apart = TRAP | {("one_latent", "all"): (0.2, 0.1, 0.289)}
    assert f0_trap.inverted_sites(table(apart)) == [2, 15, 29]


def test_an_estimate_states_the_table_s_own_interval():
    stated = f0_trap.estimate(table(TRAP), 15, "one_latent", "all")
    assert stated.row() == {"value": 0.01, "lo": 0.005, "hi": 0.02}
    assert stated.heaviest == 0.05


def test_few_pages_are_told_without_an_interval():
    few = table(TRAP, pages=4).assign(lo=np.nan, hi=np.nan)
    assert f0_trap.side_by_side(few).loc[(15, "pca"), "all"] == "0.3 (no interval)"
    assert f0_trap.finding(few, 15, 32, "p").verdict == "undecided"
    assert "(no interval: 4 test pages, and 5 or more have one)" in f0_trap.sentence(few, 15, 32)


def test_sentences_speak_of_an_inverted_site_where_the_middle_one_is_none():
    errors = pd.concat([table(NO_SINKS, sites=(2, 15)), table(TRAP, sites=(29,))])
    assert f0_trap.shown_site(errors, 15) == 29
    assert f0_trap.shown_site(table(TRAP), 15) == 15
    assert f0_trap.shown_site(table(NO_SINKS), 15) == 15


def test_no_sentence_claims_a_trap_where_there_is_none():
    errors = table(NO_SINKS)
    assert "says little" in f0_trap.abstract(table(TRAP), 15, 0.008)
    assert "says little" not in f0_trap.abstract(errors, 15, 0.008)
    assert f0_trap.title(errors) != f0_trap.title(table(TRAP))
    assert f0_trap.title(errors) == "At no site are the oracle and PCA clearly ordered oppositely"
    assert "oppositely, by disjoint intervals" in f0_trap.abstract(errors, 15, 0.008)
    assert "inverted at sites: none" in f0_trap.sentence(errors, 15, 32)


@pytest.mark.parametrize("values", [TRAP, NO_SINKS])
def test_every_text_calls_the_one_latent_an_oracle(values):
    errors = table(values)
    fig = f0_trap.figure(errors, 32, 0.008, "m")
    result = f0_trap.finding(errors, 15, 32, "p")
    claims = [claim for _, claim in f0_trap.checks(errors, 15, 32) if "one-latent" in claim]
    texts = [fig.get_suptitle(), fig.get_supxlabel(), result.rule, result.sentence, *claims]
    texts += [f0_trap.abstract(errors, 15, 0.008)]
    assert all("oracle" in text.lower() for text in texts)
    assert len(fig.get_suptitle().split()) <= 12


def test_the_table_to_read_has_a_row_per_site_and_predictor_with_intervals():
    shown = f0_trap.side_by_side(table(TRAP))
    assert len(shown) == 12
    assert shown.loc[(15, "one_latent"), "all"] == "0.01 [0.005, 0.02]"


def test_the_checks_hold_on_a_trap_and_not_without_one():
    assert all(
        holds
        for holds, _ in f0_trap.checks(
            table(TRAP | {("sinks_only", "all"): (0.003, 0.002, 0.004)}), 15, 32
        )
    )
    assert not all(holds for holds, _ in f0_trap.checks(table(NO_SINKS), 15, 32))


def test_the_share_told_to_the_oracles_is_that_of_test_tokens_which_are_no_ordinary_ones(tmp_path):
    x = make_x()
    x[SITES[0]][15] *= 1e3  # a sink at one site: neither first nor, here or there, ordinary
    # the test page has contexts of 4 and 5 tokens, rows 10 to 18
    store = make_store(tmp_path / "s", x)
    assert f0_trap.share_of_tokens(store) == pytest.approx(3 / 9)


def test_the_errors_are_of_four_predictors_fitted_on_training_and_measured_on_test_rows(tmp_path):
    x = make_x()
    x[SITES[0]][15] *= 30  # a sink on the test page, at one site
    x[SITES[1]][4] *= 30  # and one on a training page, at the other
    store = make_store(tmp_path / "s", x)
    table = f0_trap.errors(store, 2)
    assert table["site"].unique().tolist() == list(SITES)
    found = table.set_index(["site", "predictor", "class"])["fvu"]
    assert len(found) == len(SITES) * len(PREDICTORS) * 2
    ordinary = store.mask("ordinary")
    for site, tokens in itertools.product(SITES, ("all", "ordinary")):
        rows = x[site].double()
        known = rows[store.mask("ordinary", "train")]
        mean = known.mean(0)
        special = rows[store.mask("all", "train") & ~ordinary].mean(0)
        v = torch.linalg.svd(known - mean, full_matrices=False)[2][:2].T
        chosen = store.mask(tokens, "test")
        y = rows[chosen]
        told = torch.from_numpy(~ordinary[chosen])[:, None]
        rebuilt = {
            "mean": mean.expand_as(y),
            "one_latent": torch.where(told, special, mean),
            "sinks_only": torch.where(told, y, mean),
            "pca": mean + (y - mean) @ v @ v.T,
        }
        scatter = (y - y.mean(0)).square().sum()
        for predictor, guess in rebuilt.items():
            expected = float((y - guess).square().sum() / scatter)
            assert found[site, predictor, tokens] == pytest.approx(expected, rel=1e-5)
