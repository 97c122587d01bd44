"""Missing SAEs of a workspace are trained wave by wave, resumed from checkpoints, and saved."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from saelib.env import headless
from saelib.ranks import SINGLE_PROCESS
from saelib.run.results import log_time
from saelib.run.schedule import (
    Wave,
    saes_that_fit,
    waves_from_store,
    waves_of_live_rows,
)
from saelib.run.trained import Trained
from saelib.run.turns import turns
from saelib.sae import build_sae
from saelib.sae.group import Run, train_together
from saelib.sae.history import History, TrainingDiverged
from saelib.sae.sharding import Sharding
from saelib.sae.spec import Spec

PROBE_ROWS = 1024  # fixed ordinary validation rows on which gate snapshots are taken


class Finished(NamedTuple):
    """A run that was trained in this call."""

    tokens: int  # consumed in this call
    resumed: bool


def train_missing(
    ws: Trained, specs: Mapping[str, Spec], notebook: str
) -> dict[str, TrainingDiverged]:
    """Train what is missing of `specs`, by run id, each rank its share; returns this rank's
    diverged runs.

    Where one diverges, the others are trained and kept all the same. Runs that another process is
    training come last: they are waited for, and trained where that one left them unfinished.
    """
    missing = {run: spec for run, spec in specs.items() if not ws.run(run).is_trained}
    ws.ranks.agree("list of runs", [list(specs), list(missing)])  # listed by all before one is done
    waves = schedule(ws, missing)
    if ws.over == "grid":
        waves = waves[ws.ranks.rank :: ws.ranks.size]
    diverged: dict[str, TrainingDiverged] = {}
    count = sum(len(wave.runs) for wave in waves)
    silent = headless() or ws.ranks.rank > 0
    with tqdm(total=count, desc="training", disable=silent) as bar:
        held_elsewhere = []
        for wave in waves:
            lost = _train_in_turn(ws, wave, missing, notebook, bar, wait=False)
            if lost is None:
                held_elsewhere.append(wave)
            diverged |= lost or {}
        for wave in held_elsewhere:
            diverged |= _train_in_turn(ws, wave, missing, notebook, bar, wait=True) or {}
    vars(ws).pop("live", None)  # free its buffers
    ws.ranks.wait()
    return diverged


def schedule(ws: Trained, specs: Mapping[str, Spec]) -> list[Wave]:
    """The waves in which these runs train."""
    ranks = ws.ranks.size if ws.over == "grid" else 1
    even = -(-len(specs) // ranks)  # so that no rank is left without work
    at_once = min(ws.ranks.first(_saes_at_once(ws, specs)), even)
    split = waves_of_live_rows if ws.is_streamed else waves_from_store
    return split(specs, at_once)


def _saes_at_once(ws: Trained, specs: Mapping[str, Spec]) -> int:
    """`Trained.together`, or on a GPU as many as its free memory holds, but one in any case."""
    if ws.device.type == "cpu" or ws.together == 1 or not specs:
        return ws.together
    on_gpu = ws.is_streamed and ws.live.device.type == "cuda"
    return saes_that_fit(specs.values(), ws.device, ws.live.nbytes if on_gpu else 0)


def _train_in_turn(
    ws: Trained, wave: Wave, specs: Mapping[str, Spec], notebook: str, bar: Any, wait: bool
) -> dict[str, TrainingDiverged] | None:
    """Train what is missing of a wave once no other process is at it; returns those that diverged.

    None, without `wait`, where another process holds one of its runs. Ranks that train one SAE
    together do as their first one says, which holds the locks.
    """
    together = ws.over != "grid"
    leads = not (together and ws.ranks.rank)
    with turns(ws.folder, wave.runs if leads else (), wait) as held:
        if together:
            held = bool(ws.ranks.first(int(held)))
        if not held:
            return None
        trained = [run for run in wave.runs if ws.run(run).is_trained]
        rest = wave.without(trained)
        lost = _train_wave(ws, rest, specs, notebook, bar) if rest.groups else {}
        if together:
            ws.ranks.wait()  # before the first one lets go of what it alone has saved
    bar.update(len(wave.runs))
    return lost


def _train_wave(
    ws: Trained, wave: Wave, specs: Mapping[str, Spec], notebook: str, bar: Any
) -> dict[str, TrainingDiverged]:
    """Train a wave's groups, each on one stream, and save them; returns those that diverged."""
    start = time.monotonic()
    runs = {run: _prepared(ws, run, specs[run], notebook) for run in wave.runs}

    def show(i: int, row: dict[str, Any]) -> None:
        bar.set_postfix_str(_progress(len(runs), specs[wave.runs[i]], row))

    groups = [
        ([runs[run] for run in group.runs], ws.stream(specs[group.runs[0]]))
        for group in wave.groups
    ]
    ahead = ws.live.ahead if ws.is_streamed else 0
    histories = train_together(groups, ws.checkpoint_every, show, ahead)
    outcome = dict(zip(wave.runs, histories, strict=True))
    finished = {
        run: _saved(ws, run, runs[run], history)
        for run, history in outcome.items()
        if isinstance(history, History)
    }
    _log_times(ws, finished, runs, time.monotonic() - start)
    return {run: error for run, error in outcome.items() if run not in finished}


