"""Evaluation on a real store and a tiny Llama, against a naive computation with its own code.

The model writes its own text, so that its loss is low and ablation costs something; one token's
embedding is scaled up, so that sinks exist; at the last site another is a sink alone; contexts have
two lengths.
"""

import copy
import json
import math

import numpy as np
import pytest
import torch
from helpers.models import D, tiny_llama
from helpers.scratch_sae import HardTanhSAE
from helpers.stores import CFG, SITE, SITES, write_store

from saelib.activations.moments import row_moments
from saelib.config import EvalConfig, SAEConfig
from saelib.measure import evaluate, replaced_loss
from saelib.measure.bootstrap import bootstrap_pages
from saelib.measure.columns import LOSS_COLUMNS, MEASURED, reconstruction_metrics
from saelib.measure.evaluate import feature_density, quick_metrics
from saelib.measure.reconstruction import Reconstruction, RowSums
from saelib.measure.reference import site_reference
from saelib.sae import ARCHITECTURES, build_sae
from saelib.sae.formats import export, load

# Each measured column, and what a row says of itself.
MEASURED_HERE = {column.name for column in MEASURED} | {"n_test_pages", "n_test_tokens"}


def normaliser(store, split="train"):
    moments = row_moments(store, SITE, np.flatnonzero(store.mask("ordinary", split)))
    return moments.mean.float(), math.sqrt(D / moments.mean_sq_dev)


def make_sae(store, arch="sae", seed=0):
    sae = build_sae(
        SAEConfig(arch=arch, d_in=D, n_latents=48, site=SITE), torch.Generator().manual_seed(seed)
    )
    sae.set_normalizer_(*normaliser(store))
    with torch.no_grad():
        sae.W_enc *= 5
        sae.b_dec += 0.1
        if not sae.has_gate:
            sae.b_enc -= torch.linspace(0, 12, 48)
        else:
            sae.b_gate -= torch.linspace(0, 6, 48)
            sae.b_mag -= 0.5
            sae.b_mag[:2] = -100  # gates that open in vain
            sae.r_mag += 0.3
    return sae


def constant_sae(mean):
    """x̂ = mean whatever x is."""
    sae = build_sae(SAEConfig(d_in=D, n_latents=48, site=SITE))
    sae.set_normalizer_(mean, 1.0)
    with torch.no_grad():
        sae.W_enc.zero_()
    return sae


def identity_sae():
    """x̂ = ReLU(x) − ReLU(−x) = x to the last bit."""
    sae = build_sae(SAEConfig(d_in=D, n_latents=2 * D, site=SITE))
    with torch.no_grad():
        sae.W_dec.copy_(torch.cat([torch.eye(D), -torch.eye(D)]))
        sae.W_enc.copy_(sae.W_dec.T)
    return sae


@pytest.fixture(scope="module")
def saes(store):
    return {
        "plain": make_sae(store),
        "gated": make_sae(store, "gated", 1),
        "identity": identity_sae(),
        "zero": constant_sae(torch.zeros(D)),
        "train mean": constant_sae(normaliser(store)[0]),
        "test mean": constant_sae(normaliser(store, "test")[0]),
    }


@pytest.fixture(scope="module")
def results(saes, store, lm, ref):
    return evaluate.evaluate(saes, store, SITE, lm, ref, CFG)


# --- naive twins ----------------------------------------------------------------------------------


def naive_rows(store, split=2):
    """Rows of a split with their classes, by definition: ordinary everywhere, first, sink."""
    t = store.tokens
    norms = {site: store.rows(site, np.arange(store.n_rows)).norm(dim=1).numpy() for site in SITES}
    later = t["position"] > 0
    sink = {
        s: later & (norms[s] > 5 * np.median(norms[s][later & (t["split"] == 0)])) for s in SITES
    }
    mine = t["split"] == split
    ordinary = mine & later & ~np.logical_or.reduce(list(sink.values()))
    return {"all": mine, "ordinary": ordinary, "sink": mine & (~later | sink[SITE])}


