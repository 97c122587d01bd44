"""Golden rows: what measuring gives for fixed SAEs on a fixed store, so that changes show.

The text counts upwards, with jumps drawn by a generator, and the model is built to predict the next
number, so that nothing is sampled from the model and ablation costs something. To print the table
anew: `PYTHONPATH=.:tests python tests/measure/test_golden_measuring.py`.
"""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import SINK_TOKEN, D, tiny_llama
from helpers.stores import CFG, LENGTHS, SITE, write_store

from saelib.activations.moments import row_moments
from saelib.config import SAEConfig
from saelib.measure.evaluate import evaluate
from saelib.measure.reference import site_reference
from saelib.sae import ARCHITECTURES, build_sae

N_LATENTS, VOCAB = 48, 200
OPTIONS = {"topk": {"k": 8}, "jumprelu": {"initial_threshold": 0.0}}
THRESHOLD = 0.25  # of SAEs that have one for all latents
GOLDEN = {
    "sae": {
        "mse": 26.5248499,
        "mse_raw": 0.0119330491,
        "fvu": 0.828813293,
        "l0": 24.0884808,
        "l1": 7.08593776,
        "dead_fraction": 0,
        "gate_dead": None,
        "shrinkage": 0.888106169,
        "shrinkage_raw": 0.892838335,
        "n_test_tokens": 599,
        "fvu_sink": 0.85323182,
        "fvu_all": 0.822640652,
        "l0_all": 24.1354167,
        "ce_id": 2.22250879,
        "ce_sae": 5.58126863,
        "ce_zero": 7.41857668,
        "ce_mean": 7.72650223,
        "delta_ce": 3.35875984,
        "kl": 3.97451206,
        "loss_recovered": 0.353595852,
        "loss_recovered_mean": 0.389759476,
        "fvu_val": 0.845916971,
        "l0_val": 23.8639798,
        "n_test_pages": 12,
        "note": "",
    },
    "gated": {
        "mse": 25.7743731,
        "mse_raw": 0.0115954231,
        "fvu": 0.805363389,
        "l0": 22.2854758,
        "l1": 7.20382263,
        "dead_fraction": 0.125,
        "gate_dead": 0,
        "shrinkage": 0.923063038,
        "shrinkage_raw": 0.925583877,
        "n_test_tokens": 599,
        "fvu_sink": 0.818436767,
        "fvu_all": 0.789097747,
        "l0_all": 22.360119,
        "ce_id": 2.22250879,
        "ce_sae": 5.24379011,
        "ce_zero": 7.41857668,
        "ce_mean": 7.72650223,
        "delta_ce": 3.02128131,
        "kl": 3.62136461,
        "loss_recovered": 0.418544681,
        "loss_recovered_mean": 0.451074688,
        "fvu_val": 0.821891765,
        "l0_val": 21.9823678,
        "n_test_pages": 12,
        "note": "",
    },
    "topk": {
        "mse": 26.8216218,
        "mse_raw": 0.0120665614,
        "fvu": 0.838086429,
        "l0": 8,
        "l1": 4.17917866,
        "dead_fraction": 0.333333333,
        "gate_dead": None,
        "shrinkage": 0.752628449,
        "shrinkage_raw": 0.764136846,
        "n_test_tokens": 599,
        "fvu_sink": 0.895210526,
        "fvu_all": 0.86310019,
        "l0_all": 8,
        "ce_id": 2.22250879,
        "ce_sae": 5.67321583,
        "ce_zero": 7.41857668,
        "ce_mean": 7.72650223,
        "delta_ce": 3.45070704,
        "kl": 4.06684125,
        "loss_recovered": 0.335900317,
        "loss_recovered_mean": 0.373053933,
        "fvu_val": 0.851089045,
        "l0_val": 8,
        "n_test_pages": 12,
        "note": "",
    },
    "batchtopk": {
        "mse": 26.5060949,
        "mse_raw": 0.0119246115,
        "fvu": 0.828227263,
        "l0": 12.6994992,
        "l1": 5.6784808,
        "dead_fraction": 0.125,
        "gate_dead": None,
        "shrinkage": 0.842457431,
        "shrinkage_raw": 0.849567412,
        "n_test_tokens": 599,
        "fvu_sink": 0.85323339,
        "fvu_all": 0.822641903,
        "l0_all": 13.2172619,
        "ce_id": 2.22250875,
        "ce_sae": 5.59242927,
        "ce_zero": 7.41857663,
        "ce_mean": 7.72650217,
        "delta_ce": 3.36992052,
        "kl": 3.96564163,
        "loss_recovered": 0.351447941,
        "loss_recovered_mean": 0.387731732,
        "fvu_val": 0.843676119,
        "l0_val": 12.3400504,
        "n_test_pages": 12,
        "note": "",
    },
    "matryoshka": {
        "mse": 26.5060949,
        "mse_raw": 0.0119246115,
        "fvu": 0.828227263,
        "l0": 12.6994992,
        "l1": 5.6784808,
        "dead_fraction": 0.125,
        "gate_dead": None,
        "shrinkage": 0.842457431,
        "shrinkage_raw": 0.849567412,
        "n_test_tokens": 599,
        "fvu_sink": 0.85323339,
        "fvu_all": 0.822641903,
        "l0_all": 13.2172619,
        "ce_id": 2.22250875,
        "ce_sae": 5.59242927,
        "ce_zero": 7.41857663,
        "ce_mean": 7.72650217,
        "delta_ce": 3.36992052,
        "kl": 3.96564163,
        "loss_recovered": 0.351447941,
        "loss_recovered_mean": 0.387731732,
        "fvu_val": 0.843676119,
        "l0_val": 12.3400504,
        "n_test_pages": 12,
        "note": "",
    },
    "jumprelu": {
        "mse": 24.5465464,
        "mse_raw": 0.0110430462,
        "fvu": 0.766997892,
        "l0": 15.836394,
        "l1": 5.48018085,
        "dead_fraction": 0,
        "gate_dead": None,
        "shrinkage": 0.695485101,
        "shrinkage_raw": 0.700467137,
        "n_test_tokens": 599,
        "fvu_sink": 0.853229781,
        "fvu_all": 0.822611032,
        "l0_all": 16.2767857,
        "ce_id": 2.22250879,
        "ce_sae": 5.18372296,
        "ce_zero": 7.41857668,
        "ce_mean": 7.72650223,
        "delta_ce": 2.96121416,
        "kl": 3.54863627,
        "loss_recovered": 0.430104797,
        "loss_recovered_mean": 0.461988065,
        "fvu_val": 0.782549827,
        "l0_val": 15.4357683,
        "n_test_pages": 12,
        "note": "",
    },
}
GOLDEN["p_anneal"] = GOLDEN["sae"]  # trained otherwise, but the same of equal weights
ADVICE = (
    "Measuring's arithmetic changed: rows measured before and after would stand in one table. If "
    "that is meant, raise MEASURING_VERSION in saelib/versions.py and record this table anew (see "
    "the head of this file)."
)


