"""Codes without an encoder: pursuit, refit, lasso and learned atoms in C against plain PyTorch.

    python benchmarks/pursuit.py [--json PATH] [--latents 2304] [--rows 256] [--rounds 3]

Random atoms of SmolLM2's width that have something in common, rows of 48 of them and noise; codes
to refit have the 32 largest products. `ratio_to_plain` is the median time over that of the twin in
plain PyTorch, timed in turn with it.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from harness import interleaved, machine, median, parser, report

from saelib.measure import pursuit, pursuit_c

D, K, PLANTED = 576, 32, 48
COLUMNS = ("name", "n_latents", "n_rows", "form", "seconds_median", "ratio_to_plain")


def options() -> ArgumentParser:
    out = parser(__doc__.splitlines()[0])
    out.add_argument("--latents", type=int, nargs="+", default=[2304])
    out.add_argument("--rows", type=int, default=256, help="learned atoms see four times as many")
    out.set_defaults(rounds=3, device="cpu")
    return out


def random_case(n: int, m: int) -> tuple[Tensor, Tensor]:
    """Rows and atoms whose dimensions have falling weights, as those of a residual stream."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.arange(1, D + 1).float() ** -0.5
    atoms = torch.randn(m, D, generator=generator) * weights + 0.02
    atoms = torch.nn.functional.normalize(atoms, dim=-1)
    places = torch.rand(n, m, generator=generator).topk(min(PLANTED, m)).indices
    values = 0.5 + 5 * torch.rand(places.shape, generator=generator)
    codes = torch.zeros(n, m).scatter(1, places, values)
    return codes @ atoms + 3 * torch.randn(n, D, generator=generator) * weights, atoms


def work(n: int, m: int) -> dict[str, tuple[int, Callable[[], Tensor]]]:
    """Rows and call by name."""
    x, atoms = random_case(4 * n, m)
    few = x[:n]
    top = (few @ atoms.T).topk(min(K, m))
    codes = torch.zeros(n, m).scatter(1, top.indices, 0.25 * top.values.relu())
    return {
        "pursuit": (n, lambda: pursuit.nn_omp(few, atoms, K)),
        "refit": (n, lambda: pursuit.refit(few, atoms, codes)),
        "lasso": (n, lambda: pursuit.lasso_at_l1(few, atoms, codes)),
        "learned atoms": (4 * n, lambda: pursuit.learn_atoms(x.split(2 * n), atoms, K)),
    }


def plainly(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same without C."""

    def run() -> Tensor:
        with mock.patch.object(pursuit_c, "takes", return_value=False):
            return call()

    return run


def rows_of(args: Namespace) -> list[dict[str, Any]]:
    rows = []
    for m in args.latents:
        for name, (n, call) in work(args.rows, m).items():
            times = interleaved([plainly(call), call], args.rounds, "cpu", warmup=1)
            plain, in_c = map(median, times)
            for form, seconds in (("plain", plain), ("C", in_c)):
                values = (name, m, n, form, seconds, seconds / plain)
                rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def main() -> None:
    args = options().parse_args()
    about = machine("cpu")
    with torch.no_grad():
        rows = rows_of(args)
    report(rows, COLUMNS, about, args.json)


if __name__ == "__main__":
    main()
