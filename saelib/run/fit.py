"""An SAE on a tensor of one's own: `fit(x, l0=32, arch="gated")`.

Rows of huge norm are sinks (see `SINK_FACTOR`): they are left out, as in the workbook's notebooks,
since a few of them would hold most of the variance. λ, or k, is searched until the SAE has the L0
that was asked for on rows that it was not trained on; only a TopK SAE, which has exactly k, needs
no search.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor
from tqdm.auto import tqdm

from saelib.activations.moments import tensor_moments
from saelib.activations.rows import TensorRows, rows_of
from saelib.config import SINK_FACTOR, ConfigError
from saelib.env import headless
from saelib.hardware import choose_device
from saelib.measure.latents import finite_number, whole_number
from saelib.measure.reconstruction import CodeSums, Reconstruction, RowSums
from saelib.sae import Autoencoder, build_sae
from saelib.sae.architectures import ARCHITECTURES
from saelib.sae.group import Run, train_together
from saelib.sae.history import History, TrainingDiverged
from saelib.sae.spec import ARMS, Spec, make_spec
from saelib.study.matched import (
    interpolate_matched_l0,
    is_near,
    propose_k,
    propose_lambda,
    three_digits,
)

log = logging.getLogger(__name__)

HELD_OUT = 0.1  # share of the rows on which L0 and FVU are measured
LEAST_ROWS = 256
LARGEST_SEED = 2**63 - 1  # that a generator of torch takes
MEASURED_ROWS = 2048  # encoded at once
STARTS = (0.7, 1.4, 2.8)  # λ per root of d_in / 576, with which the search begins
FURTHER = 5  # λ, or k, tried at most beyond the first, one after the other
# Trained as profile `default` does; any field of the configurations may be set otherwise.
RECIPE = {
    "tokens": 204_800,
    "batch_size": 512,
    "lr": 1e-2,
    "schedule": "linear",
    "lam_warmup": 0.1,
    "grad_clip": 1.0,
}


@dataclass(frozen=True)
class Fitted:
    """A trained SAE and how it does on rows that it was not trained on.

    l0, fvu: over held-out rows without sinks. lam: λ, 0 where there is no penalty.
    n_sinks: rows left out.
    """

    sae: Autoencoder
    l0: float
    fvu: float
    lam: float
    history: pd.DataFrame
    n_sinks: int

    def save(self, folder: Path | str) -> None:
        """Write the SAE's folder, which `saelib.sae.load_sae` reads."""
        metrics = {"l0": self.l0, "fvu": self.fvu, "lambda": self.lam, "n_sinks": self.n_sinks}
        self.sae.save(Path(folder), metrics)


def fit(
    x: Tensor | np.ndarray,
    l0: float | int = 32,
    arch: str = "gated",
    *,
    seed: int = 0,
    sink_factor: float | int = SINK_FACTOR,
    device: str = "cpu",
    **settings: Any,
) -> Fitted:
    """Train an SAE of a given L0 on rows x [n, d_in], in the model's units.

    arch: an architecture ("sae", "gated", "topk", "batchtopk", "matryoshka", "jumprelu",
        "p_anneal") or one of its objectives ("plain", "two_term").
    settings: fields of the configurations, such as `n_latents` (default 4 d_in), `tokens`, `site`.
    sink_factor: rows of more than so many median norms (1 or more) are left out; 0 keeps all.

    Raises:
        ConfigError: x, l0 or a setting cannot be; names it, its value and what is accepted.
        ValueError: there is no such device.
        TrainingDiverged: no SAE ended with finite weights.
    """
    if not 0 <= whole_number(seed, "seed") <= LARGEST_SEED:
        raise ConfigError(f"seed = {seed!r}: expected 0 to {LARGEST_SEED}")
    rows = _checked_rows(x).to(choose_device(device))
    is_sink = sinks(rows, _checked_factor(sink_factor))
    n_sinks = int(is_sink.sum())
    if n_sinks:
        log.warning(
            f"{n_sinks:,} of {len(rows):,} rows are sinks (over {sink_factor:g} median norms) "
            "and left out; sink_factor=0 keeps them"
        )
    trainer = TensorTrainer(rows, np.flatnonzero(~is_sink.cpu().numpy()), seed)
    make = _spec_maker(_arm(arch), rows.shape[1], seed, settings)
    best = _nearest(trainer, make, _checked_l0(l0, make))
    if not is_near(best["l0_val"], l0):
        log.warning(f"l0 = {l0:g} was not reached: the nearest SAE has {best['l0_val']:.3g}")
    trained = trainer.trained[best["run_id"]]
    table = pd.DataFrame(trained.history.table)
    return Fitted(trained.sae, best["l0_val"], best["fvu"], best["lambda"], table, n_sinks)


