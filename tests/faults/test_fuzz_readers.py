"""Hostile input to every reader ends in an answer or in the project's error, in bounded time."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.fuzzed_readers import readers, trials

from saelib.config import ConfigError, CorpusConfig
from saelib.files import read_json
from saelib.run.profiles import _load_yaml
from saelib.run.source_notebooks import parameters
from saelib.sae.formats import FormatError, load
from saelib.text.pages import read_pages


def test_four_thousand_hostile_inputs_end_in_answers_or_in_the_project_s_errors(tmp_path):
    outcomes, failures, _ = trials(tmp_path, 4000, seed=0)
    assert failures == []
    assert {name for name, _ in outcomes} == set(readers(tmp_path))
    assert any(outcome != "answer" for _, outcome in outcomes)


def test_aliases_of_a_profile_are_refused_and_their_place_is_told(tmp_path):
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
    (tmp_path / "p.yaml").write_text(bomb)
    with pytest.raises(ConfigError, match=r"p\.yaml: not YAML: an alias, \*a; write the value out"):
        _load_yaml(tmp_path / "p.yaml")


def test_a_profile_of_megabytes_is_refused_unread(tmp_path):
    (tmp_path / "p.yaml").write_text("a: 1\n" * 100_000)
    with pytest.raises(ConfigError, match=r"p\.yaml: larger than 200,000 bytes"):
        _load_yaml(tmp_path / "p.yaml")


def test_json_that_is_nested_too_deeply_is_refused_by_name(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"a\.json: damaged, not JSON \(brackets nested too deep"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("tags", "source", "message"),
    [
        (["parameters"], "a = 1X", "parameters cell: no Python"),
        (0.5, "a = 1", "cell 0 is no cell of a notebook"),
    ],
)
def test_a_notebook_whose_parameters_are_no_python_is_named(tmp_path, tags, source, message):
    cell = {"cell_type": "code", "metadata": {"tags": tags}, "source": source, "outputs": []}
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": [cell]}))
    with pytest.raises(ValueError, match=rf"n\.ipynb: .*{message}"):
        parameters(tmp_path / "n.ipynb")


def test_metadata_of_saelens_that_is_no_mapping_is_named(tmp_path):
    readers(tmp_path)
    path = tmp_path / "saelens" / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metadata": "x"}))
    with pytest.raises(FormatError, match=r"cfg\.json: metadata = 'x': expected a mapping"):
        load(tmp_path / "saelens")


@pytest.mark.parametrize("name", ["d_in", "n_latents"])
@pytest.mark.parametrize("value", [10**12, 2**62])
def test_a_width_that_no_file_has_is_refused_before_room_is_made(tmp_path, name, value):
    readers(tmp_path)
    path = tmp_path / "saelib" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(ValueError, match=r"weights\.safetensors does not fit .*it is smaller than"):
        load(tmp_path / "saelib")


def test_a_text_that_many_rows_of_a_parquet_file_share_is_unpacked_once_a_row(tmp_path):
    import resource

    n, size = 400, 4_000_000  # 1.6 GB unpacked, 4 MB in the file
    shared = pa.DictionaryArray.from_arrays(
        pa.array([0] * n, pa.int32()), pa.array(["w " * (size // 2)])
    )
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": shared.cast(pa.large_string())[:1]}), path)  # warm
    pq.write_table(
        pa.table({"text": shared}), path, dictionary_pagesize_limit=1 << 26, store_schema=False
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cfg = CorpusConfig(source="parquet", path=str(path))
    assert sum(len(page.text) >= size - 1 for page in read_pages(cfg)) == n
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert taken < 400_000  # kB
