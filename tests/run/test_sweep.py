"""`collect` and `train` do what the notebooks ask for, under the same names.

By one process or several.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers.errors import relative
from helpers.folders import all_bytes
from helpers.processes import free_port, one_thread, start_ranks, wait_for
from helpers.rank_jobs import start_sweep
from helpers.workspaces import write_inputs
from safetensors.torch import load_file

from saelib.__main__ import main
from saelib.config import ConfigError, StreamConfig
from saelib.env import data_dir
from saelib.run import sweep
from saelib.run.source_notebooks import code_cells, sources
from saelib.run.workspace import Workspace
from saelib.study.trainings import first_specs

ROOT = Path(__file__).parents[2]
COMMON = {
    "device": "cpu",
    "dtype": "float32",
    "source": "jsonl",
    "ctx_len": 16,
    "contexts_per_page": 6,
    "shard_tokens": 1024,
    "sites": [1, -2],
    "n_latents": 50,
    "tokens": 4096,
    "batch_size": 64,
    "lr": 3.0e-3,
    "lambdas": [0.5123, 1.5],
    "lam_full": 1.6,
    "ce_tokens": 256,
    "corpus_seed": 1,
    "store_dtype": "bfloat16",
}
ONLY_03 = {"lambdas_two_term": [0.3], "seeds": [0, 1], "lambdas": [0.5123]}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A workbook folder with notebooks, a tiny model and text, and profiles that ask for them."""
    home = tmp_path_factory.mktemp("home")
    write_inputs(home)
    (home / "notebooks" / "profiles").mkdir(parents=True)
    for notebook in (ROOT / "notebooks").glob("0*.ipynb"):
        (home / "notebooks" / notebook.name).symlink_to(notebook)
    common = COMMON | {"model": str(home / "model"), "path": str(home / "pages.jsonl")}
    for profile in ("alone", "tiny", "data", "latents"):
        text = yaml.safe_dump({"common": common, "notebooks": {"03_train_gated": ONLY_03}})
        (home / "notebooks" / "profiles" / f"{profile}.yaml").write_text(text)
    return home


@pytest.fixture
def at_home(home, monkeypatch):
    monkeypatch.setenv("SAELIB_HOME", str(home))
    return home


@pytest.fixture(scope="module")
def alone(home):
    """What one process makes by the two commands."""
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.setenv("SAELIB_HOME", str(home))
        assert main(["collect", "--profile", "alone"]) == 0
        assert main(["train", "--profile", "alone"]) == 0
        return data_dir("alone")


def by_run(folder):
    return {
        path.parent.name: load_file(path)
        for path in sorted(folder.glob("saes/*/weights.safetensors"))
    }


def give_store(home, profile):
    for name in ("store", "workspace.json"):
        copy = shutil.copytree if name == "store" else shutil.copy
        copy(home / "data" / "alone" / name, home / "data" / profile / name)


class Asked(Exception):
    """Raised where the workspace is asked for something, with what."""


def asked(method, call):
    """Arguments with which `call` first calls a method of `Workspace`."""

    def ask(_, *args, **named):
        raise Asked(args, named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workspace, method, ask)
        with pytest.raises(Asked) as found:
            call()
    return found.value.args


def run_cells(notebook):
    """A notebook's own cells under profile alone."""
    (path,), names = sources([notebook]), {}
    for number, cell in enumerate(code_cells(nbformat.read(path, as_version=4))):
        exec(cell["source"], names)
        if number == 0:  # the parameters
            names |= sweep.settings("alone")[notebook].model_dump() | {"profile": "alone"}


@pytest.mark.parametrize("notebook", ["02_train_sae", "03_train_gated"])
def test_the_sweep_is_what_the_notebook_s_first_cells_train(alone, at_home, notebook):
    (specs, asking), _ = asked("train", lambda: run_cells(notebook))
    workspace = Workspace("alone", "cpu")
    made = first_specs(workspace, notebook, sweep.settings("alone")[notebook])
    assert asking == notebook
    assert {workspace.run_id(spec) for spec in made} == {workspace.run_id(spec) for spec in specs}
    assert len(made) == len(specs) == {"02_train_sae": 4, "03_train_gated": 12}[notebook]
    assert all((workspace.run_folder(spec) / "metrics.json").exists() for spec in specs)


def test_what_is_collected_is_what_notebook_01_asks_for(at_home):
    wanted = asked("collect", lambda: run_cells("01_collect"))
    assert asked("collect", lambda: sweep.collect("alone")) == wanted
    _, corpus, _, config, dtype, live = wanted[0]
    assert (corpus.seed, config.dtype, dtype, live) == (1, "bfloat16", "float32", None)


def test_settings_of_the_command_line_reach_collection_and_may_stream(at_home):
    found = asked(
        "collect",
        lambda: sweep.collect("alone", {"stream_tokens": 2048, "n_latents": 48, "bos": "never"}),
    )
    assert found[0][-1] == StreamConfig(buffer_tokens=2048)
    assert found[0][1].bos == "never"
    with pytest.raises(ConfigError, match="'n_latent'"):
        sweep.collect("alone", {"n_latent": 24})


def test_torchrun_collects_the_same_store_and_the_notebook_launcher_trains_the_same_saes(
    alone, at_home
):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--rdzv-backend",
        "c10d",
    ]
    command += ["--rdzv-endpoint", "127.0.0.1:0", "-m", "saelib", "collect", "--profile", "tiny"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("rows a site, store ") == 1  # one rank speaks
    assert all_bytes(data_dir("tiny") / "store") == all_bytes(alone / "store")
    cell = "from accelerate import notebook_launcher; from saelib.run import sweep; "
    cell += "notebook_launcher(sweep.train, ('tiny', 'grid'), num_processes=2, "
    cell += f"use_port='{free_port()}')"
    done = subprocess.run(
        [sys.executable, "-c", cell], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found, expected = by_run(data_dir("tiny")), by_run(alone)
    assert found.keys() == expected.keys()
    assert len(found) == 4 + 12
    assert all(
        torch.equal(found[run][key], value)
        for run in expected
        for key, value in expected[run].items()
    )
    assert (data_dir("tiny") / "results.csv").read_bytes() == (alone / "results.csv").read_bytes()


@pytest.mark.parametrize("over", ["data", "latents"])
def test_saes_trained_by_two_ranks_together_are_those_of_one_process(alone, at_home, over):
    (at_home / "data" / over).mkdir(parents=True)
    give_store(at_home, over)
    wait_for(start_ranks(start_sweep, 2, 2, free_port(), str(at_home), over, over))
    found, expected = by_run(data_dir(over)), by_run(alone)
    assert found.keys() == expected.keys()
    assert max(relative(found[r][k], v) for r in expected for k, v in expected[r].items()) < 1e-4
    tables = [pd.read_csv(folder / "results.csv") for folder in (data_dir(over), alone)]
    assert np.abs(tables[0]["fvu"] - tables[1]["fvu"]).max() < 1e-3
    assert not list(data_dir(over).glob("saes/*/checkpoint*"))


def test_a_missing_store_is_one_sentence_and_status_2(at_home, capsys):
    shutil.rmtree(at_home / "data" / "none", ignore_errors=True)
    shutil.copy(*(at_home / "notebooks" / "profiles" / f"{name}.yaml" for name in ("tiny", "none")))
    assert main(["train", "--profile", "none"]) == 2
