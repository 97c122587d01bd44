"""The batch driver: a profile's notebooks through papermill, checked first and skipped where finished.

A profile is `notebooks/profiles/NAME.yaml`: a mapping `common` and a mapping `notebooks` (name -> mapping). A notebook
accepts the names of its cell tagged `parameters`, each with a value of its default's type. papermill alone takes an
unknown name or a string for a number without a word, so both are refused here, for every notebook before any runs, and
so is a value that the configuration it goes into would refuse half an hour later.

An executed notebook lies at `data/<profile>/notebooks/NAME.ipynb` (or `NAME.failed.ipynb`) with a record beside it:
the hash of its code, its parameters, the declared versions and the records of the notebooks before it. Equal hash, no
run.
"""

from __future__ import annotations

import ast
import itertools
import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nbformat
import papermill
import yaml
from papermill.exceptions import PapermillExecutionError

from saelib.activations.live import AHEAD
from saelib.config import (
    IN_WORDS,
    CollectConfig,
    ConfigError,
    CorpusConfig,
    EvalConfig,
    SAEConfig,
    TrainConfig,
    refuse_unknown,
    stable_hash,
)
from saelib.env import data_dir, root
from saelib.files import write_text
from saelib.run.results import log_time
from saelib.versions import MEASURING_VERSION, STREAMING_VERSION, STUDY_VERSION, TRAINING_VERSION

INJECTED = "injected-parameters"  # papermill's tag on the cell it adds
RESERVED = "profile"  # set by the profile's file name, in every notebook that has it
KEPT = (
    "recorded",
    "assets",
    "kernels",
)  # folders of data/ that belong to no profile; `make clean-data` keeps them too
COLLECT = "01_collect"  # the later notebooks read the store it makes
GOES_INTO = {  # parameter names -> the field that each value, or each element of a list, goes into
    r"lam|(.+_)?lambdas.*|.+_lam": (TrainConfig, "lam"),
    r"lam_full|lam_two_term": (TrainConfig, "lam"),  # factors of a λ
    r".+_lam_warmup": (TrainConfig, "lam_warmup"),
    r".+_clip": (TrainConfig, "grad_clip"),
    r".+_lr|.+_lrs": (TrainConfig, "lr"),
    r".*seeds": (TrainConfig, "seed"),
    r"store_dtype": (CollectConfig, "dtype"),
    r"corpus_seed": (CorpusConfig, "seed"),
}
NOT_EMPTY = r"(.+_)?lambdas.*|.*sites|.*seeds|schedule_lrs|lengths|resample_at"
POSITIVE = r"(cause|depth|split|learn)_\w+|l0_target|length_l0|lengths|longer|wider|original_lam"  # lists of λ apart
POSITIVE += r"|snapshots|pca_rank|probe_contexts|stream_contexts"
NOT_NEGATIVE = r"margin|refine|stream_(tokens|held_out)"

log = logging.getLogger("saelib")


@dataclass(frozen=True)
class Job:
    """One notebook to execute: source, parameters, and where the executed copy goes."""

    source: Path
    parameters: Mapping[str, Any]
    folder: Path  # of the executed notebook and its record
    main: Path  # the profile's own folder, where notebooks before this one may lie
    grid: str = ""  # name of the grid point, empty outside a grid

    @property
    def name(self) -> str:
        return self.source.stem

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
        """What an earlier run of it said beside itself: verdicts, its part of the abstract, tables behind figures."""
        number, folder = self.name.partition("_")[0], self.folder.parent
        return [
            *folder.glob(f"verdicts/{self.name}.*"),
            *folder.glob(f"diagnostics/{number}_*.csv"),
        ]


@dataclass(frozen=True)
class Result:
    """What became of a job: "done", "skipped" or "failed" (then `error` says why)."""

    job: Job
    status: str
    seconds: float = 0.0
    error: str = ""


# --- notebooks and their parameters ----------------------------------------------------------------------------------


def notebooks_dir() -> Path:
    """Folder of the source notebooks and of `profiles/`."""
    return root() / "notebooks"


