"""What a notebook finds: a claim, the rule that judges it, a verdict, its numbers and its sentence.

    data/<profile>/verdicts/<notebook>.json     findings, with their estimates and intervals
    data/<profile>/verdicts/<notebook>.txt      the notebook's part of the report's abstract
    data/<profile>/diagnostics/<table>.csv      tables behind figures and verdicts
    data/<profile>/figures/NAME.png             figures, which `show.style` saves
    data/recorded/full/estimates.json           the estimates of the recorded run, to compare with

At a point of a grid the first three lie under `data/<profile>/grid/<point>/`.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from saelib.env import data_dir, root
from saelib.files import read_json, write_text
from saelib.study.estimate import Estimate, notice, recorded_text

Verdict = Literal["supported", "contradicted", "undecided"]
# Of a check: whether its claim holds, or why it cannot be checked (None: an L0 is not reached).
Outcome = bool | str | None
Check = tuple[Outcome, str]  # an outcome and the claim

MIN_SEEDS = 3  # fewer say nothing of the spread over seeds
MIN_PAGES = 15  # fewer say nothing of the spread over test pages
RECORDED = "full"  # the recorded profile that a run is compared with
NAME = r"F\d+[a-z]?"
# A finding's figure, and one as older records of a recorded profile name it; the report copies it.
FIGURE = r"(data/\w[^/]*/figures|figures/\w[^/]*)/\w[^/]*\.png"

# Verdicts as older records word them.
OLDER_WORDS: dict[str, Verdict] = {
    "replicates": "supported",
    "does not replicate": "contradicted",
    "cannot tell": "undecided",
}
NO_RULE = "Stated in the notebook."  # of older records
OLDER_FIELDS = {"finding": "name", "effect": "sentence", "cell": "section"}
TEXTS = ("name", "claim", "rule", "verdict", "sentence", "section", "figure")
FIELDS = (*TEXTS, "estimates", "beside_recorded")


@dataclass(frozen=True)
class Finding:
    """One claim as a notebook leaves it."""

    name: str  # "F1", "F3b"
    claim: str
    rule: str  # what would make it supported, what contradicted
    verdict: Verdict
    estimates: Mapping[str, Estimate]  # named effects, the headline one first
    sentence: str  # the result in plain words, computed
    section: str  # heading of the notebook above the verdict
    figure: str  # `figure_path`, below the workbook's root

    @property
    def words(self) -> str:
        """The sentence, and what a reader must know of the intervals in it."""
        return f"{self.sentence} {notice(self.estimates.values())}".strip()


# -- verdicts --------------------------------------------------------------------------------------


def enough(n_seeds: int, n_pages: int) -> bool:
    """Whether a run has the seeds and test pages that a verdict takes."""
    return n_seeds >= MIN_SEEDS and n_pages >= MIN_PAGES


def majority(cases: Sequence[str], yes: Collection[str], no: Collection[str]) -> Verdict:
    """ "supported" where more than half of `cases` are in `yes`, "contradicted" where in `no`."""
    in_favour = sum(case in yes for case in cases)
    against = sum(case in no for case in cases)
    if 2 * in_favour > len(cases):
        return "supported"
    return "contradicted" if 2 * against > len(cases) else "undecided"


def replication(verdict: Verdict) -> str:
    """A verdict on what the experiment reported, for the summary of F1 to F4."""
    words = {"supported": "replicates", "contradicted": "does not replicate"}
    return words.get(verdict, "undecided")


# -- beside the recorded run -----------------------------------------------------------------------


def recorded_estimates(profile: str = RECORDED) -> dict[str, dict[str, dict[str, float | None]]]:
    """Estimates of a recorded profile: finding -> effect -> value, lo, hi; empty without."""
    path = data_dir("recorded") / profile / "estimates.json"
    return read_json(path) if path.is_file() else {}


def recorded_verdicts(profile: str = RECORDED) -> dict[str, Verdict]:
    """Verdicts of a recorded profile by finding; empty without a record."""
    folder = data_dir("recorded") / profile / "verdicts"
    verdicts = {}
    for path in sorted(folder.glob("*.json")):
        for i, stored in enumerate(_stored(path)):
            entry = _renewed(stored)
            where = f"{path}, finding {i}"
            _check_name(entry.get("name"), where)
            _check_verdict(entry.get("verdict"), where)
            verdicts[entry["name"]] = entry["verdict"]
    return verdicts


def beside_recorded(finding: Finding, profile: str = RECORDED, form: str = ".3g") -> str:
    """The headline estimate beside the recorded run's, and whether their intervals overlap.

    "0.92 [0.91, 0.93]; recorded full: 0.93 [0.92, 0.94]: agrees". A value without an interval
    neither agrees nor differs. Where the recorded run has another effect than the headline one, the
    first that both have. Empty where nothing was estimated.
    """
    if not finding.estimates:
        return ""
    recorded = recorded_estimates(profile).get(finding.name, {})
    shared = [effect for effect in finding.estimates if effect in recorded]
    effect = next(iter(shared or finding.estimates))
    here = finding.estimates[effect]
    text = f"{effect}: {here.text(form)}"
    if not shared:
        return f"{text}; recorded {profile}: no record"
    there = recorded[effect]
    beside = f"{text}; recorded {profile}: {recorded_text(there, form)}"
    return f"{beside}: {_comparison(here, there)}"


def _comparison(here: Estimate, there: Mapping[str, float | None]) -> str:
    """Whether two runs agree, in a word, or why that cannot be said."""
    agrees = here.agrees(there)
    if agrees is not None:
        return "agrees" if agrees else "differs"
    if not here.defined or there["value"] is None:
        return "cannot be compared"
    return "no interval recorded" if math.isfinite(here.lo) else "no interval here"


# -- files -----------------------------------------------------------------------------------------


def kept_in(profile: str, kind: str) -> Path:
    """`data/<profile>/<kind>`, or a grid point's own folder where the driver runs one."""
    grid = os.environ.get("SAELIB_GRID", "")
    return data_dir(profile) / (f"grid/{grid}/{kind}" if grid else kind)