def naive_reconstruction(sae, store, split=2):
    masks = naive_rows(store, split)
    x = store.rows(SITE, np.arange(store.n_rows))
    with torch.no_grad():
        f, x_hat = sae.encode_raw(x).double().numpy(), sae.reconstruct(x).double().numpy()
        gate = sae.gate_open(sae.normalize(x)).numpy()
    x, s = x.double().numpy(), float(sae.scale)
    out = {}
    for name, suffix in (("ordinary", ""), ("all", "_all")):
        a, b, mu = x[masks[name]], x_hat[masks[name]], x[masks[name]].mean(0)
        out["fvu" + suffix] = ((a - b) ** 2).sum() / ((a - mu) ** 2).sum()
        out["l0" + suffix] = (f[masks[name]] > 0).sum(1).mean()
    m = masks["sink"]
    out["fvu_sink"] = ((x[m] - x_hat[m]) ** 2).sum() / ((x[m] - x[masks["all"]].mean(0)) ** 2).sum()
    m = masks["ordinary"]
    a, b, c, mu = x[m], x_hat[m], f[m], x[m].mean(0)
    out |= {"mse": ((s * a - s * b) ** 2).sum(1).mean(), "mse_raw": ((a - b) ** 2).sum(1).mean()}
    out |= {
        "l1": c.sum(1).mean(),
        "dead_fraction": (c.max(0) == 0).mean(),
    }
    out |= {
        "shrinkage": ((b - mu) ** 2).sum() / ((a - mu) * (b - mu)).sum(),
        "shrinkage_raw": (b**2).sum() / (a * b).sum(),
    }
    out |= {"n_test_tokens": m.sum(), "n_test_pages": len(set(store.tokens["page"][m]))}
    return out | {"gate_dead": (~gate[m].any(0)).mean()}


def naive_losses(lm, store, contexts, replace):
    """Mean loss and KL to the unpatched model, one context at a time, by a hook in its forward."""
    ordinary = naive_rows(store, 2)["ordinary"]
    ce, kl, n = 0.0, 0.0, 0
    for context in contexts:
        rows = store.context_rows(context)
        ids = torch.from_numpy(store.tokens["token_id"][rows].astype(np.int64))[None]
        at = torch.from_numpy(ordinary[rows])

        def patch(_, args, kwargs, at=at):
            stream = (args[0] if args else kwargs["hidden_states"]).clone()
            stream[0, at] = replace(stream[0, at])
            return (
                ((stream, *args[1:]), kwargs)
                if args
                else (args, kwargs | {"hidden_states": stream})
            )

        with torch.no_grad():
            clean = lm.model(ids).logits[0].double().log_softmax(-1)[:-1]
            hook = lm.model.model.layers[SITE].register_forward_pre_hook(patch, with_kwargs=True)
            log_q = lm.model(ids).logits[0].double().log_softmax(-1)[:-1]
            hook.remove()
        ce -= log_q.gather(1, ids[0, 1:, None]).sum().item()
        kl += (clean.exp() * (clean - log_q)).sum().item()
        n += len(log_q)
    return ce / n, kl / n


# --- tests ----------------------------------------------------------------------------------------


def test_the_store_has_what_the_tests_need(store):
    masks = naive_rows(store)
    assert masks["sink"].sum() >= 50
    assert (
        masks["all"] & ~masks["ordinary"] & ~masks["sink"]
    ).sum() > 0  # sinks at another site only
    assert masks["ordinary"].sum() > 200


@pytest.mark.parametrize("name", ["plain", "gated"])
def test_reconstruction_columns_agree_with_a_naive_computation(name, results, saes, store):
    got, want = results[name], naive_reconstruction(saes[name], store)
    if name == "plain":
        assert got["gate_dead"] is None
        del want["gate_dead"]
    else:
        assert 0 < got["gate_dead"] < got["dead_fraction"]
    assert {k: got[k] for k in want} == pytest.approx(want, rel=1e-5)
    val = naive_reconstruction(saes[name], store, split=1)
    assert (got["fvu_val"], got["l0_val"]) == pytest.approx((val["fvu"], val["l0"]), rel=1e-5)
    assert 1 < got["l0"] < 40
    assert 0 < got["dead_fraction"] < 1


@pytest.mark.parametrize("name", ["plain", "gated"])
def test_loss_columns_agree_with_a_hook_in_the_model(name, results, saes, store, lm, ref):
    mean = normaliser(store)[0]
    ce_sae, kl = naive_losses(lm, store, ref.contexts, saes[name].reconstruct)
    ce_id, no_kl = naive_losses(lm, store, ref.contexts, lambda x: x)
    ce_zero, _ = naive_losses(lm, store, ref.contexts, torch.zeros_like)
    ce_mean, _ = naive_losses(lm, store, ref.contexts, lambda x: mean.expand_as(x))
    want = {
        "ce_id": ce_id,
        "ce_sae": ce_sae,
        "ce_zero": ce_zero,
        "ce_mean": ce_mean,
        "kl": kl,
        "delta_ce": ce_sae - ce_id,
    }
    want |= {"loss_recovered": (ce_zero - ce_sae) / (ce_zero - ce_id)}
    want |= {"loss_recovered_mean": (ce_mean - ce_sae) / (ce_mean - ce_id)}
    assert {k: results[name][k] for k in want} == pytest.approx(want, rel=1e-3, abs=1e-5)
    assert no_kl == 0
    assert ce_zero - ce_id > 0.5
    assert 0.02 < results[name]["loss_recovered"] < 0.98


