"""One SAE to train: what it is, and how."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, NamedTuple

from saelib.config import ConfigError, SAEConfig, TrainConfig, refuse_unknown

ARMS = {"plain": ("sae", "plain"), "two_term": ("gated", "two_term"), "full": ("gated", "full")}


class Spec(NamedTuple):
    """One SAE to train: what it is, and how."""

    sae: SAEConfig
    train: TrainConfig

    @property
    def arm(self) -> str:
        """ "plain", "two_term" or "full"."""
        return self.train.loss


def make_spec(arm: str, site: int, d_in: int, **settings: Any) -> Spec:
    """A spec from mixed fields of `SAEConfig` and `TrainConfig`; `ConfigError` names an unknown arm or field."""
    if arm not in ARMS:
        raise ConfigError(f"arm = {arm!r}: expected one of {', '.join(ARMS)}")
    arch, loss = ARMS[arm]
    values = {"arch": arch, "loss": loss, "site": site, "d_in": d_in, **settings}
    sae_names, train_names = ({f.name for f in fields(c)} for c in (SAEConfig, TrainConfig))
    refuse_unknown(values, sorted(sae_names | train_names), "unknown field")
    return Spec(
        SAEConfig.from_dict({k: v for k, v in values.items() if k in sae_names}),
        TrainConfig.from_dict({k: v for k, v in values.items() if k in train_names}),
    )
