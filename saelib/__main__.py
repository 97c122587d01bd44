"""Command line: `python -m saelib COMMAND`; `--help` lists them, and each has its own.

`collect` and `train` also run as many processes:
`torchrun --nproc-per-node 8 -m saelib train --profile full`.

What a command needs is imported when it runs, so that `--help` and a refused request answer at
once.
"""

from __future__ import annotations

import argparse
import ast
import logging
import os
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from saelib.config import shown
from saelib.run.profiles import parsed_yaml

if TYPE_CHECKING:
    from saelib.run.jobs import Job, Result

PAPERMILL_NOISE = (
    "Executing ",
    "Ending ",
    "Input Notebook",
    "Output Notebook",
    "Working directory",
)

# What `ast.literal_eval` raises of a text that is none.
NO_LITERAL = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError)

log = logging.getLogger("saelib")

# --- the request -------------------------------------------------------------------------------


def parse_setting(text: str) -> tuple[str, Any]:
    """`name=value`: a Python literal (3e-4, [2, 15], True) or else YAML (true, a word)."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{shown(text)}: expected name=value")
    for read in (ast.literal_eval, parsed_yaml):
        try:
            return name, read(value)
        except (*NO_LITERAL, yaml.YAMLError):
            continue
    raise argparse.ArgumentTypeError(
        f"{shown(text)}: the value is neither a Python literal nor YAML"
    )


def shared_options() -> dict[str, argparse.ArgumentParser]:
    """Options that several commands take, by what they say."""
    options = {
        name: argparse.ArgumentParser(add_help=False) for name in ("profile", "set", "notebooks")
    }
    options["profile"].add_argument(
        "--profile", required=True, help="a file of notebooks/profiles, without .yaml"
    )
    options["set"].add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        type=parse_setting,
        metavar="NAME=VALUE",
        help="a parameter of the notebooks, over the profile's value; may be repeated",
    )
    options["notebooks"].add_argument(
        "notebooks", nargs="*", help="name, number or path; none: all"
    )
    return options


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(
        prog="python -m saelib", description="Batch driver of the SAE workbook."
    )
    commands = top.add_subparsers(dest="command", required=True)
    options = shared_options()

    def command(name: str, what: str, *takes: str) -> argparse.ArgumentParser:
        parents = [options[option] for option in takes]
        return commands.add_parser(name, help=what, parents=parents)

    plan = command(
        "plan", "say what a profile will take: time, disk, memory", "profile", "set", "notebooks"
    )
    plan.add_argument(
        "--rate",
        type=float,
        metavar="FLOPS",
        help="operations a second of matrix products; else measured on this machine",
    )
    run = command(
        "run",
        "execute a profile's notebooks, skip finished ones, write the report",
        "profile",
        "set",
        "notebooks",
    )
    run.add_argument(
        "--grid", type=Path, metavar="FILE.yaml", help="name -> list; every combination is run"
    )
    run.add_argument("--force", action="store_true", help="execute finished notebooks again")
    command(
        "collect",
        "collect a profile's activations; under torchrun by all its processes",
        "profile",
        "set",
    )
    train = command(
        "train",
        "train what 02 and 03 begin with; under torchrun by all processes",
        "profile",
        "set",
    )
    train.add_argument(
        "--over",
        choices=("grid", "data", "latents"),
        default="grid",
        help="what they share out: whole SAEs, a batch's rows, an SAE's latents",
    )
    command("report", "write data/<profile>/report from what is there", "profile")
    curves = command("tensorboard", "write the training curves for TensorBoard", "profile")
    curves.add_argument(
        "--to", type=Path, metavar="FOLDER", help="instead of data/<profile>/tensorboard"
    )
    check = command("check", "read all of a profile: what is damaged, and what would heal it")
    check.add_argument("--profile", help="a folder of data/; without it every profile there")
    assets = command("assets", "fetch and convert the embedded model and text, or named models")
    assets.add_argument(
        "models", nargs="*", metavar="MODEL", help="embedded, tinyllama; none: the embedded one"
    )
    return top


# --- the commands ------------------------------------------------------------------------------


def fetch_assets(models: Collection[str], text: bool) -> float:
    """Make sure named models are there, and the embedded text; returns the seconds it took."""
    from saelib.text.assets import embedded_wiki
    from saelib.text.models import named_model

    start = time.monotonic()
    for name in sorted(models):
        named_model(name)
    if text:
        embedded_wiki()
    log.info("assets ready in %.1f s", time.monotonic() - start)
    return time.monotonic() - start


def assets_of(jobs: Iterable[Job]) -> tuple[set[str], bool]:
    """Named models that notebooks ask for, and whether one reads the embedded text."""
    from saelib.text.models import MODELS

    values = [job.values for job in jobs]
    models = {name for name in MODELS if any(given.get("model") == name for given in values)}
    return models, any(given.get("source") == "embedded" for given in values)


def command_assets(args: argparse.Namespace) -> None:
    """Fetch what has a name; ConfigError for a model that has none."""
    from saelib.config import ConfigError
    from saelib.text.models import EMBEDDED, MODELS

    for name in args.models:
        if name not in MODELS:
            raise ConfigError(f"assets {name}: expected one of {', '.join(MODELS)}")
    fetch_assets(args.models or [EMBEDDED], text=not args.models or EMBEDDED in args.models)


def print_stages(stages: Sequence[tuple[str, float, str]]) -> None:
    """Stage times, their sum, and the machine's load: a time means little without it."""
    width = max(len(name) for name, _, _ in stages)
    total = ("work in all", sum(seconds for _, seconds, _ in stages), "")
    for name, seconds, note in [*stages, total]:
        log.info("%s", f"{name:<{width}}  {seconds:8.1f} s  {note}".rstrip())
    log.info("load average %.1f, %.1f, %.1f on %d cores", *os.getloadavg(), os.cpu_count())


