"""The index of features against a plain computation on dense codes, and what it refuses."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from helpers.features import DEAD, N_LATENTS, Naive, make_sae
from helpers.folders import all_bytes
from helpers.models import VOCABULARY
from helpers.random_stores import make_store
from helpers.sealing import flip
from safetensors.numpy import load_file

from saelib.config import ConfigError
from saelib.measure.features import FeatureIndex, IndexOptions, build, build_index, codes
from saelib.measure.features.columns import TABLE
from saelib.measure.features.contexts import KINDS, TRIES, priorities
from saelib.sae import ARCHITECTURES
from saelib.seal import SealError

OPTIONS = IndexOptions(contexts=3, token_types=4, vocabulary=5, neighbours=4, batch=37)


@pytest.fixture(scope="module", params=["sae", "gated"])
def sae(store, request):
    return make_sae(store, request.param)


@pytest.fixture(scope="module")
def naive(sae, store):
    return Naive(sae, store)


@pytest.fixture(scope="module")
def index(sae, store, lm, tmp_path_factory):
    # a block of a few entries: several blocks and several groups of latents
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codes, "BLOCK", 100)
        return build_index(
            sae, store, lm, tmp_path_factory.mktemp("index") / "it", options=OPTIONS, revived=[3]
        )


def test_the_case_is_rich(naive):
    fired = (naive.g > 0).sum(0)
    assert fired.max() > 60
    assert fired[DEAD] == 0
    assert (fired > 0).sum() > 40
    assert 0 < naive.ordinary.sum() < len(naive.rows)
    assert (~naive.first & ~naive.ordinary).any()


@pytest.mark.parametrize("with_model", [False, True])
def test_the_forecast_grows_with_rows_latents_and_words(sae, store, lm, monkeypatch, with_model):
    """Two seconds for the first rows, on each of which three latents fire."""
    ticks = iter([10.0, 12.0])

    def entries(sae, x):
        fired = np.zeros(3 * len(x), dtype=np.int64)
        return fired, fired, fired.astype(np.float32)

    monkeypatch.setattr(build, "TRIED", 8)
    monkeypatch.setattr(build, "entries", entries)
    monkeypatch.setattr(build.time, "perf_counter", lambda: next(ticks))
    seconds = build.forecast(sae, store, lm if with_model else None, OPTIONS)
    rows = int(store.mask("all", OPTIONS.split).sum())
    columns = rows + N_LATENTS + (VOCABULARY if with_model else 0)
    by_hand = build.PRODUCTS * (2 / 8) * columns + build.SECONDS_PER_CODE * 3 * rows
    assert seconds == pytest.approx(by_hand)


def test_the_details_are_what_the_table_has_no_room_for(index):
    details = load_file(index.folder / "details.safetensors")
    assert "contexts" in " ".join(details)
    assert all(len(values) == N_LATENTS for values in details.values())
    assert all(values.ndim > 1 for values in details.values())


def test_groups_of_latents_hold_a_block_of_entries_or_one_latent(tmp_path, monkeypatch):
    monkeypatch.setattr(codes, "BLOCK", 6)
    counts = [3, 3, 2, 9, 1, 0, 5, 4]  # entries of each latent, the n-th row's first
    latents = np.repeat(np.arange(8), counts)
    rows = np.concatenate([np.arange(count) for count in counts])
    with codes.CodeSpool(8, tmp_path) as spool:
        for row in range(9):
            chosen = latents[rows == row]
            values = (10 * chosen + row).astype(np.float32)
            spool.add(np.full(len(chosen), row), chosen, values)
        groups = dict(spool.groups())
    # 3 + 3 | 2 | 9, more than a block | 1 + 0 + 5 | 4
    assert {first: group.counts.tolist() for first, group in groups.items()} == {
        0: [3, 3],
        2: [2],
        3: [9],
        4: [1, 0, 5],
        7: [4],
    }
    for first, group in groups.items():
        own = np.repeat(np.arange(first, first + len(group.counts)), group.counts)
        assert (group.values == 10 * own + group.rows).all()


def test_the_table_holds_what_dense_codes_say(index, naive):
    table = index.table
    assert [column.name for column in TABLE] == list(table)[: len(TABLE)]
    n = naive.ordinary.sum()
    for j in range(N_LATENTS):
        row = table.loc[j]
        values = naive.g[:, j][naive.g[:, j] > 0]
        assert row["n_fired"] == len(values)
        assert row["density"] == len(values) / n
        assert row["max"] == pytest.approx(values.max(initial=0), rel=1e-4)
        mean = values.mean() if len(values) else math.nan
        assert row["mean"] == pytest.approx(mean, rel=1e-4, nan_ok=True)
        assert row["dead"] == (len(values) == 0)
        assert row["revived"] == (j == 3)
        shares = {name: row[f"share_{name}"] for name in ("first", "sink", "ordinary")}
        assert shares == pytest.approx(naive.kinds(j), nan_ok=True)
    assert table.loc[DEAD, ["max_token_id", "top_token_id"]].tolist() == [-1, -1]
    assert table["dead"].dtype == bool


def test_token_types_and_how_concentrated_they_are(index, naive):
    for j in range(N_LATENTS):
        masses = naive.masses(j)
        record = index.latent(j)
        expected = sorted(masses, key=lambda token: (-masses[token], token))[:4]
        if not masses:
            assert record.token_types == []
            assert math.isnan(record.facts["n_types"])
            continue
        assert [kind.token_id for kind in record.token_types] == expected
        for kind in record.token_types:
            assert kind.count == ((naive.token == kind.token_id) & (naive.g[:, j] > 0)).sum()
            # a small code is the difference of larger numbers, whose rounding depends on the CPU
            assert kind.count * kind.mean == pytest.approx(masses[kind.token_id], rel=1e-4)
        p = np.array(list(masses.values())) / sum(masses.values())
        assert record.facts["concentration"] == pytest.approx(p.max(), rel=1e-5)
        assert record.facts["n_types"] == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-5)
        assert record.facts["top_token_id"] == expected[0]
        assert record.facts["max_token_id"] == naive.token[naive.g[:, j].argmax()]


def test_histograms_count_each_firing(index, naive):
    for j in range(N_LATENTS):
        edges, counts = index.latent(j).histogram
        values = naive.g[:, j][naive.g[:, j] > 0]
        expected, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
        assert counts.sum() == len(values)
        assert np.abs(counts - expected).sum() <= 2  # a value on an edge, by rounding


def test_codes_are_the_dense_ones(index, naive):
    for j in range(N_LATENTS):
        rows, values = index.firing(j)
        assert rows.tolist() == np.flatnonzero(naive.g[:, j] > 0).tolist()
        np.testing.assert_allclose(values, naive.g[rows, j], rtol=1e-4, atol=1e-5)
    row = int(naive.ordinary.nonzero()[0][5])
    latents, values = index.firing_on(row)
    assert sorted(latents.tolist()) == np.flatnonzero(naive.g[row] > 0).tolist()
    np.testing.assert_allclose(values, naive.g[row, latents], rtol=1e-4, atol=1e-5)
    assert (np.diff(values) <= 0).all()


def test_the_strongest_contexts_are_on_top_and_each_stands_once(index, naive):
    for j in range(N_LATENTS):
        peaks = naive.peaks(j)
        contexts = index.latent(j).contexts
        strongest = sorted(peaks, key=lambda c: -peaks[c][0])[:3]
        assert [w.context for w in contexts["top"]] == strongest
        shown = [w.context for kind in KINDS[:3] for w in contexts[kind]]
        assert len(shown) == len(set(shown))
        assert not {w.context for w in contexts["off"]} & set(peaks)


def test_middle_and_low_are_drawn_from_their_thirds_by_the_hash(index, naive):
    seen = set()
    for j in range(N_LATENTS):
        peaks = naive.peaks(j)
        if not peaks:
            continue
        largest = max(value for value, _ in peaks.values())
        rest = sorted(peaks, key=lambda c: -peaks[c][0])[3:]
        for kind, low, high in (("middle", 1 / 3, 2 / 3), ("low", 0, 1 / 3)):
            inside = [c for c in rest if low < peaks[c][0] / largest <= high]
            keys = {
                c: int(priorities(0, np.array([j]), np.array([peaks[c][1]]))[0]) for c in inside
            }
            expected = sorted(inside, key=keys.get)[:3]
            assert [w.context for w in index.contexts(j, kind)] == expected
            seen |= {kind} if expected else set()
    assert seen == {"middle", "low"}


def test_windows_hold_tokens_and_activations(index, naive, store):
    for j in (0, 5, 20):
        for window in index.contexts(j, "top", width=4):
            whole = np.flatnonzero(naive.context == window.context)
            row = whole[window.position]
            shown = np.arange(max(whole[0], row - 4), min(whole[-1], row + 4) + 1)
            assert window.token_ids.tolist() == naive.token[shown].tolist()
            expected = np.where(naive.ordinary[shown], naive.g[shown, j], np.nan)
            np.testing.assert_allclose(window.activations, expected, rtol=1e-4, atol=1e-5)
            assert window.activation == pytest.approx(naive.g[row, j], rel=1e-4)
            page = store.tokens["page"][naive.rows[row]]
            assert window.title == store.page_titles[page]


def test_off_contexts_are_ordinary_tokens_of_many_contexts(index):
    assert TRIES * OPTIONS.contexts < index.manifest["n_contexts"]
    chosen = [w for j in range(30, N_LATENTS) for w in index.contexts(j, "off")]
    assert len(chosen) == 3 * (N_LATENTS - 30)
    assert len({w.context for w in chosen}) > 20
    assert all(w.activation == 0 for w in chosen)


def test_a_build_depends_on_neither_batch_nor_block(index, sae, store, lm, tmp_path):
    other = build_index(sae, store, lm, tmp_path / "b", options=OPTIONS, revived=[3])
    for name in ("codes.safetensors", "details.safetensors", "tokens.safetensors"):
        a = load_file(index.folder / name)
        b = load_file(other.folder / name)
        assert a.keys() == b.keys()
        for key, values in a.items():
            assert np.array_equal(values, b[key]), (name, key)
    assert (index.folder / "latents.csv").read_bytes() == (tmp_path / "b/latents.csv").read_bytes()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_has_an_index(arch, store, tmp_path):
    sae = make_sae(store, arch)
    index = build_index(sae, store, None, tmp_path / "i", options=OPTIONS)
    naive = Naive(sae, store)
    assert index.table["n_fired"].tolist() == (naive.g > 0).sum(0).tolist()
    assert (index.table["promoted_id"] == -1).all()
    assert index.latent(0).promoted == []


def test_revived_latents_are_read_beside_the_folder(sae, store, tmp_path):
    events = [{"revived": [1, 4]}, {"revived": [4, 7]}]
    (tmp_path / "events.json").write_text(json.dumps(events))
    index = build_index(sae, store, None, tmp_path / "features", options=OPTIONS)
    assert np.flatnonzero(index.table["revived"]).tolist() == [1, 4, 7]


def test_it_is_opened_again_and_says_what_it_is(index, sae, store, lm):
    again = FeatureIndex.open(index.folder, sae)
    assert again.table.equals(index.table)
    manifest = again.manifest
    assert manifest["model_id"] == lm.model_id
    assert manifest["corpus_id"] == store.corpus_id
    assert (manifest["source"], manifest["site"]) == ("test", sae.config.site)
    assert again.options == OPTIONS
    assert max(index.tokens.token_id) < VOCABULARY


def test_an_index_of_another_sae_is_refused(index, store, sae):
    other = make_sae(store, sae.config.arch, seed=5)
    with pytest.raises(ValueError, match=r"index\.json is an index of SAE .*, not of this one"):
        FeatureIndex.open(index.folder, other)
    moved = make_sae(store, sae.config.arch)
    moved.set_normalizer_(moved.mean, 2 * float(moved.scale))
    with pytest.raises(ValueError, match="not of this one"):
        FeatureIndex.open(index.folder, moved)


def test_a_folder_without_an_index_or_of_another_version_is_refused(sae, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"index\.json is missing"):
        FeatureIndex.open(tmp_path, sae)
    (tmp_path / "index.json").write_text('{"version": 99}')
    with pytest.raises(ValueError, match="version 99, expected 1"):
        FeatureIndex.open(tmp_path, sae)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(ValueError, match=r"index\.json: damaged"):
        FeatureIndex.open(tmp_path, sae)


READ = {  # file -> reading it by the index
    "index.json": lambda index: None,
    "latents.csv": lambda index: index.table,
    "tokens.safetensors": lambda index: index.tokens,
    "codes.safetensors": lambda index: index.firing(0),
    "details.safetensors": lambda index: index.context_rows(0, "top"),
}


@pytest.mark.parametrize("name", READ)
def test_a_flipped_bit_of_an_index_is_refused_by_the_file_s_name(index, tmp_path, name):
    folder = tmp_path / "features"
    shutil.copytree(index.folder, folder)
    flip(folder / name, byte=(folder / name).stat().st_size // 2)
    with pytest.raises(SealError, match=rf"{folder / name}: damaged, sha256 .*; delete its folder"):
        READ[name](FeatureIndex.open(folder, index.sae))


@pytest.mark.parametrize("latent", [-1, N_LATENTS, 99999])
def test_a_latent_out_of_range_is_refused(index, latent):
    for ask in (index.latent, index.firing):
        with pytest.raises(ConfigError, match=f"latent {latent}: this SAE has the latents 0 to"):
            ask(latent)
    with pytest.raises(ValueError, match=r"kind = 'best': expected one of top, middle"):
        index.contexts(0, "best")
    with pytest.raises(ValueError, match="row -1: expected 0 to"):
        index.firing_on(-1)


def test_what_does_not_fit_is_refused_and_leaves_nothing(store, lm, tmp_path):
    narrow = make_store(tmp_path / "narrow")
    with pytest.raises(ValueError, match="width d_in = 32 does not fit activations of width 6"):
        build_index(make_sae(store), narrow, None, tmp_path / "i")
    elsewhere = make_sae(store)
    object.__setattr__(elsewhere.config, "site", 3)
    with pytest.raises(ValueError, match="SAE of site 3 does not fit activations of sites"):
        build_index(elsewhere, store, None, tmp_path / "i")
    other = type(lm)(lm.model, None, "another")
    with pytest.raises(ValueError, match="is not that of the tokens"):
        build_index(make_sae(store), store, other, tmp_path / "i")
    assert not (tmp_path / "i").exists()


def test_a_build_that_fails_leaves_the_former_index(store, sae, tmp_path, monkeypatch):
    index = build_index(sae, store, None, tmp_path / "i", options=OPTIONS)
    before = all_bytes(index.folder)

    def fail(*_):
        raise RuntimeError("no disk")

    monkeypatch.setattr("saelib.measure.features.build.write_latents", fail)
    with pytest.raises(RuntimeError, match="no disk"):
        build_index(sae, store, None, tmp_path / "i", options=IndexOptions(contexts=1))
    assert all_bytes(tmp_path / "i") == before
    assert [path.name for path in tmp_path.iterdir()] == ["i"]


def test_an_empty_split_is_refused(store, sae, tmp_path, monkeypatch):
    monkeypatch.setitem(store.tokens, "split", np.zeros_like(store.tokens["split"]))
    with pytest.raises(ValueError, match="test: no ordinary token to index"):
        build_index(sae, store, None, tmp_path / "i")
    assert not (tmp_path / "i").exists()


def test_weights_stay_as_they_are(sae, store, tmp_path):
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    build_index(sae, store, None, tmp_path / "i", options=OPTIONS)
    assert all(torch.equal(tensor, sae.state_dict()[name]) for name, tensor in before.items())
