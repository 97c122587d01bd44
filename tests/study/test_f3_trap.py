"""What is said of sinks, on models that have them and on models that do not."""

import numpy as np
import pandas as pd
import pytest
from helpers.f3_cases import COMPARED, SCOPE
from helpers.f3_results import class_table

from saelib.measure import geometry
from saelib.study import f3_trap


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
