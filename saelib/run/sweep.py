"""A profile's collection and its two sweeps by many processes, as the commands `collect` and
`train` do them.

What they make is what the notebooks ask for first, under the same names, so that `run` finds it
there; relative paths begin in the notebooks' folder, as theirs do. Both functions are called by
every rank: by `torchrun -m saelib`, by accelerate's `notebook_launcher`, or by one process alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import chdir
from typing import Any, Literal

from saelib.config import CollectConfig, CorpusConfig, EvalConfig, StreamConfig
from saelib.env import root
from saelib.ranks import started
from saelib.run.jobs import jobs_of
from saelib.run.parameters import filled
from saelib.run.workspace import Workspace
from saelib.sae.spec import ARMS, Spec

RECIPE = (
    "n_latents",
    "tokens",
    "batch_size",
    "lr",
    "schedule",
    "warmup",
    "lam_warmup",
    "grad_clip",
)

log = logging.getLogger("saelib")


def settings(profile: str, overrides: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Every parameter of each notebook under a profile, checked as `run` checks it."""
    return {job.name: job.values for job in jobs_of(profile, (), overrides)}


def sweep(workspace: Workspace, notebook: str, values: Mapping[str, Any]) -> list[Spec]:
    """The first SAEs that notebook 02 (plain alone) or 03 (every arm) trains: sites x λ x seeds."""
    sites = sorted({workspace.site(site) for site in values["sites"]})
    lambdas = {"plain": values["lambdas"]}
    if (
        notebook == "03_train_gated"
    ):  # its λ have three digits, and the full loss takes a multiple of them
        wanted = {
            "plain": values["lambdas"],
            "two_term": values["lambdas_two_term"],
            "full": values["lambdas"],
        }
        factor = {"full": values["lam_full"]}
        lambdas = {
            arm: [float(f"{lam * factor.get(arm, 1.0):.3g}") for lam in wanted[arm]] for arm in ARMS
        }
    cells = [
        (arm, site, s, lam)
        for arm in lambdas
        for site in sites
        for s in values["seeds"]
        for lam in lambdas[arm]
    ]
    recipe = {name: values[name] for name in RECIPE}
    return [workspace.spec(arm, site, lam=lam, seed=s, **recipe) for arm, site, s, lam in cells]


def collect(profile: str, overrides: Mapping[str, Any] | None = None) -> None:
    """Collect a profile's activations: the store of notebook 01, its shards shared out among the
    ranks.
    """
    values = settings(profile, overrides)["01_collect"]
    corpus = filled(CorpusConfig, values, seed=values["corpus_seed"])
    config = filled(CollectConfig, values, dtype=values["store_dtype"])
    live = [values[name] for name in ("stream_tokens", "stream_contexts", "stream_held_out")]
    streaming = StreamConfig(*live) if live[0] else None
    with chdir(root() / "notebooks"), started(values["device"]) as ranks:
        workspace = Workspace(profile, values["device"], ranks=ranks)
        store = workspace.collect(
            values["model"], corpus, values["sites"], config, values["dtype"], streaming
        )
        log.info("%s: %d rows a site, store %s", store.path, store.n_rows, store.store_id)


def train(
    profile: str,
    over: Literal["grid", "data", "latents"] = "grid",
    overrides: Mapping[str, Any] | None = None,
) -> None:
    """Train and measure the SAEs that notebooks 02 and 03 begin with; `over`: see `runs.Workspace`."""
    every = settings(profile, overrides)
    with chdir(root() / "notebooks"), started(every["02_train_sae"]["device"]) as ranks:
        workspace = Workspace(profile, every["02_train_sae"]["device"], ranks=ranks, over=over)
        for notebook in ("02_train_sae", "03_train_gated"):
            measured = workspace.measuring(EvalConfig(ce_tokens=every[notebook]["ce_tokens"]))
            rows = measured.train(sweep(measured, notebook, every[notebook]), notebook)
            log.info("%s: %d SAEs trained and measured", notebook, len(rows))
