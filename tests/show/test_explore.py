"""The explorer on a small real store, SAEs on disk and a tokenizer: contexts, then the panel."""

import itertools
import re
import shutil
from html import unescape
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from nbclient import NotebookClient
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from saelib.activations.store import Store
from saelib.activations.writer import StoreWriter
from saelib.config import CollectConfig, SAEConfig
from saelib.sae import SAE
from saelib.show import tokens
from saelib.show.explore import panel as explore
from saelib.text.contexts import Contexts

TEXT = ["<b>Tom", " & ", "é\n", "sat", " down"]  # escaped, a character of two bytes, a line end
SITE, D, LENGTH = 1, 4, 6


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte level, one token a byte: every character outside ASCII takes several tokens."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    model = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=model)


@pytest.fixture(scope="module")
def ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    return tokenizer("<b>é\nt", add_special_tokens=False)[
        "input_ids"
    ]  # 7 bytes; contexts take the first 6


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, ids: list[int]) -> Store:
    """Five contexts of six tokens on four pages: train, val, two test pages (the last has two).

    Dimension 0 holds, by test context: 2 at position 3 | 5 at 1 and 7 at 4 | 1 at 2 and 900 at 0,
    a first token. Dimension 1 holds 3 in training rows only; dimension 2 holds 4 everywhere.
    """
    x = torch.zeros(5, LENGTH, D)
    x[:, :, 2] = 4.0  # so that no norm below 20 makes a sink
    x[2, 3, 0], x[3, 1, 0], x[3, 4, 0], x[4, 2, 0], x[4, 0, 0] = 2.0, 5.0, 7.0, 1.0, 900.0
    x[0, 2, 1] = 3.0
    contexts = Contexts(
        ids=np.array(ids[:LENGTH] * 5, dtype=np.int32),
        offsets=np.arange(6, dtype=np.int64) * LENGTH,
        page=np.array([0, 1, 2, 3, 3], dtype=np.int32),
        start=np.array([0, 0, 0, 0, LENGTH], dtype=np.int32),
        page_ids=("a", "b", "c", "d"),
        page_titles=("Train", "Val", "Test <one>", "Test two"),
        split=np.array([0, 1, 2, 2], dtype=np.int8),
        bos=False,
        report={},
    )
    folder = tmp_path_factory.mktemp("store")
    config = CollectConfig(shard_tokens=LENGTH)
    identity = {
        "model_id": "m",
        "corpus_id": "c",
        "sites": (SITE,),
        "d_model": D,
        "dtype": "float32",
    }
    with StoreWriter(folder, contexts=contexts, config=config, **identity) as writer:
        for shard in range(5):
            writer.write_shard(shard, {SITE: x[shard]})
        writer.finish()
    return Store.open(folder)


