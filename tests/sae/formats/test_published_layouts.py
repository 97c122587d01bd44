"""Published folders are read as their makers' equations have it."""

import pytest
import torch
from helpers.published import (
    D_IN,
    N_LATENTS,
    K,
    agrees,
    rows,
    top,
    weights,
    write_folder,
    write_gemma_scope,
)

from saelib.sae.formats import FormatError, load, recognised


def decoded(w, f):
    return f @ w["W_dec"] + w["b_dec"]


def test_gemma_scope(tmp_path):
    w = weights()
    folder = tmp_path / "gemma-scope-2b-pt-res" / "layer_12" / "width_16k" / "average_l0_82"
    write_gemma_scope(folder, w)
    a = rows() @ w["W_enc"] + w["b_enc"]
    f = torch.relu(a) * (a > w["threshold"])
    assert recognised(folder) == "gemma_scope"
    sae = load(folder)
    assert agrees(sae, rows(), f, decoded(w, f))
    assert sae.config.site == 13  # the output of block 12
    assert load(folder / "params.npz").config == sae.config


def test_gemma_scope_s_mlp_saes_are_at_no_site(tmp_path):
    folder = write_gemma_scope(tmp_path / "gemma-scope-2b-pt-mlp" / "layer_12" / "w", weights())
    with pytest.raises(FormatError, match="names no site of the residual stream; give site="):
        load(folder)
    assert load(folder, site=3).config.site == 3


def test_sparsify(tmp_path):
    w = weights()
    tensors = {
        "encoder.weight": w["W_enc"].T,
        "encoder.bias": w["b_enc"],
        "W_dec": w["W_dec"],
        "b_dec": w["b_dec"],
    }
    config = {"activation": "topk", "k": K, "d_in": D_IN, "num_latents": 0, "transcode": False}
    folder = write_folder(tmp_path / "layers.5", "cfg.json", config, "sae.safetensors", tensors)
    f = top(torch.relu((rows() - w["b_dec"]) @ w["W_enc"] + w["b_enc"]))
    sae = load(folder)
    assert agrees(sae, rows(), f, decoded(w, f))
    assert (sae.config.site, sae.config.options["k"]) == (6, K)


LLAMA_SCOPE = {
    "act_fn": "jumprelu",
    "hook_point_in": "blocks.7.hook_resid_post",
    "hook_point_out": "blocks.7.hook_resid_post",
    "d_model": D_IN,
    "d_sae": N_LATENTS,
    "jump_relu_threshold": 0.9,
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": 8.0, "out": 8.0},
    "use_decoder_bias": True,
    "apply_decoder_bias_to_pre_encoder": False,
    "sparsity_include_decoder_norm": True,
    "top_k": K,
}


def llama_scope(tmp_path, **changes):
    w = weights()
    tensors = {
        "encoder.weight": w["W_enc"].T,
        "encoder.bias": w["b_enc"],
        "decoder.weight": w["W_dec"].T,
        "decoder.bias": w["b_dec"],
    }
    tensors |= changes.pop("tensors", {})
    config = LLAMA_SCOPE | changes
    name = "checkpoints/final.safetensors"
    return w, write_folder(tmp_path / "L7R-8x", "hyperparams.json", config, name, tensors)


def openmoss_pass(w, x, fires, s=D_IN**0.5 / 8.0, decoder_norm=True, pre_bias=False):
    """OpenMOSS's forward on s x, and its x̂ / s. `fires` says it of a‖W_dec‖."""
    norms = w["W_dec"].norm(dim=1) if decoder_norm else torch.ones(N_LATENTS)
    x_s = s * x - (w["b_dec"] if pre_bias else 0)
    f = fires((x_s @ w["W_enc"] + w["b_enc"]) * norms, s) / norms
    return f, decoded(w, f) / s


@pytest.mark.parametrize("decoder_norm", [True, False])
@pytest.mark.parametrize("pre_bias", [True, False])
def test_llama_scope_s_threshold_is_in_model_units(tmp_path, decoder_norm, pre_bias):
    w, folder = llama_scope(
        tmp_path,
        sparsity_include_decoder_norm=decoder_norm,
        apply_decoder_bias_to_pre_encoder=pre_bias,
    )
    f, x_hat = openmoss_pass(
        w,
        rows(),
        lambda a, s: torch.relu(a) * (a > 0.9 * s),
        D_IN**0.5 / 8.0,
        decoder_norm,
        pre_bias,
    )
    sae = load(folder)
    assert agrees(sae, rows(), f, x_hat)
    assert sae.config.site == 8


def test_openmoss_thresholds_of_each_latent_are_in_the_sae_s_units(tmp_path):
    logs = weights()["threshold"].log()
    w, folder = llama_scope(tmp_path, tensors={"log_jumprelu_threshold": logs})
    f, x_hat = openmoss_pass(w, rows(), lambda a, s: torch.relu(a) * (a > w["threshold"]))
    assert agrees(load(folder), rows(), f, x_hat)


