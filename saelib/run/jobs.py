"""Jobs: one notebook each with checked parameters, and whether its executed copy is up to date.

An executed notebook lies at `data/<profile>/notebooks/NAME.ipynb` (or `NAME.failed.ipynb`) with a
record beside it: the hash of its code, its parameters, the declared versions and the records of the
notebooks before it. Equal hash, no run. The record also seals what the notebook left.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from saelib.config import ConfigError, stable_hash
from saelib.env import ATLAS, data_dir
from saelib.files import read_json, write_json
from saelib.run.parameters import check_ranges, fitted
from saelib.run.profiles import RESERVED, grid_points, resolve_profile, spread
from saelib.run.source_notebooks import code_cells, parameters, read_notebook, sources
from saelib.versions import MEASURING_VERSION, STREAMING_VERSION, STUDY_VERSION, TRAINING_VERSION

FEATURES = "06_features"  # it writes the atlases
SEALED = "hash"  # of a record's other fields
COLLECT = "01_collect"  # the later notebooks read the store it makes


@dataclass(frozen=True)
class Job:
    """One notebook to execute: source, parameters, and where the executed copy goes."""

    source: Path
    parameters: Mapping[str, Any]
    folder: Path  # of the executed notebook and its record
    main: Path  # the profile's own folder, where notebooks before this one may lie
    grid: str = ""  # name of the grid point, empty outside a grid
    settings: Mapping[str, Any] = field(default_factory=dict)  # those given by `--set`

    @property
    def name(self) -> str:
        return self.source.stem

    @property
    def label(self) -> str:
        """The name, and the grid point where there is one."""
        return f"{self.name} {self.grid}".strip()

    @property
    def values(self) -> dict[str, Any]:
        """All parameters: the notebook's own where none is given."""
        return {**parameters(self.source), **self.parameters}

    @property
    def output(self) -> Path:
        return self.folder / f"{self.name}.ipynb"

    @property
    def failed(self) -> Path:
        return self.folder / f"{self.name}.failed.ipynb"

    @property
    def record(self) -> Path:
        return self.folder / f"{self.name}.json"

    @property
    def claims(self) -> list[Path]:
        """Verdicts, abstract, figures and the tables behind them that an earlier run of it left."""
        number = self.name.partition("_")[0]
        folder = self.folder.parent
        verdicts = folder.glob(f"verdicts/{self.name}.*")
        figures = folder.glob(f"figures/{number}_*.png")
        return [*verdicts, *folder.glob(f"diagnostics/{number}_*.csv"), *figures]

    @property
    def atlases(self) -> list[Path]:
        """Pages of features that an earlier run of it left; grid points write none of their own."""
        return (
            []
            if self.grid or self.name != FEATURES
            else sorted(self.folder.parent.glob(f"{ATLAS}/*.html"))
        )


@dataclass(frozen=True)
class Result:
    """What became of a job: "done", "skipped" or "failed" (then `error` says why)."""

    job: Job
    status: str
    seconds: float = 0.0
    error: str = ""


def jobs_of(
    profile: str,
    names: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    grid: Path | None = None,
) -> list[Job]:
    """Every job of a run, in order, all parameters checked.

    With a grid: a job per point for the notebooks that have one of its names. Raises ConfigError
    for the first thing that is wrong, also in the part of the profile that is not asked for.
    """
    overrides = overrides or {}
    base = resolve_profile(profile)
    chosen = sources(names)
    if RESERVED in overrides:
        raise ConfigError(f"{RESERVED!r} is chosen with --profile and cannot be set")
    settings = spread(overrides, chosen, "--set")
    jobs = []
    for point in grid_points(grid) if grid else [{}]:
        axes = spread(point, chosen, str(grid))
        folder = _grid_folder(profile, point) if grid else data_dir(profile)
        for path in [path for path in chosen if axes[path] or not grid]:
            values = fitted(path, {**base[path], **settings[path], **axes[path]})
            name = folder.name if grid else ""
            main = data_dir(profile) / "notebooks"
            jobs.append(Job(path, values, folder / "notebooks", main, name, settings[path]))
    for job in jobs:  # names and types of all come first: ranges load the studies
        check_ranges(job.source, job.parameters)
    _check_buffers(jobs, base, overrides)
    return jobs


def _grid_folder(profile: str, point: Mapping[str, Any]) -> Path:
    return data_dir(profile) / "grid" / stable_hash(point)


