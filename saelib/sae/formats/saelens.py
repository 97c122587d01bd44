"""SAELens' folder: cfg.json and sae_weights.safetensors, in the keys of version 6 or 5.

Its SAEs take x − b_dec where `apply_b_dec_to_input` is true, and x where it is not; all else is as
here. A top-k SAE with `rescale_acts_by_decoder_norm` chooses its k by a‖W_dec‖; it equals one whose
norms are moved into the encoder. Conventions read from sae-lens 6.54.12.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelib.files import write_json
from saelib.sae.base import Autoencoder
from saelib.sae.formats.parts import (
    FormatError,
    Parts,
    flag,
    fold_decoder_norm_,
    hook_of_site,
    read_config,
    read_weights,
    refuse_option,
    refuse_others,
    site_of_hook,
    under_our_names,
    whole_number,
    without_pre_bias,
    write_weights,
)

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
# What each is written as; read back, a name is the first that is written so.
ARCHITECTURE = {
    "sae": "standard",
    "gated": "gated",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "p_anneal": "standard",
}
BIASES = {
    "standard": ("b_enc",),
    "gated": ("b_gate", "b_mag", "r_mag"),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
}


def write(sae: Autoencoder, folder: Path, model: str) -> None:
    """Write an SAE in model units (a folded one)."""
    name = ARCHITECTURE[sae.config.arch]
    tensors = {n: getattr(sae, n) for n in ("W_enc", "W_dec", "b_dec", *BIASES[name])}
    write_weights(folder / WEIGHTS, tensors)
    values: dict[str, Any] = {
        "architecture": name,
        "d_in": sae.config.d_in,
        "d_sae": sae.config.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        # without a version of 6 or later, SAELens reads the keys of version 5
        "metadata": {
            "sae_lens_version": "6.0.0",
            "model_name": model or None,
            "hook_name": hook_of_site(sae.config.site),
        },
    }
    if name == "topk":
        values |= {"k": sae.config.options["k"], "rescale_acts_by_decoder_norm": False}
    write_json(folder / CONFIG, values)


def read(folder: Path) -> Parts:
    """An SAE of SAELens, in model units.

    Raises:
        FormatError: the folder is damaged, or the SAE computes what none of this package does.
    """
    config = read_config(folder / CONFIG)
    file = folder / WEIGHTS
    name = _architecture(config, folder / CONFIG)
    raw = dict(read_weights(file))
    names = ("W_enc", "W_dec", "b_dec", *BIASES[name])
    scaling = raw.pop("scaling_factor", raw.pop("finetuning_scaling_factor", None))
    if scaling is not None:
        _check_scaling(scaling, file)
    refuse_others(raw, names, file)
    tensors = under_our_names(raw, {same: same for same in names}, file)
    if not flag(folder / CONFIG, config, "apply_b_dec_to_input", True):
        _add_pre_bias(name, tensors, file)
    if flag(folder / CONFIG, config, "rescale_acts_by_decoder_norm", False):
        fold_decoder_norm_(tensors)
    metadata = _mapping(config, "metadata", folder) or config  # version 5: beside the others
    hook = metadata.get("hook_name", metadata.get("hook_point"))
    k = config.get("k", _mapping(config, "activation_fn_kwargs", folder).get("k"))
    options = {"k": whole_number(folder / CONFIG, "k", k)} if name == "topk" else {}
    arch = next(ours for ours, theirs in ARCHITECTURE.items() if theirs == name)
    return Parts(arch, tensors, site_of_hook(str(hook)), options, file)


def _mapping(config: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    """A field that holds further ones; empty where there is none."""
    value = config.get(name) or {}
    if not isinstance(value, dict):
        raise FormatError(f"{folder / CONFIG}: {name} = {value!r:.80}: expected a mapping")
    return value


def _architecture(config: dict[str, Any], file: Path) -> str:
    """The architecture's name, after refusing what this package cannot compute."""
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    name = config.get("architecture", "standard")
    if name == "standard" and activation == "topk":  # as version 5 writes a top-k SAE
        name = "topk"
    refuse_option(file, "architecture", name, tuple(BIASES))
    refuse_option(
        file, "activation_fn", activation, ("relu", "topk") if name == "topk" else ("relu",)
    )
    normalize = config.get("normalize_activations") or "none"  # version 5: None or False too
    refuse_option(file, "normalize_activations", normalize, ("none",))
    reshape = "hook_z" if "hook_z" in str(config.get("hook_name", "")) else "none"
    refuse_option(
        file, "reshape_activations", config.get("reshape_activations", reshape), ("none",)
    )
    return name


def _check_scaling(scaling: Tensor, file: Path) -> None:
    if not torch.allclose(scaling.float(), torch.ones(())):
        raise FormatError(
            f"{file}: holds a scaling_factor other than 1, which multiplies the codes; fold it "
            "into W_dec in SAELens first"
        )


def _add_pre_bias(name: str, tensors: dict[str, Tensor], file: Path) -> None:
    if name == "gated":
        shift = without_pre_bias(
            torch.zeros_like(tensors["b_gate"]), tensors["W_enc"], tensors["b_dec"]
        )
        tensors["b_gate"] = tensors["b_gate"] + shift
        tensors["b_mag"] = tensors["b_mag"] + shift * tensors["r_mag"].exp()
        return
    tensors["b_enc"] = without_pre_bias(tensors["b_enc"], tensors["W_enc"], tensors["b_dec"])
