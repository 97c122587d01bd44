"""Which SAEs train when: waves of groups, and how many fit into memory at once.

SAEs of one group share a stream of rows and its normaliser, so that each batch is read once for all
of them. A wave is trained at once: one group from a store; live, the groups of all sites, which one
pass of the model feeds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from saelib.run import costs
from saelib.sae.spec import Spec

FILLED = 0.9  # share of a GPU's free memory that SAEs may take


@dataclass(frozen=True)
class Group:
    """Runs that train on one stream of rows."""

    runs: tuple[str, ...]


@dataclass(frozen=True)
class Wave:
    """Groups that train side by side."""

    groups: tuple[Group, ...]

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs of all groups, in order."""
        return tuple(run for group in self.groups for run in group.runs)

    def without(self, trained: Iterable[str]) -> Wave:
        """The wave of the other runs; it may have none."""
        left_out = set(trained)
        rest = (tuple(r for r in group.runs if r not in left_out) for group in self.groups)
        return Wave(tuple(Group(runs) for runs in rest if runs))


def row_order(spec: Spec) -> int:
    """Seed of the order in which a run reads its rows."""
    cfg = spec.train
    return cfg.seed if cfg.data_seed < 0 else cfg.data_seed


def waves_from_store(specs: Mapping[str, Spec], at_once: int) -> list[Wave]:
    """One group per wave: runs of one site, normaliser, mask, batch size and order, at most
    `at_once` of them.
    """

    def stream(run: str) -> tuple[Any, ...]:
        return *_rows_of(specs[run]), row_order(specs[run])

    return [
        Wave((Group(part),)) for runs in grouped(specs, stream) for part in parts(runs, at_once)
    ]


def waves_of_live_rows(specs: Mapping[str, Spec], at_once: int) -> list[Wave]:
    """Groups of all sites in each wave; another token mask has other rows in a block, and its turn
    later.
    """
    waves = []
    for runs in grouped(specs, lambda run: specs[run].train.tokens_mask):
        for part in parts(runs, at_once):
            groups = grouped(part, lambda run: _rows_of(specs[run]))
            waves.append(Wave(tuple(Group(group) for group in groups)))
    return waves


def _rows_of(spec: Spec) -> tuple[Any, ...]:
    """What two runs must have in common to share a stream, its order apart."""
    return spec.sae.site, spec.sae.normalize, spec.train.tokens_mask, spec.train.batch_size


def saes_that_fit(specs: Iterable[Spec], device: torch.device, buffers: int = 0) -> int:
    """SAEs that the GPU's free memory holds at once beside `buffers` bytes, by the largest of them;
    at least 1.
    """
    torch.cuda.empty_cache()
    free = FILLED * torch.cuda.mem_get_info(device)[0] - buffers
    counts = [
        costs.at_once(free, spec.sae.d_in, spec.sae.n_latents, spec.train.batch_size)
        for spec in specs
    ]
    return max(1, min(counts))


def grouped(runs: Iterable[str], key: Callable[[str], Any]) -> list[tuple[str, ...]]:
    """Runs with equal keys together, in the order in which each key comes first."""
    groups = defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return [tuple(group) for group in groups.values()]


def parts(runs: tuple[str, ...], size: int) -> list[tuple[str, ...]]:
    """Runs in order, at most `size` in a part."""
    return [runs[start : start + size] for start in range(0, len(runs), size)]
