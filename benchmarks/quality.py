"""Quality of SAEs at matched L0: ours beside SAELens' and dictionary_learning's, on equal rows.

    python benchmarks/quality.py --json PATH [--profile default]
        [--systems …] [--sites 2 middle -2] [--seeds 0 1 2]

Every system trains on the same rows in the same order (ordinary tokens of the training pages,
centred and scaled), with the same width, batch size and number of tokens, by its own trainer, with
its own defaults and the schedules of its own examples (`peers.trained`). What it may choose, it
chooses on validation pages. Its learning rate, out of three and further ones while the best is at
an end: at the middle site with the first seed, by FVU at the middle one of --targets. And λ, until
all of --targets lie between two trained ones. Its weights are then read into saelib's classes, and
checked to rebuild what the peer's own code rebuilds, so that one code measures all.

Each trained SAE is a row of the JSON file, written as soon as it is measured; a row that is there
is not trained again. The table has FVU on ordinary test tokens and loss recovered at each L0,
interpolated along λ, the mean over seeds, and each over the best peer's of the same architecture,
less 1, with its 95 % interval, from a paired bootstrap over test pages and seeds. Needs the store
of a profile whose notebook 01 has run, and the peers (benchmarks/requirements.txt).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parent))
from harness import machine, parser, report
from recipe import recipe_of

from saelib.activations.rows import ShuffledRows
from saelib.config import EvalConfig, SAEConfig, TrainConfig, stable_hash
from saelib.measure.evaluate import evaluate
from saelib.run.identity import code_version
from saelib.run.workspace import Workspace
from saelib.sae import build_sae
from saelib.sae.group import train
from saelib.study.curve import matched
from saelib.study.estimate import Estimate, over_seeds
from saelib.study.matched import interpolate_matched_l0, propose_lambda
from saelib.versions import MEASURING_VERSION

SYSTEMS = {  # name: loss, first λs, learning rates
    "saelib plain": ("plain", (0.8, 3.0), (5e-3, 1e-2, 2e-2)),
    "saelib full": ("full", (1.2, 5.0), (5e-3, 1e-2, 2e-2)),
    "SAELens standard": ("plain", (1.5, 5.0), (1e-3, 3e-3, 9e-3)),
    "SAELens gated": ("full", (1.5, 6.0), (1e-3, 3e-3, 9e-3)),
    "dictionary_learning standard": ("plain", (3.0, 8.0), (1e-3, 3e-3, 9e-3)),
    "dictionary_learning gated": ("full", (3.0, 8.0), (1e-3, 3e-3, 9e-3)),
}
KEY = ("system", "site", "seed", "lr", "lam")
KEPT = (
    "fvu",
    "l0",
    "fvu_val",
    "l0_val",
    "loss_recovered",
    "dead_fraction",
    "delta_ce",
    "shrinkage",
)
BETTER = {"fvu": min, "loss_recovered": max}
PAGES = ("sse", "sst", "ce_n", "ce_id", "ce_sae", "ce_zero")
COLUMNS = ("system", "site", "l0", "seeds", "lr", "fvu", "loss_recovered", "dead_fraction")
COLUMNS += tuple(f"{column}_{part}" for column in BETTER for part in ("over_best", "lo", "hi"))
EXTRA = 4  # further λ a curve for each target
MORE_RATES = 2  # further learning rates, where the best is the least or the greatest


class Bench:
    """Rows of the JSON file, and the means to add one."""

    def __init__(self, args: Any) -> None:
        self.args, self.path = args, args.json
        self.recipe = recipe_of(args.profile)
        self.ws = Workspace(
            args.profile, evaluation=EvalConfig(ce_tokens=self.recipe.pop("ce_tokens"))
        )
        self.tokens = args.tokens or self.recipe["tokens"]
        shared = {name: self.recipe[name] for name in ("n_latents", "batch_size")} | {
            "tokens": self.tokens
        }
        if self.tokens < self.recipe["batch_size"]:
            raise SystemExit(
                f"--tokens {self.tokens}: at least one batch of {self.recipe['batch_size']} is "
                "needed"
            )
        made = {
            "store": self.ws.store.store_id,
            "ce_tokens": self.ws.evaluation.ce_tokens,
            **shared,
        }
        made |= {"measured_by": MEASURING_VERSION}
        own = {k: v for k, v in self.recipe.items() if k != "lr"}  # of our systems
        theirs = [
            (Path(__file__).with_name(name)).read_text(encoding="utf-8")
            for name in ("peers.py", "requirements.txt")
        ]
        self.ours = made | {"recipe": stable_hash(own, code_version())}
        self.theirs = made | {"recipe": stable_hash(theirs)}
        self.rows = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else []
        for row in self.rows:
            if row["made"] != (now := self._made(row["system"])):
                raise SystemExit(
                    f"{self.path}: {row['system']} was made with {row['made']}, now {now}; choose "
                    "another --json"
                )

    def _made(self, system: str) -> dict[str, Any]:
        return self.ours if system.startswith("saelib") else self.theirs

    def row(self, **key: Any) -> dict[str, Any]:
        """One trained SAE's row, trained now if it is not there."""
        for row in self.rows:
            if all(row[k] == key[k] for k in KEY):
                return row
        sae = self.fit(**key)
        ws, site = self.ws, key["site"]
        found = evaluate(
            {"sae": sae}, ws.store, site, ws.lm, ws.reference(site, ws.evaluation), ws.evaluation
        )["sae"]
        pages = {k: [page[k] for page in found["pages"]] for k in PAGES}
        row = (
            key | {k: found[k] for k in KEPT} | {"made": self._made(key["system"]), "pages": pages}
        )
        self.rows.append(row)
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text(json.dumps(self.rows) + "\n", encoding="utf-8")
        os.replace(temporary, self.path)
        print({k: row[k] for k in (*KEY, "l0", "fvu", "loss_recovered")}, flush=True)
        return row

    def fit(self, system: str, site: int, seed: int, lr: float, lam: float) -> Any:
        """Train one SAE; its weights in saelib's class, with the site's normaliser."""
        store, (loss, _, _) = self.ws.store, SYSTEMS[system]
        ours, n, batch = (
            system.startswith("saelib"),
            self.recipe["n_latents"],
            self.recipe["batch_size"],
        )
        config = SAEConfig("sae" if loss == "plain" else "gated", store.d_model, n, site)
        stream = ShuffledRows(
            store, site, np.flatnonzero(store.mask("ordinary", "train")), batch, seed
        )
        sae = build_sae(config, torch.Generator().manual_seed(seed))
        sae.set_normalizer_(*self.ws.normalizer(site, "center_scale", "ordinary"))
        if ours:
            names = ("schedule", "warmup", "lam_warmup", "grad_clip", "batch_size")
            more = {k: self.recipe[k] for k in names}
            train(
                sae,
                stream,
                TrainConfig(loss=loss, lam=lam, lr=lr, seed=seed, tokens=self.tokens, **more),
            )
            return sae.requires_grad_(False)
        import peers  # only where they are installed

        torch.manual_seed(seed)
        batches = lambda: sae.normalize(next(stream)[0]).detach()  # noqa: E731
        weights, rebuild = peers.trained(
            system, batches, store.d_model, n, self.tokens // batch, batch, lam, lr
        )
        with torch.no_grad():
            for name, value in weights.items():
                getattr(sae, name).copy_(value)
            x = batches()
            torch.testing.assert_close(sae.decode(sae.encode(x)), rebuild(x), rtol=1e-3, atol=1e-3)
        return sae.requires_grad_(False)

    def curve(
        self, system: str, site: int, seed: int, lr: float, targets: list[float]
    ) -> list[dict[str, Any]]:
        """Rows along λ until every target lies between two of them, or nothing more can be tried.

        Later seeds begin where the first one's curve says that the targets lie.
        """
        first = [
            r
            for r in self.rows
            if all(r[k] == v for k, v in (("system", system), ("site", site), ("lr", lr)))
        ]
        first = (
            [r for r in first if r["seed"] == self.args.seeds[0]]
            if seed != self.args.seeds[0]
            else []
        )
        begin = lambdas_at(first, targets) if len(first) > 1 else SYSTEMS[system][1]
        rows = [self.row(system=system, site=site, seed=seed, lr=lr, lam=lam) for lam in begin]
        for target in targets:
            for _ in range(EXTRA):
                lam = propose_lambda(((r["lam"], r["l0_val"]) for r in rows), target, max_ratio=2.5)
                if lam is None:
                    break
                rows.append(
                    self.row(system=system, site=site, seed=seed, lr=lr, lam=float(f"{lam:.3g}"))
                )
        return rows

    def learning_rate(self, system: str, site: int) -> float:
        """The learning rate with the least validation FVU at the middle target.

        A best one at an end of the list is tried against the next beyond it, at most `MORE_RATES`
        times.
        """
        target, rates = sorted(self.args.targets)[len(self.args.targets) // 2], SYSTEMS[system][2]
        found, waiting, step = {}, list(rates), rates[1] / rates[0]
        while waiting:
            for lr in waiting:
                value = at(
                    self.curve(system, site, self.args.seeds[0], lr, [target]), target, "fvu_val"
                )
                found[lr] = np.inf if value is None else value
            best = min(found, key=found.__getitem__)
            beyond = (
                best / step if best == min(found) else best * step if best == max(found) else None
            )
            waiting = (
                [float(f"{beyond:.3g}")] if beyond and len(found) < len(rates) + MORE_RATES else []
            )
        return best


def lambdas_at(rows: list[dict[str, Any]], targets: list[float]) -> list[float]:
    """λ a little outside the first and last target, and λ at those between.

    They are read off a curve, at its ends where it stops.
    """
    low, *between, high = sorted(targets) if len(targets) > 1 else targets * 2
    rows = sorted(rows, key=lambda row: row["l0_val"])
    l0, lams = ([row[k] for row in rows] for k in ("l0_val", "lam"))
    wanted = [
        interpolate_matched_l0(l0, lams, value) for value in (0.9 * low, *between, 1.12 * high)
    ]
    ends = [wanted[0] or lams[0], *(lam for lam in wanted[1:-1] if lam), wanted[-1] or lams[-1]]
    return [float(f"{lam:.3g}") for lam in ends]


def at(rows: list[dict[str, Any]], target: float, column: str) -> float | None:
    l0, y = ([row[k] for row in rows] for k in ("l0_val", column))
    return interpolate_matched_l0(l0, y, target, log_y=column.startswith("fvu"))


def summarised(
    curves: dict[tuple, list[dict[str, Any]]], lrs: dict[str, float], args: Any
) -> list[dict[str, Any]]:
    """One row a system, site and target."""
    out = []
    sites = dict.fromkeys(site for _, site, _ in curves)
    for site, target in ((s, t) for s in sites for t in args.targets):
        rows, estimates = [], {}
        for system in args.systems:
            mine = [curves[system, site, seed] for seed in args.seeds]
            row = {
                "system": system,
                "site": site,
                "l0": target,
                "seeds": len(mine),
                "lr": lrs[system],
            }
            row |= {
                column: _mean(mine, target, column)
                for column in ("fvu", "loss_recovered", "dead_fraction")
            }
            estimates |= {(system, column): _estimate(mine, target, column) for column in BETTER}
            rows.append(row)
        for row in rows:
            if row["system"].startswith("saelib"):
                row |= {
                    k: v
                    for column in BETTER
                    for k, v in _against_peers(row, rows, estimates, column).items()
                }
        out += rows
    return out


def _mean(curves: list[list[dict[str, Any]]], target: float, column: str) -> float | None:
    values = [at(rows, target, column) for rows in curves]
    return None if None in values else float(np.mean(values))


def _estimate(curves: list[list[dict[str, Any]]], target: float, column: str) -> Estimate:
    """`column` at L0 = target, over test pages and seeds."""
    per_seed = []
    for rows in curves:
        pages = [pd.DataFrame(row["pages"]) for row in rows]
        per_seed.append(matched(pages, [row["l0_val"] for row in rows], target, column))
    return over_seeds(per_seed)


def _against_peers(
    row: dict[str, Any], rows: list[dict[str, Any]], estimates: dict[tuple, Estimate], column: str
) -> dict:
    """Ours over the best peer's of the same architecture, less 1, with its interval.

    Empty where one does not reach the target.
    """
    loss = SYSTEMS[row["system"]][0]
    peers = [
        r for r in rows if not r["system"].startswith("saelib") and SYSTEMS[r["system"]][0] == loss
    ]
    if not peers or None in (row[column], *(peer[column] for peer in peers)):
        return {}
    best = BETTER[column](peers, key=lambda r: r[column])
    over_best = estimates[row["system"], column] / estimates[best["system"], column] - 1
    return {
        f"{column}_best_peer": best["system"],
        f"{column}_over_best": over_best.value,
        f"{column}_lo": over_best.lo,
        f"{column}_hi": over_best.hi,
    }


def main() -> None:
    options = parser(__doc__.splitlines()[0], timed=False)
    options.add_argument("--profile", default="default")
    options.add_argument(
        "--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS, metavar="NAME"
    )
    options.add_argument("--sites", nargs="+", default=["2", "middle", "-2"])
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--targets", nargs="+", type=float, default=[16.0, 32.0, 64.0])
    options.add_argument(
        "--tokens", type=int, default=0, help="training tokens an SAE; 0: the profile's"
    )
    options.add_argument("--table", type=Path, help="write the table's rows there as JSON")
    args = options.parse_args()
    for path in (args.json, args.table):
        if path and not path.parent.is_dir():
            options.error(f"{path}: there is no folder {path.parent}")
    if args.json is None:
        options.error("--json PATH is needed: the rows are kept there")
    args.systems, args.seeds = list(dict.fromkeys(args.systems)), list(dict.fromkeys(args.seeds))
    if min(args.targets) <= 0:
        options.error(f"--targets {min(args.targets)}: an L0 above 0 is needed")
    bench = Bench(args)
    sites = [bench.ws.site(int(s) if s.lstrip("-").isdigit() else s) for s in args.sites]
    lrs = {system: bench.learning_rate(system, bench.ws.site("middle")) for system in args.systems}
    jobs = [
        (system, site, seed) for seed in args.seeds for site in sites for system in args.systems
    ]
    curves = {job: bench.curve(*job, lrs[job[0]], args.targets) for job in jobs}
    report(summarised(curves, lrs, args), COLUMNS, machine("cpu"), args.table)


if __name__ == "__main__":
    main()
