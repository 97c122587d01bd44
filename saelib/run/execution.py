"""Notebooks through papermill: executed, skipped where finished, and reported where they fail."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from saelib.config import CorpusConfig
from saelib.env import data_dir
from saelib.files import full_disk_named, write_text
from saelib.run.identity import IDENTITY_FILE, read_identity
from saelib.run.jobs import (
    COLLECT,
    Job,
    Result,
    damages,
    is_finished,
    job_key,
    jobs_of,
    write_record,
)
from saelib.run.kernel import OwnKernel
from saelib.run.parameters import filled
from saelib.run.plain import without_controls, without_paths
from saelib.run.results import log_time
from saelib.run.seals import seals_of, seals_with_prose
from saelib.run.source_notebooks import INJECTED, PARAMETERS_TAG, code_cells, tags
from saelib.run.turns import turn

log = logging.getLogger("saelib")


def tidy(notebook: Any) -> Any:
    """Drop what differs between two equal runs: papermill's paths and times, the cells' clocks, its
    random name of the cell it adds, the machine's folders; and control sequences, which a page's
    title may hold.
    """
    notebook["metadata"].pop("papermill", None)
    notebook["metadata"].pop("widgets", None)
    notebook["metadata"].get("language_info", {}).pop("version", None)
    for cell in notebook["cells"]:
        for key in ("papermill", "execution"):
            cell["metadata"].pop(key, None)
        if INJECTED in tags(cell) and "id" in cell:
            cell["id"] = INJECTED
        for output in cell.get("outputs", []):
            _clean(output)
    return notebook


def _clean(output: Any) -> None:
    """Take control sequences and the machine's folders out of an output's text."""
    for key in ("text", "ename", "evalue"):
        if key in output:
            output[key] = without_paths(without_controls(output[key]))
    if "traceback" in output:
        lines = (without_controls(line, colours=True) for line in output["traceback"])
        output["traceback"] = [without_paths(line) for line in lines]
    if "text/plain" in output.get("data", {}):
        output["data"]["text/plain"] = without_paths(without_controls(output["data"]["text/plain"]))


def execute(source: Path, output: Path, values: Mapping[str, Any], grid: str = "") -> None:
    """Run one notebook in its folder, headless.

    The executed copy lies at `output` whether the notebook fails or not; its error is raised.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        # the kernel inherits these variables; the caller's come back afterwards
        variables = patch.dict(os.environ, SAELIB_HEADLESS="1", SAELIB_GRID=grid)
        with variables, full_disk_named(output):
            papermill.execute_notebook(
                source,
                output,
                parameters=dict(values),
                kernel_name="python3",
                kernel_manager_class=OwnKernel,  # this name alone may find another Python
                language="python",
                cwd=source.parent,
                progress_bar=False,
                log_output=True,
                start_timeout=120,
                # the kernel's own remarks are left out; a cell's errors still show
                extra_arguments=["--IPKernelApp.log_level=50"],
            )
    finally:
        if output.is_file():
            _tidy_file(output)


def _tidy_file(path: Path) -> None:
    """`tidy` an executed notebook; one that was half written, as on a full disk, is removed."""
    try:
        notebook = nbformat.read(path, as_version=4)
    except ValueError as error:
        log.warning("%s: removed, it was half written (%s)", path, last_line(error))
        path.unlink()
        return
    write_text(path, nbformat.writes(tidy(notebook)))


def refresh_prose(job: Job) -> None:
    """Bring a finished notebook's markdown up to the source's: prose is not part of the key."""
    source = nbformat.read(job.source, as_version=4)
    done = nbformat.read(job.output, as_version=4)
    injected = [cell for cell in done["cells"] if INJECTED in tags(cell)]
    executed = iter(code_cells(done))
    cells = []
    for cell in source["cells"]:
        cells.append(next(executed) if cell["cell_type"] == "code" else cell)
        if PARAMETERS_TAG in tags(cell):
            cells.extend(injected)
    if cells != done["cells"]:
        done["cells"] = cells
        write_text(job.output, nbformat.writes(done))


