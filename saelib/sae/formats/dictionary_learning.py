"""dictionary_learning's folder: config.json and the state dict, here as ae.safetensors.

The library itself writes ae.pt, a pickle, which is not read: loading one runs whatever it holds.
Its linear layers keep matrices as [out, in]. All but JumpReluAutoEncoder take x − bias; a
BatchTopKSAE fires above its one threshold, which makes it a JumpReLU SAE. Conventions read from
dictionary-learning 0.1.0.
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
    as_floats,
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

CONFIG = "config.json"
WEIGHTS = "ae.safetensors"
PICKLE = "ae.pt"
# What each is written as; read back, a class is the first that is written so.
CLASSES = {
    "sae": "AutoEncoder",
    "gated": "GatedAutoEncoder",
    "topk": "AutoEncoderTopK",
    "jumprelu": "JumpReluAutoEncoder",
    "p_anneal": "AutoEncoder",
}
LAYERS = {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}
# This package's names -> the class's, beside what is not a parameter.
NAMES = {
    "AutoEncoder": LAYERS | {"b_enc": "encoder.bias", "b_dec": "bias"},
    "GatedAutoEncoder": LAYERS
    | {"b_dec": "decoder_bias", "r_mag": "r_mag", "b_gate": "gate_bias", "b_mag": "mag_bias"},
    "AutoEncoderTopK": LAYERS | {"b_enc": "encoder.bias", "b_dec": "b_dec"},
    "BatchTopKSAE": LAYERS | {"b_enc": "encoder.bias", "b_dec": "b_dec"},
    "JumpReluAutoEncoder": {
        name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    },
}
NUMBERS = {"AutoEncoderTopK": ("k", "threshold"), "BatchTopKSAE": ("k", "threshold")}


def write(sae: Autoencoder, folder: Path, model: str) -> None:
    """Write an SAE in model units (a folded one)."""
    name = CLASSES[sae.config.arch]
    tensors = {theirs: getattr(sae, ours) for ours, theirs in NAMES[name].items()}
    tensors |= {layer: tensors[layer].T for layer in LAYERS.values() if layer in tensors}
    trainer: dict[str, Any] = {
        "dict_class": name,
        "activation_dim": sae.config.d_in,
        "dict_size": sae.config.n_latents,
        "lm_name": model,
    }
    site = sae.config.site
    trainer["submodule_name"] = f"resid_post_layer_{site - 1}" if site else "resid_pre_layer_0"
    if name == "AutoEncoderTopK":
        k = sae.config.options["k"]
        trainer["k"] = k
        tensors["k"] = torch.tensor(k, dtype=torch.int32)
        tensors["threshold"] = torch.tensor(-1.0)  # "not estimated", as the class starts
    if name == "JumpReluAutoEncoder":  # takes x itself
        shift = without_pre_bias(torch.zeros_like(sae.b_enc), sae.W_enc, sae.b_dec)
        tensors["b_enc"] = sae.b_enc - shift
    write_weights(folder / WEIGHTS, tensors)
    write_json(folder / CONFIG, {"trainer": trainer})


def read(folder: Path) -> Parts:
    """An SAE of dictionary_learning, in model units.

    Raises:
        FormatError: the folder is damaged, or the SAE is of a class that this package has not.
    """
    trainer = read_config(folder / CONFIG).get("trainer")
    if not isinstance(trainer, dict):
        raise FormatError(f"{folder / CONFIG}: trainer = {trainer!r:.60}: expected a mapping")
    name = trainer.get("dict_class")
    refuse_option(folder / CONFIG, "trainer.dict_class", name, tuple(NAMES))
    file = folder / WEIGHTS
    raw = read_weights(file)
    refuse_others(raw, (*NAMES[name].values(), *NUMBERS.get(name, ())), file)
    turned = [ours for ours, theirs in NAMES[name].items() if theirs in LAYERS.values()]
    tensors = under_our_names(raw, NAMES[name], file, turned)
    arch = "jumprelu"
    options = {}
    if name == "BatchTopKSAE":
        tensors["threshold"] = _threshold(raw, file).expand_as(tensors["b_enc"])
    elif name == "JumpReluAutoEncoder":
        tensors["b_enc"] = without_pre_bias(tensors["b_enc"], tensors["W_enc"], tensors["b_dec"])
    else:
        arch = next(ours for ours, theirs in CLASSES.items() if theirs == name)
    if name == "AutoEncoderTopK":
        options["k"] = _k(raw, trainer, folder)
    return Parts(arch, tensors, site_of_hook(str(trainer.get("submodule_name"))), options, file)


def _threshold(raw: dict[str, Tensor], file: Path) -> Tensor:
    """The one threshold of a BatchTopKSAE."""
    threshold = as_floats(raw, ("threshold",), file)["threshold"]
    if threshold.numel() != 1 or float(threshold) < 0:
        raise FormatError(
            f"{file}: threshold = {threshold.tolist()}: a BatchTopKSAE needs the one number of 0 "
            "or more that its training estimates"
        )
    return threshold


def _k(raw: dict[str, Tensor], trainer: dict[str, Any], folder: Path) -> int:
    if "k" not in raw or raw["k"].numel() != 1:
        return whole_number(folder / CONFIG, "trainer.k", trainer.get("k"))
    k = raw["k"].item()
    whole = int(k) if isinstance(k, float) and k.is_integer() else k
    return whole_number(folder / WEIGHTS, "k", whole)
