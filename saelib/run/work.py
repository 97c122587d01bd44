"""Operations and seconds of a notebook's stages, from counts and rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saelib.activations.live import HELD
from saelib.run import costs
from saelib.run.asked import CAUSES, DEEP, NOISE, Group
from saelib.run.jobs import COLLECT
from saelib.run.rates import ACTIVE, Rates
from saelib.run.text_size import SHARES, TextSize

PARTS = 16  # SAEs measured at once
TOGETHER = 8  # SAEs trained at once on the CPU
DENSE = 4.5  # dense steps ≈ this × √(steps in which λ rises): fitted to the recorded runs
USABLE = 0.9  # share of a memory that can be filled
HOST_RATE = 5e11  # operations per second of a host, assumed
PURSUIT_IN_C = 0.14  # share of plain PyTorch's time (benchmarks/pursuit.py)
LASSO_IN_C = 0.083
SORTED_CPU = 2e7  # numbers sorted per second, assumed
SORTED_GPU = 1e9
NOTEBOOK = 14.0  # seconds of a notebook's kernel, figures and bootstraps: recorded runs
IN_TABLES = 0.08  # seconds per SAE in its notebook's tables: recorded runs
FILES = 0.3  # seconds per SAE for its files: recorded runs
REFERENCES = 3  # passes of a site's loss tokens for its clean and ablated losses
TRAIN = "02_train_sae"

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Work:
    """Operations and the seconds they take."""

    operations: float | int = 0.0
    seconds: float | int = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.seconds + other.seconds)

    def times(self, factor: float | int) -> Work:
        """So often the same."""
        return Work(self.operations * factor, self.seconds * factor)


@dataclass(frozen=True)
class Stage:
    """What one notebook does of one kind."""

    notebook: str
    name: str
    work: Work


@dataclass(frozen=True)
class Setting:
    """What a plan is made from, whichever notebook."""

    first: Parameters  # those of notebook 01
    sites: Sequence[int]
    shape: costs.Shape
    text: TextSize
    rates: Rates
    card: float | int  # bytes of the GPU's memory; 0 without one
    width: int  # bytes of a number of the model
    dtype: str  # of stored rows

    @property
    def streams(self) -> bool:
        """Whether SAEs train on live rows."""
        return bool(self.first["stream_tokens"])

    @property
    def rows_stored(self) -> float | int:
        """Rows of a site: all, or where training rows are live, held-out ones and a sample."""
        train = self.text.train
        if self.streams:
            train = min(train, self.first["stream_contexts"] * self.first["ctx_len"])
        return self.text.held_out + train

    @property
    def live_buffers(self) -> float | int:
        """Bytes of the live rows in memory."""
        rows = HELD * self.first["stream_tokens"] * len(self.sites)
        return rows * self.shape.d_model * self.width

    def forward(self, tokens: float | int, blocks: float | int, head: bool = False) -> Work:
        """Tokens through some blocks."""
        each = costs.forward_flops(self.shape, blocks, self.first["ctx_len"], head)
        seconds = blocks * self.rates.block + head * self.rates.head
        return Work(each, seconds).times(tokens)

    def fits(self, group: Group, card: float | int) -> int:
        """SAEs of a group that train at once beside the model in `card` bytes (0: on the CPU)."""
        if not card:
            return TOGETHER
        beside = costs.forward_bytes(self.shape, self.first["batch_tokens"], self.width)
        beside += self.width * costs.lm_weights(self.shape) + self.live_buffers
        free = USABLE * card - beside
        return costs.at_once(free, self.shape.d_model, group.latents, group.batch)

    def tokens_streamed(self, groups: Sequence[Group], card: float | int) -> float | int:
        """Tokens the model runs over again to feed groups; all depths read a store in any case."""
        live = [group for group in groups if group.what != DEEP]
        passes = [math.ceil(group.count / max(1, self.fits(group, card))) for group in live]
        return sum(n * group.tokens for n, group in zip(passes, live, strict=True))


def stages_of(
    setting: Setting, notebook: str, p: Parameters, groups: Sequence[Group]
) -> list[Stage]:
    """A notebook's stages: collecting, training, streaming, measuring, all depths, the rest."""
    works: dict[str, Work] = {}
    if notebook == COLLECT:
        works["collecting"] = setting.forward(setting.rows_stored, max(setting.sites))
    if groups:
        works["training"] = _sum(_training(setting, group) for group in groups if group.tokens)
        if setting.streams:
            streamed = setting.tokens_streamed(groups, setting.card)
            works["streaming"] = setting.forward(streamed, max(setting.sites))
        loss_tokens = p.get("ce_tokens", 0)
        works["measuring"] = _sum(_measuring(setting, group, loss_tokens) for group in groups)
    deep = deep_sites(groups)
    if deep:
        works["collecting all depths"] = setting.forward(setting.text.depths, max(deep))
    works["figures and tables"] = Work(0.0, _rest(setting, notebook, p, groups))
    return [Stage(notebook, name, work) for name, work in works.items()]


