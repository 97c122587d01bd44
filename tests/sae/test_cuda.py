"""On a GPU everything does what it does on the CPU. Without one these tests are skipped.

Random tiny models, so that nothing but torch, triton, transformers and pytest is needed.
"""

import numpy as np
import pytest
import torch
from helpers.collecting import CFG, SITES, make_lm
from helpers.models import tiny_llama
from helpers.random_stores import make_contexts
from helpers.rows import D, N, sparse_rows
from helpers.stores import CFG as EVAL
from helpers.stores import SITE, write_store
from helpers.streams import MemoryStream, train_one

from saelib.activations.collect import collect
from saelib.activations.live import LiveBlocks, LiveRows
from saelib.activations.lm import LM
from saelib.config import CollectConfig, SAEConfig, StreamConfig, TrainConfig
from saelib.hardware import choose_dtype
from saelib.measure import evaluate
from saelib.measure.dictionary import shuffled_dims
from saelib.measure.geometry import pca_fvu, site_profile, spectrum
from saelib.measure.pursuit import lasso_at_l1, nn_omp
from saelib.measure.reference import site_reference
from saelib.sae import build_sae, sparse
from saelib.sae.sparse import plain as sparse_plain
from saelib.sae.sparse import triton as sparse_triton
from saelib.sae.sparse.selection import largest, largest_of_batch
from saelib.sae.spec import ARMS
from saelib.sae.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
GPU, CPU = torch.device("cuda"), torch.device("cpu")
LOSSES = ["plain", "two_term", "full"]
STEPS_OF = [*LOSSES, "jumprelu", "jumprelu_tanh", "p_anneal"]


def _sae(loss, device, d=D, n=N, site=0):
    return build_sae(
        SAEConfig(arch=ARMS[loss][0], d_in=d, n_latents=n, site=site),
        torch.Generator().manual_seed(0),
    ).to(device)


def _cfg(loss, **changes):
    return TrainConfig(
        **{"loss": loss, "tokens": 64 * 300, "batch_size": 64, "lam": 0.5, "lr": 3e-3} | changes
    )


def test_the_sparse_step_of_a_gpu_is_in_triton_with_a_screen():
    assert sparse.operations(GPU) is sparse_triton
    assert sparse.screens(GPU) == torch.cuda.is_bf16_supported(including_emulation=False)
    assert choose_dtype("auto", GPU) == (torch.bfloat16 if sparse.screens(GPU) else torch.float32)


@pytest.mark.parametrize("encoder", ["exact", "screen"])
@pytest.mark.parametrize(
    "shape", [(5, 3, 7), (33, 40, 64), (17, 16, 129), (256, 1000, 3000), (64, 4096, 8192)], ids=str
)
def test_entries_and_their_gradients_are_plain_pytorchs(shape, encoder):
    rows, d, n = shape
    g = torch.Generator().manual_seed(rows)
    x_c, W = torch.randn(rows, d, generator=g).to(GPU), torch.randn(n, d, generator=g).to(GPU)
    bias = -torch.rand(n, generator=g).to(GPU) * 2 * d**0.5
    exact, at = (
        sparse_plain.open_entries(x_c, W.T, bias),
        sparse_triton.open_entries(x_c, W.T, bias, encoder),
    )
    assert len(exact.col)
    values, sure = {}, {}
    for name, e in (("plain", exact), ("triton", at)):
        row, col = torch.repeat_interleave(e.crow.diff()), e.col.long()
        assert torch.equal(
            e.ccol, torch.nn.functional.pad(col.bincount(minlength=n).cumsum(0), (1, 0))
        )
        assert torch.equal(e.row.long(), row[e.order.long()])
        assert torch.equal(col[e.order.long()], col.sort().values)
        values[name] = torch.zeros(rows, n, device=GPU).index_put_((row, col), e.value)
        sure[name] = torch.zeros(rows, n, device=GPU, dtype=torch.bool)
        sure[name][row, col] = e.value + bias[col] > 1e-4 * d**0.5  # nearer to 0 rounding decides
    assert torch.equal(sure["plain"], sure["triton"])
    assert sure["plain"].any()
    on = sure["plain"]
    torch.testing.assert_close(values["plain"][on], values["triton"][on], rtol=1e-4, atol=1e-4)
    f = exact.value.abs()
    pairs = zip(
        *(ops.decode(x_c, W, x_c[0], exact, f, 0.5) for ops in (sparse_plain, sparse_triton)),
        strict=True,
    )
    for plain, triton in [
        *pairs,
        [ops.weight_gradient(x_c, exact, f, n) for ops in (sparse_plain, sparse_triton)],
    ]:
        assert (plain - triton).norm() <= 1e-5 * plain.norm()


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e10, 1e19], ids=str)
def test_the_screen_loses_nothing_that_bfloat16_would_round_away(size):
    """Each row is open by a thousandth of its size in one latent.

    There bfloat16 is wrong by a few thousandths.
    """
    g = torch.Generator().manual_seed(0)
    x_c, W = torch.randn(256, 64, generator=g), torch.randn(256, 64, generator=g)
    a = x_c @ W.T
    x_c, bias = x_c * size, (1e-3 * a.abs().clamp_min(0.1) - a).diagonal() * size
    rounded = (x_c.bfloat16() @ W.bfloat16().T).float().diagonal() + bias
    at = sparse_triton.open_entries(x_c.to(GPU), W.to(GPU).T, bias.to(GPU), "screen")
    row = torch.repeat_interleave(at.crow.diff())
    assert (rounded <= 0).sum() > 20  # what a plain bfloat16 encoder would drop
    assert (row == at.col).sum() == 256


