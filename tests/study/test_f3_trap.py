"""What is said of sinks, on models that have them and on models that do not."""

import numpy as np
import pandas as pd
import pytest
from helpers.f3_cases import COMPARED, SCOPE, params
from helpers.f3_results import class_table
from helpers.f3_sweeps import missing_at_32, sweep_of
from helpers.random_stores import LENGTHS, SITES, make_store, make_x

from saelib.measure import geometry
from saelib.study import f3_trap
from saelib.study.f3_sites import Compared


def test_where_sinks_hold_the_norm_the_title_warns_of_the_all_token_fvu():
    with_sinks = class_table(0.99, 0.01, 0.5)
    assert "hides how ordinary tokens are rebuilt" in f3_trap.title(with_sinks)
    assert f3_trap.checks(with_sinks)[0].endswith("at 3 of 3 sites: [2, 15, 29]")
    assert f3_trap.norm_sentence(with_sinks).startswith("First and sink tokens hold 99.0%")


def test_a_model_without_sinks_is_not_called_a_trap():
    without = class_table(0.01, 0.3, 0.31)
    assert "much the same" in f3_trap.title(without)
    assert f3_trap.checks(without) == [
        "first and sink tokens hold most of the squared norm at 0 of 3 sites"
    ]
    assert "at most 1.0%" in f3_trap.norm_sentence(without)


def test_an_sae_that_has_learned_nothing_is_not_flattered():
    assert f3_trap.checks(class_table(0.99, 0.01, 0.95))[2].endswith("at 0")


@pytest.mark.parametrize("worked", [class_table(0.99, 0.01, 0.5), class_table(0.01, 0.3, 0.31)])
def test_titles_have_at_most_twelve_words_and_numbers_stand_in_the_caption(worked):
    assert len(f3_trap.title(worked).split()) <= 12
    assert "of the tokens" in f3_trap.caption(drawn(), worked, SCOPE)


def drawn(*sink_sites):
    """Rows of the figure: all and ordinary tokens at three sites, sinks at some."""
    rows = [(site, name) for site in COMPARED.sites for name in ("all", "ordinary")]
    rows += [(site, "sink") for site in sink_sites]
    return pd.DataFrame(rows, columns=["site", "class"])


def test_the_caption_explains_sinks_where_they_are_drawn():
    words = [
        f3_trap.caption(drawn(*sites), class_table(0.99, 0.01, 0.5), SCOPE)
        for sites in [(), (15,), (2, 15, 29)]
    ]
    assert "Sink" not in words[0]
    assert words[1].endswith("Sink: first and sink tokens, where there are 50 or more.")
    assert words[2].endswith("Sink: first and sink tokens.")


def profile(classes):
    """A site profile of one site: class -> (count, norm_share, mean_share)."""
    names = ["count", "norm_share", "mean_share", "norm_median"]
    rows = [("all", 100, 1.0, 0.2, 1.0), *((c, *v, 1.0) for c, v in classes.items())]
    frame = pd.DataFrame(rows, columns=["class", *names])
    return frame.assign(site=2)


def test_class_means_explain_what_lies_between_classes(monkeypatch):
    made = profile({"first": (1, 0.9, 1.0), "ordinary": (99, 0.1, 0.0)})
    monkeypatch.setattr(geometry, "site_profile", lambda store, split: made)
    original = pd.DataFrame({"fvu_all": [0.1], "fvu": [0.5], "l0": [9.0]}, index=[2])
    result = f3_trap.class_table(None, original, f3_trap.Compared((2,)))
    assert result.loc[2, "share of tokens"] == 0.01
    assert result.loc[2, "share of squared norm"] == 0.9
    # the first tokens are one vector; of the ordinary ones nothing is explained: 0.1 of 0.8
    assert result.loc[2, "class means, all"] == pytest.approx(0.125)


def test_a_model_without_first_or_sink_tokens_has_shares_of_zero(monkeypatch):
    made = profile({"ordinary": (100, 1.0, 0.2)})
    monkeypatch.setattr(geometry, "site_profile", lambda store, split: made)
    original = pd.DataFrame({"fvu_all": [0.5], "fvu": [0.5], "l0": [9.0]}, index=[2])
    result = f3_trap.class_table(None, original, f3_trap.Compared((2,)))
    assert result.loc[2, ["share of tokens", "share of squared norm"]].tolist() == [0, 0]
    assert result.loc[2, "class means, all"] == pytest.approx(1.0)


def test_l0_and_norm_are_compared_from_site_to_site():
    original = pd.DataFrame({"l0": [18.0, 49.0, 491.0]}, index=[2, 15, 29])
    lines = f3_trap.l0_checks(original, np.array([70.0, 166.0, 180.0]), 576)
    assert lines[0].endswith("1 of 2 steps")
    assert lines[1].endswith("2 of 2 steps")
    assert lines[2].endswith("[29]")


