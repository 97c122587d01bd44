"""A workspace that trains nothing: studies run on it, and it counts what they would train.

It stands where a study expects a `Workspace`: `site`, `spec`, `train`, `measuring`, `n_layers` and
`normalizer` answer, from recorded runs where measured numbers decide. So what is planned is what
the studies train, with no second list of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import pandas as pd
import torch

from saelib.activations.lm import resolve_site
from saelib.config import EvalConfig, stable_hash
from saelib.run.recorded import RecordedRuns
from saelib.sae.spec import Spec, make_spec


class Asked(NamedTuple):
    """One SAE that a study asks for, to be trained or to be measured."""

    spec: Spec
    notebook: str  # the first that asks for it
    loss: bool  # whether the next-token loss is measured too


@dataclass
class Ledger:
    """What studies have asked for so far, each SAE once."""

    trained: dict[str, Asked] = field(default_factory=dict)  # by run id
    again: list[Asked] = field(default_factory=list)  # trained before, now measured with the loss
    references: dict[int, str] = field(default_factory=dict)  # site -> notebook that needs it first

    def ask(self, run: str, asked: Asked) -> None:
        """Count an SAE that is new, or that is measured with the loss for the first time."""
        if asked.loss:
            self.references.setdefault(asked.spec.sae.site, asked.notebook)
        before = self.trained.get(run)
        if before is None:
            self.trained[run] = asked
        elif asked.loss and not before.loss:
            self.trained[run] = before._replace(loss=True)
            self.again.append(asked)

    def of_notebook(self, notebook: str) -> list[Spec]:
        """The SAEs that a notebook is the first to ask for."""
        return [asked.spec for asked in self.trained.values() if asked.notebook == notebook]


class DryWorkspace:
    """The planner's stand-in for a `Workspace`: counts, and answers from recorded runs."""

    def __init__(
        self,
        profile: str,
        n_layers: int,
        d_model: int,
        recorded: RecordedRuns,
        evaluation: EvalConfig | None = None,
    ) -> None:
        self.profile = profile
        self.n_layers = n_layers
        self.d_model = d_model
        self.recorded = recorded
        self.evaluation = evaluation or EvalConfig()
        self.ledger = Ledger()

    def measuring(self, evaluation: EvalConfig) -> DryWorkspace:
        """This workspace with other metrics asked for; both count into one ledger."""
        other = copy(self)
        other.evaluation = evaluation
        return other

    def site(self, name: int | str) -> int:
        """Resolve 2, "middle" or −2 to a site number."""
        return resolve_site(name, self.n_layers)

    def spec(self, arm: str, site: int, **settings: Any) -> Spec:
        """`make_spec` at the model's width."""
        return make_spec(arm, site, self.d_model, **settings)

    def run_id(self, spec: Spec) -> str:
        """A name per spec; not the run's own, which needs the store."""
        return stable_hash(spec.sae, spec.train)

    def normalizer(self, site: int, mode: str, tokens: str) -> tuple[torch.Tensor, float]:
        """(zeros, scale) of a site; the scale is recorded, or 1 where it is not."""
        scale = self.recorded.scale(site, mode, tokens) if "scale" in mode else 1.0
        return torch.zeros(self.d_model), 1.0 if scale is None else scale

    def train(self, specs: Sequence[Spec], notebook: str) -> pd.DataFrame:
        """Count what is new; returns one row per spec, recorded or predicted, in order."""
        rows = []
        for spec in specs:
            run = self.run_id(spec)
            self.ledger.ask(run, Asked(spec, notebook, self.evaluation.ce_tokens > 0))
            row = self.recorded.row(spec)
            rows.append(row | {"run_id": run, "notebook": notebook, "arm": spec.arm})
        return pd.DataFrame(rows)

    def pages(self, run: Spec | str) -> NoReturn:
        """Raises RuntimeError: a plan measures nothing, and what is trained may not rest on it."""
        raise RuntimeError(f"run {run}: a plan has no sums by page; decide by rows of results")
