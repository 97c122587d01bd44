"""Add one notebook's run to what is recorded of a profile: `record.py --add NOTEBOOK PROFILE`.

The run may come from another machine, whose data/<profile> holds the store, the notebook's own SAEs
and its executed copy alone. What is recorded of the other notebooks stays byte for byte; of the
notebook itself an earlier record is replaced. Two runs are of one profile where the text, the model
and the parameters that make the store are equal, and the moments of each site nearly: these are
computed anew by each machine, in its own order of summation.

    data/recorded/<profile>/added.json    notebook -> the declared versions that it was run with,
                                          the dtype that its model was computed in, and how far SAEs
                                          that are on record already came out otherwise
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import findings
import published

from saelib.env import data_dir, root
from saelib.files import replaced_folder, write_json, write_text
from saelib.run.identity import code_version
from saelib.run.jobs import COLLECT, Job, is_finished, jobs_of
from saelib.run.results import RESULTS, TIMES, read_results
from saelib.seal import seal_files
from saelib.study.finding import load
from saelib.versions import MEASURING_VERSION, STREAMING_VERSION, STUDY_VERSION

# Parameters of the collection that change no row of it, or are another machine's.
NOT_OF_THE_STORE = {
    *("profile", "device", "batch_tokens", "shard_tokens"),
    *("probe_contexts", "pca_rank"),
}
SAME = ("model_id", "corpus_id", "ctx_len", "n_test_pages")  # in every row of a record
NEARLY = 1e-3  # relative: moments of the same activations differ less, those of other text more
NORMALISER = ["site", "normalize", "tokens_mask"]  # what the scale of a site depends on
MEASURED = ("fvu", "l0")  # of one run trained twice, these differ by rounding alone
TWICE = 0.03  # relative: most that they may; a run's id says that its data and recipe are equal


@dataclass(frozen=True)
class Record:
    """What is recorded of a profile."""

    profile: str

    @property
    def tables(self) -> Path:
        return data_dir("recorded") / self.profile

    @property
    def copies(self) -> Path:
        return root() / "notebooks" / "published" / self.profile

    @property
    def figures(self) -> Path:
        return root() / "figures" / self.profile


def add(profile: str, name: str) -> int:
    """Add the finished notebook `name` to the record of a profile; returns the number of files.

    All is read and checked before anything is replaced; then each of the record's three folders is
    replaced in one step. A call that was killed between them is healed by another.

    Raises:
        FileNotFoundError: the notebook is not finished, or nothing is recorded yet.
        ValueError: the run is of another store, a run is on record with another FVU or L0, a
            finding is of another notebook, or a file is damaged; names it.
    """
    job = finished_job(profile, name)
    record = Record(profile)
    if not (record.tables / RESULTS).is_file():
        raise FileNotFoundError(
            f"nothing is recorded of profile {profile!r} to add to: record its whole run first"
        )
    check_parameters(job, record)
    check_store(job, record)
    runs = union_of_runs(job, record)
    texts = {
        RESULTS: runs.text,
        TIMES: union_of_times(job, record, runs),
        "estimates.json": union_of_estimates(job, record),
    }
    _replace(job, record, texts, runs)
    return 1 + len(job.claims)


def _replace(job: Job, record: Record, texts: Mapping[str, str], runs: Runs) -> None:
    """Replace the record's folders by copies of them with what the notebook left.

    texts: content of tables that are of all notebooks. Where a write fails all three stay.
    """
    folders = (record.tables, record.copies, record.figures)
    with ExitStack() as stack:
        staged = [stack.enter_context(replaced_folder(folder)) for folder in folders]
        for folder, new in zip(folders, staged, strict=True):
            if folder.is_dir():
                shutil.copytree(folder, new, dirs_exist_ok=True)
        tables, copies, figures = staged
        _remove_former(job, tables, copies, figures)
        _copy([job.output], copies)
        _copy([path for path in job.claims if path.suffix == ".png"], figures)
        _write_tables(job, record, tables, texts, runs)


def _write_tables(
    job: Job, record: Record, tables: Path, texts: Mapping[str, str], runs: Runs
) -> None:
    """Write the notebook's own texts, and those that are of all notebooks."""
    for path in _texts(job):
        write_text(tables / path.relative_to(data_dir(record.profile)), path.read_text("utf-8"))
    for name, text in texts.items():
        write_text(tables / name, text)
    sources = published.recorded_hashes(record.profile) | published.hashes([job.output])
    write_json(tables / "sources.json", sources)
    made_with = versions() | {"compute_dtype": _compute_dtype(record.profile)} | _said(runs.twice)
    write_json(tables / "added.json", findings.added(record.profile) | {job.name: made_with})
    seal_files(tables, [RESULTS])


def _said(twice: Mapping[str, float]) -> dict[str, Any]:
    """What is said of runs that were on record already; empty where none was."""
    if not twice:
        return {}
    most = f"{len(twice)}, whose FVU and L0 differ by at most {max(twice.values()):.2%}"
    return {"SAEs trained again": most}


