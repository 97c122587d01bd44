"""What the browser asks of a kernel, and the answers: one method a question.

A question is {id, kind, …}, an answer {id, reply} with buffers, or {id, error} with one sentence. A
session keeps the SAEs that were opened last, and what was measured of their latents.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from saelib.config import ConfigError
from saelib.measure.features import FeatureIndex
from saelib.measure.features.pieces import token_pieces
from saelib.measure.lens import Lens, Subject, rarity
from saelib.show.explore import export
from saelib.show.explore.kept import Kept, kept_of
from saelib.show.explore.notes import NOTES, Notes, note_from, profile_folder
from saelib.show.explore.records import about, latent_view, plain, table_view
from saelib.show.explore.relations import twin_rows

log = logging.getLogger(__name__)

KEPT = 3  # lenses in memory
LISTED = 20  # latents of a token
MOST_TOKENS = 200  # of a continuation
# What a user's question can raise: a value that does not fit, a file that is not there or damaged,
# a model or store that refuses.
EXPECTED = (ValueError, OSError, RuntimeError)

Reply = tuple[Any, list[bytes]]


class Session:
    """Answers questions about SAEs, each known by its number in `subjects`."""

    def __init__(self, subjects: Sequence[Subject]) -> None:
        self.subjects = tuple(subjects)
        self._lenses: OrderedDict[int, Lens] = OrderedDict()
        self._answers: dict[str, Callable[[Mapping[str, Any]], Reply]] = {
            "open": self._open,
            "latent": self._latent,
            "text": self._text,
            "steer": self._steer,
            "twins": self._twins,
            "ablate": self._ablate,
            "note": self._note,
            "export": self._export,
        }

    def answer(self, question: Mapping[str, Any]) -> Reply:
        """The answer to a question; never raises, so that the notebook stays usable."""
        number = question.get("id")
        try:
            reply, buffers = self._answered(question)
        except KeyboardInterrupt:
            return {"id": number, "error": "interrupted"}, []
        except EXPECTED as error:
            return {"id": number, "error": _sentence(error)}, []
        except Exception as error:
            log.exception(f"the browser's question {question.get('kind')!r} failed")
            return {"id": number, "error": f"{type(error).__name__}: {_sentence(error)}"}, []
        return {"id": number, "reply": reply}, buffers

    def _answered(self, question: Mapping[str, Any]) -> Reply:
        kind = question.get("kind")
        if kind not in self._answers:
            raise ConfigError(f"kind = {kind!r}: expected one of {', '.join(self._answers)}")
        return self._answers[kind](question)

    # -- the SAEs

    def lens(self, number: int) -> Lens:
        """The lens of a subject, loaded where it is not among those opened last.

        Raises:
            ConfigError: there is no such subject.
        """
        if not 0 <= number < len(self.subjects):
            last = len(self.subjects) - 1
            raise ConfigError(f"subject {number}: there are the SAEs 0 to {last}")
        if number not in self._lenses:
            self._lenses[number] = self.subjects[number].load()
        self._lenses.move_to_end(number)
        while len(self._lenses) > KEPT:
            self._lenses.popitem(last=False)
        return self._lenses[number]

    def _opened(self, question: Mapping[str, Any]) -> tuple[int, Lens, FeatureIndex]:
        number = _whole(question, "subject")
        lens = self.lens(number)
        return number, lens, lens.index

    def _notes(self, lens: Lens) -> Notes:
        return Notes(profile_folder(lens.index.folder) / NOTES)

    def _kept(self, lens: Lens) -> Kept:
        return kept_of(lens, self._notes(lens))

    # -- looking

    def _open(self, question: Mapping[str, Any]) -> Reply:
        number, lens, index = self._opened(question)
        subject = self.subjects[number]
        described = about(index, subject.name, subject.facts)
        kept = self._kept(lens)
        described["notes"] = {str(latent): note.to_dict() for latent, note in kept.notes.items()}
        described["descriptions"] = {
            str(latent): text for latent, text in kept.descriptions["description"].items()
        }
        described["warnings"] = list(kept.warnings)
        described["relatives"] = len(lens.relatives)
        table = table_view(index, kept.columns())
        return {"about": described, "table": table.content}, table.buffers

    def _latent(self, question: Mapping[str, Any]) -> Reply:
        _, lens, index = self._opened(question)
        latent = _latent_of(question, lens)
        view = latent_view(index, latent, lens.lm.tokenizer)
        kept = self._kept(lens)
        if latent in kept.notes:
            view["note"] = kept.notes[latent].to_dict()
        if latent in kept.descriptions.index:
            line = kept.descriptions.loc[latent]
            view["description"] = {"text": line["description"], "score": plain(line["score"])}
        if len(kept.matches) + kept.n_damaged == len(lens.relatives):
            view["twins"] = twin_rows(kept.matches, latent, self._numbers(lens))
        if latent in kept.ablations.index:
            view["ablation"] = _ablation(kept.ablations.loc[latent])
        return view, []

    def _numbers(self, lens: Lens) -> dict[str, int]:
        """Of relatives that can be opened here, by name."""
        numbers = {_identity(subject): n for n, subject in enumerate(self.subjects)}
        keys = {other.name: _identity(other) for other in lens.relatives}
        return {name: numbers[key] for name, key in keys.items() if key in numbers}

    def _text(self, question: Mapping[str, Any]) -> Reply:
        _, lens, index = self._opened(question)
        seen = lens.see(_string(question, "text"))
        ordinary = [name == "ordinary" for name in seen.classes]
        codes = seen.codes.cpu().numpy()
        weights = rarity(index)
        reply = {
            "tokens": token_pieces(lens.lm.tokenizer, seen.token_ids),
            "classes": seen.classes,
            "missed": [plain(share) for share in seen.missed],
            "latents": [
                ranked(row, weights) if counts else []
                for row, counts in zip(codes, ordinary, strict=True)
            ],
        }
        if question.get("latent") is not None:
            code = codes[:, _latent_of(question, lens)].tolist()
            reply["codes"] = [
                plain(value) if counts else None
                for value, counts in zip(code, ordinary, strict=True)
            ]
        return reply, []

    def _steer(self, question: Mapping[str, Any]) -> Reply:
        _, lens, _ = self._opened(question)
        n_tokens = _whole(question, "n_tokens")
        if not 1 <= n_tokens <= MOST_TOKENS:
            raise ConfigError(f"n_tokens = {n_tokens}: expected 1 to {MOST_TOKENS}")
        steered = lens.steer(
            _latent_of(question, lens),
            _number(question, "strength"),
            _string(question, "prompt"),
            mode=_string(question, "mode"),
            n_tokens=n_tokens,
        )
        moved = steered.next_tokens.to_dict("records")
        reply = {
            "before": steered.before,
            "after": steered.after,
            "kl": plain(steered.kl),
            "next_tokens": [{key: plain(value) for key, value in row.items()} for row in moved],
        }
        return reply, []

    # -- measuring

    def _twins(self, question: Mapping[str, Any]) -> Reply:
        _, lens, _ = self._opened(question)
        latent = _latent_of(question, lens)
        return twin_rows(lens.matches(), latent, self._numbers(lens)), []

    def _ablate(self, question: Mapping[str, Any]) -> Reply:
        _, lens, _ = self._opened(question)
        latent = _latent_of(question, lens)
        lens.ablation(latent)
        return _ablation(lens.ablations().loc[latent]), []

    # -- keeping

    def _note(self, question: Mapping[str, Any]) -> Reply:
        number, lens, index = self._opened(question)
        latent = _latent_of(question, lens)
        note = note_from(question.get("text"), question.get("lists"))
        name = self.subjects[number].name
        self._notes(lens).save(index.manifest["sae"], name, latent, note)
        return None, []

    def _export(self, question: Mapping[str, Any]) -> Reply:
        number, lens, index = self._opened(question)
        latents = question.get("latents")
        if not isinstance(latents, list):
            raise ConfigError(f"latents = {latents!r}: expected a list of numbers")
        chosen = [_whole({"latent": latent}, "latent") for latent in latents]
        export.check_latents(index, chosen)
        features = index.folder
        folder = profile_folder(features) / export.EXPORT
        subject = self.subjects[number]
        match question.get("format"):
            case "csv":
                return {"path": str(export.export_csv(index, chosen, folder))}, []
            case "json":
                path = export.export_json(index, chosen, lens.lm.tokenizer, folder)
                return {"path": str(path)}, []
            case "link":
                return {"text": export.link(features, subject.name, subject.facts, chosen)}, []
        accepted = ", ".join(export.FORMATS)
        raise ConfigError(f"format = {question.get('format')!r}: expected one of {accepted}")


def _identity(subject: Subject) -> str:
    """What tells an SAE from others: two may have one name."""
    return str(subject.facts.get("run_id", subject.name))


def _ablation(line: pd.Series) -> dict[str, Any]:
    return {name: plain(line[name]) for name in ("delta_ce", "n_contexts")}


# Own text


def ranked(codes: np.ndarray, weights: np.ndarray) -> list[dict[str, Any]]:
    """A token's latents by code · weight, largest first; codes [n_latents]."""
    fired = np.flatnonzero(codes > 0)
    scores = codes[fired] * weights[fired]
    order = np.argsort(-scores, kind="stable")[:LISTED]
    return [
        {
            "latent": int(fired[n]),
            "code": plain(float(codes[fired[n]])),
            "score": plain(float(scores[n])),
        }
        for n in order
    ]


# Questions


def _sentence(error: BaseException) -> str:
    """What an error says, on one line; its class where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def _whole(question: Mapping[str, Any], name: str) -> int:
    value = question.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name} = {value!r}: expected a whole number")
    return value


def _number(question: Mapping[str, Any], name: str) -> float:
    value = question.get(name)
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    if not usable or not math.isfinite(value):
        raise ConfigError(f"{name} = {value!r}: expected a number")
    return float(value)


def _string(question: Mapping[str, Any], name: str) -> str:
    value = question.get(name)
    if not isinstance(value, str):
        raise ConfigError(f"{name} = {value!r}: expected a text")
    return value


def _latent_of(question: Mapping[str, Any], lens: Lens) -> int:
    return lens.latent_number(_whole(question, "latent"))
