"""Model and tokenizer from files: what is read is checked first, and nothing in them is executed.

`transformers` goes on where a file does not fit its neighbour: it draws missing weights at random,
drops those that the config does not describe, and asks at the terminal whether to run a folder's
code. Here each of these is refused by a `ModelLoadError` that names the model, and the file or the
weights.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from saelib.activations.gguf_header import check_gguf
from saelib.activations.hub import ModelLoadError, explain, locate
from saelib.files import read_json

log = logging.getLogger(__name__)

CONFIGS = ("config.json", "tokenizer_config.json")  # may name code in `auto_map`
# Files that are JSON objects, where a folder has them.
OBJECTS = (
    *CONFIGS,
    *("generation_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "model.safetensors.index.json"),
)
MOST_MISSING = 2  # weights that a config describes, for each in the files
MOST_COMPUTED = 1 << 27  # numbers beside the weights, as tables of positions: half a GB
SHOWN = 3  # weights named in a message


def load_pretrained(name: str, dtype: torch.dtype, gguf_file: str = "") -> tuple[nn.Module, Any]:
    """(model on the CPU in `dtype`, tokenizer) of a hub id, a folder or a GGUF file.

    Attention is sdpa where the model has it, else the model's own. Code that a folder brings along
    is never run. Raises `ModelLoadError` where a file is damaged or missing, and where weights and
    config do not describe one model.
    """
    source, options, hub_error = locate(name, gguf_file)
    try:
        if Path(source).is_dir():
            _check_folder(name, Path(source), options.get("gguf_file"))
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
        tokenizer("a")  # settings of a wrong type are found where they are used
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            attn_implementation=None,  # sdpa or else eager, whatever the config says
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
            **options,
        )
    except (MemoryError, ModelLoadError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of any kind: the libraries raise what a damaged file leads to
        cause = hub_error if hub_error and isinstance(error, OSError) else error
        raise ModelLoadError(explain(name, cause)) from cause
    _check_weights(name, report)
    return model, tokenizer


def _check_folder(name: str, folder: Path, gguf_file: str | None) -> None:
    """Refuse damaged files of a local folder by their names, before anything else reads them."""
    try:
        if gguf_file:
            check_gguf(folder / gguf_file)
            return
        objects = {path.name: _read_object(path) for path in _present(folder, OBJECTS)}
        headers = [_header(path) for path in sorted(folder.glob("*.safetensors"))]
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"model {name!r} cannot be loaded: {error}") from error
    if headers and "config.json" in objects:
        _check_size(name, folder / "config.json", objects["config.json"], headers)
    with_code = [file for file in CONFIGS if objects.get(file, {}).get("auto_map")]
    if with_code:
        log.warning(
            f"model {name!r}: {' and '.join(with_code)} name code in the folder (auto_map), which "
            "is never run; the classes of transformers are used"
        )


def _present(folder: Path, names: tuple[str, ...]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: a {type(value).__name__}, expected a JSON object")
    return value


class _Header(NamedTuple):
    """What a file of weights says of itself."""

    n_tensors: int
    n_values: int


def _header(path: Path) -> _Header:
    try:
        with safe_open(path, framework="pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged, not safetensors ({error})") from error
    return _Header(len(shapes), sum(map(math.prod, shapes)))


def _check_size(name: str, path: Path, values: dict[str, Any], headers: list[_Header]) -> None:
    """Refuse a config of a far larger model than the files hold, before room is made for it."""
    n_tensors = sum(header.n_tensors for header in headers)
    blocks = values.get("num_hidden_layers")
    if isinstance(blocks, int) and blocks > n_tensors:
        raise ModelLoadError(
            f"model {name!r} cannot be loaded: {path}: num_hidden_layers = {blocks}, "
            f"but its files hold {n_tensors} tensors"
        )
    if values.get("quantization_config"):  # several weights are packed into one value
        return
    stored = sum(header.n_values for header in headers)
    described, computed = _n_values(path.parent)
    if described > MOST_MISSING * stored:
        raise ModelLoadError(
            f"model {name!r} cannot be loaded: {path}: describes {described:,} weights, "
            f"but its files hold {stored:,}"
        )
    if computed > max(MOST_COMPUTED, MOST_MISSING * stored):
        raise ModelLoadError(
            f"model {name!r} cannot be loaded: {path}: describes tables of {computed:,} numbers, "
            f"as of positions, beside {stored:,} weights in its files"
        )


def _n_values(folder: Path) -> tuple[int, int]:
    """(weights, other numbers) of the model that a folder's config describes.

    No room is made for them.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=None, trust_remote_code=False
        )
    weights, others = model.parameters(), model.buffers()
    return sum(weight.numel() for weight in weights), sum(other.numel() for other in others)


def _check_weights(name: str, report: dict[str, Any]) -> None:
    """Refuse weights that are not those the config describes."""
    faults = []
    if report["missing_keys"]:  # transformers would go on with random values in their place
        faults.append(f"lacks the weights {_some(sorted(report['missing_keys']))}")
    if report["unexpected_keys"]:  # as where config.json has fewer layers than the file
        names = _some(sorted(report["unexpected_keys"]))
        faults.append(f"has weights that its config does not describe: {names}")
    if report["mismatched_keys"]:
        shapes = [
            f"{key} {list(stored)} where the config says {list(expected)}"
            for key, stored, expected in sorted(report["mismatched_keys"])
        ]
        faults.append(f"has weights of another shape: {_some(shapes)}")
    if faults:
        raise ModelLoadError(f"model {name!r} {'; '.join(faults)}")


def _some(items: list[str]) -> str:
    """The first of them, and how many there are beside."""
    rest = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