def figure_path(profile: str, name: str) -> str:
    """Where a run has the figure `name`, relative to the workbook's root: what a finding names."""
    return f"data/{profile}/figures/{name}.png"


def figure_file(figure: str) -> Path:
    """The file of a finding's figure: the run's own, else the one kept of the recorded run.

    A recorded profile has its figures in `figures/<profile>/`, which older records name themselves.
    """
    path = root() / figure
    match = re.fullmatch(r"data/([^/]+)/figures/([^/]+)", figure)
    if match is None or path.is_file():
        return path
    return root() / "figures" / match.group(1) / match.group(2)


def record(profile: str, notebook: str, findings: Sequence[Finding]) -> Path:
    """Write a notebook's findings; replaces what it recorded before.

    ValueError names the field that is empty, unknown, or a figure that does not exist.
    """
    entries = [_entry(finding) for finding in findings]
    for entry in entries:
        _check(entry, f"{notebook}, {entry['name']}")
    path = kept_in(profile, "verdicts") / f"{notebook}.json"
    text = json.dumps(entries, indent=1, sort_keys=False, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")
    return path


def _entry(finding: Finding) -> dict[str, Any]:
    """A finding as its file has it."""
    entry: dict[str, Any] = {name: getattr(finding, name) for name in TEXTS}
    entry["sentence"] = finding.words if finding.sentence.strip() else finding.sentence
    entry["estimates"] = {
        effect: _without_nan(estimate.row()) for effect, estimate in finding.estimates.items()
    }
    entry["beside_recorded"] = beside_recorded(finding)
    return entry


def _without_nan(row: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in row.items()}


def _check_verdict(verdict: Any, where: str) -> None:
    verdicts = get_args(Verdict)
    if verdict not in verdicts:
        accepted = ", ".join(verdicts)
        raise ValueError(f"{where}: verdict = {verdict!r}: expected one of {accepted}")


def _check_name(name: Any, where: str) -> None:
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise ValueError(f"{where}: name = {name!r}: expected F1, F2, F2a, …")


def _check(entry: Mapping[str, Any], where: str) -> None:
    if set(entry) != set(FIELDS):
        raise ValueError(f"{where}: fields {sorted(entry)}; expected {sorted(FIELDS)}")
    for field in TEXTS:
        if not isinstance(entry[field], str) or not entry[field].strip():
            raise ValueError(f"{where}: {field} = {entry[field]!r}: expected text")
    if not isinstance(entry["beside_recorded"], str):
        raise ValueError(
            f"{where}: beside_recorded = {entry['beside_recorded']!r:.80}: expected text or ''"
        )
    _check_verdict(entry["verdict"], where)
    _check_name(entry["name"], where)
    _check_estimates(entry["estimates"], where)
    _check_figure(entry["figure"], where)


def _check_estimates(estimates: Any, where: str) -> None:
    rows = estimates.values() if isinstance(estimates, Mapping) else [None]
    if not all(_is_row(row) for row in rows):
        raise ValueError(
            f"{where}: estimates = {estimates!r:.80}: expected value, lo and hi, each a number or "
            "null, by effect"
        )


def _is_row(row: Any) -> bool:
    """Whether this is an `Estimate.row`, nan written as null."""
    if not isinstance(row, Mapping) or set(row) != {"value", "lo", "hi"}:
        return False
    return all(end is None or _is_finite(end) for end in row.values())


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _check_figure(figure: str, where: str) -> None:
    if not re.fullmatch(FIGURE, figure) or not figure_file(figure).is_file():
        accepted = figure_path("<profile>", "NAME")
        raise ValueError(f"{where}: figure = {figure!r}: no such file; expected {accepted}")


def load(profile: str) -> list[dict[str, Any]]:
    """Every recorded finding of a profile with its `notebook`, sorted by name.

    ValueError where a file is damaged or a finding is recorded twice.
    """
    loaded = []
    for path in sorted((data_dir(profile) / "verdicts").glob("*.json")):
        for i, stored in enumerate(_stored(path)):
            entry = _renewed(stored)
            _check(entry, f"{path}, finding {i}")
            loaded.append({**entry, "notebook": _notebook(path)})
    loaded.sort(key=lambda entry: entry["name"])
    for one, two in pairwise(loaded):
        if one["name"] == two["name"]:
            both = f"{one['notebook']} and {two['notebook']}"
            raise ValueError(
                f"profile {profile!r}: finding {one['name']} is recorded twice, by {both}"
            )
    return loaded


def _stored(path: Path) -> list[dict[str, Any]]:
    """The entries of one file of findings."""
    entries = read_json(path)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path}: expected a list of findings, found {entries!r:.80}")
    return entries


