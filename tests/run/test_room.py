"""Disk and memory of a plan: what a card holds, and what will not fit."""

from dataclasses import replace

from transformers import LlamaConfig

from saelib.run import costs
from saelib.run.asked import Group
from saelib.run.rates import stated
from saelib.run.room import Disk, Memory, card_of, misfits
from saelib.run.text_size import TextSize
from saelib.run.work import Setting

DISK = Disk(1e9, 2e9, 0.0, 9e9, 1e9, 5e8, 3e8)
MEMORY = Memory(0.0, 0.0, 0.0, 0.0, 0.0, 10e9, 80e9, 10e9, 64e9)


def test_a_smaller_card_streams_with_more_passes():
    groups = [Group("sweep", 60, (2, 16, 31), 20_000_000, 4096, 32768, 0.1)]
    shape = costs.shape_of(LlamaConfig())
    first = {"ctx_len": 128, "batch_tokens": 16384, "stream_tokens": 0}
    text = TextSize(7e6, 1e6, 2e6, 0.0, "")
    rates = stated(shape, 128, 400e12)
    setting = Setting(first, (2, 16, 31), shape, text, rates, 80e9, 2, "bfloat16")
    none, small, large = (card_of(setting, groups, size, 1.0) for size in (16, 24, 80))
    assert none.at_once == 0
    assert small.at_once < large.at_once
    assert small.passes > large.passes >= 20 / 7
    assert small.hours_streaming > large.hours_streaming > large.hours_stored == 1.0


def test_what_fits_is_not_spoken_of():
    assert misfits(DISK, MEMORY) == []


def test_memory_that_is_short_is_told_with_what_to_change():
    (sentence,) = misfits(DISK, replace(MEMORY, device=100e9))
    assert sentence.startswith("device memory: 100.0 GB needed, 80.0 GB there: ")
    assert "lower n_latents" in sentence


def test_a_disk_too_small_names_what_takes_most_and_what_changes_it():
    (sentence,) = misfits(replace(DISK, free=2e9), MEMORY)
    assert sentence.startswith("disk: 3.0 GB to write, 2.0 GB free; most is SAEs: lower n_latents")