def test_nothing_fires_in_an_empty_batch_of_entries():
    ones, eye = torch.ones(4, 7, device=GPU), torch.eye(7, device=GPU)
    at = sparse_triton.open_entries(-ones, eye, torch.zeros(7, device=GPU), "screen")
    assert at.crow.tolist() == [0] * 5
    assert at.ccol.tolist() == [0] * 8
    error, squared, g_code = sparse_triton.decode(
        ones, eye, eye[0] * 0, at, torch.empty(0, device=GPU), 2.0
    )
    assert (error.tolist(), float(squared), len(g_code)) == ([[-2.0] * 7] * 4, 28.0, 0)


def test_the_largest_are_those_of_the_cpu():
    pre = torch.randn(64, 500, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # ties
    for k in (1, 8, 400):
        assert torch.equal(largest(pre.to(GPU), k).cpu(), largest(pre, k))
        assert torch.equal(
            largest_of_batch(pre.to(GPU), 64 * k).cpu(), largest_of_batch(pre, 64 * k)
        )


@pytest.mark.parametrize("step", ["dense", "sparse"])
@pytest.mark.parametrize("loss", STEPS_OF)
def test_one_step_gives_the_cpus_gradients(loss, step):
    found = {}
    for device in (CPU, GPU):
        trainer = Trainer(_sae(loss, device), _cfg(loss, step="dense" if device == CPU else step))
        trainer._gradients(sparse_rows()[:256].to(device), 0.3)
        found[device] = {name: p.grad.cpu() for name, p in trainer.sae.named_parameters()}
    for name, want in found[CPU].items():
        assert (found[GPU][name] - want).norm() <= 1e-5 * want.norm(), name


@pytest.mark.parametrize("loss", LOSSES)
def test_training_ends_where_the_cpu_ends(loss):
    fvu = {}
    for device in (CPU, GPU):
        sae, x = _sae(loss, device), sparse_rows()
        history = train_one(
            sae,
            MemoryStream(x, 64),
            _cfg(loss, resample_at=(0.3,), dead_window=500, snapshots=2),
            probe=x[:9],
        )
        x_hat = sae.requires_grad_(False).reconstruct(x.to(device)).cpu()
        fvu[device.type] = float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())
        assert len(history.events) == 1
    assert fvu["cpu"] < 0.6
    assert fvu["cuda"] == pytest.approx(fvu["cpu"], rel=0.02)


def test_rows_that_are_on_the_gpu_already_train_the_same_sae():
    """As they come from a language model there."""
    saes = [_sae("plain", GPU) for _ in range(2)]
    for sae, x in zip(saes, (sparse_rows(), sparse_rows().to(GPU)), strict=True):
        train_one(sae, MemoryStream(x, 64), _cfg("plain", tokens=64 * 20))
    assert torch.equal(saes[0].W_dec, saes[1].W_dec)


@pytest.mark.parametrize("loss", ["plain", "full"])
def test_a_run_continued_on_the_gpu_is_the_uninterrupted_one(loss, tmp_path):
    x, cfg, file = (
        sparse_rows(),
        _cfg(loss, lam=5.0, resample_at=(0.3,), dead_window=500),
        tmp_path / "checkpoint",
    )

    class Killed(Exception):
        pass

    def kill(row):
        if row["step"] > 150:
            raise Killed

    whole = _sae(loss, GPU)
    train_one(whole, MemoryStream(x, 64), cfg)
    with pytest.raises(Killed):
        train_one(
            _sae(loss, GPU),
            MemoryStream(x, 64),
            cfg,
            checkpoint=file,
            checkpoint_every=50,
            on_log=kill,
        )
    again = _sae(loss, GPU)
    assert train_one(again, MemoryStream(x, 64), cfg, checkpoint=file).resumed_at
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_collection_on_the_gpu_stores_the_cpus_rows(tmp_path):
    stores = []
    for device in (CPU, GPU):
        lm = make_lm()
        lm = LM(lm.model.to(device), name=lm.name)
        stores.append(
            collect(lm, make_contexts(), SITES, tmp_path / device.type, CFG, progress=False)
        )
    for site in stores[0].sites:
        index = np.arange(stores[0].n_rows)
        torch.testing.assert_close(
            *(store.rows(site, index) for store in stores), rtol=1e-4, atol=1e-5
        )


