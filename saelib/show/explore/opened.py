"""Opening the browser: on SAEs of a profile, on lenses, live or without a kernel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from IPython.display import HTML

from saelib import env
from saelib.config import ConfigError
from saelib.measure.latents import whole_number
from saelib.measure.lens import Lens, Subject
from saelib.show.explore.static import static_html
from saelib.show.explore.widget import FeatureBrowser

Subjects = Subject | Lens | Sequence[Any]  # of either; `as_subjects` refuses anything else


def explore(
    saes: Subjects, *, state: Mapping[str, Any] | None = None, headless: bool | None = None
) -> FeatureBrowser | HTML:
    """Open the browser of features; a cell shows its last expression.

    saes: what `saelib.run.opening.subjects` lists, or lenses, or one of either. state: what to open
    first: "subject" (its number or name) and "latent". headless: static HTML in the place of the
    widget; None takes it from the environment, `SAELIB_HEADLESS`.

    Raises:
        ConfigError: there are no SAEs, or the state names one that is not there.
    """
    subjects = as_subjects(saes)
    opening = checked_state(subjects, state or {})
    if env.headless() if headless is None else headless:
        return HTML(_static(subjects, opening))
    return FeatureBrowser(subjects, opening)


def _static(subjects: Sequence[Subject], state: Mapping[str, Any]) -> str:
    subject = subjects[state.get("subject", 0)]
    lens = subject.load()
    tokenizer = lens.lm.tokenizer
    return static_html(lens.index, tokenizer, subject.name, subject.facts, state.get("latent"))


def nearest_l0(
    subjects: Sequence[Subject], l0: float | int = 32, site: int | None = None
) -> dict[str, Any]:
    """The state that opens the SAE whose L0 is nearest (in ratio), at one site if it is named.

    Raises:
        ConfigError: no SAE there says its L0.
    """
    if not l0 > 0:
        raise ConfigError(f"l0 = {l0!r}: expected above 0")
    distances = {
        number: abs(math.log(subject.facts["l0"] / l0))
        for number, subject in enumerate(subjects)
        if (subject.facts.get("l0") or 0) > 0 and site in (None, subject.facts["site"])
    }
    if not distances:
        place = "" if site is None else f" at site {site}"
        raise ConfigError(f"no SAE{place} has an L0 above 0")
    return {"subject": min(distances, key=distances.__getitem__)}


def as_subjects(saes: Subjects) -> list[Subject]:
    """SAEs to choose from; with one lens alone come the relatives that its twins are in.

    Raises:
        ConfigError: there are none, or something else is among them.
    """
    if isinstance(saes, Lens):
        return [_as_subject(saes), *saes.relatives]
    listed = list(saes) if isinstance(saes, Iterable) else [saes]
    if not listed:
        raise ConfigError("explore: no SAE is given; expected at least one subject or lens")
    return [_as_subject(each) for each in listed]


def _as_subject(sae: Any) -> Subject:
    if isinstance(sae, Subject):
        return sae
    if not isinstance(sae, Lens):
        raise ConfigError(
            f"explore: {type(sae).__name__} is given; expected subjects or lenses, as "
            "saelib.run.opening.subjects and saelib.open give them"
        )
    return Subject(sae.name, sae.facts, lambda: sae)


def checked_state(subjects: Sequence[Subject], state: Mapping[str, Any]) -> dict[str, Any]:
    """A state whose subject is a number.

    Raises:
        ConfigError: it names an SAE that is not there, or a latent that is no whole number.
    """
    subject = state.get("subject", 0)
    names = [each.name for each in subjects]
    if isinstance(subject, str):
        if names.count(subject) > 1:
            raise ConfigError(f"state: subject = {subject!r}: several are called so; give a number")
        if subject not in names:
            raise ConfigError(f"state: subject = {subject!r}: expected one of {names}")
        subject = names.index(subject)
    subject = whole_number(subject, "state: subject")
    if not 0 <= subject < len(names):
        raise ConfigError(f"state: subject = {subject}: expected 0 to {len(names) - 1}")
    opening = {**state, "subject": subject}
    if state.get("latent") is not None:
        opening["latent"] = whole_number(state["latent"], "state: latent")
        if opening["latent"] < 0:
            raise ConfigError(f"state: latent = {opening['latent']}: expected 0 or more")
    return opening
