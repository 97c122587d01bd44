"""Descriptions of latents in words, by a language model that the user names, and their scores.

A model is shown contexts in which a latent fires and says what they share. The score is detection
(Paulo et al. 2024, Automatically interpreting millions of features in large language models): the
model is shown other contexts, as many in which the latent fires as in which it does not, and says
from the description alone which ones fit; the score is the mean of the two shares that it has
right (balanced accuracy: 0.5 is chance, 1 is perfect).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from saelib.config import stable_hash
from saelib.env import headless
from saelib.files import locked, parsed_json, write_text
from saelib.measure.features.chat import AnswerError, Chat, ChatError
from saelib.measure.features.contexts import ContextWindow
from saelib.measure.features.identity import SHORT
from saelib.measure.features.index import FeatureIndex
from saelib.measure.features.pieces import is_writable, marked, token_pieces
from saelib.measure.indexed import IndexedSAE

log = logging.getLogger(__name__)

ANSWER = 200  # tokens that an answer may have
LONGEST = 400  # characters of a description
SEALED = "hash"  # of a line's other fields
FIELDS = ("latent", "description", "score", "n_scored", "model", "sae", "corpus_id")
EXPLAIN = """\
Below are excerpts of text. In each, the tokens on which one feature of a language model is active
stand between « and ». Say in at most 15 words what these tokens, with their surroundings, share.
Answer with JSON alone: {{"description": "..."}}

{excerpts}"""
DETECT = """\
A feature of a language model is described as: {description}
Below are {n} numbered excerpts of text. Say of each whether the feature is active somewhere in it:
1 if so, 0 if not. Answer with JSON alone, {n} numbers in order: {{"fits": [0, 1, ...]}}

{excerpts}"""


class Examples(NamedTuple):
    """Contexts of one latent; none is both explained and scored."""

    explained: list[ContextWindow]
    firing: list[ContextWindow]  # to be told from `silent`, as many
    silent: list[ContextWindow]


def describe(
    lens: IndexedSAE,
    latents: Sequence[int],
    *,
    base: str,
    model: str,
    key_variable: str = "",
    timeout: float = 60.0,
) -> pd.DataFrame:
    """Descriptions and scores of latents: latent, description, score, n_scored.

    Excerpts of test pages are sent to `base`, an OpenAI-compatible address (".../v1"), two requests
    a latent; what goes there is said beforehand. Latents that this model described before are taken
    from the disk. Left out with a warning: latents that fire in too few contexts, and those whose
    answers cannot be used.

    Raises:
        ConfigError: address, model, key or latents do not do, or there are no test pages.
        ChatError: the host does not answer, or no answer could be used; finished latents are kept.
        ValueError: the file of descriptions is damaged; names it.
    """
    chat = Chat(base, model, key_variable, timeout)
    asked = list(dict.fromkeys(lens.latent_number(latent) for latent in latents))
    there = set(kept_descriptions(lens, model)["latent"])
    examples = _examples(lens, [latent for latent in asked if latent not in there])
    if examples:
        print(_announcement(lens, chat, examples))
        _ask_all(lens, chat, examples)
    table = kept_descriptions(lens, model)
    return table[table["latent"].isin(asked)].reset_index(drop=True)


def _examples(lens: IndexedSAE, latents: Sequence[int]) -> dict[int, Examples]:
    found = {latent: examples_of(lens.index, latent) for latent in latents}
    few = [latent for latent, examples in found.items() if not examples.firing]
    if few:
        log.warning(f"left out, as they fire in too few contexts to describe and score: {few}")
    return {latent: examples for latent, examples in found.items() if examples.firing}


def examples_of(index: FeatureIndex, latent: int) -> Examples:
    """Every other strong or middling context of an index for explaining, the others for scoring.

    Weak ones are for scoring alone. No `firing` where there are too few of either.
    """
    top, middle, low, off = (
        index.contexts(latent, kind) for kind in ("top", "middle", "low", "off")
    )
    explained = [*top[::2], *middle[::2]]
    firing = [*top[1::2], *middle[1::2], *low]
    # spread over strong and weak ones, as many as are silent
    n = min(len(firing), len(off))
    chosen = np.linspace(0, len(firing) - 1, n).round().astype(int) if n else []
    return Examples(explained, [firing[i] for i in chosen], off[:n])


def _announcement(lens: IndexedSAE, chat: Chat, examples: dict[int, Examples]) -> str:
    """How many requests go where, with how many tokens of the lens' own tokenizer."""
    tokenizer = lens.lm.tokenizer
    questions = []
    for latent, those in examples.items():
        questions.append(_explaining(those, tokenizer))
        questions.append(_detecting("", _scored(those, latent), tokenizer))
    n_tokens = sum(len(tokenizer(question)["input_ids"]) for question in questions)
    return (
        f"descriptions: {len(questions):,} requests with about {n_tokens:,} tokens go to "
        f"{chat.host}, model {chat.model}"
    )


def _ask_all(lens: IndexedSAE, chat: Chat, examples: dict[int, Examples]) -> None:
    failures = []
    for latent, those in tqdm(examples.items(), desc="describe", disable=headless()):
        try:
            explanation = chat.reply(_explaining(those, lens.lm.tokenizer), ANSWER)
            description = checked_description(explanation)
            score, n = _detection(chat, description, _scored(those, latent), lens.lm.tokenizer)
        except AnswerError as error:
            failures.append(f"{chat.host}: latent {latent}: {error}")
            log.warning(failures[-1])
            continue
        values = (latent, description, score, n, chat.model, *_bound(lens))
        _keep(_path(lens), dict(zip(FIELDS, values, strict=True)))
    if len(failures) == len(examples):
        raise ChatError(failures[-1])


