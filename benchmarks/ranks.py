"""Many processes against one: the stores' content, and weights after 100 split steps.

Steps are split by rows or by latents.

    python benchmarks/ranks.py [--json PATH] [--ranks 2 4]

The shapes and recipes are those of tests/helpers/rank_trainings.py (d = 8, 50 latents, so that
shares are uneven; gloo on the CPU).
`weights`: the largest ‖ΔW‖ / ‖W‖ of any tensor of any recipe; `fvu`: the largest difference of FVU
on test rows;
`revived`: latents that resampling revived, the same ones in each row.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))
from harness import machine, parser, report
from helpers.collecting import CFG, SITES, make_lm
from helpers.errors import fvu, relative
from helpers.processes import one_thread
from helpers.random_stores import make_contexts
from helpers.rank_jobs import run_ranks
from helpers.rank_trainings import DTYPES, KINDS, MODES, rows, told_history, trained

from saelib.activations.collect import collect

COLUMNS = ("name", "ranks", "dtype", "weights", "fvu", "revived", "sha256")


def content(folder: Path) -> str:
    """sha256 over the names and bytes of all files of a store."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    told = [
        f"{file.relative_to(folder)} {hashlib.sha256(file.read_bytes()).hexdigest()}"
        for file in files
    ]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def trainings(folder: Path, ranks: int) -> list[dict[str, Any]]:
    """A row for each way to split and dtype, over the recipes."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for name, cfg in MODES.items():
        for dtype in DTYPES[name]:
            alone, history = trained(cfg, dtype=dtype)
            alone.requires_grad_(False)
            expected, test = alone.state_dict(), rows(500, 2).to(dtype)
            told = told_history(history)["h.revived"]
            for kind in KINDS:
                short = str(dtype).removeprefix("torch.")
                state = load_file(folder / f"{name}.{kind}.{short}.{ranks}")
                together = deepcopy(alone)
                together.load_state_dict({key: state[key] for key in expected})
                if not torch.equal(state["h.revived"], told):
                    raise SystemExit(f"{name}, {kind}, {ranks} ranks: other latents were revived")
                row = found.setdefault((kind, short), {"weights": 0.0, "fvu": 0.0, "revived": 0})
                row["weights"] = max(
                    row["weights"], *(relative(state[key], expected[key]) for key in expected)
                )
                row["fvu"] = max(row["fvu"], abs(fvu(together, test) - fvu(alone, test)))
                row["revived"] += len(told)
    return [
        {"name": f"split by {k}", "ranks": ranks, "dtype": t} | row
        for (k, t), row in sorted(found.items())
    ]


def main() -> None:
    options = parser(__doc__.splitlines()[0], timed=False)
    options.add_argument("--ranks", nargs="+", type=int, default=[2, 4])
    args = options.parse_args()
    about = machine("cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with one_thread():
            collect(make_lm(), make_contexts(), SITES, folder / "store1", CFG, progress=False)
        table = [{"name": "store", "ranks": 1, "sha256": content(folder / "store1")}]
        for ranks in args.ranks:
            run_ranks("everything", ranks, folder)
            table.append(
                {"name": "store", "ranks": ranks, "sha256": content(folder / f"store{ranks}")}
            )
        for ranks in args.ranks:
            table += trainings(folder, ranks)
    report(table, COLUMNS, about, args.json)


if __name__ == "__main__":
    main()