def identity_sae(n_latents: int = D, gain: float = 1.0) -> SAE:
    """Latent j reads dimension j: f = gain · ReLU(x), without centring."""
    sae = SAE(SAEConfig(arch="sae", d_in=D, n_latents=n_latents, site=SITE, normalize="none"))
    with torch.no_grad():
        sae.W_enc.copy_(gain * torch.eye(D, n_latents))
    return sae.requires_grad_(False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, gain in (("r1", 1.0), ("r2", 10.0), ("g1", 1.0)):
        identity_sae(gain=gain).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def results() -> pd.DataFrame:
    """Two plain runs, a Gated one, one without a folder, one at a site that the store lacks."""
    rows = [
        ("r1", "plain", SITE, 1.0, 30.0, 0.2, 0),
        ("r2", "plain", SITE, 4.0, 9.0, 0.5, 0),
        ("g1", "full", SITE, 1.0, 20.0, 0.1, 0),
        ("gone", "plain", SITE, 8.0, 2.0, 0.9, 0),
        ("far", "plain", 9, 1.0, 30.0, 0.3, 0),
    ]
    table = pd.DataFrame(rows, columns=["run_id", "loss", "site", "lambda", "l0", "fvu", "seed"])
    return table.assign(loss_recovered=[0.9, 0.5, np.nan, 0.1, 0.9])


@pytest.fixture
def panel(
    results: pd.DataFrame, runs: Path, store: Store, tokenizer: PreTrainedTokenizerFast
) -> explore.Panel:
    return explore.explore(results, runs, store, tokenizer, headless=False)


def test_top_contexts_are_the_strongest_of_the_split_each_context_once(store: Store) -> None:
    top = explore.top_contexts(identity_sae(), store, 0, k=5)
    assert top["activation"].tolist() == [7.0, 2.0, 1.0]  # by hand; 900 sits on a first token
    assert top["title"].tolist() == ["Test two", "Test <one>", "Test two"]
    assert (top["context"].tolist(), top["position"].tolist()) == ([3, 2, 4], [4, 3, 2])


def test_activations_of_a_context_stand_beside_its_tokens(store: Store, ids: list[int]) -> None:
    first = explore.top_contexts(identity_sae(), store, 0, k=1).iloc[0]
    assert first["token_ids"] == ids[:LENGTH]
    np.testing.assert_equal(
        first["activations"], [np.nan, 5, 0, 0, 7, 0]
    )  # position 0 is not ordinary
    assert first["peak"] == 4
    narrow = explore.top_contexts(identity_sae(), store, 0, k=1, width=1).iloc[0]
    assert (narrow["activations"], narrow["peak"]) == ([0, 7, 0], 1)


def test_splits_are_kept_apart(store: Store) -> None:
    assert explore.top_contexts(identity_sae(), store, 1).empty  # fires in training rows only
    assert explore.top_contexts(identity_sae(), store, 1, split="train")["title"].tolist() == [
        "Train"
    ]


def test_the_index_holds_every_activation_once(store: Store) -> None:
    index = explore.index_latents(identity_sae(), store)
    assert index.n_rows == 15  # 3 test contexts of 6 without their first tokens
    np.testing.assert_allclose(index.density, [4 / 15, 0, 1, 0])
    rows, values = index.of(0)
    assert dict(zip(rows.tolist(), values.tolist(), strict=True)) == {
        15: 2.0,
        19: 5.0,
        22: 7.0,
        26: 1.0,
    }
    f = identity_sae().encode_raw(store.rows(SITE, np.flatnonzero(store.mask("ordinary", "test"))))
    assert len(index.values) == int((f > 0).sum())


def test_a_large_split_is_thinned_by_whole_contexts(store: Store) -> None:
    index = explore.index_latents(identity_sae(), store, limit=10)
    assert index.n_rows == 10  # contexts 2 and 4, five ordinary tokens each
    assert index.of(0)[1].tolist() == [2.0, 1.0]


def test_a_latent_or_store_that_does_not_fit_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="latent 4: expected 0 to 3"):
        explore.top_contexts(identity_sae(), store, 4)
    with pytest.raises(ValueError, match="width d_in = 9"):
        explore.index_latents(SAE(SAEConfig(d_in=9, n_latents=2, site=SITE)), store)


def test_moderate_latents_are_alive_and_nearest_the_usual_density() -> None:
    density = np.array([0.0, 0.9, 0.003, 0.0301, 0.0006])
    assert explore.moderate_latents(density, n=3) == [2, 4, 3]  # ratios 1, 5, 10.03


def test_pieces_join_to_the_text_with_split_characters_whole(
    tokenizer: PreTrainedTokenizerFast, ids: list[int]
) -> None:
    pieces = tokens.token_pieces(tokenizer, ids)
    assert pieces == ["<", "b", ">", "", "é", "\n", "t"]
    assert tokens.token_pieces(tokenizer, ids[3:4]) == ["\ufffd"]  # cut off: shown as what it is


def test_text_is_escaped_and_the_strongest_token_outlined(
    store: Store, tokenizer: PreTrainedTokenizerFast
) -> None:
    html = explore.contexts_html(explore.top_contexts(identity_sae(), store, 0), tokenizer)
    assert "<b>é" not in html
    assert "Test &lt;one&gt;" in html
    assert "↵" in html
    marked = re.findall(r'outline[^>]*title="([^"]+)">([^<]*)<', html)
    assert [(float(a), unescape(t)) for a, t in marked] == [(7, "é"), (2, "·"), (1, ">")]
    assert html.count("not an ordinary token") == 3


def contrast(a: str, b: str) -> float:
    """WCAG 2 contrast ratio."""
    light = []
    for color in (a, b):
        c = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        light.append(
            np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
            @ [0.2126, 0.7152, 0.0722]
            + 0.05
        )
    return max(light) / min(light)


def test_shading_grows_with_activation_and_stays_legible() -> None:
    shades = [tokens.shade(s) for s in np.linspace(0, 1, 51)]
    assert min(contrast(*pair) for pair in shades) >= 4.5
    assert shades[0][0] == "#ffffff"
    whiteness = [contrast("#000000", back) for back, _ in shades]
    assert all(a > b for a, b in itertools.pairwise(whiteness))


def test_the_panel_opens_on_the_run_near_the_usual_l0(panel: explore.Panel) -> None:
    assert (panel.site.value, panel.arm.value, panel.run.value) == (
        SITE,
        "plain",
        "r1",
    )  # L0 30, nearest 32
    assert bytes(panel.curve.value).startswith(b"\x89PNG")
    assert "<td" in panel.metrics.value
    assert ">0.2<" in panel.metrics.value
    assert panel.feature.value == 0  # density 4 / 15 is nearer 0.003 than 1 is
    assert "Latent 0</b> fires on 26.7 % of 15 ordinary test tokens" in panel.contexts.value


