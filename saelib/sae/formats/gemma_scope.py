"""Gemma Scope's params.npz (Lieberum et al. 2024, arXiv 2408.05147): JumpReLU SAEs.

W_enc [d_in, n_latents], W_dec, b_enc, b_dec, threshold; the encoder takes x itself. The site is
known where the path names the residual stream and the layer, as the hub's folders do:
gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82; it is the output of that block.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saelib.files import check_packing
from saelib.sae.formats.parts import FormatError, Parts, as_floats, refuse_others, without_pre_bias

WEIGHTS = "params.npz"
NAMES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
# What numpy and zipfile raise; a RuntimeError where an archive is encrypted or packed in a way
# that is not known.
DAMAGE = (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read(folder: Path) -> Parts:
    """An SAE of Gemma Scope, in model units.

    Raises:
        FormatError: the file is damaged, holds pickled objects, or lacks an array.
    """
    file = folder / WEIGHTS
    try:
        with np.load(file, allow_pickle=False) as archive:
            check_packing(archive.zip)
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise FormatError(f"{file} is missing") from None
    except DAMAGE as error:
        raise FormatError(f"{file}: damaged, or it holds pickled objects ({error})") from error
    raw = {_name(name): _tensor(array, file) for name, array in arrays.items()}
    refuse_others(raw, NAMES, file)
    tensors = as_floats(raw, NAMES, file)
    tensors["b_enc"] = without_pre_bias(tensors["b_enc"], tensors["W_enc"], tensors["b_dec"])
    return Parts("jumprelu", tensors, _site(folder.absolute()), {}, file)


def _name(name: str) -> str:
    """An array's name; older files write w_enc and w_dec."""
    return f"W_{name[2:]}" if name.startswith("w_") else name


def _tensor(array: Any, file: Path) -> torch.Tensor:
    """An array of the archive; numpy gives a member that is none as bytes."""
    if not isinstance(array, np.ndarray):
        raise FormatError(f"{file}: damaged (it holds a member that is no array)")
    if array.dtype.kind not in "fiub":
        raise FormatError(f"{file}: an array of type {array.dtype}; expected numbers")
    return torch.from_numpy(array)


def _site(folder: Path) -> int | None:
    layer = re.search(r"/layer_(\d+)(/|$)", folder.as_posix())
    residual = re.search(r"gemma-scope-[\w.-]*-res\b|/resid_post/", folder.as_posix())
    return int(layer[1]) + 1 if layer and residual else None
