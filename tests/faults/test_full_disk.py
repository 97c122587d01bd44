"""A disk that is full in mid-training: one sentence, nothing half written, and the run goes on."""

import csv
import resource
from contextlib import contextmanager

import pytest
from helpers.folders import all_bytes
from helpers.workspaces import RECIPE, open_workspace, write_inputs

# Bytes that a file may have: the metrics, the weights or the checkpoint do not fit.
LIMITS = [1500, 12_000, 40_000]


@contextmanager
def largest_file(n_bytes):
    """Writing beyond it fails as on a full disk, with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    write_inputs(home)
    return home


def spec_of(workspace):
    return workspace.spec("full", 2, lam=0.7, resample_at=(0.3,), dead_window=512, **RECIPE)


def test_a_full_disk_in_mid_training_is_a_sentence_and_costs_nothing_that_was_done(inputs):
    whole = open_workspace(inputs, "whole")
    whole.train([spec_of(whole)], "03_train_gated")
    expected = all_bytes(whole.folder / "saes")
    for n_bytes in LIMITS:
        workspace = open_workspace(inputs, f"limit_{n_bytes}")
        workspace.checkpoint_every = 8
        match = rf"{workspace.folder}/.*: not written \(.*\): free some space .* is kept"
        with pytest.raises(OSError, match=match) as caught, largest_file(n_bytes):
            workspace.train([spec_of(workspace)], "03_train_gated")
        assert "\n" not in str(caught.value)
        assert list(workspace.folder.rglob("*.tmp")) == []
        workspace.train([spec_of(workspace)], "03_train_gated")
        assert all_bytes(workspace.folder / "saes") == expected
        assert (workspace.folder / "results.csv").read_bytes() == (
            whole.folder / "results.csv"
        ).read_bytes()


def test_no_half_row_of_times_is_left_on_a_full_disk(inputs):
    from saelib.run.results import log_time

    folder = inputs / "times"
    log_time(folder, "train", 1.5, "a" * 12)
    size = (folder / "timings.csv").stat().st_size
    with pytest.raises(OSError, match=r"timings\.csv: not written"), largest_file(size + 5):
        log_time(folder, "train", 2.5, "b" * 12)
    log_time(folder, "train", 3.5, "c" * 12)
    rows = list(csv.DictReader((folder / "timings.csv").open()))
    assert [row["seconds"] for row in rows] == ["1.500", "3.500"]


def test_half_a_row_of_times_that_a_kill_left_is_dropped(tmp_path):
    from saelib.run.results import log_time, read_times

    assert read_times(tmp_path).empty
    log_time(tmp_path, "train", 1.5, "a" * 12)
    path = tmp_path / "timings.csv"
    whole = path.read_bytes()
    for half in (b"b", b"bbbbbbbbbbbb,train,2.", b"bbbbbbbbbbbb,train,2.500,,false\r"):
        path.write_bytes(whole + half)
        assert list(read_times(tmp_path)["seconds"]) == [1.5]
        log_time(tmp_path, "train", 3.5, "c" * 12)
        assert list(read_times(tmp_path)["seconds"]) == [1.5, 3.5]
    path.write_bytes(whole[:4])  # of the header
    log_time(tmp_path, "train", 3.5, "c" * 12)
    assert list(read_times(tmp_path)["seconds"]) == [3.5]