def _sum(works: Any) -> Work:
    total = Work()
    for work in works:
        total += work
    return total


def deep_sites(groups: Sequence[Group]) -> Sequence[int]:
    """The sites of the section on all depths; none where it is not planned."""
    return next((group.sites for group in groups if group.what == DEEP), ())


def _training(setting: Setting, group: Group) -> Work:
    """Steps, dense at first, and the SAEs' files."""
    d = setting.shape.d_model
    steps = max(1, group.tokens // group.batch)
    dense = min(1.0, DENSE * (group.rising / steps) ** 0.5)  # share of the steps
    work = Work()
    for share, is_dense in ((dense, True), (1 - dense, False)):
        active = None if is_dense else ACTIVE
        flops = costs.step_flops(d, group.latents, group.batch, active, group.gated)
        seconds = setting.rates.step(group.latents, group.batch, group.gated, is_dense)
        work += Work(flops, seconds).times(share * steps)
    return (work + Work(0.0, FILES)).times(group.count)


def _measuring(setting: Setting, group: Group, loss_tokens: int) -> Work:
    """Every validation and test row, and the loss's tokens through the rest of the model.

    A row takes half a sparse step's time (recorded runs). The loss takes a pass per SAE, one per
    part for the clean loss, and three for a site's reference.
    """
    held_out = setting.text.held_out
    rows = {DEEP: setting.text.depths * SHARES[1:].sum(), NOISE: 0}.get(group.what, held_out)
    flops = 2 * setting.shape.d_model * (group.latents + ACTIVE)
    step = setting.rates.step(group.latents, group.batch, group.gated, False)
    tally = Work(flops, step / group.batch / 2).times(group.count * rows)
    if not group.loss:
        return tally
    n_sites = len(group.sites)
    parts = math.ceil(group.count / n_sites / PARTS)
    passes = group.count + n_sites * parts + REFERENCES * group.references
    blocks = setting.shape.n_layers - float(np.mean(group.sites))
    return tally + setting.forward(passes * loss_tokens, blocks, head=True)


def _rest(setting: Setting, notebook: str, p: Parameters, groups: Sequence[Group]) -> float | int:
    """Seconds of a kernel's start, tables and bootstraps, sums over rows, sorting, and pursuit."""
    computed = _sums(setting, notebook, p, groups) / setting.rates.sums
    if notebook == CAUSES:
        host = HOST_RATE if setting.card else setting.rates.sums
        saes = len(setting.sites) * len(p["split_seeds"])
        computed += saes * _pursuit(setting.shape.d_model, p, bool(setting.card)) / host
    shuffled = sum(group.count * group.tokens for group in groups if group.what == NOISE)
    sort = SORTED_GPU if setting.card else SORTED_CPU
    computed += shuffled * setting.shape.d_model / sort
    return NOTEBOOK + IN_TABLES * sum(group.count for group in groups) + computed


def _sums(setting: Setting, notebook: str, p: Parameters, groups: Sequence[Group]) -> float | int:
    """Operations of a notebook's sums over rows in float64: moments, spectra, PCA, predictors."""
    d = setting.shape.d_model
    n_sites = len(setting.sites)
    text = setting.text
    square = 2 * 2 * d * d * n_sites  # a row's x xᵀ at each site; in float64 an operation is two
    shuffled_decoder = n_sites * 2 * d * p.get("n_latents", 0) * text.test
    if notebook == COLLECT:
        return square * (5 * text.train + text.val + 2 * text.test)
    if notebook == TRAIN:
        return square * (text.train + text.test) + shuffled_decoder
    if notebook == CAUSES:
        passes = text.train * (1 + len(p["split_seeds"])) + 2 * text.test
        depths = 4 * d * d * len(deep_sites(groups)) * text.depths
        return square * passes + shuffled_decoder + depths
    return 0.0


def _pursuit(d: int, p: Parameters, on_card: bool) -> float | int:
    """Operations of codes without an encoder, for one SAE.

    Pursuit over five dictionaries, a product of a row with all items per round; items learned, each
    updated every 1,024 rows; lasso at 16 λ on 256 rows and at one on all, two products per step.
    Those of plain PyTorch; on the CPU times the share of its time that C takes.
    """
    rows = p["split_tokens"]
    learned = p["learn_tokens"]
    wider = p["wider"]
    n = p["n_latents"]
    pursued = p["l0_target"] * (learned + rows * (4 + wider))
    lasso = 2 * (100 * rows + 800 * min(256, rows))
    updates = n * (learned / 512 + 2 + wider**2)
    in_c = (1.0, 1.0) if on_card else (PURSUIT_IN_C, LASSO_IN_C)
    return 2 * d * n * (in_c[0] * (pursued + updates) + in_c[1] * lasso)