def _detection(
    chat: Chat, description: str, scored: list[tuple[ContextWindow, bool]], tokenizer: Any
) -> tuple[float, int]:
    """(balanced accuracy, excerpts) of a description."""
    answer = chat.reply(_detecting(description, scored, tokenizer), ANSWER)
    fits = checked_fits(answer, len(scored))
    return balanced_accuracy(fits, [fires for _, fires in scored]), len(scored)


def checked_description(answer: Any) -> str:
    """The description of an answer.

    Raises:
        AnswerError: it is not {"description": "..."} with some words that can be written.
    """
    text = answer.get("description") if isinstance(answer, dict) else None
    usable = isinstance(text, str) and 0 < len(text.strip()) <= LONGEST and is_writable(text)
    if not usable:
        raise AnswerError(f'expected {{"description": "..."}}, answered {str(answer)[:80]!r}')
    return " ".join(text.split())


def checked_fits(answer: Any, n: int) -> list[int]:
    """The n numbers 0 or 1 of an answer.

    Raises:
        AnswerError: it is anything else.
    """
    fits = answer.get("fits") if isinstance(answer, dict) else None
    usable = isinstance(fits, list) and all(type(fit) is int and fit in (0, 1) for fit in fits)
    if not usable or len(fits) != n:
        raise AnswerError(f'expected {{"fits": {n} of 0 or 1}}, answered {str(answer)[:80]!r}')
    return fits


def balanced_accuracy(fits: Sequence[int], fires: Sequence[bool]) -> float:
    """Mean of the shares that are right among excerpts that fire, and among the others."""
    right = np.array(fits) == np.array(fires)
    mask = np.array(fires)
    return float((right[mask].mean() + right[~mask].mean()) / 2)


def _scored(examples: Examples, latent: int) -> list[tuple[ContextWindow, bool]]:
    """Excerpts in an order that depends on the latent alone, and whether it fires in each."""
    pairs = [(window, True) for window in examples.firing]
    pairs += [(window, False) for window in examples.silent]
    order = np.random.default_rng(latent).permutation(len(pairs))
    return [pairs[place] for place in order]


def _explaining(examples: Examples, tokenizer: Any) -> str:
    lines = [_fired_text(window, tokenizer) for window in examples.explained]
    return EXPLAIN.format(excerpts=_numbered(lines))


def _detecting(description: str, scored: list[tuple[ContextWindow, bool]], tokenizer: Any) -> str:
    lines = ["".join(token_pieces(tokenizer, window.token_ids.tolist())) for window, _ in scored]
    return DETECT.format(description=description, n=len(lines), excerpts=_numbered(lines))


def _numbered(lines: Sequence[str]) -> str:
    return "\n".join(f"{n}. {' '.join(line.split())}" for n, line in enumerate(lines, 1))


def _fired_text(window: ContextWindow, tokenizer: Any) -> str:
    """An excerpt whose tokens with the latent above 0 stand between « and »."""
    pieces = token_pieces(tokenizer, window.token_ids.tolist())
    return "".join(
        marked(piece) if value > 0 else piece
        for piece, value in zip(pieces, window.activations.tolist(), strict=True)
    )


def kept_descriptions(lens: IndexedSAE, model: str | None = None) -> pd.DataFrame:
    """What `describe` kept of an SAE, by a model or the latest of any; asks nothing.

    Columns latent, description, score, n_scored, model; by latent.

    Raises:
        ConfigError: there are no test pages.
        ValueError: the file is damaged; names file and line.
    """
    lines = [
        line for line in read_lines(_path(lens)) if (line["sae"], line["corpus_id"]) == _bound(lens)
    ]
    chosen = [line for line in lines if model is None or line["model"] == model]
    latest = {line["latent"]: line for line in chosen}
    table = pd.DataFrame(list(latest.values()), columns=list(FIELDS[:5]))
    return table.sort_values("latent", ignore_index=True)


def _path(lens: IndexedSAE) -> Path:
    return lens.beside("descriptions") / f"{lens.checksum[:SHORT]}.jsonl"


def _bound(lens: IndexedSAE) -> tuple[str, str]:
    """What a description is of: the SAE's checksum and the text."""
    return lens.checksum, lens.index.manifest["corpus_id"]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All lines of a file of descriptions; none without a file.

    A line carries a hash of the others of its fields; those of earlier versions have none.

    Raises:
        ValueError: a line is damaged; names file and line.
    """
    if not path.exists():
        return []
    lines = []
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: damaged, not UTF-8 ({error}); delete it") from error
    for number, text in enumerate(texts, 1):
        try:
            content = parsed_json(text)
            line = {name: content[name] for name in FIELDS}
            if content.get(SEALED, stable_hash(line)) != stable_hash(line):
                raise ValueError("not what its hash says")
            if not is_writable(line["description"]):
                raise ValueError("a description that cannot be written")
            lines.append(line)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}: line {number} is damaged; delete it and the latent is described anew"
            ) from error
    return lines


def _keep(path: Path, line: dict[str, Any]) -> None:
    with locked(path.with_suffix(".lock")):
        lines = [*read_lines(path), line]
        sealed = (one | {SEALED: stable_hash(one)} for one in lines)
        write_text(path, "".join(json.dumps(one, sort_keys=True) + "\n" for one in sealed))