def versions() -> dict[str, Any]:
    """The declared versions that a finished notebook was run with: those of today."""
    return {
        "code_version": code_version(),
        "measuring": MEASURING_VERSION,
        "streaming": STREAMING_VERSION,
        "study": STUDY_VERSION,
    }


def _compute_dtype(profile: str) -> str:
    """What the run's model was computed in: dtype "auto" depends on the processor."""
    manifest = data_dir(profile) / "store" / "manifest.json"
    return json.loads(manifest.read_text(encoding="utf-8"))["compute_dtype"]


def finished_job(profile: str, name: str) -> Job:
    """The job of one notebook; FileNotFoundError where its run is not finished."""
    (job,) = jobs_of(profile, [name])
    lacking = [path.name for path in sorted(job.folder.glob(f"{job.name}.*.ipynb"))]  # broken off
    if not is_finished(job):
        lacking.append("not executed as code, profile and package are now")
    lacking += [name for name in (RESULTS, TIMES) if not (data_dir(profile) / name).is_file()]
    if lacking:
        raise FileNotFoundError(
            f"{job.name} of profile {profile!r} is not a finished run: {', '.join(lacking)}"
        )
    return job


# -- is it the same store? ------------------------------------------------------------------------


def _differs(job: Job, what: str, here: Any, there: Any) -> ValueError:
    return ValueError(
        f"{job.name} cannot be added to the record: {what} is {here} in this run and {there} on "
        "record, so they are not of one store"
    )


def check_parameters(job: Job, record: Record) -> None:
    """ValueError where the profile collects otherwise than the recorded copy of notebook 01.

    Parameters that the copy does not have yet are not compared.
    """
    copy = record.copies / f"{COLLECT}.ipynb"
    if not copy.is_file():
        raise ValueError(
            f"{copy} is missing, so what the recorded store was made with is not known: record the "
            "whole run first"
        )
    (collect,) = jobs_of(record.profile, [COLLECT])
    recorded = findings.executed_parameters(copy)
    for name, here in collect.values.items():
        if name in recorded.keys() - NOT_OF_THE_STORE and recorded[name] != here:
            raise _differs(job, f"{COLLECT}'s {name}", here, recorded[name])


def check_store(job: Job, record: Record) -> None:
    """ValueError where the runs are of another model or text, or of other moments of a site."""
    here = read_results(data_dir(record.profile) / RESULTS)
    there = read_results(record.tables / RESULTS)
    for name in SAME:
        known = set(there[name])
        for value in here[name].unique():
            if value not in known:
                raise _differs(job, name, value, " or ".join(map(str, sorted(known))))
    recorded = _scales(there)
    for place, scale in _scales(here).items():
        if not math.isclose(scale, recorded.get(place, scale), rel_tol=NEARLY):
            site, normalize, mask = place
            what = f"the scale of site {site} ({normalize}, {mask} tokens)"
            raise _differs(job, what, f"{scale:.6g}", f"{recorded[place]:.6g}")


def _scales(rows: Any) -> dict[tuple[Any, ...], float]:
    """The normaliser's scale by site, mode and mask: from errors in its units and the model's."""
    rows = rows[(rows["mse"] > 0) & (rows["mse_raw"] > 0)]
    squares = (rows["mse"] / rows["mse_raw"]).groupby([rows[name] for name in NORMALISER]).median()
    return {place: math.sqrt(square) for place, square in squares.items()}


# -- tables ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runs:
    """The union of two results tables.

    own: runs that the notebook adds; former: recorded runs of an earlier record of it that go.
    twice: runs of the notebook that are on record of others and were trained again, by the
    greatest relative difference of their FVU or L0 here and there.
    """

    text: str
    own: frozenset[str]
    former: frozenset[str]
    twice: Mapping[str, float]


def _lines(path: Path) -> tuple[str, list[tuple[str, dict[str, str]]]]:
    """The header of a table, and each further line beside its values by column.

    ValueError where a row is not one line.
    """
    header, *lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    names = next(csv.reader([header]))
    rows = []
    for line in lines:
        values = next(csv.reader([line]), [])
        if len(values) != len(names):
            raise ValueError(f"{path}: {line!r:.80}: expected a row of {len(names)} values")
        rows.append((line, dict(zip(names, values, strict=True))))
    return header, rows


def _both(record: Record, name: str) -> tuple[str, list[Any], list[Any]]:
    """The header of a table that run and record have, and the rows of each."""
    path = data_dir(record.profile) / name
    header, here = _lines(path)
    known, there = _lines(record.tables / name)
    if header != known:
        raise ValueError(f"{path}: its columns are not those on record: {header} for {known}")
    return header, here, there


