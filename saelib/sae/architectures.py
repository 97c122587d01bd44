"""The table of architectures, and how an SAE of the table is built and loaded."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from saelib.config import ConfigError, SAEConfig
from saelib.files import read_json
from saelib.sae.base import ALL_LATENTS, Autoencoder
from saelib.sae.batchtopk import BatchTopKSAE
from saelib.sae.gated import GatedSAE
from saelib.sae.jumprelu import JumpReLUSAE
from saelib.sae.matryoshka import MatryoshkaSAE
from saelib.sae.origin import check_weights, require_seal
from saelib.sae.p_anneal import PAnnealSAE
from saelib.sae.relu import ReluSAE
from saelib.sae.topk import TopKSAE
from saelib.seal import checked, is_listed, read_seal

# `SAEConfig.arch` -> class. Adding an architecture takes its file and a line here.
ARCHITECTURES: dict[str, type[Autoencoder]] = {
    "sae": ReluSAE,
    "gated": GatedSAE,
    "topk": TopKSAE,
    "batchtopk": BatchTopKSAE,
    "matryoshka": MatryoshkaSAE,
    "jumprelu": JumpReLUSAE,
    "p_anneal": PAnnealSAE,
}


def architecture(config: SAEConfig) -> type[Autoencoder]:
    """The class of a configuration.

    Raises:
        ConfigError: no architecture of the table has that name.
    """
    if config.arch not in ARCHITECTURES:
        accepted = ", ".join(map(repr, ARCHITECTURES))
        raise ConfigError(f"SAEConfig.arch = {config.arch!r}: expected one of {accepted}")
    return ARCHITECTURES[config.arch]


def build_sae(
    config: SAEConfig, generator: torch.Generator | None = None, shard: slice = ALL_LATENTS
) -> Autoencoder:
    """A fresh SAE of `config.arch`, initialised from `generator`; of its latents, the shard.

    Raises:
        ConfigError: the architecture or one of its options is unknown or out of range.
    """
    return architecture(config)(config, generator, shard)


def load_sae(folder: Path | str) -> Autoencoder:
    """Load an SAE folder, without gradients.

    Raises:
        FileNotFoundError: the folder holds no (finished) SAE.
        ValueError: a file is damaged or not the one that was sealed or measured, a weight is not
            finite or not float32, or the files do not fit each other; names the file.
        ConfigError: `config.json` describes no SAE; names the file and the field.
    """
    path = Path(folder) / "config.json"
    if not (path.exists() and is_listed(path)):
        raise FileNotFoundError(f"{path} is missing: not a (finished) SAE folder")
    weights = checked(path.with_name("weights.safetensors"))
    sae = _described(checked(path), weights)
    if read_seal(path.parent) is None:
        require_seal(path.parent)
        check_weights(path.parent)  # that were measured, where the folder says so
    try:
        tensors = load_file(weights)
        missing = sorted(set(sae.state_dict()) - set(tensors))
        if missing:
            raise ValueError(
                f"{weights} does not fit {path}: {missing[0]} is missing, which arch "
                f"{sae.config.arch!r} needs; it holds {', '.join(sorted(tensors))}"
            )
        sae.load_state_dict(tensors)
    except SafetensorError as error:
        raise ValueError(f"{weights}: damaged ({error})") from error
    except RuntimeError as error:
        raise ValueError(f"{weights} does not fit {path}: {error}") from error
    for name, tensor in tensors.items():
        if tensor.dtype != sae.W_dec.dtype:
            raise ValueError(f"{weights}: {name} is {tensor.dtype}; expected {sae.W_dec.dtype}")
        # a sum tells it ten times faster, unless finite values sum to infinity
        if not (tensor.sum().isfinite() or tensor.isfinite().all()):
            raise ValueError(f"{weights}: damaged ({name} holds values that are not finite)")
    return sae.requires_grad_(False)


def _described(path: Path, weights: Path) -> Autoencoder:
    """An SAE of the configuration that a file holds, its tensors yet to be filled from `weights`,
    which must have the room that they take.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of fields, found {values!r:.80}")
    try:
        config = SAEConfig.from_dict(values)
        config = architecture(config).checked(config)
        if 2 * 4 * config.d_in * config.n_latents > weights.stat().st_size:  # W_enc and W_dec
            raise ValueError(
                f"{weights} does not fit {path}: it is smaller than an SAE of d_in = "
                f"{config.d_in}, n_latents = {config.n_latents}"
            )
        with torch.device("meta"):  # draws nothing
            sae = build_sae(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return sae.to_empty(device="cpu")  # in the strides that it was built with