def run_job(job: Job, profile: str, force: bool = False) -> Result:
    """Execute one notebook, or skip it where it is finished; a failure is returned, not raised.

    Where another process executes it, this one waits. What is damaged is said and made anew.
    """
    with turn(data_dir(profile), f"{job.grid or 'main'}.{job.name}", job.label):
        for line in damages(job):
            log.warning("%s: %s is run again", line, job.label)
        return _run_job(job, profile, force)


def _run_job(job: Job, profile: str, force: bool) -> Result:
    if is_finished(job) and not force:
        refresh_prose(job)
        # which values came by `--set` may have changed, and prose
        write_record(job, job_key(job), seals_with_prose(job))
        return Result(job, "skipped")
    partial = job.folder / f"{job.name}.partial.ipynb"
    resumed = job.failed.is_file() or partial.is_file()  # an earlier attempt failed or was killed
    key = job_key(job)
    start = time.monotonic()
    _drop_claims(job)
    try:
        execute(job.source, partial, job.parameters, job.grid)
    except Exception as error:  # whatever stops one notebook is reported, and the next one runs
        if partial.is_file():
            os.replace(partial, job.failed)
        return Result(job, "failed", time.monotonic() - start, last_line(error))
    seconds = time.monotonic() - start
    os.replace(partial, job.output)
    job.failed.unlink(missing_ok=True)
    refresh_prose(job)  # in the form that a rerun finds
    stage = f"notebook:{job.name}" + (f"@{job.grid}" if job.grid else "")
    log_time(data_dir(profile), stage, seconds, resumed=resumed)
    write_record(job, key, seals_of(job))
    return Result(job, "done", seconds)


def _drop_claims(job: Job) -> None:
    """Remove what an earlier run claimed: should this one fail, nothing may still be claimed."""
    job.record.unlink(missing_ok=True)
    for path in [*job.claims, *job.atlases]:
        path.unlink(missing_ok=True)


def last_line(error: Exception) -> str:
    """An exception in one line; of a notebook's, the name and message of the one in the cell."""
    if isinstance(error, PapermillExecutionError):
        text = f"cell {error.exec_count}: {error.ename}: {error.evalue}"
    else:
        text = f"{type(error).__name__}: {error}"
    return without_controls(text).splitlines()[0]


def run(
    profile: str,
    names: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    grid: Path | None = None,
    force: bool = False,
) -> list[Result]:
    """Run every job in order and go on after a failure; the caller makes it an exit status.

    Where 01 fails before its store is there, the later notebooks are not run: they would stop at
    its absence, or read a store of something else.
    """
    results = []
    no_store: set[str] = set()  # grid points whose collection failed
    for job in jobs_of(profile, names, overrides, grid):
        point = f" @ {job.grid} {dict(job.parameters)}" if job.grid else ""
        log.info("=== %s%s", job.name, point)
        if job.grid in no_store:
            result = Result(job, "failed", error=f"not run: {COLLECT} failed")
        else:
            result = run_job(job, profile, force)
        if job.name == COLLECT and result.status == "failed" and not _is_collected(job):
            no_store.add(job.grid)
        results.append(result)
        log.info("=== %s %s %.1f s %s", job.name, result.status, result.seconds, result.error)
    return results


def _is_collected(job: Job) -> bool:
    """Whether the profile's store is finished and of the model and text that 01 asks for."""
    folder = job.main.parent
    if not all((folder / name).is_file() for name in (IDENTITY_FILE, "store/manifest.json")):
        return False
    try:
        identity = read_identity(folder, folder.name)
        corpus = filled(CorpusConfig, job.values, seed=job.values["corpus_seed"])
    except (ValueError, KeyError):  # the former also of a damaged file
        return False
    asked = {"model": job.values["model"], "dtype": job.values["dtype"], "corpus": corpus.to_dict()}
    return all(identity.get(name) == value for name, value in asked.items())
