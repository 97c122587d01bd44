"""Two processes on one profile: both end well, and what they leave is what one alone leaves.

SAELIB_PAIR_ROUNDS=100 pytest tests/faults/test_two_processes.py tries as many pairs of each kind.
"""

import os
from pathlib import Path

import pytest
from helpers.folders import all_bytes
from helpers.pairs import collect_and_train, run_pair, train_with_resampling
from helpers.workspaces import write_inputs

ROUNDS = int(os.environ.get("SAELIB_PAIR_ROUNDS", "2"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    write_inputs(home)
    return home


def left_behind(home: Path, profile: str) -> dict[str, bytes]:
    """Everything that does not tell the time or what the profile is called."""
    folder = home / "data" / profile
    kept = {}
    for name in ("store", "saes", "eval"):
        files = all_bytes(folder / name)
        kept |= {f"{name}/{path}": content for path, content in files.items()}
    return kept | {"results.csv": (folder / "results.csv").read_bytes()}


@pytest.mark.parametrize("work", [collect_and_train, train_with_resampling])
def test_two_processes_on_one_profile_both_end_and_leave_what_one_leaves(inputs, work):
    alone = work.__name__
    for which in (0, 1):  # one after the other
        work(inputs, alone, which)
    expected = left_behind(inputs, alone)
    for seed in range(ROUNDS):
        profile = f"{alone}_{seed}"
        assert run_pair(work, inputs, profile, seed) == [], f"round {seed}"
        assert left_behind(inputs, profile) == expected, f"round {seed}"
        leftovers = [p.name for p in (inputs / "data" / profile).rglob("*.tmp")]
        assert leftovers == [], f"round {seed}"
