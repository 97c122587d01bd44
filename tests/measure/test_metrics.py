"""Every metric against hand arithmetic and against a naive computation; each test fails for a plausible slip."""

import math

import numpy as np
import pytest
import torch

from saelib.measure import metrics
from saelib.measure.metrics import CodeSums, Reconstruction, RowSums


def rows(n=300, d=8, n_latents=12, offset=50.0, seed=0):
    """Rows with a mean far from 0, an imperfect reconstruction, and codes of which latent 0 never fires."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g) + offset
    x_hat = offset + 0.7 * (x - offset) + 0.1 * torch.randn(n, d, generator=g)
    f = torch.relu(torch.randn(n, n_latents, generator=g))
    f[:, 0] = 0
    return x, x_hat, f


def reconstruct(x, x_hat, f, group=None, n_groups=1, gate=None, batch=37, shift=None):
    sums = RowSums(x[:10].mean(0) if shift is None else shift, n_groups)
    out = Reconstruction(sums, f.shape[1])
    for i in range(0, len(x), batch):
        part = slice(i, i + batch)
        g = None if group is None else group[part]
        sums.update(x[part], g)
        out.update(
            x[part], x_hat[part], CodeSums.of(f[part], None if gate is None else gate[part]), g
        )
    return out


def test_fvu_by_hand():
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0]])  # mean (1, 0), Σ‖x − μ‖² = 1 + 1
    x_hat = torch.tensor([[0.0, 0.5], [2.0, 0.5]])  # Σ‖x − x̂‖² = 0.25 + 0.25
    assert metrics.fvu(x, x_hat) == pytest.approx(0.25)
    assert reconstruct(x, x_hat, torch.ones(2, 1)).compute()["fvu"] == pytest.approx(0.25)


@pytest.mark.parametrize("offset", [0.0, 5.0, 1e4])
def test_the_mean_predictor_has_fvu_one_whatever_the_mean(offset):
    x, _, f = rows(offset=offset)
    x_hat = x.double().mean(0).expand_as(x)
    assert metrics.fvu(x, x_hat) == pytest.approx(1, abs=1e-6)
    assert reconstruct(x, x_hat, f).compute()["fvu"] == pytest.approx(1, abs=1e-6)


def test_fvu_about_zero_would_be_another_number():
    x, x_hat, f = rows()
    about_zero = ((x - x_hat).square().sum() / x.square().sum()).item()
    assert reconstruct(x, x_hat, f).compute()["fvu"] > 100 * about_zero


def test_every_sum_agrees_with_a_naive_computation():
    x, x_hat, f = rows()
    got = reconstruct(x, x_hat, f).compute(scale=0.25)
    a, b, c = (t.double().numpy() for t in (x, x_hat, f))
    mu = a.mean(0)
    naive = {
        "fvu": ((a - b) ** 2).sum() / ((a - mu) ** 2).sum(),
        "mse": (((0.25 * a - 0.25 * b) ** 2).sum(1)).mean(),
        "mse_raw": ((a - b) ** 2).sum(1).mean(),
        "l0": (c > 0).sum(1).mean(),
        "l1": np.abs(c).sum(1).mean(),
        "l1_raw": np.abs(c / 0.25).sum(1).mean(),
        "shrinkage": ((b - mu) ** 2).sum() / ((a - mu) * (b - mu)).sum(),
        "shrinkage_raw": (b**2).sum() / (a * b).sum(),
        "dead_fraction": 1 / 12,
    }
    assert {k: got[k] for k in naive} == pytest.approx(naive, rel=1e-7)
    assert set(got) == {*naive, "gate_dead"}


def test_shrinkage_by_hand_is_the_factor_a_reconstruction_is_too_short_by():
    x, _, f = rows(offset=3.0)
    mean = x.double().mean(0)
    out = reconstruct(x, mean + 0.6 * (x - mean), f).compute()
    assert out["shrinkage"] == pytest.approx(0.6)
    assert reconstruct(x, 0.6 * x.double(), f).compute()["shrinkage_raw"] == pytest.approx(0.6)
    assert out["shrinkage_raw"] > 0.9  # the mean hides it


@pytest.mark.parametrize("where", [0.0, 30.0, -300.0])
def test_results_do_not_depend_on_shift_or_batches(where):
    x, x_hat, f = rows()
    want = reconstruct(x, x_hat, f).compute()
    got = reconstruct(x, x_hat, f, shift=torch.full((8,), where), batch=300).compute()
    assert got == pytest.approx(want, rel=1e-7, nan_ok=True)


def test_one_pass_survives_a_mean_far_larger_than_the_spread():
    x, _, f = (t.double() for t in rows(offset=0.0))
    x_hat = 0.5 * x
    want = metrics.fvu(x, x_hat)
    far = torch.full((8,), 1e6, dtype=torch.float64)
    assert reconstruct(x + far, x_hat + far, f).compute()["fvu"] == pytest.approx(want, rel=1e-6)


def test_groups_split_the_sums_and_add_up():
    x, x_hat, f = rows()
    group = torch.arange(300) % 3
    grouped, whole = reconstruct(x, x_hat, f, group, 3), reconstruct(x, x_hat, f)
    mu = x.double().mean(0)
    for i in range(3):
        mine = group == i
        assert grouped.sse[i].item() == pytest.approx(
            (x - x_hat)[mine].double().square().sum().item()
        )
        assert grouped.x.scatter()[i].item() == pytest.approx(
            (x[mine].double() - mu).square().sum().item()
        )
        assert grouped.active[i] == (f[mine] > 0).sum()
    assert grouped.x.count.tolist() == [100, 100, 100]
    assert grouped.compute() == pytest.approx(whole.compute(), nan_ok=True)


def test_row_sums_of_two_sets_add_to_those_of_both():
    x, _, _ = rows()
    parts = [RowSums(x[0]), RowSums(x[0], 2)]
    parts[0].update(x[:100])
    parts[1].update(x[100:], torch.arange(200) % 2)
    both = parts[0] + parts[1]
    assert both.n == 300
    assert both.mean.numpy() == pytest.approx(x.double().mean(0).numpy())
    assert both.scatter().item() == pytest.approx(
        (x.double() - x.double().mean(0)).square().sum().item()
    )
    with pytest.raises(ValueError, match="different shifts"):
        parts[0] + RowSums(x[1])


def test_a_latent_is_dead_and_a_gate_closed_only_if_so_on_every_row():
    x, x_hat, _ = rows(n=4)
    f = torch.tensor([[0.0, 1, 0], [0, 0, 0], [0, 2, 0], [0, 0, 0]])
    gate = torch.tensor(
        [[0, 1, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    ).bool()  # latent 2 opens without magnitude
    sums = reconstruct(x, x_hat, f, gate=gate, batch=2)
    assert sums.density.tolist() == [0, 0.5, 0]
    assert sums.compute()["dead_fraction"] == pytest.approx(2 / 3)
    assert sums.compute()["gate_dead"] == pytest.approx(1 / 3)
    assert math.isnan(reconstruct(x, x_hat, f).compute()["gate_dead"])


def test_what_is_undefined_is_nan_and_not_a_number():
    x, x_hat, f = rows()
    assert math.isnan(metrics.fvu(torch.ones(5, 3), torch.zeros(5, 3)))
    silent = reconstruct(x, x.double().mean(0).expand_as(x), 0 * f).compute()
    assert math.isnan(silent["shrinkage"])
    with pytest.raises(ValueError, match="no rows"):
        Reconstruction(RowSums(x[0]), 12).compute()
    with pytest.raises(ValueError, match="shape"):
        metrics.fvu(x, x_hat[:1])


def test_gini_by_hand():
    assert metrics.gini([1, 1, 1, 1]) == pytest.approx(0)
    assert metrics.gini([0, 0, 0, 5]) == pytest.approx(0.75)
    assert metrics.gini([3, 1]) == pytest.approx(0.25)  # Σ|a − b| / (2 n² mean) = 4 / (2 · 4 · 2)
    v = np.random.default_rng(0).exponential(size=50)
    naive = np.abs(v[:, None] - v).sum() / (2 * 50**2 * v.mean())
    assert metrics.gini(torch.from_numpy(v)) == pytest.approx(naive)
    assert math.isnan(metrics.gini([0, 0]))
    with pytest.raises(ValueError, match="below 0"):
        metrics.gini([-1, 1])


def test_next_token_loss_is_the_sum_over_all_targets(monkeypatch):
    g = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(3, 8, 7, generator=g) + 50, torch.randint(7, (3, 8), generator=g)
    naive = [
        sum(-math.log(logits[b, t].softmax(0)[ids[b, t + 1]]) for t in range(7)) for b in range(3)
    ]
    for held in (64, 7, 3):  # all positions at once, exactly, in parts that do not divide
        monkeypatch.setattr(metrics, "LOGIT_ROWS", held)
        got, without_p = metrics.next_token_losses(logits, ids)
        assert got.dtype == torch.float64
        assert got.tolist() == pytest.approx(naive, rel=1e-5)
        assert without_p.tolist() == [0, 0, 0]
    uniform = metrics.next_token_losses(torch.zeros(3, 5, 7), ids[:, :5])[0]
    assert uniform.tolist() == pytest.approx([4 * math.log(7)] * 3)


def test_logits_are_read_and_not_written():
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    before, ids = logits.clone(), torch.zeros(2, 5, dtype=torch.long)
    metrics.next_token_losses(logits, ids, metrics.next_token_probs(logits))
    assert torch.equal(logits, before)


def test_cross_entropy_less_its_own_is_kl():
    def cross(p, q):
        logits = torch.tensor([q, q]).log()[None]  # the last position has no next token
        return metrics.next_token_losses(
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
    p, ids = metrics.next_token_probs(a), torch.zeros(2, 9, dtype=torch.long)
    kl = metrics.next_token_losses(b, ids, p)[1] - metrics.next_token_losses(a, ids, p)[1]
    log_p, log_q = (x[:, :-1].double().log_softmax(-1) for x in (a, b))
    naive = (log_p.exp() * (log_p - log_q)).sum((1, 2))
    torch.testing.assert_close(kl, naive, rtol=1e-6, atol=0)


def test_loss_recovered_ends_are_exact_and_a_small_denominator_has_no_value():
    id_, zero = 3.3333333, 11.7777777
    assert metrics.loss_recovered(id_, id_, zero) == 1
    assert metrics.loss_recovered(zero, id_, zero) == 0
    assert metrics.loss_recovered(4.0, 3.0, 13.0) == pytest.approx(0.9)
    assert math.isnan(metrics.loss_recovered(3.0, 3.0, 3.05))
    assert math.isnan(
        metrics.loss_recovered(3.0, 3.0, 2.0)
    )  # ablation that helps is no scale either


def test_matched_l0_is_linear_in_the_logarithms_and_never_extrapolates():
    l0, fvu = [100, 10], [0.1, 0.4]
    assert metrics.interpolate_matched_l0(l0, fvu, math.sqrt(1000)) == pytest.approx(
        0.2
    )  # √(0.1 · 0.4)
    assert metrics.interpolate_matched_l0(l0, fvu, 10) == pytest.approx(0.4)
    assert metrics.interpolate_matched_l0(l0, fvu, 9.99) is None
    assert metrics.interpolate_matched_l0(l0, fvu, 100.01) is None
    assert metrics.interpolate_matched_l0([10, 20, 80], [0.4, 0.2, 0.1], 40) == pytest.approx(
        math.sqrt(0.02)
    )
    assert metrics.interpolate_matched_l0(
        l0, [1.0, -1.0], math.sqrt(1000), log_y=False
    ) == pytest.approx(0)


def test_matched_l0_leaves_out_collapsed_points_and_averages_equal_ones():
    assert metrics.interpolate_matched_l0([0, 20], [1.0, 0.3], 10) is None
    assert metrics.interpolate_matched_l0([10, 20], [math.nan, 0.3], 15) is None
    assert metrics.interpolate_matched_l0([10, 10], [0.1, 0.4], 10) == pytest.approx(0.2)
    assert metrics.interpolate_matched_l0([], [], 10) is None


def test_next_lambda_bisects_in_the_logarithm_and_stops_when_close():
    assert metrics.propose_lambda([(1, 100), (4, 10)], 30) == pytest.approx(2)
    assert metrics.propose_lambda([(1, 100), (4, 10), (2, 45)], 30) == pytest.approx(math.sqrt(8))
    assert metrics.propose_lambda([(1, 40), (2, 25)], 30) is None  # within a factor of 2
    assert metrics.propose_lambda([(1, 30)], 30) is None  # on it
    assert metrics.propose_lambda([(1, 100), (1.005, 0)], 30) is None  # a cliff
    assert metrics.propose_lambda([(1, 100), (4, 10)], 30, max_ratio=math.inf) is None
    cliff = [(1, 100), (4, 0), (16, 0)]  # a collapsed point brackets nothing to interpolate between
    assert metrics.propose_lambda(cliff, 30, max_ratio=math.inf) == pytest.approx(2)


def test_next_lambda_goes_outwards_until_the_bound():
    assert metrics.propose_lambda([(1, 10)], 30) == pytest.approx(1 / 4)  # one point has no slope
    assert metrics.propose_lambda([(2, 50)], 30) == pytest.approx(8)
    assert metrics.propose_lambda([(4000, 50)], 30) == pytest.approx(1e4)
    assert metrics.propose_lambda([(1e4, 50)], 30) is None
    assert metrics.propose_lambda([(3e-4, 5)], 30) == pytest.approx(1e-4)
    assert metrics.propose_lambda([(1e-4, 5)], 30) is None
    with pytest.raises(ValueError, match="at least one"):
        metrics.propose_lambda([(0, 5)], 30)


def test_next_lambda_follows_the_slope_of_the_curves_end_and_a_fifth_further():
    assert metrics.propose_lambda([(1, 10), (2, 5)], 30) == pytest.approx(
        1 / 3 / 1.2
    )  # L0 = 10 / λ
    assert metrics.propose_lambda([(2, 50), (1, 100)], 30) == pytest.approx(2 * 50 / 30 * 1.2)
    ends = (
        4 * 2 ** (math.log(90 / 80) / math.log(100 / 90)) * 1.2
    )  # the last two points count, not the first
    assert metrics.propose_lambda([(1, 400), (2, 100), (4, 90)], 80) == pytest.approx(ends)
    assert metrics.propose_lambda([(1, 51), (2, 50)], 5) == pytest.approx(
        8
    )  # hardly any slope: no more than a step
    assert metrics.propose_lambda([(1, 50.0001), (2, 50)], 5) == pytest.approx(
        8
    )  # nearly none: no overflow
    assert metrics.propose_lambda([(1, 50), (2, 51)], 30) == pytest.approx(8)  # none at all
    assert metrics.propose_lambda([(1, 0), (2, 0)], 30) == pytest.approx(1 / 4)


def test_next_lambda_reaches_the_target_on_a_smooth_curve():
    pairs = [(1.0, 1000.0)]  # L0 = 1000 / λ
    while (lam := metrics.propose_lambda(pairs, 30)) is not None:
        pairs.append((lam, 1000 / lam))
    assert len(pairs) < 8
    l0 = [p[1] for p in pairs]
    assert metrics.interpolate_matched_l0(l0, [1 / v for v in l0], 30) == pytest.approx(1 / 30)


def test_page_bootstrap_is_seeded_ratio_of_sums_over_pages():
    rng = np.random.default_rng(1)
    den = rng.uniform(50, 150, size=40)
    num = den * rng.normal(0.3, 0.05, size=40)
    low, high = metrics.bootstrap_pages(num, den, 2000, seed=0)
    assert (low, high) == metrics.bootstrap_pages(num, den, 2000, seed=0)
    assert (low, high) != metrics.bootstrap_pages(num, den, 2000, seed=1)
    ratio = num.sum() / den.sum()
    analytic = (
        (num - ratio * den).std(ddof=1) / math.sqrt(40) / den.mean()
    )  # standard error of a ratio
    assert low < ratio < high
    assert (high - low) / (2 * 1.96) == pytest.approx(analytic, rel=0.15)


def test_page_bootstrap_needs_two_pages_and_pairs_by_seed():
    assert all(math.isnan(v) for v in metrics.bootstrap_pages([1.0], [2.0]))
    assert metrics.bootstrap_pages([1.0, 2.0], [2.0, 4.0]) == (0.5, 0.5)
    assert set(metrics.page_replicates([1, 0], [1, 9])) == {0, 0.1, 1}  # sums before the ratio
    a, b = (
        metrics.page_replicates(np.array([1.0, 2, 3]) + k, np.ones(3), 50, seed=3) for k in (0, 1)
    )
    assert b - a == pytest.approx(np.ones(50))
    with pytest.raises(ValueError, match="one value a page"):
        metrics.page_replicates([1.0], [1.0, 2.0])


def test_seed_interval_by_hand():
    low, high = metrics.seed_interval([1.0, 2.0, 3.0])  # mean 2, s 1, t(2) = 4.3027
    assert (low, high) == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)))
    assert all(math.isnan(v) for v in metrics.seed_interval([1.0]))


@pytest.mark.parametrize("df", [1, 2, 5, 12, 30])
def test_t_quantiles_hold_97_5_percent(df):
    t = torch.linspace(0, metrics._T_975[df - 1], 200_001, dtype=torch.float64)
    c = math.gamma((df + 1) / 2) / math.sqrt(df * math.pi) / math.gamma(df / 2)
    assert 0.5 + torch.trapezoid(c * (1 + t**2 / df) ** (-(df + 1) / 2), t).item() == pytest.approx(
        0.975, abs=1e-5
    )
