"""Next-token losses and what is recovered of them, against hand arithmetic."""

import math

import pytest
import torch

from saelib.measure import replaced_loss


def test_next_token_loss_is_the_sum_over_all_targets(monkeypatch):
    g = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(3, 8, 7, generator=g) + 50, torch.randint(7, (3, 8), generator=g)
    naive = [
        sum(-math.log(logits[b, t].softmax(0)[ids[b, t + 1]]) for t in range(7)) for b in range(3)
    ]
    for held in (64, 7, 3):  # all positions at once, exactly, in parts that do not divide
        monkeypatch.setattr(replaced_loss, "LOGIT_ROWS", held)
        got, without_p = replaced_loss.next_token_losses(logits, ids)
        assert got.dtype == torch.float64
        assert got.tolist() == pytest.approx(naive, rel=1e-5)
        assert without_p.tolist() == [0, 0, 0]
    uniform = replaced_loss.next_token_losses(torch.zeros(3, 5, 7), ids[:, :5])[0]
    assert uniform.tolist() == pytest.approx([4 * math.log(7)] * 3)


def test_a_token_that_the_model_rules_out_costs_no_digit_of_the_others():
    g = torch.Generator().manual_seed(1)
    logits, ids = torch.randn(2, 6, 7, generator=g), torch.randint(6, (2, 6), generator=g)
    logits[..., 6] = -1e9
    p = replaced_loss.next_token_probs(logits)
    log_q = logits[:, :-1].double().log_softmax(-1)
    naive = -log_q.gather(-1, ids[:, 1:, None]).sum((1, 2))
    ce, own = replaced_loss.next_token_losses(logits, ids, p)
    torch.testing.assert_close(ce, naive, rtol=1e-6, atol=0)
    torch.testing.assert_close(own, -(log_q.exp() * log_q).sum((1, 2)), rtol=1e-5, atol=0)


def test_logits_are_read_and_not_written():
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    before, ids = logits.clone(), torch.zeros(2, 5, dtype=torch.long)
    replaced_loss.next_token_losses(logits, ids, replaced_loss.next_token_probs(logits))
    assert torch.equal(logits, before)


def test_cross_entropy_less_its_own_is_kl():
    def cross(p, q):
        logits = torch.tensor([q, q]).log()[None]  # the last position has no next token
        return replaced_loss.next_token_losses(
            logits, torch.zeros(1, 2, dtype=torch.long), torch.tensor([[p]])
        )[1].item()

    p, q = [0.5, 0.5], [0.9, 0.1]
    assert cross(p, q) - cross(p, p) == pytest.approx(
        0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    )
    assert cross(q, p) - cross(q, q) == pytest.approx(
        0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    )
    g = torch.Generator().manual_seed(0)
    a, b = 3 * torch.randn(
        2, 2, 9, 50_000, generator=g
    )  # a vocabulary's size, where float32 sums are not exact
    p, ids = replaced_loss.next_token_probs(a), torch.zeros(2, 9, dtype=torch.long)
    kl = (
        replaced_loss.next_token_losses(b, ids, p)[1]
        - replaced_loss.next_token_losses(a, ids, p)[1]
    )
    log_p, log_q = (x[:, :-1].double().log_softmax(-1) for x in (a, b))
    naive = (log_p.exp() * (log_p - log_q)).sum((1, 2))
    torch.testing.assert_close(kl, naive, rtol=1e-6, atol=0)


def test_probabilities_sum_to_one_where_the_processors_softmax_does_not(monkeypatch):
    softmax = torch.softmax
    monkeypatch.setattr(torch, "softmax", lambda *a, **k: softmax(*a, **k) * (1 + 3e-6))
    logits = torch.randn(2, 4, 1000, generator=torch.Generator().manual_seed(0))
    p = replaced_loss.next_token_probs(logits)
    assert p.shape == (2, 3, 1000)
    torch.testing.assert_close(p, logits[:, :-1].softmax(-1), rtol=1e-6, atol=0)
    assert (p.double().sum(-1) - 1).abs().max() < 5e-7


def test_loss_recovered_ends_are_exact_and_a_small_denominator_has_no_value():
    id_, zero = 3.3333333, 11.7777777
    assert replaced_loss.loss_recovered(id_, id_, zero) == 1
    assert replaced_loss.loss_recovered(zero, id_, zero) == 0
    assert replaced_loss.loss_recovered(4.0, 3.0, 13.0) == pytest.approx(0.9)
    assert math.isnan(replaced_loss.loss_recovered(3.0, 3.0, 3.05))
    assert math.isnan(
        replaced_loss.loss_recovered(3.0, 3.0, 2.0)
    )  # ablation that helps is no scale either