def test_identity_recovers_exactly_one_and_ablations_exactly_zero(results):
    identity, zero, mean = (results[name] for name in ("identity", "zero", "train mean"))
    assert identity["loss_recovered"] == 1
    assert identity["loss_recovered_mean"] == 1
    assert (identity["delta_ce"], identity["kl"], identity["fvu"], identity["shrinkage"]) == (
        0,
        0,
        0,
        pytest.approx(1),
    )
    assert zero["loss_recovered"] == 0
    assert mean["loss_recovered_mean"] == 0


def test_the_ends_are_exact_in_bfloat16_too(tmp_path):
    lm = tiny_llama(dtype=torch.bfloat16)
    store = write_store(lm, tmp_path / "store")
    ends = {
        "identity": identity_sae(),
        "zero": constant_sae(torch.zeros(D)),
        "mean": constant_sae(normaliser(store)[0]),
    }
    got = evaluate.evaluate(ends, store, SITE, lm, site_reference(lm, store, SITE, CFG), CFG)
    assert (got["identity"]["loss_recovered"], got["identity"]["kl"]) == (1, 0)
    assert (got["zero"]["loss_recovered"], got["mean"]["loss_recovered_mean"]) == (0, 0)


def test_the_mean_predictor_has_fvu_one(results):
    assert results["test mean"]["fvu"] == pytest.approx(1, abs=1e-6)
    assert results["train mean"]["fvu"] > 1 + 1e-6  # another mean is worse
    assert results["zero"]["fvu"] > 1 + 1e-3  # so is zero: the denominator is about the mean


def test_every_column_is_there_and_the_rows_are_json(results):
    for row in results.values():
        assert set(row) == {*MEASURED_HERE, "pages"}
        json.dumps(row, allow_nan=False)


def test_only_test_pages_are_measured(results, saes, store, ref):
    test = {f"p{i}" for i in range(0, 48, 4)}
    got, train = results["plain"], quick_metrics(saes["plain"], store, SITE, split="train")
    assert {page["page_id"] for page in got["pages"]} == test
    assert {page["page_id"] for page in ref.pages} <= test
    assert got["fvu"] == pytest.approx(
        naive_reconstruction(saes["plain"], store, 2)["fvu"], rel=1e-6
    )
    assert train["fvu"] == pytest.approx(
        naive_reconstruction(saes["plain"], store, 0)["fvu"], rel=1e-6
    )
    assert abs(train["fvu"] / got["fvu"] - 1) > 1e-4


def test_sinks_are_kept_out_of_the_ordinary_columns(results):
    got = results["plain"]
    assert abs(got["fvu"] / got["fvu_all"] - 1) > 0.05
    assert abs(got["fvu"] / got["fvu_sink"] - 1) > 0.05


def test_only_ordinary_positions_are_replaced(store, lm, ref):
    seen = []
    replaced = {"spy": lambda x: seen.append(x.clone()) or x}
    replaced_loss.replaced_losses(lm, store, SITE, ref.contexts, 64, replaced)
    rows = np.concatenate(
        [np.arange(r.start, r.stop) for r in map(store.context_rows, ref.contexts)]
    )
    rows = rows[naive_rows(store)["ordinary"][rows]]
    assert torch.equal(torch.cat(seen), store.rows(SITE, rows))
    assert ref.n_replaced == len(rows)


def test_an_sae_is_measured_the_same_alone_and_in_company(results, saes, store, lm, ref):
    assert (
        evaluate.evaluate({"alone": saes["gated"]}, store, SITE, lm, ref, CFG)["alone"]
        == results["gated"]
    )


def test_one_clean_forward_a_batch_and_one_reading_of_each_test_row(
    saes, store, lm, ref, monkeypatch
):
    forwards, read = [], []
    continue_from, rows = lm.continue_from, store.rows
    monkeypatch.setattr(lm, "continue_from", lambda *a: forwards.append(1) or continue_from(*a))
    monkeypatch.setattr(
        store, "rows", lambda site, index: read.append(np.asarray(index)) or rows(site, index)
    )
    evaluate.evaluate({name: saes[name] for name in ("plain", "gated")}, store, SITE, lm, ref, CFG)
    lengths = [store.context_rows(c).stop - store.context_rows(c).start for c in ref.contexts]
    batches = math.ceil(lengths.count(12) / 5) + math.ceil(
        lengths.count(16) / 4
    )  # of at most 64 tokens
    assert len(forwards) == batches * 3
    once = np.bincount(np.concatenate(read), minlength=store.n_rows)[store.mask("all", "test")]
    assert once.max() <= 3  # itself, for the shift, and for the loss; not once for each SAE


