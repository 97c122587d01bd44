"""A named model: GGUF -> an ordinary Hugging Face folder, whose files are checked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelib.files import read_json, write_json
from saelib.text.pinned import AssetError, file_sha256, require_hash, run_python

RECORD = "sha256.json"  # in the model's folder: file -> [sha256, bytes, time of change]
CALL = """import sys, pathlib, saelib.text.conversion as c
gguf, folder, weights, digits = sys.argv[1:]
c.convert(pathlib.Path(gguf), pathlib.Path(folder), c.Conversion(weights, digits == "True"))
"""


@dataclass(frozen=True)
class Conversion:
    """What conversion of one model has beyond reading its file."""

    weights_sha256: str  # of the dequantised weights: names, shapes and float32 values
    splits_digits: bool  # the file asks for single digits, then byte level


def convert_apart(gguf: Path, folder: Path, conversion: Conversion) -> Path:
    """`convert` in a new process: it needs up to twice the weights, draws bars, and would move the
    random state here.

    Raises `AssetError` with its reason where it fails.
    """
    values = (conversion.weights_sha256, str(conversion.splits_digits))
    arguments = ("-c", CALL, str(gguf), str(folder), *values)
    _, reason = run_python(*arguments, TQDM_DISABLE="1")
    if reason:
        raise AssetError(f"{gguf.name} could not be converted ({reason}); nothing was kept")
    return folder


def convert(gguf: Path, folder: Path, conversion: Conversion) -> None:
    """Write a folder of float32 weights, which later code loads like any other model's.

    Raises `AssetError` where the weights are not the pinned ones.
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"gguf_file": gguf.name, "local_files_only": True}
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    model = _without_quantisation(quantised)
    _require_weights(model, conversion.weights_sha256)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    if conversion.splits_digits:  # the converter sets byte level alone
        digits = pre_tokenizers.Digits(individual_digits=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _give_ordinary_mode(folder)
    write_record(folder)


def _give_ordinary_mode(folder: Path) -> None:
    """Safetensors makes files for their owner alone; these get the permissions of the others."""
    mode = (folder / "config.json").stat().st_mode
    for path in folder.iterdir():
        path.chmod(mode)


def _without_quantisation(quantised: Any) -> Any:
    """The same model, no longer marked quantised: `save_pretrained` refuses one that is."""
    values = {k: v for k, v in quantised.config.to_dict().items() if k != "quantization_config"}
    model = type(quantised)(type(quantised.config).from_dict(values))
    model.load_state_dict(quantised.state_dict())
    return model


def _require_weights(model: Any, expected: str) -> None:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.numpy().data)
    if digest.hexdigest() != expected:
        raise AssetError(
            f"the converted weights hash to {digest.hexdigest()}, pinned is {expected}"
        )


# ---- verification


def write_record(folder: Path) -> None:
    """Record hash, size and time of change of each file in the folder."""
    record = {}
    for path in sorted(folder.iterdir()):
        if path.name != RECORD:
            status = path.stat()
            record[path.name] = [file_sha256(path), status.st_size, status.st_mtime_ns]
    write_json(folder / RECORD, record)


def verify_folder(folder: Path) -> None:
    """`AssetError` where a file is not the one that was recorded.

    By size and time of change (at once), by hash (2 s) where these differ.
    """
    advice = f"delete {folder} and run again"
    if not (folder / RECORD).exists():
        raise AssetError(f"{folder}: {RECORD} is missing, so its files cannot be trusted; {advice}")
    touched = False
    for name, (sha256, size, time) in read_json(folder / RECORD).items():
        path = folder / name
        if not path.exists():
            raise AssetError(f"{path}: missing; {advice}")
        if (path.stat().st_size, path.stat().st_mtime_ns) != (size, time):
            require_hash(path, sha256, advice)
            touched = True
    if touched:
        write_record(folder)
