"""The recipe taken apart: FVU at one L0 when one choice at a time is another.

    python benchmarks/recipe.py [--json PATH] [--profile default]
        [--arms plain full] [--sites 2 15 29] [--seeds 0]

Reads the store of a profile whose notebook 01 has run, and trains in a folder of its own,
`data/<profile>-recipe`; what is there is not trained again. Each row has FVU, loss recovered and
dead latents on ordinary test tokens, interpolated along λ at the L0 of --l0 on validation pages,
the mean over seeds. Choices are made on `fvu_val`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))
from harness import machine, parser, report

from saelib.config import EvalConfig
from saelib.hardware import choose_device
from saelib.run.profiles import resolve_profile
from saelib.run.source_notebooks import parameters
from saelib.run.workspace import Workspace
from saelib.sae.spec import ARMS
from saelib.study.curve import reach_l0

VARIANTS: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "the first recipe: rate × 0.4, not clipped, λ rising over half of the run": {
        "lr": 0.4,
        "grad_clip": 0.0,
        "lam_warmup": 0.5,
    },
    "gradients not clipped": {"grad_clip": 0.0},
    "gradient norm clipped at 0.3": {"grad_clip": 0.3},
    "λ at full strength after 2 % of the run": {"lam_warmup": 0.02},
    "λ at full strength after 25 %": {"lam_warmup": 0.25},
    "λ at full strength after 50 %": {"lam_warmup": 0.5},
    "learning rate constant": {"schedule": "constant"},
    "learning rate falling as a cosine": {"schedule": "cosine"},
    "learning rate × 1/4": {"lr": 0.25},
    "learning rate × 1/2": {"lr": 0.5},
    "learning rate × 2": {"lr": 2.0},
    "half the batch": {"batch_size": 0.5},
    "twice the batch": {"batch_size": 2.0},
    "b_dec at the mean": {"b_dec_init": "mean"},
    "L1 weighted by decoder norms, which are free": {"l1_mode": "norm_weighted"},
    "Adam without momentum (β₁ = 0)": {"beta1": 0.0},
    "Adam with β₂ = 0.99": {"beta2": 0.99},
}
SCALED = ("lr", "batch_size")  # given as multiples of the recipe's
COLUMNS = (
    "name",
    "arm",
    "site",
    "seeds",
    "fvu_val",
    "fvu",
    "loss_recovered",
    "dead_fraction",
    "lambda",
)
MEASURED = ("fvu_val", "fvu", "loss_recovered", "dead_fraction", "lambda")


def workspace(profile: str, folder: str, ce_tokens: int) -> Workspace:
    """A workspace on a profile's store, with SAEs of its own."""
    base, out = Workspace(profile), Workspace(folder, evaluation=EvalConfig(ce_tokens=ce_tokens))
    out.identity, out.store = base.identity, base.store
    out.folder.mkdir(parents=True, exist_ok=True)
    return out


def recipe_of(profile: str) -> dict[str, Any]:
    """Parameters of notebook 02 under a profile."""
    names = (
        "n_latents",
        "tokens",
        "batch_size",
        "lr",
        "schedule",
        "warmup",
        "lam_warmup",
        "grad_clip",
        "ce_tokens",
    )
    source, given = next(
        (path, v) for path, v in resolve_profile(profile).items() if "train_sae" in path.stem
    )
    values = parameters(source) | given
    return {name: values[name] for name in names}


def varied(recipe: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    scaled = {k: type(recipe[k])(recipe[k] * v) for k, v in change.items() if k in SCALED}
    return recipe | {k: v for k, v in change.items() if k not in SCALED} | scaled


def measure(
    ws: Workspace,
    arm: str,
    site: int,
    seed: int,
    recipe: dict[str, Any],
    lams: list[float],
    l0: float,
) -> dict:
    """Columns at L0 = l0 of one variant's curve; empty where no λ reaches it."""
    curve = reach_l0(
        ws, "recipe", lambda lam: ws.spec(arm, site, lam=lam, seed=seed, **recipe), {(): lams}, l0
    )[()]
    return {column: curve.at_l0(l0, column) for column in MEASURED}


def main() -> None:
    options = parser(__doc__.splitlines()[0], timed=False)
    options.add_argument("--profile", default="default")
    options.add_argument("--arms", nargs="+", default=["plain"], choices=ARMS)
    options.add_argument("--sites", nargs="+", default=["middle"], help="a number, or middle")
    options.add_argument("--seeds", nargs="+", type=int, default=[0])
    options.add_argument("--l0", type=float, default=32.0)
    options.add_argument("--lambdas", nargs="+", type=float, default=[1.4, 3.0], help="tried first")
    options.add_argument(
        "--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME"
    )
    args = options.parse_args()
    recipe, rows = recipe_of(args.profile), []
    ws = workspace(args.profile, f"{args.profile}-recipe", recipe.pop("ce_tokens"))
    sites = [ws.site(int(s) if s.lstrip("-").isdigit() else s) for s in args.sites]
    for arm, site, name in ((a, s, v) for a in args.arms for s in sites for v in args.variants):
        changed = varied(recipe, VARIANTS[name])
        found = pd.DataFrame(
            [measure(ws, arm, site, k, changed, args.lambdas, args.l0) for k in args.seeds],
            dtype=float,
        )
        row = {"name": name, "arm": arm, "site": site, "seeds": len(args.seeds), "l0": args.l0}
        rows.append(
            row
            | {k: None if np.isnan(v) else float(v) for k, v in found.mean(skipna=False).items()}
        )
        print(row, rows[-1]["fvu_val"], flush=True)
    report(rows, COLUMNS, machine(choose_device("auto").type), args.json)


if __name__ == "__main__":
    main()
