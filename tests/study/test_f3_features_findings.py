"""Six latents as notebook 06 shows and keeps them: which, in which words, in which contexts."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers.f3_cases import SCOPE
from helpers.lenses import make_lens, model_and_store

from saelib.measure.features import FeatureIndex
from saelib.measure.features.contexts import ContextWindow
from saelib.measure.features.one_thing import Description, Held
from saelib.study import f3_features_findings as findings
from saelib.study.f3_features import Looked
from saelib.study.finding import read_table

PAGES = 20


def looked(shares, place=0, types=((2, 3, 4),)):
    """Latents that hold these shares of their mass, each fired fifty times."""
    n = len(shares)
    pairs = (np.repeat(np.arange(n), PAGES), np.tile(np.arange(PAGES), n))
    held = Held(
        *pairs,
        np.repeat(np.asarray(shares, float), PAGES),
        np.ones(n * PAGES),
        np.full(n, 50),
        PAGES,
    )
    description = Description(np.broadcast_to(place, n), np.resize(types, (n, 3)), np.full(n, 50))
    return Looked(description, held, np.zeros(n), None)


def index_with(**held):
    """An index that was never built, with these parts."""
    index = object.__new__(FeatureIndex)
    vars(index).update(held)
    return index


# -- which


TEXTS = {0: " war", 1: " at", 2: "peace", 3: "1945"}
TOKENIZER = SimpleNamespace(decode=lambda ids, **_: TEXTS[ids[-1] % 4])


def test_latents_of_words_are_ranked_by_share_and_rarity_at_the_token_and_beside_it():
    # two at the token, two beside it; then few types, few firings, no words, no fit
    shares = [1.0, 0.6, 0.9, 0.5, 1.0, 1.0, 1.0, 0.4]
    density = [0.1, 1e-3, 0.01, 5e-3, 1e-4, 1e-4, 1e-4, 1e-4]
    table = pd.DataFrame(
        {
            "density": density,
            "n_types": [3.0, 5, 5, 5, 2.9, 5, 5, 5],
            "n_fired": [20, 50, 50, 50, 50, 19, 50, 50],
        }
    )
    types = [[0, 2, 0]] * 6 + [[0, 1, 2], [0, 2, 0]]
    place = np.array([0, 0, 1, 2, 0, 0, 0, 0])
    ranked = findings._ranked(looked(shares, place, types), index_with(table=table), TOKENIZER)
    # share · ln(1 / density): 2.3 and 4.1 at the token, 4.1 and 2.6 beside it
    assert ranked == ([1, 0], [2, 3])


# -- in which words


WORDS = {7: " new\nline", 8: "  ", 9: " war"}


def decode(ids, clean_up_tokenization_spaces=True):
    return "cleaned up" if clean_up_tokenization_spaces else WORDS[ids[0]]


@pytest.mark.parametrize(
    ("place", "types", "words"),
    [
        (0, [9, 8, 7], "fires on ‘war’, ‘  ’, ‘new↵line’"),
        (1, [9, -1, -2], "fires before ‘war’, the context's end"),
        (2, [9, -2, -2], "fires after ‘war’"),
    ],
)
def test_a_description_is_said_in_words(place, types, words):
    one = looked([1.0, 1.0], [0, place], [[1, 1, 1], types])
    assert findings.in_words(one, 1, SimpleNamespace(decode=decode)) == words


# -- in which contexts


def window(title, peak=1, n=3):
    return ContextWindow(
        title, 0, 5, peak, np.arange(n, dtype=np.int32), np.arange(n, dtype=np.float32)
    )


@pytest.mark.parametrize(
    ("titles", "shown"),
    [("AAB", ["A 0", "B 2"]), ("ABA", ["A 0", "B 1"]), ("AAA", ["A 0", "A 1"]), ("A", ["A 0"])],
)
def test_a_second_context_is_of_another_page_where_there_is_one(titles, shown):
    asked = []

    def contexts(latent, kind):
        asked.append((latent, kind))
        return [window(title, peak=n) for n, title in enumerate(titles)]

    tokenizer = SimpleNamespace(decode=lambda ids, **_: f" t{ids[-1]}")
    views = findings._views(index_with(contexts=contexts), 7, tokenizer)
    assert [f"{view['title']} {view['peak']}" for view in views] == shown
    assert asked == [(7, "top")]


@pytest.mark.parametrize(("peak", "first", "stop"), [(3, 0, 18), (14, 0, 29), (20, 6, 35)])
def test_a_context_is_cut_fourteen_tokens_either_side_of_the_peak(peak, first, stop):
    tokens = [f"t{n}" for n in range(40)]
    view = {"peak": peak, "tokens": tokens, "activations": [n / 8 for n in range(40)]}
    shown, activations, place = findings._around(view)
    assert shown == tokens[first:stop]
    assert activations == [n / 8 for n in range(first, stop)]
    assert shown[place] == f"t{peak}"


# -- as they are shown and kept


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Indices of random SAEs at two sites, two latents that fire at each, and the tokenizer."""
    folder = tmp_path_factory.mktemp("six")
    lm, store = model_and_store(folder)
    indices = {s: make_lens(lm, store, folder / str(s), site=s).index for s in (2, 4)}
    n = indices[2].n_latents
    looks = {2: looked(np.linspace(0.5, 1, n), 0), 4: looked(np.linspace(1, 0.5, n), 1)}
    words = {s: peaks_on_words(index) for s, index in indices.items()}
    chosen = [(2, words[2][0]), (2, words[2][1]), (4, words[4][-1])]
    return chosen, looks, indices, lm.tokenizer