def sources(names: Sequence[str] = ()) -> list[Path]:
    """The notebooks in reading order; `names` selects by name, number or path (`02_train_sae`, `02`, a file)."""
    found = sorted(p for p in notebooks_dir().glob("*.ipynb") if not p.name.startswith("."))
    chosen = set()
    for name in names:
        stem = Path(name).name.removesuffix(".ipynb")
        hits = [p for p in found if p.stem == stem or p.stem.split("_")[0] == stem]
        if len(hits) != 1:
            raise ConfigError(
                f"notebook {name!r}: accepted: {', '.join(p.stem for p in found) or 'none found'}"
            )
        chosen.add(hits[0])
    return [p for p in found if p in chosen or not names]


def tags(cell: Mapping[str, Any]) -> list[str]:
    """A cell's tags."""
    return cell["metadata"].get("tags", [])


def code_cells(nb: Mapping[str, Any]) -> list[Any]:
    """The code cells of a notebook without the one papermill injects."""
    return [c for c in nb["cells"] if c["cell_type"] == "code" and INJECTED not in tags(c)]


def parameters(path: Path) -> dict[str, Any]:
    """Names and defaults of the cell tagged `parameters`; only literal assignments are accepted there."""
    cells = [c for c in code_cells(nbformat.read(path, as_version=4)) if "parameters" in tags(c)]
    if len(cells) != 1:
        raise ConfigError(
            f"{path.name}: {len(cells)} cells tagged 'parameters'; expected exactly one"
        )
    return dict(_literal(path, node) for node in ast.parse(cells[0]["source"]).body)


def _literal(path: Path, node: ast.stmt) -> tuple[str, Any]:
    line = ast.unparse(node)
    try:
        match node:
            case ast.Assign(targets=[ast.Name(name)]) | ast.AnnAssign(target=ast.Name(name)):
                return name, ast.literal_eval(node.value)
        raise ValueError
    except ValueError:
        raise ConfigError(
            f"{path.name}: parameters cell, {line!r}: expected name = literal, one a line"
        ) from None


def _fit(value: Any, default: Any) -> Any:
    """`value` in the type of `default` (an int becomes a float where the default is one); TypeError where it is not."""
    if type(default) is float and type(value) is int:
        return float(value)
    if isinstance(default, (list, tuple)) and isinstance(value, (list, tuple)):
        return [_fit_any(v, default) for v in value]
    if type(value) is not type(default):
        raise TypeError
    return value


def _fit_any(value: Any, examples: Sequence[Any]) -> Any:
    for example in sorted(examples, key=lambda e: type(e) is not type(value)):
        try:
            return _fit(value, example)
        except TypeError:
            continue
    if examples:
        raise TypeError
    return value


def expected(default: Any) -> str:
    """The type of a default in words, for messages."""
    words = {**IN_WORDS, float: "a number (in YAML 3.0e-4, not 3e-4)"}
    if isinstance(default, (list, tuple)):
        return "a list of " + (" or ".join(sorted({expected(v) for v in default})) or "values")
    return words.get(type(default), type(default).__name__)


