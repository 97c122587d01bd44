"""What is read from another library's folder, and how an SAE of this package is made of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from saelib.config import ConfigError, SAEConfig
from saelib.files import read_json, replaced_file
from saelib.sae.architectures import ARCHITECTURES, build_sae
from saelib.sae.base import Autoencoder

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SHARED = ("W_enc", "W_dec", "b_dec")
# Names of the residual stream: TransformerLens', dictionary_learning's.
BEFORE = re.compile(r"blocks\.(\d{1,4})\.hook_resid_pre|resid_pre_layer_(\d{1,4})")
AFTER = re.compile(r"blocks\.(\d{1,4})\.hook_resid_post|resid_post_layer_(\d{1,4})")


class FormatError(ValueError):
    """A folder cannot be read or written as the format asks; the message names file and field."""


class Parts(NamedTuple):
    """An SAE in model units: tensors under this package's names and in its orientation.

    W_enc [d_in, n_latents], W_dec [n_latents, d_in], b_dec [d_in], and per latent the biases that
    the architecture names. x − b_dec is what the encoder takes; see `without_pre_bias`.
    """

    arch: str
    tensors: dict[str, Tensor]
    site: int | None  # None where the folder does not say
    options: dict[str, Any]
    file: Path  # the weights, for messages


def site_of_hook(name: str) -> int | None:
    """The site of a hook's name; None where it is none of the residual stream."""
    before = BEFORE.fullmatch(name)
    if before:
        return int(before[1] or before[2])
    after = AFTER.fullmatch(name)
    return int(after[1] or after[2]) + 1 if after else None


def hook_of_site(site: int) -> str:
    """TransformerLens' name of a site: the output of the block before it, or block 0's input."""
    return f"blocks.{site - 1}.hook_resid_post" if site else "blocks.0.hook_resid_pre"


def without_pre_bias(b_enc: Tensor, W_enc: Tensor, b_dec: Tensor) -> Tensor:
    """b_enc of an encoder on x − b_dec that equals x W_enc + b_enc: b_enc + b_dec W_enc.

    In float64, since b_dec may be as large as the activations' mean. -> [n_latents].
    """
    return (b_enc.double() + b_dec.double() @ W_enc.double()).to(b_enc.dtype)


def as_floats(tensors: dict[str, Tensor], names: Iterable[str], file: Path) -> dict[str, Tensor]:
    """The named tensors as float32.

    Raises:
        FormatError: one is missing, or holds no floating point numbers.
    """
    chosen = {}
    for name in names:
        if name not in tensors:
            raise FormatError(f"{file}: {name} is missing; it holds {', '.join(sorted(tensors))}")
        if tensors[name].dtype not in FLOATS:
            kind = str(tensors[name].dtype).removeprefix("torch.")
            raise FormatError(
                f"{file}: {name} is of type {kind}; expected float64, float32, bfloat16 or float16"
            )
        chosen[name] = tensors[name].float()
    return chosen


def under_our_names(
    tensors: dict[str, Tensor],
    names: Mapping[str, str],
    file: Path,
    transposed: Iterable[str] = (),
) -> dict[str, Tensor]:
    """The tensors as float32, from this package's names to those in the file, their shapes checked.

    Of `transposed`, which are among this package's names, the file holds the transpose.

    Raises:
        FormatError: one is missing, holds no floating point numbers, or has another shape than
            W_enc asks for: arithmetic would stretch a bias of shape [1] to all latents.
    """
    floats = as_floats(tensors, names.values(), file)
    ours = {name: floats[theirs] for name, theirs in names.items()}
    for name in transposed:
        _require_matrix(name, ours[name], file)
        ours[name] = ours[name].T
    _check_shapes(ours, file)
    return ours


def refuse_others(tensors: dict[str, Tensor], names: Iterable[str], file: Path) -> None:
    """Refuse a tensor that would change the codes if it were passed over.

    Raises:
        FormatError: names it.
    """
    unknown = sorted(set(tensors) - set(names))
    if unknown:
        raise FormatError(f"{file}: holds {unknown[0]}, which this reader does not know")


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        FormatError: it is missing or damaged.
    """
    if not file.is_file():
        raise FormatError(f"{file} is missing")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise FormatError(f"{file}: damaged, or no safetensors file ({error})") from error


def read_config(file: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping.

    Raises:
        FormatError: it is missing, damaged or no mapping.
    """
    if not file.is_file():
        raise FormatError(f"{file} is missing")
    try:
        values = read_json(file)
    except ValueError as error:
        raise FormatError(str(error)) from error
    if not isinstance(values, dict):
        raise FormatError(f"{file}: expected a mapping of fields, found {values!r:.80}")
    return values


