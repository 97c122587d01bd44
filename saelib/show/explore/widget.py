"""The browser as a widget of a notebook: `browser.js` in the page, a session in the kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import anywidget
import traitlets

from saelib.measure.lens import Subject
from saelib.show.explore import frontend
from saelib.show.explore.records import plain
from saelib.show.explore.session import Session


class FeatureBrowser(anywidget.AnyWidget):
    """A browser over SAEs, which are loaded as they are chosen.

    subjects: name and facts of each; state: what is shown, {subject, latent, query, …}, kept up to
    date by the page. Set from Python, its subject and latent are opened.
    """

    _esm = frontend.script()
    _css = frontend.style()
    subjects = traitlets.List().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)

    def __init__(self, subjects: Sequence[Subject], state: Mapping[str, Any] | None = None) -> None:
        self.session = Session(subjects)
        super().__init__(subjects=[_listed(each) for each in subjects], state=dict(state or {}))
        self.on_msg(self._receive)

    def _receive(self, _widget: Any, question: Mapping[str, Any], _buffers: list[Any]) -> None:
        answer, buffers = self.session.answer(question)
        self.send(answer, buffers)


def _listed(subject: Subject) -> dict[str, Any]:
    facts = {name: plain(value) for name, value in subject.facts.items()}
    return {"name": subject.name, "facts": facts}