def test_page_sums_give_the_totals_back(results):
    for name in ("plain", "gated"):
        row, pages = results[name], results[name]["pages"]
        total = {k: math.fsum(page[k] for page in pages) for k in pages[0] if k != "page_id"}
        assert total["n"] == row["n_test_tokens"]
        assert total["sse"] / total["sst"] == pytest.approx(row["fvu"])
        assert total["l0"] / total["n"] == pytest.approx(row["l0"])
        for ce in ("ce_id", "ce_sae", "ce_zero", "ce_mean"):
            assert total[ce] / total["ce_n"] == row[ce]
        columns = {k: np.array([page[k] for page in pages]) for k in total}
        low, high = bootstrap_pages(columns["sse"], columns["sst"])
        assert low < row["fvu"] < high
        cost = columns["ce_zero"] - columns["ce_id"]
        low, high = bootstrap_pages(columns["ce_zero"] - columns["ce_sae"], cost, signed=True)
        assert low < row["loss_recovered"] < high


def test_fvu_sink_needs_fifty_rows(saes, store, lm, ref, monkeypatch):
    monkeypatch.setattr(evaluate, "MIN_SINK_ROWS", 10_000)
    row = evaluate.evaluate({"a": saes["plain"]}, store, SITE, lm, ref, CFG)["a"]
    assert row["fvu_sink"] is None
    assert f"fvu_sink: {naive_rows(store)['sink'].sum()} first and sink rows" in row["note"]


@pytest.mark.parametrize("rows", [1, 49, 50])
def test_fvu_sink_is_reported_from_fifty_rows_on(saes, store, rows):
    chosen = evaluate._TestRows.at_site(store, SITE)
    chosen = chosen._replace(sets=chosen.sets | {"sink": chosen.sets["sink"][:rows]})
    tallies = chosen.tally({"a": saes["plain"]}, store, SITE)
    values, note = evaluate._reconstruction_columns("a", tallies)
    assert math.isfinite(values["fvu_sink"]) == (rows >= 50)
    said = {"fvu_sink": f"fvu_sink: {rows} first and sink rows, fewer than 50"}
    assert note == ({} if rows >= 50 else said)


def test_loss_recovered_is_undefined_where_ablation_costs_nothing(
    saes, store, lm, ref, monkeypatch
):
    monkeypatch.setattr(replaced_loss, "MIN_ABLATION_NATS", 1e3)
    row = evaluate.evaluate({"a": saes["plain"]}, store, SITE, lm, ref, CFG)["a"]
    assert row["loss_recovered"] is row["loss_recovered_mean"] is None
    assert "loss_recovered: ce_zero - ce_id = " in row["note"]
    assert row["delta_ce"] > 0


def test_undefined_values_are_none_with_a_reason(results):
    assert results["zero"]["shrinkage"] is None
    assert "shrinkage: undefined" in results["zero"]["note"]
    assert results["plain"]["note"] == ""


def test_without_loss_tokens_all_else_is_measured_the_same_and_no_model_is_needed(
    saes, store, lm, ref
):
    plain, none = {"plain": saes["plain"]}, EvalConfig(ce_tokens=0)
    whole, part = (
        evaluate.evaluate(plain, store, SITE, *with_loss)["plain"]
        for with_loss in ((lm, ref, CFG), (None, None, none))
    )
    differ = {k for k in whole if whole[k] != part[k]}
    assert differ == {*LOSS_COLUMNS, "note", "pages"}
    assert all(part[k] is None for k in LOSS_COLUMNS)
    assert "next-token loss: not measured (ce_tokens = 0)" in part["note"]
    assert [(p["sse"], p["ce_n"]) for p in part["pages"]] == [(p["sse"], 0) for p in whole["pages"]]
    with pytest.raises(
        ValueError, match="ce_tokens = 400: a language model and a reference are needed"
    ):
        evaluate.evaluate(plain, store, SITE, None, None, CFG)


