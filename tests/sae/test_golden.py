"""Golden runs: what training's arithmetic gives, so that a change of it cannot pass unnoticed.

Every architecture, loss and step is trained for 50 steps on fixed rows; the last logged loss must
be the recorded one to 1e-5. Run this file as a programme to print the table anew: `python
tests/sae/test_golden.py`.
"""

import itertools

import pytest
import torch

from saelib.config import SAEConfig, TrainConfig
from saelib.sae import build_sae
from saelib.sae.spec import ARMS
from saelib.sae.trainer import Trainer

D_IN, N_LATENTS, BATCH, STEPS = 24, 96, 64, 50
STEPS_TAKEN = ("dense", "sparse")
MODES = ("unit_norm", "norm_weighted")
CASES = list(itertools.product(("plain",), STEPS_TAKEN, MODES))
CASES += list(itertools.product(("two_term", "full"), STEPS_TAKEN, ("unit_norm",)))
CHOSEN = ("topk", "batchtopk", "matryoshka")  # whose codes compete for k places
CASES += list(itertools.product(CHOSEN, STEPS_TAKEN, ("unit_norm",)))
CASES += list(itertools.product(("jumprelu", "jumprelu_tanh"), STEPS_TAKEN, ("unit_norm",)))
CASES += list(itertools.product(("p_anneal",), STEPS_TAKEN, ("unit_norm",)))
OPTIONS = {arm: {"k": 8, "aux_k": 16} for arm in CHOSEN}
WIDE = {"bandwidth": 0.5, "initial_threshold": 0.5, "tanh_scale": 4.0}  # defaults at d_in = 576
OPTIONS |= dict.fromkeys(("jumprelu", "jumprelu_tanh"), WIDE)
GOLDEN = {
    "plain-dense-unit_norm": 1.21504638,
    "plain-dense-norm_weighted": 1.21000544,
    "plain-sparse-unit_norm": 1.2150464,
    "plain-sparse-norm_weighted": 1.21000543,
    "two_term-dense-unit_norm": 0.699433676,
    "two_term-sparse-unit_norm": 0.699433676,
    "full-dense-unit_norm": 1.4268832,
    "full-sparse-unit_norm": 1.42688321,
    "topk-dense-unit_norm": 0.718512994,
    "topk-sparse-unit_norm": 0.718512979,
    "batchtopk-dense-unit_norm": 0.712567184,
    "batchtopk-sparse-unit_norm": 0.712567173,
    "matryoshka-dense-unit_norm": 6.69350035,
    "matryoshka-sparse-unit_norm": 6.6935002,
    "jumprelu-dense-unit_norm": 1.90328655,
    "jumprelu-sparse-unit_norm": 1.90328657,
    "jumprelu_tanh-dense-unit_norm": 1.89756646,
    "jumprelu_tanh-sparse-unit_norm": 1.8975665,
    "p_anneal-dense-unit_norm": 1.21819512,
    "p_anneal-sparse-unit_norm": 1.21819513,
}
DEFAULTS = {
    "SAEConfig": {
        "arch": "sae",
        "d_in": 576,
        "n_latents": 2304,
        "site": 0,
        "l1_mode": "unit_norm",
        "normalize": "center_scale",
    },
    "TrainConfig": {
        "loss": "plain",
        "lam": 1.0,
        "lam_warmup": 0.05,
        "tokens": 204800,
        "batch_size": 512,
        "lr": 0.001,
        "schedule": "constant",
        "warmup": 0.05,
        "n_cycles": 1,
        "stop_at": 1.0,
        "beta1": 0.9,
        "beta2": 0.999,
        "grad_clip": 0.0,
        "b_dec_init": "zero",
        "tokens_mask": "ordinary",
        "resample_at": [],
        "dead_window": 50000,
        "resample_rows": 16384,
        "seed": 0,
        "data_seed": -1,
        "step": "auto",
        "encoder": "exact",
        "log_every": 10,
        "snapshots": 0,
    },
}
ADVICE = (
    "Training's arithmetic changed: runs made before and after would share a name and not their "
    "weights. If that is meant, raise TRAINING_VERSION in saelib/versions.py and record this table "
    "anew (see the head of this file)."
)


def rows(generator: torch.Generator) -> torch.Tensor:
    """A batch of sparse combinations of fixed directions, with a little noise."""
    directions = torch.randn(N_LATENTS, D_IN, generator=torch.Generator().manual_seed(1))
    codes = torch.rand(BATCH, N_LATENTS, generator=generator).sub_(0.95).relu_() * 20
    return codes @ directions / D_IN**0.5 + 0.1 * torch.randn(BATCH, D_IN, generator=generator)


def last_loss(arm: str, step: str, l1_mode: str) -> float:
    """The loss that a run of 50 steps ends with, one resampling included.

    It is called here, since the settings of some architectures refuse it.
    """
    arch, _ = ARMS[arm]
    config = SAEConfig(arch, D_IN, N_LATENTS, l1_mode=l1_mode, options=OPTIONS.get(arm, {}))
    sae = build_sae(config, torch.Generator().manual_seed(0))
    how = {"schedule": "cosine_with_restarts", "n_cycles": 2, "warmup": 0.1, "grad_clip": 1.0}
    cfg = TrainConfig(
        loss=arm,
        lam=0.3,
        tokens=BATCH * STEPS,
        batch_size=BATCH,
        lr=3e-3,
        step=step,
        dead_window=512,
        **how,
    )
    trainer, generator = Trainer(sae, cfg), torch.Generator().manual_seed(2)
    for _ in range(STEPS):
        trainer.step_(rows(generator))
        if trainer.step == STEPS // 2:
            trainer.resample_(rows(generator))
    return trainer.history.table[-1]["loss"]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_training_s_arithmetic_is_the_recorded_one(case):
    assert last_loss(*case) == pytest.approx(GOLDEN["-".join(case)], rel=1e-5), ADVICE


def test_every_arm_is_held():
    assert {arm for arm, _, _ in CASES} == set(ARMS)


def test_the_defaults_that_names_leave_out_are_the_recorded_ones():
    known = {"SAEConfig": SAEConfig().to_dict(), "TrainConfig": TrainConfig().to_dict()}
    changed = {
        k: {f: v[f] for f in DEFAULTS[k] if v.get(f) != DEFAULTS[k][f]} for k, v in known.items()
    }
    assert changed == {"SAEConfig": {}, "TrainConfig": {}}, ADVICE


if __name__ == "__main__":
    for case in CASES:
        print(f'    "{"-".join(case)}": {last_loss(*case):.9g},')
