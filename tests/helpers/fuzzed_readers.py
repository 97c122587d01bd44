"""Damaged and hostile input for every reader of what may come from strangers, in seeded trials.

Each must end in an answer or in an error of the project that names the file, within its time and
memory. Texts have trials of their own, `fuzzed_text`.
"""

import io
import json
import logging
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save as save_tensors

from helpers.fuzzed_text import SECONDS, damaged
from helpers.gguf_files import write_gguf
from helpers.models import llama
from helpers.published import random_sae, weights
from saelib.activations import loading
from saelib.activations.gguf_header import check_gguf
from saelib.activations.hub import ModelLoadError
from saelib.activations.live import StreamError, read_counts
from saelib.activations.shards import StoreError, read_manifest, read_progress
from saelib.config import CorpusConfig, stable_hash
from saelib.measure.descriptions import checked_description, checked_fits, read_lines
from saelib.measure.features.bound_table import read_bound
from saelib.measure.features.chat import AnswerError, Chat, ChatError
from saelib.measure.reference import read_reference
from saelib.run import profiles
from saelib.run.identity import read_identity
from saelib.run.jobs import read_record
from saelib.run.results import read_results
from saelib.run.source_notebooks import parameters, read_notebook
from saelib.sae.checkpoint import check_checkpoint
from saelib.sae.formats import export, load
from saelib.seal import read_seal
from saelib.show.explore.notes import Notes
from saelib.text.tables import parquet_rows

ERRORS = (ValueError, OSError, StoreError, StreamError, ModelLoadError, ChatError, AnswerError)
MEMORY = 1_000_000_000  # bytes that a trial may take beside what the process has
VALUES = (None, True, 0, -1, 2**70, 0.5, 1e308, "", "x", "../../x", [], {}, [1], {"a": 1}, "9" * 40)


class Reader(NamedTuple):
    """What is read, and how often it is drawn."""

    path: str  # below the folder, "" where no file is read
    seeds: tuple[bytes, ...]  # whole inputs
    read: Callable[[Path], object]
    weight: float
    is_json: bool = False


