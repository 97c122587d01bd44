"""Seconds of the pieces of work: stated, or measured once a shape."""

import pytest
import torch
from helpers.models import llama_config
from helpers.shapes import SMOLLM2
from transformers import Qwen2Config

from saelib.run import rates
from saelib.run.rates import measured, stated

TINY = llama_config(width=64, inner=96, vocabulary=256)
CPU = torch.device("cpu")


def test_twice_the_stated_rate_halves_a_forward_and_a_step_but_for_its_launches():
    slow, fast = (stated(SMOLLM2, 128, rate) for rate in (1e12, 2e12))
    assert fast.block == pytest.approx(slow.block / 2)
    steps = [each.step(2304, 512, False, False) - rates.LAUNCH for each in (slow, fast)]
    assert steps[1] == pytest.approx(steps[0] / 2)
    assert slow.step(2304, 512, False, True) > slow.step(2304, 512, False, False)


def test_rates_are_measured_once_a_shape_at_the_l0_that_is_meant(monkeypatch):
    calls = []
    monkeypatch.setattr(rates, "_seconds", lambda call, *_: calls.append(call()) or 1e-3)
    made = measured(TINY, 16, CPU, torch.float32)
    first = len(calls)
    assert made.step(512, 64, False, False) == made.step(512, 64, False, False) == 1e-4
    assert len(calls) == first + 1
    assert made.block == pytest.approx(1e-3 / 2 / 1024)
    trainers = []
    monkeypatch.setattr(rates.Trainer, "step_", lambda self, x: trainers.append((self, x)))
    made.step(600, 512, True, False)
    trainer, x = trainers[0]
    active = float(trainer.sae.gate_open(x).sum(1).float().mean())
    assert active == pytest.approx(rates.ACTIVE, rel=0.1)


def test_a_large_step_is_measured_in_part_on_a_cpu_and_scaled(monkeypatch):
    monkeypatch.setattr(rates, "_seconds", lambda call, *_: 1.0)
    seconds = rates._step_seconds(CPU, 4096, 16384, 4096, False, False)
    assert seconds == pytest.approx(16384 / (3 * 10**6 // 4096) * 4096 / 512 / 10)


def test_a_family_with_a_type_for_each_layer_is_measured_too():
    config = Qwen2Config(
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=4,
        vocab_size=256,
    )
    assert rates._forward_seconds(config, 16, CPU, torch.float32) > (0, 0)


def test_fewer_latents_than_are_thought_active_can_be_planned(monkeypatch):
    monkeypatch.setattr(rates, "_seconds", lambda call, *_: call() and 1.0)
    assert rates._step_seconds(CPU, 64, 32, 64, True, False) > 0
