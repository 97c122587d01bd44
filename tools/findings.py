"""What a recorded profile found, in Markdown: `docs/findings.md`, and README's table of F0 to F4.

Both are computed from `data/recorded/<profile>/` alone; `tools/record.py` writes them.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import published

from saelib.env import root
from saelib.run.report import FINDINGS, facts, interval_text, lead_findings
from saelib.study.finding import figure_file, load, recorded_estimates, replication

MAX_ROWS = 12  # of a finding's table of estimates
NOT_REPORTED = "F0"
REPLICATING = {  # reported in one sentence, judged by two claims: each with its short form
    "F3": {"F3b": "rebuilt worse, compared fairly", "F3c": "does not train at all"}
}
WORDS = """Words used below:

- *Site* ℓ is the input of block ℓ. *Ordinary* tokens are neither first in their context nor of
  huge norm (*sinks*).
- *FVU* is the share of the variance that is not rebuilt. *L0* is the mean number of latents
  that fire per token. *Matched L0* means that SAEs are compared at one L0; *unreachable* or
  *undefined*: no trained λ lies on each side of it.
- *A over B*, or a ratio, is A's FVU divided by B's: above 1, A is rebuilt worse.
- *Two-term* and *full* are the losses of the Gated SAE without and with its auxiliary term.
- *Normal recipe* is the workbook's; *large steps* is the same with steps so large that latents may
  die (never fire again). Older sentences call them *normal* and *dying*.
- *Off over on*, or *not resampled over resampled*, is the FVU without resampling over that with
  it. *Deficit* is the FVU of the two-term Gated SAE without resampling over that of the plain SAE.
- *Original* is the experiment's recipe: raw activations, all tokens, one λ. *Normalised* is
  ours: ordinary tokens, each site centred and scaled.
- *Items* are the decoder's rows; *selection* is the encoder's choice of them; *pursuit* chooses
  them greedily instead."""

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
        (r"site \d+, constant", r"site \d+, linear decay"),
    ),
    "F2": Headline(
        "F2",
        "FVU at equal L0, two-term Gated SAE without resampling ÷ plain SAE: {}",
        (r"deficit .*, normal recipe, site \d+",),
    ),
    "F3": Headline(
        "F3b",
        "FVU at equal L0, the deepest site ÷ a shallower one: {}",
        ("normalised: FVU at L0 = .*",),
    ),
    "F4": Headline("F4", "FVU grows as λ to the power {}", (r"site \d+, power of λ",)),
}


def entries(profile: str) -> list[dict[str, Any]]:
    """The findings of a recorded profile, each with its estimates, older records' included."""
    recorded = recorded_estimates(profile)
    loaded = load(f"recorded/{profile}")
    for entry in loaded:
        if not entry["estimates"]:
            rows = recorded.get(entry["name"], {})
            entry["estimates"] = {name: rows[name] for name in sorted(rows, key=_by_number)}
    return loaded


def _by_number(name: str) -> list[str]:
    """A key that sorts "site 2" before "site 15"."""
    return [piece.zfill(9) if piece.isdigit() else piece for piece in re.split(r"(\d+)", name)]


# -- docs/findings.md -----------------------------------------------------------------------------


def page(profile: str) -> str:
    """`docs/findings.md`: the profile, its size, and a section per finding."""
    found = entries(profile)
    parts = ["# Findings", _size(profile), *filter(None, [_age(profile)]), WORDS]
    for lead in lead_findings(found):
        number = lead["number"]
        parts += [f"## {number}", f"*{FINDINGS.get(number, '')}*"]
        parts += [_section(profile, claim) for claim in lead["claims"]]
    return "\n\n".join(parts) + "\n"


def _size(profile: str) -> str:
    """The recorded run and its size, and how to read what follows."""
    size = "; ".join(f"{name}: {value}" for name, value in facts(f"recorded/{profile}"))
    return (
        f"The recorded run of profile `{profile}` ({size}).\n"
        "Numbers in brackets are 95 % intervals. Written by `tools/record.py` from "
        f"`data/recorded/{profile}/`; nothing here is typed in."
    )


