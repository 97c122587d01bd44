"""What the planner counts is what the studies train: exactly what the recorded runs hold."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from saelib.run.asked import NOISE, ask_all, counts_of, grouped
from saelib.run.dry import Asked
from saelib.run.jobs import jobs_of
from saelib.sae.spec import make_spec

ROOT = Path(__file__).resolve().parents[2]
BLOCKS, WIDTH = 30, 576  # of SmolLM2-135M


@pytest.fixture
def shipped(home):
    """The shipped notebooks and profiles, with the recorded runs and no run of its own."""
    shutil.copytree(ROOT / "notebooks", home / "notebooks", dirs_exist_ok=True)
    (home / "data").mkdir()
    (home / "data" / "recorded").symlink_to(ROOT / "data" / "recorded")
    return home


def values_of(profile, **overrides):
    return {job.name: job.values for job in jobs_of(profile, (), overrides)}


@pytest.mark.parametrize("profile", ["default", "full"])
def test_counts_and_training_tokens_are_those_of_the_recorded_run(shipped, profile):
    ledger, _ = ask_all(profile, values_of(profile), BLOCKS, WIDTH)
    recorded = pd.read_csv(ROOT / "data" / "recorded" / profile / "results.csv")
    for notebook, rows in recorded.groupby("notebook"):
        specs = ledger.of_notebook(notebook)
        tokens = [spec.train.steps * spec.train.batch_size for spec in specs]
        assert sorted(tokens) == sorted(rows["tokens_trained"]), notebook
        assert sorted(spec.train.lam for spec in specs) == sorted(rows["lambda"]), notebook


def test_without_a_record_counts_are_near_those_of_one(shipped):
    with_record = counts_of("default", values_of("default"), BLOCKS, WIDTH)
    (shipped / "data" / "recorded").unlink()
    without = counts_of("default", values_of("default"), BLOCKS, WIDTH)
    for notebook in ("02_train_sae", "03_train_gated", "04_resampling", "05_layer_analysis"):
        known, guessed = (
            sum(group.count for group in each[notebook].groups if group.tokens)
            for each in (with_record, without)
        )
        assert guessed == pytest.approx(known, rel=0.5)


def test_more_seeds_and_refine_are_more_saes(shipped):
    def saes(**overrides):
        ledger, _ = ask_all("smoke", values_of("smoke", **overrides), BLOCKS, WIDTH)
        return len(ledger.of_notebook("03_train_gated"))

    assert saes(seeds=[0, 1, 2]) > 2 * saes(seeds=[0])
    assert saes(refine=2) >= saes(refine=0)


def test_all_notebooks_are_needed_for_a_count():
    assert counts_of("smoke", {"01_collect": {}}, BLOCKS, WIDTH) == {}


def test_like_saes_are_one_group_and_a_measurement_again_trains_nothing():
    small, large = (make_spec("plain", 2, 64, n_latents=n) for n in (64, 128))
    other_site = make_spec("plain", 5, 64, n_latents=64)
    left = [Asked(spec, "02_x", True) for spec in (small, other_site, large)]
    groups = grouped("02_x", left, [Asked(small, "02_x", True)])
    assert [(group.count, group.sites, group.latents) for group in groups] == [
        (2, (2, 5), 64),
        (1, (2,), 128),
        (1, (2,), 64),
    ]
    assert [group.tokens > 0 for group in groups] == [True, True, False]


def test_saes_on_shuffled_dimensions_are_counted_though_no_table_lists_them(shipped):
    counts = counts_of("default", values_of("default"), BLOCKS, WIDTH)
    (noise,) = [g for g in counts["05_layer_analysis"].groups if g.what == NOISE]
    assert noise.count == 3 * (2 + 1)
