"""Each of F0 to F5 in one line: its effect as a number, and what the experiment's finding became.

README's table and the report's first page say it in these words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from saelib.study.finding import replication

NOT_REPORTED = ("F0", "F5")  # what the experiment says nothing of
REPLICATING = {  # reported in one sentence, judged by two claims: each with its short form
    "F3": {"F3b": "rebuilt worse, compared fairly", "F3c": "does not train at all"}
}

Entry = Mapping[str, Any]
Row = Mapping[str, float | None]


class Headline(NamedTuple):
    """A finding in one number: a claim's estimates, by patterns of their names, fill the text."""

    claim: str
    text: str
    effects: tuple[str, ...]


HEADLINES = {
    "F0": Headline(
        "F0",
        "one latent's FVU: {} over all tokens, {} over ordinary ones",
        ("one latent, all tokens", "one latent, ordinary tokens"),
    ),
    "F1": Headline(
        "F1",
        "FVU at equal L0, hard restarts ÷ constant rate: {}; ÷ linear decay: {}",
        (
            r"site \d+, hard restarts over constant",
            r"site \d+, hard restarts over linear decay",
        ),
    ),
    "F2": Headline(
        "F2",
        "FVU at equal L0, two-term Gated SAE without resampling ÷ plain SAE: {}; "
        "with large steps: {}",
        (r"deficit .*, normal recipe, site \d+", r"deficit .*, large steps, site \d+"),
    ),
    "F3": Headline(
        "F3b",
        "FVU at equal L0, the deepest site ÷ a shallower one: {}",
        ("normalised: FVU at L0 = .*",),
    ),
    "F4": Headline("F4", "FVU grows as λ to the power {}", (r"site \d+, power of λ",)),
    "F5": Headline(
        "F5e",
        "FVU at equal L0, the deepest site ÷ the one before, over architectures: {}",
        ("deepest over the site before, .*",),
    ),
}


def effect(number: str, estimates: Mapping[str, Mapping[str, Row]], claim: str = "") -> str:
    """A finding's effect: one value with its interval, or its range over sites.

    estimates: of each claim, by effect. A finding without a headline states the first effect of
    `claim`; empty where nothing was estimated.
    """
    headline = HEADLINES.get(number)
    if headline is None:
        rows = estimates.get(claim, {})
        return next((f"{name}: {interval_text(row)}" for name, row in rows.items()), "")
    rows = estimates.get(headline.claim, {})
    if not rows:
        return ""
    return headline.text.format(*(_spread(_fitting(rows, name)) for name in headline.effects))


def _fitting(rows: Mapping[str, Row], pattern: str) -> list[Row]:
    return [row for name, row in rows.items() if re.fullmatch(pattern, name)]


def _spread(rows: Sequence[Row]) -> str:
    """ "1.04 to 1.13", or "1.08 [1.05, 1.11]" of one; the values that are defined."""
    if not rows:
        return "not estimated"
    defined = [row for row in rows if row["value"] is not None and math.isfinite(row["value"])]
    if not defined:
        return "not reached"
    if len(defined) == 1:
        return interval_text(defined[0])
    values = [row["value"] for row in defined]
    return f"{min(values):.3g} to {max(values):.3g}"


def interval_text(row: Row) -> str:
    """ "1.33 [1.29, 1.38]", or words where a value is undefined."""
    if row["value"] is None:
        return "undefined"
    if row["lo"] is None or row["hi"] is None:
        return f"{row['value']:.3g} (no interval)"
    return f"{row['value']:.3g} [{row['lo']:.3g}, {row['hi']:.3g}]"


def outcome(number: str, verdicts: Mapping[str, Any], claim: str) -> str:
    """What became of a reported finding: one word, or one for each claim that judges it.

    verdicts: by claim; `claim` stands for a finding that no two claims judge.
    """
    forms = REPLICATING.get(number, {})
    answers = {name: replication(verdicts[name]) for name in forms if name in verdicts}
    if not answers:
        answers = {claim: replication(verdicts[claim])}
    if len(set(answers.values())) == 1:
        return next(iter(answers.values()))
    return "; ".join(f"“{forms[name]}” ({name}) {word}" for name, word in answers.items())