def sinks(x: Float32[Tensor, "n d_in"], factor: float | int) -> Bool[Tensor, " n"]:
    """Which rows have over `factor` times the median norm; none with factor 0."""
    norms = x.norm(dim=1)
    return norms > factor * norms.median() if factor else torch.zeros_like(norms, dtype=torch.bool)


def _checked_factor(factor: Any) -> float:
    """Below 1 it would leave out more than half of the rows."""
    number = finite_number(factor, "sink_factor")
    if number != 0 and number < 1:
        raise ConfigError(f"sink_factor = {factor!r}: expected 0 (keeps all rows) or at least 1")
    return number


def _as_tensor(x: Any) -> Tensor:
    if np.ma.is_masked(x):
        raise ConfigError("x: an array with masked values: expected one without, such as its rows")
    try:
        rows = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"x: {type(x).__name__}: expected floating-point rows [n, d_in] ({error})"
        ) from error
    if rows.layout != torch.strided or rows.is_meta:
        raise ConfigError(f"x: {rows.layout} on {rows.device}: expected a dense tensor with values")
    return rows


def _checked_rows(x: Any) -> Float32[Tensor, "n d_in"]:
    rows = _as_tensor(x)
    if rows.ndim != 2 or rows.shape[1] < 1 or not rows.is_floating_point():
        raise ConfigError(
            f"x: shape {tuple(rows.shape)}, {rows.dtype}: expected floating-point rows [n, d_in]"
        )
    if len(rows) < LEAST_ROWS:
        raise ConfigError(f"x: {len(rows)} rows: expected at least {LEAST_ROWS}")
    rows = rows.detach().to(torch.float32)
    if not rows.isfinite().all():
        broken = int((~rows.isfinite().all(dim=1)).sum())
        raise ConfigError(f"x: {broken} rows hold values that are not finite in float32")
    if (rows == rows[0]).all():
        raise ConfigError("x: all rows are equal: expected rows that differ")
    return rows


def _arm(arch: str) -> str:
    """The arm of a name: an architecture's is its last objective, the one of its paper."""
    trainable = {
        name: sae_class.LOSSES[-1] for name, sae_class in ARCHITECTURES.items() if sae_class.LOSSES
    }
    if arch in trainable:
        return trainable[arch]
    if arch not in ARMS:
        accepted = ", ".join(map(repr, dict.fromkeys([*trainable, *ARMS])))
        raise ConfigError(f"arch = {arch!r}: expected one of {accepted}")
    return arch


def _spec_maker(arm: str, d_in: int, seed: int, settings: dict[str, Any]) -> Any:
    """A function of the knob's value: λ, or the option that is L0."""
    knob = ARCHITECTURES[ARMS[arm][0]].KNOB
    if knob in settings:
        raise ConfigError(f"{knob} = {settings[knob]!r}: l0 decides it; set l0")
    if "d_in" in settings:
        raise ConfigError(f"d_in = {settings['d_in']!r}: x decides it")
    fields = {"site": 0, "n_latents": 4 * d_in, **RECIPE, "seed": seed, **settings}

    def make(value: float | int) -> Spec:
        return make_spec(arm, d_in=d_in, **{knob: value}, **fields)

    return make


def _checked_l0(l0: float | int, make: Any) -> float | int:
    n_latents = make(1).sae.n_latents
    if not 0 < finite_number(l0, "l0") <= n_latents:
        raise ConfigError(f"l0 = {l0!r}: expected above 0, at most n_latents = {n_latents}")
    if make(1).fixed_l0 is not None and l0 != int(l0):
        raise ConfigError(f"l0 = {l0!r}: expected a whole number, as arch has exactly so many")
    return l0


def _nearest(trainer: TensorTrainer, make: Any, l0: float | int) -> dict[str, Any]:
    """The row of the SAE whose L0 is nearest to the target, in ratio."""
    if make(1).fixed_l0 is not None:
        rows = trainer.train([make(int(l0))])
    elif make(1).nominal_l0 is not None:
        rows = _searched_k(trainer, make, l0)
    else:
        rows = _searched(trainer, make, l0)
    distance = (np.log(rows["l0_val"].clip(lower=1e-9)) - math.log(l0)).abs()
    return rows.loc[distance.idxmin()].to_dict()