def _renewed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """An entry in today's form; older records have their numbers in a sentence, and no rule."""
    if "finding" not in stored:
        return dict(stored)
    entry = {OLDER_FIELDS.get(name, name): value for name, value in stored.items()}
    verdict = entry.get("verdict")
    entry["verdict"] = OLDER_WORDS.get(str(verdict), verdict)
    return {"rule": NO_RULE, "estimates": {}, "beside_recorded": ""} | entry


def record_table(profile: str, name: str, table: pd.DataFrame) -> Path:
    """Keep a table behind a figure or a verdict as `data/<profile>/diagnostics/<name>.csv`.

    name: the notebook's number and words, as "04_effects".
    """
    if not re.fullmatch(r"\d\d_\w+", name):
        accepted = "the notebook's number and words, as '04_effects'"
        raise ValueError(f"table name = {name!r}: expected {accepted}")
    path = kept_in(profile, "diagnostics") / f"{name}.csv"
    write_text(path, table.to_csv(index=False, lineterminator="\n"))
    return path


def read_table(profile: str, name: str) -> pd.DataFrame:
    """A table that `record_table` kept, a grid point's own first.

    FileNotFoundError says which notebook makes it.
    """
    folders = (kept_in(profile, "diagnostics"), data_dir(profile) / "diagnostics")
    kept = [folder / f"{name}.csv" for folder in folders]
    path = next((path for path in kept if path.exists()), None)
    if path is None:
        raise FileNotFoundError(
            f"{kept[-1]} is missing: run notebook {name[:2]} with profile {profile!r}"
        )
    try:
        return pd.read_csv(path, dtype={"run_id": str})  # "77e5" is no number
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); run notebook {name[:2]} again") from error


def record_abstract(profile: str, notebook: str, text: str) -> Path:
    """Write a notebook's part of the report's abstract: a sentence or two, its numbers computed."""
    if not text.strip() or "nan" in re.findall(r"\w+", text.lower()):
        raise ValueError(
            f"abstract of {notebook} = {text!r}: expected sentences, with no number missing"
        )
    path = kept_in(profile, "verdicts") / f"{notebook}.txt"
    write_text(path, text.strip() + "\n")
    return path


def read_abstracts(profile: str) -> dict[str, str]:
    """Notebook -> its recorded sentences, in order.

    ValueError where a file is damaged.
    """
    files = sorted((data_dir(profile) / "verdicts").glob("*.txt"))
    return {_notebook(path): _abstract(path) for path in files}


def _notebook(path: Path) -> str:
    """The notebook that left a file, to whose page the report links; a colon ends a link's scheme.

    Raises ValueError for a name that no notebook has.
    """
    if not re.fullmatch(r"\w[^:]*", path.stem):
        raise ValueError(f"{path}: not named after a notebook, as 02_train_sae; remove it")
    return path.stem


def _abstract(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: damaged ({error}); run notebook {path.stem[:2]} again"
        ) from error


def checks(results: Iterable[Check]) -> str:
    """Checks of a notebook in words, one per line, each with its claim.

    "holds: …", "DOES NOT HOLD: …", or "cannot be checked (L0 not reached in 2 of 3 arms): …".
    """
    return "\n".join(f"{_check_word(outcome)}: {claim}" for outcome, claim in results)


def _check_word(outcome: Outcome) -> str:
    if outcome is None or isinstance(outcome, str):
        return f"cannot be checked ({outcome or 'an L0 is not reached'})"
    return "holds" if bool(outcome) else "DOES NOT HOLD"


def at_least(n: int, cases: Sequence[bool | None], reason: str, things: str = "arms") -> Outcome:
    """Whether n cases or more hold, where None is a case that is not known.

    Where those that are not known could turn the answer: the `reason` and how many of the `things`
    it holds for, "L0 not reached in 2 of 3 arms".
    """
    unknown = sum(case is None for case in cases)
    holding = sum(bool(case) for case in cases if case is not None)
    if holding >= n:
        return True
    if holding + unknown < n:
        return False
    return f"{reason} in {unknown} of {len(cases)} {things}"


def account(findings: Sequence[Finding]) -> str:
    """Findings in words for their notebook, a blank line between two.

    Of each its claim, its verdict beside the recorded run's estimate, and its sentence.
    """
    return "\n\n".join(_account(finding) for finding in findings)


def _account(finding: Finding) -> str:
    beside = beside_recorded(finding)
    if finding.verdict == "undecided" and beside:
        lead = f"{beside}; undecided here."
    else:
        lead = f"{finding.verdict}. {beside}".strip()
    return f"{finding.name}: {finding.claim}\n{lead}\n{finding.words}"
