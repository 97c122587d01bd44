"""Many processes: stores of one hash, training as by one process, no trace of a killed rank."""

import json
import shutil
import subprocess
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers.collecting import CFG, SITES, make_lm
from helpers.errors import fvu, relative
from helpers.folders import all_bytes
from helpers.processes import one_thread
from helpers.random_stores import make_contexts
from helpers.rank_jobs import run_groups, run_ranks
from helpers.rank_trainings import DTYPES, MODES, rows, told_history, trained
from safetensors.torch import load_file

from saelib.activations.collect import collect
from saelib.config import ConfigError
from saelib.ranks import SINGLE_PROCESS, Ranks, process_group
from saelib.sae.sharding import UNSHARDED

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What 2 and 4 processes made."""
    folder = tmp_path_factory.mktemp("ranks")
    run_groups("everything", (2, 4), folder)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The store of one process."""
    with one_thread():
        return collect(
            make_lm(),
            make_contexts(),
            SITES,
            tmp_path_factory.mktemp("one") / "s",
            CFG,
            progress=False,
        )


@pytest.mark.parametrize("size", [2, 4])
def test_stores_of_one_two_and_four_processes_are_equal_byte_by_byte(folder, store, size):
    assert all_bytes(folder / f"store{size}") == all_bytes(store.path)


def test_a_killed_rank_loses_one_shard_and_the_next_run_takes_over_what_it_recorded(
    store, tmp_path
):
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match="SIGKILL"):
        run_ranks("one_shard_lost", 2, tmp_path)
    assert (
        len((tmp_path / "lost" / "progress.rank_1.jsonl").read_text().splitlines()) == 2
    )  # identity, a shard
    recorded = [
        tmp_path / "lost" / f"site_{site:02d}" / "shard_00001.safetensors" for site in store.sites
    ]
    stamps = [path.stat().st_mtime_ns for path in recorded]
    with one_thread():
        collect(make_lm(), make_contexts(), SITES, tmp_path / "lost", CFG, progress=False)
    assert all_bytes(tmp_path / "lost") == all_bytes(store.path)
    assert [path.stat().st_mtime_ns for path in recorded] == stamps  # not written again


@cache
def trained_alone(name, dtype):
    """The SAE of one process, to be read alone, and its history."""
    alone, history = trained(MODES[name], dtype=dtype)
    return alone.requires_grad_(False), history


@pytest.mark.parametrize("kind", ["data", "latents"])
@pytest.mark.parametrize(
    ("name", "dtype"), [(name, dtype) for name in MODES for dtype in DTYPES[name]], ids=str
)
def test_training_by_ranks_is_that_of_one_process(folder, name, kind, dtype):
    alone, history = trained_alone(name, dtype)
    expected, bound = (
        alone.state_dict() | told_history(history),
        1e-5 if dtype == torch.float32 else 1e-10,
    )
    test = rows(500, 2).to(dtype)
    one = fvu(alone, test)
    for size in (2, 4):
        found = load_file(folder / f"{name}.{kind}.{str(dtype)[6:]}.{size}")
        for key in alone.state_dict():
            assert relative(found[key], expected[key]) <= bound, (
                size,
                key,
                relative(found[key], expected[key]),
            )
        assert relative(found["h.table"], expected["h.table"]) < 1e-4
        for key in ("h.revived", "h.events", "h.open"):
            assert torch.equal(found[key], expected[key]), (size, key)
        together = deepcopy(alone)
        together.load_state_dict({key: found[key] for key in alone.state_dict()})
        assert abs(fvu(together, test) - one) < 1e-3
    if MODES[name].resample_at:
        assert len(expected["h.revived"]) > 5


def test_a_rank_killed_in_mid_run_and_restarted_ends_with_the_same_weights(tmp_path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "2",
    ]
    command += [
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "127.0.0.1:0",
        "-m",
        "helpers.rank_restarts",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    whole = tmp_path / "undisturbed"
    whole.mkdir()
    run_ranks("undisturbed", 2, whole)
    for kind in ("data", "latents"):
        found, expected = load_file(tmp_path / kind), load_file(whole / kind)
        assert (found.pop("resumed_at"), expected.pop("resumed_at")) == (60, 0)
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_the_benchmark_tells_stores_of_one_hash_and_how_far_weights_are_apart(
    folder, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ranks as benchmark

    def copied(job, size, to):
        """What the same job of as many ranks left in `folder`."""
        assert (job, size) == ("everything", 2)
        shutil.copytree(folder, to, dirs_exist_ok=True)

    monkeypatch.setattr(benchmark, "run_ranks", copied)
    path = tmp_path / "ranks.json"
    monkeypatch.setattr(sys, "argv", ["ranks.py", "--ranks", "2", "--json", str(path)])
    benchmark.main()
    table = json.loads(path.read_text())
    assert [row["ranks"] for row in table if row["name"] == "store"] == [1, 2]
    assert len({row["sha256"] for row in table if row["name"] == "store"}) == 1
    apart = {(row["name"], row["dtype"]): row["weights"] for row in table if row["name"] != "store"}
    assert len(apart) == 4
    for (_, dtype), found in apart.items():
        assert 0 < found < {"float32": 1e-5, "float64": 1e-10}[dtype]


def test_one_process_is_alone_and_costs_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group() as ranks:
        assert ranks is SINGLE_PROCESS
    assert not torch.distributed.is_initialized()
    x, flags = torch.ones(2), torch.tensor([True, False])
    assert ranks.sum_(x) is x
    assert ranks.any_(flags).tolist() == [True, False]
    ranks.agree("anything", object.__name__)
    assert UNSHARDED.local_rows(x) is UNSHARDED.all_gather(x) is x
    assert UNSHARDED.all_reduce is None


def test_shares_are_stretches_that_differ_by_one_at_most():
    shares = [Ranks(rank, 4).share(50) for rank in range(4)]
    assert [(s.start, s.stop) for s in shares] == [(0, 12), (12, 25), (25, 37), (37, 50)]
    assert Ranks(0, 4).share(50, 3) == shares[3]


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1"])
def test_more_processes_than_gpus_are_refused(monkeypatch, device):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(ConfigError, match="4 processes and 2 GPUs on this machine"),
        process_group(device),
    ):
        raise AssertionError("joined")