def test_what_does_not_belong_together_is_refused_by_name(saes, store, lm, ref):
    plain = {"plain": saes["plain"]}
    with pytest.raises(ValueError, match="reference's config is"):
        evaluate.evaluate(plain, store, SITE, lm, ref, EvalConfig(ce_tokens=17))
    with pytest.raises(ValueError, match="reference's site is 2, the evaluation's is 4"):
        evaluate.evaluate(plain, store, 4, lm, ref, CFG)
    with pytest.raises(ValueError, match="belongs to site 2"):
        quick_metrics(saes["plain"], store, 4)
    with pytest.raises(ValueError, match="width"):
        quick_metrics(build_sae(SAEConfig(d_in=8, n_latents=4, site=SITE)), store, SITE)
    with pytest.raises(ValueError, match=r"tiny-0@\w+', the model given is 'tiny-1@"):
        site_reference(tiny_llama(1), store, SITE, CFG)


def test_quick_metrics_and_density_are_over_ordinary_rows_of_the_split(saes, store):
    want = naive_reconstruction(saes["gated"], store, split=1)
    got = quick_metrics(saes["gated"], store, SITE)
    both = got.keys() & want.keys()
    assert both >= {"fvu", "mse", "l0", "l1", "shrinkage", "dead_fraction"}
    assert {k: got[k] for k in both} == pytest.approx({k: want[k] for k in both}, rel=1e-5)
    ordinary = np.flatnonzero(naive_rows(store, 2)["ordinary"])
    with torch.no_grad():
        density = (saes["gated"].encode_raw(store.rows(SITE, ordinary)) > 0).double().mean(0)
    assert feature_density(saes["gated"], store, SITE) == pytest.approx(density.numpy())


@pytest.mark.parametrize("format", ["saelens", "dictionary_learning"])
@pytest.mark.parametrize("arch", ["sae", "gated", "topk"])
def test_an_sae_from_another_library_is_measured_as_any_other(store, arch, format, tmp_path):
    sae = build_sae(SAEConfig(arch, D, 48, SITE), torch.Generator().manual_seed(0))
    sae.set_normalizer_(*normaliser(store))
    carried = load(export(sae.requires_grad_(False), format, tmp_path / "out"))
    cfg = EvalConfig(ce_tokens=0)
    rows = evaluate.evaluate({"ours": sae, "carried": carried}, store, SITE, None, None, cfg)
    for name in ("fvu", "fvu_sink", "fvu_all", "l0", "l0_all", "mse_raw", "dead_fraction"):
        assert rows["carried"][name] == pytest.approx(rows["ours"][name], rel=1e-5), name


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_sums_from_open_entries_are_those_of_dense_codes(arch):
    """float32 SAEs go by their open entries alone, others by the definition."""
    generator = torch.Generator().manual_seed(0)
    sae = build_sae(SAEConfig(arch, d_in=12, n_latents=40), generator).requires_grad_(False)
    for name in sae.bias_names():
        getattr(sae, name).copy_(0.2 * torch.randn(40, generator=generator) - 0.1)
    sae.W_enc[:, :3] = 0
    getattr(sae, sae.bias_names()[0])[:3] = -1  # never open
    x, group = torch.randn(60, 12, generator=generator), torch.arange(60) % 3
    sums = []
    for one in (sae, copy.deepcopy(sae).double()):
        rows = RowSums(x[0], 3)
        rows.update(x, group)
        sums.append(Reconstruction(rows, 40))
        evaluate._tally_sae(one, x.to(one.W_dec.dtype), sums[-1], group)
    a, b = sums
    assert (a.fired == 0).sum() >= 3
    assert torch.equal(a.fired, b.fired)
    assert torch.equal(a.active, b.active)
    assert (a.opened is None) == (not sae.has_gate)
    assert a.opened is None or torch.equal(a.opened, b.opened)
    torch.testing.assert_close(a.sse, b.sse, rtol=1e-5, atol=0)
    assert reconstruction_metrics(a) == pytest.approx(
        reconstruction_metrics(b), rel=1e-5, nan_ok=True
    )


def test_an_architecture_with_a_b_enc_and_another_encoder_is_measured_as_it_encodes(
    store, monkeypatch
):
    monkeypatch.setitem(ARCHITECTURES, "hardtanh", HardTanhSAE)
    sae = make_sae(store, "hardtanh").requires_grad_(False)
    want = naive_reconstruction(sae, store, split=1)
    got = quick_metrics(sae, store, SITE)
    relu = quick_metrics(make_sae(store).requires_grad_(False), store, SITE)
    assert got.pop("gate_dead") is None
    both = got.keys() & want.keys()
    assert both >= {"fvu", "mse", "l0", "l1", "shrinkage", "dead_fraction"}
    assert {k: got[k] for k in both} == pytest.approx({k: want[k] for k in both}, rel=1e-5)
    assert abs(got["fvu"] - relu["fvu"]) > 1e-3
