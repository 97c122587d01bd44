"""SAEs of a workspace on its test pages: a few of one site at once, shared out among the ranks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from tqdm.auto import tqdm

from saelib.env import headless
from saelib.measure.evaluate import evaluate
from saelib.run.results import log_time
from saelib.run.schedule import grouped, parts
from saelib.run.trained import Trained
from saelib.run.turns import turns
from saelib.sae.spec import Spec

AT_ONCE = 16  # SAEs measured in one pass over the rows


def measure_shared(ws: Trained, specs: Mapping[str, Spec]) -> None:
    """Measure runs, each by one rank, and write the table."""
    ws.ranks.agree("list of runs to measure", list(specs))
    if ws.ranks.size > 1 and ws.evaluation.ce_tokens:
        _share_references(ws, specs)
    share = list(specs)[ws.ranks.share(len(specs))]
    _measure(ws, {run: specs[run] for run in share})
    ws.ranks.wait()
    if not ws.ranks.rank:
        ws.write_results()
    ws.ranks.wait()


def _share_references(ws: Trained, specs: Mapping[str, Spec]) -> None:
    """Compute each site's reference losses on one rank, or several would write the same file at
    once.
    """
    sites = sorted({spec.sae.site for spec in specs.values()})
    for site in sites[ws.ranks.rank :: ws.ranks.size]:
        ws.reference(site, ws.evaluation)
    ws.ranks.wait()


def _measure(ws: Trained, specs: Mapping[str, Spec]) -> None:
    """Evaluate runs site by site and write their `metrics.json`."""
    silent = headless() or ws.ranks.rank > 0
    with tqdm(total=len(specs), desc="measuring", disable=silent) as bar:
        for runs in grouped(specs, lambda run: specs[run].sae.site):
            for part in parts(runs, AT_ONCE):
                with turns(ws.folder, part, wait=True):
                    _measure_part(ws, _unmeasured(ws, {run: specs[run] for run in part}))
                bar.update(len(part))


def _unmeasured(ws: Trained, specs: Mapping[str, Spec]) -> dict[str, Spec]:
    """Those that no other process has measured by now."""
    return {run: spec for run, spec in specs.items() if not ws.run(run).is_measured(ws.evaluation)}


def _measure_part(ws: Trained, specs: Mapping[str, Spec]) -> None:
    """Evaluate a few runs of one site together."""
    if not specs:
        return
    start = time.monotonic()
    site = next(iter(specs.values())).sae.site
    saes = {run: ws.run(run).load().to(ws.device) for run in specs}
    reference = ws.reference(site, ws.evaluation) if ws.evaluation.ce_tokens else None
    measured = evaluate(saes, ws.store, site, ws.lm, reference, ws.evaluation)
    for run, metrics in measured.items():
        pages = metrics.pop("pages")
        row = describe(ws, run, specs[run]) | metrics
        ws.run(run).write_metrics(ws.evaluation, row, pages)
    seconds = (time.monotonic() - start) / len(specs)
    targets = reference.n_targets if reference else 0
    for run in specs:
        log_time(ws.folder, "evaluate", seconds, run, targets)


def describe(ws: Trained, run: str, spec: Spec) -> dict[str, Any]:
    """What a run is: its columns that are not measured, among all fields of its configurations."""
    cfg = spec.train
    origin = ws.run(run).origin
    shares = " ".join(f"{share:g}" for share in cfg.resample_at)
    return {
        **spec.sae.to_dict(),
        **cfg.to_dict(),
        "run_id": run,
        "notebook": origin["notebook"],
        "model_id": ws.store.model_id,
        "corpus_id": ws.identity.get("corpus_id", ws.store.corpus_id),
        "code_version": origin["code_version"],
        "layer_name": layer_name(spec.sae.site, ws.n_layers),
        "options": spec.options,
        "lambda": cfg.lam,
        "resample": shares or "none",
        "ctx_len": ws.identity["corpus"]["ctx_len"],
        "tokens_trained": cfg.steps * cfg.batch_size,
    }


def layer_name(site: int, n_layers: int) -> str:
    """A site in words: "input of block 2", and "output of block 29" for the last."""
    return f"input of block {site}" if site < n_layers else f"output of block {site - 1}"
