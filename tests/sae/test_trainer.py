"""The training loop: schedules, exact resume, resampling in the run, divergence, refusals."""

import json
import math

import pytest
import torch
from helpers.streams import MemoryStream, train_one
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from saelib.config import ConfigError, SAEConfig, TrainConfig
from saelib.sae import build_sae, checkpoint
from saelib.sae.checkpoint import load_checkpoint, save_checkpoint
from saelib.sae.dense import StepStats
from saelib.sae.group import Run, geometric_median, train_together
from saelib.sae.history import TrainingDiverged
from saelib.sae.resample import ResampleEvent
from saelib.sae.schedule import make_scheduler
from saelib.sae.trainer import Trainer

D, N = 8, 32


@pytest.fixture(scope="module")
def table():
    """2,000 rows that really are sparse sums of 24 directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(24, D, generator=generator)
    codes = torch.rand(2000, 24, generator=generator) * (
        torch.rand(2000, 24, generator=generator) < 0.1
    )
    return 3 * codes @ directions


def _cfg(**changes):
    return TrainConfig(
        **{
            "tokens": 6400,
            "batch_size": 32,
            "lam": 0.05,
            "lr": 5e-3,
            "log_every": 10,
            "dead_window": 640,
        }
        | changes
    )


def _run(table, cfg, folder=None, silent=0, **kwargs):
    arch = "sae" if cfg.loss == "plain" else "gated"
    sae = build_sae(
        SAEConfig(arch=arch, d_in=D, n_latents=N), torch.Generator().manual_seed(cfg.seed)
    )
    with torch.no_grad():
        getattr(sae, sae.bias_names()[0])[:silent] = -1e3
    history = train_one(sae, MemoryStream(table, cfg.batch_size), cfg, checkpoint=folder, **kwargs)
    return sae, history


def _fvu(sae, x):
    sae.requires_grad_(False)
    return float((sae.reconstruct(x) - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum())


@pytest.mark.parametrize("loss", ["plain", "two_term", "full"])
def test_training_rebuilds_sparse_data(table, loss):
    sae, history = _run(table, _cfg(loss=loss))
    assert _fvu(sae, table) < 0.15
    assert history.table[-1]["fvu"] < 0.3 * history.table[0]["fvu"]
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(N))


def test_a_larger_lambda_gives_fewer_active_latents(table):
    l0 = [_run(table, _cfg(lam=lam))[1].table[-1]["l0"] for lam in (0.05, 1.0, 5.0)]
    assert l0[0] > 1.3 * l0[1] > 1.3 * 1.3 * l0[2]


# With most latents silent at first: some are dead at both resamplings, and all but the first steps
# are sparse.
# With most latents silent at first: some are dead at both resamplings, and all but the first steps
# are sparse.
RESUMED = {
    "loss": "full",
    "resample_at": (0.2, 0.5),
    "schedule": "cosine",
    "snapshots": 4,
    "dead_window": 1000,
    "lam": 30.0,
}


@pytest.mark.parametrize("stop_after", [20, 60, 120])
def test_a_run_continued_from_a_checkpoint_is_bit_identical(table, tmp_path, stop_after):
    cfg, probe = _cfg(**RESUMED), table[:50]
    whole, history = _run(table, cfg, silent=26, probe=probe)

    class Killed(Exception):
        pass

    def kill(row):
        if row["step"] > stop_after:
            raise Killed

    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Killed):
        _run(table, cfg, path, silent=26, probe=probe, checkpoint_every=20, on_log=kill)
    resumed, again = _run(table, cfg, path, probe=probe, checkpoint_every=20)
    assert again.resumed_at == stop_after
    assert again.table == history.table
    assert again.events == history.events
    assert [len(event.revived) > 0 for event in history.events] == [True, True]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert len(again.snapshots) == len(history.snapshots) == 4
    for a, b in zip(again.snapshots, history.snapshots, strict=True):
        assert (a.step, a.tokens) == (b.step, b.tokens)
        for name in ("fire_rate", "open", "b_gate"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize("loss", ["plain", "full"])
def test_a_snapshot_holds_the_shares_gates_and_biases_of_its_moment(table, loss):
    probe = table[:50]
    sae, history = _run(table, _cfg(loss=loss, snapshots=2), probe=probe)
    first, last = history.snapshots
    assert (first.step, last.step) == (history.table[-1]["step"] // 2, history.table[-1]["step"])
    with torch.no_grad():
        fires = (sae.encode(sae.normalize(probe)) > 0).float().mean(0)
    assert 0 < float(fires.mean()) < 1
    torch.testing.assert_close(last.fire_rate, fires)
    assert torch.equal(last.b_gate, getattr(sae, "b_enc" if loss == "plain" else "b_gate"))
    assert not torch.equal(first.b_gate, last.b_gate)


TOGETHER = [
    _cfg(),
    _cfg(lam=1.0, loss="full", schedule="cosine"),
    _cfg(**RESUMED, seed=3),
    _cfg(loss="two_term", stop_at=0.6, grad_clip=1.0),
    _cfg(b_dec_init="mean", step="dense", tokens=3200),
]


def _runs(table, cfgs, folder=None):
    runs = []
    for i, cfg in enumerate(cfgs):
        arch = "sae" if cfg.loss == "plain" else "gated"
        sae = build_sae(
            SAEConfig(arch=arch, d_in=D, n_latents=N), torch.Generator().manual_seed(cfg.seed)
        )
        with torch.no_grad():
            getattr(sae, sae.bias_names()[0])[: 26 if cfg.resample_at else 0] = -1e3
        runs.append(
            Run(
                sae,
                cfg,
                table[:50] if cfg.snapshots else None,
                folder and folder / f"{i}.safetensors",
            )
        )
    return runs


def _same(a, b):
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


@pytest.mark.parametrize(
    "block_bytes", [1, 7 * 32 * D * 4, 1 << 30], ids=["a batch", "7 batches", "all"]
)
def test_many_on_one_stream_are_bit_identical_to_each_alone(table, monkeypatch, block_bytes):
    monkeypatch.setattr("saelib.sae.group.BLOCK_BYTES", block_bytes)
    together, logged = _runs(table, TOGETHER), []
    histories = train_together(
        [(together, MemoryStream(table, 32))], on_log=lambda i, row: logged.append((i, row["step"]))
    )
    for i, (run, history, alone) in enumerate(
        zip(together, histories, _runs(table, TOGETHER), strict=True)
    ):
        (expected,) = train_together([([alone], MemoryStream(table, 32))])
        assert _same(run.sae, alone.sae), run.cfg
        assert (history.table, history.events) == (expected.table, expected.events)
        assert [step for j, step in logged if j == i] == [
            row["step"] for row in expected.table if row["step"] % 10 == 0
        ]
    assert histories[2].events[0].revived


def test_each_batch_is_read_once_for_all(table):
    stream = MemoryStream(table, 32)
    train_together([(_runs(table, TOGETHER), stream)])
    assert stream.cursor == max(cfg.steps for cfg in TOGETHER) * 32


@pytest.mark.parametrize("ahead", [0, 96])
def test_groups_on_streams_of_their_own_go_on_side_by_side_and_end_as_each_alone(table, ahead):
    other, logged, read = -table.flip(0), [], []

    class Watched(MemoryStream):
        def __next__(self):
            read.append((len(self.x), self.cursor))
            return super().__next__()

    tables = [table, other[:1500]]
    groups = [(_runs(x, TOGETHER[i::2]), Watched(x, 32)) for i, x in enumerate(tables)]
    results = train_together(
        groups, on_log=lambda i, row: logged.append((i, row["step"])), ahead=ahead
    )
    order = [*TOGETHER[::2], *TOGETHER[1::2]]
    assert [max(step for j, step in logged if j == i) for i in range(5)] == [
        cfg.steps for cfg in order
    ]
    expected = []
    for i, x in enumerate(tables):
        alone = _runs(x, TOGETHER[i::2])
        expected += train_together([(alone, MemoryStream(x, 32))])
        assert all(
            _same(run.sae, single.sae) for run, single in zip(groups[i][0], alone, strict=True)
        )
    assert [result.table for result in results] == [result.table for result in expected]
    at, spread = dict.fromkeys((2000, 1500), 0), 0
    for size, cursor in read:
        at[size] = cursor
        spread = max(spread, at[2000] - at[1500])
    assert spread <= 4 * ahead if ahead else spread > 4 * 96


def test_runs_resumed_from_unequal_steps_end_bit_identical(table, tmp_path):
    whole = _runs(table, TOGETHER[:3])
    train_together([(whole, MemoryStream(table, 32))])

    class Killed(Exception):
        pass

    def kill(i, row):
        if (i, row["step"]) == (1, 90):
            raise Killed

    with pytest.raises(Killed):
        train_together([(_runs(table, TOGETHER[:3], tmp_path), MemoryStream(table, 32))], 20, kill)
    (tmp_path / "2.safetensors").unlink(missing_ok=True)
    again = _runs(table, TOGETHER[:3], tmp_path)
    histories = train_together([(again, MemoryStream(table, 32))], 20)
    assert [history.resumed_at for history in histories][1:] == [80, 0]
    assert histories[0].resumed_at > 80  # it had the whole block, the second was killed inside it
    assert all(_same(a.sae, b.sae) for a, b in zip(whole, again, strict=True))


def test_one_that_diverges_leaves_the_others_alone(table):
    cfgs = [_cfg(), _cfg(lr=1e30), _cfg(loss="full")]
    runs, alone = _runs(table, cfgs), _runs(table, cfgs)
    first, second, third = train_together([(runs, MemoryStream(table, 32))])
    assert isinstance(second, TrainingDiverged)
    for run, single, history in ((runs[0], alone[0], first), (runs[2], alone[2], third)):
        train_together([([single], MemoryStream(table, 32))])
        assert _same(run.sae, single.sae)
        assert history.table[-1]["step"] == run.cfg.steps


@pytest.mark.parametrize("change", ["batch_size", "normaliser"])
def test_saes_that_cannot_share_a_stream_are_refused(table, change):
    runs = _runs(table, [_cfg(), _cfg(batch_size=64) if change == "batch_size" else _cfg()])
    if change == "normaliser":
        runs[1].sae.set_normalizer_(torch.ones(D), 1.0)
    with pytest.raises(ConfigError, match="the same normaliser and the same batch_size"):
        train_together([(runs, MemoryStream(table, 32))])


def test_checkpoint_of_another_run_is_refused(table, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    _run(table, _cfg(), path, checkpoint_every=50)
    with pytest.raises(ConfigError, match="belongs to another run"):
        _run(table, _cfg(lam=0.07), path)


def test_a_damaged_checkpoint_is_refused_by_name(table, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    _run(table, _cfg(), path, checkpoint_every=50)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=rf"{path}: damaged"):
        _run(table, _cfg(), path)


def _flipped_bits(content):
    """A file's content with one bit flipped, at forty places from its start to its end."""
    for place in torch.linspace(0, len(content) - 1, 40).long().tolist():
        damaged = bytearray(content)
        damaged[place] ^= 4
        yield bytes(damaged)


