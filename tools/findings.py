"""What a recorded profile found, in Markdown: `docs/findings.md`, and README's table of F0 to F5.

Both are computed from `data/recorded/<profile>/` alone; `tools/record.py` writes them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import published

from saelib.env import data_dir, root
from saelib.files import read_json
from saelib.run.headlines import NOT_REPORTED, effect, interval_text, outcome
from saelib.run.report import FINDINGS, facts, lead_findings
from saelib.run.source_notebooks import INJECTED, parameters, read_notebook, tags
from saelib.study import (
    f0_trap,
    f1_schedules,
    f2_dead,
    f2_gated,
    f2_gates,
    f2_resampling_findings,
    f3_causes,
    f3_dictionary,
    f3_features,
    f3_layers,
    f4_lambda,
)
from saelib.study.finding import NO_RULE, load, recorded_estimates

MAX_ROWS = 12  # of a finding's table of estimates
RULES = {  # for records that hold none
    "F0": f0_trap.RULE,
    "F1": f1_schedules.RULE,
    "F2": f2_resampling_findings.RULE,
    "F2a": f2_gated.RULE,
    "F2b": f2_gated.RULE,
    "F2c": f2_gated.RULE,
    "F2d": f2_gates.RULE,
    "F2e": f2_dead.RULE,
    "F2f": f2_resampling_findings.RULE_HELPS,
    "F3a": f3_layers.RULE_A,
    "F3b": f3_layers.RULE_WORSE,
    "F3c": f3_layers.RULE_C,
    "F3d": f3_dictionary.RULE_D,
    "F3e": f3_dictionary.RULE_E,
    "F3f": f3_causes.RULE,
    "F3g": f3_features.RULE,
    "F4": f4_lambda.RULE,
}
MAPPING = """A verdict on a claim is *supported*, *contradicted* or *undecided*. Of what the
experiment reported (F1 to F4), README's table says *replicates* where the claim is supported and
*does not replicate* where it is contradicted. F0 is a claim of ours, F5a to F5d are claims of
papers on the architectures, and F5e and F5f questions of ours."""
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


def entries(profile: str) -> list[dict[str, Any]]:
    """The findings of a recorded profile, each with its estimates, older records' included."""
    recorded = recorded_estimates(profile)
    loaded = load(f"recorded/{profile}")
    for entry in loaded:
        if not entry["estimates"]:
            rows = recorded.get(entry["name"], {})
            entry["estimates"] = {name: rows[name] for name in sorted(rows, key=_by_number)}
        if entry["rule"] == NO_RULE:
            entry["rule"] = rule(profile, entry)
    return loaded


def rule(profile: str, entry: Entry) -> str:
    """A finding's rule as its module states it today, with the numbers of the recorded run."""
    if entry["name"] not in RULES:
        return NO_RULE
    copy = root() / "notebooks" / "published" / profile / f"{entry['notebook']}.ipynb"
    if not copy.is_file():
        return NO_RULE
    given = executed_parameters(copy)
    margin = given.get("margin", float("nan"))
    l0 = given.get("l0_target", float("nan"))
    return RULES[entry["name"]].format(margin=margin, percent=100 * margin, limit=1 + margin, l0=l0)


def executed_parameters(copy: Path) -> dict[str, Any]:
    """What an executed notebook ran with: its defaults, and papermill's cell over them."""
    values = parameters(copy)
    for cell in read_notebook(copy)["cells"]:
        if INJECTED in tags(cell):
            given = (
                line for line in ast.parse(cell["source"]).body if isinstance(line, ast.Assign)
            )
            values |= {ast.unparse(line.targets[0]): ast.literal_eval(line.value) for line in given}
    return values


def _by_number(name: str) -> list[str]:
    """A key that sorts "site 2" before "site 15"."""
    return [piece.zfill(9) if piece.isdigit() else piece for piece in re.split(r"(\d+)", name)]


# -- docs/findings.md -----------------------------------------------------------------------------


def page(profile: str) -> str:
    """`docs/findings.md`: the profile, its size, and a section per finding."""
    found = entries(profile)
    notices = filter(None, [_added_words(profile), _age(profile)])
    parts = ["# Findings", _size(profile), MAPPING, *notices, WORDS]
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


def added(profile: str) -> dict[str, dict[str, Any]]:
    """Notebooks added to a record by themselves, with the versions that each was run with."""
    path = data_dir("recorded") / profile / "added.json"
    return read_json(path) if path.is_file() else {}


def _added_words(profile: str) -> str:
    """Which notebooks have a run of their own; empty where none has."""
    notebooks = [
        f"{name} ({_versions_words(versions)})" for name, versions in sorted(added(profile).items())
    ]
    if not notebooks:
        return ""
    return (
        f"**Added by themselves:** {'; '.join(notebooks)}. Their SAEs were trained in another run "
        "than the others, on the same text and the same model, perhaps on another machine."
    )


def _versions_words(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in versions.items())


def _age(profile: str) -> str:
    """Which published copies show an earlier form of their notebook; empty where none does."""
    older = published.older(profile)
    if not older:
        return ""
    return (
        f"**Earlier form:** the published copies of {', '.join(older)} show these notebooks' "
        "earlier form (the hash of their code differs from today's). They call a claim "
        "*replicates*, *does not replicate* or *cannot tell* where this page says supported, "
        "contradicted or undecided. A rule that was not recorded is printed as `saelib/study/` "
        "states it today."
    )


def _section(profile: str, entry: Entry) -> str:
    name, notebook = entry["name"], entry["notebook"]
    picture = f"../figures/{profile}/{Path(entry['figure']).name}"
    link = f"../notebooks/published/{profile}/{notebook}.ipynb"
    parts = [
        f"### {name}: {entry['claim']}",
        f"**{entry['verdict'].capitalize()}.** {entry['sentence']}",
        f"Rule: {entry['rule']} Computed in [{notebook}]({link}), “{entry['section']}”.",
        estimate_table(entry["estimates"]),
        f"![{name}: {entry['claim']}]({picture})",
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
    """A row per finding F0 to F5: as reported, verdict, in one number, where it is computed."""
    found = {entry["name"]: entry for entry in entries(profile)}
    rows = [_summary_row(profile, lead, found) for lead in lead_findings(list(found.values()))]
    return table(("finding", "claim", "verdict", "in one number", "notebook"), rows)


def _summary_row(profile: str, lead: Entry, found: Mapping[str, Entry]) -> tuple[str, ...]:
    number, name, notebook = lead["number"], lead["name"], lead["notebook"]
    estimates = {claim: entry["estimates"] for claim, entry in found.items()}
    verdicts = {claim: entry["verdict"] for claim, entry in found.items()}
    link = f"[{notebook}](notebooks/published/{profile}/{notebook}.ipynb)"
    claim = FINDINGS[number]
    verdict = outcome(number, verdicts, name)
    if number in NOT_REPORTED:
        claim = f"{lead['claim'].rstrip('.')} (not reported)."
        verdict = lead["verdict"]
    return number, claim, verdict, effect(number, estimates, name), link