def union_of_runs(job: Job, record: Record) -> Runs:
    """The recorded runs and the notebook's: those it trained, and those its tables name.

    A run that is in both stays as it is recorded. ValueError where it differs by more than another
    machine's rounding, or a table names a run that is in none.
    """
    header, here, there = _both(record, RESULTS)
    others = _named_runs(record.tables.glob("diagnostics/*.csv"), but=_number(job))
    kept = {
        row["run_id"]: (line, row)
        for line, row in there
        if row["notebook"] != job.name or row["run_id"] in others
    }
    named = _named_runs(path for path in job.claims if path.suffix == ".csv")
    own = {
        row["run_id"]: (line, row)
        for line, row in here
        if row["notebook"] == job.name or row["run_id"] in named
    }
    missing = sorted(named - own.keys())
    if missing:
        raise ValueError(f"{RESULTS} lacks run {missing[0]}, which a table of {job.name} names")
    twice = {
        run: _apart(run, own[run][1], kept[run][1])
        for run in sorted(own.keys() & kept.keys())
        if any(own[run][1][name] != kept[run][1][name] for name in MEASURED)
    }
    union = own | kept
    lines = [header, *(union[run][0] for run in sorted(union))]
    former = {row["run_id"] for _, row in there} - kept.keys()
    own_runs = frozenset(own.keys() - kept.keys())
    return Runs("\n".join(lines) + "\n", own_runs, frozenset(former), twice)


def _apart(run: str, here: Mapping[str, str], there: Mapping[str, str]) -> float:
    """The greatest relative difference of what was measured; ValueError where it is above TWICE."""
    greatest = 0.0
    for name in MEASURED:
        try:
            value, recorded = float(here[name]), float(there[name])
        except ValueError:
            value = recorded = math.nan
        difference = abs(value - recorded) / max(abs(recorded), 1e-12)
        if not difference <= TWICE:  # nor where one is not a number
            raise ValueError(
                f"{RESULTS}: run {run} is on record with {name} = {there[name]!r}, and in this run "
                f"with {here[name]!r}: expected numbers no further apart than {TWICE:.0%}"
            )
        greatest = max(greatest, difference)
    return greatest


def _named_runs(tables: Iterable[Path], but: str = "") -> set[str]:
    """Runs that tables have in a column `run_id`; those of the notebook with number `but` apart."""
    named: set[str] = set()
    for path in tables:
        if not (but and path.name.startswith(f"{but}_")):
            with path.open(encoding="utf-8", newline="") as file:
                named |= {row["run_id"] for row in csv.DictReader(file) if "run_id" in row}
    return named


def union_of_times(job: Job, record: Record, runs: Runs) -> str:
    """The recorded times, and those of the notebook and of its own runs."""
    header, here, there = _both(record, TIMES)
    kept = [line for line, row in there if not _is_of(job, row, runs.former | runs.own)]
    own = [line for line, row in here if _is_of(job, row, runs.own)]
    return "\n".join([header, *kept, *own]) + "\n"


def _is_of(job: Job, row: Mapping[str, str], runs: Collection[str]) -> bool:
    return row["stage"] == f"notebook:{job.name}" or row["run_id"] in runs


def union_of_estimates(job: Job, record: Record) -> str:
    """`estimates.json` with the notebook's findings; ValueError where another has one of them."""
    path = record.tables / "estimates.json"
    estimates = findings.recorded_estimates(record.profile)
    others = {}
    for entry in load(f"recorded/{record.profile}"):
        if entry["notebook"] == job.name:
            estimates.pop(entry["name"], None)
        else:
            others[entry["name"]] = entry["notebook"]
    for entry in load(record.profile):
        if entry["notebook"] != job.name:
            continue
        if entry["name"] in others:
            raise ValueError(f"{path}: {entry['name']} is on record of {others[entry['name']]}")
        estimates[entry["name"]] = entry["estimates"]
    ordered = dict(sorted(estimates.items()))
    return json.dumps(ordered, indent=1, ensure_ascii=False) + "\n"


# -- files ----------------------------------------------------------------------------------------


def _number(job: Job) -> str:
    return job.name.partition("_")[0]


def _texts(job: Job) -> Iterator[Path]:
    """Verdicts, abstract and tables that the notebook left."""
    return (path for path in sorted(job.claims) if path.suffix != ".png")


def _remove_former(job: Job, tables: Path, copies: Path, figures: Path) -> None:
    """Delete what an earlier record of the notebook left in copies of the record's folders."""
    number = _number(job)
    former = [
        *copies.glob(f"{job.name}.ipynb"),
        *figures.glob(f"{number}_*.png"),
        *tables.glob(f"verdicts/{job.name}.*"),
        *tables.glob(f"diagnostics/{number}_*.csv"),
    ]
    for path in former:
        path.unlink()


def _copy(paths: Sequence[Path], folder: Path) -> None:
    for path in paths:
        shutil.copyfile(path, folder / path.name)