def _searched(trainer: TensorTrainer, make: Any, l0: float | int) -> pd.DataFrame:
    """SAEs of several λ about the target; the last at the λ between its neighbours."""
    root = math.sqrt(trainer.d_in / 576)
    rows = trainer.train([make(three_digits(root * lam)) for lam in STARTS])
    for _ in range(FURTHER):
        further = propose_lambda(zip(rows["lambda"], rows["l0_val"], strict=True), l0)
        if further is None:
            break
        rows = pd.concat([rows, trainer.train([make(three_digits(further))])], ignore_index=True)
    lam = interpolate_matched_l0(rows["l0_val"], rows["lambda"], l0)
    if lam is None:
        return rows
    last = trainer.train([make(three_digits(lam))])
    return pd.concat([rows, last], ignore_index=True)


def _searched_k(trainer: TensorTrainer, make: Any, l0: float | int) -> pd.DataFrame:
    """SAEs of several k, the first the target's, until one is near the target on held-out rows."""
    k: int | None = max(1, round(l0))
    tried: list[int] = []
    rows = pd.DataFrame()
    while k is not None and len(tried) <= FURTHER:
        tried.append(k)
        rows = pd.concat([rows, trainer.train([make(k)])], ignore_index=True)
        if is_near(rows["l0_val"].iloc[-1], l0):
            break
        k = propose_k(zip(tried, rows["l0_val"], strict=True), l0, make(k).sae.n_latents)
    return rows


@dataclass(frozen=True)
class Trained:
    """An SAE and its training."""

    sae: Autoencoder
    history: History


class TensorTrainer:
    """Trains SAEs on most of the rows `index` of a tensor, and measures them on the others."""

    def __init__(
        self, x: Float32[Tensor, "n d_in"], index: Int64[np.ndarray, " rows"], seed: int
    ) -> None:
        order = np.random.default_rng(seed).permutation(index)
        n_held_out = max(1, int(HELD_OUT * len(index)))
        self.held_out = order[:n_held_out]
        self.index = order[n_held_out:]
        self.x = x
        self.d_in = x.shape[1]
        self.moments = tensor_moments(x, self.index)
        self.seed = seed
        self.trained: dict[str, Trained] = {}

    def train(self, specs: Sequence[Spec]) -> pd.DataFrame:
        """One row per spec: run_id, lambda, l0_val and fvu over the held-out rows."""
        missing = [spec for spec in specs if _name(spec) not in self.trained]
        if missing:
            self._train(missing)
        return pd.DataFrame([self._row(spec) for spec in specs])

    def _train(self, specs: Sequence[Spec]) -> None:
        cfg = specs[0].train
        stream = TensorRows(self.x, self.index, cfg.batch_size, self.seed)
        runs = [Run(self._fresh(spec), spec.train) for spec in specs]
        with tqdm(total=cfg.steps, desc=f"{len(runs)} SAEs", disable=headless()) as bar:

            def advance(number: int, row: dict[str, Any]) -> None:
                if number == 0:
                    bar.update(row["step"] - bar.n)

            histories = train_together([(runs, stream)], on_log=advance)
        for spec, run, history in zip(specs, runs, histories, strict=True):
            if isinstance(history, TrainingDiverged):
                raise history
            self.trained[_name(spec)] = Trained(run.sae.requires_grad_(False), history)

    def _fresh(self, spec: Spec) -> Autoencoder:
        sae = build_sae(spec.sae, torch.Generator().manual_seed(spec.train.seed))
        sae.set_normalizer_(*self.moments.normalizer(spec.sae.normalize, "x without sinks"))
        return sae.to(self.x.device)

    def _row(self, spec: Spec) -> dict[str, Any]:
        l0, fvu = measured(self.trained[_name(spec)].sae, self.x, self.held_out)
        return {"run_id": _name(spec), "lambda": spec.train.lam, "l0_val": l0, "fvu": fvu}


def _name(spec: Spec) -> str:
    return f"{spec.arm} {spec.train.lam:g} {spec.options}".strip()


@torch.no_grad()
def measured(
    sae: Autoencoder, x: Float32[Tensor, "n d_in"], index: Int64[np.ndarray, " rows"]
) -> tuple[float, float]:
    """(L0, FVU) of an SAE on rows `index` of x."""
    sums = Reconstruction(RowSums(sae.mean), sae.config.n_latents)
    for part in np.split(index, range(MEASURED_ROWS, len(index), MEASURED_ROWS)):
        rows = rows_of(x, part)
        codes = sae.encode_raw(rows)
        sums.x.update(rows)
        sums.update(rows, sae.decode_raw(codes), CodeSums.of(codes))
    return sums.l0(), sums.fvu()