def command_plan(args: argparse.Namespace) -> None:
    """Print the plan."""
    settings = dict(args.settings)
    check_request(args.profile, args.notebooks, settings)
    from saelib.run import plan

    made = plan.make_plan(args.profile, args.notebooks, settings, args.rate)
    for line in plan.lines(made):
        log.info(line)


def check_request(
    profile: str,
    notebooks: Sequence[str],
    settings: dict[str, Any],
    grid: Path | None = None,
) -> list[Job]:
    """The jobs of a request; ConfigError for what is wrong with it, before anything else loads."""
    from saelib.run.jobs import jobs_of

    return jobs_of(profile, notebooks, settings, grid)


def plan_run(args: argparse.Namespace) -> None:
    """Print a run's plan in a few lines; ConfigError where the disk is too small for it.

    A run whose model or text cannot be planned with is not refused: it knows more once it has them.
    """
    from saelib.run import plan

    try:
        made = plan.make_plan(args.profile, args.notebooks, dict(args.settings), force=args.force)
    except Exception as error:  # of any library: a forecast is no reason to stop a run
        log.info("no plan: %s", one_line(error))
        return
    for line in plan.brief(made):
        log.info(line)


def command_run(args: argparse.Namespace) -> int:
    """Check, fetch assets where needed, plan, execute, report; 1 if a notebook or the report
    failed.
    """
    settings = dict(args.settings)
    jobs = check_request(args.profile, args.notebooks, settings, args.grid)
    stages = []
    models, text = assets_of(jobs)
    if models or text:
        stages.append(("assets", fetch_assets(models, text), ""))
    if not args.grid:
        plan_run(args)
    from saelib.run import execution

    results = execution.run(args.profile, args.notebooks, settings, args.grid, args.force)
    stages += [(result.job.label, result.seconds, result.status) for result in results]
    failures = [result for result in results if result.status == "failed"]
    print_failures(failures)
    start = time.monotonic()
    index = written_report(args.profile)
    stages.append(("report", time.monotonic() - start, "" if index else "failed"))
    print_stages(stages)
    if index:
        log.info("report: %s", index)
    return 1 if failures or not index else 0


