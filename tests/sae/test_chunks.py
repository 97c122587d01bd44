"""A dense step in chunks of rows is the step on all of them."""

import pytest
import torch

from saelib.config import SAEConfig
from saelib.sae import build_sae, dense
from saelib.sae.base import How
from saelib.sae.dense import StepStats, in_chunks, rows_at_once
from saelib.sae.gated import GatedSAE
from saelib.sae.relu import ReluSAE
from saelib.sae.resample import row_losses

D_IN, N_LATENTS = 12, 40
CASES = [
    ("sae", "plain", "unit_norm", {}),
    ("sae", "plain", "norm_weighted", {}),
    ("gated", "two_term", "unit_norm", {}),
    ("gated", "full", "unit_norm", {}),
    ("topk", "topk", "unit_norm", {"k": 5, "aux_k": 4}),
]


@pytest.fixture
def ten_rows(monkeypatch):
    """At most ten rows at once."""
    monkeypatch.setitem(dense.CODES_AT_ONCE, "cpu", 10 * N_LATENTS + 39)


def _problem(arch, l1_mode, options):
    g = torch.Generator().manual_seed(1)
    config = SAEConfig(arch, D_IN, N_LATENTS, l1_mode=l1_mode, options=options)
    sae = build_sae(config, g).double()
    x = torch.randn(27, D_IN, generator=g, dtype=torch.float64)
    return sae, x


def _step(sae, x, loss):
    return sae.step(x, 0.3, How(loss, dead=torch.arange(N_LATENTS) % 2 == 0))


@pytest.mark.parametrize(("arch", "loss", "l1_mode", "options"), CASES)
def test_a_step_in_chunks_equals_the_whole_one(arch, loss, l1_mode, options, request):
    sae, x = _problem(arch, l1_mode, options)
    stats, gradients = _step(sae, x, loss)
    request.getfixturevalue("ten_rows")
    chunked, of_chunks = _step(sae, x, loss)
    for name in StepStats._fields:
        torch.testing.assert_close(getattr(chunked, name), getattr(stats, name))
    for name, gradient in gradients.items():
        torch.testing.assert_close(of_chunks[name], gradient, rtol=1e-12, atol=1e-14)
        assert of_chunks[name].stride() == gradient.stride()


@pytest.mark.parametrize(("rowwise", "sizes"), [(True, [9, 9, 9]), (False, [27])])
def test_rows_stay_together_where_a_loss_is_over_the_batch(ten_rows, monkeypatch, rowwise, sizes):
    sae, x = _problem("sae", "unit_norm", {})
    monkeypatch.setattr(ReluSAE, "rowwise", rowwise)
    seen, whole = [], sae.dense_step
    monkeypatch.setattr(sae, "dense_step", lambda x, *a: seen.append(len(x)) or whole(x, *a))
    _step(sae, x, "plain")
    assert seen == sizes


def test_chunks_by_hand():
    """Rows (4, 7) and 1: statistics are their sums, gradients means over all three."""

    def step(x):
        total = x.sum()
        fires = torch.tensor([True, False]) if float(total) == 1 else torch.tensor([False, True])
        stats = StepStats(*[total * i for i in range(1, 6)], fires, ~fires)
        return stats, {"w": x.mean(0).clone()}

    stats, gradients = in_chunks(step, torch.tensor([[4.0], [7.0], [1.0]]), 2)
    assert [float(value) for value in stats[:5]] == [12.0, 24.0, 36.0, 48.0, 60.0]
    assert stats.fired.tolist() == stats.opened.tolist() == [True, True]
    assert gradients["w"].tolist() == [4.0]


@pytest.mark.parametrize(("rowwise", "sizes"), [(True, [10, 10, 7]), (False, [20, 7])])
def test_losses_to_draw_from_are_in_such_chunks_too(ten_rows, monkeypatch, rowwise, sizes):
    sae, x = _problem("gated", "unit_norm", {})
    whole = sae.loss_terms(x, 0.3, How("full")).total.detach()
    monkeypatch.setattr(GatedSAE, "rowwise", rowwise)
    seen, loss_terms = [], sae.loss_terms
    monkeypatch.setattr(sae, "loss_terms", lambda x, *a: seen.append(len(x)) or loss_terms(x, *a))
    torch.testing.assert_close(row_losses(sae, x, 0.3, How("full"), batch=20), whole)
    assert seen == sizes


@pytest.mark.parametrize(("n_latents", "rows"), [(1, 5 * 2**18), (4608, 284), (10**9, 1)])
def test_a_cpu_holds_over_a_million_codes_at_once(n_latents, rows):
    assert rows_at_once(n_latents, torch.device("cpu")) == rows
    assert rows_at_once(4608, torch.device("cuda")) == 2**27 // 4608
