"""The exact sparse training step on the CPU: the encoder's product is dense, all else touches active codes alone.

Codes are 98 to 99 % zero, and every gradient of a zero code is zero: decoder, code gradients and weight gradients need
only the active entries. Values are the dense step's up to the order of summation (`kernels` is the reference, a test
holds them equal). A small C file is compiled once with the system's compiler and kept under `data/kernels/`; where
there is no compiler `available()` is False and training uses the dense step.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saelib.config import root
from saelib.kernels import Gradients, StepStats, decoder_norm_gradient, penalty_of

SOURCE = Path(__file__).with_name("sparse_step.c")
# No -ffast-math: linked into a shared library it would change how the whole process rounds denormals.
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled C file; None without a compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode() + _processor().encode()).hexdigest()[:16]
    path = root() / "data" / "kernels" / f"sparse_step_{key}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            built = Path(folder) / "out.so"
            done = subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(built)], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(
                    f"{compiler} could not compile {SOURCE} (CC=none in the environment trains with the dense step): "
                    f"{done.stderr.strip()}"
                )
            os.replace(built, path)
    return ctypes.CDLL(str(path))


def _processor() -> str:
    """What -march=native depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return "".join(line for line in lines if line.startswith(("model name", "flags"))) or os.uname().machine


def available(device: torch.device) -> bool:
    """Whether the sparse step can run there: on the CPU, with a C compiler."""
    return device.type == "cpu" and _library() is not None


def _call(name: str, *arguments: Tensor | int | float) -> None:
    def convert(a: Tensor | int | float) -> ctypes._SimpleCData:
        if isinstance(a, Tensor):
            if not a.is_contiguous():
                raise TypeError(f"{name}: an array of strides {a.stride()} is not contiguous")
            return ctypes.c_void_p(a.data_ptr())
        return ctypes.c_float(a) if isinstance(a, float) else ctypes.c_int64(a)

    getattr(_library(), name)(*map(convert, arguments))


class Entries(NamedTuple):
    """Open entries of a batch, row by row, and their places latent by latent."""

    crow: Tensor  # int64 [rows + 1]
    col: Tensor  # int32 [entries]
    value: Tensor  # float32 [entries], a = (x − b_dec) W_enc without the bias
    ccol: Tensor  # int64 [n_latents + 1]
    row: Tensor  # int32 [entries]
    order: Tensor  # int32 [entries]


def open_entries(a: Tensor, bias: Tensor) -> Entries:
    """Entries of a [rows, n_latents] with a + bias > 0."""
    rows, n = a.shape
    counts = torch.empty(rows, dtype=torch.long)
    _call("count_open", a, bias, rows, n, counts)
    crow = torch.zeros(rows + 1, dtype=torch.long)
    torch.cumsum(counts, 0, out=crow[1:])
    size = int(crow[-1])
    col, row, order = (torch.empty(size, dtype=torch.int32) for _ in range(3))
    value, ccol = torch.empty(size), torch.empty(n + 1, dtype=torch.long)
    _call("fill_open", a, bias, rows, n, crow, col, value)
    _call("by_latent", rows, n, crow, col, ccol, row, order)
    return Entries(crow, col, value, ccol, row, order)