def print_failures(failures: Sequence[Result]) -> None:
    """One line per failed notebook, with the executed copy to look at."""
    for result in failures:
        job = result.job
        see = f": see {job.failed}" if job.failed.is_file() else ""
        log.error("failed: %s %s%s", job.label, result.error, see)


def written_report(profile: str) -> Path | None:
    """The report's index; None where it could not be written, which is said and not raised.

    The notebooks' times and status are still to be told.
    """
    from saelib.run import report

    try:
        return report.build_report(profile)
    except (OSError, ValueError) as error:
        log.error("error: no report: %s", one_line(error))
        return None


def command_report(args: argparse.Namespace) -> None:
    """Write the report."""
    from saelib.run import report

    log.info("report: %s", report.build_report(args.profile))


def command_tensorboard(args: argparse.Namespace) -> None:
    """Write the training curves as TensorBoard's event files."""
    from saelib.run.tensorboard import write_curves

    folder, n_written = write_curves(args.profile, args.to)
    log.info("%d SAEs' curves written; see them with: tensorboard --logdir %s", n_written, folder)


def command_check(args: argparse.Namespace) -> int:
    """Tell what is damaged, a line each; 1 if anything is."""
    from saelib.run import check

    names = [args.profile] if args.profile else check.profiles()
    is_damaged = False
    for name in names:
        seen = check.check_profile(name)
        for line in (*seen.notices, *seen.damaged):
            log.info(line)
        state = f"{len(seen.damaged)} damaged" if seen.damaged else "none damaged"
        log.info("profile %s: %d files read, %s", name, seen.n_files, state)
        is_damaged = is_damaged or bool(seen.damaged)
    if not names:
        log.info("no profile has anything to check")
    return int(is_damaged)


def command_collect(args: argparse.Namespace) -> None:
    """Collect, by one process or all of torchrun's."""
    settings = dict(args.settings)
    check_request(args.profile, (), settings)
    from saelib.run import sweep

    sweep.collect(args.profile, settings)


def command_train(args: argparse.Namespace) -> None:
    """Train the first SAEs of 02 and 03, by one process or all of torchrun's."""
    settings = dict(args.settings)
    check_request(args.profile, (), settings)
    from saelib.run import sweep

    sweep.train(args.profile, args.over, settings)


COMMANDS = {
    "run": command_run,
    "plan": command_plan,
    "collect": command_collect,
    "train": command_train,
    "report": command_report,
    "tensorboard": command_tensorboard,
    "check": command_check,
    "assets": command_assets,
}


def one_line(error: Exception) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split())


def is_expected(error: Exception) -> bool:
    """Whether an error is a sentence for the user: from the file system, a refusal, or ours."""
    return isinstance(error, OSError | ValueError) or type(error).__module__.startswith("saelib.")


def for_the_terminal(record: logging.LogRecord) -> bool:
    """Let a message through without control sequences, which a file's name or a page's title may
    hold, unless it is papermill's noise.
    """
    from saelib.run.plain import without_controls

    message = record.getMessage()
    record.msg = without_controls(message)
    record.args = ()
    return not message.startswith(PAPERMILL_NOISE)


def set_up_logging() -> None:
    """Messages alone, on standard output; of many processes the first one speaks."""
    level = logging.ERROR if os.environ.get("RANK", "0") != "0" else logging.INFO
    terminal = logging.StreamHandler(sys.stdout)
    terminal.addFilter(for_the_terminal)
    logging.basicConfig(level=level, format="%(message)s", handlers=[terminal])
    # nbconvert's remarks on missing alternative texts
    logging.getLogger("traitlets").setLevel(logging.ERROR)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all well; 1 a notebook or the report failed, or a file is damaged; 2 the
    request was not met.
    """
    args = parser().parse_args(argv)
    set_up_logging()
    try:
        status = COMMANDS[args.command](args)
    except Exception as error:
        if not is_expected(error):
            raise
        log.error("error: %s", one_line(error))
        return 2
    return status if args.command in ("run", "check") else 0


if __name__ == "__main__":
    sys.exit(main())
