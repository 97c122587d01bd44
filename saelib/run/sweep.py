"""A profile's collection and its first trainings by many processes: commands `collect`, `train`.

What they make is what the notebooks ask for first, under the same names, so that `run` finds it
there; relative paths begin in the notebooks' folder, as theirs do. Both functions are called by
every rank: by `torchrun -m saelib`, by accelerate's `notebook_launcher`, or by one process alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import chdir
from typing import Any, Literal

from saelib.config import EvalConfig, StreamConfig
from saelib.env import root
from saelib.ranks import process_group
from saelib.run.jobs import COLLECT, jobs_of
from saelib.run.workspace import Workspace
from saelib.study.notebooks import PARAMETERS
from saelib.study.trainings import first_specs

TRAINING = ("02_train_sae", "03_train_gated")

log = logging.getLogger("saelib")


def settings(profile: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The parameters of each notebook under a profile, checked as `run` checks them."""
    jobs = jobs_of(profile, (), overrides)
    return {job.name: PARAMETERS[job.name].read(job.values, job.name) for job in jobs}


def collect(profile: str, overrides: Mapping[str, Any] | None = None) -> None:
    """Collect a profile's activations: the store of notebook 01, its shards shared by the ranks."""
    p = settings(profile, overrides)[COLLECT]
    live = (p.stream_tokens, p.stream_contexts, p.stream_held_out)
    streaming = StreamConfig(*live) if p.stream_tokens else None
    with chdir(root() / "notebooks"), process_group(p.device) as ranks:
        ws = Workspace(profile, p.device, ranks=ranks)
        store = ws.collect(p.model, p.corpus(), p.sites, p.collection(), p.dtype, streaming)
        log.info("%s: %d rows a site, store %s", store.path, store.n_rows, store.store_id)


def train(
    profile: str,
    over: Literal["grid", "data", "latents"] = "grid",
    overrides: Mapping[str, Any] | None = None,
) -> None:
    """Train and measure the SAEs that notebooks 02 and 03 begin with; `over`: see `Workspace`."""
    params = settings(profile, overrides)
    device = params[TRAINING[0]].device
    with chdir(root() / "notebooks"), process_group(device) as ranks:
        workspace = Workspace(profile, device, ranks=ranks, over=over)
        for notebook in TRAINING:
            p = params[notebook]
            ws = workspace.measuring(EvalConfig(ce_tokens=p.ce_tokens))
            rows = ws.train(first_specs(ws, notebook, p), notebook)
            log.info("%s: %d SAEs trained and measured", notebook, len(rows))
