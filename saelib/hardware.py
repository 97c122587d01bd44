"""What this machine computes on: device, dtype, and whether bfloat16 is native there."""

from __future__ import annotations

import ctypes
from functools import cache

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16.

    x86 does with AVX-512 BF16 or AMX, ARM with BF16, CUDA from Ampere on.

    torch.cpu.get_capabilities is the public list of instructions. oneDNN's own answer
    (torch.ops.mkldnn._is_mkldnn_bf16_supported) is true on any AVX-512 CPU, where bfloat16 is slow
    emulation.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    has = torch.cpu.get_capabilities()
    return any(has.get(key, False) for key in ("avx512_bf16", "amx_bf16", "bf16"))


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where present.

    Raises ValueError where it is unknown or absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r}: expected 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices here"
        )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of that name; "auto" is bfloat16 where the device computes it natively.

    Raises ValueError where it is unknown.
    """
    if name == "auto":
        return torch.bfloat16 if native_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r}: expected one of 'auto', {', '.join(map(repr, DTYPES))}")
    return DTYPES[name]


def return_freed_memory(device: torch.device) -> None:
    """Give the system back what was freed but lies between what is in use.

    On a CPU whose C library is glibc; elsewhere nothing.
    """
    trim = _malloc_trim() if device.type == "cpu" else None
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> ctypes._CFuncPtr | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; Windows has no CDLL(None)
        return None
    trim.argtypes = [ctypes.c_size_t]
    return trim