def check_parameters(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` in the types of the notebook's defaults; an unknown key or a wrong type raises `ConfigError`."""
    defaults, fitted = parameters(path), {}
    refuse_unknown(values, defaults, f"{path.stem}: unknown parameter")
    for key, value in values.items():
        default = [0, "middle"] if key.endswith("sites") else defaults[key]  # numbers or names
        try:
            fitted[key] = _fit(value, default)
        except TypeError:
            raise ConfigError(
                f"{path.stem}: {key} = {value!r} ({type(value).__name__}): expected {expected(default)}"
            ) from None
    return fitted


def check_ranges(path: Path, values: Mapping[str, Any]) -> None:
    """Refuse a value of the right type that a configuration would refuse: `ConfigError` in the parameter's own name.

    `values` are given for some parameters; the notebook's defaults hold for the others, since a rule may join several.
    """
    every = {**parameters(path), **values}
    for key, value in every.items():
        if re.fullmatch(NOT_EMPTY, key) and value in ([], ()):
            raise ConfigError(f"{path.stem}: {key} = {value!r}: expected at least one element")
        elements = value if isinstance(value, (list, tuple)) else [value]
        if re.fullmatch(NOT_EMPTY, key) and len(set(elements)) < len(
            elements
        ):  # one seed thrice is not three
            raise ConfigError(f"{path.stem}: {key} = {value!r}: expected each element once")
        if re.fullmatch(POSITIVE, key) and not key.endswith("seeds") and min(elements) <= 0:
            raise ConfigError(f"{path.stem}: {key} = {value!r}: expected above 0")
        if re.fullmatch(NOT_NEGATIVE, key) and value < 0:
            raise ConfigError(f"{path.stem}: {key} = {value!r}: expected 0 or more")
        for config, field in [
            into for names, into in GOES_INTO.items() if re.fullmatch(names, key)
        ]:
            for element in elements:
                _probe(path, config, {field: element}, {field: (key, value)})
    for config in (SAEConfig, TrainConfig, CorpusConfig, CollectConfig, EvalConfig):
        same = {f.name: every[f.name] for f in fields(config) if f.name in every}
        _probe(path, config, same, {name: (name, value) for name, value in same.items()})


def _probe(
    path: Path, config: type, values: Mapping[str, Any], given: Mapping[str, tuple[str, Any]]
) -> None:
    """Build a configuration; what it refuses is said of the parameter and value `given` for the field, not of it."""
    try:
        config(**values)
    except ConfigError as error:
        field = str(error).partition(" = ")[0].partition(".")[2]
        if field not in given:
            raise ConfigError(f"{path.stem}: {error}") from None
        key, value = given[field]
        accepted = str(error).rpartition("): expected ")[2]
        raise ConfigError(f"{path.stem}: {key} = {value!r}: expected {accepted}") from None


# --- profiles, overrides, grids --------------------------------------------------------------------------------------


def _mapping(value: Any, what: str) -> dict[str, Any]:
    value = {} if value is None else value
    if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
        raise ConfigError(f"{what}: expected a mapping of names, found {value!r}")
    return value


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        return _mapping(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def load_profile(name: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """`common` and `notebooks` of a profile, structure checked."""
    folder = notebooks_dir() / "profiles"
    names = sorted(
        p.stem for p in folder.glob("*.yaml") if "." not in p.stem and p.stem not in KEPT
    )
    if name not in names:
        raise ConfigError(
            f"profile {name!r}: accepted: {', '.join(names)} (a name has no '/' or '.' and is not {', '.join(KEPT)})"
        )
    path = folder / f"{name}.yaml"
    content = _load_yaml(path)
    refuse_unknown(content, ("common", "notebooks"), f"{path}: unknown section")
    common = _mapping(content.get("common"), f"{path}: common")
    each = _mapping(content.get("notebooks"), f"{path}: notebooks")
    return common, {k: _mapping(v, f"{path}: notebooks.{k}") for k, v in each.items()}


def spread(
    values: Mapping[str, Any], paths: Sequence[Path], what: str
) -> dict[Path, dict[str, Any]]:
    """Give every notebook those of `values` it has a parameter for; a name that none has raises `ConfigError`."""
    names = {p: parameters(p) for p in paths}
    known = sorted(set().union(*names.values()))
    refuse_unknown(values, known, f"{what}: no notebook has the parameter")
    return {p: {k: v for k, v in values.items() if k in accepted} for p, accepted in names.items()}


def resolve_profile(profile: str) -> dict[Path, dict[str, Any]]:
    """Parameters of every notebook under a profile, all checked."""
    paths = sources()
    common, each = load_profile(profile)
    refuse_unknown(each, [p.stem for p in paths], f"profile {profile!r}: unknown notebook")
    if any(RESERVED in values for values in (common, *each.values())):
        raise ConfigError(
            f"profile {profile!r}: {RESERVED!r} is the name of the file and cannot be set in it"
        )
    shared = spread(common, paths, f"profile {profile!r}, common")
    own = {p: {RESERVED: profile} if RESERVED in parameters(p) else {} for p in paths}
    return {p: check_parameters(p, {**shared[p], **each.get(p.stem, {}), **own[p]}) for p in paths}


def grid_points(path: Path) -> list[dict[str, Any]]:
    """The product of a grid file's lists, in the file's order, the last name running fastest."""
    if not path.is_file():
        raise ConfigError(f"grid {str(path)!r}: no such file")
    axes = _load_yaml(path)
    for key, values in axes.items():
        if not isinstance(values, list) or not values or key == RESERVED:
            raise ConfigError(
                f"{path}: {key} = {values!r}: expected a list of values for a parameter but {RESERVED!r}"
            )
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


def plan(
    profile: str,
    names: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    grid: Path | None = None,
) -> list[Job]:
    """Every job of a run, in order, all parameters checked; with a grid only the notebooks that have a grid name."""
    base, chosen, main = resolve_profile(profile), sources(names), data_dir(profile)
    if RESERVED in (overrides or {}):
        raise ConfigError(f"{RESERVED!r} is chosen with --profile and cannot be set")
    given = spread(overrides or {}, chosen, "--set")
    jobs = []
    for point in grid_points(grid) if grid else [{}]:
        own = spread(point, chosen, str(grid))
        name = stable_hash(point) if grid else ""
        folder = main / "grid" / name / "notebooks" if grid else main / "notebooks"
        for path in [p for p in chosen if own[p] or not grid]:
            values = check_parameters(path, {**base[path], **given[path], **own[path]})
            check_ranges(path, values)
            jobs.append(Job(path, values, folder, main / "notebooks", name))
    every = [{**parameters(path), **values, **(overrides or {})} for path, values in base.items()]
    least = AHEAD * max(
        (values.get(name, 0) for values in every for name in ("batch_size", "cause_batch")),
        default=0,
    )
    for job in jobs:
        if 0 < (buffer := job.values.get("stream_tokens", 0)) < least:
            raise ConfigError(
                f"{job.name}: stream_tokens = {buffer}: expected 0 or at least {least}, {AHEAD} batches"
            )
    return jobs


# --- running ---------------------------------------------------------------------------------------------------------


def versions() -> list[int]:
    """The declared versions that an executed notebook depends on."""
    return [TRAINING_VERSION, MEASURING_VERSION, STREAMING_VERSION, STUDY_VERSION]


def _recorded(record: Path) -> str:
    return json.loads(record.read_text(encoding="utf-8"))["key"] if record.is_file() else ""


def _before(job: Job) -> dict[str, str]:
    """Keys on record of the notebooks that come before this one: what its inputs were made by."""
    names = [p.stem for p in sources() if p.stem < job.name]
    return {
        n: _recorded(job.folder / f"{n}.json") or _recorded(job.main / f"{n}.json") for n in names
    }


def job_key(job: Job) -> str:
    """Hash of everything an executed notebook depends on: code cells, parameters, versions, notebooks before it.

    Cells are taken as syntax trees, so that a comment or a line break in one executes nothing again.
    """
    code = [
        ast.dump(ast.parse(c["source"]))
        for c in code_cells(nbformat.read(job.source, as_version=4))
    ]
    return stable_hash(code, dict(job.parameters), versions(), _before(job))


def tidy(nb: Any) -> Any:
    """Drop what differs between two equal runs: papermill's paths and times, and the cells' clocks."""
    nb["metadata"].pop("papermill", None)
    nb["metadata"].pop("widgets", None)
    nb["metadata"].get("language_info", {}).pop("version", None)
    for cell in nb["cells"]:
        for key in ("papermill", "execution"):
            cell["metadata"].pop(key, None)
    return nb


def execute(source: Path, output: Path, values: Mapping[str, Any], grid: str = "") -> None:
    """Run one notebook in its folder, headless, and leave the executed copy at `output` whether it fails or not."""
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        # the kernel inherits these variables; the caller's come back afterwards
        with patch.dict(os.environ, SAELIB_HEADLESS="1", SAELIB_GRID=grid):
            papermill.execute_notebook(
                source,
                output,
                parameters=dict(values),
                kernel_name="python3",
                language="python",
                cwd=source.parent,
                progress_bar=False,
                log_output=True,
                start_timeout=120,
                extra_arguments=[
                    "--IPKernelApp.log_level=50"
                ],  # the kernel's own remarks; a cell's errors still show
            )
    finally:
        if output.is_file():
            write_text(output, nbformat.writes(tidy(nbformat.read(output, as_version=4))))


def is_finished(job: Job) -> bool:
    """Is the executed notebook there, made from just this code, these parameters and these inputs?"""
    return job.output.is_file() and _recorded(job.record) == job_key(job)


def refresh_prose(job: Job) -> None:
    """Bring the markdown of a finished notebook up to the source's: prose is not part of the key."""
    source, done = (nbformat.read(p, as_version=4) for p in (job.source, job.output))
    injected = [c for c in done["cells"] if INJECTED in tags(c)]
    executed, cells = iter(code_cells(done)), []
    for cell in source["cells"]:
        cells.append(next(executed) if cell["cell_type"] == "code" else cell)
        if "parameters" in tags(cell):
            cells.extend(injected)
    if cells != done["cells"]:
        done["cells"] = cells
        write_text(job.output, nbformat.writes(done))


def run_job(job: Job, profile: str, force: bool = False) -> Result:
    """Execute one notebook, or skip it where it is finished; a failure is returned, not raised."""
    if is_finished(job) and not force:
        refresh_prose(job)
        return Result(job, "skipped")
    partial = job.folder / f"{job.name}.partial.ipynb"
    resumed = job.failed.is_file() or partial.is_file()  # an earlier attempt failed or was killed
    key, start = job_key(job), time.monotonic()
    job.record.unlink(missing_ok=True)
    for path in job.claims:  # should this run fail, or leave one out, nothing may still be claimed
        path.unlink()
    try:
        execute(job.source, partial, job.parameters, job.grid)
    except (
        Exception
    ) as error:  # whatever stops one notebook is reported, and the next one still runs
        if partial.is_file():
            os.replace(partial, job.failed)
        return Result(job, "failed", time.monotonic() - start, last_line(error))
    seconds = time.monotonic() - start
    os.replace(partial, job.output)
    job.failed.unlink(missing_ok=True)
    record = {
        "key": key,
        "parameters": dict(job.parameters),
        "versions": versions(),
        "grid": job.grid,
    }
    write_text(job.record, json.dumps(record, indent=1, sort_keys=True))
    log_time(
        data_dir(profile),
        f"notebook:{job.name}" + (f"@{job.grid}" if job.grid else ""),
        seconds,
        resumed=resumed,
    )
    return Result(job, "done", seconds)


def last_line(error: Exception) -> str:
    """An exception in one line; of a notebook's, the name and message of the exception in the cell."""
    if isinstance(error, PapermillExecutionError):
        return f"cell {error.exec_count}: {error.ename}: {error.evalue}".splitlines()[0]
    return f"{type(error).__name__}: {error}".splitlines()[0]


def run(
    profile: str,
    names: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    grid: Path | None = None,
    force: bool = False,
) -> list[Result]:
    """Plan, then run every job in order and go on after a failure; the caller turns failures into an exit status.

    Where collecting fails at a grid point, the point's later notebooks are not run: they would read another's store.
    """
    results, no_store = [], set()
    for job in plan(profile, names, overrides, grid):
        log.info("=== %s%s", job.name, f" @ {job.grid} {dict(job.parameters)}" if job.grid else "")
        lost = (
            Result(job, "failed", error=f"not run: {COLLECT} failed")
            if job.grid in no_store
            else None
        )
        results.append(lost or run_job(job, profile, force))
        if job.grid and job.name == COLLECT and results[-1].status == "failed":
            no_store.add(job.grid)
        log.info(
            "=== %s %s %.1f s %s",
            job.name,
            results[-1].status,
            results[-1].seconds,
            results[-1].error,
        )
    return results