def test_a_flipped_bit_of_a_checkpoint_is_refused_by_name(table, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    _run(table, _cfg(tokens=1600), path, checkpoint_every=20)
    trainer = Trainer(build_sae(SAEConfig(d_in=D, n_latents=N)), _cfg(tokens=1600))
    for damaged in _flipped_bits(path.read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{path}: damaged .* the run starts anew"):
            load_checkpoint(trainer, path)
    assert trainer.step == 0


def test_a_checkpoint_of_an_earlier_version_is_continued_with_a_notice(table, tmp_path, caplog):
    path = tmp_path / "checkpoint.safetensors"
    whole, _ = _run(table, _cfg(), path, checkpoint_every=50)
    tensors = load_file(path)
    state = bytes(tensors.pop("state").numpy()).decode()
    save_file(tensors, path, metadata={"state": state})
    again, history = _run(table, _cfg(), path)
    assert history.resumed_at == 150
    assert torch.equal(again.W_dec, whole.W_dec)
    (notice,) = [message for message in caplog.messages if str(path) in message]
    assert "has no checksum" in notice


def test_a_long_history_does_not_swell_the_header_of_a_checkpoint(tmp_path):
    """safetensors reads no header over 100 MB."""
    path = tmp_path / "c.safetensors"
    trainer = Trainer(build_sae(SAEConfig(d_in=D, n_latents=N)), _cfg())
    trainer.step_(torch.randn(64, D))
    trainer.history.table = [{"step": float(i), "fvu": 1 / (i + 1)} for i in range(10_000)]
    save_checkpoint(trainer, path)
    assert int.from_bytes(path.read_bytes()[:8], "little") < 10_000
    again = Trainer(build_sae(SAEConfig(d_in=D, n_latents=N)), _cfg())
    load_checkpoint(again, path)
    assert again.history.table == trainer.history.table


@pytest.mark.parametrize("metadata", [None, {"other": "1"}, {"state": "{"}], ids=str)
def test_a_checkpoint_whose_state_cannot_be_read_is_refused_by_name(tmp_path, metadata):
    path = tmp_path / "c.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata)
    with pytest.raises(ValueError, match=r"c\.safetensors: damaged"):
        load_checkpoint(Trainer(build_sae(SAEConfig(d_in=D, n_latents=N)), _cfg()), path)


@pytest.mark.parametrize(
    ("state", "tensors"),
    [
        ({"step": "x"}, {}),
        ({"step": -5}, {}),
        ({"step": 10**6}, {}),
        ({"events": 5}, {}),
        ({"events": [{"zz": 1}]}, {}),
        ({"snapshots": [1]}, {}),
        ({"scheduler": 5}, {}),
        ({"scheduler": {"_last_lr": 5}}, {}),
        ({"table": 5}, {}),
        ({"density": "x"}, {}),
        ({}, {"generator": torch.zeros(5)}),
        ({}, {"adam.W_dec.exp_avg": torch.zeros(1)}),
        ({}, {"weights.W_dec": torch.full((N, D), torch.nan)}),
        ({}, {"tokens_since_fired": torch.zeros(3)}),
    ],
)
def test_a_checkpoint_without_a_checksum_that_cannot_be_is_refused_by_name(
    state, tensors, tmp_path
):
    path = tmp_path / "c.safetensors"
    trainer = Trainer(build_sae(SAEConfig(d_in=D, n_latents=N)), _cfg())
    save_checkpoint(trainer, path)
    kept = load_file(path)
    stated = json.loads(bytes(kept.pop("state").numpy())) | state
    save_file(kept | tensors, path, metadata={"state": json.dumps(stated)})
    with pytest.raises(ValueError, match=r"c\.safetensors: damaged .* the run starts anew"):
        load_checkpoint(trainer, path)


def test_a_step_moves_no_decoder_row_along_itself_before_adam(table):
    trainer = Trainer(
        build_sae(SAEConfig(d_in=D, n_latents=N), torch.Generator().manual_seed(0)), _cfg()
    )
    before = trainer.sae.W_dec.detach().clone()
    trainer.step_(table[:32])
    grad = trainer.sae.W_dec.grad
    assert (grad * before).sum(1).abs().max() < 1e-5 * grad.norm()


def test_history_holds_the_fvu_about_the_batch_mean(table):
    x = table[:32] + 5
    trainer = Trainer(
        build_sae(SAEConfig(d_in=D, n_latents=N), torch.Generator().manual_seed(0)),
        _cfg(log_every=1),
    )
    x_hat = trainer.sae(x)[1].detach()
    trainer.step_(x)
    expected = float((x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum())
    assert trainer.history.table[0]["fvu"] == pytest.approx(expected, rel=1e-5)


def test_history_holds_means_over_the_rows_since_the_last_one(table):
    sae = build_sae(SAEConfig(d_in=D, n_latents=N), torch.Generator().manual_seed(0))
    trainer = Trainer(sae, _cfg(log_every=2))
    by_step = []
    for x in table[:128].split(32):
        f, x_hat = (value.detach() for value in sae(x))
        l1 = trainer.lam * f.sum(1).mean()
        by_step.append([(x - x_hat).pow(2).sum(1).mean(), l1, (f > 0).sum(1).float().mean()])
        trainer.step_(x)
    means = torch.tensor(by_step).view(2, 2, 3).mean(1)
    for row, (mse, l1, l0) in zip(trainer.history.table, means.tolist(), strict=True):
        assert [row["mse"], row["l1"], row["l0"]] == pytest.approx([mse, l1, l0], rel=1e-5)
        assert row["loss"] == pytest.approx(mse + l1, rel=1e-5)


def test_resampled_latents_count_as_alive_and_gates_never_open_are_reported_apart(table):
    cfg = _cfg(loss="full", dead_window=64)
    trainer = Trainer(
        build_sae(SAEConfig(arch="gated", d_in=D, n_latents=N), torch.Generator().manual_seed(0)),
        cfg,
    )
    with torch.no_grad():
        trainer.sae.b_gate[:4] = -1e3
        trainer.sae.b_mag[4:8] = -1e3
    for start in (0, 32):
        trainer.step_(table[start : start + 32])
    assert trainer.dead().nonzero().flatten().tolist() == list(range(8))
    trainer.resample_(table[:500])
    assert (trainer.history.events[0].n_dead, trainer.history.events[0].n_gate_dead) == (8, 4)
    assert not trainer.dead().any()


def test_resampling_revives_dead_latents_and_reports_who_stayed_alive(table):
    _, history = _run(table, _cfg(lam=1.0, resample_at=(0.25, 0.5)), silent=N // 2)
    first = history.events[0]
    assert (first.step, first.tokens) == (50, 1600)
    assert first.revived == list(range(N // 2))
    assert 0.5 * N / 2 < first.alive_later <= N // 2
    assert history.table[-1]["dead_fraction"] < 0.25
    assert _run(table, _cfg(lam=1.0), silent=N // 2)[1].table[-1]["dead_fraction"] >= 0.5


@pytest.mark.parametrize(
    ("tokens", "stop_at", "window", "defined"),
    [
        (640, 1.0, 640, True),
        (640, 1.0, 641, False),
        (660, 1.0, 641, False),
        (1280, 0.5, 641, False),
    ],
)
def test_no_share_is_dead_where_training_is_shorter_than_the_window(
    tokens, stop_at, window, defined, table
):
    cfg = _cfg(tokens=tokens, stop_at=stop_at, dead_window=window)
    _, history = _run(table, cfg, silent=N // 2)
    shares = [row[name] for row in history.table for name in ("dead_fraction", "gate_dead")]
    assert [not math.isnan(share) for share in shares] == [defined] * len(shares)
    assert not defined or history.table[-1]["dead_fraction"] >= 0.5


def _rates(**changes):
    cfg = _cfg(tokens=3200, lr=1.0, **changes)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], cfg.lr)
    scheduler, rates = make_scheduler(optimizer, cfg), []
    for _ in range(cfg.total_steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def test_schedules_warm_up_and_end_where_their_names_say():
    assert _rates(schedule="constant", warmup=0.1)[:11] == pytest.approx(
        [i / 10 for i in range(10)] + [1.0]
    )
    assert _rates(schedule="constant", warmup=0.1)[-1] == 1
    assert _rates(schedule="linear", warmup=0.0)[50] == pytest.approx(0.5)
    assert _rates(schedule="cosine", warmup=0.0)[50] == pytest.approx(0.5)
    assert _rates(schedule="cosine", warmup=0.0)[-1] < 0.01


def test_hard_restarts_divide_the_run_and_return_to_the_full_rate():
    rates = _rates(schedule="cosine_with_restarts", warmup=0.0, n_cycles=4)
    assert [rates[i] for i in (0, 25, 50, 75)] == pytest.approx([1.0] * 4)
    assert rates[24] < 0.01


def test_a_run_stopped_in_mid_cycle_ends_at_a_high_rate(table):
    _, history = _run(
        table, _cfg(schedule="cosine_with_restarts", warmup=0.0, n_cycles=2, stop_at=0.55, lr=1e-3)
    )
    assert history.table[-1]["step"] == 110
    assert history.table[-1]["lr"] > 0.9e-3


def test_lambda_warms_up_linearly_from_zero():
    trainer = Trainer(build_sae(SAEConfig(d_in=D, n_latents=N)), _cfg(lam=2.0, lam_warmup=0.1))
    assert trainer.lam == pytest.approx(2.0 / 20)
    trainer.step = 20
    assert trainer.lam == 2.0


def test_a_non_finite_loss_stops_names_step_and_config_and_keeps_the_last_checkpoint(
    table, tmp_path
):
    class Poisoned(MemoryStream):
        def __next__(self):
            batch, rows = super().__next__()
            return batch * (float("nan") if self.cursor > 60 * 32 else 1), rows

    sae, path = build_sae(SAEConfig(d_in=D, n_latents=N)), tmp_path / "checkpoint.safetensors"
    with pytest.raises(TrainingDiverged, match=r"step 61 of 200.*'lam': 0\.05"):
        train_one(sae, Poisoned(table, 32), _cfg(), checkpoint=path, checkpoint_every=50)
    again = Trainer(build_sae(SAEConfig(d_in=D, n_latents=N)), _cfg())
    load_checkpoint(again, path)
    assert again.step == 50
    assert all(torch.isfinite(p).all() for p in again.sae.parameters())


def test_a_weight_that_is_not_finite_in_a_latent_that_never_fires_stops_the_run(table, tmp_path):
    sae = build_sae(SAEConfig(d_in=D, n_latents=N))
    trainer = Trainer(sae, _cfg())
    with torch.no_grad():
        sae.b_enc[3] = float("nan")
        sae.b_enc[4] = -float("inf")
    for call in (trainer.finish, lambda: save_checkpoint(trainer, tmp_path / "c.safetensors")):
        with pytest.raises(
            TrainingDiverged, match=r"b_enc not finite after step 0 of 200 \(.*'lam': 0\.05"
        ):
            call()
    assert not list(tmp_path.iterdir())
    (result,) = train_together([(_runs(table, [_cfg(lr=1e38)]), MemoryStream(table, 32))])
    assert isinstance(result, TrainingDiverged)


def test_no_runs_are_no_results(table):
    assert train_together([]) == []


def test_where_the_loss_is_looked_at_now_and_then_the_last_step_is_looked_at_too():
    trainer = Trainer(build_sae(SAEConfig(d_in=D, n_latents=N)), _cfg(tokens=64 * 32, log_every=10))
    elsewhere = torch.empty(
        32, D, device="meta"
    )  # as on a GPU, where reading the loss at every step would cost
    nan = torch.tensor(float("nan"))
    stats = StepStats(
        nan, nan, nan, nan, nan, torch.ones(N, dtype=torch.bool), torch.ones(N, dtype=torch.bool)
    )
    trainer.step = 63
    trainer._check_finite(stats, elsewhere)
    trainer.step = 64
    with pytest.raises(TrainingDiverged, match="step 64 of 64"):
        trainer._check_finite(stats, elsewhere)


def test_history_holds_the_root_mean_squares_of_adam_s_moments(table):
    trainer = Trainer(build_sae(SAEConfig(d_in=D, n_latents=N)), _cfg(log_every=1))
    trainer.step_(table[:32])
    gradients = torch.cat([leaf.grad.flatten() for leaf in trainer.leaves.values()])
    size = float(gradients.square().mean().sqrt())
    row = trainer.history.table[0]
    assert row["adam_m"] == pytest.approx(0.1 * size)  # (1 − β₁) g, and √((1 − β₂) g²)
    assert row["adam_v"] == pytest.approx(0.001**0.5 * size)


def test_gradient_clipping_bounds_the_step(table):
    free, clipped = (_run(table, _cfg(grad_clip=c, tokens=64))[0] for c in (0.0, 1e-9))
    start = build_sae(SAEConfig(d_in=D, n_latents=N), torch.Generator().manual_seed(0))
    assert (clipped.b_enc - start.b_enc).abs().max() < 0.5 * (free.b_enc - start.b_enc).abs().max()


def test_b_dec_starts_at_the_mean_or_the_geometric_median():
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [100.0, 100.0]])
    assert geometric_median(x).norm() < 1
    stream = MemoryStream(torch.randn(500, D) + 5, 32)
    sae = build_sae(SAEConfig(d_in=D, n_latents=N))
    train_one(sae, stream, _cfg(tokens=32, lr=1e-8, b_dec_init="mean"))
    torch.testing.assert_close(sae.b_dec.detach(), stream.x.mean(0), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("arch", "loss"), [("sae", "full"), ("gated", "plain")])
def test_a_loss_of_the_other_architecture_is_refused(arch, loss):
    with pytest.raises(ConfigError, match="does not fit"):
        Trainer(build_sae(SAEConfig(arch=arch, d_in=D, n_latents=N)), _cfg(loss=loss))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lam", -1.0),
        ("lr", 0.0),
        ("schedule", "step"),
        ("tokens", 3),
        ("resample_at", (0.5, 0.2)),
        ("stop_at", 1.5),
    ],
)
def test_bad_training_configuration_names_field_and_value(field, value):
    with pytest.raises(ConfigError, match=field) as error:
        _cfg(**{field: value})
    assert repr(value) in str(error.value)


def test_a_latent_revived_twice_counts_as_a_survivor_of_the_second_time_only():
    trainer = Trainer(build_sae(SAEConfig(d_in=D, n_latents=N)), _cfg())
    trainer.history.events = [
        ResampleEvent(1, 32, 3, 3, [0, 1, 2]),
        ResampleEvent(2, 64, 2, 2, [1, 5]),
    ]
    trainer.tokens_since_fired[2] = 10_000
    trainer.finish()
    assert [event.alive_later for event in trainer.history.events] == [1, 2]


@pytest.mark.parametrize("lost", ["weights.W_dec", "generator", "tokens_since_fired"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_name(lost, tmp_path):
    path = tmp_path / "c.safetensors"
    trainer = Trainer(build_sae(SAEConfig(d_in=D, n_latents=N)), _cfg())
    trainer.step_(torch.randn(64, D))
    save_checkpoint(trainer, path)
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name != lost]  # noqa: SIM118 (not a dict)
        rest = {name: file.get_tensor(name) for name in names}
    save_file(rest, path, metadata={"sha256": checkpoint._checksum(rest)})
    with pytest.raises(ValueError, match=r"c\.safetensors: damaged .* the run starts anew"):
        load_checkpoint(Trainer(build_sae(SAEConfig(d_in=D, n_latents=N)), _cfg()), path)


@pytest.mark.parametrize("state", ["[]", "null", "3"])
def test_a_checkpoint_whose_state_is_no_mapping_is_refused_by_name(state, tmp_path):
    path = tmp_path / "c.safetensors"
    save_file({"generator": torch.zeros(1)}, path, metadata={"state": state})
    with pytest.raises(ValueError, match=r"c\.safetensors: damaged .*its state is no mapping"):
        load_checkpoint(Trainer(build_sae(SAEConfig(d_in=D, n_latents=N)), _cfg()), path)


def test_gradients_that_a_caller_left_are_not_written_over(table):
    """A sparse step writes into those of the last one; a caller's may be stored otherwise."""
    x = table[:32]
    sae, untouched = (build_sae(SAEConfig("sae", D, N)) for _ in range(2))
    untouched.load_state_dict(sae.state_dict())
    left = {name: torch.zeros(p.shape) for name, p in sae.named_parameters()}
    for name, parameter in sae.named_parameters():
        parameter.grad = left[name]
    for one in (sae, untouched):
        Trainer(one, _cfg(step="sparse")).step_(x)
    assert all(not gradient.any() for gradient in left.values())
    for name, tensor in untouched.state_dict().items():
        assert torch.equal(sae.state_dict()[name], tensor), name