def peaks_on_words(index):
    """Latents whose strongest context has words before, at and after its peak."""
    found = []
    for latent in index.table.index[~index.table["dead"]]:
        top = index.contexts(latent, "top")[0]
        near = top.token_ids[top.peak - 1 : top.peak + 2] if top.peak else []
        if len(near) == 3 and all(2 <= token < 52 for token in near):  # 52 in the vocabulary
            found.append(int(latent))
    return found


def test_the_table_of_six_has_each_latent_s_own_site_context_and_numbers(case):
    chosen, looks, indices, tokenizer = case
    rows = findings.six_table(*case)
    assert list(rows) == list(findings.SIX_COLUMNS)
    assert list(zip(rows["site"], rows["latent"], strict=True)) == chosen
    for row in rows.itertuples():
        own = indices[row.site]
        line = own.table.loc[row.latent]
        top = own.contexts(row.latent, "top")[0]
        place = "before" if row.site == 4 else "on"
        assert row.description == f"fires {place} ‘w0’, ‘w1’, ‘w2’"
        assert (row.density, row.promoted) == (line["density"], line["promoted"])
        assert row.share_held == pytest.approx(looks[row.site].shares()[row.latent])
        assert row.title == top.title
        ids = top.token_ids.tolist()
        peak = tokenizer.decode([ids[top.peak]])
        assert row.peak.strip() == peak
        near = ids[max(0, top.peak - 14) : top.peak + 15]
        assert (row.before + row.peak + row.after).split() == tokenizer.decode(near).split()
        assert row.before.split() == tokenizer.decode(ids[max(0, top.peak - 14) : top.peak]).split()


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_a_card_has_its_latent_s_facts_over_two_contexts(case, monkeypatch):
    chosen, looks, indices, _ = case
    draw = findings.features.cards
    drawn = []

    def kept(cards, reference, **named):
        drawn.append((cards, reference))
        return draw(cards, reference, **named)

    monkeypatch.setattr(findings.features, "cards", kept)
    findings.six_figure(*case, SCOPE)
    ((cards, reference),) = drawn
    for (site, latent), card in zip(chosen, cards, strict=True):
        index = indices[site]
        line = index.table.loc[latent]
        share = looks[site].shares()[latent]
        place = "before" if site == 4 else "on"
        assert card.heading == f"site {site}, latent {latent}: fires {place} ‘w0’, ‘w1’, ‘w2’"
        assert card.facts.startswith(
            f"fires on {100 * line['density']:.2g} % of tokens; description holds "
            f"{100 * share:.0f} % of its activation"
        )
        assert len(card.contexts) == 2
        _, activations, peak = card.contexts[0]
        top = index.contexts(latent, "top")[0]
        assert activations[peak] == pytest.approx(top.activation, rel=1e-3)
        living = index.table.query("not dead")["max"]
        assert reference[card.heading] == pytest.approx(living.median())


@pytest.mark.parametrize(("promoted", "end"), [(" war", "; promotes ‘war’"), ("", "")])
def test_a_card_names_the_token_that_its_latent_promotes_where_one_is_known(promoted, end):
    table = pd.DataFrame({"density": [0.5, 0.0123], "promoted": ["peace", promoted]})
    index = index_with(table=table, contexts=lambda latent, kind: [window("A"), window("B")])
    card = findings._card(29, 1, looked([0.5, 0.876]), index, TOKENIZER)
    assert card.facts == (
        f"fires on 1.2 % of tokens; description holds 88 % of its activation{end}"
    )
    assert [peak for *_, peak in card.contexts] == [1, 1]


def test_the_figure_of_six_counts_what_it_shows(case):
    chosen, looks, indices, tokenizer = case
    figure = findings.six_figure(*case, SCOPE)
    assert figure.get_suptitle() == "3 latents that look like one thing, sites 2 and 4"
    assert f"site 4, latent {chosen[2][1]}: fires before ‘w0’, ‘w1’, ‘w2’" in texts(figure)
    note = figure.get_supxlabel().replace("\n", " ")
    assert "fire on 3 token types or more" in note
    assert note.endswith("a small model.")
    none = findings.six_figure([], looks, indices, tokenizer, SCOPE)
    assert none.get_suptitle() == "0 latents that look like one thing"


def test_the_six_are_kept_for_the_report(home):
    table = pd.DataFrame({"site": [2], "latent": [5], "peak": [" war"]})
    path = findings.record_six("smoke", table)
    assert path.name == "06_six_features.csv"
    pd.testing.assert_frame_equal(read_table("smoke", "06_six_features"), table)
