"""Estimates with their replicates: by hand where pages are few, paired where two SAEs share them."""

import numpy as np
import pandas as pd
import pytest

from saelib.measure import bootstrap
from saelib.study import intervals


def page_sums(sse, ce_sae=(3.0, 5.0, 0.0)):
    columns = {"sse": sse, "sst": [10.0, 20.0, 30.0], "ce_n": [9, 9, 0], "ce_sae": ce_sae}
    return pd.DataFrame(
        columns | {"ce_id": [2.0, 4.0, 0.0], "ce_zero": [6.0, 6.0, 0.0], "ce_mean": [4.0, 6.0, 0.0]}
    )


def test_the_estimate_stands_before_its_replicates():
    x = intervals.ratio([1.0, 3.0], [2.0, 2.0], n=200)
    assert x[0] == 1.0
    assert set(x[1:]) == {0.5, 1.0, 1.5}  # the first page twice, one of each, the second twice
    assert len(x) == 201


def test_samples_of_proportional_pages_are_constant_and_paired():
    assert intervals.samples(page_sums([1.0, 2.0, 3.0]), n=50) == pytest.approx(np.full(51, 0.1))
    some, twice = (
        intervals.samples(page_sums(k * np.array([1.0, 9.0, 2.0])), n=50) for k in (1, 2)
    )
    assert some.std() > 0.01
    assert twice / some == pytest.approx(np.full(51, 2.0))


def test_samples_of_loss_recovered_leave_out_pages_without_a_measured_loss():
    recovered = intervals.samples(page_sums([1.0, 2.0, 3.0]), "loss_recovered", n=200)
    assert recovered[0] == pytest.approx(4 / 6)
    assert set(recovered.round(9)) == {
        0.75,
        0.5,
        round(4 / 6, 9),
    }  # page 1 twice, page 2 twice, one of each
    assert intervals.samples(page_sums([1.0, 2.0, 3.0]), "loss_recovered_mean")[0] == pytest.approx(
        2 / 4
    )
    with pytest.raises(ValueError, match="column = 'l0'"):
        intervals.samples(page_sums([1.0, 2.0, 3.0]), "l0")


def test_matched_interpolates_every_draw_and_never_extrapolates():
    curve = [page_sums(fvu * np.array([10.0, 20.0, 30.0])) for fvu in (0.4, 0.1)]
    assert intervals.matched(curve, [10, 40], 20, n=20) == pytest.approx(
        np.full(21, 0.2)
    )  # log-log middle
    linear = intervals.matched(curve[:1] * 2, [10, 40], 20, "loss_recovered", n=20)
    assert linear == pytest.approx(intervals.samples(curve[0], "loss_recovered", n=20))
    assert np.isnan(intervals.matched(curve, [10, 40], 41, n=20)).all()


def test_seeds_widen_the_interval_and_pairs_of_cells_draw_the_same_seeds():
    pages = np.zeros(2001)  # no spread over pages
    one, other = ([pages + v for v in values] for values in ((1.0, 2.0, 6.0), (2.0, 3.0, 7.0)))
    x, y = intervals.over_seeds(one), intervals.over_seeds(other)
    s, student = intervals.summary(x), bootstrap.seed_interval([1, 2, 6])
    assert s["value"] == 3.0
    assert s["hi"] - s["lo"] == pytest.approx(
        student[1] - student[0], rel=0.1
    )  # where pages add nothing
    assert (y - x) == pytest.approx(np.ones(2001))
    paged = np.r_[0.0, np.random.default_rng(0).normal(size=2000)]
    both = intervals.over_seeds([paged + v for v in (1.0, 2.0, 6.0)])
    assert both[1:].var() == pytest.approx(1 + x[1:].var(), rel=0.1)  # the two spreads add
    alone = np.arange(2001.0)
    assert np.array_equal(intervals.over_seeds([alone]), alone)


def test_summary_is_the_percentile_interval_and_nothing_where_there_is_no_estimate():
    x = np.r_[5.0, np.arange(1001.0)]
    assert intervals.summary(x) == {"value": 5.0, "lo": 25.0, "hi": 975.0}
    assert np.isnan(list(intervals.summary(np.full(5, np.nan)).values())).all()


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.5, 0.8, "lower"),
        (1.2, 1.5, "higher"),
        (0.95, 1.05, "equal"),
        (0.5, 1.05, "not higher"),
        (0.95, 1.5, "not lower"),
        (0.5, 1.5, "unclear"),
        (np.nan, np.nan, "unreachable"),
    ],
)
def test_words_about_a_band(low, high, word):
    x = np.r_[(low + high) / 2, np.linspace(low, high, 1000)]
    assert intervals.words(x, 1.0, 0.1) == word


def test_a_majority_is_more_than_half_of_all_cells():
    yes, no = {"higher"}, {"lower", "equal", "not higher"}
    assert intervals.majority(["higher", "higher", "unclear"], yes, no) == "replicates"
    assert intervals.majority(["lower", "equal", "higher"], yes, no) == "does not replicate"
    assert intervals.majority(["higher", "unclear"], yes, no) == "cannot tell"
    assert intervals.majority([], yes, no) == "cannot tell"


def test_fewer_than_two_pages_give_an_estimate_without_an_interval():
    one = page_sums([1.0, 2.0, 3.0]).head(1)
    x = intervals.samples(one)
    assert intervals.summary(x)["value"] == 0.1
    assert np.isnan([intervals.summary(x)[end] for end in ("lo", "hi")]).all()
    assert intervals.words(x, 0.5, 0.0) == "unclear"
    nothing = intervals.samples(one.assign(ce_n=0), "loss_recovered")
    assert np.isnan(nothing).all()
    assert intervals.words(nothing, 0.5, 0.0) == "unreachable"


def test_a_draw_of_pages_without_variance_is_left_out_of_the_interval():
    x = intervals.ratio([1.0, 0.0], [2.0, 0.0], n=500)  # the second page twice: 0 / 0
    assert np.isnan(x).any()
    assert intervals.summary(x) == {"value": 0.5, "lo": 0.5, "hi": 0.5}
