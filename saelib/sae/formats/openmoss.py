"""OpenMOSS's folder (Llama Scope, He et al. 2024, arXiv 2410.20526): hyperparams.json and weights.

The weights lie in checkpoints/final.safetensors or beside the JSON; lm_config.json, where it is
there, names the language model. Where `norm_activation` is "dataset-wise" the SAE works on s x,
s = √d_model / (mean norm of the data set's activations), and gives s x̂; moved into model units,
biases are divided by s. With `sparsity_include_decoder_norm` the activation function sees a‖W_dec‖
and its codes are divided by ‖W_dec‖ again, which equals a decoder of unit norm.

The one `jump_relu_threshold` of hyperparams.json is in model units, thresholds for each latent in
the weights (`log_jumprelu_threshold`) in the SAE's own: so SAELens reads both, and published
thresholds grow with the layer's norm (0.20 at norm 6.3, 0.53 at norm 17.1). A top-k SAE with a
threshold above 0 is read as the JumpReLU SAE that OpenMOSS makes of it for inference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelib.sae.formats.parts import (
    FormatError,
    Parts,
    as_floats,
    flag,
    fold_decoder_norm_,
    number,
    read_config,
    read_weights,
    refuse_option,
    refuse_others,
    site_of_hook,
    under_our_names,
    whole_number,
    without_pre_bias,
)

CONFIG = "hyperparams.json"
WEIGHTS = ("checkpoints/final.safetensors", "final.safetensors", "sae_weights.safetensors")
LINEAR = {
    "W_enc": "encoder.weight",
    "b_enc": "encoder.bias",
    "W_dec": "decoder.weight",
    "b_dec": "decoder.bias",
}
MATRICES = {"W_enc": "W_E", "b_enc": "b_E", "W_dec": "W_D", "b_dec": "b_D"}
THRESHOLDS = ("log_jumprelu_threshold", "activation_function.log_jumprelu_threshold")
UNSCALED = (None, "no-norm", "inference")
# Of activations' norms: a scale of others would round every bias to 0 or to infinity.
LEAST, MOST = 1e-9, 1e9
ARCHITECTURE = {"relu": "sae", "topk": "topk", "jumprelu": "jumprelu"}


def read(folder: Path) -> Parts:
    """An SAE of OpenMOSS, in model units.

    Raises:
        FormatError: the folder is damaged, or holds a transcoder or what no SAE here computes.
    """
    path = folder / CONFIG
    config = read_config(path)
    _check(config, path)
    file = next((folder / w for w in WEIGHTS if (folder / w).exists()), folder / WEIGHTS[0])
    raw = read_weights(file)
    tensors = _matrices(raw, config, file, path)
    scale = _scale(config, raw, path, len(tensors["W_enc"]))
    arch = ARCHITECTURE[config["act_fn"]]
    threshold = config.get("jump_relu_threshold") or 0.0
    threshold = number(path, "jump_relu_threshold", threshold, 0, MOST)
    if arch == "topk" and threshold > 0:
        arch = "jumprelu"
    for name in ("b_enc", "b_dec"):
        tensors[name] = tensors[name] / scale
    if arch == "jumprelu":
        tensors["threshold"] = _threshold(raw, threshold, scale, tensors["b_enc"], file)
    if not flag(path, config, "apply_decoder_bias_to_pre_encoder", False):
        tensors["b_enc"] = without_pre_bias(tensors["b_enc"], tensors["W_enc"], tensors["b_dec"])
    if flag(path, config, "sparsity_include_decoder_norm", True):
        fold_decoder_norm_(tensors)  # thresholds are on a‖W_dec‖ already
    options = {"k": config["top_k"]} if arch == "topk" else {}
    return Parts(arch, tensors, site_of_hook(str(config.get("hook_point_in"))), options, file)


def _check(config: dict[str, Any], path: Path) -> None:
    """Refuse what would change the codes."""
    refuse_option(path, "act_fn", config.get("act_fn"), tuple(ARCHITECTURE))
    refuse_option(path, "use_glu_encoder", config.get("use_glu_encoder", False), (False,))
    norm = config.get("norm_activation")
    refuse_option(path, "norm_activation", norm, ("dataset-wise", *UNSCALED))
    hook = config.get("hook_point_in")
    refuse_option(path, "hook_point_out", config.get("hook_point_out", hook), (hook,))
    if config["act_fn"] == "topk":
        whole_number(path, "top_k", config.get("top_k"))


def _matrices(
    raw: dict[str, Tensor], config: dict[str, Any], file: Path, path: Path
) -> dict[str, Tensor]:
    """The four tensors in this package's orientation; a decoder without a bias has 0."""
    names = MATRICES if "W_E" in raw else LINEAR
    norms = (name for name in raw if name.startswith("dataset_average_activation_norm"))
    refuse_others(raw, (*names.values(), *THRESHOLDS, *norms), file)
    wanted = dict(names)
    biased = flag(path, config, "use_decoder_bias", True)
    if not biased:
        del wanted["b_dec"]
    turned = ("W_enc", "W_dec") if names is LINEAR else ()
    tensors = under_our_names(raw, wanted, file, turned)
    if not biased:
        tensors["b_dec"] = torch.zeros(len(tensors["W_enc"]))
    return tensors


def _scale(config: dict[str, Any], raw: dict[str, Tensor], path: Path, d_in: int) -> float:
    """s of s x, what the SAE of d_in works on."""
    if config.get("norm_activation") in UNSCALED:
        return 1.0
    hook = str(config.get("hook_point_in"))
    norms = config.get("dataset_average_activation_norm")
    norms = norms if isinstance(norms, dict) else {}
    stored = raw.get(f"dataset_average_activation_norm.{hook}")
    value = norms.get("in", norms.get(hook, None if stored is None else stored.tolist()))
    norm = number(path, "dataset_average_activation_norm", value, LEAST, MOST)
    width = whole_number(path, "d_model", config.get("d_model"))
    if width != d_in:
        raise FormatError(f"{path}: d_model = {width!r:.80}: its weights are of width {d_in}")
    return d_in**0.5 / norm


def _threshold(
    raw: dict[str, Tensor], common: float, scale: float, like: Tensor, file: Path
) -> Tensor:
    """θ [n_latents] in model units."""
    name = next((name for name in THRESHOLDS if name in raw), None)
    if name is not None:
        return as_floats(raw, (name,), file)[name].exp() / scale
    return torch.full_like(like, common)
