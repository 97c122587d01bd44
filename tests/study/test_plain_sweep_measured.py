"""What the plain sweep measures of SAEs on a store, against the plain computation."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.features import Naive, make_sae
from helpers.models import VOCABULARY, D, tiny_llama
from helpers.stores import LENGTHS, write_store
from helpers.texts import word_tokenizer

from saelib.sae.spec import make_spec
from saelib.study import sweep as plain

SITES = [1, 2, 4]
LAMBDAS = [1.5, 0.5]  # in no order
SEEDS = [3, 4]


class RandomSAEs:
    """A workspace whose SAEs have random weights, and fire less the larger λ is."""

    identity = {"model": "/somewhere/on/disk/tiny-llama"}  # noqa: RUF012

    def __init__(self, folder):
        self.folder = folder
        self.lm = tiny_llama()
        self.lm.tokenizer = word_tokenizer()
        generator = torch.Generator().manual_seed(0)
        texts = [torch.randint(VOCABULARY, (96, n), generator=generator) for n in LENGTHS]
        self.store = write_store(self.lm, folder / "store", texts)

    def site(self, name):
        return {"middle": 2}[name]

    def load(self, spec):
        sae = make_sae(self.store, seed=spec.train.seed, site=spec.sae.site)
        sae.b_enc -= spec.train.lam
        return sae

    def run_folder(self, spec):
        return self.folder / f"{spec.sae.site}-{spec.train.lam}-{spec.train.seed}"

    def l0(self, spec):
        return float(naive_density(self, spec).sum())


@pytest.fixture(scope="module")
def ws(tmp_path_factory):
    return RandomSAEs(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def sweep(ws):
    specs = {
        (site, lam): [make_spec("plain", site, D, n_latents=48, lam=lam, seed=s) for s in SEEDS]
        for site in SITES
        for lam in LAMBDAS
    }
    rows = [
        {"site": site, "lambda": lam, "seed": spec.train.seed, "l0": ws.l0(spec), "run_id": "r"}
        for (site, lam), group in specs.items()
        for spec in group
    ]
    pages = pd.DataFrame({"ce_n": [0] * 20})
    return plain.Sweep(pd.DataFrame(rows), specs, lambda run: pages)


def ordinary(ws, site, split="test"):
    return ws.store.rows(site, np.flatnonzero(ws.store.mask("ordinary", split)))


def naive_density(ws, spec):
    codes = ws.load(spec).encode_raw(ordinary(ws, spec.sae.site))
    return (codes > 0).double().mean(0).numpy()


def fvu(x, rebuilt):
    return float((x - rebuilt).square().sum() / (x - x.mean(0)).square().sum())


# -- the equations


def test_an_sae_that_computes_what_is_written_passes(ws, sweep):
    words = plain.check_equations(ws, sweep)
    assert "'W_enc': (32, 48)" in words
    assert "'W_dec': (48, 32)" in words
    assert words.endswith("codes, reconstruction and unit-norm decoder rows are as written")


def longer_rows(sae):
    sae.W_dec *= 1.001


def larger_codes(sae):
    own = sae.forward
    sae.forward = lambda x: (own(x)[0] + 0.01, own(x)[1])


def moved_reconstruction(sae):
    own = sae.forward
    sae.forward = lambda x: (own(x)[0], own(x)[1] + 0.01)


@pytest.mark.parametrize("spoil", [longer_rows, larger_codes, moved_reconstruction])
def test_an_sae_that_computes_something_else_is_told(ws, sweep, monkeypatch, spoil):
    sae = ws.load(sweep.specs[1, 1.5][0])
    spoil(sae)
    monkeypatch.setattr(ws, "load", lambda spec: sae)
    with pytest.raises(AssertionError):
        plain.check_equations(ws, sweep)


# -- baselines


def test_pca_is_fitted_on_the_training_rows_of_each_site(ws):
    table = plain.pca(ws, [1, 4]).set_index(["site", "rank"])["fvu"]
    assert len(table) == 2 * (D + 1)
    for site in (1, 4):
        known = ordinary(ws, site, "train").double()
        x = ordinary(ws, site).double()
        v = torch.linalg.svd(known - known.mean(0), full_matrices=False)[2][:5].T
        rebuilt = known.mean(0) + (x - known.mean(0)) @ v @ v.T
        assert table[site, 5] == pytest.approx(fvu(x, rebuilt), rel=1e-3)


def test_a_shuffled_decoder_rebuilds_test_rows_from_other_latents_rows(ws, sweep):
    spec = sweep.specs[4, 0.5][1]
    sae = ws.load(spec)
    x = ordinary(ws, 4)
    codes = sae.encode_raw(x)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    shuffled = (codes @ sae.W_dec[order] + sae.b_dec) / sae.scale + sae.mean
    found = plain._shuffled_fvu(ws, spec)
    assert found == pytest.approx(fvu(x, shuffled), rel=1e-4)
    assert found != pytest.approx(fvu(x, sae.reconstruct(x)), rel=1e-2)


# -- how often latents fire


def test_densities_are_of_the_first_seed_at_the_middle_site_by_lambda(ws, sweep):
    shares = plain.densities(ws, sweep)
    assert list(shares) == LAMBDAS
    for lam, share in shares.items():
        first = sweep.specs[2, lam][0]
        np.testing.assert_allclose(share, naive_density(ws, first), rtol=1e-9)


@pytest.mark.parametrize("lam", LAMBDAS)
def test_densities_that_do_not_add_up_to_the_recorded_l0_are_told(ws, sweep, lam):
    own = (sweep.rows["site"] == 2) & (sweep.rows["seed"] == 3) & (sweep.rows["lambda"] == lam)
    rows = sweep.rows.assign(l0=sweep.rows["l0"] * np.where(own, 1.003, 1))
    with pytest.raises(AssertionError):
        plain.densities(ws, plain.Sweep(rows, sweep.specs, sweep.pages))


def test_the_figure_of_densities_names_medians_lambda_and_what_is_dead(ws, sweep):
    fig = plain.density_figure(ws, sweep)
    shares = [naive_density(ws, sweep.specs[2, lam][0]) for lam in LAMBDAS]
    medians = ", ".join(f"{100 * np.median(one[one > 0]):.3g} %" for one in shares)
    note = " ".join(fig.get_supxlabel().split())
    assert note.startswith(f"The median alive latent fires on {medians} of ordinary test tokens")
    assert "at λ = 1.5, 0.5. Plain SAEs; dead: fires on none of them. tiny-llama." in note
    labels = fig.axes[0].get_legend_handles_labels()[1]
    dead = [int((one == 0).sum()) for one in shares]
    assert dead[0] > dead[1]
    heads = [f"λ = {lam:g}\n{n} of 48 dead" for lam, n in zip(LAMBDAS, dead, strict=True)]
    assert [label.split(" (")[0] for label in labels] == heads
    title = " ".join(fig.get_suptitle().split())
    assert title == "A larger λ makes latents rarer and kills more (site 2)"


# -- one latent in its contexts


@pytest.mark.parametrize("lam", LAMBDAS)
def test_the_latent_shown_is_of_the_middle_site_s_sae_nearest_to_the_l0(ws, sweep, lam):
    spec = sweep.specs[2, lam][0]
    l0 = np.mean([ws.l0(one) for one in sweep.specs[2, lam]])
    sentence, page = plain.latent_contexts(ws, sweep, float(l0), k=1)
    density = naive_density(ws, spec)
    distance = np.abs(np.log(np.where(density > 0, density, np.inf) / 0.003))
    latent = int(distance.argmin())
    share = f"{100 * density[latent]:.2g}"
    assert sentence == f"Site 2, λ = {lam:g}: latent {latent} fires on {share} % of test tokens."
    peaks = sorted((v for v, _ in Naive(ws.load(spec), ws.store).peaks(latent).values()))[::-1]
    assert len(peaks) > 1
    assert re.findall(r"<b>([\d.]+)</b> · Page", page) == [f"{peak:.3g}" for peak in peaks[:1]]
    assert (ws.run_folder(spec) / "features").is_dir()


def test_where_no_latent_fires_there_is_a_sentence_and_no_page(ws, sweep, monkeypatch, tmp_path):
    spec = sweep.specs[2, 1.5][0]
    silent = ws.load(spec)
    silent.b_enc -= 1e6
    none = SimpleNamespace(lm=ws.lm, store=ws.store, site=ws.site, load=lambda spec: silent)
    none.run_folder = lambda spec: tmp_path
    sentence, page = plain.latent_contexts(none, sweep, 0.0)
    assert sentence == "Site 2, λ = 1.5: no latent fires on the test pages."
    assert page == ""
