"""What the browser is given equals the index, in plain values that JSON and a byte array hold."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers.features import DEAD, N_LATENTS, make_sae
from helpers.models import tiny_llama
from helpers.stores import write_store
from helpers.texts import word_tokenizer

from saelib.measure.features import IndexOptions, build_index
from saelib.show.explore import records

OPTIONS = IndexOptions(contexts=3, token_types=4, vocabulary=5, neighbours=4)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    lm = tiny_llama()
    lm.tokenizer = word_tokenizer()
    store = write_store(lm, folder / "store")
    return build_index(make_sae(store), store, lm, folder / "index", options=OPTIONS)


def test_the_table_s_bytes_are_its_columns(index):
    content, buffers = records.table_view(index)
    json.dumps(content, allow_nan=False)
    names = [column["name"] for column in content["numbers"]]
    assert names == list(records.NUMBERS)
    for name, buffer in zip(names, buffers, strict=False):
        values = np.frombuffer(buffer, "<f4")
        expected = index.table[name].to_numpy(np.float32)
        np.testing.assert_array_equal(values, expected)
    types = np.frombuffer(buffers[len(names)], "<i4").reshape(N_LATENTS, -1)
    first = [content["texts"].get(str(token), "") for token in types[:, 0]]
    assert first == index.table["top_token"].tolist()
    assert types.shape[1] == content["tokens"][0]["width"]
    assert len(buffers) == len(names) + len(content["tokens"])


def test_further_columns_stand_beside_the_index_s_own(index):
    more = pd.DataFrame({"twin": np.linspace(0, 1, N_LATENTS)}).rename_axis("latent")
    more.attrs["labels"] = {"twin": "cosine with its twin"}
    content, buffers = records.table_view(index, more)
    place = [column["name"] for column in content["numbers"]].index("twin")
    assert content["numbers"][place]["label"] == "cosine with its twin"
    np.testing.assert_allclose(np.frombuffer(buffers[place], "<f4"), more["twin"], rtol=1e-6)


def test_a_latent_s_page_is_its_record(index):
    latent = int(index.table["n_fired"].idxmax())
    view = records.latent_view(index, latent, word_tokenizer())
    json.dumps(view, allow_nan=False)
    record = index.latent(latent)
    top = record.contexts["top"][0]
    shown = view["contexts"]["top"][0]
    assert shown["activations"][shown["peak"]] == pytest.approx(top.activation, rel=1e-3)
    missing = [value is None for value in shown["activations"]]
    assert missing == np.isnan(top.activations).tolist()
    assert len(shown["tokens"]) == len(shown["activations"])
    assert sum(view["histogram"]["counts"]) == index.table["n_fired"][latent]
    assert [scored["latent"] for scored in view["nearest"]] == [n for n, _ in record.nearest]
    assert view["types"][0]["text"] == index.table["top_token"][latent]


def test_a_dead_latent_has_a_page_without_contexts(index):
    view = records.latent_view(index, DEAD, word_tokenizer())
    assert view["facts"]["dead"] is True
    assert view["facts"]["mean"] is None
    assert view["contexts"]["top"] == []


def test_one_colour_scale_serves_all_latents(index):
    living = index.table[~index.table["dead"]]
    about = records.about(index, "an SAE", {"l0": np.float64(31.23456), "note": ""})
    assert about["reference"] == pytest.approx(living["max"].median(), rel=1e-3)
    assert about["facts"] == {"l0": 31.23, "note": ""}
    assert about["n_dead"] == int(index.table["dead"].sum())


def test_a_latent_out_of_range_is_refused(index):
    with pytest.raises(
        ValueError, match=f"latent {N_LATENTS}: this SAE has the latents 0 to {N_LATENTS - 1}"
    ):
        records.latent_view(index, N_LATENTS, word_tokenizer())