def test_only_runs_with_a_folder_at_sites_of_the_store_can_be_chosen(panel: explore.Panel) -> None:
    assert [value for _, value in panel.site.options] == [SITE]
    assert [value for _, value in panel.arm.options] == ["plain", "full"]
    assert [value for _, value in panel.run.options] == ["r1", "r2"]


def test_changing_a_choice_changes_what_is_shown(panel: explore.Panel) -> None:
    def views() -> tuple:
        return bytes(panel.curve.value), panel.metrics.value, panel.contexts.value

    before = views()
    panel.run.value = "r2"  # the same directions, ten times as strong
    assert all(a != b for a, b in zip(before, views(), strict=True))
    assert "<b>70</b> · Test two, position 4" in panel.contexts.value
    panel.arm.value = "full"
    assert panel.run.value == "g1"
    assert "–" in panel.metrics.value  # its loss recovered is not defined
    assert "<b>7</b> · Test two" in panel.contexts.value


def test_a_latent_is_chosen_from_the_list_or_by_number(panel: explore.Panel) -> None:
    assert [value for _, value in panel.suggested.options] == [0, 2]
    panel.suggested.value = 2
    assert panel.feature.value == 2
    assert "Latent 2</b> fires on 100 %" in panel.contexts.value
    panel.feature.value = 3
    assert "Latent 3</b> fires on 0 %" in panel.contexts.value


@pytest.mark.parametrize("number", [99_999, -1])
def test_a_number_that_no_latent_has_is_said_and_kept(panel: explore.Panel, number: int) -> None:
    panel.feature.value = number
    assert panel.feature.value == number
    assert f"There is no latent {number:,}: this SAE has the latents 0 to" in panel.contexts.value
    panel.feature.value = 0
    assert "Latent 0</b> fires on" in panel.contexts.value


def test_a_choice_of_one_architecture_is_not_shown(
    panel: explore.Panel, results: pd.DataFrame, runs: Path, store: Store, tokenizer: object
) -> None:
    assert panel.arm.layout.display is None
    plain = results[results["loss"] == "plain"]
    assert explore.explore(plain, runs, store, tokenizer).arm.layout.display == "none"


def test_the_ring_moves_with_the_choice(panel: explore.Panel) -> None:
    for run in ("r1", "r2"):
        panel.run.value = run
        chosen = panel.results[panel.results["run_id"] == panel.run.value].iloc[0]
        (ring,) = [
            line for line in panel._figure(chosen).axes[0].lines if line.get_label() == "chosen"
        ]
        np.testing.assert_allclose(ring.get_xydata(), [[chosen["l0"], chosen["fvu"]]])


def test_a_damaged_run_raises_and_leaves_no_contexts_of_another(
    results: pd.DataFrame,
    runs: Path,
    store: Store,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    (tmp_path / "runs" / "r2" / "weights.safetensors").unlink()
    panel = explore.explore(results, tmp_path / "runs", store, tokenizer, headless=False)
    with pytest.raises(FileNotFoundError, match="weights"):
        panel.run.value = "r2"
    assert panel.contexts.value == ""
    panel.run.value = "r1"
    assert "Latent 0" in panel.contexts.value


def test_results_without_any_folder_are_refused(
    results: pd.DataFrame, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"none of the 5 runs at sites \[1\] has its folder in"):
        explore.explore(results, tmp_path, store, None)


CELL = """
from pathlib import Path
import pandas as pd
from transformers import PreTrainedTokenizerFast
from saelib.show.explore import explore
from saelib.activations.store import Store
folder = Path({folder!r})
results = pd.read_csv(folder / "results.csv")
tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
explore(results, Path({runs!r}), Store.open({store!r}), tokenizer, headless={headless})
"""


def test_a_kernel_shows_widgets_live_and_a_picture_with_html_headless(
    results: pd.DataFrame,
    runs: Path,
    store: Store,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    results.to_csv(tmp_path / "results.csv", index=False)
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    where = {"folder": str(tmp_path), "runs": str(runs), "store": str(store.path)}
    cells = [
        nbformat.v4.new_code_cell(CELL.format(**where, headless=headless))
        for headless in (True, None, False)
    ]
    notebook = NotebookClient(
        nbformat.v4.new_notebook(cells=cells), timeout=120, kernel_name="python3"
    ).execute()
    static, by_environment, live = (
        [set(o.data) for o in cell.outputs if "data" in o] for cell in notebook.cells
    )
    for kinds in (static, by_environment):  # the tests run with SAELIB_HEADLESS set
        assert any("image/png" in kind for kind in kinds)
        assert any("text/html" in kind for kind in kinds)
        assert not any("application/vnd.jupyter.widget-view+json" in kind for kind in kinds)
    assert any("application/vnd.jupyter.widget-view+json" in kind for kind in live)
    assert not any(o.output_type == "error" for cell in notebook.cells for o in cell.outputs)