def _decode(x: Tensor, p: Gradients, at: Entries, f: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """(scale · error [rows, d], Σ squared error, code gradients [entries])."""
    error, squared = torch.empty_like(x), torch.empty(len(x), dtype=torch.float64)
    g_code = torch.empty_like(f)
    rows, d = x.shape
    _call(
        "decode_and_code_gradient",
        x,
        p["W_dec"],
        p["b_dec"],
        rows,
        d,
        at.crow,
        at.col,
        f,
        scale,
        error,
        squared,
        g_code,
    )
    return error, squared.sum(), g_code


def _weights(rows_of: Tensor, at: Entries, v: Tensor, n: int) -> Tensor:
    """Σ over entries of v · rows_of[row], latent by latent. -> [n, d]."""
    g = torch.empty(n, rows_of.shape[1])
    _call("weight_gradient", rows_of, n, rows_of.shape[1], at.ccol, at.row, at.order, v, g)
    return g


def _sums(at: Entries, v: Tensor, n: int) -> Tensor:
    """Σ of v over each latent's entries. -> [n]."""
    return torch.zeros(n, dtype=torch.float64).index_add_(0, at.col.long(), v.double()).float()


def _any(at: Entries, flags: Tensor, n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.bool).index_fill_(0, at.col[flags].long(), True)


@torch.no_grad()
def sae_step(x: Tensor, p: Gradients, lam: float, l1_mode: str) -> tuple[StepStats, Gradients]:
    """`kernels.sae_step` on active codes alone. x: float32 [batch, d_in] normalised."""
    W_enc, n, size = p["W_enc"], p["W_enc"].shape[1], len(x)
    x_c = x - p["b_dec"]
    at = open_entries(x_c @ W_enc, p["b_enc"])
    col = at.col.long()
    f = at.value + p["b_enc"][col]
    error, squared, g_pre = _decode(x, p, at, f, 2 / size)
    penalty = penalty_of(p["W_dec"], l1_mode, lam / size)
    weight = penalty[col] if isinstance(penalty, Tensor) else penalty
    g_pre += weight
    fired = _any(at, torch.ones_like(f, dtype=torch.bool), n)
    stats = StepStats(
        squared, (f * weight).sum() * size, x.new_zeros(()), torch.tensor(len(f)), torch.tensor(len(f)), fired, fired
    )
    grads = {"W_dec": _weights(error, at, f, n), "W_enc": _weights(x_c, at, g_pre, n).T, "b_enc": _sums(at, g_pre, n)}
    grads["b_dec"] = error.sum(0) - W_enc @ grads["b_enc"]
    if l1_mode == "norm_weighted":
        grads["W_dec"] += decoder_norm_gradient(_sums(at, f, n), p["W_dec"], lam / size)
    return stats, grads


@torch.no_grad()
def gated_step(x: Tensor, p: Gradients, lam: float, l1_mode: str, loss: str) -> tuple[StepStats, Gradients]:
    """`kernels.gated_step` on open gates alone. x: float32 [batch, d_in] normalised."""
    W_enc, n, size = p["W_enc"], p["W_enc"].shape[1], len(x)
    gain = p["r_mag"].exp()
    x_c = x - p["b_dec"]
    at = open_entries(x_c @ W_enc, p["b_gate"])
    col = at.col.long()
    opened_codes, gained = at.value + p["b_gate"][col], gain[col]
    f = (at.value * gained + p["b_mag"][col]).relu_()
    active = f > 0
    error, mse, g_f = _decode(x, p, at, f, 2 / size)
    g_mag = g_f * active
    penalty = penalty_of(p["W_dec"], l1_mode, lam / size)
    weight = penalty[col] if isinstance(penalty, Tensor) else torch.full_like(f, penalty)
    g_pi, aux = weight, x.new_zeros(())
    if loss == "full":
        _, aux, g_aux = _decode(x, p, at, opened_codes, 2 / size)
        g_pi = weight + g_aux
    g_a = g_pi + g_mag * gained
    grads = {"W_dec": _weights(error, at, f, n), "W_enc": _weights(x_c, at, g_a, n).T}
    grads |= {"b_gate": _sums(at, g_pi, n), "b_mag": _sums(at, g_mag, n)}
    grads["r_mag"] = _sums(at, g_mag * at.value, n) * gain
    grads["b_dec"] = error.sum(0) - W_enc @ _sums(at, g_a, n)
    if l1_mode == "norm_weighted":
        grads["W_dec"] += decoder_norm_gradient(_sums(at, opened_codes, n), p["W_dec"], lam / size)
    fired, opened = _any(at, active, n), _any(at, torch.ones_like(active), n)
    stats = StepStats(mse, (opened_codes * weight).sum() * size, aux, active.sum(), torch.tensor(len(f)), fired, opened)
    return stats, grads