# -- two recipes by token class


def test_the_median_norm_is_of_ordinary_test_tokens_at_the_compared_sites(tmp_path):
    x = {site: rows * site for site, rows in make_x().items()}
    store = make_store(tmp_path / "store", {site: heavier_first(rows) for site, rows in x.items()})
    rows = np.flatnonzero(store.mask("ordinary", "test"))
    expected = [np.median(store.rows(site, rows).norm(dim=-1)) for site in SITES]
    assert f3_trap.median_norms(store, Compared(SITES)) == pytest.approx(expected, rel=1e-3)
    assert f3_trap.median_norms(store, Compared((3,))) == pytest.approx(expected[1:], rel=1e-3)


def heavier_first(rows):
    """The same rows; those that begin a context are ten times as long."""
    rows = rows.clone()
    rows[np.cumsum([0, *LENGTHS[:-1]])] *= 10
    return rows


def reported(sink=0.01):
    """Results of the original recipe at three sites."""
    columns = {"fvu_all": [0.11, 0.12, 0.13], "fvu": [0.5, 0.6, 0.7], "l0": [18.0, 49.0, 491.0]}
    return pd.DataFrame(columns | {"fvu_sink": sink}, index=list(COMPARED.sites))


def swept(seeds=(0, 1)):
    """Plain SAEs of FVU 0.2, 0.3 and 0.4 at L0 32; the second seed's is 0.1 more."""
    at_site = {2: 0.2, 15: 0.3, 29: 0.4}
    return sweep_of(lambda arm, site, seed: at_site[site] + seed / 10, seeds)


def test_both_recipes_have_their_fvu_by_class_and_the_l0_they_are_read_at():
    p = params(original_lam=5.0, l0_target=32.0)
    rows = f3_trap.by_class(p, reported(), swept(), COMPARED)
    raw, normalised = rows["recipe"].unique()
    assert raw == "original: raw, all tokens, λ = 5"
    assert normalised == "normalised, ordinary tokens, L0 = 32"
    by = rows.set_index(["recipe", "class", "site"]).sort_index()
    for name, column in {"all": "fvu_all", "ordinary": "fvu", "sink": "fvu_sink"}.items():
        assert by.loc[(raw, name), "fvu"].to_dict() == reported()[column].to_dict()
        assert by.loc[(raw, name), "l0"].to_dict() == reported()["l0"].to_dict()
        share = {"all": 0.1, "ordinary": 1.0, "sink": 0.01}[name]  # as `sweep_of` has it
        expected = {2: 0.25 * share, 15: 0.35 * share, 29: 0.45 * share}  # means over two seeds
        assert by.loc[(normalised, name), "fvu"].to_dict() == pytest.approx(expected)
        assert set(by.loc[(normalised, name), "l0"]) == {32.0}


def test_a_class_without_an_fvu_has_no_row():
    rows = f3_trap.by_class(params(), reported([np.nan, 0.02, np.nan]), swept(), COMPARED)
    sinks = rows[rows["class"] == "sink"]
    assert sinks.loc[sinks["recipe"].str.startswith("original"), "site"].tolist() == [15]
    assert sinks.loc[sinks["recipe"].str.startswith("normalised"), "site"].tolist() == [2, 15, 29]


def test_one_seed_that_does_not_reach_the_l0_leaves_no_mean():
    sweep = missing_at_32(swept(), ("plain", 15, 1))
    assert np.isnan(f3_trap.mean_at_l0(sweep, 15, 32.0))
    assert f3_trap.mean_at_l0(sweep, 15, 64.0) == pytest.approx((0.3 / 2 + 0.4 / 2) / 2)
    assert f3_trap.mean_at_l0(sweep, 29, 16.0, "fvu_all") == pytest.approx(2 * 0.45 / 10)
    rows = f3_trap.by_class(params(), reported(), sweep, COMPARED)
    normalised = rows[rows["recipe"].str.startswith("normalised")]
    assert set(normalised["site"]) == {2, 29}


def test_the_figure_has_a_panel_a_recipe_under_the_message_of_the_table():
    rows = f3_trap.by_class(params(), reported(), swept(), COMPARED)
    table = class_table(0.99, [0.01, 0.02, 0.25], 0.5)
    figure = f3_trap.figure(rows, table, SCOPE)
    message = "All-token FVU hides how ordinary tokens are rebuilt at site 2"
    assert figure.get_suptitle().replace("\n", " ") == message
    note = figure.get_supxlabel().replace("\n", " ")
    assert "Site 2: the original recipe's FVU is 50 times as large on ordinary tokens" in note
    assert "Sink: first and sink tokens." in note
    heads = [ax.get_title(loc="left").replace("\n", " ") for ax in figure.axes]
    assert heads == rows["recipe"].unique().tolist()
