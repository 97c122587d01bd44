"""Command line: `python -m saelib {plan,run,collect,train,report,assets}`; each has `--help`.

`collect` and `train` also run as many processes: `torchrun --nproc-per-node 8 -m saelib train --profile full`.
"""

from __future__ import annotations

import argparse
import ast
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from saelib.activations.live import StreamError
from saelib.activations.shards import StoreError
from saelib.run import jobs as batch
from saelib.run import plan, report, sweep
from saelib.sae.trainer import TrainingDiverged
from saelib.text.assets import AssetError

PAPERMILL_NOISE = (
    "Executing ",
    "Ending ",
    "Input Notebook",
    "Output Notebook",
    "Working directory",
)

log = logging.getLogger("saelib")


def parse_setting(text: str) -> tuple[str, Any]:
    """`name=value`, the value a Python literal (3e-4, [2, 15], True) or else YAML (true, a word)."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r}: expected name=value")
    for read in (ast.literal_eval, yaml.safe_load):
        try:
            return name, read(value)
        except (ValueError, SyntaxError, yaml.YAMLError):
            continue
    raise argparse.ArgumentTypeError(f"{text!r}: the value is neither a Python literal nor YAML")


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(
        prog="python -m saelib", description="Batch driver of the SAE workbook."
    )
    profile, values, notebooks = (argparse.ArgumentParser(add_help=False) for _ in range(3))
    profile.add_argument(
        "--profile", required=True, help="a file of notebooks/profiles, without .yaml"
    )
    values.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        type=parse_setting,
        metavar="NAME=VALUE",
    )
    notebooks.add_argument("notebooks", nargs="*", help="name, number or path; none: all")
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, what: str, *takes: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=what, parents=takes)

    every = (profile, values, notebooks)
    ahead = command(
        "plan", "say what a profile will take: tokens, disk, memory, operations, time", *every
    )
    stated = "operations a second of matrix products; else measured"
    ahead.add_argument("--rate", type=float, metavar="FLOPS", help=stated)
    run = command(
        "run", "execute a profile's notebooks, skip finished ones, write the report", *every
    )
    run.add_argument(
        "--grid", type=Path, metavar="FILE.yaml", help="name -> list; every combination is run"
    )
    run.add_argument("--force", action="store_true", help="execute finished notebooks again")
    command(
        "collect",
        "collect a profile's activations; under torchrun by all its processes",
        profile,
        values,
    )
    fit = command(
        "train", "train what 02 and 03 begin with; under torchrun by all processes", profile, values
    )
    shared = "what they share out: whole SAEs, a batch's rows, an SAE's latents"
    fit.add_argument("--over", choices=("grid", "data", "latents"), default="grid", help=shared)
    command("report", "write data/<profile>/report from what is there", profile)
    command("assets", "fetch and convert the embedded model and text")
    return top


def fetch_assets() -> float:
    """Make sure the embedded model and text are there; returns the seconds it took."""
    from saelib.text import assets

    start = time.monotonic()
    assets.embedded_model()
    assets.embedded_wiki()
    log.info("assets ready in %.1f s", time.monotonic() - start)
    return time.monotonic() - start


def print_stages(stages: Sequence[tuple[str, float, str]]) -> None:
    """Stage times, their sum, and the machine's load: a time means little without it."""
    width = max(len(name) for name, _, _ in stages)
    for name, seconds, note in [*stages, ("work in all", sum(s for _, s, _ in stages), "")]:
        log.info("%s", f"{name:<{width}}  {seconds:8.1f} s  {note}".rstrip())
    log.info("load average %.1f, %.1f, %.1f on %d cores", *os.getloadavg(), os.cpu_count())


def command_plan(args: argparse.Namespace) -> None:
    """Print the plan."""
    made = plan.make_plan(args.profile, args.notebooks, dict(args.settings), args.rate)
    for line in plan.lines(made) or ["nothing to plan: all of it is finished"]:
        log.info(line)


def plan_run(args: argparse.Namespace) -> None:
    """Print a run's plan in a few lines; `ConfigError` where the disk is too small for it.

    A run whose model or text cannot be planned with is not refused: it knows more once it has them.
    """
    try:
        made = plan.make_plan(args.profile, args.notebooks, dict(args.settings), force=args.force)
    except (
        Exception
    ) as error:  # of whatever library: it is a forecast, and the run will say what is wrong itself
        log.info("no plan: %s", one_line(error))
        return
    for line in plan.brief(made):
        log.info(line)


def command_run(args: argparse.Namespace) -> int:
    """Check everything, then assets where the embedded ones are used, plan, notebooks, report; 1 if one failed."""
    settings, stages = dict(args.settings), []
    jobs = batch.plan(args.profile, args.notebooks, settings, args.grid)
    if any("embedded" in job.values.values() for job in jobs):
        stages.append(("assets", fetch_assets(), ""))
    if not args.grid:
        plan_run(args)
    results = batch.run(args.profile, args.notebooks, settings, args.grid, args.force)
    stages += [(f"{r.job.name} {r.job.grid}".strip(), r.seconds, r.status) for r in results]
    failures = [r for r in results if r.status == "failed"]
    for r in failures:
        see = f": see {r.job.failed}" if r.job.failed.is_file() else ""
        log.error("failed: %s %s%s", f"{r.job.name} {r.job.grid}".strip(), r.error, see)
    start, index = time.monotonic(), None
    try:
        index = report.build_report(args.profile)
    except (OSError, ValueError) as error:  # the notebooks' times and status are still to be told
        log.error("error: no report: %s", one_line(error))
    print_stages([*stages, ("report", time.monotonic() - start, "" if index else "failed")])
    if index:
        log.info("report: %s", index)
    return 1 if failures or not index else 0


def one_line(error: Exception) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split())


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all well, 1 a notebook or the report of a run failed, 2 the request could not be met."""
    args = parser().parse_args(argv)
    level = (
        logging.ERROR if os.environ.get("RANK", "0") != "0" else logging.INFO
    )  # one of many processes speaks
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout)
    logging.getLogger("papermill").addFilter(
        lambda r: not r.getMessage().startswith(PAPERMILL_NOISE)
    )
    logging.getLogger("traitlets").setLevel(logging.ERROR)  # nbconvert on missing alternative texts
    try:
        if args.command == "run":
            return command_run(args)
        if args.command == "plan":
            command_plan(args)
        elif args.command == "collect":
            sweep.collect(args.profile, dict(args.settings))
        elif args.command == "train":
            sweep.train(args.profile, args.over, dict(args.settings))
        elif args.command == "report":
            log.info("report: %s", report.build_report(args.profile))
        else:
            fetch_assets()
    except (
        AssetError,
        OSError,
        StoreError,
        StreamError,
        TrainingDiverged,
        ValueError,
    ) as error:  # or a `ConfigError`
        log.error("error: %s", one_line(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