def _age(profile: str) -> str:
    """Which published copies show an earlier form of their notebook; empty where none does."""
    older = published.older(profile)
    if not older:
        return ""
    return (
        f"**Earlier form:** the published copies of {', '.join(older)} show these notebooks' "
        "earlier form (the hash of their code differs from today's)."
    )


def _section(profile: str, entry: Entry) -> str:
    name, notebook = entry["name"], entry["notebook"]
    picture = os.path.relpath(figure_file(entry["figure"]), root() / "docs")
    link = f"../notebooks/published/{profile}/{notebook}.ipynb"
    parts = [
        f"### {name}: {entry['claim']}",
        f"**{entry['verdict'].capitalize()}.** {entry['sentence']}",
        f"Rule: {entry['rule']} Computed in [{notebook}]({link}), “{entry['section']}”.",
        estimate_table(entry["estimates"]),
        f"![{name}: {entry['claim']}]({Path(picture).as_posix()})",
    ]
    return "\n\n".join(filter(None, parts))


def estimate_table(estimates: Mapping[str, Row]) -> str:
    """Named effects with value and interval, the first `MAX_ROWS` of them; empty without any."""
    if not estimates:
        return ""
    rows = [(name, interval_text(row)) for name, row in estimates.items()]
    lines = table(("estimate", "value [lo, hi]"), rows[:MAX_ROWS])
    left_out = len(rows) - MAX_ROWS
    if left_out > 0:
        lines += f"\n\n{left_out} more are in `estimates.json`."
    return lines


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [_row(head), "|" + "---|" * len(head), *map(_row, rows)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    safe = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(safe)} |"


# -- README's table -------------------------------------------------------------------------------


def summary(profile: str) -> str:
    """A row per finding F0 to F4: as reported, verdict, in one number, where it is computed."""
    found = {entry["name"]: entry for entry in entries(profile)}
    rows = [_summary_row(profile, lead, found) for lead in lead_findings(list(found.values()))]
    return table(("finding", "claim", "verdict", "in one number", "notebook"), rows)


def _summary_row(profile: str, lead: Entry, found: Mapping[str, Entry]) -> tuple[str, ...]:
    number, notebook = lead["number"], lead["notebook"]
    link = f"[{notebook}](notebooks/published/{profile}/{notebook}.ipynb)"
    claim = FINDINGS[number]
    verdict = _replicates(lead, found)
    if number == NOT_REPORTED:
        claim = f"{lead['claim'].rstrip('.')} (not reported)."
        verdict = lead["verdict"]
    return number, claim, verdict, _number(found, lead), link


def _replicates(lead: Entry, found: Mapping[str, Entry]) -> str:
    """Does what was reported replicate: one word, or one for each claim that judges it."""
    forms = REPLICATING.get(lead["number"], {})
    names = [name for name in forms if name in found]
    claims = [found[name] for name in names] or [lead]
    answers = {replication(claim["verdict"]) for claim in claims}
    if len(answers) == 1:
        return answers.pop()
    words = {name: replication(found[name]["verdict"]) for name in names}
    return "; ".join(f"“{forms[name]}” ({name}) {word}" for name, word in words.items())


def _number(found: Mapping[str, Entry], lead: Entry) -> str:
    """The finding's headline, its estimates as one value with interval or as their range."""
    headline = HEADLINES[lead["number"]]
    estimates = found.get(headline.claim, lead)["estimates"]
    return headline.text.format(*(_spread(_fitting(estimates, e)) for e in headline.effects))


def _fitting(estimates: Mapping[str, Row], effect: str) -> list[Row]:
    return [row for name, row in estimates.items() if re.fullmatch(effect, name)]


def _spread(rows: Sequence[Row]) -> str:
    """ "1.04 to 1.13", or "1.08 [1.05, 1.11]" of one; the values that are defined."""
    defined = [row for row in rows if row["value"] is not None and math.isfinite(row["value"])]
    if not defined:
        return "not reached"
    if len(defined) == 1:
        return interval_text(defined[0])
    values = [row["value"] for row in defined]
    return f"{min(values):.3g} to {max(values):.3g}"
