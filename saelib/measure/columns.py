"""The columns of `results.csv`, one line each: name, type, label, and which way is better.

The table's order and types, the axis labels of figures and what the browser of features says of an
SAE derive from this list. To add a metric:

1.  write a function of `Reconstruction` (see `reconstruction.py`) that gives a float, nan where it
    is undefined;
2.  add its line below `MEASURED`, with `compute=` that function (a column of the loss is computed
    in `evaluate.loss_columns` and has no `compute`);
3.  test it against arithmetic by hand.

Runs that were measured before have the new column empty. Raise `MEASURING_VERSION` to have them
measured again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from saelib.measure.reconstruction import Reconstruction

Direction = Literal["lower", "higher", ""]


@dataclass(frozen=True)
class Column:
    """One column of the table."""

    name: str
    dtype: Literal["str", "int64", "float64"]
    label: str = ""  # on an axis, with its unit; the name where it is empty
    short: str = ""  # in a list; the label where it is empty
    direction: Direction = ""  # which way is better, where one is
    compute: Callable[[Reconstruction], float] | None = None  # over ordinary test rows

    @property
    def axis(self) -> str:
        """What an axis says."""
        return self.label or self.name

    @property
    def title(self) -> str:
        """What a list says."""
        return self.short or self.axis


# What a run is. Each of these stands in every table, but for those of `ADDED`.
DESCRIPTION = (
    Column("run_id", "str"),
    Column("notebook", "str"),
    Column("model_id", "str"),
    Column("corpus_id", "str"),
    Column("code_version", "str"),
    Column("arch", "str"),
    Column("loss", "str"),
    Column("options", "str"),
    Column("site", "int64", "site"),
    Column("layer_name", "str"),
    Column("normalize", "str"),
    Column("tokens_mask", "str"),
    Column("lambda", "float64", "λ"),
    Column("l1_mode", "str"),
    Column("schedule", "str", "schedule"),
    Column("lr", "float64", "learning rate"),
    Column("batch_size", "int64"),
    Column("warmup", "float64"),
    Column("resample", "str"),
    Column("seed", "int64", "seed"),
    Column("n_latents", "int64"),
    Column("b_dec_init", "str"),
    Column("ctx_len", "int64"),
    Column("tokens_trained", "int64", "training tokens"),
    Column("n_test_pages", "int64"),
    Column("n_test_tokens", "int64"),
)
# Columns of `DESCRIPTION` that older tables lack, and what stands there instead.
ADDED = {"options": ""}
# What is measured. A table written before a column was added is read with that column empty.
MEASURED = (
    Column("mse", "float64", direction="lower", compute=Reconstruction.mse),
    Column("mse_raw", "float64", direction="lower", compute=Reconstruction.mse_raw),
    Column(
        name="fvu",
        dtype="float64",
        label="FVU (fraction of variance unexplained)",
        short="FVU",
        direction="lower",
        compute=Reconstruction.fvu,
    ),
    Column("fvu_all", "float64", "FVU, all tokens", direction="lower"),
    Column("fvu_sink", "float64", "FVU, sinks", direction="lower"),
    Column("l0", "float64", "L0 (active latents a token)", compute=Reconstruction.l0),
    Column("l0_all", "float64", "L0, all tokens"),
    Column("l1", "float64", compute=Reconstruction.l1),
    Column(
        name="dead_fraction",
        dtype="float64",
        label="dead latents (%)",
        short="dead latents",
        direction="lower",
        compute=Reconstruction.dead_fraction,
    ),
    Column("gate_dead", "float64", direction="lower", compute=Reconstruction.gate_dead),
    Column(
        name="shrinkage",
        dtype="float64",
        label="shrinkage γ (1 = none)",
        short="shrinkage γ",
        compute=Reconstruction.shrinkage,
    ),
    Column("shrinkage_raw", "float64", compute=Reconstruction.shrinkage_raw),
    Column("ce_id", "float64"),
    Column("ce_sae", "float64", direction="lower"),
    Column("ce_zero", "float64"),
    Column("ce_mean", "float64"),
    Column("delta_ce", "float64", "ΔCE (nats)", direction="lower"),
    Column("kl", "float64", "KL (nats)", direction="lower"),
    Column("loss_recovered", "float64", "loss recovered", direction="higher"),
    Column("loss_recovered_mean", "float64", direction="higher"),
    Column("note", "str"),
    # over ordinary validation rows: choices are made on these
    Column("fvu_val", "float64", direction="lower"),
    Column("l0_val", "float64"),
)
LOSS_COLUMNS = (
    "ce_id",
    "ce_sae",
    "ce_zero",
    "ce_mean",
    "delta_ce",
    "kl",
    "loss_recovered",
    "loss_recovered_mean",
)
# What the browser says of a run, in its order.
FACTS = (
    "lambda",
    "l0",
    "fvu",
    "fvu_all",
    "loss_recovered",
    "delta_ce",
    "dead_fraction",
    "shrinkage",
    "tokens_trained",
    "schedule",
    "seed",
)

TABLE = DESCRIPTION + MEASURED
COLUMNS = [column.name for column in TABLE]
TEXT = [column.name for column in TABLE if column.dtype == "str"]
NUMBERS = {column.name: column.dtype for column in TABLE if column.dtype != "str"}
LABELS = {column.name: column.axis for column in TABLE}
TITLES = {column.name: column.title for column in TABLE}


def reconstruction_metrics(sums: Reconstruction) -> dict[str, float]:
    """Each column that is computed of sums over rows; nan where undefined.

    Raises `ValueError` where no rows were seen.
    """
    if not sums.x.n:
        raise ValueError("no rows were seen: nothing to compute")
    return {column.name: column.compute(sums) for column in MEASURED if column.compute}


def read_table(path: Path) -> pd.DataFrame:
    """A results table with all `COLUMNS` in their order.

    Where it lacks a measured one, that is empty; where it lacks one of `ADDED`, that has the value
    told there.

    Raises `ValueError` where it is no table, lacks a column of `DESCRIPTION`, or holds a word where
    a number belongs.
    """
    table = pd.read_csv(path, dtype=dict.fromkeys(TEXT, str) | NUMBERS)
    table = table.assign(**{name: ADDED[name] for name in ADDED if name not in table})
    table = table.fillna(ADDED)
    missing = [column.name for column in DESCRIPTION if column.name not in table]
    if missing:
        raise ValueError(f"columns missing: {', '.join(missing)}")
    return table.reindex(columns=COLUMNS).astype(NUMBERS)