def refuse_option(file: Path, name: str, value: Any, accepted: tuple[Any, ...]) -> None:
    """Refuse a setting that changes what the SAE computes.

    Raises:
        FormatError: names file, field, value and what is accepted.
    """
    if value not in accepted:
        choices = " or ".join(map(repr, accepted))
        raise FormatError(f"{file}: {name} = {value!r}: expected {choices}")


def whole_number(file: Path, name: str, value: Any) -> int:
    """A setting that is a whole number.

    Raises:
        FormatError: it is none; names file, field and value.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise FormatError(f"{file}: {name} = {value!r:.80}: expected a whole number")
    return value


def number(file: Path, name: str, value: Any, least: float | int, most: float | int) -> float:
    """A setting that is a number from `least` to `most`, both finite.

    Raises:
        FormatError: it is none; names file, field, value and what is accepted.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:
        wanted = f"a number from {least:g} to {most:g}"
        raise FormatError(f"{file}: {name} = {value!r:.80}: expected {wanted}")
    return float(value)


def flag(file: Path, config: Mapping[str, Any], name: str, default: bool) -> bool:
    """A setting that is true or false; "false" in quotes would count as true.

    Raises:
        FormatError: it is neither; names file, field and value.
    """
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise FormatError(f"{file}: {name} = {value!r:.80}: expected true or false")
    return value


def fold_decoder_norm_(tensors: dict[str, Tensor]) -> None:
    """Move ‖W_dec‖ into the encoder, so that codes are a‖W_dec‖ and decoder rows have norm 1."""
    norms = tensors["W_dec"].norm(dim=1).clamp_min(1e-12)
    tensors["W_enc"] = tensors["W_enc"] * norms
    tensors["b_enc"] = tensors["b_enc"] * norms
    tensors["W_dec"] = tensors["W_dec"] / norms[:, None]


def write_weights(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replaced_file(file) as temporary:
        save_file(stored, temporary)


def assemble(parts: Parts, site: int | None, d_in: int | None) -> Autoencoder:
    """The SAE of `parts`, without a normaliser and without gradients.

    Raises:
        FormatError: a tensor has another shape than the others ask for or holds values that are
            not finite; an option is out of range; the SAE is of another width or site than asked;
            or its site is unknown.
    """
    names = (*SHARED, *ARCHITECTURES[parts.arch].bias_names())
    tensors = as_floats(parts.tensors, names, parts.file)
    _check_shapes(tensors, parts.file)
    _check_finite(tensors, parts.file)
    width = len(tensors["W_enc"])
    if d_in is not None and width != d_in:
        raise FormatError(f"{parts.file}: an SAE of width {width}; asked for width {d_in}")
    sae = _empty(parts, width, len(tensors["W_dec"]), _site(parts, site))
    for name, tensor in tensors.items():
        getattr(sae, name).copy_(tensor)
    return sae


def _empty(parts: Parts, d_in: int, n_latents: int, site: int) -> Autoencoder:
    try:
        config = SAEConfig(
            arch=parts.arch,
            d_in=d_in,
            n_latents=n_latents,
            site=site,
            l1_mode="unit_norm" if parts.arch == "topk" else "norm_weighted",
            normalize="none",
            options=parts.options,
        )
        return build_sae(config).requires_grad_(False)
    except ConfigError as error:
        raise FormatError(f"{parts.file}: {error}") from error


def _require_matrix(name: str, tensor: Tensor, file: Path) -> None:
    if tensor.ndim != 2 or not tensor.numel():
        raise FormatError(f"{file}: {name} has shape {list(tensor.shape)}; expected a matrix")


def _check_shapes(tensors: dict[str, Tensor], file: Path) -> None:
    _require_matrix("W_enc", tensors["W_enc"], file)
    d_in, n_latents = tensors["W_enc"].shape
    wanted = {"W_enc": [d_in, n_latents], "W_dec": [n_latents, d_in], "b_dec": [d_in]}
    for name, tensor in tensors.items():
        expected = wanted.get(name, [n_latents])
        if list(tensor.shape) != expected:
            raise FormatError(
                f"{file}: {name} has shape {list(tensor.shape)}; W_enc [{d_in}, {n_latents}] asks "
                f"for {expected}"
            )


def _check_finite(tensors: dict[str, Tensor], file: Path) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FormatError(f"{file}: damaged ({name} holds values that are not finite)")


def _site(parts: Parts, site: int | None) -> int:
    if site is None and parts.site is None:
        raise FormatError(
            f"{parts.file}: its folder names no site of the residual stream; give site="
        )
    if site is not None and parts.site is not None and site != parts.site:
        raise FormatError(f"{parts.file}: an SAE of site {parts.site}; asked for site {site}")
    return parts.site if site is None else site
