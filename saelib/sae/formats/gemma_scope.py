"""Gemma Scope's params.npz (Lieberum et al. 2024, arXiv 2408.05147): JumpReLU SAEs.

W_enc [d_in, n_latents], W_dec, b_enc, b_dec, threshold; the encoder takes x itself. The site is
known where the path names the residual stream and the layer, as the hub's folders do:
gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82; it is the output of that block.
"""

from __future__ import annotations

import math
import re
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from saelib.files import check_packing
from saelib.sae.formats.parts import (
    FormatError,
    Parts,
    refuse_others,
    under_our_names,
    without_pre_bias,
)

WEIGHTS = "params.npz"
NAMES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
EXPANDED = 16  # bytes unpacked, for each in the file: weights are near to noise, which stays as is
LONGEST_HEADER = 256  # characters; they are parsed as Python, in which longer ones may nest deeply
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# What numpy and zipfile raise; a RuntimeError where an archive is encrypted or packed in a way
# that is not known.
DAMAGE = (
    *(ValueError, TypeError, OSError, EOFError, RuntimeError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)


def read(folder: Path) -> Parts:
    """An SAE of Gemma Scope, in model units.

    Raises:
        FormatError: the file is damaged, holds pickled objects, or lacks an array.
    """
    file = folder / WEIGHTS
    try:
        arrays = _arrays(file)
    except FileNotFoundError:
        raise FormatError(f"{file} is missing") from None
    except DAMAGE as error:
        raise FormatError(f"{file}: damaged, or it holds pickled objects ({error})") from error
    raw = {_name(name): _tensor(array, file) for name, array in arrays.items()}
    refuse_others(raw, NAMES, file)
    tensors = under_our_names(raw, {name: name for name in NAMES}, file)
    tensors["b_enc"] = without_pre_bias(tensors["b_enc"], tensors["W_enc"], tensors["b_dec"])
    return Parts("jumprelu", tensors, _site(folder.absolute()), {}, file)


def _arrays(file: Path) -> dict[str, np.ndarray]:
    """The archive's arrays by name; their sizes are looked at before room is made for them."""
    with zipfile.ZipFile(file) as archive:
        check_packing(archive)
        members = archive.infolist()
        if len({_name(member.filename) for member in members}) < len(members):
            raise ValueError("it holds two arrays of one name")
        unpacked = sum(member.file_size for member in members)
        if unpacked > EXPANDED * file.stat().st_size:
            raise ValueError(
                f"it unpacks to {unpacked:,} bytes, over {EXPANDED} times its size; weights do not"
            )
        return {member.filename.removesuffix(".npy"): _array(archive, member) for member in members}


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in HEADERS:
            raise ValueError(f"{member.filename!r} is an array of format {version}")
        shape, _, dtype = HEADERS[version](stream, max_header_size=LONGEST_HEADER)
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"{member.filename!r} holds fewer numbers than its shape says")
    with archive.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _name(name: str) -> str:
    """An array's name; older files write w_enc and w_dec."""
    return f"W_{name[2:]}" if name.startswith("w_") else name


def _tensor(array: np.ndarray, file: Path) -> torch.Tensor:
    """An array of the archive, in this machine's order of bytes."""
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise FormatError(f"{file}: an array of type {array.dtype}; expected numbers")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _site(folder: Path) -> int | None:
    layer = re.search(r"/layer_(\d+)(/|$)", folder.as_posix())
    residual = re.search(r"gemma-scope-[\w.-]*-res\b|/resid_post/", folder.as_posix())
    return int(layer[1]) + 1 if layer and residual else None
