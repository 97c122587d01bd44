"""One SAE to train: what it is, how it is trained, and the name of its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from saelib.config import ConfigError, SAEConfig, TrainConfig, refuse_unknown, stable_hash
from saelib.sae.architectures import ARCHITECTURES, architecture
from saelib.sae.base import check_training
from saelib.versions import TRAINING_VERSION

# An arm is an architecture trained with one of its objectives, and bears the objective's name.
ARMS = {
    loss: (arch, loss) for arch, sae_class in ARCHITECTURES.items() for loss in sae_class.LOSSES
}
# The arms of the experiment that the findings F1 to F4 are about.
COMPARED = ("plain", "two_term", "full")


class Spec(NamedTuple):
    """One SAE to train: what it is, and how it is trained."""

    sae: SAEConfig
    train: TrainConfig

    @property
    def arm(self) -> str:
        """A key of `ARMS`."""
        return self.train.loss

    @property
    def options(self) -> str:
        """The architecture's own options in words: "aux_k=256 k=32"; empty where it has none."""
        return options_text(self.sae.options)

    @property
    def nominal_l0(self) -> float | None:
        """The L0 that an option asks for; None with a penalty, where training decides it.

        Rows outside training may have a few percent more or fewer: see `fixed_l0`.
        """
        knob = architecture(self.sae).KNOB
        return None if knob == "lam" else float(self.sae.options[knob])

    @property
    def fixed_l0(self) -> float | None:
        """The nominal L0 where it is that of any rows, as a TopK SAE's; else None.

        Rows on which fewer codes are above 0 have less.
        """
        return self.nominal_l0 if architecture(self.sae).L0_IS_EXACT else None


def options_text(options: Mapping[str, Any]) -> str:
    """Options as results.csv has them: "aux_k=256 k=32"; a list without spaces."""

    def text(value: Any) -> str:
        return ",".join(map(text, value)) if isinstance(value, list | tuple) else f"{value}"

    return " ".join(f"{name}={text(value)}" for name, value in sorted(options.items()))


def make_spec(arm: str, site: int, d_in: int, **settings: Any) -> Spec:
    """A spec from mixed fields of `SAEConfig`, `TrainConfig` and the architecture's options.

    Raises:
        ConfigError: an unknown arm or field, a value out of range or that cannot be trained, `lam`
            where the architecture has no L1 penalty, or `arch` or `loss`, which the arm says.
    """
    if arm not in ARMS:
        raise ConfigError(f"arm = {arm!r}: expected one of {', '.join(ARMS)}")
    arch, loss = ARMS[arm]
    for name in ("arch", "loss"):
        if name in settings:
            raise ConfigError(f"{name} = {settings[name]!r}: arm {arm!r} says it; choose the arm")
    sae_class = ARCHITECTURES[arch]
    if sae_class.KNOB != "lam":
        if "lam" in settings:
            raise ConfigError(f"lam: arm {arm!r} has no L1 penalty; set {sae_class.KNOB!r}")
        settings = {**settings, "lam": 0.0}
    values = {"arch": arch, "loss": loss, "site": site, "d_in": d_in, **settings}
    names = {
        group: {field.name for field in fields(group)}
        for group in (SAEConfig, TrainConfig, sae_class.Options)
    }
    refuse_unknown(values, sorted(set().union(*names.values())), "unknown field")
    chosen = {
        group: {name: value for name, value in values.items() if name in names[group]}
        for group in names
    }
    options = {**chosen[SAEConfig].pop("options", {}), **chosen[sae_class.Options]}
    sae = SAEConfig.from_dict({**chosen[SAEConfig], "options": options})
    train = TrainConfig.from_dict(chosen[TrainConfig])
    check_training(sae_class, sae, train)
    return Spec(sae_class.checked(sae), train)


def run_id(sae: SAEConfig, train: TrainConfig, store_id: str) -> str:
    """Name of a trained SAE: the hash of what it is, how it was trained, on which activations.

    Fields and options at their default are left out, so that one added later changes no name.

    Raises:
        ConfigError: the architecture is unknown, does not take that loss, or cannot be trained so.
    """
    sae_class = architecture(sae)
    if not sae_class.LOSSES:
        raise ConfigError(f"arch {sae.arch!r} cannot be trained; it can be opened and measured")
    if train.loss not in sae_class.LOSSES:
        raise ConfigError(
            f"loss {train.loss!r} does not fit arch {sae.arch!r}, which takes "
            f"{' or '.join(map(repr, sae_class.LOSSES))}"
        )
    check_training(sae_class, sae, train)
    values = sae.to_dict(omit_defaults=True)
    options = sae_class.Options.from_dict(sae.options).to_dict(omit_defaults=True)
    if options:
        values["options"] = options
    else:
        values.pop("options", None)
    return stable_hash(values, train.to_dict(omit_defaults=True), store_id, TRAINING_VERSION)