def counting_model():
    """A model whose logits are highest for the number after the one it reads."""
    lm = tiny_llama()
    embedding = lm.model.model.embed_tokens.weight
    with torch.no_grad():
        plain = embedding.clone()
        plain[SINK_TOKEN] /= 200
        lm.model.lm_head.weight.copy_(20 * plain.roll(1, 0))
    return lm


def counting_texts():
    """Contexts that count upwards from anywhere, a tenth of the numbers drawn anew, some sinks."""
    generator = torch.Generator().manual_seed(3)
    texts = []
    for length in LENGTHS:
        ids = torch.randint(VOCAB, (96, length), generator=generator)
        jumps = torch.rand(96, length, generator=generator) < 0.1
        for i in range(1, length):
            ids[:, i] = torch.where(jumps[:, i], ids[:, i], (ids[:, i - 1] + 1) % VOCAB)
        ids[torch.rand(96, length, generator=generator) < 0.04] = SINK_TOKEN
        texts.append(ids)
    return texts


def fixed_sae(arch, store):
    """An SAE that was not trained, with the site's normaliser, whose latents fire at many rates."""
    config = SAEConfig(arch, D, N_LATENTS, SITE, options=OPTIONS.get(arch, {}))
    sae = build_sae(config, torch.Generator().manual_seed(5)).requires_grad_(False)
    moments = row_moments(store, SITE, np.flatnonzero(store.mask("ordinary", "train")))
    sae.set_normalizer_(moments.mean.float(), (D / moments.mean_sq_dev) ** 0.5)
    for name in sae.bias_names():
        getattr(sae, name).sub_(torch.linspace(-0.5, 0.5, N_LATENTS))
    for name, buffer in sae.named_buffers():
        if name == "threshold":
            buffer.fill_(THRESHOLD)
    return sae


@cache
def measured():
    """The row of each architecture."""
    lm = counting_model()
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(lm, Path(folder) / "store", counting_texts())
        saes = {arch: fixed_sae(arch, store) for arch in ARCHITECTURES}
        reference = site_reference(lm, store, SITE, CFG)
        rows = evaluate(saes, store, SITE, lm, reference, CFG)
    for row in rows.values():
        del row["pages"]
    return rows


@pytest.mark.parametrize("arch", GOLDEN)
def test_measuring_s_arithmetic_is_the_recorded_one(arch):
    row = measured()[arch]
    assert set(row) >= set(GOLDEN[arch]), ADVICE  # a new metric needs no new table
    for name, value in GOLDEN[arch].items():
        wanted = value if isinstance(value, str | None) else pytest.approx(value, rel=1e-5)
        assert row[name] == wanted, f"{name}: {ADVICE}"


def test_each_architecture_has_its_golden_row():
    assert set(GOLDEN) == set(ARCHITECTURES)


def test_the_golden_rows_are_of_saes_that_do_something():
    for row in GOLDEN.values():
        assert 0.05 < row["fvu"] < 0.95
        assert 1 < row["l0"] < 0.75 * N_LATENTS
        assert 0.02 < row["loss_recovered"] < 0.98
        assert row["ce_zero"] - row["ce_id"] > 1


if __name__ == "__main__":
    for arch, row in measured().items():
        print(f'    "{arch}": {{')
        for name, value in row.items():
            shown = f"{value:.9g}" if isinstance(value, float) else repr(value).replace("'", '"')
            print(f'        "{name}": {shown},')
        print("    },")