def test_openmoss_topk_without_a_threshold_stays_topk(tmp_path):
    w, folder = llama_scope(tmp_path, act_fn="topk", jump_relu_threshold=0.0)
    f, x_hat = openmoss_pass(w, rows(), lambda a, s: top(torch.relu(a)))
    sae = load(folder)
    assert agrees(sae, rows(), f, x_hat)
    assert sae.config.arch == "topk"


def test_openmoss_topk_with_a_threshold_is_jumprelu_at_inference(tmp_path):
    _, folder = llama_scope(tmp_path, act_fn="topk")
    assert load(folder).config.arch == "jumprelu"


def test_batch_topk_of_dictionary_learning_fires_above_its_threshold(tmp_path):
    w = weights()
    tensors = {
        "encoder.weight": w["W_enc"].T,
        "encoder.bias": w["b_enc"],
        "decoder.weight": w["W_dec"].T,
        "b_dec": w["b_dec"],
        "k": torch.tensor(K, dtype=torch.int32),
        "threshold": torch.tensor(0.7),
    }
    config = {"trainer": {"dict_class": "BatchTopKSAE", "submodule_name": "resid_post_layer_8"}}
    folder = write_folder(tmp_path / "ae", "config.json", config, "ae.safetensors", tensors)
    pre = torch.relu((rows() - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    f = pre * (pre > 0.7)
    sae = load(folder)
    assert agrees(sae, rows(), f, decoded(w, f))
    assert (sae.config.arch, sae.config.site) == ("jumprelu", 9)


def saelens(tmp_path, config, **more):
    w = weights()
    tensors = {name: w[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")} | more
    name = "sae_weights.safetensors"
    return w, write_folder(tmp_path / "sae", "cfg.json", config, name, tensors)


V5 = {
    "architecture": "standard",
    "d_in": D_IN,
    "d_sae": N_LATENTS,
    "activation_fn_str": "relu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "hook_name": "blocks.3.hook_resid_pre",
    "model_name": "gpt2-small",
}


@pytest.mark.parametrize("pre_bias", [True, False])
def test_saelens_5_standard(tmp_path, pre_bias):
    w, folder = saelens(tmp_path, V5 | {"apply_b_dec_to_input": pre_bias})
    f = torch.relu((rows() - pre_bias * w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    sae = load(folder)
    assert agrees(sae, rows(), f, decoded(w, f))
    assert sae.config.site == 3


def test_saelens_5_topk_is_an_activation_function(tmp_path):
    config = V5 | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    w, folder = saelens(tmp_path, config)
    f = top(torch.relu((rows() - w["b_dec"]) @ w["W_enc"] + w["b_enc"]))
    assert agrees(load(folder), rows(), f, decoded(w, f))


def test_saelens_before_5_says_hook_point_and_false(tmp_path):
    config = {name: value for name, value in V5.items() if name != "hook_name"}
    config |= {"hook_point": "blocks.2.hook_resid_post", "normalize_activations": False}
    _, folder = saelens(tmp_path, config, scaling_factor=torch.ones(N_LATENTS))
    assert load(folder).config.site == 3


def test_saelens_6_topk_that_counts_decoder_norms(tmp_path):
    config = {
        "architecture": "topk",
        "k": K,
        "rescale_acts_by_decoder_norm": True,
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "metadata": {"hook_name": "blocks.3.hook_resid_pre"},
    }
    w, folder = saelens(tmp_path, config)
    norms = w["W_dec"].norm(dim=1)
    f = top(torch.relu((rows() @ w["W_enc"] + w["b_enc"]) * norms))
    assert agrees(load(folder), rows(), f, decoded(w, f / norms))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_in_any_float_are_read(tmp_path, dtype):
    w, folder = saelens(tmp_path, V5, **{"b_enc": weights()["b_enc"].to(dtype)})
    sae = load(folder)
    assert sae.b_enc.dtype == torch.float32
    assert torch.equal(sae.b_enc, w["b_enc"].to(dtype).float())


def test_a_gated_sae_of_saelens_that_takes_x_itself(tmp_path):
    g = torch.Generator().manual_seed(5)
    biases = {
        name: 0.3 * torch.randn(N_LATENTS, generator=g) for name in ("b_gate", "b_mag", "r_mag")
    }
    w = weights()
    tensors = {name: w[name] for name in ("W_enc", "W_dec", "b_dec")} | biases
    config = V5 | {"architecture": "gated", "apply_b_dec_to_input": False}
    folder = write_folder(tmp_path / "s", "cfg.json", config, "sae_weights.safetensors", tensors)
    a = rows() @ w["W_enc"]
    f = (a + biases["b_gate"] > 0) * torch.relu(a * biases["r_mag"].exp() + biases["b_mag"])
    assert agrees(load(folder), rows(), f, decoded(w, f))
