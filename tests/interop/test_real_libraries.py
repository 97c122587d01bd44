"""Round trips with the real SAELens, dictionary_learning and sparsify, where they are installed.

`make interop` makes their environment and runs this; elsewhere each test is skipped. SAEs are
random ones, and those of the finished run `default`, if there is one, on rows of its store.
"""

import numpy as np
import pytest
import torch
from helpers.published import D_IN, N_LATENTS, K, agrees, random_sae, rows
from safetensors.torch import load_file, save_file

from saelib.activations.store import Store
from saelib.env import data_dir
from saelib.measure.evaluate import tally_rows
from saelib.sae import load_sae
from saelib.sae.formats import export, load

ARCHS = ("sae", "gated", "topk", "jumprelu")
SAVED = "blocks.5.hook_resid_post"


def randomize_(module, seed=7):
    """Every floating parameter of a peer's SAE away from where it starts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
            if "threshold" in name:
                parameter.abs_()
    return module.requires_grad_(False)


# -- SAELens ---------------------------------------------------------------------------------------


def saelens_sae(name, **settings):
    """A random SAE of SAELens."""
    pytest.importorskip("sae_lens", reason="SAELens is not installed here (make interop)")
    from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    classes = {
        "standard": (StandardSAE, StandardSAEConfig),
        "gated": (GatedSAE, GatedSAEConfig),
        "topk": (TopKSAE, TopKSAEConfig),
        "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig),
    }
    kind, config = classes[name]
    if name == "topk":
        settings["k"] = K
    metadata = SAEMetadata(hook_name=SAVED, model_name="toy")
    return randomize_(kind(config(d_in=D_IN, d_sae=N_LATENTS, metadata=metadata, **settings)))


def opened_in_saelens(folder):
    sae_lens = pytest.importorskip("sae_lens", reason="SAELens is not installed (make interop)")
    return sae_lens.SAE.load_from_disk(folder).requires_grad_(False)


def dense(codes):
    return codes.to_dense() if codes.is_sparse else codes


@pytest.mark.parametrize("arch", ARCHS)
def test_ours_in_saelens(arch, tmp_path):
    sae = random_sae(arch)
    theirs = opened_in_saelens(export(sae, "saelens", tmp_path / "out", model="toy"))
    x = rows(2000)
    assert agrees(sae, x, dense(theirs.encode(x)), theirs(x))
    assert theirs.cfg.metadata.hook_name == SAVED
    assert theirs.cfg.metadata.model_name == "toy"


def test_a_gated_sae_in_saelens_as_jumprelu(tmp_path):
    sae = random_sae("gated")
    theirs = opened_in_saelens(export(sae, "saelens", tmp_path / "out", arch="jumprelu"))
    x = rows(2000)
    assert type(theirs).__name__ == "JumpReLUSAE"
    assert agrees(sae, x, theirs.encode(x), theirs(x))


@pytest.mark.parametrize("pre_bias", [True, False])
@pytest.mark.parametrize("name", ["standard", "gated", "topk", "jumprelu"])
def test_saelens_here(name, pre_bias, tmp_path):
    theirs = saelens_sae(name, apply_b_dec_to_input=pre_bias)
    theirs.save_model(tmp_path)
    sae = load(tmp_path)
    x = rows(2000)
    assert agrees(sae, x, dense(theirs.encode(x)), theirs(x))
    assert sae.config.site == 6


def test_saelens_topk_by_decoder_norm_here(tmp_path):
    theirs = saelens_sae("topk", rescale_acts_by_decoder_norm=True)
    theirs.save_model(tmp_path)
    x = rows(2000)
    assert agrees(load(tmp_path), x, dense(theirs.encode(x)), theirs(x))


# -- dictionary_learning ---------------------------------------------------------------------------


def dictionary_class(name):
    pytest.importorskip("dictionary_learning", reason="dictionary_learning: see make interop")
    from dictionary_learning import dictionary
    from dictionary_learning.trainers import batch_top_k, top_k

    places = {"AutoEncoderTopK": top_k, "BatchTopKSAE": batch_top_k}
    return getattr(places.get(name, dictionary), name)


def built(name, k=K):
    kind = dictionary_class(name)
    top_k = name in ("AutoEncoderTopK", "BatchTopKSAE")
    return kind(D_IN, N_LATENTS, k) if top_k else kind(D_IN, N_LATENTS)


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        ("sae", "AutoEncoder"),
        ("gated", "GatedAutoEncoder"),
        ("topk", "AutoEncoderTopK"),
        ("jumprelu", "JumpReluAutoEncoder"),
    ],
)
def test_ours_in_dictionary_learning(arch, name, tmp_path):
    sae = random_sae(arch)
    folder = export(sae, "dictionary_learning", tmp_path / "out")
    theirs = built(name)
    theirs.load_state_dict(load_file(folder / "ae.safetensors"))  # as docs/formats.md has it
    theirs.requires_grad_(False)
    x = rows(2000)
    assert agrees(sae, x, theirs.encode(x), theirs(x))


@pytest.mark.parametrize(
    "name",
    ["AutoEncoder", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "JumpReluAutoEncoder"],
)
def test_dictionary_learning_here(name, tmp_path):
    theirs = randomize_(built(name))
    if name == "BatchTopKSAE":
        theirs.threshold.fill_(0.7)
    weights = {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}
    save_file(weights, tmp_path / "ae.safetensors")  # as docs/formats.md has it
    (tmp_path / "config.json").write_text(
        f'{{"trainer": {{"dict_class": "{name}", "submodule_name": "resid_post_layer_5"}}}}'
    )
    sae = load(tmp_path)
    x = rows(2000)
    assert agrees(sae, x, theirs.encode(x), theirs(x))
    assert sae.config.site == 6


# -- sparsify --------------------------------------------------------------------------------------


def test_sparsify_here(tmp_path):
    sparsify = pytest.importorskip("sparsify", reason="sparsify is not installed (make interop)")
    config = sparsify.SparseCoderConfig(num_latents=N_LATENTS, k=K)
    theirs = randomize_(sparsify.SparseCoder(D_IN, config, dtype=torch.float32))
    theirs.save_to_disk(tmp_path / "layers.5")
    x = rows(2000)
    out = theirs(x)
    f = torch.zeros(len(x), N_LATENTS).scatter(1, out.latent_indices, out.latent_acts)
    sae = load(tmp_path / "layers.5")
    assert agrees(sae, x, f, out.sae_out)
    assert sae.config.site == 6


# -- trained SAEs on stored rows -------------------------------------------------------------------


@pytest.fixture(scope="module")
def run():
    """(store, folders of trained SAEs) of the finished run `default`."""
    folder = data_dir("default")
    saes = sorted((folder / "saes").glob("*/config.json"))
    if not saes:
        pytest.skip(f"no finished run in {folder}")
    return Store.open(folder / "store", verify=False), [path.parent for path in saes]


def one_of_each(folders):
    """An SAE of each (architecture, site) in a run."""
    saes = [load_sae(folder) for folder in folders]
    return list({(sae.config.arch, sae.config.site): sae for sae in saes}.values())


def test_trained_saes_in_saelens(run, tmp_path):
    """A gate is a step: where it lies within rounding of 0, one code in some 100,000 falls on the
    other side, and its row is another. All other rows agree.
    """
    store, folders = run
    index = np.flatnonzero(store.mask("ordinary", "test"))[:4096]
    for n, sae in enumerate(one_of_each(folders)):
        x = store.rows(sae.config.site, index)
        theirs = opened_in_saelens(export(sae, "saelens", tmp_path / str(n)))
        fires = sae.encode_raw(x) > 0
        flipped = (dense(theirs.encode(x)) > 0) != fires
        same = ~flipped.any(1)
        x_hat = sae.reconstruct(x)[same]
        error = float((theirs(x)[same] - x_hat).norm() / x_hat.norm())
        counts = f"{int(flipped.sum())} of {int(fires.sum())} codes flipped"
        print(f"{sae.config.arch:9} site {sae.config.site:2}: x̂ {error:.1e}, {counts}")
        assert error <= 1e-5
        assert flipped.sum() <= 1e-5 * fires.sum() + 1


def test_saelens_explained_variance_is_one_minus_fvu(run, tmp_path):
    evals = pytest.importorskip("sae_lens.evals", reason="SAELens: see make interop")
    store, folders = run
    sae = load_sae(folders[0])
    index = np.flatnonzero(store.mask("ordinary", "test"))[:4096]
    fvu = tally_rows({"sae": sae}, store, sae.config.site, index).saes["sae"].fvu()
    theirs = opened_in_saelens(export(sae, "saelens", tmp_path / "out"))
    x = store.rows(sae.config.site, index)
    calculator = evals.ExplainedVarianceCalculator()
    calculator.add_batch(theirs(x), x)
    assert calculator.compute() == pytest.approx(1 - fvu, abs=1e-5)
