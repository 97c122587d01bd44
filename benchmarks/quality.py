"""Quality of SAEs at matched L0: ours beside the peers' of the same architecture, on equal rows.

    python benchmarks/quality.py --json PATH [--profile default] [--minutes M]
        [--systems …] [--sites 2 middle -2] [--seeds 0 1 2] [--targets 16 32 64]

Every system of `systems.py` trains on the same rows in the same order (ordinary tokens of the
training pages, centred and scaled), with the same width, batch size and number of tokens, by its
own trainer, with its own defaults and the schedules of its own examples (`peers.trained`). What it
may choose, it chooses on validation pages. Its learning rate, out of three and further ones while
the best is at an end: at the middle site with the first seed, by FVU at the middle one of
--targets. And what sets its L0 (λ, k, a target) until all of --targets lie between two trained
ones, by the L0 that is measured: that of a BatchTopK SAE is not its k. Its weights are then read
into saelib's classes, and checked to rebuild what the peer's own code rebuilds, so that one code
measures all.

Each trained SAE is a row of the JSON file, written as soon as it is measured; a row that is there
is not trained again, so a run goes on where it stopped. After --minutes no training begins, and
what is missing is said. The table has FVU on ordinary test tokens and loss recovered at each L0,
interpolated along the setting, the mean over seeds, and each over the best peer's of the same
architecture, less 1, with its 95 % interval, from a paired bootstrap over test pages and seeds. A
second table counts the cells (site × L0) in which the upper end is at most 0, and at most 2 %.
Needs the store of a profile whose notebook 01 has run, and the peers (benchmarks/requirements.txt)
unless all --systems are ours.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from harness import machine, parser, report
from quality_table import CELLS, COLUMNS, at, cells, settings_at, summarised
from recipe import recipe_of
from systems import SYSTEMS, Shape, is_ours

from saelib.activations.rows import ShuffledRows
from saelib.config import EvalConfig, SAEConfig, stable_hash
from saelib.measure.evaluate import evaluate
from saelib.run.identity import code_version
from saelib.run.workspace import Workspace
from saelib.sae import build_sae
from saelib.sae.group import train
from saelib.sae.history import TrainingDiverged
from saelib.sae.spec import make_spec
from saelib.study.matched import propose_k, propose_lambda
from saelib.versions import MEASURING_VERSION

HERE = Path(__file__).parent
KEY = ("system", "site", "seed", "lr", "knob")
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
PAGES = ("sse", "sst", "ce_n", "ce_id", "ce_sae", "ce_zero")
RECIPE = ("schedule", "warmup", "lam_warmup", "grad_clip", "batch_size")
EXTRA = 4  # further settings a curve for each target
FAR = 2.5  # neighbours on a curve whose L0 differ by more get one between them
MORE_RATES = 2  # further learning rates, where the best is the least or the greatest


class OutOfTime(Exception):
    """An SAE is missing and --minutes are over."""


class Bench:
    """Rows of the JSON file, and the means to add one."""

    def __init__(self, args: Any) -> None:
        self.args, self.path = args, args.json
        self.deadline = time.monotonic() + 60 * args.minutes if args.minutes else np.inf
        self.recipe = recipe_of(args.profile)
        evaluation = EvalConfig(ce_tokens=self.recipe.pop("ce_tokens"))
        self.ws = Workspace(args.profile, evaluation=evaluation)
        self.tokens = args.tokens or self.recipe["tokens"]
        batch = self.recipe["batch_size"]
        if self.tokens < batch:
            raise SystemExit(f"--tokens {self.tokens}: at least one batch of {batch} is needed")
        store = self.ws.store
        self.shape = Shape(store.d_model, self.recipe["n_latents"], batch, self.tokens // batch)
        self.made_with = {
            "store": stable_hash(store.model_id, store.corpus_id, store.n_rows),
            "ce_tokens": evaluation.ce_tokens,
            "n_latents": self.shape.n,
            "batch_size": batch,
            "tokens": self.tokens,
            "measured_by": MEASURING_VERSION,
        }
        if max(args.targets) > self.shape.n:
            raise SystemExit(f"--targets {max(args.targets):g}: at most n_latents = {self.shape.n}")
        self.where = {"store_id": store.store_id, "device": machine("cpu")["device"]}
        self.recipes = {
            library: self._recipe(library) for library in {name.split()[0] for name in SYSTEMS}
        }
        self.rows = self._kept_rows()

    def _kept_rows(self) -> list[dict[str, Any]]:
        """The rows of the file, less ours by other code of saelib, which are trained again."""
        if not self.path.exists():
            return []
        kept, older = [], Counter()
        for row in json.loads(self.path.read_text(encoding="utf-8")):
            now = self._made(row["system"])
            if row["made"] == now:
                kept.append(row)
            elif not is_ours(row["system"]) or row["made"] | {"recipe": now["recipe"]} != now:
                raise SystemExit(
                    f"{self.path}: {row['system']} was made with {row['made']}, now {now}; choose "
                    "another --json"
                )
            else:
                older[row["system"]] += 1
        for system, count in older.items():
            print(f"{system}: SAEs by other code of saelib, trained again: {count}", flush=True)
        return kept

    def _recipe(self, library: str) -> str:
        """Hash of what decides how that library's systems are trained, beside `made_with`."""
        if library == "saelib":
            own = {k: v for k, v in self.recipe.items() if k != "lr"}
            return stable_hash(own, code_version())
        own = f"peers_{library.lower().replace('saelens', 'sae_lens')}.py"
        files = (own, "peers.py", "requirements.txt")
        texts = [(HERE / name).read_text(encoding="utf-8") for name in files]
        return stable_hash(texts)

    def _made(self, system: str) -> dict[str, Any]:
        return self.made_with | {"recipe": self.recipes[system.split()[0]]}

    def row(self, **key: Any) -> dict[str, Any]:
        """One trained SAE's row, trained now if it is not there.

        Raises:
            OutOfTime: it is not there, and no training may begin.
        """
        for row in self.rows:
            if all(row[k] == key[k] for k in KEY):
                return row
        if time.monotonic() > self.deadline:
            raise OutOfTime
        begun = time.monotonic()
        sae = self.fit(**key)
        made = {"made": self._made(key["system"]), "seconds": time.monotonic() - begun}
        row = key | self._measured(sae, key["site"]) | made | self.where
        self.rows.append(row)
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text(json.dumps(self.rows) + "\n", encoding="utf-8")
        os.replace(temporary, self.path)
        shown = (*KEY, "l0", "fvu", "loss_recovered", "seconds")
        print({k: row.get(k, "diverged") for k in shown}, flush=True)
        return row

    def _measured(self, sae: Any, site: int) -> dict[str, Any]:
        """What is kept of an SAE; of one that diverged, that it did."""
        if sae is None or not all(p.isfinite().all() for p in sae.parameters()):
            return {"diverged": True}
        ws = self.ws
        reference = ws.reference(site, ws.evaluation)
        found = evaluate({"sae": sae}, ws.store, site, ws.lm, reference, ws.evaluation)["sae"]
        pages = {k: [page[k] for page in found["pages"]] for k in PAGES}
        return {k: found[k] for k in KEPT} | {"pages": pages}

    def fit(self, system: str, site: int, seed: int, lr: float, knob: float) -> Any:
        """Train one SAE; its weights in saelib's class, with the site's normaliser.

        None where its loss stopped being finite.
        """
        store = self.ws.store
        rows = np.flatnonzero(store.mask("ordinary", "train"))
        stream = ShuffledRows(store, site, rows, self.shape.batch, seed)
        normalizer = self.ws.normalizer(site, "center_scale", "ordinary")
        if is_ours(system):
            return self._ours(system, site, seed, lr, knob, stream, normalizer)
        import peers  # only where they are installed

        kind = SYSTEMS[system]
        options = {"k": int(knob)} if kind.knob == "k" else {}
        config = SAEConfig(kind.arch, self.shape.d, self.shape.n, site, options=options)
        sae = build_sae(config)
        sae.set_normalizer_(*normalizer)
        batches = lambda: sae.normalize(next(stream)[0]).detach()  # noqa: E731
        torch.manual_seed(seed)
        weights, rebuild = peers.trained(system, batches, self.shape, knob, lr)
        if not all(value.isfinite().all() for value in weights.values()):
            return None
        peers.read_into(sae, weights)
        peers.check_read(system, sae, rebuild, batches())
        return sae.requires_grad_(False)

    def _ours(
        self, system: str, site: int, seed: int, lr: float, knob: float, stream: Any, to: Any
    ) -> Any:
        kind = SYSTEMS[system]
        settings = {name: self.recipe[name] for name in RECIPE}
        settings |= {"n_latents": self.shape.n, "tokens": self.tokens, "lr": lr, "seed": seed}
        settings[kind.knob] = int(knob) if kind.knob == "k" else knob
        spec = make_spec(kind.loss, site, self.shape.d, **settings)
        sae = build_sae(spec.sae, torch.Generator().manual_seed(seed))
        sae.set_normalizer_(*to)
        try:
            train(sae, stream, spec.train)
        except TrainingDiverged:
            return None
        return sae.requires_grad_(False)

    def curve(
        self, system: str, site: int, seed: int, lr: float, targets: list[float]
    ) -> list[dict[str, Any]]:
        """Rows along the setting until every target lies between two, or nothing more can be tried.

        Later seeds begin where the first one's curve says that the targets lie.

        Raises:
            OutOfTime: one is missing, and no training may begin.
        """
        key = {"system": system, "site": site, "seed": seed, "lr": lr}
        rows = [self.row(**key, knob=knob) for knob in self._begin(key, targets)]
        for target in targets:
            for _ in range(EXTRA):
                knob = proposed(system, sound(rows), target, self.shape.n)
                if knob is None:
                    break
                rows.append(self.row(**key, knob=knob))
        return sound(rows)

    def _begin(self, key: dict[str, Any], targets: list[float]) -> list[float]:
        """The settings with which a curve begins."""
        system, first_seed = SYSTEMS[key["system"]], self.args.seeds[0]
        if key["seed"] != first_seed:
            same = key | {"seed": first_seed}
            first = sound([r for r in self.rows if all(r[k] == v for k, v in same.items())])
            if len(first) > 1:
                return settings_at(first, targets, key["system"])
        return list(system.begin) or sorted({float(max(1, round(t))) for t in targets})

    def learning_rate(self, system: str, site: int) -> float:
        """The learning rate with the least validation FVU at the middle target.

        A best one at an end of the list is tried against the next beyond it, at most `MORE_RATES`
        times.

        Raises:
            OutOfTime: an SAE is missing, and no training may begin.
        """
        target = sorted(self.args.targets)[len(self.args.targets) // 2]
        rates = SYSTEMS[system].rates
        factor = rates[1] / rates[0]
        found: dict[float, tuple[float, float]] = {}
        waiting = list(rates)
        while waiting:
            for lr in waiting:
                curve = self.curve(system, site, self.args.seeds[0], lr, [target])
                found[lr] = how_bad(curve, target)
            best = min(found, key=found.__getitem__)
            ends = {min(found): best / factor, max(found): best * factor}
            more = best in ends and len(found) < len(rates) + MORE_RATES
            waiting = [float(f"{ends[best]:.3g}")] if more else []
        return best


def how_bad(curve: list[dict[str, Any]], target: float) -> tuple[float, float]:
    """(0, validation FVU at the target), or, of a curve that does not reach it, how far it is off.

    That is (log of the L0 nearest to it over the target, 0), so that a rate which comes nearer wins
    and one that reaches it wins over all.
    """
    value = at(curve, target, "fvu_val") if curve else None
    if value is not None:
        return 0.0, value
    off = [abs(np.log(row["l0_val"] / target)) for row in curve if row["l0_val"] > 0]
    return float(min(off, default=np.inf)), 0.0


def sound(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that did not diverge."""
    return [row for row in rows if not row.get("diverged")]


def proposed(
    system: str, rows: list[dict[str, Any]], target: float, n_latents: int
) -> float | None:
    """The next setting to train for a target; None where it lies between two near ones, or none is
    left.
    """
    pairs = [(row["knob"], row["l0_val"]) for row in rows]
    if not pairs:
        return None
    if not SYSTEMS[system].rises:
        lam = propose_lambda(pairs, target, max_ratio=FAR)
        return None if lam is None else float(f"{lam:.3g}")
    values = [l0 for _, l0 in pairs]
    if not min(values) <= target <= max(values):
        outwards = propose_k(pairs, target, n_latents)
        return None if outwards is None else float(outwards)
    # between two, λ = 1/k falls as L0 rises
    lam = propose_lambda([(1 / k, l0) for k, l0 in pairs], target, max_ratio=FAR)
    between = None if lam is None else float(round(1 / lam))
    return None if between in (k for k, _ in pairs) else between


def measured(bench: Bench, args: Any) -> tuple[dict[str, float], dict[tuple, Any], list[str]]:
    """Learning rates and curves that are there or could be made, and what is missing."""
    lrs: dict[str, float] = {}
    curves: dict[tuple, Any] = {}
    without = []
    middle = bench.ws.site("middle")
    for system in args.systems:
        try:
            lrs[system] = bench.learning_rate(system, middle)
        except OutOfTime:
            without.append(system)
    missing = ["learning rate and curves of " + ", ".join(without)] if without else []
    sites = [bench.ws.site(int(s) if s.lstrip("-").isdigit() else s) for s in args.sites]
    left: Counter[str] = Counter()
    jobs = [(system, site, seed) for seed in args.seeds for site in sites for system in lrs]
    for job in jobs:
        try:
            curves[job] = bench.curve(*job, lrs[job[0]], args.targets)
        except OutOfTime:
            left[job[0]] += 1
    each = len(sites) * len(args.seeds)
    missing += [f"{count} of {each} curves of {system}" for system, count in left.items()]
    return lrs, curves, missing


def options_of(argv: list[str] | None = None) -> Any:
    """The command line, checked."""
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
    options.add_argument(
        "--minutes", type=float, default=0, help="begin no training after them; 0: no limit"
    )
    options.add_argument("--table", type=Path, help="write the table's rows there as JSON")
    options.add_argument("--cells", type=Path, help="write the counts of cells there as JSON")
    args = options.parse_args(argv)
    for path in (args.json, args.table, args.cells):
        if path and not path.parent.is_dir():
            options.error(f"{path}: there is no folder {path.parent}")
    if args.json is None:
        options.error("--json PATH is needed: the rows are kept there")
    args.systems, args.seeds = list(dict.fromkeys(args.systems)), list(dict.fromkeys(args.seeds))
    for target in args.targets:
        if not 0 < target < np.inf:
            options.error(f"--targets {target}: an L0 above 0 is needed")
    if not 0 <= args.minutes < np.inf:
        options.error(f"--minutes {args.minutes}: expected 0 (no limit) or more")
    return args


def main() -> None:
    args = options_of()
    lrs, curves, missing = measured(Bench(args), args)
    about = machine("cpu")
    rows = summarised(curves, lrs, args)
    report(rows, COLUMNS, about, args.table)
    counts = cells(rows)
    if counts:
        report(counts, CELLS, about, args.cells)
    if missing:
        print("missing, since --minutes were over: " + "; ".join(missing))


if __name__ == "__main__":
    main()