def test_capture_in_bfloat16_is_the_models_own_hidden_state():
    lm = LM(make_lm(dtype=torch.bfloat16).model.to(GPU))
    ids = torch.randint(61, (3, 9), device=GPU)
    with torch.no_grad():
        hidden = lm.model(ids, output_hidden_states=True).hidden_states
    for site, stream in lm.capture(ids, (1, 2)).items():
        assert torch.equal(stream, hidden[site])


def test_every_metric_is_the_cpus(tmp_path):
    """The reference too: on either device identity recovers exactly 1, zero-ablation exactly 0."""
    cpu = tiny_llama()
    store, columns = write_store(cpu, tmp_path / "store"), []
    lms = {CPU: cpu, GPU: LM(tiny_llama().model.to(GPU), None, cpu.name)}
    for device, lm in lms.items():
        saes = {
            loss: _sae(loss, device, store.d_model, 64, SITE).requires_grad_(False)
            for loss in LOSSES
        }
        ref = site_reference(lm, store, SITE, EVAL)
        columns.append(evaluate.evaluate(saes, store, SITE, lm, ref, EVAL))
    for loss in LOSSES:
        for name, want in columns[0][loss].items():
            if isinstance(want, float):
                assert columns[1][loss][name] == pytest.approx(want, rel=1e-3, abs=1e-4), (
                    loss,
                    name,
                )


def test_diagnosis_and_measuring_on_the_stores_device_are_the_cpus(tmp_path):
    store = write_store(tiny_llama(), tmp_path / "store")
    sae, found = _sae("full", CPU, store.d_model, 64, SITE).requires_grad_(False), []
    for store.device in (CPU, GPU):
        measured = evaluate.quick_metrics(sae, store, SITE)
        assert sae.mean.device == CPU
        columns = [
            pca_fvu(store, SITE)["fvu"],
            site_profile(store)["participation"],
            spectrum(store, SITE),
        ]
        found.append(
            [np.asarray(column) for column in (*columns, [measured["fvu"], measured["l0"]])]
        )
    for of_cpu, of_gpu in zip(*found, strict=True):
        np.testing.assert_allclose(of_gpu, of_cpu, rtol=1e-3, atol=1e-6)


def test_dimensions_are_shuffled_where_the_rows_are():
    x = sparse_rows()[:200].to(GPU)
    shuffled = shuffled_dims(x, 0)
    assert shuffled.device.type == "cuda"
    assert torch.equal(shuffled.sort(0).values, x.sort(0).values)
    assert not torch.equal(shuffled, x)


def test_live_rows_on_the_gpu_are_the_cpus(tmp_path):
    lms = {CPU: make_lm(), GPU: LM(make_lm().model.to(GPU), name="tiny")}
    store = collect(lms[CPU], make_contexts(), SITES, tmp_path / "store", CFG, progress=False)
    batches = []
    for lm in lms.values():
        stream = LiveRows(
            LiveBlocks(lm, make_contexts(), store, StreamConfig(64)), store.sites[0], "all", 4
        )
        batches.append([next(stream) for _ in range(5)])
        assert stream.device.type == lm.device.type
    for (x, rows), (y, others) in zip(*batches, strict=True):
        np.testing.assert_array_equal(rows, others)
        torch.testing.assert_close(y.cpu(), x, rtol=1e-4, atol=1e-5)


def test_an_8_bit_store_of_the_gpus_rows_is_near_the_cpus(tmp_path):
    cfg, stores = CollectConfig(CFG.batch_tokens, CFG.shard_tokens, "int8"), []
    for device in (CPU, GPU):
        lm = LM(make_lm().model.to(device), name="tiny")
        stores.append(
            collect(lm, make_contexts(), SITES, tmp_path / device.type, cfg, progress=False)
        )
    for site in stores[0].sites:
        x, y = (store.rows(site, np.arange(store.n_rows)) for store in stores)
        assert float((x - y).abs().max()) <= float(x.abs().max()) / 50


def test_a_profile_is_planned_by_this_gpus_rates():
    module = pytest.importorskip("saelib.run.rates")
    config = make_lm().model.config
    rates = module.measured(config, 32, GPU, torch.bfloat16)
    assert "measured on cuda" in rates.origin
    assert min(rates.block, rates.head, rates.sums, rates.step(128, 64, True, False)) > 0


def test_pursuit_finds_the_cpus_codes():
    x, g = sparse_rows()[:300], torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(48, D, generator=g), dim=1)
    of_cpu = nn_omp(x, atoms, 4)
    for code in (
        lambda x, atoms: nn_omp(x, atoms, 4),
        lambda x, atoms: lasso_at_l1(x, atoms, of_cpu.to(x)),
    ):
        errors = [
            float((x - (code(x.to(on), atoms.to(on)) @ atoms.to(on)).cpu()).square().sum())
            for on in (CPU, GPU)
        ]
        assert errors[1] == pytest.approx(errors[0], rel=1e-3)