def _check_buffers(
    jobs: Sequence[Job], base: Mapping[Path, Mapping[str, Any]], overrides: Mapping[str, Any]
) -> None:
    """ConfigError where a live shuffle buffer is smaller than the largest batch needs."""
    buffers = {job.name: job.values.get("stream_tokens", 0) for job in jobs}
    if not any(buffers.values()):
        return
    from saelib.activations.live import AHEAD  # takes torch: imported where it is needed

    values = [{**parameters(path), **given, **overrides} for path, given in base.items()]
    sizes = [each.get(name, 0) for each in values for name in ("batch_size", "cause_batch")]
    least = AHEAD * max(sizes)
    for name, tokens in buffers.items():
        if 0 < tokens < least:
            raise ConfigError(
                f"{name}: stream_tokens = {tokens}: expected 0 or at least {least}, {AHEAD} batches"
            )


# --- is a job finished? ------------------------------------------------------------------------


def versions() -> list[int]:
    """The declared versions that an executed notebook depends on."""
    return [TRAINING_VERSION, MEASURING_VERSION, STREAMING_VERSION, STUDY_VERSION]


def job_key(job: Job) -> str:
    """Hash of all an executed notebook depends on: code, parameters, versions, notebooks before.

    Cells are taken as syntax trees, so that a comment or a line break executes nothing again.
    """
    cells = code_cells(read_notebook(job.source))
    code = [ast.dump(ast.parse(cell["source"])) for cell in cells]
    return stable_hash(code, dict(job.parameters), versions(), _keys_before(job))


def _keys_before(job: Job) -> dict[str, str]:
    """Keys on record of the notebooks that come before this one: what its inputs were made by."""
    keys = {}
    for name in [path.stem for path in sources() if path.stem < job.name]:
        records = (folder / f"{name}.json" for folder in (job.folder, job.main))
        keys[name] = next(filter(None, map(_recorded_key, records)), "")
    return keys


def read_record(record: Path) -> dict[str, Any]:
    """What lies beside an executed notebook; ValueError naming the file where it is damaged."""
    content = read_json(record)
    if not isinstance(content, dict) or not isinstance(content.get("key"), str):
        raise ValueError(f"{record}: damaged, no record of a notebook")
    stated = content.pop(SEALED, None)  # earlier versions have none
    if stated not in (None, stable_hash(content)):
        raise ValueError(f"{record}: damaged, its content is not what its hash says")
    if not isinstance(content.get("settings", {}), dict):
        raise ValueError(f"{record}: damaged, settings = {content['settings']!r:.80}")
    if not isinstance(content.get("seals", {}), dict):
        raise ValueError(f"{record}: damaged, seals = {content['seals']!r:.80}")
    for name, seal in content.get("seals", {}).items():
        if not _is_seal(name, seal):
            raise ValueError(f"{record}: damaged, seals: {name!r:.80}: {seal!r:.80}")
    return content


def _is_seal(name: str, seal: Any) -> bool:
    """Whether it is what `seals` says of a file, which lies in the profile's folder."""
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts:
        return False
    if not isinstance(seal, dict) or path.suffix == ".ipynb":  # of which each part has one
        return isinstance(seal, (str, dict))
    return isinstance(seal.get("bytes"), int) and isinstance(seal.get("sha256"), str)


def intact_record(record: Path) -> dict[str, Any]:
    """A record; empty where there is none or it is damaged, which `damages` says."""
    try:
        return read_record(record) if record.is_file() else {}
    except ValueError:
        return {}


def _recorded_key(record: Path) -> str:
    return intact_record(record).get("key", "")


def damages(job: Job) -> list[str]:
    """What cannot be read of an executed notebook and of its record, each in a line that names
    the file.
    """
    lines = []
    for path, read in ((job.output, read_notebook), (job.record, read_record)):
        try:
            if path.is_file():
                read(path)
        except ValueError as error:
            lines.append(" ".join(str(error).split()))
    return lines


def is_finished(job: Job) -> bool:
    """Whether the executed notebook is there, whole, of just this code, these parameters and
    inputs.
    """
    if not job.output.is_file() or _recorded_key(job.record) != job_key(job):
        return False
    if damages(job):
        return False
    executed = code_cells(read_notebook(job.output))
    return len(executed) == len(code_cells(read_notebook(job.source)))


def write_record(job: Job, key: str, seals: Mapping[str, Any]) -> None:
    """Keep beside the executed notebook what it was made from, unless it is there already.

    seals: checksums of what it left (`seals`).
    """
    before = intact_record(job.record)
    record = {
        "key": key,
        "parameters": dict(job.parameters),
        "settings": dict(job.settings),
        "versions": versions(),
        "grid": job.grid,
        "seals": dict(seals),
    }
    if before != record:
        write_json(job.record, record | {SEALED: stable_hash(record)})
