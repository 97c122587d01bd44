"""Losses without a latent equal those measured one latent at a time."""

import math

import numpy as np
import pytest
from helpers.features import DEAD, N_LATENTS, make_sae
from helpers.models import tiny_llama

from saelib.measure.features import ablation_losses
from saelib.measure.replaced_loss import replaced_losses

SEVERAL = [0, 3, 17, 30, DEAD]


@pytest.fixture(scope="module")
def sae(store):
    return make_sae(store)


def one_at_a_time(sae, lm, store, latent, contexts):
    """(clean, ablated) loss summed over contexts, by the evaluation of whole replacements."""

    def without(x):
        f = sae.encode_raw(x)[:, latent : latent + 1]
        return x - f * sae.W_dec[latent] / sae.scale

    losses = replaced_losses(lm, store, sae.config.site, contexts, 64, {"without": without})
    return losses.clean.sum(), losses.ce["without"].sum()


def firing_contexts(sae, store, latent):
    rows = np.flatnonzero(store.mask("ordinary", "test"))
    fires = sae.encode_raw(store.rows(sae.config.site, rows))[:, latent].numpy() > 0
    contexts, counts = np.unique(store.tokens["context"][rows[fires]], return_counts=True)
    return contexts.tolist(), int(counts.sum())


def test_losses_equal_those_measured_one_at_a_time(sae, lm, store):
    table = ablation_losses(sae, lm, store, SEVERAL, 10_000, batch_tokens=100)
    assert table.index.tolist() == SEVERAL
    costs = []
    for latent in SEVERAL[:-1]:
        contexts, fired = firing_contexts(sae, store, latent)
        clean, ablated = one_at_a_time(sae, lm, store, latent, contexts)
        row = table.loc[latent]
        assert row["n_contexts"] == len(contexts)
        assert row["n_fired"] == fired
        n = row["n_targets"]
        assert row["ce_clean"] == pytest.approx(clean / n, rel=1e-6)
        assert row["ce_ablated"] == pytest.approx(ablated / n, rel=1e-6)
        assert row["delta_ce"] == pytest.approx((ablated - clean) / n, abs=1e-5)
        assert row["delta_per_firing"] == pytest.approx((ablated - clean) / fired, abs=1e-4)
        costs.append(abs(row["delta_ce"]))
    assert max(costs) > 1e-2  # there is something to be seen


def test_a_dead_latent_has_no_loss(sae, lm, store):
    row = ablation_losses(sae, lm, store, [DEAD], 4).loc[DEAD]
    assert (row["n_contexts"], row["n_fired"]) == (0, 0)
    assert math.isnan(row["ce_ablated"])
    assert math.isnan(row["delta_per_firing"])


def test_at_most_n_contexts_are_drawn_and_the_same_whatever_else_is_asked(sae, lm, store):
    alone = ablation_losses(sae, lm, store, [17], 3)
    together = ablation_losses(sae, lm, store, SEVERAL, 3)
    assert (together["n_contexts"] <= 3).all()
    assert together.loc[17].tolist() == pytest.approx(alone.loc[17].tolist(), rel=1e-5)
    other = ablation_losses(sae, lm, store, [17], 3, seed=1)
    assert other.loc[17, "ce_clean"] != alone.loc[17, "ce_clean"]


def test_what_does_not_fit_is_refused(sae, lm, store):
    with pytest.raises(
        ValueError, match=f"latent 99: this SAE has the latents 0 to {N_LATENTS - 1}"
    ):
        ablation_losses(sae, lm, store, [0, 99], 3)
    with pytest.raises(ValueError, match="n = 0: expected at least 1 context"):
        ablation_losses(sae, lm, store, [0], 0)
    with pytest.raises(ValueError, match="is not that of the store, tiny-0@"):
        ablation_losses(sae, tiny_llama(1), store, [0], 3)
