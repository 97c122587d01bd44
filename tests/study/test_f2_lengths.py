"""The two Gated losses at several lengths of training."""

import pytest
from helpers.f2_cases import ONE_SEED, UNREACHED, PowerLaws, estimate, params

from saelib.study import f2_gated, f2_lengths
from saelib.study.estimate import constant


@pytest.fixture
def p():
    return params("03_train_gated", tokens=1024, batch_size=100, lengths=[0.5, 1.0], seeds=[0, 1])


def lengths_of(short, whole):
    """Lengths at which two-term over full is `short` at half the tokens, `whole` at all of them."""
    log_fvu = {("plain", share): constant(0.0) for share in (0.5, 1.0)}
    log_fvu |= {("full", share): constant(0.0) for share in (0.5, 1.0)}
    log_fvu |= {("two_term", 0.5): short.log(), ("two_term", 1.0): whole.log()}
    return f2_lengths.Lengths({}, log_fvu, {0.5: 500, 1.0: 1000})


def test_lengths_are_whole_batches(p):
    assert f2_lengths.tokens_of_length(p, 0.5) == 500
    assert f2_lengths.tokens_of_length(p, 1.0) == 1000


def test_the_trend_is_of_the_longest_training_over_the_shortest():
    lengths = lengths_of(constant(1.2), constant(1.5))
    assert lengths.trend.value == pytest.approx(1.5 / 1.2)
    log_fvu = lengths.log_fvu | {(arm, 2.0): constant(0.0) for arm in ("full", "two_term")}
    longer = lengths._replace(log_fvu=log_fvu, tokens={2.0: 2000} | lengths.tokens)
    assert longer.trend.value == pytest.approx(1 / 1.2)  # two-term over full is 1 there


def test_other_lengths_begin_where_the_whole_length_brackets_the_l0(p):
    ws = PowerLaws()
    runs = f2_gated.train(ws, p)
    curves = f2_lengths.train(ws, p, runs)
    assert len(curves) == 3 * 2 * 2
    short = curves["plain", 0.5, 0].rows["lambda"].tolist()
    assert short == curves["plain", 1.0, 0].bracket(p.length_l0)
    tokens = {spec.train.tokens for spec in ws.trained.values()}
    assert tokens == {500, 1000, 1024}


def test_single_seeds_are_shown_for_the_gated_arms_and_the_lengths_asked_for(p):
    lengths = f2_lengths.match(p, f2_lengths.train(PowerLaws(), p))
    table = f2_lengths.seed_table(lengths)
    assert len(table) == 2 * 2 * 2
    assert set(table["hue"]) == {"two_term", "full"}
    assert list(f2_lengths.shown_table(lengths).index) == ["500", "1,000"]


@pytest.mark.parametrize(
    ("short", "whole", "title"),
    [
        (1.0, 1.1, "The two-term loss falls behind the longer it is trained"),
        (1.1, 1.0, "The two-term loss catches up the longer it is trained"),
        (1.0, 1.01, "Longer training does not part the two Gated losses"),
    ],
)
def test_the_title_says_where_the_losses_go(short, whole, title):
    lengths = lengths_of(constant(short), constant(whole))
    assert f2_lengths.title(lengths, 0.03, 32.0) == title


def test_the_title_says_what_stays_unclear_or_unreached():
    unclear = lengths_of(constant(1.0), estimate(1.0, 0.9, 1.1))
    assert "stays unclear" in f2_lengths.title(unclear, 0.03, 32.0)
    missing = lengths_of(constant(1.0), UNREACHED)
    assert f2_lengths.title(missing, 0.03, 32.0) == "L0 = 32 is not reached at every length"
    one = missing._replace(tokens={1.0: 1000})
    assert f2_lengths.title(one, 0.03, 32.0).startswith("One length of training")


def test_a_length_without_the_l0_is_left_out_of_the_sentence():
    missing = lengths_of(constant(1.05), UNREACHED)
    assert f2_lengths.sentence(missing, 32.0).endswith("1.05 after 500 tokens.")
    nowhere = lengths_of(UNREACHED, UNREACHED)
    assert f2_lengths.sentence(nowhere, 32.0).endswith("nowhere reached.")


def test_the_figure_is_drawn_where_a_length_is_unreached(p):
    figure = f2_lengths.figure(lengths_of(constant(1.05), UNREACHED), p, 15, ONE_SEED)
    assert len(figure.get_suptitle().split()) <= 12