def _file(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _lines(values: Iterable[object]) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def _signed(value: dict, name: str) -> bytes:
    return _file(value | {name: stable_hash(value)})


def _manifest() -> dict:
    entry = {"bytes": 10, "sha256": "0" * 64}
    return {
        **{"format": 1, "model_id": "m@1", "corpus_id": "c", "dtype": "float32", "sites": [1]},
        **{"d_model": 6, "n_rows": 8, "median_norm": {"1": 2.0}},
        "files": {"tokens.safetensors": entry, "pages.json": entry},
        "shards": [
            {"shard": 0, "rows": 8, "files": {"site_01/shard_00000.safetensors": entry}},
        ],
    }


def _notebook() -> bytes:
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# A\n", "b"], "id": "a"},
        {
            **{"cell_type": "code", "metadata": {"tags": ["parameters"]}, "id": "b"},
            **{"execution_count": 1, "outputs": [], "source": "a: int = 1\nb = [1, 'x']\n"},
        },
    ]
    return _file({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


class _Canned(Chat):
    """A host that says what it is told to."""

    said = b""

    def _posted(self, question: str, max_tokens: int) -> bytes:
        return type(self).said


def _chat(path: Path) -> object:
    _Canned.said = path.read_bytes()
    return _Canned("http://localhost/v1", "m").reply("", 1)


def _model(path: Path) -> None:
    loading._check_folder(str(path.parent), path.parent, None)


def _description(path: Path) -> object:
    return checked_description(_chat(path))


def _fits(path: Path) -> object:
    return checked_fits(_chat(path), 3)


def _answer(content: str) -> bytes:
    return _file({"choices": [{"message": {"content": content}}]})


def _table() -> bytes:
    from saelib.measure.columns import COLUMNS
    from saelib.run.results import results_text

    row = dict.fromkeys(COLUMNS, "1") | {"run_id": "a" * 12, "loss": "plain"}
    return results_text([row]).encode()


def _bound() -> bytes:
    import hashlib

    body = "latent,a,b\n0,1,2.5\n1,2,\n"
    head = {"sae": "s", "sha256": hashlib.sha256(body.encode()).hexdigest()}
    return f"# {json.dumps(head)}\n{body}".encode()


def _arrays() -> bytes:
    file = io.BytesIO()
    np.savez(file, **{name: tensor.numpy() for name, tensor in weights().items()})
    return file.getvalue()


def _parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {"id": [1, 2, 3], "text": ["one", "two " * 50, "three"], "title": ["a", "b", None]}
    file = io.BytesIO()
    pq.write_table(pa.table(rows), file, row_group_size=2)
    return file.getvalue()


def _parquet_pages(path: Path) -> object:
    return list(parquet_rows(CorpusConfig(source="parquet", path=str(path)), {}))


def _in_folder(path: Path) -> Callable[[Path], object]:
    return lambda _: load(path, site=6)


MODEL = {
    **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8},
    **{"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9},
}


def readers(folder: Path) -> dict[str, Reader]:
    """Every reader by name, its files below `folder`, which gets what lies beside them."""
    for name in ("saelens", "dictionary_learning"):
        if not (folder / name).exists():
            export(random_sae("sae"), name, folder / name, model="m")
    own = folder / "saelib"
    if not own.exists():
        random_sae("gated").save(own)
        (own / "seal.json").unlink()
    write_gguf(folder / "whole.gguf", llama(blocks=1, width=8, inner=8, vocabulary=9))
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    counts = _lines([i, 5 + i, stable_hash(i, 5 + i)] for i in range(4))
    line = {"latent": 1, "description": "d", "score": 0.5, "n_scored": 4, "model": "m"}
    line |= {"sae": "s", "corpus_id": "c"}
    identity = {"model": "m", "dtype": "auto", "corpus": {"source": "jsonl"}}
    entry = {"bytes": 3, "sha256": "0" * 64}
    manifest = _manifest()
    progress = _lines([manifest, *manifest["shards"]])
    return {
        "json seal": Reader(
            "a/seal.json",
            (_signed({"format": 1, "run_id": "r", "files": {"a": entry}}, "hash"),),
            lambda path: read_seal(path.parent),
            10,
            True,
        ),
        "json manifest": Reader(
            "store/manifest.json",
            (_signed(manifest, "store_id"),),
            lambda path: read_manifest(path.parent),
            10,
            True,
        ),
        "json identity": Reader(
            "p/workspace.json",
            (_signed(identity, "hash"),),
            lambda path: read_identity(path.parent, "p"),
            8,
            True,
        ),
        "json record": Reader(
            "r.json",
            (_file({"key": "k", "settings": {"a": 1}, "seals": {"b": "c"}}),),
            read_record,
            8,
            True,
        ),
        "json reference": Reader(
            "site_01.json",
            (_file({"store_id": "s", "pages": [{"n": 1}], "hash": "h"}),),
            read_reference,
            8,
            True,
        ),
        "json notes": Reader(
            "notes.json",
            (_file({"version": 1, "saes": {"s": {"latents": {"1": {"text": "t", "lists": []}}}}}),),
            lambda path: Notes(path).read("s"),
            8,
            True,
        ),
        "notebook": Reader("02_x.ipynb", (_notebook(),), read_notebook, 8, True),
        "notebook parameters": Reader("03_x.ipynb", (_notebook(),), parameters, 6, True),
        "lines of progress": Reader("progress.jsonl", (progress,), read_progress, 8),
        "lines of counts": Reader("counts.jsonl", (counts,), read_counts, 8),
        "lines of descriptions": Reader(
            "d.jsonl", (json.dumps(line).encode() + b"\n",), read_lines, 8
        ),
        "bound table": Reader("t.csv", (_bound(),), lambda path: read_bound(path, {}), 4),
        "results table": Reader("results.csv", (_table(),), read_results, 0.3),
        "yaml": Reader(
            "p.yaml",
            (b"common:\n  lam: 0.25\n  sites: [1, x]\nnotebooks:\n  a:\n    b: &y 1\n    c: *y\n",),
            profiles._load_yaml,
            2,
        ),
        "gguf header": Reader("m.gguf", ((folder / "whole.gguf").read_bytes(),), check_gguf, 4),
        "checkpoint": Reader(
            "checkpoint.safetensors",
            (save_tensors(tensors, {"sha256": "x"}),),
            check_checkpoint,
            4,
        ),
        "model weights' header": Reader(
            "m1/model.safetensors", (save_tensors(tensors),), _model, 4
        ),
        "model config": Reader(
            "m2/tokenizer_config.json",
            (_file(MODEL | {"auto_map": {"AutoConfig": "a.B"}}),),
            _model,
            6,
            True,
        ),
        "tokenizer": Reader(
            "m3/tokenizer.json",
            (_file({"version": "1.0", "model": {"vocab": {"a": 1}}}),),
            _model,
            6,
            True,
        ),
        "saelens config": Reader(
            "saelens/cfg.json",
            ((folder / "saelens/cfg.json").read_bytes(),),
            _in_folder(folder / "saelens"),
            1,
            True,
        ),
        "saelens weights": Reader(
            "saelens/sae_weights.safetensors",
            ((folder / "saelens/sae_weights.safetensors").read_bytes(),),
            _in_folder(folder / "saelens"),
            1,
        ),
        "dictionary_learning config": Reader(
            "dictionary_learning/config.json",
            ((folder / "dictionary_learning/config.json").read_bytes(),),
            _in_folder(folder / "dictionary_learning"),
            1,
            True,
        ),
        "own config": Reader(
            "saelib/config.json", ((own / "config.json").read_bytes(),), _in_folder(own), 1, True
        ),
        "own weights": Reader(
            "saelib/weights.safetensors",
            ((own / "weights.safetensors").read_bytes(),),
            _in_folder(own),
            1,
        ),
        "parquet": Reader("pages.parquet", (_parquet(),), _parquet_pages, 1.5),
        "numpy arrays": Reader(
            "gemma-scope-2b-pt-res/layer_1/w/params.npz",
            (_arrays(),),
            lambda path: load(path.parent, site=6),
            1,
        ),
        "chat description": Reader("", (_answer('{"description": "d"}'),), _description, 6, True),
        "chat fits": Reader("", (_answer('```json\n{"fits": [0, 1, 1]}\n```'),), _fits, 6, True),
    }


def varied(value: object, draw: random.Random) -> object:
    """A JSON value with one node of it changed."""
    places = list(_nodes(value))
    if not places:
        return draw.choice(VALUES)
    inner, key = draw.choice(places)
    if draw.random() < 0.3:
        del inner[key]
    elif draw.random() < 0.1 and isinstance(inner, dict):
        inner[draw.choice(("x", "hash", "files", ""))] = draw.choice(VALUES)
    else:
        inner[key] = draw.choice(VALUES)
    return value


def _nodes(value: object):
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(entries):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _nodes(inner)


DEEP = (b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000, b'"\\ud800"', b"\xef\xbb\xbf{}", b"1e999")


def written(reader: Reader, draw: random.Random) -> bytes:
    """An input: a whole one with a node or some bytes changed, or one that is deep or strange."""
    content = draw.choice(reader.seeds)
    kind = draw.random()
    if kind < 0.02:
        return draw.choice(DEEP)
    if reader.is_json and kind < 0.6:
        value = varied(json.loads(content), draw)
        for name in ("hash", "store_id"):
            if isinstance(value, dict) and name in value and draw.random() < 0.7:
                rest = {k: v for k, v in value.items() if k != name}
                value[name] = stable_hash(rest)
        return json.dumps(value, indent=draw.choice((None, 1))).encode()
    return damaged(content, draw)


class TooLong(BaseException):
    """A trial went on past its time."""


def _stop(*_: object) -> None:
    raise TooLong


def outcome(reader: Reader, path: Path) -> str:
    """ "answer", or the name of the project's error."""
    try:
        reader.read(path)
    except ERRORS as error:
        if reader.path and path.name not in str(error) and str(path.parent) not in str(error):
            raise AssertionError(f"no file is named: {error!r}") from error
        return type(error).__name__
    return "answer"


def trials(
    folder: Path, n: int, seed: int, first: int = 0, only: str = "", raising: bool = True
) -> tuple[Counter[tuple[str, str]], list[str], float]:
    """(reader, outcome) of trials `first` to `first + n`, what failed, and the longest in seconds.

    raising: `AssertionError` at the first failure, naming the trial.
    """
    outcomes: Counter[tuple[str, str]] = Counter()
    failures: list[str] = []
    longest = 0.0
    all_readers = {name: one for name, one in readers(folder).items() if only in name}
    names = list(all_readers)
    shares = [one.weight for one in all_readers.values()]
    signal.signal(signal.SIGVTALRM, _stop)
    logging.disable(logging.WARNING)  # notices, of which there are many thousands
    for number in range(first, first + n):
        draw = random.Random(f"{seed}:{number}")
        (name,) = draw.choices(names, shares)
        reader = all_readers[name]
        path = folder / (reader.path or "input")
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.read_bytes() if reader.weight == 1 and path.exists() else None
        path.write_bytes(written(reader, draw))
        start = time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            outcomes[name, outcome(reader, path)] += 1
        except (Exception, TooLong) as error:
            failures.append(f"seed {seed}, trial {number} ({name}): {error!r:.500}")
            outcomes[name, "FAILED"] += 1
            if raising:
                logging.disable(logging.NOTSET)
                raise AssertionError(failures[-1]) from error
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        longest = max(longest, time.process_time() - start)
        if whole is not None:
            path.write_bytes(whole)
    logging.disable(logging.NOTSET)
    return outcomes, failures, longest


def limit_memory() -> None:
    """A trial that takes more than `MEMORY` gets a MemoryError, which is a failure."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    size = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