def _progress(count: int, spec: Spec, row: Mapping[str, Any]) -> str:
    """The line beside the progress bar."""
    cfg = spec.train
    which = f"{count} SAEs, {spec.arm} site {spec.sae.site} λ={cfg.lam:g}"
    state = f"FVU {row['fvu']:.3f} L0 {row['l0']:.1f}"
    if not math.isnan(row["dead_fraction"]):
        state += f" dead {row['dead_fraction']:.0%}"
    return f"{which}: {row['step']}/{cfg.steps} {state}"


def _saved(ws: Trained, run: str, trained: Run, history: History) -> Finished:
    """Save a finished run, by the first of the ranks that share it."""
    state = trained.sharding.gather_state(trained.sae)
    if not trained.sharding.ranks.rank:
        ws.run(run).save(trained, history, state)
    tokens = (trained.cfg.steps - history.resumed_at) * trained.cfg.batch_size
    return Finished(tokens, history.resumed_at > 0)


def _log_times(
    ws: Trained, finished: Mapping[str, Finished], runs: Mapping[str, Run], seconds: float
) -> None:
    """Share a wave's seconds among its finished runs by their tokens."""
    per_token = seconds / max(1, sum(run.tokens for run in finished.values()))
    for run, (tokens, resumed) in finished.items():
        if not runs[run].sharding.ranks.rank:
            log_time(ws.folder, "train", per_token * tokens, run, tokens, resumed)


def _prepared(ws: Trained, run: str, spec: Spec, notebook: str) -> Run:
    """A fresh SAE with its normaliser; what it is going to be lies in `train.json`."""
    cfg = spec.train
    sharding = _sharding(ws, spec)
    folder = ws.run(run)
    folder.path.mkdir(parents=True, exist_ok=True)
    if not sharding.ranks.rank:
        folder.begin(spec, notebook, ws.rows_id)
    sae = build_sae(spec.sae, torch.Generator().manual_seed(cfg.seed), sharding.shard)
    sae.set_normalizer_(*ws.normalizer(spec.sae.site, spec.sae.normalize, cfg.tokens_mask))
    probe = _probe(ws, spec.sae.site) if cfg.snapshots else None
    return Run(sae.to(ws.device), cfg, probe, folder.checkpoint, sharding)


def _sharding(ws: Trained, spec: Spec) -> Sharding:
    """How the ranks share the training of one SAE."""
    if ws.ranks.size == 1 or ws.over == "grid":
        return Sharding()
    if ws.over == "data":
        return Sharding(rows=ws.ranks)
    return Sharding(SINGLE_PROCESS, ws.ranks, spec.sae.n_latents)


def _probe(ws: Trained, site: int) -> torch.Tensor:
    """Ordinary validation rows of a site, the same for every SAE."""
    rows = np.flatnonzero(ws.store.mask("ordinary", "val"))
    count = min(PROBE_ROWS, len(rows))
    chosen = np.random.default_rng(0).choice(rows, count, replace=False)
    return ws.store.rows(site, np.sort(chosen))
