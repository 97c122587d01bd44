"""Without a kernel the browser is HTML without script: computed, escaped, the same each time."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers.features import DEAD
from helpers.lenses import make_lens, model_and_store

from saelib.measure.features import FeatureIndex
from saelib.show import tokens
from saelib.show.explore import records, static

HOSTILE = "<script>alert(1)</script>"
FACTS = {"site": 2, "l0": 12.25, "fvu": float("nan"), "tokens_trained": 204_800, "schedule": "<i>"}


class Reader(HTMLParser):
    """Tags and text of a page; every tag must be closed."""

    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.open = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def lens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("static")
    return make_lens(*model_and_store(folder), folder)


def page_of(lens, latent=None):
    return static.static_html(lens.index, lens.lm.tokenizer, f"mine {HOSTILE}", FACTS, latent)


def test_latents_near_the_usual_density_are_listed_nearest_first():
    density = np.array([0.0, 3e-3, 0.9, 1e-3, 2e-2])
    assert static.moderate_latents(density, 3) == [1, 3, 4]
    assert static.moderate_latents(np.zeros(3)) == []


def test_the_page_says_what_the_index_says(lens):
    table = lens.index.table
    listed = static.moderate_latents(table["density"].to_numpy())
    text = Reader(page_of(lens)).text
    assert f"48 latents, {table['dead'].sum()} of them dead" in text
    assert "L0 (active latents a token) 12.25 · FVU – · training tokens 204,800" in text
    assert f"Latent {listed[0]} fires on {100 * table['density'][listed[0]]:.3g} % of" in text
    assert len(listed) <= static.TABLE_ROWS
    for latent in listed:
        token = table["top_token"][latent]
        assert (f"{latent}‘{token}’" if token else f"{latent}–") in text
    assert "Latent 7 fires on" in Reader(page_of(lens, 7)).text


def test_tokens_are_shaded_on_one_scale_for_the_sae(lens):
    full = records.reference_activation(lens.index)
    weak, strong = (
        lens.index.table["max"].where(~lens.index.table["dead"]).idxmin(),
        lens.index.table["max"].idxmax(),
    )
    for latent in (weak, strong):
        peak = lens.index.latent(latent).contexts["top"][0].activation
        back, _ = tokens.shade(min(1.0, peak / full))
        page = static.latent_html(lens.index, latent, lens.lm.tokenizer)
        outlined = re.findall(r"background:(#\w+);color:#\w+;outline", page)
        assert outlined[0] == back
    assert tokens.shade(1.0)[0] in static.latent_html(lens.index, strong, lens.lm.tokenizer)


def test_a_dead_latent_has_a_sentence_and_no_contexts(lens):
    page = static.latent_html(lens.index, DEAD, lens.lm.tokenizer)
    assert f"Latent {DEAD} fires on none of" in Reader(page).text
    assert "outline" not in page
    with pytest.raises(ValueError, match="latent 48: this SAE has the latents 0 to 47"):
        static.latent_html(lens.index, 48, lens.lm.tokenizer)


def test_texts_of_documents_are_escaped_and_nothing_is_loaded(lens, monkeypatch):
    monkeypatch.setattr(records, "token_pieces", lambda _, ids: [f"{HOSTILE}\n"] * len(ids))
    monkeypatch.setattr(type(lens.index), "text", lambda *_: HOSTILE)
    index = FeatureIndex.open(lens.features, lens.sae)
    index.tokens.titles = (HOSTILE,) * len(index.tokens.titles)
    reader = Reader(static.static_html(index, lens.lm.tokenizer, HOSTILE, FACTS))
    names = {tag for tag, _ in reader.tags}
    assert names == {"div", "p", "b", "br", "table", "tr", "th", "td", "span"}
    assert reader.text.count(HOSTILE) > 20
    attributes = {name for _, attrs in reader.tags for name in attrs}
    assert attributes <= {"style", "title"}


def test_it_is_the_same_each_time(lens):
    assert page_of(lens) == page_of(lens)
